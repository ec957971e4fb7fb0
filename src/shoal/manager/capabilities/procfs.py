"""Procfs: one process as /proc tells of it, and never another one that has its number by now.

A directory of /proc belongs to a process, not to a number: once it is open, what is read below it is that process's, or nothing when it
has ended. So the directory is opened first; whose it is, is looked at afterwards and through it.

Nothing is asked of the files a process has open, only of the kernel's notes on them: a file system that does not answer cannot keep us.

Source: proc(5), and the pages on each of its files; user_namespaces(7).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
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
        self._thread = ""
        """Where to read: below this directory. The first thread may end while others go on; what it had is then told of those only."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)

    def lives(self) -> bool:
        """Whether it has not ended, nor begun to. From then on what is read is of a thread that lives."""
        try:
            threads = ["", *(f"task/{tid}/" for tid in self.threads())]
        except OSError:
            return False
        for self._thread in threads:
            try:
                if self.stat_fields()[0] not in ("Z", "X") and "VmSize" in self.status():  # without memory it is about to end
                    return True
            except OSError:
                continue
        return False

    def threads(self) -> list[str]:
        """The numbers of its threads. Raises OSError."""
        fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def read(self, name: str) -> str:
        """The whole of a file. Raises OSError."""
        fd = os.open(self._thread + name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            parts = []
            while part := os.read(fd, 1 << 16):
                parts.append(part)
        finally:
            os.close(fd)
        return text(b"".join(parts))

    def link(self, name: str) -> str:
        """Where a link leads. Raises OSError."""
        return text(os.readlink(self._thread + name, dir_fd=self._fd))

    def descriptors(self, tid: str) -> list[int]:
        """The numbers of a thread's open descriptors; none when it has ended. Raises OSError."""
        try:
            fd = os.open(f"task/{tid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except (FileNotFoundError, ProcessLookupError):
            return []
        except PermissionError:
            if self._has_ended(tid):
                return []
            raise
        try:
            return sorted(int(name) for name in os.listdir(fd))
        except ProcessLookupError:
            return []
        finally:
            os.close(fd)

    def _has_ended(self, tid: str) -> bool:
        """Whether a thread is gone, though it may be kept in the list for its process's sake: then nobody may look at it."""
        thread, self._thread = self._thread, f"task/{tid}/"
        try:
            return self.stat_fields()[0] in ("Z", "X")
        except (FileNotFoundError, ProcessLookupError):
            return True
        finally:
            self._thread = thread

    def descriptor(self, tid: str, number: int) -> tuple[str, dict[str, str]]:
        """Where a thread's descriptor leads, and what `fdinfo` tells of it. Raises OSError."""
        thread, self._thread = self._thread, f"task/{tid}/"
        try:
            link, info = self.link(f"fd/{number}"), self.read(f"fdinfo/{number}")
        finally:
            self._thread = thread
        return link, {name: value.strip() for name, _, value in (line.partition(":") for line in info.splitlines())}

    def open(self, name: str) -> int:
        """A descriptor of one of its files, such as a namespace; the caller's. Raises OSError."""
        return os.open(self._thread + name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)

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
        found: list[int] = []
        for tid in self.threads():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                fd = os.open(f"task/{tid}/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
                with open(fd, encoding="ascii") as file:
                    found += map(int, file.read().split())
        return found

    def interfaces(self) -> list[str]:
        """The network interfaces of its network namespace. Raises OSError."""
        return [line.partition(":")[0].strip() for line in self.read("net/dev").splitlines()[2:]]
