"""Cgroup: a job as a directory of the cgroup v2 tree.

Everything is done relative to the descriptor of the directory, never through a path a second time, so that a directory
that was removed and made again is never mistaken for the first. Written to are only directories that shoal made, and the
cgroup.subtree_control of the cgroup this process lives in, when a limit needs a controller there (cgroup_limits.py).

A directory is removed when the last handle of its maker is gone and nothing runs in it. If something still does, the
reaper removes it afterwards, or the maker when it exits. What a maker that was killed leaves behind is removed
by the next program that makes a job in the same place.

Source: cgroups(7); the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import itertools
import os
import select
import sys

from shoal.handles import cgroup_limits, reaper
from shoal.handles.cgroup_files import (
    child_names,
    exists,
    is_populated,
    name_of,
    open_below,
    open_parent,
    populated_in,
    read_io,
    read_keyed,
    read_text,
    walk,
    write_text,
)
from shoal.handles.cgroup_leftovers import Leftover, live, remove, sweep_stale_once
from shoal.handles.cgroup_marks import CREATOR, DENY_NEW_PROCESS, KILLED, Creator, get_mark, hold, let_go, made_by_shoal, set_mark
from shoal.handles.cgroup_members import entrance, members
from shoal.handles.deadline import Deadline
from shoal.handles.forks import held_over_forks
from shoal.handles.hierarchy import NoHome, availability, find_home, is_leaf
from shoal.handles.job_backend import Counters, Limits, Placement
from shoal.handles.kept import is_still
from shoal.handles.process import Usage
from shoal.handles.reaper import OwnedFd
from shoal.status import Stage, Status, failure, failure_from_errno

__all__ = ["CgroupBackend", "availability"]

_table_lock = held_over_forks()
_counter = itertools.count(1)


class CgroupBackend:
    """One cgroup v2 directory. Implements `job_backend.JobBackend`."""

    def __init__(self, directory: OwnedFd, name: str, *, parent: CgroupBackend | None, depth: int, maker_pid: int) -> None:
        self._directory = directory
        self._name = name
        self._parent = parent  # keeps the one above until we are removed: it cannot be removed before us
        self._depth = depth
        self._maker_pid = maker_pid
        self._holder_pid = 0
        self._handed_over = False
        self._entrances: list[OwnedFd] = []  # the last one is in use; an earlier one may still be borrowed

    @classmethod
    def home(cls) -> CgroupBackend:
        """The cgroup this process lives in.

        Raises:
            NotSupportedError: there is none to be seen; says why.
        """
        home = find_home()
        if isinstance(home, NoHome):
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, f"{home.reason}; try: {home.fix}")
        try:
            return cls.adopt(os.open(home.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), os.path.basename(home.path) or "/")
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.JOB, f"cannot open the cgroup of this process, {home.path}") from error

    @classmethod
    def adopt(cls, fd: int, name: str | None = None) -> CgroupBackend:
        """The backend of a directory that is open already. Takes over `fd`."""
        directory = OwnedFd(fd)
        status = os.fstat(fd)
        with _table_lock:
            known: CgroupBackend | None = live.get((status.st_dev, status.st_ino))
            if known is not None:
                known._mend(directory, status)
                return known
            if name is None:
                name = name_of(fd)
            self = cls(directory, name, parent=None, depth=_depth_of(fd), maker_pid=0)
            live[status.st_dev, status.st_ino] = self
        if made_by_shoal(fd):
            self._holder_pid = os.getpid()
            hold(fd)
        return self

    def _mend(self, directory: OwnedFd, status: os.stat_result) -> None:
        """Take the descriptor just opened where the program has closed ours under our feet, as a daemon does that closes all it has."""
        if not is_still(self._directory.fd, status):
            self._directory.fd = -1  # whatever has the number now is not ours to close
            self._directory = directory

    @property
    def name(self) -> str:
        return self._name

    @property
    def depth(self) -> int:
        return self._depth

    @property
    def denies_new_process(self) -> bool:
        return get_mark(self._directory.fd, DENY_NEW_PROCESS) is not None

    def deny_new_process(self) -> None:
        if not set_mark(self._directory.fd, DENY_NEW_PROCESS):
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, f"cgroup {self._name} cannot keep a policy: no user.* attributes here")

    def open_fd(self) -> int:
        return fcntl.fcntl(self._directory.fd, fcntl.F_DUPFD_CLOEXEC, 3)

    def placement(self) -> Placement:
        try:
            inside = entrance(self._directory.fd, self._entrances[-1] if self._entrances else None)
        except OSError as error:
            raise self._failure(error, f"cannot put a process into cgroup {self._name}") from error
        if inside is not None and inside not in self._entrances:
            self._entrances.append(inside)
        return Placement(self._directory.fd if inside is None else inside.fd, None, self.denies_new_process, self)

    def create_child(self, name: str | None) -> CgroupBackend:
        """A directory below, made now.

        Raises:
            AlreadyExistsError: the name is taken.
            AccessDeniedError: this user may not make cgroups here.
        """
        # Where that is missing a directory could be made, but no process be put into it from here.
        if not os.access("cgroup.procs", os.W_OK, dir_fd=self._directory.fd, effective_ids=True) and not self._is_removed():
            what = f"cannot make a job below cgroup {self._name}: this user may not move processes there"
            raise failure(Status.ACCESS_DENIED, Stage.JOB, what, errno.EACCES)
        sweep_stale_once(self._directory.fd)
        creator = Creator.current()
        while True:
            chosen = name if name is not None else f"shoal-{creator.pid}-{creator.start}-{next(_counter)}"
            try:
                os.mkdir(chosen, 0o755, dir_fd=self._directory.fd)
                break
            except FileExistsError as error:
                if name is not None:
                    raise failure(Status.ALREADY_EXISTS, Stage.JOB, f"job {self._name} has a child named {name!r} already") from error
            except OSError as error:
                raise self._failure(error, f"cannot make job {chosen!r} below cgroup {self._name}") from error
        return self._made(chosen, creator)

    def children(self) -> list[CgroupBackend]:
        found = []
        for name in child_names(self._directory.fd):
            if is_leaf(name):
                continue
            try:
                fd = open_below(self._directory.fd, name)
            except OSError:
                continue  # removed meanwhile
            # The id of a cgroup is its inode number, and counts up.
            found.append((os.fstat(fd).st_ino, CgroupBackend.adopt(fd, name)))
        return [backend for _, backend in sorted(found, key=lambda pair: pair[0])]

    def processes(self, *, recursive: bool) -> list[int]:
        pids: list[int] = []
        try:
            for fd in walk(self._directory.fd) if recursive else iter((self._directory.fd,)):
                pids += members(fd)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT):
                raise self._failure(error, f"cannot list the processes of cgroup {self._name}") from error
        return list(dict.fromkeys(pids))

    def is_populated(self) -> bool:
        return is_populated(self._directory.fd)

    def wait_empty(self, deadline: Deadline) -> bool:
        try:
            events = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory.fd)
        except FileNotFoundError as error:
            if self._is_removed():
                return True
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, "the root cgroup holds every process and is never empty") from error
        except OSError as error:
            if error.errno == errno.ENODEV:
                return True
            raise self._failure(error, f"cannot watch cgroup {self._name}") from error
        try:
            # The kernel remembers which change the last read has seen, so none between read and poll is missed.
            while populated_in(events):
                if not deadline.wait_ready(events, select.POLLPRI):
                    return False
            return True
        finally:
            os.close(events)

    def usage(self) -> Usage:
        try:
            cpu = read_keyed(self._directory.fd, "cpu.stat")
        except OSError as error:
            raise self._failure(error, f"cannot read what cgroup {self._name} used") from error
        try:
            peak = int(read_text(self._directory.fd, "memory.peak"))
        except OSError:
            peak = 0  # no memory controller here, or older than Linux 5.19
        return Usage(cpu.get("user_usec", 0) / 1e6, cpu.get("system_usec", 0) / 1e6, peak)

    def counters(self) -> Counters:
        io = read_io(self._directory.fd)
        return Counters(
            oom_kills=self._counted("memory.events", "oom_kill"),
            max_pids=self._counted("pids.peak"),
            io_read_bytes=None if io is None else io[0],
            io_write_bytes=None if io is None else io[1],
        )

    def _counted(self, file: str, key: str | None = None) -> int | None:
        try:
            return read_keyed(self._directory.fd, file).get(key, 0) if key else int(read_text(self._directory.fd, file))
        except (OSError, ValueError):
            return None  # no such controller here, or an older kernel

    def set_limits(self, limits: Limits) -> None:
        cgroup_limits.apply(self._directory.fd, self._name, limits)

    def kill(self) -> None:
        try:
            # First the marks: see Placement.is_revoked(). A child made meanwhile finds its parent marked.
            for fd in walk(self._directory.fd):
                set_mark(fd, KILLED)
            write_text(self._directory.fd, "cgroup.kill", "1")
        except OSError as error:
            if error.errno == errno.ENODEV or self._is_removed():
                return
            raise self._failure(error, f"cannot kill what runs in cgroup {self._name}") from error

    def is_killed(self) -> bool:
        return get_mark(self._directory.fd, KILLED) is not None or self._is_removed()

    def hand_over(self) -> None:
        self._handed_over = True

    def try_remove(self) -> bool:
        """Remove the directory if nothing is in it and nobody else uses it. True when it is gone."""
        return remove(self._directory.fd, self._name)

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        pid = os.getpid()  # a copy of this object in a forked child has nothing to give up
        if self._holder_pid == pid:
            let_go(self._directory.fd)
        for leaf in self._entrances:
            let_go(leaf.fd)
        if self._maker_pid == pid:
            leftover = Leftover(self._directory, self._name, self._parent, patient=self._handed_over)
            (reaper.watch if self._handed_over else reaper.register)(leftover)

    def _made(self, name: str, creator: Creator) -> CgroupBackend:
        """The backend of the directory `name` that we just made below ours."""
        try:
            directory = OwnedFd(open_below(self._directory.fd, name))
        except OSError as error:
            os.rmdir(name, dir_fd=self._directory.fd)
            raise self._failure(error, f"cannot open job {name!r}") from error
        if _takes_no_processes(directory.fd):
            os.rmdir(name, dir_fd=self._directory.fd)
            what = f"the kernel lets no process into cgroups below {self._name}: it hands on controllers while processes live in it"
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, what)
        set_mark(directory.fd, CREATOR, str(creator))
        child = CgroupBackend(directory, name, parent=self, depth=self._depth + 1, maker_pid=os.getpid())
        status = os.fstat(directory.fd)
        with _table_lock:
            live[status.st_dev, status.st_ino] = child
        if self.denies_new_process:
            child.deny_new_process()
        return child

    def _is_removed(self) -> bool:
        return not exists(self._directory.fd, "cgroup.procs")

    def _failure(self, error: OSError, what: str) -> Exception:
        if error.errno in (errno.ENODEV, errno.ENOENT) and self._is_removed():
            return failure(Status.BAD_STATE, Stage.JOB, f"{what}: the cgroup was removed", error.errno)
        return failure_from_errno(error.errno or 0, Stage.JOB, what)


def _takes_no_processes(fd: int) -> bool:
    """Would the kernel refuse a process in this new directory? See "thread mode" in cgroups(7)."""
    try:
        return read_text(fd, "cgroup.type").strip() != "domain"
    except OSError:
        return False  # the root has no such file


def _depth_of(fd: int) -> int:
    """How many directories from here upwards shoal made."""
    depth, current = 0, OwnedFd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
    while made_by_shoal(current.fd):
        depth += 1
        try:
            current = OwnedFd(open_parent(current.fd))
        except OSError:
            break
    return depth


def _remove_at_exit() -> None:
    """Remove what is empty now, deepest first; handles that were never closed keep nothing alive."""
    reaper.sweep()
    pid = os.getpid()
    for backend in sorted(live.values(), key=lambda backend: -backend.depth):
        if backend._maker_pid == pid:
            backend._maker_pid = 0 if backend.try_remove() else pid
        elif backend._holder_pid == pid:
            let_go(backend._directory.fd)


atexit.register(_remove_at_exit)
