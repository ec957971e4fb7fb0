"""Refused: which system call a filter has killed a program for, as far as the kernel tells.

It tells in its log only, and of the process only by number and user: siginfo_t names the call to the process itself, which is
dead. Who may not read the log, and who runs auditd, which takes such records out of it, is told where to look.

Source: seccomp(2), "/proc interfaces"; the kernel's Documentation/ABI/testing/dev-kmsg; audit type 1326 is AUDIT_SECCOMP.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from shoal.sandbox.seccomp import Seccomp, filter_for
from shoal.status import SpawnError

_RECORD = re.compile(rb"type=1326 audit\((\d+\.\d+):\d+\):.* uid=(\d+) .* pid=(\d+) .* arch=([0-9a-f]+) syscall=(\d+) ")
_ARCHS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_TOLERANCE_S = 0.1
_RECORD_BYTES = 8192


class RefusedCall(NamedTuple):
    """What is known of it. `name` is "" where the kernel does not tell."""

    name: str

    def __str__(self) -> str:
        if not self.name:
            return "it made a system call that its filter kills for (SIGSYS); which one, root finds with: dmesg | grep type=1326"
        return f"it was killed for the system call {self.name}, which its filter refuses (SIGSYS)"


def refused_call(pid: int, user: int | None, since: float, mode: str | Seccomp) -> RefusedCall:
    """The call that the first process of a run was killed for.

    Args:
        pid: of the program.
        user: whom it ran as, where that is nobody else: then its children count, too.
        since: when it was started, in seconds since 1970.
        mode: its filter.
    """
    for when, record_user, record_pid, arch, number in _records():
        if when >= since - _TOLERANCE_S and (record_pid == pid or record_user == user):
            return RefusedCall(_name(arch, number, mode))
    return RefusedCall("")


def _records() -> Iterator[tuple[float, int, int, int, int]]:
    """What the log has of killed processes: when, user, pid, architecture, call."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while True:
            try:
                line = os.read(fd, _RECORD_BYTES)
            except BrokenPipeError:
                continue  # overwritten while we looked; the next read is of the oldest that is left
            except OSError:
                return
            if found := _RECORD.search(line):
                yield float(found[1]), int(found[2]), int(found[3]), int(found[4], 16), int(found[5])
    finally:
        os.close(fd)


def _name(arch: int, number: int, mode: str | Seccomp) -> str:
    if arch != _ARCHS.get(os.uname().machine):
        return f"{number} of another architecture"
    try:
        chosen = filter_for(mode)
    except (SpawnError, ValueError):
        chosen = None
    return chosen.name_of(number) if chosen else str(number)
