"""Pidfd: what the kernel tells of the process behind one, beyond waiting for it.

Newer kernels answer an ioctl; older ones have /proc, where a pid has to be looked up. A look at /proc is believed only if the
process was still there afterwards: its pid cannot have become somebody else's in between.

Source: pidfd_open(2), ioctl_pidfd(2), proc_pid_stat(5).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal as signals
import struct
import time
from typing import NamedTuple

from shoal.handles.deadline import is_ready
from shoal.handles.threads import folder_of

_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info), first version: 64 bytes
_PIDFD_INFO = struct.Struct("=QQIIIIIIIIIIIi")  # mask, cgroup id, pid, tgid, ..., exit code
_PIDFD_INFO_EXIT = 1 << 3
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def get_info(pidfd: int, mask: int = 0) -> tuple[int, ...] | None:
    """struct pidfd_info (Linux 6.13 and later), or None."""
    buffer = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(buffer, 0, mask, *(0,) * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    return _PIDFD_INFO.unpack(buffer)


def reaped_status(pidfd: int) -> int | None:
    """The wait status of a reaped process, which Linux 6.15 and later keep with the pidfd."""
    info = get_info(pidfd, _PIDFD_INFO_EXIT)
    return None if info is None or not info[0] & _PIDFD_INFO_EXIT else info[-1]


def zombie_status(pidfd: int) -> int | None:
    """The wait status of somebody else's child that nobody has reaped yet, where we may see it."""
    pid = pid_of(pidfd)
    try:
        # /proc shows 0 to those who may not look; this link shows whether we may.
        os.readlink(f"/proc/{pid}/ns/pid")
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        signals.pidfd_send_signal(pidfd, 0)  # still there after the look, so it was this one we saw
    except PermissionError:
        return None
    except OSError:
        return None
    return int(fields[49]) if fields[0] == b"Z" else None


def pid_of(pidfd: int) -> int:
    """The pid behind a pidfd, 0 when it is reaped or lives in a world we cannot see."""
    info = get_info(pidfd)
    if info is not None:
        return info[2]
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            for line in file:
                if line.startswith(b"Pid:"):
                    return max(0, int(line[4:]))
    except OSError:
        pass
    return 0


class Stat(NamedTuple):
    """What /proc tells of a live process."""

    name: str
    stopped: bool
    started_at: float
    user_s: float
    system_s: float
    max_memory_bytes: int


def read_stat(pidfd: int, pid: int) -> Stat | None:
    """What /proc tells, or None when there is no /proc or the process has ended."""
    if pid <= 0:
        return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
        with open(f"{folder_of(pid)}/status", "rb") as file:
            memory = [line.split()[1] for line in file if line.startswith(b"VmHWM:")]
    except OSError:
        return None
    if is_ready(pidfd, select.POLLIN):  # alive after the look, so the pid was its own all the time
        return None
    fields = after.split()
    up_to_now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return Stat(
        name=before.partition(b"(")[2].decode("utf-8", "replace"),
        stopped=fields[0] in (b"T", b"t"),
        started_at=time.time() - up_to_now + int(fields[19]) / _TICKS_PER_S,
        user_s=int(fields[11]) / _TICKS_PER_S,
        system_s=int(fields[12]) / _TICKS_PER_S,
        max_memory_bytes=int(memory[0]) * 1024 if memory else 0,
    )


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
