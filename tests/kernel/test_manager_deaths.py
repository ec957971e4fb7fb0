"""What is true after a manager or an init was killed at one certain point; tests/stress/test_manager_chaos.py is for any other."""

import contextlib
import os
import signal
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rig import managed

import shoal.manager
from shoal import Sandbox
from shoal.manager import ExitStatus, ManagerError, wire
from shoal.manager.boxes import to_text

KILLED = ExitStatus(9, "killed", 9)
COUNTED = 40


state, manager = managed.state, managed.manager


def kill_manager(state):
    pid = managed.manager_pid(state)
    os.kill(pid, signal.SIGKILL)
    managed.wait_gone(pid)


def sh(manager, script, **how):
    return manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", script], **how)


def spawn_with_key(manager, key, script, box=None):
    """The number of the domain."""

    def request(rid):
        return wire.SpawnProgram(
            rid,
            key=key,
            core=manager.cores()[0],
            path=b"/bin/sh",
            argv=[b"sh", b"-c", os.fsencode(script)],
            environ=[b"PATH=/usr/bin:/bin"],
            cwd=b"/",
            targets=[],
            kept=[1, 2],
            name=None,
            flags=0,
            sandbox=None if box is None else to_text(box, "/"),
        )

    return manager._ask(request)[0][0]


def waiting_inits(state):
    taken = {slot.init_pid for slot in managed.slots(state).values()}
    return [pid for pid in managed.processes(state, managed.DOMAIN) if pid not in taken]


@contextlib.contextmanager
def in_thread(call, *args):
    """Yields a list, in which there is what it gave or raised once it is over."""
    told = []

    def run():
        try:
            told.append(call(*args))
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield told
    finally:
        thread.join()


def stop_waiting_inits(state, manager):
    """Whoever is started next gets one of them, which hears of it when it goes on."""
    sh(manager, "exit 0").wait()
    managed.wait_until(lambda: len(waiting_inits(state)) >= 8)
    stopped = waiting_inits(state)
    for pid in stopped:
        managed.stop(pid)
    return stopped


def resume(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# --- starting and ending a manager ----------------------------------------------------------------------


def test_many_clients_at_once_start_one_manager(state):
    with ThreadPoolExecutor(8) as pool:
        managers = list(pool.map(lambda _: shoal.manager.connect(), range(8)))
    try:
        assert len({made._ask(lambda rid: wire.Hello(rid, wire.VERSION))[0]["pid"] for made in managers}) == 1
    finally:
        for made in managers:
            made.close()


def test_what_is_being_started_when_a_manager_is_stopped_is_started(state, manager, tmp_path):
    stopped = stop_waiting_inits(state, manager)
    key, script = uuid.uuid4().hex, f"echo once >>{tmp_path}/began; exit 4"
    with in_thread(spawn_with_key, manager, key, script) as told:
        managed.wait_until(lambda: has_request(state, key))
        with shoal.manager.connect() as other:
            other.stop()
        resume(stopped)
    (id,) = told
    assert manager.domain(id).wait() == ExitStatus(4, "exited", None)
    assert (tmp_path / "began").read_text() == "once\n"


def has_request(state, key):
    """Whether the manager has written down that it will carry it out; by the bytes of its files, since they are nobody else's to open."""
    return any(key.encode() in (state / name).read_bytes() for name in ("manager.db", "manager.db-wal") if (state / name).exists())


# --- once or not at all ---------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [None, pytest.param(Sandbox(read=["/usr"]), marks=pytest.mark.cell)])
def test_a_launch_that_the_end_of_the_manager_interrupts_is_carried_out_once(state, manager, box, tmp_path):
    if box is not None:
        spawn_with_key(manager, "first", "exit 0", box)  # so that inits for cells wait as well
    stopped = stop_waiting_inits(state, manager)
    key, script = uuid.uuid4().hex, "echo once; exit 4"
    with in_thread(spawn_with_key, manager, key, script, box) as told:
        managed.wait_until(lambda: has_request(state, key))
        kill_manager(state)
        resume(stopped)  # and one of them has heard that it is the init of a domain
    (id,) = told
    domain = manager.domain(id)
    assert domain.wait() == ExitStatus(4, "exited", None)
    assert b"".join(domain.logs()) == b"once\n"
    assert spawn_with_key(manager, key, script, box) == id
    assert managed.wait_until(lambda: not managed.slots(state))


def test_a_kill_that_is_sent_again_has_been_carried_out(manager):
    domain, other = sh(manager, "sleep 1000"), sh(manager, "exit 0")
    domain.kill()
    other.wait()
    assert manager._ask(lambda rid: wire.Kill(rid, domain.id, again=True))[0] is None
    for ended, again in ((domain, False), (other, True)):
        with pytest.raises(ManagerError) as error:
            manager._ask(lambda rid, ended=ended, again=again: wire.Kill(rid, ended.id, again))
        assert error.value.code == "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING"


def test_a_kill_goes_on_though_the_manager_does_not(state, manager):
    domain = sh(manager, "sleep 1000")
    init = managed.init_of(state, domain.id)
    managed.stop(init)
    with in_thread(domain.kill) as told:
        managed.wait_until(lambda: manager.status(domain.id).state == "stop_pending")
        kill_manager(state)
        resume([init])
    assert told == [None]
    assert domain.wait() == KILLED


def test_a_signal_that_is_sent_again_arrives_once(state, manager, workload):
    domain = manager.spawn_program(manager.cores()[0], workload, ["workload", "heed", str(COUNTED)])
    log = domain.logs(follow=True)
    assert next(log) == b"heeding\n"
    for key in (7, 7, 8):
        manager._ask(lambda rid, key=key: wire.Signal(rid, domain.id, COUNTED, key))
        kill_manager(state)
    domain.send_signal(signal.SIGTERM)
    assert domain.wait() == ExitStatus(128 + signal.SIGTERM, "signaled", signal.SIGTERM)
    assert b"".join(domain.logs()).count(b"heed 40 ok 40\n") == 2


# --- nothing is lost, and nothing is left --------------------------------------------------------------


def test_a_manager_that_dies_between_writing_an_end_and_clearing_its_slot_loses_nothing(state, manager):
    lasting = sh(manager, "read x <&1; sleep 1000")
    read, write = os.pipe()
    domain = sh(manager, "read x; exit 6", stdin=read)
    managed.stop(managed.manager_pid(state))
    os.close(read)
    os.close(write)
    ledger = managed.wait_until(lambda: (state / "ledger").read_bytes() if ended(state, domain.id) else None)
    os.kill(managed.manager_pid(state), signal.SIGCONT)
    assert domain.wait().code == 6
    kill_manager(state)
    managed.replace(state / "ledger", lambda _: ledger)  # as it was when the end had been written down
    assert domain.wait() == ExitStatus(6, "exited", None)
    assert manager.domains() == [lasting.id]
    assert managed.wait_until(lambda: [slot.id for slot in managed.slots(state).values()] == [lasting.id])
    lasting.kill()


def ended(state, id):
    return any(slot.id == id and slot.state == 4 for slot in managed.slots(state).values())


def test_no_socket_of_an_init_is_left_whoever_ended_first(state, manager):
    ends, is_killed = sh(manager, "read x; sleep 0.3; exit 3"), sh(manager, "sleep 1000")
    init = managed.init_of(state, is_killed.id)
    kill_manager(state)
    managed.wait_until(lambda: len(list((state / "run").glob("d*"))) == 2)
    managed.kill(init)
    assert ends.wait() == ExitStatus(3, "exited", None)
    assert is_killed.wait() == ExitStatus(255, "lost", None)
    assert [path.name for path in (state / "run").iterdir()] == ["manager.sock"]


def test_what_a_killed_init_leaves_behind_is_ended_by_its_nursery(state, manager, tmp_path):
    domain = sh(
        manager, f"setsid sh -c 'setsid sleep 1000 & echo $! >>{tmp_path}/left; sleep 1000' & echo $! >>{tmp_path}/left; sleep 1000"
    )
    left = managed.wait_until(
        lambda: len(found := (tmp_path / "left").read_text().split()) == 2 and found if (tmp_path / "left").exists() else None
    )
    managed.kill(managed.init_of(state, domain.id))
    assert domain.wait() == ExitStatus(255, "lost", None)
    for pid in left:
        managed.wait_gone(int(pid))


def test_an_init_killed_in_the_middle_of_a_launch_is_said(state, manager):
    stopped = stop_waiting_inits(state, manager)
    key = uuid.uuid4().hex
    with in_thread(spawn_with_key, manager, key, "exit 0") as told:
        managed.wait_until(lambda: has_request(state, key))
        for pid in stopped:
            managed.kill(pid)
    for pid in stopped:
        managed.wait_gone(pid)
    assert isinstance(told[0], ManagerError)
    assert told[0].code == "PROC_MGMT_ERR_SPAWND_REQUEST"
    assert "init was killed meanwhile" in told[0].message
    assert manager.domain(spawn_with_key(manager, key, "exit 5")).wait().code == 5
    assert Path(state / "manager.log").read_text() == ""


def with_an_unheard_init(state, manager):
    """A domain whose manager was killed while its init was stopped, and which the next one has looked for."""
    domain = sh(manager, "sleep 1000")
    init = managed.init_of(state, domain.id)
    managed.stop(init)
    kill_manager(state)
    assert manager.domains() == [domain.id]
    return domain, init


def test_an_init_that_is_stopped_is_reached_as_soon_as_it_goes_on(state, manager):
    domain, init = with_an_unheard_init(state, manager)
    with in_thread(domain.kill) as told:
        managed.wait_until(lambda: domain.status().state == "stop_pending")
        os.kill(init, signal.SIGCONT)
    assert told == [None]
    assert domain.wait() == KILLED


def test_an_init_that_is_stopped_and_then_killed_is_not_waited_for(state, manager):
    domain, init = with_an_unheard_init(state, manager)
    with in_thread(domain.wait) as told:
        managed.kill(init)
    assert told == [ExitStatus(255, "lost", None)]


# --- dispatchers ----------------------------------------------------------------------------------------


def spanned(state, manager):
    """A domain on the first core that is about to be spanned to the second: what is started there says nothing yet."""
    domain = sh(manager, "sleep 1000")
    return domain, managed.init_of(state, domain.id)


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_span_that_the_end_of_the_manager_interrupts_is_done_once(state, manager):
    domain, init = spanned(state, manager)
    second = manager.cores()[1]
    managed.stop(init)
    with in_thread(domain.span, second) as told:
        managed.wait_until(lambda: manager.status(domain.id).cores == (manager.cores()[0], second))  # it is being started
        kill_manager(state)
        resume([init])
    assert told == [None]
    status = manager.status(domain.id)
    assert status.cores == (manager.cores()[0], second)
    assert sorted(children(init)) == sorted(status.pids)
    assert manager._ask(lambda rid: wire.Span(rid, domain.id, second, again=True))[0] == status.pids[1]
    with pytest.raises(ManagerError) as error:
        domain.span(second)
    assert error.value.code == "PROC_MGMT_ERR_ALREADY_SPANNED"
    os.kill(status.pids[1], signal.SIGTERM)  # and the end of any is the domain's
    assert domain.wait() == ExitStatus(128 + signal.SIGTERM, "signaled", signal.SIGTERM)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_dispatcher_that_was_written_down_is_one_also_for_the_next_manager(state, manager):
    domain, _ = spanned(state, manager)
    domain.span(manager.cores()[1])
    pids = manager.status(domain.id).pids
    kill_manager(state)
    assert manager.status(domain.id).pids == pids
    os.kill(pids[1], signal.SIGTERM)
    assert domain.wait().reason == "signaled"


def test_an_init_that_is_killed_before_it_answers_a_new_manager_leaves_no_socket(state, manager):
    domain = sh(manager, "exec sleep 1000")
    init = managed.init_of(state, domain.id)
    kill_manager(state)
    (listening,) = managed.wait_until(lambda: list((state / "run").glob("d*")))
    managed.stop(init)
    name = listening.name.replace("d", "n")
    before = awaited(name)
    with in_thread(domain.wait) as told:
        try:
            managed.wait_until(lambda: awaited(name) > before)
        finally:
            os.kill(init, signal.SIGKILL)
    assert told == [ExitStatus(255, "lost", None)]
    assert not list((state / "run").glob("d*"))


def awaited(name):
    """How many wait to be accepted at sockets that were bound by this name, whoever has them: unix(7), /proc/net/unix."""
    found = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return sum(words[5] == "02" and words[7:] == [name] for words in found)


MANY = 600
"""More than a new manager begins to look for at once."""


def private_kib(pid):
    fields = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    return sum(int(words[1]) for words in fields if words[0] in ("Private_Clean:", "Private_Dirty:"))


def test_hundreds_of_domains_are_found_again_each_at_the_price_of_some_kib_and_one_descriptor(state, manager, tmp_path):
    tmp_path.chmod(0o755)
    odd = tmp_path / os.fsdecode(b"not utf-8 \xff")
    odd.mkdir()
    first = manager.spawn_program(manager.cores()[0], "sleep", ["sleep", "1000"], cwd=odd)
    managed.wait_until(lambda: len(waiting_inits(state)) >= 9)
    pid = managed.manager_pid(state)
    before_kib = private_kib(pid)

    def start(number):
        return manager.spawn_program(manager.cores()[number % len(manager.cores())], "sleep", ["sleep", "1000"])

    with ThreadPoolExecutor(4) as pool:
        domains = [first, *pool.map(start, range(MANY - 1))]
    assert private_kib(managed.init_of(state, domains[-1].id)) <= 100
    kill_manager(state)
    assert manager.domains() == sorted(domain.id for domain in domains)
    after = managed.manager_pid(state)
    assert after != pid
    assert private_kib(after) - before_kib < 10 * MANY
    managed.wait_until(lambda: len(waiting_inits(state)) == 0)
    assert len(os.listdir(f"/proc/{after}/fd")) < MANY + 40
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda domain: domain.kill(), domains))
    assert {domain.wait() for domain in domains} == {KILLED}
    managed.wait_until(lambda: managed.slots(state) == {})
