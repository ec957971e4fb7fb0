"""What a cgroup directory says about itself: who made it, who holds it, was it killed, what it denies.

Kept as extended attributes of the directory, so that they end with it and every process that holds a descriptor
of it reads the same. A process is named by pid namespace, pid and start time, which together are never reused.

Source: xattr(7); kernfs keeps user.* attributes since Linux 5.7.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from typing import NamedTuple

CREATOR = "user.shoal.creator"
KILLED = "user.shoal.killed"
DENY_NEW_PROCESS = "user.shoal.deny-new-process"
LEAF = "user.shoal.leaf"
"""The name of the directory below in which the processes live that are directly in the job, see cgroup_members.py."""
_HELD = "user.shoal.held."

_INITIAL_PIDNS = 0xEFFFFFFC
_NAME = re.compile(r"shoal-(\d+)-(\d+)-(\d+|self)")


class Creator(NamedTuple):
    """One process of this machine."""

    pidns: int
    pid: int
    start: int

    @classmethod
    def current(cls) -> Creator:
        return _current(os.getpid())

    @classmethod
    def parse(cls, text: str) -> Creator | None:
        try:
            pidns, pid, start = map(int, text.split("."))
        except ValueError:
            return None
        return cls(pidns, pid, start)

    def __str__(self) -> str:
        return f"{self.pidns}.{self.pid}.{self.start}"

    def is_dead(self) -> bool:
        """Is it certain that this process has ended? One we cannot see counts as alive."""
        current = Creator.current()
        if not current.start or not self.start:
            return False  # there is no /proc to look at
        if self.pidns == current.pidns:
            return _start_time(self.pid) != self.start
        # Only from the initial namespace can every other one be seen.
        return current.pidns == _INITIAL_PIDNS and not _namespace_lives(self.pidns)


def made_by_shoal(fd: int) -> bool:
    """Was this directory made by shoal, in any process?"""
    return get_mark(fd, CREATOR) is not None


def creator_of(fd: int, name: str) -> Creator | None:
    """Who made this directory, or None when it was not shoal or cannot be told."""
    if (text := get_mark(fd, CREATOR)) is not None:
        return Creator.parse(text)
    current = Creator.current()
    # Made by a process that ended before it could mark it, or the tree keeps no attributes.
    if (match := _NAME.fullmatch(name)) and current.pidns == _INITIAL_PIDNS:
        return Creator(current.pidns, int(match[1]), int(match[2]))
    return None


def looks_like_ours(name: str) -> bool:
    """Is this a name that shoal gives, and so takes as its own?"""
    return _NAME.fullmatch(name) is not None


def hold(fd: int) -> None:
    """Note that this process uses the directory, so that its maker does not remove it."""
    set_mark(fd, _HELD + str(Creator.current()))


def let_go(fd: int) -> None:
    """Undo `hold()`."""
    with contextlib.suppress(OSError):
        os.removexattr(fd, _HELD + str(Creator.current()))


def is_held_by_others(fd: int) -> bool:
    """Does another living process use the directory?"""
    try:
        names = os.listxattr(fd)
    except OSError:
        return False
    holders = [Creator.parse(name.removeprefix(_HELD)) for name in names if name.startswith(_HELD)]
    current = Creator.current()
    return any(holder is not None and holder != current and not holder.is_dead() for holder in holders)


def set_mark(fd: int, name: str, value: str = "1") -> bool:
    """Set one; False when the tree keeps none or we may not."""
    try:
        os.setxattr(fd, name, value.encode())
    except OSError:
        return False
    return True


def get_mark(fd: int, name: str) -> str | None:
    try:
        return os.getxattr(fd, name).decode("ascii", "replace")
    except OSError:
        return None


@functools.lru_cache(maxsize=1)
def _current(pid: int) -> Creator:
    try:
        return Creator(os.stat("/proc/self/ns/pid").st_ino, pid, _start_time(pid) or 0)
    except OSError:
        return Creator(0, pid, 0)


def _start_time(pid: int) -> int | None:
    """Start time in clock ticks, None when there is no such process or only its zombie.

    One whose first thread has ended shows the state of a zombie, too, but has other threads: proc_pid_stat(5).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1 else int(fields[19])


def _namespace_lives(pidns: int) -> bool:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}/ns/pid").st_ino == pidns:
                    return True
            except PermissionError:
                return True  # it may be this one
            except OSError:
                continue
    return False
