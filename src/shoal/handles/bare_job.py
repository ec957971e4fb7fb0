"""Bare job: what stands for the default job where no cgroup can be seen.

It groups nothing: processes started in it are simply started. It exists so that a program need not ask first whether there
is a default job, and so that jobs can be made below it (of pid namespaces, see pidns.py). Its descriptor is a sealed page of
memory with a known text, which any process that is handed it can recognise, even one without /proc.
"""

from __future__ import annotations

import fcntl
import os
from typing import NoReturn

from shoal.handles.deadline import Deadline
from shoal.handles.hierarchy import availability
from shoal.handles.job_backend import Counters, JobBackend, Limits, Placement
from shoal.handles.process import Usage
from shoal.status import SpawnError, Stage, Status, failure

_TEXT = b"shoal: a job without a kernel object\n"
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class BareBackend:
    """The job of a process that is in none. Implements `job_backend.JobBackend`."""

    _shared: BareBackend | None = None

    name = "(none)"
    depth = 0
    denies_new_process = False

    @classmethod
    def shared(cls) -> BareBackend:
        """The one there is; it has no state."""
        if cls._shared is None:
            cls._shared = cls()
        return cls._shared

    @classmethod
    def is_one(cls, fd: int) -> bool:
        """Was this descriptor made by `open_fd()`, in any process?"""
        try:
            return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS and os.pread(fd, len(_TEXT) + 1, 0) == _TEXT
        except OSError:
            return False

    def open_fd(self) -> int:
        fd = os.memfd_create("shoal-job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, _TEXT)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(fd)
            raise
        return fd

    def placement(self) -> Placement:
        return Placement(None, None, False, self)

    def create_child(self, name: str | None) -> JobBackend:
        raise self._refused("have cgroups below it")

    def children(self) -> list[JobBackend]:
        return []

    def processes(self, *, recursive: bool) -> list[int]:
        return [os.getpid()]  # the one that is certain; the others cannot be told from strangers

    def is_populated(self) -> bool:
        return True

    def wait_empty(self, deadline: Deadline) -> NoReturn:
        raise self._refused("be waited for: this process is in it")

    def usage(self) -> Usage:
        raise self._refused("count what is used")

    def counters(self) -> Counters:
        raise self._refused("count what is used")

    def set_limits(self, limits: Limits) -> None:
        raise self._refused("be limited")

    def kill(self) -> None:
        raise self._refused("be killed")

    def is_killed(self) -> bool:
        return False

    def deny_new_process(self) -> None:
        raise self._refused("have a policy")

    def hand_over(self) -> None:
        pass

    def _refused(self, what: str) -> SpawnError:
        _, reason, fix = availability()
        return failure(Status.NOT_SUPPORTED, Stage.JOB, f"the default job cannot {what}: {reason}; {fix}")
