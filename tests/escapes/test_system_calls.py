"""System calls: none that was promised to be closed is open under another number, another ABI, or with bits that the kernel ignores.

The kernel is asked what it does with each number from 0 to 600 when the arguments mean nothing. Inside, each has to be refused, or to
do what it does outside.
"""

from __future__ import annotations

import errno
import os
import signal

import pytest
from attempts import Given

from shoal.sandbox.seccomp import filter_for
from shoal.sandbox.syscalls import number_of

MACHINE = os.uname().machine
LAST = 600
X32 = 0x40000000
HIGH = 1 << 32
NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x80, 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
SIGCHLD = signal.SIGCHLD.value

only_x86_64 = pytest.mark.skipif(MACHINE != "x86_64", reason="needs an x86-64 kernel")

LEFT_OUT = [number for name in ("vfork", "vhangup", "sync") if (number := number_of(name, MACHINE)) is not None]
"""vfork lends the stack; the others act on the whole machine when they are open."""

RESTARTING = number_of("restart_syscall", MACHINE)
"""Without anything to restart it is EINTR; a wait that was interrupted in a process before the fork looks for memory of that one."""

SELF_CONFINING = number_of("landlock_restrict_self", MACHINE)
"""It takes no_new_privs or a capability. A program outside may have neither; inside it fails for its arguments alone."""


def sweep(ground):
    """What became of each number: "ok", an errno, or ("signal", N) and ("exit", N)."""
    report = ground.attack("sweep", 0, LAST, *LEFT_OUT)
    assert report.returncode == 0
    found = {}
    for number, what, *more in report.lines:
        found[int(number)] = "ok" if what == "ok" else int(what) if what.isdigit() else (what, int(more[0]))
    assert sorted(found) == [number for number in range(LAST + 1) if number not in LEFT_OUT]
    if found.get(RESTARTING) == errno.EFAULT:
        found[RESTARTING] = errno.EINTR
    return found


def sweep_outside(outside):
    """What becomes of each number without confinement, for a program that has no_new_privs."""
    found = sweep(outside)
    if found.get(SELF_CONFINING) == errno.EPERM:
        found[SELF_CONFINING] = errno.EINVAL
    return found


def test_every_number_is_refused_or_does_what_it_does_outside(outside, inside):
    expected, refused = sweep_outside(outside), (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)
    chosen = filter_for("default")
    closed = {number_of(name, MACHINE) for name in chosen.denied}
    for number, became in sweep(inside).items():
        name = chosen.name_of(number)
        if number in closed:
            assert became in (errno.EPERM, errno.ENOSYS), (number, name)
        else:
            assert became in (*refused, expected[number]), (number, name, expected[number])


@pytest.mark.cell
def test_every_number_is_refused_or_does_what_it_does_outside_without_the_filter(outside, inside):
    """The kernel says EPERM before it looks at arguments that only privileged callers may give, or after."""
    expected, unfiltered = sweep_outside(outside), sweep(inside.but(seccomp="off"))
    different = {number: became for number, became in unfiltered.items() if became != expected[number]}
    assert set(different.values()) <= {errno.EPERM, errno.EACCES, errno.EROFS}, different


def test_numbers_that_no_table_knows_answer_as_if_the_kernel_did_not_have_them(inside):
    for numbers in ([500, 512, 547, 600, 1000, 4096], [0x7FFFFFFF, 0x3FFFFFFF, 1 << 20]):
        assert inside.errnos(*((number,) for number in numbers)) == [errno.ENOSYS] * len(numbers)


@only_x86_64
def test_calls_of_the_x32_machine_are_not_there(outside, inside):
    for number in (39, 59, 101, 165, 272, 425, 520, 547):
        assert inside.errno(X32 | number) == errno.ENOSYS
    assert outside.errno(X32 | 101) in (errno.ENOSYS, errno.ESRCH, errno.EPERM, 0)  # most kernels have it not


@only_x86_64
def test_calls_of_the_32_bit_machine_kill(outside, inside):
    """The same numbers mean other calls there, so that a filter of numbers would close the wrong ones."""
    done = outside.run("int80")
    if done.returncode == -signal.SIGSEGV:
        pytest.skip("needs a kernel with the 32-bit ABI")
    assert done.returncode == 0
    result = inside.run("int80")
    assert (result.returncode, result.reason, result.stdout) == (-signal.SIGSYS, "signaled", b"")
    strict = inside.but(seccomp="strict").run("int80")
    assert strict.returncode == -signal.SIGSYS


@pytest.mark.cell
def test_no_namespace_can_be_made_or_entered_in_any_way(outside, inside):
    kinds = (NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET)
    ways = [("unshare", kind) for kind in (*kinds, NEWTIME)]
    ways += [("unshare", NEWUSER | kind) for kind in kinds]
    ways += [("clone", kind | SIGCHLD, 0, 0, 0, 0) for kind in kinds]
    ways += [("clone", HIGH | kind | SIGCHLD, 0, 0, 0, 0) for kind in kinds]
    for way in (("unshare", NEWUSER), ("clone", NEWUSER | SIGCHLD, 0, 0, 0, 0), ("clone", HIGH | NEWUSER | SIGCHLD, 0, 0, 0, 0)):
        assert outside.errno(*way) == 0
    assert inside.errnos(*ways) == [errno.EPERM] * len(ways)
    assert inside.errnos(("unshare", HIGH | NEWUSER), ("unshare", HIGH)) == [errno.EPERM, errno.EINVAL]
    assert inside.errno("clone3", (NEWUSER).to_bytes(8, "little") + bytes(80), 88) == errno.ENOSYS
    enter = (("openat", -100, "/proc/self/ns/user", os.O_RDONLY), ("setns", Given(1), 0), ("pidfd_open", 1, 0), ("setns", Given(3), NEWNS))
    assert inside.errnos(*enter) == [0, errno.EPERM, 0, errno.EPERM]
    assert inside.but(seccomp="off").errnos(*enter)[1::2] == [errno.EINVAL, errno.EPERM]


def test_what_confines_a_program_is_not_taken_off(inside):
    """No other mode of seccomp, no end of no_new_privs, nothing put back into the bounding set."""
    set_seccomp, set_no_new_privs, drop_from_bounding_set, ambient = 22, 38, 24, 47
    steps = (
        ("prctl", set_seccomp, 0, 0, 0, 0),
        ("prctl", set_no_new_privs, 0, 0, 0, 0),
        ("prctl", drop_from_bounding_set, 21, 0, 0, 0),
        ("prctl", ambient, 2, 21, 0, 0),
    )
    assert inside.errnos(*steps) == [errno.EINVAL, errno.EINVAL, errno.EPERM, errno.EPERM]
    assert inside.enforced["no_new_privs"] is True
    assert inside.enforced["capabilities"] is True
    assert inside.enforced["seccomp"] == "default"
