"""Spawn daemons in processes of their own: who may add one, what it starts, and what is true after one was killed."""

import contextlib
import os
import signal
import socket
import threading

import pytest
from rig import managed
from rig.spawnds import address_of, spawnd

import shoal.manager
from shoal import Sandbox
from shoal.manager import ExitStatus, ManagerError, ManagerTimeoutError, wire

CORES = sorted(os.sched_getaffinity(0))
OWN, OTHER = CORES[0], CORES[-1]
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two processors")

READY = f"proc_mgmt.{OTHER}.ready"


state = managed.state


@pytest.fixture
def manager(state):
    """A daemon that serves the first core itself."""
    shoal.manager.embedded(str(state), cores=[OWN]).close()
    with shoal.manager.connect() as made:
        yield made


def sh(manager, core, script, **how):
    return manager.spawn_program(core, "sh", ["sh", "-c", script], **how)


def sleep(manager, core, **how):
    return manager.spawn_program(core, "sleep", ["sleep", "1000"], **how)


def refused(call, *args, **how):
    with pytest.raises(ManagerError) as caught:
        call(*args, **how)
    return caught.value


def wait_without(manager, core):
    managed.wait_until(lambda: core not in manager.cores())


def ancestors(pid):
    found = []
    while pid and pid > 1:
        pid = managed.parent_of(pid)
        found.append(pid)
    return found


@contextlib.contextmanager
def false_spawnd(path, answer=None):
    """Something that listens there, takes one connection, and says `answer`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            with contextlib.suppress(OSError):
                sock, _ = listener.accept()
                with sock:
                    if answer is not None:
                        sock.recv(4096)
                        sock.sendall(answer)
                    sock.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# --- adding one ---------------------------------------------------------------------------------------------


def test_a_domain_on_its_core_is_started_by_it(manager, state):
    with spawnd(state, OTHER, registers=False) as daemon:
        assert manager.cores() == [OWN]
        manager.add_spawnd(OTHER, address_of(state, OTHER))
        assert manager.cores() == [OWN, OTHER]
        mine, its = sh(manager, OWN, "exec sleep 1000"), sh(manager, OTHER, "exec sleep 1000")
        with_its = [pid for pid in managed.processes(state, managed.NURSERY) if managed.parent_of(pid) == daemon.pid]
        assert set(ancestors(its.status().pids[0])) & set(with_its)
        assert not set(ancestors(mine.status().pids[0])) & set(with_its)
        assert os.sched_getaffinity(its.status().pids[0]) == {OTHER}


@pytest.mark.parametrize("box", [None, Sandbox()], ids=["flat", "sandbox"])
def test_its_domains_are_like_all_others(manager, state, box):
    with spawnd(state, OTHER):
        domain = sh(manager, OTHER, "echo out; echo err >&2; exit 4", sandbox=box, wait=20)
        assert domain.wait() == ExitStatus(4, "exited", None)
        assert sorted(domain.logs()) == [b"err\n", b"out\n"]
        sleeper = sleep(manager, OTHER, sandbox=box)
        sleeper.kill()
        assert sleeper.wait() == ExitStatus(9, "killed", 9)
        assert refused(manager.spawn_program, OTHER, "/no/such", ["x"]).code == "SPAWN_ERR_LOAD"


def test_what_it_starts_has_its_limits(manager, state):
    with spawnd(state, OTHER, prefix=("sh", "-c", 'ulimit -c 0; ulimit -n 333; exec "$@"', "sh")):
        domain = sh(manager, OTHER, "ulimit -n", wait=20)
        assert domain.wait().code == 0
        assert list(domain.logs()) == [b"333\n"]


def test_one_serves_several_cores(state):
    with shoal.manager.embedded(str(state), cores=[]) as manager, spawnd(state, OWN, OTHER, registers=False) as daemon:
        assert manager.cores() == []
        for core in (OWN, OTHER):
            manager.add_spawnd(core, address_of(state, OWN))
        domains = [sh(manager, core, "exec sleep 1000") for core in (OWN, OTHER)]
        assert [os.sched_getaffinity(domain.status().pids[0]) for domain in domains] == [{OWN}, {OTHER}]
        daemon.kill()
        managed.wait_until(lambda: manager.cores() == [])


def test_a_core_has_one(manager, state):
    with spawnd(state, OTHER, registers=False):
        address = address_of(state, OTHER)
        assert refused(manager.add_spawnd, OWN, address).code == "PROC_MGMT_ERR_SPAWND_EXISTS"
        manager.add_spawnd(OTHER, address)
        assert refused(manager.add_spawnd, OTHER, address).code == "PROC_MGMT_ERR_SPAWND_EXISTS"


def test_the_same_request_sent_again_is_not_refused(manager, state):
    with spawnd(state, OTHER, registers=False):
        address = str(address_of(state, OTHER))
        manager.add_spawnd(OTHER, address)
        manager._ask(lambda rid: wire.AddSpawnd(rid, OTHER, address, again=True))
        error = refused(manager._ask, lambda rid: wire.AddSpawnd(rid, OTHER, f"{address}.other", again=True))
        assert error.code == "PROC_MGMT_ERR_SPAWND_EXISTS"


def test_it_takes_the_manager_capability(manager, state, without_capability):
    with spawnd(state, OTHER, registers=False):
        error = refused(without_capability.add_spawnd, OTHER, address_of(state, OTHER))
        assert error.code == "PROC_MGMT_ERR_NOT_MONITOR"
        assert manager.cores() == [OWN]
        assert any(entry[2] == "addspawnd" and "PROC_MGMT_ERR_NOT_MONITOR" in entry[4] for entry in manager.audit())


@pytest.fixture
def without_capability(manager):
    with shoal.manager.Manager(manager._dial, lambda: None, lambda: None) as made:
        yield made


@pytest.mark.parametrize("core", [9999, "x", "elsewhere/0", -1])
def test_a_core_that_it_may_not_run_on_is_refused(manager, state, core):
    with spawnd(state, OTHER, registers=False):
        error = refused(manager.add_spawnd, core, address_of(state, OTHER))
        assert error.code == "PROC_MGMT_ERR_INVALID_SPAWND"
        assert str(core) in error.message


@pytest.mark.parametrize("where", ["nothing", "no/such/folder", "a file", "a dead socket"])
def test_where_none_listens_is_said(manager, state, tmp_path, where):
    address = tmp_path / where
    if where == "a file":
        address.touch()
    elif where == "a dead socket":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.bind(str(address))
    error = refused(manager.add_spawnd, OTHER, address)
    assert error.code == "PROC_MGMT_ERR_SPAWND_REQUEST"
    assert str(address) in error.message
    assert "none listens there" in error.message
    assert manager.cores() == [OWN]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        wire.frame(wire.encode(wire.Answer(0, [1, 2, 3]))),
        wire.frame(wire.encode(wire.Answer(0, [os.getpid() + 1, [OTHER], os.geteuid() == 0]))),
        wire.frame(b"\xc1"),
    ],
    ids=["another protocol", "nothing", "another answer", "another pid", "no msgpack"],
)
def test_what_is_no_spawn_daemon_is_found_out(manager, tmp_path, answer):
    with false_spawnd(tmp_path / "socket", answer):
        error = refused(manager.add_spawnd, OTHER, tmp_path / "socket")
    assert error.code == "PROC_MGMT_ERR_SPAWND_REQUEST"
    assert manager.cores() == [OWN]
    assert sh(manager, OWN, "exit 3").wait().code == 3


def test_it_serves_no_other_manager(state, tmp_path):
    with shoal.manager.embedded(str(tmp_path / "other"), cores=[OWN]) as other, spawnd(state, OTHER, registers=False):
        error = refused(other.add_spawnd, OTHER, address_of(state, OTHER))
        assert error.code == "SPAWN_ERR_NOT_PROC_MNGR"


def test_its_socket_is_for_its_user_alone(manager, state):
    with spawnd(state, OTHER):
        assert address_of(state, OTHER).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("said", [b"\xff" * 64, wire.frame(b"\xc1"), wire.frame(wire.encode(wire.Answer(1))), b""], ids=str)
def test_whoever_does_not_keep_to_the_protocol_loses_only_the_connection(manager, state, said):
    with spawnd(state, OTHER):
        manager.names.lookup(READY, timeout=20)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(address_of(state, OTHER)))
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        assert sh(manager, OTHER, "exit 3").wait().code == 3


def test_two_cannot_listen_at_one_address(manager, state):
    with spawnd(state, OTHER, registers=False), pytest.raises(AssertionError), spawnd(state, OTHER, registers=False):
        pass


# --- names, and waiting for it --------------------------------------------------------------------------------


def test_the_well_known_names_tell_of_it(manager, state):
    assert set(manager.names.names("_")) == {"proc_mgmt", f"spawn.{OWN}", f"proc_mgmt.{OWN}.ready"}
    with spawnd(state, OTHER) as daemon:
        manager.names.lookup(READY, timeout=20)
        assert manager.names.get(f"spawn.{OTHER}").attributes == {"core": OTHER, "node": "local", "pid": daemon.pid}
        if len(CORES) == 2:
            manager.names.lookup("all_spawnds_up", timeout=20)
        with manager.names.watch(f"r'^(spawn|proc_mgmt)[.]{OTHER}'", on=["delete"]) as watch:
            daemon.kill()
            assert {next(watch).record.name, next(watch).record.name} == {f"spawn.{OTHER}", READY}
        assert set(manager.names.names("_")) == {"proc_mgmt", f"spawn.{OWN}", f"proc_mgmt.{OWN}.ready"}


def test_a_core_without_one_is_refused_with_advice(manager):
    error = refused(sh, manager, OTHER, "exit 0")
    assert error.code == "PROC_MGMT_ERR_INVALID_SPAWND"
    assert READY in error.message
    assert manager.domains() == []


def test_wait_waits_for_it(manager, state):
    told = []
    thread = threading.Thread(target=lambda: told.append(sh(manager, OTHER, "exit 6", wait="30s").wait()))
    thread.start()
    with spawnd(state, OTHER):
        thread.join()
    assert told == [ExitStatus(6, "exited", None)]


def test_wait_gives_up_in_time(manager):
    with pytest.raises(ManagerTimeoutError) as caught:
        sh(manager, OTHER, "exit 0", wait=0.05)
    assert caught.value.code == "PROC_MGMT_ERR_INVALID_SPAWND"
    assert manager.domains() == []


# --- when it is killed ----------------------------------------------------------------------------------------


def test_its_domains_run_on_and_are_waited_for_and_killed(manager, state, tmp_path):
    with spawnd(state, OTHER) as daemon:
        waited = sh(manager, OTHER, f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo done; exit 7", wait=20)
        killed = sh(manager, OTHER, "sleep 1000")
        boxed = sleep(manager, OTHER, sandbox=Sandbox())
        signalled = sh(manager, OTHER, "exec sleep 1000")
        daemon.kill()
        wait_without(manager, OTHER)
        assert [domain.wait(nohang=True) for domain in (waited, killed, boxed, signalled)] == [None] * 4
        (tmp_path / "go").touch()
        assert waited.wait() == ExitStatus(7, "exited", None)
        assert list(waited.logs()) == [b"done\n"]
        for domain in (killed, boxed):
            domain.kill()
            assert domain.wait() == ExitStatus(9, "killed", 9)
        signalled.send_signal(signal.SIGTERM)
        assert signalled.wait() == ExitStatus(143, "signaled", 15)


def test_what_it_was_asked_for_is_refused_and_nothing_is_begun(manager, state, tmp_path):
    with spawnd(state, OTHER) as daemon:
        sh(manager, OTHER, "exit 0", wait=20).wait()
        managed.stop(daemon.pid)
        errors = []
        script = f"echo began >>{tmp_path}/began"
        threads = [threading.Thread(target=lambda: errors.append(refused(sh, manager, OTHER, script))) for _ in range(100)]
        for thread in threads:
            thread.start()
        managed.wait_until(lambda: len(manager.domains()) == 100)  # each is in the table, and waits
        os.kill(daemon.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert {error.code for error in errors} == {"PROC_MGMT_ERR_SPAWND_REQUEST"}
    assert len(errors) == 100
    assert manager.domains() == []
    assert not (tmp_path / "began").exists()
    assert not managed.slots(state)


def test_many_at_once_are_started_by_it(manager, state):
    with spawnd(state, OTHER):
        manager.names.lookup(READY, timeout=20)
        codes = []
        threads = [threading.Thread(target=lambda n=n: codes.append(sh(manager, OTHER, f"exit {n}").wait().code)) for n in range(150)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(codes) == list(range(150))


def test_it_may_come_back_and_serves_again(manager, state):
    for _ in range(3):
        with spawnd(state, OTHER) as daemon:
            domain = sh(manager, OTHER, "exit 5", wait=20)
            assert domain.wait().code == 5
            daemon.kill()
            wait_without(manager, OTHER)
    log = (state / "manager.log").read_text().splitlines()
    assert [line.rpartition("WARNING ")[2] for line in log] == [
        f"shoal.manager: the spawn daemon at {address_of(state, OTHER)} has gone"
    ] * 3


def test_one_that_is_told_to_end_leaves_nothing_but_its_domains(manager, state):
    with spawnd(state, OTHER) as daemon:
        domain = sh(manager, OTHER, "exec sleep 1000", wait=20)
        (nursery,) = [pid for pid in managed.processes(state, managed.NURSERY) if managed.parent_of(pid) == daemon.pid]
        daemon.terminate()
        assert daemon.wait() == 0
        assert not address_of(state, OTHER).exists()
        wait_without(manager, OTHER)
        assert domain.wait(nohang=True) is None
        domain.kill()
        managed.wait_gone(nursery)


def test_a_manager_that_was_killed_is_followed_by_one_that_has_it(manager, state):
    with spawnd(state, OTHER) as process:
        domain = sh(manager, OTHER, "exec sleep 1000", wait=20)
        pid = managed.manager_pid(state)
        os.kill(pid, signal.SIGKILL)
        managed.wait_gone(pid)
        assert manager.cores() == [OWN, OTHER]  # of a new one
        assert managed.manager_pid(state) != pid
        its = sh(manager, OTHER, "exec sleep 1000").status().pids[0]
        with_its = [pid for pid in managed.processes(state, managed.NURSERY) if managed.parent_of(pid) == process.pid]
        assert set(ancestors(its)) & set(with_its)
        domain.kill()
        assert domain.wait() == ExitStatus(9, "killed", 9)


def test_when_both_were_killed_the_domains_are_found_and_the_core_waits_for_it(manager, state):
    with spawnd(state, OTHER) as process:
        domain = sh(manager, OTHER, "exec sleep 1000", wait=20)
        pid = managed.manager_pid(state)
        os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        managed.wait_gone(pid)
        assert manager.cores() == [OWN]
        assert domain.wait(nohang=True) is None
        with spawnd(state, OTHER):
            assert sh(manager, OTHER, "exit 8", wait=20).wait().code == 8
        domain.kill()


def test_the_cores_that_a_manager_serves_itself_are_remembered(state):
    with shoal.manager.embedded(str(state)) as manager:
        assert manager.cores() == CORES
    with shoal.manager.embedded(str(state), cores=[OTHER]) as manager:
        assert manager.cores() == [OTHER]
    with shoal.manager.embedded(str(state)) as manager:
        assert manager.cores() == [OTHER]
    error = refused(shoal.manager.embedded, str(state), cores=[9999])
    assert error.code == "PROC_MGMT_ERR_INVALID_SPAWND"
    assert "9999" in error.message


def test_a_span_onto_its_core_takes_it_to_be_there(manager, state):
    domain = sh(manager, OWN, "exec sleep 1000")
    assert refused(domain.span, OTHER).code == "PROC_MGMT_ERR_INVALID_SPAWND"
    with spawnd(state, OTHER) as daemon:
        manager.names.lookup(READY, timeout=20)
        domain.span(OTHER)
        assert list(domain.status().cores) == [OWN, OTHER]
        daemon.kill()
        wait_without(manager, OTHER)
    domain.kill()
    assert domain.wait() == ExitStatus(9, "killed", 9)


def test_nothing_is_left_open_by_those_that_came_and_went(manager, state):
    def come_and_go():
        with spawnd(state, OTHER) as daemon:
            sh(manager, OTHER, "exit 0", wait=20).wait()
            daemon.kill()
            wait_without(manager, OTHER)

    def opened():
        return len(os.listdir(f"/proc/{managed.manager_pid(state)}/fd"))

    come_and_go()
    before = opened()
    for _ in range(3):
        come_and_go()
    managed.wait_until(lambda: opened() <= before)
