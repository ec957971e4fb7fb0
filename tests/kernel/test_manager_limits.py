"""A manager at its limits: of descriptors, of processes, of what clients may do to it. Each is said, and no domain is harmed."""

import array
import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rig import managed
from rig.features import needs

import shoal.manager
from shoal.manager import ExitStatus, ManagerError, wire
from shoal.manager.daemon import dial
from shoal.manager.layout import Layout
from shoal.manager.nursery import AHEAD

KILLED = ExitStatus(9, "killed", 9)


state, manager = managed.state, managed.manager


class Raw:
    """A client that speaks the protocol by hand, and reads when it is told to."""

    def __init__(self, manager):
        self.sock = dial(Layout.of(), 30, starts=False)
        self.inbox = wire.Inbox()
        self.send(wire.Hello(0, wire.VERSION, manager._token()))
        assert self.answer().rid == 0

    def send(self, *requests):
        self.sock.sendall(b"".join(wire.frame(wire.encode(request)) for request in requests))

    def answer(self):
        while (found := self.inbox.next()) is None:
            assert self.inbox.receive(self.sock), "the manager has hung up"
        for fd in found[1]:
            os.close(fd)
        return wire.decode_answer(found[0])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
        self.inbox.close()


def sh(manager, script, **how):
    return manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", script], **how)


def until_refused(act, done):
    """Raises what `act` raised in the end."""
    for _ in range(100_000):
        done.append(act())
    raise AssertionError("it never was")


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def wait_for_inits(state):
    """Until those that the manager keeps ahead are made: each has a descriptor of the manager's."""
    managed.wait_until(lambda: len(managed.processes(state, managed.DOMAIN)) >= AHEAD)


# --- clients --------------------------------------------------------------------------------------------


def test_ten_thousand_waiters_on_one_domain_are_all_told(manager):
    domain = sh(manager, "sleep 1000")
    count, clients = 10_000, 4
    with contextlib.ExitStack() as stack:
        raw = [stack.enter_context(Raw(manager)) for _ in range(clients)]
        for each in raw:
            each.send(*(wire.Wait(rid, domain.id, False) for rid in range(1, count // clients + 1)))
            each.send(wire.Cores(count))
            assert each.answer().rid == count  # all are waiting
        domain.kill()
        for each in raw:
            assert [(told := each.answer()).rid for _ in range(count // clients)] == list(range(1, count // clients + 1))
            assert told.value == [9, "killed", 9]
    assert domain.wait() == KILLED


def test_a_client_that_never_reads_loses_its_connection_and_keeps_nobody_waiting(state, manager):
    domain = sh(manager, "echo a; read x <&1; sleep 1000")
    next(domain.logs(follow=True))
    pid = managed.manager_pid(state)
    wait_for_inits(state)
    assert domain.wait(nohang=True) is None  # and it has read what came before this
    before = open_files(pid)
    requests = {"bytes": wire.List(1), "descriptors": wire.Logs(1, domain.id)}
    for request in requests.values():
        with Raw(manager) as deaf:
            frame = wire.frame(wire.encode(request)) * 200
            with pytest.raises(ConnectionError):
                until_refused(lambda: deaf.sock.sendall(frame), [])  # noqa: B023  answers pile up until it is thrown out
            assert domain.wait(nohang=True) is None
    managed.wait_until(lambda: open_files(pid) <= before + 1)
    domain.kill()


def test_names_and_arguments_of_any_bytes_and_any_length_can_be_listed(manager, tmp_path):
    tmp_path.chmod(0o755)
    odd = os.path.join(os.fsencode(tmp_path), b"a\xff b")
    os.symlink(b"/bin/sleep", odd)
    strange = manager.spawn_program(manager.cores()[0], os.fsdecode(odd), [os.fsdecode(b"\xfe"), "1000"])
    long = [manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", "read x <&1; sleep 1000", *["x" * 120_000] * 8]) for _ in range(6)]
    statuses = {status.id: status for status in manager.statuses()}
    assert statuses.keys() == {strange.id, *(domain.id for domain in long)}
    assert statuses[strange.id].name == r"a\xff b"
    assert os.fsencode(statuses[strange.id].argv[0]) == b"\xfe"
    assert len(long[0].status().argv) == 11
    for domain in (strange, *long):
        domain.kill()


def test_numbers_that_no_domain_can_have_are_refused(manager):
    for number in (-1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        with pytest.raises(ManagerError, match="there is no domain") as error:
            manager.status(number)
        assert error.value.code == "PROC_MGMT_ERR_DOMAIN_TABLE_FIND"
    assert manager.audit(1 << 63) is not None


# --- descriptors and processes --------------------------------------------------------------------------


def set_limit(pid, soft):
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_the_daemon_may_open_more_files_than_its_domains(state, manager):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        soft //= 2
        manager.stop()
        managed.wait_until(lambda: managed.manager_pid(state) is None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        domain = sh(manager, "ulimit -n; ulimit -Hn")
        assert domain.wait().code == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert b"".join(domain.logs()).split() == [str(soft).encode(), str(hard).encode()]
    assert resource.prlimit(managed.manager_pid(state), resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_manager_that_runs_out_of_descriptors_says_so_and_keeps_its_domains(state, manager):
    runs = [sh(manager, "sleep 1000")]
    pid = managed.manager_pid(state)
    wait_for_inits(state)
    set_limit(pid, open_files(pid) + 64 + 8)
    with pytest.raises(ManagerError, match="RLIMIT_NOFILE") as error:
        until_refused(lambda: sh(manager, "sleep 1000"), runs)
    assert error.value.code == "SPAWN_ERR_DOMAIN_ALLOCATE"
    assert len(runs) > 2
    with shoal.manager.connect() as other:  # there is room for that
        assert other.domains() == [domain.id for domain in runs]
    while len(runs) > 1 and (domain := spawned(manager)) is None:
        runs.pop().kill()
    assert domain is not None  # there is room again
    domain.kill()
    for domain in runs:
        domain.kill()


def spawned(manager):
    with contextlib.suppress(ManagerError):
        return sh(manager, "sleep 1000")
    return None


PROCESSES = 70
"""How many processes a manager may have here, with its domains."""


@pytest.fixture
def narrow(state, manager):
    """A cgroup that the manager is in, and what it starts, with room for a few processes."""
    directory = Path(f"/sys/fs/cgroup/pids/shoal-{os.getpid()}")
    directory.mkdir()
    try:
        (directory / "pids.max").write_text(str(PROCESSES))
        (directory / "cgroup.procs").write_text(str(managed.manager_pid(state)))
        yield directory
    finally:
        managed.end_all(state)
        managed.wait_until(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


@needs("a cgroup v1 tree that limits processes")
def test_a_limit_of_processes_that_would_be_hit_is_named_before_it_is(narrow, manager):
    runs = []
    with pytest.raises(ManagerError, match=rf"processes and threads that {narrow}/pids\.max allows; end some, or raise it") as error:
        until_refused(lambda: sh(manager, "exec sleep 1000"), runs)
    assert error.value.code == "SPAWN_ERR_DOMAIN_ALLOCATE"
    assert len(runs) > 8
    assert int((narrow / "pids.current").read_text()) < PROCESSES  # nobody was kept from making one
    while len(runs) > 1 and (domain := spawned(manager)) is None:
        runs.pop().kill()
    assert domain is not None  # there is room again
    domain.kill()
    assert manager.domains() == [domain.id for domain in runs]


IN_A_SMALL_NAMESPACE = """
import pathlib, shoal.manager
pathlib.Path("/proc/sys/kernel/pid_max").write_text("400")
with shoal.manager.connect() as manager:
    count = 0
    try:
        while True:
            manager.spawn_program(manager.cores()[0], "sleep", ["sleep", "1000"])
            count += 1
    except shoal.manager.ManagerError as error:
        print(error.code, count, error.message)
    print(len(manager.domains()))
"""


@needs("a limit of processes for each pid namespace (Linux 6.14)")
def test_the_last_numbers_of_processes_are_left_to_others(state):
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", IN_A_SMALL_NAMESPACE]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    code, count, message = told.splitlines()[0].split(" ", 2)
    assert code == "SPAWN_ERR_DOMAIN_ALLOCATE"
    assert "of 400 processes and threads that kernel.pid_max allows" in message
    assert int(told.splitlines()[1]) == int(count) > 100


def test_without_any_descriptor_left_requests_fail_one_by_one_and_nothing_is_lost(state, manager):
    runs = sh(manager, "echo a; read x <&1; sleep 1000")
    next(runs.logs(follow=True))
    pid = managed.manager_pid(state)
    with Raw(manager) as raw:
        set_limit(pid, 8)
        for request in (wire.Logs(1, runs.id), wire.Memory(2, runs.id)):
            raw.send(request)
            told = raw.answer()
            assert isinstance(told, wire.Failure)
            assert "RLIMIT_NOFILE" in told.message
        with pytest.raises(ManagerError, match="RLIMIT_NOFILE"):
            sh(manager, "exit 0")
        with socket.socket(socket.AF_UNIX) as waits:  # until there is room
            waits.connect(str(state / "run" / "manager.sock"))
            raw.send(wire.Status(3, runs.id))
            assert raw.answer().value["state"] == "running"
            set_limit(pid, 1024)
            waits.sendall(wire.frame(wire.encode(wire.Hello(7, wire.VERSION))))
            assert select.select([waits], [], [], 30)[0]
    assert sh(manager, "exit 3").wait().code == 3
    runs.kill()


def test_a_nursery_that_can_make_no_process_is_said_and_tried_again(state, manager):
    sh(manager, "exit 0").wait()
    (nursery,) = managed.processes(state, managed.NURSERY)
    soft, hard = resource.prlimit(nursery, resource.RLIMIT_NOFILE)
    resource.prlimit(nursery, resource.RLIMIT_NOFILE, (4, hard))
    with pytest.raises(ManagerError, match="no init for a domain could be made: Too many open files") as error:
        until_refused(lambda: sh(manager, "exit 0").wait(), [])
    assert error.value.code == "SPAWN_ERR_RUN"
    resource.prlimit(nursery, resource.RLIMIT_NOFILE, (soft, hard))
    managed.wait_until(lambda: (domain := spawned(manager)) and (domain.kill() or True))
    assert sh(manager, "exit 4").wait().code == 4


def test_an_init_that_somebody_has_stopped_ends_its_domain_as_soon_as_it_can(state, manager):
    domain, init = with_a_stopped_init(state, manager)
    thread = threading.Thread(target=domain.kill)
    thread.start()
    managed.wait_until(lambda: domain.status().state == "stop_pending")
    os.kill(init, signal.SIGCONT)
    thread.join()
    assert domain.wait() == KILLED


def test_what_an_init_was_not_told_takes_no_answer_from_what_it_is_told_next(state, manager):
    domain, init = with_a_stopped_init(state, manager)
    for _ in range(3):
        with pytest.raises(ManagerError, match="does not take orders at the moment"):
            domain.exec(["/bin/true"])
    os.kill(init, signal.SIGCONT)
    managed.wait_until(lambda: takes_orders(domain))
    for code in (3, 4):
        with domain.exec(["/bin/sh", "-c", f"exit {code}"]) as command:
            assert command.wait(timeout=30).code == code
    domain.kill()


def with_a_stopped_init(state, manager):
    """A domain whose init is stopped and has as many orders as it can have."""
    domain = sh(manager, "sleep 1000")
    init = managed.init_of(state, domain.id)
    managed.stop(init)
    with pytest.raises(ManagerError, match="does not take orders at the moment"):
        until_refused(lambda: domain.send_signal(signal.SIGCONT), [])
    return domain, init


def takes_orders(domain):
    try:
        domain.send_signal(signal.SIGCONT)
    except ManagerError:
        return False
    return True


def test_many_clients_come_and_go_and_leave_nothing(state, manager):
    domain = sh(manager, "sleep 1000")
    pid = managed.manager_pid(state)
    sh(manager, "exit 0").wait()
    managed.wait_until(lambda: len(managed.processes(state, managed.DOMAIN)) >= 9)
    before = open_files(pid) + AHEAD // 2  # inits that wait

    def come_and_go(number):
        with contextlib.suppress(ConnectionError), dial(Layout.of(), 30, starts=False) as sock:
            fds = array.array("i", [sock.fileno()])
            frames = [wire.encode(wire.Hello(1, wire.VERSION)), wire.encode(wire.Wait(2, domain.id, False))]
            data = b"".join(map(wire.frame, frames))
            sock.sendmsg([data[: len(data) - number % 3]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])  # its own end

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(300)))
    managed.wait_until(lambda: open_files(pid) <= before)
    domain.kill()
