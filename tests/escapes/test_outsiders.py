"""Other processes of the machine: they cannot be looked into, changed or signalled, and have no names inside."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import pytest
from attempts import AT_FDCWD, SECRET, Given

PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
PRIO_PROCESS, PRIO_USER = 0, 2
F_SETOWN = 8


def looks(pid, address):
    """Ways into a process, and what they give when they are open."""
    return {
        "ptrace": (("ptrace", PTRACE_SEIZE, pid, 0, 0),),
        "process_vm_readv": (("peek", pid, address, bytes(len(SECRET))),),
        "kcmp": (("kcmp", pid, pid, 0, 0, 0),),
        "pidfd": (("pidfd_open", pid, 0), ("pidfd_send_signal", Given(1), 0, 0, 0)),
        "memory": (
            ("openat", AT_FDCWD, f"/proc/{pid}/mem", os.O_RDWR),
            ("lseek", Given(1), address, os.SEEK_SET),
            ("read", Given(1), bytes(len(SECRET)), len(SECRET)),
        ),
        "root": (("openat", AT_FDCWD, f"/proc/{pid}/root/etc/passwd", os.O_RDONLY),),
        "signal": (("kill", pid, 0),),
        "limits": (("prlimit64", pid, 7, 0, bytes(16)),),
        "priority": (("setpriority", PRIO_PROCESS, pid, 1),),
    }


@pytest.mark.cell
def test_a_process_outside_cannot_be_looked_into(outside, inside, target):
    for way, steps in looks(*target).items():
        outcomes = outside.calls(*steps)
        assert [outcome.errno for outcome in outcomes] == [0] * len(steps), way
        if outcomes[-1].data:
            assert outcomes[-1].data in (SECRET, bytes(16)) or way == "limits"
    refused = dict.fromkeys(looks(*target), errno.ESRCH) | {"memory": errno.ENOENT, "root": errno.ENOENT}
    filtered = refused | dict.fromkeys(("ptrace", "process_vm_readv", "kcmp"), errno.EPERM)
    for way, steps in looks(*target).items():
        assert inside.errnos(*steps)[0] == filtered[way], way
        assert inside.but(seccomp="off").errnos(*steps)[0] == refused[way], way


@pytest.mark.cell
def test_the_first_process_of_the_cell_is_no_way_out_either(inside):
    """It is the one process inside that has other files at hand."""
    for way, steps in looks(1, 4096).items():
        if way in ("limits", "priority", "pidfd", "kcmp"):
            continue
        refused = {errno.EPERM, errno.EACCES, errno.EROFS}
        if way == "signal" and not inside.is_scoped and not inside.has_own_user:
            refused = {0}  # it may, but from inside a namespace no signal means anything to its first process
        assert inside.errnos(*steps)[0] in refused, way
        assert inside.but(seccomp="off").errnos(*steps)[0] in refused, way


@pytest.mark.cell
def test_nobody_outside_is_signalled(outside, inside):
    """By number, by group, all at once, or by the first process of the cell."""
    group = subprocess.Popen([outside.program, "target"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    with group:
        assert group.stdout.readline().startswith(b"target")
        assert outside.errnos(("kill", group.pid, 0), ("kill", -group.pid, 0)) == [0, 0]
        own = os.getpgid(0)
        kill = (
            ("kill", group.pid, signal.SIGKILL),
            ("kill", -group.pid, signal.SIGKILL),
            ("kill", -own, signal.SIGKILL),
            ("kill", os.getppid(), signal.SIGKILL),
            ("fcntl", 1, F_SETOWN, group.pid),
            ("kill", -1, signal.SIGKILL),
            ("kill", 1, signal.SIGKILL),
            ("kill", 1, signal.SIGSTOP),
            ("getppid",),
        )
        for filtered in ("default", "off"):
            outcomes = inside.but(seccomp=filtered).calls(*kill)
            *others, kill_first, stop_first, parent = (outcome.errno for outcome in outcomes)
            assert others == [errno.ESRCH] * 6
            # To the first process of a namespace these two mean nothing when they come from inside.
            assert {kill_first, stop_first} <= {errno.EPERM, 0}
            assert (parent, outcomes[-1].value) == (0, 0)
        assert group.poll() is None
        group.stdin.close()
        assert group.wait(30) == 0


@pytest.mark.cell
def test_a_signal_to_its_own_group_or_to_everybody_stays_in_the_cell(inside):
    """The group and session of a program are its own: the caller's are not reached by numbers that mean "mine"."""
    assert inside.run("call", "kill", 0, signal.SIGKILL.value).returncode == -signal.SIGKILL


@pytest.mark.cell
def test_processes_of_the_same_user_outside_keep_their_priority(outside, inside):
    """By user: when the program runs as its caller, the kernel knows no other difference than who is to be seen."""
    everybody = ("setpriority", PRIO_USER, 0, 19)
    with outside.held(("getpid",)) as other:
        before = os.getpriority(os.PRIO_PROCESS, other.outcomes[0].value)
        assert inside.errno(*everybody) == 0
        assert os.getpriority(os.PRIO_PROCESS, other.outcomes[0].value) == before < 19


ENVIRONMENT = """
from attempts import Ground

found = []
for box, how in ((None, {"env": {}}), (args[0], {})):
    report = Ground(workload, box).attack("environments", "not-for-" + "children", **how)
    assert report.all("looked") == [[]]
    found.append([place for place, in report.all("found")])
answer([os.getpid(), *found])
"""


@pytest.mark.cell
def test_the_environment_of_the_caller_is_not_read(inside, run_attacks, monkeypatch):
    """Also not by /proc/PPID/environ: there is no such process inside."""
    monkeypatch.setenv("SHOAL_TEST_SECRET", "not-for-children")
    caller, outside_found, inside_found = run_attacks(ENVIRONMENT, inside.box)
    assert f"/proc/{caller}/environ" in outside_found
    assert inside_found == []
