"""Room: whether the machine lets us have the processes of another domain, found out before there are none left.

Where a limit of processes is reached, nothing can be started any more, not even what would end something. So a domain is refused while
there are some left, with the name of the limit.

Source: proc_loadavg(5), proc_sys_kernel(5), pid_namespaces(7); pids.max in the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from shoal.handles.hierarchy import Home, find_home, v1_controllers
from shoal.manager.errors import ManagerError

SPARE_MOST: Final = 256
"""Processes that are left for everything else, of many; of few, a tenth."""
_OF_A_DOMAIN: Final = 4
"""Its init, its program, and in a cell what holds that; and one more."""
_FIRST_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO: the pid namespace that the machine was started with


class Limit(NamedTuple):
    """One limit of processes.

    Attributes:
        name: of what is to be raised. most: it allows so many. used: there are so many.
    """

    name: str
    most: int
    used: int

    @property
    def free(self) -> int:
        """How many may be made before only the spare ones are left; less than one: none."""
        return self.most - self.used - min(SPARE_MOST, self.most // 10)


class Room:
    """Looks at the limits again when what was free might be used up: not for every domain, since it takes a while where many run."""

    def __init__(self) -> None:
        self._until_next = 0

    def check(self) -> None:
        """
        Raises:
            ManagerError: another domain would hit a limit; says which.
        """
        self._until_next -= 1
        if self._until_next > 0:
            return
        nearest = min(limits(), key=lambda limit: limit.free, default=None)
        if nearest is None:
            return
        if nearest.free < _OF_A_DOMAIN:
            count = f"{nearest.used} of {nearest.most} processes and threads that {nearest.name} allows"
            raise ManagerError("SPAWN_ERR_DOMAIN_ALLOCATE", f"no room for another domain: there are {count}; end some, or raise it")
        self._until_next = nearest.free // (4 * _OF_A_DOMAIN)  # others make processes, too


def limits() -> Iterator[Limit]:
    """Those of this machine, of our pid namespace, and of the cgroups we are in. What cannot be read is no limit here."""
    with suppress(OSError, ValueError, IndexError):
        threads = _threads_of_the_machine()
        yield Limit("kernel.threads-max", _number("/proc/sys/kernel/threads-max"), threads)
        is_first = os.stat("/proc/self/ns/pid").st_ino == _FIRST_NAMESPACE
        yield Limit("kernel.pid_max", _number("/proc/sys/kernel/pid_max"), threads if is_first else _threads_that_we_see())
    for directory in _cgroups():
        with suppress(OSError, ValueError):  # "max" is no number
            yield Limit(f"{directory}/pids.max", _number(f"{directory}/pids.max"), _number(f"{directory}/pids.current"))


def _number(path: str) -> int:
    with open(path, "rb") as file:
        return int(file.read())


def _threads_of_the_machine() -> int:
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[3].partition(b"/")[2])


def _threads_that_we_see() -> int:
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(FileNotFoundError):
                count += os.stat(f"/proc/{name}/task").st_nlink - 2
    return count


def _cgroups() -> Iterator[str]:
    """The directories of those we are in that can limit processes, up to where we see them."""
    home = find_home()
    if isinstance(home, Home):
        yield from _with_above(home.path)
    point = v1_controllers().get("pids")
    if point is not None:
        with suppress(OSError), open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if "pids" in controllers.split(","):
                    yield from _with_above(os.path.join(point, path.lstrip("/")))


def _with_above(path: str) -> Iterator[str]:
    path = path.rstrip("/")
    while os.path.exists(f"{path}/cgroup.procs"):
        yield path
        path = os.path.dirname(path)
