"""What this process itself has and its children get: the job it lives in and the time, opened on first use and kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from shoal.handles.base import Handle
from shoal.handles.clock import UtcClock
from shoal.handles.job import Job, given_job
from shoal.handles.kept import is_still
from shoal.status import SpawnError

H = TypeVar("H", bound=Handle)

_home: list[tuple[Job, os.stat_result]] = []
_clock: list[tuple[UtcClock, os.stat_result]] = []


def default_job() -> Job | None:
    """The job handed to this process, or a handle to the one it lives in that is opened once and kept. None: there is no job."""
    given = given_job()
    if given is not None:
        return given
    try:
        return _opened_once(_home, Job.default)
    except SpawnError:
        return None


def system_clock() -> UtcClock:
    """The time of this machine."""
    return _opened_once(_clock, UtcClock.system)


def _opened_once(kept: list[tuple[H, os.stat_result]], make: Callable[[], H]) -> H:
    """What is opened on first use and kept, and anew where the program has closed it under our feet. Threads that come first together
    all get the same one: a launch borrows its descriptor, so none may be closed because another was opened after it."""
    for found, status in kept:
        if _is_open(found, status):
            return found
    made = make()
    kept.append(entry := (made, os.fstat(made.fileno())))
    first = next(item for item in kept if _is_open(*item))
    if first is not entry:
        kept.remove(entry)
    return first[0]


def _is_open(handle: Handle, status: os.stat_result) -> bool:
    return not handle.closed and is_still(handle.fileno(), status)


def is_home(cgroup_fd: int) -> bool:
    """Whether it is the cgroup this process lives in, where a child begins anyway."""
    home = default_job() if given_job() is None else None
    return home is not None and os.path.samestat(os.fstat(cgroup_fd), os.fstat(home.fileno()))
