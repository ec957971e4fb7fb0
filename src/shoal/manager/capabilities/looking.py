"""Looking: finds the processes of a domain and looks at each."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Sequence
from contextlib import suppress

from shoal.handles.deadline import is_ready
from shoal.handles.hierarchy import is_cgroup
from shoal.handles.holder import Holder
from shoal.handles.job import Job
from shoal.handles.process import Process
from shoal.manager.capabilities.jobs import job_of, path_of
from shoal.manager.capabilities.members import descendants, in_cgroup, in_pid_namespace, lives_in
from shoal.manager.capabilities.mounts import is_below
from shoal.manager.capabilities.observed import MOST_DESCRIPTORS, MOST_PROCESSES, Look, Observed
from shoal.manager.capabilities.procfs import ProcessDirectory


def look_at(processes: Iterable[Process], *, job: Job | None = None, holders: Iterable[Process] = ()) -> Observed:
    """A picture of some programs and of all that belongs to them.

    Args:
        processes: what was started; borrowed, and nothing is waited for.
        job: what they were started in, if nothing else is in it; borrowed.
        holders: processes of shoal's own that hold them, where the processes do not know themselves; borrowed.
    """
    look, started, keepers = Look(), list(processes), list(holders)
    for process in (*started, *keepers):
        _look_at_own(look, process, keeper=process in keepers)
    for process in started:
        keeper = process._keeper
        if keeper is not None and keeper.pid and (pidfd := keeper.pidfd) is not None:
            look.at(keeper.pid, lambda _, fd=pidfd.fd: not is_ready(fd, select.POLLIN), keeper=True)  # type: ignore[misc]
    look.cells = frozenset(look.pid_namespaces() - {os.stat("/proc/self/ns/pid").st_ino})
    if job is not None:
        _look_at_job(look, job)
    for inode in look.cells:
        _look_at_cell(look, inode)
    if not look.cells and (job is None or not is_cgroup(job.fileno())):
        _look_at_family(look, started)
    return look.finished()


def look_at_held(pid: int, started: int, *, job: Job | None = None, most: tuple[int, int] = (MOST_PROCESSES, MOST_DESCRIPTORS)) -> Observed:
    """A picture of all that a process of shoal's own holds: it is the parent of what it started, and becomes that of every orphan.

    Args:
        pid, started: the process, and when it began, in clock ticks since boot: what has the number now may be another one.
        job: what it all lives in, if there is one; borrowed.
        most: processes and descriptors.
    """
    look = Look(*most)
    look.at(pid, lambda directory: int(directory.stat_fields()[19]) == started, keeper=True)
    if pid in look.pids():
        family = descendants([pid])
        look.cells = frozenset(_pid_namespaces(family) - {os.stat("/proc/self/ns/pid").st_ino})
        for member in family:  # each after its parent
            look.at(member, lambda directory: int(directory.stat_fields()[1]) in look.pids())
        for inode in look.cells:
            _look_at_cell(look, inode)
    if job is not None:
        _look_at_job(look, job)
    return look.finished()


def _pid_namespaces(pids: Iterable[int]) -> set[int]:
    found = set()
    for pid in pids:
        with suppress(OSError), ProcessDirectory(pid) as directory:
            found |= {directory.namespaces().get("pid", 0)}
    return found - {0}


def _look_at_own(look: Look, process: Process, *, keeper: bool) -> None:
    """One that we have a pidfd of. While that has not ended its number is its own."""
    if process.pid > 0 and not process.closed:
        look.at(process.pid, lambda _: not is_ready(process.fileno(), select.POLLIN), keeper=keeper)


def _look_at_job(look: Look, job: Job) -> None:
    fd = job.fileno()
    if not is_cgroup(fd):
        return  # a pid namespace, of which a process tells
    with ProcessDirectory("self") as own:
        mounts = own.mounts()
    path = path_of(fd, mounts)
    try:
        look.job(job_of(fd, mounts))
    except OSError:
        return  # removed, so that nothing is in it
    if path is None:
        look.hide(f"what is in job {job.name}: its cgroup is not to be seen from here")
        return
    for pid in in_cgroup(fd):
        look.at(pid, lambda directory: is_below(directory.cgroup(), path))


def _look_at_cell(look: Look, inode: int) -> None:
    for pid in in_pid_namespace(inode):
        look.at(pid, lambda directory: lives_in(directory, inode))


def _look_at_family(look: Look, started: Sequence[Process]) -> None:
    first = [process._keeper.pid if isinstance(process._keeper, Holder) else process.pid for process in started]
    for pid in descendants([pid for pid in first if pid in look.pids()]):
        look.at(pid, lambda directory: int(directory.stat_fields()[1]) in look.pids())
