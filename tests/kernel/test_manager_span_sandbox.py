"""Another dispatcher of a domain in a sandbox: in the same cell, under the same rules, and with it in life and death."""

import json
import os
import signal
import sys
import threading

import pytest
from rig import managed

from shoal import Sandbox, Vmo
from shoal.manager import CNode, ExitStatus, ManagerError

CORES = sorted(os.sched_getaffinity(0))
FIRST, SECOND = CORES[0], CORES[-1]
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two processors")

NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "user", "cgroup")
PROTECTIONS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters")
BOX = Sandbox(memory="300M", env={"TOKEN": "hush-hush"}, secrets=["TOKEN"], limits="best-effort")
SHELL = Sandbox(read=["/usr", "/bin", "/lib", "/lib64"], limits="best-effort")


state, manager = managed.state, managed.manager


def sleeper(manager, box=BOX, **how):
    return manager.spawn_program(FIRST, "sleep", ["sleep", "1000"], sandbox=box, **how)


def fields(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return {name: value for name, _, value in (line.partition(":") for line in file)}


def limits(pid):
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        return file.read()


def environment(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        return {item for item in file.read().split(b"\0") if not item.startswith(b"SHOAL_STARTUP=")}


BOXES = {
    "limits": BOX,
    "plain": Sandbox(),
    "host": Sandbox(network="host"),
    "unfiltered": Sandbox(seccomp="off"),
    "strict": Sandbox(seccomp="strict"),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_both_are_in_the_same_namespaces_limits_and_filters(manager, box):
    domain = sleeper(manager, box)
    domain.span(SECOND)
    first, second = domain.status().pids
    for name in NAMESPACES:
        assert os.stat(f"/proc/{first}/ns/{name}").st_ino == os.stat(f"/proc/{second}/ns/{name}").st_ino
    assert os.stat(f"/proc/{second}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
    for path in ("root", "cwd", "exe"):
        assert os.path.samestat(os.stat(f"/proc/{first}/{path}"), os.stat(f"/proc/{second}/{path}"))
    mine, its = fields(first), fields(second)
    assert {name: mine[name] for name in PROTECTIONS} == {name: its[name] for name in PROTECTIONS}
    assert limits(first) == limits(second)
    assert environment(first) == environment(second)
    assert [os.sched_getaffinity(pid) for pid in (first, second)] == [{FIRST}, {SECOND}]
    assert [mine["NSpid"].split()[-1], its["NSpid"].split()[-1]] == ["2", "3"]
    found = domain.capabilities().to_dict()
    assert "may run on" not in json.dumps(found)


def test_what_one_writes_the_other_sees_and_neither_gets_out(manager, tmp_path):
    (tmp_path / "outside").write_text("out of reach")
    script = f"""
        [ -e /tmp/first ] && me=second || me=first
        echo $me >/tmp/$me
        [ -e {tmp_path}/outside ] && echo escaped
        (echo >/usr/bin/written) 2>/dev/null && echo written
        while [ ! -e /tmp/second ]; do sleep 0.01; done
        echo "$me sees $(cat /tmp/first /tmp/second | tr '\\n' ' ')"
        [ $me = second ] || exec sleep 1000
        while :; do sleep 1000; done
    """
    domain = manager.spawn_program(FIRST, "sh", ["sh", "-c", script], sandbox=SHELL)
    managed.wait_until(lambda: os.path.exists(f"/proc/{domain.status().pids[0]}/root/tmp/first"))
    domain.span(SECOND)
    log = domain.logs(follow=True)
    assert {next(log), next(log)} == {b"first sees first second \n", b"second sees first second \n"}
    domain.kill()
    assert list(log) == []


@pytest.mark.parametrize("which", [0, 1])
def test_the_end_of_either_is_that_of_both(manager, which):
    domain = sleeper(manager)
    domain.span(SECOND)
    pids = domain.status().pids
    managed.kill(pids[which], signal.SIGTERM)
    assert domain.wait(timeout=30) == ExitStatus(143, "signaled", 15)
    for pid in pids:
        managed.wait_gone(pid)


def test_kill_and_wait_cover_both(manager, state):
    domain = sleeper(manager)
    domain.span(SECOND)
    pids = domain.status().pids
    assert domain.wait(nohang=True) is None
    domain.kill()
    assert domain.wait() == ExitStatus(9, "killed", 9)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_signal_reaches_both(manager):
    script = "trap 'echo here; exit 3' USR1; echo ready; while :; do sleep 0.01; done"
    domain = manager.spawn_program(FIRST, "sh", ["sh", "-c", script], sandbox=SHELL)
    domain.span(SECOND)
    log = domain.logs(follow=True)
    assert [next(log), next(log)] == [b"ready\n"] * 2
    domain.send_signal(signal.SIGUSR1)
    assert domain.wait().code == 3


def test_a_manager_that_was_killed_is_followed_by_one_that_knows_both(manager, state):
    domain = sleeper(manager)
    domain.span(SECOND)
    before = domain.status().pids
    pid = managed.manager_pid(state)
    os.kill(pid, signal.SIGKILL)
    managed.wait_gone(pid)
    assert domain.status().pids == before
    with pytest.raises(ManagerError) as caught:
        domain.span(SECOND)
    assert caught.value.code == "PROC_MGMT_ERR_ALREADY_SPANNED"
    domain.kill()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in before)


def test_a_domain_that_a_new_manager_has_found_can_span(manager, state):
    domain = sleeper(manager)
    pid = managed.manager_pid(state)
    os.kill(pid, signal.SIGKILL)
    managed.wait_gone(pid)
    domain.span(SECOND)
    first, second = domain.status().pids
    assert os.stat(f"/proc/{first}/ns/mnt").st_ino == os.stat(f"/proc/{second}/ns/mnt").st_ino
    assert b"TOKEN=hush-hush" in environment(second)  # from the first, since the manager has not kept it
    domain.kill()


def test_it_runs_the_program_that_the_domain_began_with_whatever_has_become_of_the_file(manager, tmp_path):
    tmp_path.chmod(0o755)
    program = tmp_path / "program"
    with open("/bin/sleep", "rb") as file:
        program.write_bytes(file.read())
    program.chmod(0o755)
    domain = manager.spawn_program(FIRST, program, ["program", "1000"], sandbox=Sandbox())
    first = domain.status().pids[0]
    domain.span(SECOND)
    second = domain.status().pids[1]
    assert os.path.samestat(os.stat(f"/proc/{first}/exe"), os.stat(f"/proc/{second}/exe"))
    domain.kill()


def test_a_sandbox_without_the_manager_stays_without_it(manager):
    domain = sleeper(manager)
    domain.span(SECOND)
    with open(f"/proc/{domain.status().pids[1]}/environ", "rb") as file:
        handed = file.read()
    assert b"label=memory" in handed
    assert b"label=manager" not in handed
    assert b"label=core." not in handed
    owner = sleeper(manager, own_capability=True)
    owner.span(SECOND)
    with open(f"/proc/{owner.status().pids[1]}/environ", "rb") as file:
        assert b"label=manager" in file.read()


def test_what_was_handed_to_the_first_is_not_the_seconds(manager):
    args = CNode()
    args.put(1, Vmo.create(4096))
    domain = sleeper(manager, args=args)
    domain.span(SECOND)
    first, second = domain.status().pids
    inode = os.stat(f"/proc/{first}/fd/3").st_ino
    assert inode not in {os.stat(f"/proc/{second}/fd/{number}").st_ino for number in os.listdir(f"/proc/{second}/fd")}


def test_a_span_that_is_refused_leaves_the_domain_as_it_was(manager, state):
    domain = sleeper(manager)
    before = len(os.listdir(f"/proc/{managed.manager_pid(state)}/fd"))
    for _ in range(3):
        with pytest.raises(ManagerError) as caught:
            domain.span(9999)
        assert caught.value.code == "PROC_MGMT_ERR_INVALID_SPAWND"
    init = managed.init_of(state, domain.id)
    managed.stop(init)  # which does not know, and so the manager does not, when the program ends
    managed.kill(domain.status().pids[0])
    resumed = threading.Timer(0.05, os.kill, (init, signal.SIGCONT))
    resumed.start()
    with pytest.raises(ManagerError) as caught:
        domain.span(SECOND)
    resumed.join()
    assert caught.value.code in ("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", "PROC_MGMT_ERR_SPAWND_REQUEST", "SPAWN_ERR_SPAN")
    assert domain.wait().signal == 9
    managed.wait_until(lambda: len(os.listdir(f"/proc/{managed.manager_pid(state)}/fd")) <= before)


HOSTILE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print("ready", flush=True)
if os.getpid() == 2:
    while True:
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) > 2:
                try:
                    with open(f"/proc/{name}/comm") as file:
                        comm = file.read().strip()
                    found = os.listdir(f"/proc/{name}/fd")
                except OSError:
                    found = []
                if found and comm != "HOSTILE":
                    print("looked into", comm, flush=True)
                if libc.ptrace(0x4206, int(name), 0, 0) == 0:  # PTRACE_SEIZE
                    with open(f"/proc/{name}/comm") as file:
                        print("seized", file.read().strip(), flush=True)
os.read(0, 1)
while True:
    __import__("time").sleep(1000)
"""


def test_what_runs_in_the_cell_cannot_look_into_who_enters(manager):
    python = os.path.realpath(sys.executable)
    home = os.path.dirname(os.path.dirname(python))
    box = Sandbox(read=["/usr", "/bin", "/lib", "/lib64", home], env={"PYTHONHOME": home}, seccomp="off")
    for _ in range(5):
        domain = manager.spawn_program(FIRST, python, ["HOSTILE", "-c", HOSTILE], sandbox=box)
        log = domain.logs(follow=True)
        assert next(log) == b"ready\n"
        domain.span(SECOND)
        lines = [next(log)]
        domain.kill()
        lines += log
        assert lines  # it has looked, or the second has begun
        assert not [line for line in lines if b"looked" in line or (b"seized" in line and b"HOSTILE" not in line)]


def test_what_runs_in_the_cell_and_stops_who_enters_keeps_nobody_from_ending_it(manager):
    script = """
        echo ready
        while :; do for each in /proc/[0-9]*; do n=${each#/proc/}; [ $n -le 2 ] || [ $n = $$ ] || kill -STOP $n 2>/dev/null; done; done
    """
    domain = manager.spawn_program(FIRST, "sh", ["sh", "-c", script], sandbox=SHELL)
    assert next(domain.logs(follow=True)) == b"ready\n"
    told = []
    thread = threading.Thread(target=lambda: told.append(spans(domain)))
    thread.start()
    thread.join()
    assert told[0] in (None, "SPAWN_ERR_SPAN")
    domain.kill()
    assert domain.wait() == ExitStatus(9, "killed", 9)


def spans(domain):
    """The code that it is refused with; None: it was not."""
    try:
        domain.span(SECOND)
    except ManagerError as error:
        return error.code
