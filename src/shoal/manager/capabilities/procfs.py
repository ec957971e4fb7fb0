"""Procfs: one process as /proc tells of it, and never another one that has its number by now.

A directory of /proc belongs to a process, not to a number: once it is open, what is read below it is that process's, or nothing when it
has ended. So the directory is opened first; whose it is, is looked at afterwards and through it.

Nothing is asked of the files a process has open, only of the kernel's notes on them: a file system that does not answer cannot keep us.

Source: proc(5), and the pages on each of its files; user_namespaces(7).
"""

from __future__ import annotations

import os
import re
from types import TracebackType
from typing import Final, Self

from shoal.manager.capabilities.kinds import text
from shoal.manager.capabilities.mounts import MountPoint, parse_mountinfo

NAMESPACES: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
_INODE: Final = re.compile(r"[a-z_]+:\[([0-9]+)\]")
_LIMIT: Final = re.compile(r"(\S(?:.*?\S)?) {2,}(\S+) +(\S+)(?: +\S+)?\s*")

# As /proc/PID/limits calls them; the numbers of setrlimit(2), which are the same on x86-64 and aarch64.
LIMITS: Final = {
    "Max cpu time": 0,
    "Max file size": 1,
    "Max data size": 2,
    "Max stack size": 3,
    "Max core file size": 4,
    "Max resident set": 5,
    "Max processes": 6,
    "Max open files": 7,
    "Max locked memory": 8,
    "Max address space": 9,
    "Max file locks": 10,
    "Max pending signals": 11,
    "Max msgqueue size": 12,
    "Max nice priority": 13,
    "Max realtime priority": 14,
    "Max realtime timeout": 15,
}


class ProcessDirectory:
    """The directory of one process, open. To be used in a `with` statement.

    Raises:
        OSError: there is no such process, or its directory is hidden from us.
    """

    def __init__(self, pid: int | str) -> None:
        self._fd = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)

    def read(self, name: str) -> str:
        """The whole of a file. Raises OSError."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            parts = []
            while part := os.read(fd, 1 << 16):
                parts.append(part)
        finally:
            os.close(fd)
        return text(b"".join(parts))

    def link(self, name: str) -> str:
        """Where a link leads. Raises OSError."""
        return text(os.readlink(name, dir_fd=self._fd))

    def names(self, name: str) -> list[str]:
        """What is in a directory. Raises OSError."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def open(self, name: str) -> int:
        """A descriptor of one of its files, such as a namespace; the caller's. Raises OSError."""
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)

    def status(self) -> dict[str, str]:
        """The fields of `status`. Raises OSError."""
        return {name: value.strip() for name, _, value in (line.partition(":") for line in self.read("status").splitlines())}

    def stat_fields(self) -> list[str]:
        """The fields of `stat` after the name: the first is the state, the second the parent. Raises OSError."""
        return self.read("stat").rpartition(")")[2].split()

    def namespaces(self) -> dict[str, int]:
        """The inode of each of its namespaces that we may see."""
        found = {}
        for name in NAMESPACES:
            try:
                match = _INODE.fullmatch(self.link(f"ns/{name}"))
            except OSError:
                continue
            if match:
                found[name] = int(match[1])
        return found

    def limits(self) -> dict[int, tuple[int | None, int | None]]:
        """Soft and hard limits by their number; None: unlimited. Raises OSError."""
        found = {}
        for line in self.read("limits").splitlines()[1:]:
            match = _LIMIT.fullmatch(line)
            if match and match[1] in LIMITS:
                soft, hard = (None if word == "unlimited" else int(word) for word in (match[2], match[3]))
                found[LIMITS[match[1]]] = (soft, hard)
        return found

    def mounts(self) -> tuple[MountPoint, ...]:
        """What is mounted in its world. Raises OSError."""
        return parse_mountinfo(self.read("mountinfo"))

    def cgroup(self) -> str:
        """Its cgroup in the v2 tree, as seen from our cgroup namespace; empty: none. Raises OSError."""
        return next((line[3:] for line in self.read("cgroup").splitlines() if line.startswith("0::")), "")

    def children(self) -> list[int]:
        """The processes it started, that still are. Raises OSError."""
        return [int(word) for tid in self.names("task") for word in self.read(f"task/{tid}/children").split()]

    def interfaces(self) -> list[str]:
        """The network interfaces of its network namespace. Raises OSError."""
        return [line.partition(":")[0].strip() for line in self.read("net/dev").splitlines()[2:]]

    def numbers(self, name: str) -> list[int]:
        """What is in a directory of numbers, such as the descriptors of a thread; none when that has ended. Raises OSError."""
        try:
            return sorted(int(word) for word in self.names(name))
        except (FileNotFoundError, ProcessLookupError):
            return []
