"""The NameService over a service in this process: what programs call, from threads, with descriptors. Source: spec 5.4, 5.11 to 5.13."""

import gc
import os
import socket

import pytest
from rig import own_names
from rig.names import Closing, Thread, service
from rig.own_names import refused

from shoal import Socket
from shoal.manager import ManagerError, ManagerTimeoutError
from shoal.manager.names import LocalService, Query, Record, Registry

local, names = own_names.local, own_names.names


# --- records ----------------------------------------------------------------------------------------------


def test_a_service_is_registered_found_and_removed(names):
    assert names.register("web { port: 8080, host: 'a.example' }") == "web"
    record = names.lookup("web")
    assert (record.name, record.attributes, record.value) == ("web", {"port": 8080, "host": "a.example"}, None)
    assert names.exists("_ { port > 8000 }")
    assert names.names("_ { port: _ }") == ["web"]
    names.remove("web")
    assert not names.exists("web")
    assert names.names("_") == []
    refused("OCT_ERR_NO_RECORD", names.get, "web")


def test_records_and_queries_are_given_as_text_or_made_of_values(names):
    names.register(Record("note", {"text": "it's { not: 'text' }"}))
    assert names.get(Query.where(None, {"text": "it's { not: 'text' }"})).name == "note"
    assert names.get(Record("note", {"text": "it's { not: 'text' }"})).attributes["text"] == "it's { not: 'text' }"
    assert [names.register("job", mode="sequential") for _ in range(2)] == ["job0", "job1"]
    refused("OCT_ERR_CONSTRAINT_MISMATCH", names.register, "note", mode="new")
    refused("OCT_ERR_NOT_UNIQUE", names.get, "_", unique=True)
    assert names.get(names.register("a { x: 1 }")) == Record("a", {"x": 1})


@pytest.mark.parametrize("act", ["register", "get", "names", "lookup", "exists", "remove", "watch", "publish", "subscribe"])
def test_a_malformed_query_is_refused_by_every_call(names, act):
    assert "line 1, column 8" in refused("OCT_ERR_PARSER_FAIL", getattr(names, act), "web { }}")
    refused("OCT_ERR_QUERY_SIZE", getattr(names, act), "x" * 10_000)
    with pytest.raises(TypeError, match="a query is text, not NoneType"):
        getattr(names, act)(None)


def test_what_was_registered_ends_with_the_name_service_unless_persistent(local):
    names, other = service(local), service(local)
    names.register("a")
    names.register("b", persistent=True)
    names.close()
    names.close()
    assert other.names("_") == ["b"]
    refused("LIB_ERR_NAMESERVICE_NOT_BOUND", names.register, "c")


def test_a_name_of_another_capability_is_refused(local):
    service(local, principal="ana").register("web")
    ben = service(local, principal="ben")
    refused("OCT_ERR_NOT_OWNER", ben.register, "web")
    refused("OCT_ERR_NOT_OWNER", ben.remove, "web")
    refused("PROC_MGMT_ERR_NOT_MONITOR", ben.register, "spawn.0 { iref: 1 }")
    service(local, privileged=True).register("spawn.0 { iref: 1 }")


def test_id_capabilities(local):
    names, other = service(local), service(local, principal="other")
    id = names.new_id()
    names.register_with_id(id, "{ tty: 'pts/3' }")
    assert other.get_with_id(id).attributes == {"tty": "pts/3"}
    assert other.names("_") == []
    refused("OCT_ERR_NO_RECORD", other.get_with_id, other.new_id())
    refused("OCT_ERR_IDCAP_INVOKE", other.get_with_id, "7")


def test_what_survives_goes_through_the_journal():
    rows = []
    names = service(LocalService(journal=rows.extend))
    names.register("a { x: 1 }", persistent=True)
    names.register("b")
    registry = Registry()
    registry.restore(rows)
    assert service(LocalService(registry)).names("_") == ["a"]


def test_a_journal_that_fails_is_told_to_who_asked(local):
    def full(entries):
        raise OSError(28, "No space left on device")

    local = LocalService(journal=full)
    names = service(local)
    with pytest.raises(OSError, match="No space left"):
        names.register("a", persistent=True)
    names.register("b")  # needs no journal


# --- waiting for a name -----------------------------------------------------------------------------------


def test_a_look_up_waits_for_the_registration(local, names):
    waiting = Thread(service(local).lookup, "r'^web' { port: _ }")
    local._watchings.until_installed()
    names.register("web")
    assert waiting.is_waiting
    names.register("web7 { port: 80 }")
    assert str(waiting.result()) == "web7 { port: 80 }"
    assert local._watchings == {}


def test_a_look_up_gets_what_was_registered_even_if_it_is_gone_again(local, names):
    waiting = Thread(names.lookup, "web")
    local._watchings.until_installed()
    local._lock.acquire()
    try:  # both happen before the waiting thread can run
        registry, session = local._registry, names._operations._session
        for changes in (registry.set(session, Query("web"))[1], registry.remove(session, Query("web"))[1]):
            local._deliver(changes)
    finally:
        local._lock.release()
    assert waiting.result().name == "web"


def test_a_look_up_that_does_not_wait_says_what_is_missing(names):
    message = refused("LIB_ERR_NAMESERVICE_UNKNOWN_NAME", names.lookup, "web", wait=False)
    assert "nothing is registered as 'web" in message
    with pytest.raises(ManagerError) as caught:
        names.lookup("web", wait=False)
    assert caught.value.__cause__.code == "OCT_ERR_NO_RECORD"


@pytest.mark.parametrize("timeout", [0, 0.01, "10ms"])
def test_a_look_up_gives_up_when_its_time_is_over(local, names, timeout):
    with pytest.raises(ManagerTimeoutError, match=r"nothing was registered as 'web \{  \}' in the time given") as caught:
        names.lookup("web", timeout=timeout)
    assert isinstance(caught.value, TimeoutError)
    names.exists("_")
    assert local._watchings == {}
    assert len(local._registry._watches) == 0


def test_closing_wakes_whoever_waits(local):
    names = service(local)
    waiting = Thread(names.lookup, "web")
    local._watchings.until_installed()
    watching = Thread(next, names.watch("_"))
    names.close()
    refused("LIB_ERR_NAMESERVICE_NOT_BOUND", waiting.result)
    refused("LIB_ERR_NAMESERVICE_NOT_BOUND", watching.result)
    assert local._watchings == {}


# --- watches ----------------------------------------------------------------------------------------------


def test_a_watch_is_iterated_until_it_is_closed(local, names):
    watch = names.watch("r'^job'")
    names.register("job1 { x: 1 }")
    names.register("other")
    names.remove("job1")
    watch.close()
    names.register("job2")
    assert [(event.kind, event.record and event.record.name, event.removed) for event in watch] == [
        ("set", "job1", False),
        ("delete", "job1", False),
        ("removed", None, True),
    ]
    assert list(watch) == []
    watch.close()
    assert local._watchings == {}


def test_a_watch_begins_with_what_is_there_if_asked(names):
    names.register("job1")
    with names.watch("r'^job'", existing=True) as watch:
        names.register("job2")
        assert [watch.next().record.name for _ in range(2)] == ["job1", "job2"]
        with pytest.raises(ManagerTimeoutError, match="nothing happened to what is watched"):
            watch.next(timeout=0)


def test_a_watch_on_one_kind_that_ends_with_its_first_event(names):
    names.register("a")
    watch = names.watch("a", on=["delete"], persistent=False)
    names.register("a { x: 1 }")
    names.remove("a")
    names.register("a")
    (event,) = list(watch)
    assert (event.kind, event.removed, event.record.attributes) == ("delete", True, {"x": 1})


def test_a_watch_another_thread_waits_on_is_woken_and_closed(local, names):
    watch = names.watch("_")
    waiting = Thread(list, watch)
    names.register("a")
    watch.close()
    assert [event.kind for event in waiting.result()] == ["set", "removed"]


def test_a_forgotten_watch_is_removed(local, names):
    watch = names.watch("_")
    names.register("a")
    del watch
    gc.collect()
    names.exists("a")
    assert (local._watchings, len(local._registry._watches)) == ({}, 0)
    subscription = names.subscribe("_")
    del subscription
    gc.collect()
    assert names.publish("a") == 0


def test_a_reader_that_falls_behind_is_told(local, names):
    watch = names.watch("_")
    most = local._registry.limits.queued_events
    for number in range(most + 100):
        names.register(f"a {{ n: {number} }}")
    events = [watch.next() for _ in range(most + 1)]
    assert [event.kind for event in events] == ["set"] * most + ["overflow"]
    names.register("a { n: 0 }")
    assert watch.next().record.attributes == {"n": 0}


def test_messages(names):
    with names.subscribe("_ { prio > 2 }") as urgent, names.subscribe("news") as news:
        assert names.publish("news { prio: 3 }") == 2
        assert names.publish("news { prio: 1 }") == 1
        assert names.publish("other { prio: 1 }") == 0
        assert str(urgent.next(timeout=0).record) == "news { prio: 3 }"
        assert [news.next(timeout=0).record.attributes["prio"] for _ in range(2)] == [3, 1]
    assert not names.exists("news")


# --- descriptors ------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def handle(end):
    return Socket.from_fd(os.dup(end.fileno()))


def speaks(value, other):
    os.write(value.fileno(), b"hello")
    return other.recv(5) == b"hello"


def test_a_service_is_found_and_connected_to_in_one_look_up(local, names, pair):
    end, other = pair
    with handle(end) as mine:
        names.register("web { port: 80 }", value=mine)
        assert not mine.closed  # what is kept is a copy
    with service(local).lookup("web").value as value:
        names.remove("web")
        assert speaks(value, other)


def test_a_waiting_look_up_gets_the_descriptor_too(local, names, pair):
    end, other = pair
    waiting = Thread(names.lookup, "web")
    local._watchings.until_installed()
    with handle(end) as mine:
        names.register("web", value=mine)
    with waiting.result().value as value:
        assert speaks(value, other)


def test_an_event_says_that_there_is_a_descriptor_and_carries_none(names, pair):
    with names.watch("_") as watch:
        with handle(pair[0]) as mine:
            names.register("web", value=mine)
        event = watch.next()
        assert (event.has_value, event.record.value) == (True, None)


def test_every_copy_of_a_value_is_closed_with_its_record(names, pair, world):
    world.reset()
    with handle(pair[0]) as mine:
        for _ in range(3):
            names.register("web", value=mine)
        names.register("other", value=mine)
        names.remove("other")
        refused("OCT_ERR_CONSTRAINT_MISMATCH", names.register, "web", mode="new", value=mine)
        refused("OCT_ERR_INVALID_FORMAT", names.register, "b", persistent=True, value=mine)
        names.put_capability("x", mine)
        refused("OCT_ERR_CAP_OVERWRITE", names.put_capability, "x", mine)
        names.remove_capability("x")
        names.put_capability("y", mine)
    names.close()
    world.assert_unchanged()


def test_what_the_service_gives_up_is_closed_at_once(local, names):
    """Not when it is collected: a program may keep a cycle, and a connection is to end when its record does."""
    copies = []

    class Value:
        def duplicate(self):
            copies.append(Closing())
            return copies[-1]

    names.register("web", value=Value())
    names.register("web", value=Value())
    assert [copy.closed for copy in copies] == [1, 0]
    refused("OCT_ERR_CONSTRAINT_MISMATCH", names.register, "web", mode="new", value=Value())
    names.put_capability("x", Value())
    refused("OCT_ERR_CAP_OVERWRITE", names.put_capability, "x", Value())
    assert [copy.closed for copy in copies] == [1, 0, 1, 0, 1]
    names.remove_capability("x")
    names.close()
    assert [copy.closed for copy in copies] == [1] * 5


def test_the_capability_store_gives_copies(local, names, pair):
    end, other = pair
    with handle(end) as mine:
        names.put_capability("the key", mine)
        assert [names.put_numbered_capability("n", mine) for _ in range(2)] == ["n0", "n1"]
    with names.get_capability("the key") as value, names.get_capability("the key"):
        assert speaks(value, other)
    refused("OCT_ERR_CAP_NAME_UNKNOWN", service(local, principal="ben").get_capability, "the key")
    names.remove_capability("the key")
    refused("OCT_ERR_CAP_NAME_UNKNOWN", names.get_capability, "the key")


def test_threads_may_use_one_service_together(local):
    names = service(local)

    def work(number):
        for round in range(200):
            name = names.register("job", mode="sequential")
            names.register(f"{name} {{ n: {number}, round: {round} }}")
            assert names.get(name).attributes == {"n": number, "round": round}
            names.remove(name)

    with names.watch("_") as watch:
        for thread in [Thread(work, number) for number in range(4)]:
            thread.result()
        assert names.names("_") == []
        assert watch.next(timeout=0).kind == "set"
