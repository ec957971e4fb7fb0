"""What a job needs from the kernel object it is made of.

Two kinds of objects serve: a cgroup v2 directory (cgroup.py), and, where none can be made, a pid namespace held by the pidfd
of its first process (pidns.py). A backend is shared by all duplicates of a Job in this process; it owns a descriptor of its
own, so that closing a handle in one thread does not disturb another. It checks no rights: job.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shoal.handles.deadline import Deadline
from shoal.handles.process import Usage


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for everything in a job together; None leaves one as it is.

    Attributes:
        memory_bytes, swap_bytes: the most memory and swap.
        pids: the most processes and threads.
        cpus: processor time per time, 1.5 being one and a half processors.
        io: block devices as "major:minor", and the bytes per second that may be read from, and written to, each.
        dies_whole: where the memory limit kills one process, it kills all.
    """

    memory_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    cpus: float | None = None
    io: tuple[tuple[str, int], ...] = ()
    dies_whole: bool = False


@dataclass(frozen=True, slots=True)
class Counters:
    """What the kernel counted for a job, its ended processes included. None: this kernel or cgroup does not count it.

    Attributes:
        oom_kills: processes killed because of the memory limit of the job, or of one above it.
        max_pids: the most processes and threads at once.
        io_read_bytes, io_write_bytes: from and to block devices.
    """

    oom_kills: int | None
    max_pids: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None


@dataclass(frozen=True, slots=True)
class Placement:
    """How a new process gets into a job. The descriptors are borrowed and stay open as long as this object lives.

    Attributes:
        cgroup_fd: for CLONE_INTO_CGROUP; None: no cgroup is to be entered.
        init_pidfd: the first process of the pid namespace to be entered, or None.
        deny_new_process: the process must not be able to make processes itself.
    """

    cgroup_fd: int | None
    init_pidfd: int | None
    deny_new_process: bool
    backend: JobBackend = field(repr=False)

    def is_revoked(self) -> bool:
        """Was the job killed meanwhile?

        To be asked once the new process is in the job. A kill first marks the job, then kills what is in it; so a process
        is either killed by it, or its maker sees the mark here and does it.
        """
        return self.backend.is_killed()


class JobBackend(Protocol):
    """The kernel object of a job."""

    @property
    def name(self) -> str: ...

    @property
    def depth(self) -> int:
        """Levels below the default job, which has 0."""

    @property
    def denies_new_process(self) -> bool:
        """Was `deny_new_process()` called on it, or on a job it descends from before it was made?"""

    def open_fd(self) -> int:
        """A new close-on-exec descriptor for a handle."""

    def placement(self) -> Placement:
        """How to put a process into it."""

    def create_child(self, name: str | None) -> JobBackend:
        """A new job below it, which inherits what it denies. `name` has been checked; None: choose one.

        Raises:
            NotSupportedError, AccessDeniedError: no such object can be made here, another kind may be tried.
        """

    def children(self) -> Sequence[JobBackend]:
        """Direct, live child jobs, oldest first."""

    def processes(self, *, recursive: bool) -> list[int]:
        """Live processes by pid as seen here, without those that cannot be seen."""

    def is_populated(self) -> bool:
        """Is there a live process in it or in a job below it?"""

    def wait_empty(self, deadline: Deadline) -> bool:
        """Wait until it is no longer populated; False when the deadline came first."""

    def usage(self) -> Usage:
        """What everything in it used, the ended included."""

    def counters(self) -> Counters:
        """What the kernel counted."""

    def set_limits(self, limits: Limits) -> None:
        """Apply the limits given, all or none of them."""

    def kill(self) -> None:
        """Mark it and everything below as killed, then kill every process there, whatever forks meanwhile."""

    def is_killed(self) -> bool:
        """Has it, or a job above it, been killed, by whomever?"""

    def deny_new_process(self) -> None:
        """Note, for ever, that processes put into it may not make processes."""

    def hand_over(self) -> None:
        """A descriptor of it goes to another process, which may go on using it after we are done with it."""
