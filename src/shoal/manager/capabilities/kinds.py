"""Kinds: what an open descriptor is, from the link the kernel shows for it. No file system is asked, so nothing can hang."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from typing import Final

_ANONYMOUS: Final = re.compile(r"(pipe|socket|pidfd|net|mnt|pid|user|uts|ipc|cgroup|time):\[([0-9]+)\]|anon_inode:(?:\[([^\]]*)\]|(.*))")
_ACCESS: Final = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}
DELETED: Final = " (deleted)"


def text(data: str | bytes) -> str:
    """As text that JSON and every terminal takes: what is no UTF-8 is spelled out, as \\xff."""
    return os.fsencode(data).decode("utf-8", "backslashreplace")


def access_of(flags: int) -> str:
    """What an open file allows, by the flags it was opened with: "r", "w", "rw" or "path"."""
    return "path" if flags & os.O_PATH else _ACCESS.get(flags & os.O_ACCMODE, "r")


def kind_of(link: str) -> tuple[str, int]:
    """The kind of an open file and, where the link tells, its inode number.

    Args:
        link: of /proc/PID/fd.
    Returns:
        "pipe", "socket", a namespace such as "net namespace", "memory", what an anonymous inode is for ("eventfd"), or "file".
    """
    found = _ANONYMOUS.fullmatch(link)
    if found is None:
        return ("memory" if link.startswith("/memfd:") and link.endswith(DELETED) else "file"), 0
    if found[1] is not None:
        return (found[1] if found[1] in ("pipe", "socket", "pidfd") else f"{found[1]} namespace"), int(found[2])
    return found[3] or found[4] or "object", 0


def what_is_open(fd: int) -> tuple[str, str, int, int, str]:
    """One of this process's own descriptors: its kind, where it leads, which device and inode, and what it allows."""
    found = os.fstat(fd)
    try:
        link = text(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:  # there is no /proc
        link = ""
    kind, _ = kind_of(link)
    if kind == "file":
        mode = found.st_mode
        kind = "directory" if stat.S_ISDIR(mode) else "device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "file"
        kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else kind
    return kind, link, found.st_dev, found.st_ino, access_of(fcntl.fcntl(fd, fcntl.F_GETFL))
