"""The process manager: domains through a daemon and through one in this process, and what is true of them after anything has died."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from rig.domains import code_of, core, manager_pid, sh, wait_gone

import shoal.manager
from shoal import NetNs, Sandbox
from shoal.manager import DomainRights, ExitStatus, ManagerError
from shoal.manager.daemon import dial
from shoal.manager.layout import Layout
from shoal.manager.rootkey import RootKey
from shoal.manager.tokens import Mint

EXITED, KILLED = "exited", "killed"


# --- spawning and waiting -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 9, 255])
def test_the_exit_status_is_the_programs(manager, status):
    domain = sh(manager, f"exit {status}")
    assert domain.wait() == ExitStatus(status, EXITED, None)
    assert domain.wait(nohang=True) == ExitStatus(status, EXITED, None)  # waiting does not use it up


def test_a_domain_that_a_signal_ended_says_which(manager):
    assert sh(manager, "kill -USR1 $$").wait() == ExitStatus(128 + signal.SIGUSR1, "signaled", signal.SIGUSR1)


def test_waiting_without_hanging_changes_nothing(manager):
    domain = sh(manager, "read x <&1; sleep 1000")
    assert domain.wait(nohang=True) is None
    assert domain.status().state == "running"
    with pytest.raises(TimeoutError, match=f"domain {domain.id} has not ended within"):
        domain.wait(timeout=0.01)
    domain.kill()
    assert domain.wait() == ExitStatus(9, KILLED, 9)


@pytest.mark.parametrize("timeout", ["60d", 1e300])
def test_a_wait_may_be_limited_to_months(manager, timeout):
    assert sh(manager, "exit 3").wait(timeout=timeout) == ExitStatus(3, EXITED, None)


@pytest.mark.parametrize("timeout", ["60d", 1e300])
def test_so_may_be_the_start_of_a_manager(state, timeout):
    with shoal.manager.connect(timeout=timeout) as manager:
        assert sh(manager, "exit 3").wait() == ExitStatus(3, EXITED, None)


def test_a_kill_returns_when_nothing_runs_any_more(manager, tmp_path):
    domain = sh(manager, f"setsid sleep 1000 & echo $! >{tmp_path}/left; trap '' TERM; echo ready; sleep 1000")
    assert next(domain.logs(follow=True)) == b"ready\n"
    left = int((tmp_path / "left").read_text())
    domain.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(left, 0)
    assert domain.wait(nohang=True) == ExitStatus(9, KILLED, 9)


def test_the_end_of_the_program_ends_what_it_left_behind(manager, tmp_path):
    domain = sh(manager, f"setsid sleep 1000 & echo $! >{tmp_path}/left; exit 3")
    assert domain.wait() == ExitStatus(3, EXITED, None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "left").read_text()), 0)


def test_killing_twice_and_killing_what_has_ended(manager):
    domain = sh(manager, "sleep 1000")
    outcomes = []

    def kill():
        try:
            domain.kill()
            outcomes.append("ok")
        except ManagerError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=kill) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {"ok", "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING"}
    assert "ok" in outcomes
    with pytest.raises(ManagerError) as error:
        domain.kill()
    assert code_of(error) == "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING"


def test_many_waiters_each_get_the_same(manager):
    domain = sh(manager, "read x; exit 7", stdin=os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC))
    domain.send_signal(signal.SIGSTOP)
    found = []
    threads = [threading.Thread(target=lambda: found.append(domain.wait())) for _ in range(50)]
    for thread in threads:
        thread.start()
    domain.kill()
    for thread in threads:
        thread.join()
    assert found == [ExitStatus(9, KILLED, 9)] * 50


def test_a_program_is_pinned_to_its_core(manager):
    for number in manager.cores():
        domain = sh(manager, "grep Cpus_allowed_list /proc/self/status", core=number)
        assert domain.wait().code == 0
        assert b"".join(domain.logs()).split() == [b"Cpus_allowed_list:", str(number).encode()]


def test_on_all_cores_one_is_started_on_each(manager):
    domains = manager.spawn_program_on_all_cores(True, "grep", ["grep", "Cpus_allowed_list", "/proc/self/status"])
    assert [domain.wait().code for domain in domains] == [0] * len(manager.cores())
    assert [int(b"".join(domain.logs()).split()[1]) for domain in domains] == manager.cores()


@pytest.mark.parametrize("number", [9999, "node/9999", -1, "here"])
def test_a_core_without_a_spawn_daemon_is_refused(manager, number):
    with pytest.raises(ManagerError, match=f"core {number} has no spawn daemon") as error:
        sh(manager, "exit 0", core=number)
    assert code_of(error) == "PROC_MGMT_ERR_INVALID_SPAWND"


def test_what_cannot_be_executed_is_refused_and_leaves_nothing(manager, tmp_path):
    foreign = tmp_path / "foreign"
    head = bytearray(Path("/bin/true").read_bytes()[:4096])
    head[18:20] = (8).to_bytes(2, "little")  # EM_MIPS
    foreign.write_bytes(head)
    foreign.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("")
    tmp_path.chmod(0o755)
    for path, said in [
        ("no-such-program", "not found in PATH"),
        ("/no/such/program", "not found"),
        (str(plain), "not executable"),
        (str(foreign), "another kind of processor"),
    ]:
        with pytest.raises(ManagerError, match=said) as error:
            manager.spawn_program(core(manager), path, ["x"])
        assert code_of(error) == "SPAWN_ERR_LOAD"
    assert manager.domains() == []
    assert sh(manager, "exit 5").wait().code == 5


def test_the_environment_is_what_was_given_or_the_callers(manager, monkeypatch):
    given = sh(manager, 'echo "$A-$HOME"', envp={"A": "1", "PATH": os.environ["PATH"]})
    monkeypatch.setenv("A", "2")
    inherited = sh(manager, 'echo "$A"')
    given.wait(), inherited.wait()
    assert b"".join(given.logs()) == b"1-\n"
    assert b"".join(inherited.logs()) == b"2\n"


def test_it_starts_where_the_caller_is(manager, tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tool").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "tool").chmod(0o755)
    domain = manager.spawn_program(core(manager), "./tool", ["tool"])
    domain.wait()
    assert b"".join(domain.logs()) == os.fsencode(os.path.realpath(tmp_path)) + b"\n"


def test_it_starts_where_it_was_told_to_or_not_at_all(manager, tmp_path):
    (tmp_path / "file").touch()
    there = manager.spawn_program(core(manager), "pwd", ["pwd"], cwd=tmp_path)
    there.wait()
    assert b"".join(there.logs()) == os.fsencode(os.path.realpath(tmp_path)) + b"\n"
    for missing in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ManagerError, match=f"{missing}: the working directory cannot be entered") as error:
            manager.spawn_program(core(manager), "true", ["true"], cwd=missing)
        assert code_of(error) == "SPAWN_ERR_SETUP_ENV"
    with pytest.raises(ValueError, match="cwd holds a zero byte"):
        manager.spawn_program(core(manager), "true", ["true"], cwd=f"{tmp_path}\0/none")


def test_its_descriptors_are_those_it_was_given_and_nothing_else(manager):
    read, write = os.pipe()
    with open("/dev/null", "w", encoding="ascii") as null:
        domain = sh(manager, "readlink /proc/self/fd/0; ls /proc/self/fd >&2", stdout=write, stderr=null)
        os.close(write)
        assert domain.wait().code == 0
    with open(read, encoding="ascii") as file:
        assert file.read() == "/dev/null\n"
    domain = sh(manager, "ls /proc/self/fd")
    domain.wait()
    assert b"".join(domain.logs()).split() == [b"0", b"1", b"2", b"3"]  # 3: the directory that ls reads


def test_both_streams_are_kept_apart(manager):
    domain = sh(manager, "echo one; echo two >&2; echo three")
    domain.wait()
    assert sorted(b"".join(domain.logs()).split()) == [b"one", b"three", b"two"]  # of two pipes nobody knows which was written first
    assert b"".join(domain.logs(stream="stdout")) == b"one\nthree\n"
    assert b"".join(domain.logs(stream="stderr")) == b"two\n"


def test_following_a_log_ends_with_the_domain(manager):
    domain = sh(manager, "for i in 1 2 3; do echo $i; sleep 0.05; done")
    assert b"".join(domain.logs(follow=True)) == b"1\n2\n3\n"
    quiet = sh(manager, "sleep 0.05")
    assert list(quiet.logs(follow=True)) == []


def test_the_list_and_the_status_tell_what_runs(manager):
    first, second = sh(manager, "sleep 1000", "a b"), sh(manager, "sleep 1000", name="other")
    assert manager.domains() == [first.id, second.id]
    status = manager.status(second.id)
    assert (status.name, status.state, status.argv, status.cores) == ("other", "running", ("sh", "-c", "sleep 1000"), (core(manager),))
    assert Path(f"/proc/{status.pids[0]}/cmdline").read_bytes().startswith((b"sh\0", b"sleep\0"))
    first.kill()
    assert manager.domains() == [second.id]
    assert manager.status(first.id).exit == ExitStatus(9, KILLED, 9)  # still known, but no longer listed
    with pytest.raises(ManagerError) as error:
        manager.status(999_999)
    assert code_of(error) == "PROC_MGMT_ERR_DOMAIN_TABLE_FIND"


def test_a_capability_is_needed_and_has_to_be_genuine(manager):
    domain = sh(manager, "sleep 1000")
    other = manager.domain(domain.cap.to_token())
    assert other.id == domain.id
    with tempfile.TemporaryDirectory() as elsewhere:
        forged = Mint(RootKey.open(elsewhere)).domain(domain.id)
    with pytest.raises(ManagerError, match="another manager") as error:
        manager.domain(forged).kill()
    assert code_of(error) == "PROC_MGMT_ERR_DOMAIN_CAP_HASH"
    assert any(entry[4] and "another manager" in entry[4] for entry in manager.audit())
    assert other.wait(nohang=True) is None
    other.kill()


def test_a_narrowed_capability_allows_what_it_says_and_no_more(manager):
    domain = sh(manager, "sleep 1000")
    watcher = manager.domain(domain.cap.attenuate(DomainRights.WAIT | DomainRights.STATUS))
    assert watcher.status().state == "running"
    with pytest.raises(ManagerError, match="does not allow: kill") as error:
        watcher.kill()
    assert code_of(error) == "PROC_MGMT_ERR_DOMAIN_CAP_HASH"
    domain.kill()
    assert watcher.wait() == ExitStatus(9, KILLED, 9)


def test_a_revoked_capability_is_worthless_also_to_the_next_manager(state):
    with shoal.manager.connect() as manager:
        domain = sh(manager, "sleep 1000")
        narrowed = manager.domain(domain.cap.attenuate(DomainRights.KILL))
        manager.revoke(narrowed.cap)
        with pytest.raises(ManagerError, match="revoked"):
            narrowed.kill()
        assert domain.status().state == "running"
        manager.revoke(domain.id)
        os.kill(manager_pid(state), signal.SIGKILL)
        with pytest.raises(ManagerError, match="revoked"):
            domain.kill()
        fresh = manager.domain(domain.id)  # by the manager capability
        fresh.kill()


# --- nothing is lost ----------------------------------------------------------------------------------


def test_a_directory_of_all_users_is_left_to_them(tmp_path):
    tmp_path.chmod(0o1777)
    with pytest.raises(ManagerError, match="is for all users"):
        shoal.manager.embedded(str(tmp_path))
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


_FORKED = """
import os, signal, sys, threading
import shoal.manager

with shoal.manager.connect() if sys.argv[1] == "daemon" else shoal.manager.embedded() as manager:
    domain = manager.spawn_program(manager.cores()[0], "sleep", ["sleep", "1000"])
    manager.names.register("mine")  # as long as the connection lives
    ended = []
    waiting = threading.Thread(target=lambda: ended.append(domain.wait().reason))  # reads for all, and has the lock now and then
    waiting.start()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            with manager:
                print(manager.cores() != [], manager.names.names("mine"), flush=True)
        except shoal.manager.ManagerError as error:
            print(error.message, flush=True)
        os._exit(7)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), manager.names.names("mine"))
    domain.kill()
    waiting.join()
    print(ended)
"""


@pytest.mark.parametrize("kind", ["daemon", "embedded"])
def test_a_fork_of_the_client_takes_nothing_from_it(state, kind):
    done = subprocess.run([sys.executable, "-c", _FORKED, kind], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    child, parent, end = done.stdout.splitlines()
    assert (parent, end) == ("7 ['mine']", "['killed']")
    assert child == "True ['mine']" if kind == "daemon" else "that this one was forked from" in child


_FORKED_WHILE_CONNECTING = """
import os, signal, socket, threading
import shoal.manager
from shoal.manager.client import Manager
from shoal.manager.daemon import dial
from shoal.manager.layout import Layout

dialling, go_on, main = threading.Event(), threading.Event(), os.getpid()

def dialled(left):
    if os.getpid() == main:
        dialling.set()
        go_on.wait()
    return dial(Layout.of(), left, starts=True)

with Manager(dialled, lambda: None, lambda: None) as manager:
    thread = threading.Thread(target=manager.cores)
    thread.start()
    dialling.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(len(manager.cores()) != len(os.sched_getaffinity(0)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    go_on.set()
    thread.join()
"""


def test_a_fork_while_another_thread_connects_connects_itself(state):
    done = subprocess.run([sys.executable, "-c", _FORKED_WHILE_CONNECTING], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


def test_two_managers_on_one_state_directory_are_refused(state):
    with shoal.manager.embedded(state), pytest.raises(ManagerError, match=f"in use by the manager with pid {os.getpid()}"):
        shoal.manager.embedded(state)


def test_a_killed_manager_loses_no_domain_and_no_status(state):
    with shoal.manager.connect() as manager:
        ended = sh(manager, "exit 4")
        ended.wait()
        runs = sh(manager, "echo before; read x <&1; sleep 1000")
        ends = sh(manager, f"while kill -0 {manager_pid(state)}; do :; done 2>/dev/null; echo after; exit 6")
        assert next(runs.logs(follow=True)) == b"before\n"
        pid = manager.status(runs.id).pids[0]
        os.kill(manager_pid(state), signal.SIGKILL)
        assert ends.wait() == ExitStatus(6, EXITED, None)  # asks the next manager, which is started by it
        assert ended.wait() == ExitStatus(4, EXITED, None)
        assert b"".join(ends.logs()) == b"after\n"
        assert manager.status(runs.id).pids == (pid,)
        runs.kill()
        assert runs.wait() == ExitStatus(9, KILLED, 9)


def test_a_domain_that_ends_while_there_is_no_manager_is_known_to_the_next(state):
    with shoal.manager.embedded(state) as first:
        domain = sh(first, "read x; exit 8", stdin=(read := os.open("/dev/null", os.O_RDONLY)))
        os.close(read)
        slow = sh(first, "sleep 0.2; exit 9")
        pid = first.status(slow.id).pids[0]
        assert domain.wait().code == 8
    wait_gone(pid)
    with shoal.manager.embedded(state) as second:
        assert second.domain(slow.id).wait() == ExitStatus(9, EXITED, None)
        assert second.domain(domain.id).wait() == ExitStatus(8, EXITED, None)


def test_a_domain_whose_init_is_killed_is_lost_and_leaves_nothing(manager):
    domain = sh(manager, "sleep 1000")
    pid = manager.status(domain.id).pids[0]
    init = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert Path(f"/proc/{init}/comm").read_text() == "shoal-domain\n"
    os.kill(init, signal.SIGKILL)
    assert domain.wait() == ExitStatus(255, "lost", None)
    wait_gone(pid)


def test_the_nursery_may_be_killed_at_any_time(manager):
    sh(manager, "exit 0").wait()
    domain = sh(manager, "sleep 1000")
    pid = manager.status(domain.id).pids[0]
    init = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    nursery = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    assert Path(f"/proc/{nursery}/comm").read_text() == "shoal-nursery\n"
    os.kill(nursery, signal.SIGKILL)
    for _ in range(10):
        assert sh(manager, "exit 3").wait().code == 3
    assert domain.wait(nohang=True) is None
    domain.kill()


def test_a_hostile_client_loses_its_connection_and_nobody_else_anything(state):
    with shoal.manager.connect() as manager:
        domain = sh(manager, "sleep 1000")
        layout = Layout.of()
        for words in [b"\0" * 64, b"\xff" * 64, b"\x05\0\0\0\0hello", b"\x01\0\0\0\x40\0", b"GET / HTTP/1.0\r\n\r\n", os.urandom(4096)]:
            with dial(layout, 5, starts=False) as sock:
                sock.sendall(words)
                sock.settimeout(30)
                with contextlib.suppress(ConnectionError):
                    assert sock.recv(1) == b""
        assert domain.wait(nohang=True) is None
        domain.kill()


# --- in a sandbox -------------------------------------------------------------------------------------


def boxed(manager, script, box, **how):
    return manager.spawn_program(core(manager), "sh", ["sh", "-c", script], sandbox=box, **how)


@pytest.mark.cell
def test_a_domain_in_a_sandbox_sees_what_that_gives_and_nothing_else(manager, tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "given").write_text("this\n")
    box = Sandbox(read=["/usr", tmp_path / "given"], env={"A": "1"})
    domain = boxed(manager, f"cat {tmp_path}/given; ls {tmp_path.parent}; echo $A; set /proc/[0-9]*; echo $#; exit 3", box)
    assert domain.wait() == ExitStatus(3, EXITED, None)
    said = b"".join(domain.logs(stream="stdout")).decode().split()
    assert said == ["this", tmp_path.name, "1", "2"]  # 2: pid 1 and the shell
    replaced = boxed(manager, 'echo "$A-$B"', box, envp={"B": "2", "PATH": "/usr/bin"})
    replaced.wait()
    assert b"".join(replaced.logs()) == b"-2\n"


@pytest.mark.cell
def test_the_end_of_a_domain_in_a_sandbox_ends_all_of_it_whoever_is_killed(manager):
    domain = boxed(manager, "setsid sleep 1000 & setsid setsid sleep 1000 & echo ready; read x <&1; sleep 1000", Sandbox(read=["/usr"]))
    assert next(domain.logs(follow=True)) == b"ready\n"
    pid = domain.status().pids[0]
    init = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    members = [int(each) for each in os.listdir("/proc") if each.isdigit() and in_same_pid_namespace(int(each), pid)]
    assert len(members) >= 3
    os.kill(init, signal.SIGKILL)
    assert domain.wait() == ExitStatus(255, "lost", None)
    for each in members:
        wait_gone(each)


def in_same_pid_namespace(pid, other):
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{other}/ns/pid")
    except OSError:
        return False


@pytest.mark.cell
def test_a_sandboxed_domain_is_found_again_by_the_next_manager(state):
    with shoal.manager.connect() as manager:
        domain = boxed(
            manager, "echo before; read x; sleep 1000", Sandbox(read=["/usr"]), stdin=os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        )
        short = boxed(manager, "sleep 0.3; exit 7", Sandbox(read=["/usr"]))
        assert next(domain.logs(follow=True)) == b"before\n"
        os.kill(manager_pid(state), signal.SIGKILL)
        assert short.wait() == ExitStatus(7, EXITED, None)
        domain.kill()
        assert domain.wait() == ExitStatus(9, KILLED, 9)


@pytest.mark.cell
def test_a_domain_whose_time_is_up_says_so_also_at_the_next_manager(state):
    with shoal.manager.connect() as manager:
        at_once = boxed(manager, "sleep 1000", Sandbox(read=["/usr"], wall_time=0.1))
        assert at_once.wait() == ExitStatus(9, "wall_time", 9)
        later = boxed(manager, "sleep 1000", Sandbox(read=["/usr"], wall_time=1))
        os.kill(manager_pid(state), signal.SIGKILL)
        assert later.wait() == ExitStatus(9, "wall_time", 9)


@pytest.mark.cell
def test_what_a_sandbox_cannot_give_is_refused_with_the_reason(manager):
    with pytest.raises(ManagerError, match="/no/such/place") as error:
        boxed(manager, "exit 0", Sandbox(read=["/no/such/place"]))
    assert code_of(error) == "SPAWN_ERR_SETUP_CSPACE"
    with NetNs.new() as network, pytest.raises(ValueError, match="cannot be handed to a manager"):
        boxed(manager, "exit 0", Sandbox(network=network))
    assert manager.domains() == []


# --- what a domain can touch --------------------------------------------------------------------------


def test_a_flat_domain_can_touch_what_it_was_given(manager, tmp_path):
    read, write = os.pipe()
    domain = sh(manager, "echo ready; exec sleep 1000", stdin=read)
    os.close(read)
    assert next(domain.logs(follow=True)) == b"ready\n"
    found = domain.capabilities()
    assert found.domain_id == domain.id
    assert found.granted.world == "caller"
    assert {item.fd: item.kind for item in found.granted.descriptors} == {0: "pipe", 1: "pipe", 2: "pipe"}
    assert found.observed.processes[0].pid == domain.status().pids[0]
    assert found.confined, str(found)
    os.close(write)
    domain.kill()
    with pytest.raises(ManagerError) as error:
        domain.capabilities()
    assert code_of(error) == "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING"


@pytest.mark.cell
def test_a_sandboxed_domain_can_touch_what_its_plan_says(manager, tmp_path):
    tmp_path.chmod(0o755)
    box = Sandbox(read=["/usr", tmp_path], env={"TOKEN": "xyzzy-42", "A": "1"}, secrets=["TOKEN"])
    domain = boxed(manager, "echo ready; sleep 1000", box)
    assert next(domain.logs(follow=True)) == b"ready\n"
    found = domain.capabilities()
    assert str(tmp_path) in {mount.where for mount in found.granted.mounts}
    assert found.confined, str(found)
    assert "xyzzy-42" not in str(found) + found.to_dot() + str(found.to_dict())
    assert "sleep" in str(found)
    domain.kill()


# --- sizes --------------------------------------------------------------------------------------------


def test_arguments_and_environment_may_be_as_large_as_the_kernel_takes(manager):
    script = 'echo $#; echo "$1" | wc -c; echo "$LONG" | wc -c; env | grep -c ^MANY'
    environ = {"PATH": os.environ["PATH"], "LONG": "x" * 100_000, **{f"MANY{number}": "y" * 50 for number in range(6000)}}
    domain = sh(manager, script, "sh", "z" * 120_000, *(["word"] * 5000), envp=environ)
    assert domain.wait(timeout=60).code == 0
    assert b"".join(domain.logs()).split() == [b"5001", b"120001", b"100001", b"6000"]
    with pytest.raises(ManagerError, match="larger than the kernel takes") as error:
        sh(manager, "exit 0", "z" * 200_000)
    assert code_of(error) == "SPAWN_ERR_ARGSPG_OVERFLOW"
