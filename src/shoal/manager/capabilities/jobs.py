"""Jobs: what the kernel enforces for all of a job together, read from its cgroup and from those above it.

A limit above holds for what is below, so the lowest counts. Read by descriptor, from the job upwards to where the tree ends for us.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from shoal.handles.cgroup_files import exists, open_parent, read_text
from shoal.manager.capabilities.kinds import text
from shoal.manager.capabilities.mounts import MountPoint, holder
from shoal.manager.capabilities.observed import ObservedJob, numbers_of

_HIGHEST: Final = 64
"""The tree is never as high; but a loop has to end."""


def job_of(fd: int, mounts: tuple[MountPoint, ...]) -> ObservedJob:
    """What holds for the job of a cgroup directory.

    Args:
        mounts: ours, which tell where the directory is in its tree.
    Raises:
        OSError: it is gone.
    """
    os.stat("cgroup.procs", dir_fd=fd)
    memory: list[int] = []
    swap: list[int] = []
    pids: list[int] = []
    cpus: list[float] = []
    io: dict[str, int] = {}
    for level in _upwards(fd):
        memory += _limit(level, "memory.max")
        swap += _limit(level, "memory.swap.max")
        pids += _limit(level, "pids.max")
        cpus += _cpus(level)
        for device, rate in _io(level).items():
            io[device] = min(rate, io.get(device, rate))
    return ObservedJob(
        path_of(fd, mounts) or "",
        min(memory, default=None),
        min(swap, default=None),
        min(pids, default=None),
        min(cpus, default=None),
        io,
        numbers_of(_text(fd, "cpuset.cpus.effective")),
        next(iter(_limit(fd, "memory.current")), None),
        next(iter(_limit(fd, "pids.current")), None),
    )


def path_of(fd: int, mounts: tuple[MountPoint, ...]) -> str | None:
    """The path in the v2 tree as /proc/PID/cgroup would call it. None: it is not to be seen from here."""
    try:
        where = text(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        return None
    found = holder([mount for mount in mounts if mount.fstype == "cgroup2"], where)
    return None if found is None else found.shows(where)


def _upwards(fd: int) -> Iterator[int]:
    yield fd
    level = fd
    owned = -1
    try:
        for _ in range(_HIGHEST):
            try:
                above = open_parent(level)
            except OSError:
                return
            if owned >= 0:
                os.close(owned)
            level = owned = above
            if not exists(level, "cgroup.procs"):
                return
            yield level
    finally:
        if owned >= 0:
            os.close(owned)


def _text(fd: int, name: str) -> str:
    try:
        return read_text(fd, name).strip()
    except OSError:
        return ""


def _limit(fd: int, name: str) -> list[int]:
    word = _text(fd, name)
    return [int(word)] if word.isdecimal() else []


def _cpus(fd: int) -> list[float]:
    quota, _, period = _text(fd, "cpu.max").partition(" ")
    return [int(quota) / int(period)] if quota.isdecimal() and period.isdecimal() else []


def _io(fd: int) -> dict[str, int]:
    found = {}
    for line in _text(fd, "io.max").splitlines():
        device, *words = line.split()
        rates = [int(value) for key, _, value in (word.partition("=") for word in words) if key in ("rbps", "wbps") and value.isdecimal()]
        if rates:
            found[device] = max(rates)  # neither direction is faster
    return found
