"""The name service of a manager, over its connections: sessions, descriptors, waiting, and what survives."""

import os
import signal
import threading

import pytest
from rig.domains import manager_pid

import shoal.manager
from shoal import File, Vmo
from shoal.manager import ManagerError, Record


def code_of(error):
    return error.value.code


@pytest.fixture
def names(manager):
    return manager.names


def test_records_are_set_found_and_removed(names):
    assert names.register("web { port: 8080, host: 'a.example' }") == "web"
    found = names.get("web")
    assert found == Record("web", {"port": 8080, "host": "a.example"})
    assert names.names("_ { port > 8000 }") == ["web"]
    assert names.exists("web")
    names.remove("web")
    with pytest.raises(ManagerError) as error:
        names.get("web")
    assert code_of(error) == "OCT_ERR_NO_RECORD"
    with pytest.raises(ManagerError, match="column 13") as error:
        names.get("web { port: }")
    assert code_of(error) == "OCT_ERR_PARSER_FAIL"


def test_sequential_names_are_never_the_same_twice(names):
    first = [names.register("job { a: 1 }", mode="sequential") for _ in range(3)]
    names.remove(first[-1])
    assert len({*first, names.register("job { a: 1 }", mode="sequential")}) == 4


def test_the_managers_own_names_are_there_and_nobody_elses_to_set(manager):
    assert manager.names.names(r"r'^spawn\.[0-9]+$' { core: _ }") == [f"spawn.{core}" for core in manager.cores()]
    assert manager.names.lookup("proc_mgmt.0.ready", wait=False).attributes == {"iref": 0}
    domain = inside(
        manager,
        """
try:
    domain.manager().names.register("spawn.77 { core: 77 }")
except Exception as error:
    print(error.code)
print(domain.manager().names.register("mine { a: 1 }"))
""",
    )
    assert domain.wait(timeout=60).code == 0, b"".join(domain.logs())
    assert b"".join(domain.logs()).split() == [b"PROC_MGMT_ERR_NOT_MONITOR", b"mine"]
    assert not manager.names.exists("mine")  # it ended with the domain's session


def inside(manager, script):
    import sys

    argv = [sys.executable, "-c", f"import os, signal\nfrom shoal.startup import domain\n{script}"]
    return manager.spawn_program(manager.cores()[0], sys.executable, argv, own_capability=True)


def test_a_service_is_found_and_connected_to_in_one_look_up(manager):
    read, write = os.pipe()
    with File.from_fd(write) as handle:
        manager.names.register("log { kind: 'pipe' }", value=handle)
    found = manager.names.lookup("log")
    assert found.value is not None
    with found.value as value:
        os.write(value.fileno(), b"by the name")
    assert os.read(read, 99) == b"by the name"
    os.close(read)


def test_a_domain_finds_what_its_starter_has_registered(manager):
    manager.names.register("greeting { text: 'hello' }", value=Vmo.from_bytes(b"from memory"))
    domain = inside(manager, "r = domain.manager().names.lookup('greeting'); print(r.attributes['text'], r.value.read().decode())")
    assert domain.wait(timeout=60).code == 0, b"".join(domain.logs())
    assert b"".join(domain.logs()) == b"hello from memory\n"


def test_a_look_up_waits_until_somebody_registers(state):
    with shoal.manager.connect() as one, shoal.manager.connect() as other:
        found = []
        thread = threading.Thread(target=lambda: found.append(one.names.lookup("late", timeout=30)))
        thread.start()
        other.names.register("late { a: 1 }")
        thread.join()
        assert [record.name for record in found] == ["late"]
        with pytest.raises(TimeoutError):
            one.names.lookup("never", timeout=0.05)


def test_records_end_with_their_session_unless_persistent(state):
    with shoal.manager.connect() as watcher:
        with shoal.manager.connect() as owner:
            owner.names.register("brief { a: 1 }")
            owner.names.register("lasting { a: 1 }", persistent=True)
            watch = watcher.names.watch("r'brief|lasting' {}")
        event = watch.next(timeout=30)
        assert (event.kind, event.record.name) == ("delete", "brief")
        assert watcher.names.names("r'brief|lasting' {}") == ["lasting"]


def test_persistent_records_and_counters_survive_a_killed_manager(state):
    with shoal.manager.connect() as manager:
        manager.names.register("lasting { a: 1 }", persistent=True)
        manager.names.register("brief { a: 1 }")
        first = manager.names.register("job { a: 1 }", mode="sequential", persistent=True)
        os.kill(manager_pid(state), signal.SIGKILL)
        with pytest.raises(ManagerError) as error:
            manager.names.get("lasting")
        assert code_of(error) == "LIB_ERR_NAMESERVICE_NOT_BOUND"  # the session has ended; the next operation begins another
        assert manager.names.get("lasting").attributes == {"a": 1}
        assert not manager.names.exists("brief")
        assert manager.names.register("job { a: 1 }", mode="sequential", persistent=True) != first


def test_watches_tell_what_happens_in_order_and_end(names):
    watch = names.watch("r'^w\\.' {}")
    names.register("w.1 { a: 1 }")
    names.register("w.1 { a: 2 }")
    names.remove("w.1")
    watch.close()
    assert [(event.kind, event.removed) for event in watch] == [("set", False), ("set", False), ("delete", False), ("removed", True)]


def test_a_watch_that_is_never_read_costs_its_reader_events_and_nobody_anything(state):
    with shoal.manager.connect() as quiet, shoal.manager.connect() as busy:
        watch = quiet.names.watch("loud")
        for number in range(20_000):
            busy.names.register(f"loud {{ n: {number}, text: '{'x' * 200}' }}")
        assert busy.names.get("loud").attributes["n"] == 19_999
        kinds = set()
        while (event := watch.next(timeout=30)).kind != "overflow" and event.record.attributes["n"] != 19_999:
            kinds.add(event.kind)
        assert kinds == {"set"}


def test_messages_reach_those_who_subscribed(state):
    with shoal.manager.connect() as one, shoal.manager.connect() as other, one.names.subscribe("_ { size > 9 }") as subscription:
        assert other.names.publish("cup { size: 8 }") == 0
        assert other.names.publish("pot { size: 10 }") == 1
        assert subscription.next(timeout=30).record.name == "pot"


def test_a_lock_is_held_by_one_and_ends_with_its_holder(state):
    with shoal.manager.connect() as one:
        other = shoal.manager.connect()
        held = other.names.lock("door")
        held.__enter__()
        entered = threading.Event()

        def enter():
            with one.names.lock("door"):
                entered.set()

        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
        other.close()  # without letting go
        thread.join(30)
        assert entered.is_set()


def test_a_lock_stays_its_holders_when_a_process_forked_from_it_leaves_the_block(names):
    child = -1
    try:
        with names.lock("door"):
            child = os.fork()
            if child == 0:
                raise InterruptedError
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert not names.lock("door").try_acquire()
        assert names.lock("door").try_acquire()
    except InterruptedError:
        os._exit(0)
    except BaseException:
        if child == 0:
            os._exit(1)
        raise


def test_a_barrier_lets_all_go_at_once(state):
    with shoal.manager.connect() as one, shoal.manager.connect() as other:
        passed = []

        def enter(manager, name):
            with manager.names.barrier("start", 2):
                passed.append(name)

        threads = [threading.Thread(target=enter, args=(each, name)) for each, name in ((one, "one"), (other, "other"))]
        threads[0].start()
        threads[0].join(0.2)
        assert passed == []
        threads[1].start()
        for thread in threads:
            thread.join(30)
        assert sorted(passed) == ["one", "other"]


def test_capabilities_are_stored_under_keys(names):
    names.put_capability("key", Vmo.from_bytes(b"kept"))
    with names.get_capability("key") as found:
        assert found.read() == b"kept"
    with pytest.raises(ManagerError) as error:
        names.put_capability("key", Vmo.from_bytes(b"other"))
    assert code_of(error) == "OCT_ERR_CAP_OVERWRITE"
    with pytest.raises(ManagerError) as error:
        names.get_capability("other")
    assert code_of(error) == "OCT_ERR_CAP_NAME_UNKNOWN"


def test_what_is_kept_has_to_be_a_handle(manager):
    for call in (
        lambda: manager.names.register("web", value=1),
        lambda: manager.names.put_capability("log", "/dev/null"),
        lambda: manager.names.put_numbered_capability("log", None),
    ):
        with pytest.raises(TypeError, match="must be a shoal handle"):
            call()
