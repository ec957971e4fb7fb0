"""Refused: which system call a filter has killed a program for, as far as the kernel tells.

It tells in its log only, and of the process only by number and user: siginfo_t names the call to the process itself, which is
dead. Who may not read the log, and who runs auditd, which takes such records out of it, is told where to look. Those numbers are
the ones of the machine, so in a pid namespace of our own they say nothing about our children.

Source: seccomp(2), "/proc interfaces"; the kernel's Documentation/ABI/testing/dev-kmsg; audit type 1326 is AUDIT_SECCOMP.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator

from shoal.handles.deadline import Deadline
from shoal.privileges import is_initial_user_namespace
from shoal.sandbox.seccomp import Seccomp, filter_for
from shoal.status import SpawnError

_RECORD = re.compile(rb"type=1326 audit\((\d+\.\d+):\d+\):.* uid=(\d+) .* pid=(\d+) .* arch=([0-9a-f]+) syscall=(\d+) ")
_ARCHS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_TOLERANCE_S = 0.1
_RECORD_BYTES = 8192
_LATE_S = 0.05
"""How long a record may take to get into the log: a thread of the kernel's writes it."""
_INITIAL_PIDNS = "pid:[4026531836]"


def refused_call(pid: int, user: int | None, since: float, mode: str | Seccomp) -> str:
    """The name of the call that the first process of a run was killed for; "" where the kernel does not tell.

    Args:
        pid: of the program.
        user: whom it ran as, where that is nobody else: then its children count, too.
        since: when it was started, in seconds since 1970.
        mode: its filter.
    """
    try:
        known_by_pid = os.readlink("/proc/self/ns/pid") == _INITIAL_PIDNS
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    known_by_user = user is not None and is_initial_user_namespace()
    try:
        deadline = Deadline(_LATE_S)
        while True:
            for when, record_user, record_pid, arch, number in _records(log):
                ours = (known_by_pid and record_pid == pid) or (known_by_user and record_user == user)
                if ours and when >= since - _TOLERANCE_S:
                    return _name(arch, number, mode)
            if not deadline.wait_ready(log, select.POLLIN):
                return ""
    finally:
        os.close(log)


def _records(log: int) -> Iterator[tuple[float, int, int, int, int]]:
    """What the log has, from where it was read last, of killed processes: when, user, pid, architecture, call."""
    while True:
        try:
            line = os.read(log, _RECORD_BYTES)
        except BrokenPipeError:
            continue  # overwritten while we looked; the next read is of the oldest that is left
        except OSError:
            return
        if found := _RECORD.search(line):
            yield float(found[1]), int(found[2]), int(found[3]), int(found[4], 16), int(found[5])


def _name(arch: int, number: int, mode: str | Seccomp) -> str:
    if arch != _ARCHS.get(os.uname().machine):
        return f"{number} of another architecture"
    try:
        chosen = filter_for(mode)
    except (SpawnError, ValueError):
        chosen = None
    return chosen.name_of(number) if chosen else str(number)
