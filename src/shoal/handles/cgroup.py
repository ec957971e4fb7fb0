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
import threading
import weakref

from shoal.handles import cgroup_limits, reaper
from shoal.handles.cgroup_files import (
    child_names,
    is_populated,
    name_of,
    open_below,
    open_parent,
    populated_in,
    read_keyed,
    read_text,
    walk,
    write_text,
)
from shoal.handles.cgroup_marks import (
    CREATOR,
    DENY_NEW_PROCESS,
    KILLED,
    Creator,
    creator_of,
    get_mark,
    hold,
    is_held_by_others,
    let_go,
    made_by_shoal,
    set_mark,
)
from shoal.handles.deadline import Deadline
from shoal.handles.hierarchy import NoHome, availability, find_home
from shoal.handles.job_backend import Limits, Placement
from shoal.handles.process import Usage
from shoal.handles.reaper import OwnedFd
from shoal.status import Stage, Status, failure, failure_from_errno

__all__ = ["CgroupBackend", "availability"]

_live: weakref.WeakValueDictionary[tuple[int, int], CgroupBackend] = weakref.WeakValueDictionary()
"""The backends of this process by (st_dev, st_ino): one directory has one backend here, however it was reached."""
_table_lock = threading.RLock()
_counter = itertools.count(1)
_swept: set[int] = set()
"""The pid of this process once it has looked for what others left behind; forks have another."""


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
            known = _live.get((status.st_dev, status.st_ino))
            if known is not None:
                return known
            if name is None:
                name = name_of(fd)
            self = cls(directory, name, parent=None, depth=_depth_of(fd), maker_pid=0)
            _live[status.st_dev, status.st_ino] = self
        if made_by_shoal(fd):
            self._holder_pid = os.getpid()
            hold(fd)
        return self

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
        return Placement(self._directory.fd, None, self.denies_new_process, self)

    def create_child(self, name: str | None) -> CgroupBackend:
        """A directory below, made now.

        Raises:
            AlreadyExistsError: the name is taken.
            AccessDeniedError: this user may not make cgroups here.
        """
        _sweep_stale_once(self._directory.fd)
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
                # A process of a pid namespace we cannot see into shows as 0.
                pids += [pid for pid in map(int, read_text(fd, "cgroup.procs").split()) if pid]
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
        return _remove(self._directory.fd, self._name)

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        pid = os.getpid()  # a copy of this object in a forked child has nothing to give up
        if self._holder_pid == pid:
            let_go(self._directory.fd)
        if self._maker_pid == pid:
            leftover = _Leftover(self._directory, self._name, self._parent, patient=self._handed_over)
            (reaper.watch if self._handed_over else reaper.register)(leftover)

    def _made(self, name: str, creator: Creator) -> CgroupBackend:
        """The backend of the directory `name` that we just made below ours."""
        try:
            directory = OwnedFd(open_below(self._directory.fd, name))
        except OSError as error:
            os.rmdir(name, dir_fd=self._directory.fd)
            raise self._failure(error, f"cannot open job {name!r}") from error
        set_mark(directory.fd, CREATOR, str(creator))
        child = CgroupBackend(directory, name, parent=self, depth=self._depth + 1, maker_pid=os.getpid())
        status = os.fstat(directory.fd)
        with _table_lock:
            _live[status.st_dev, status.st_ino] = child
        if self.denies_new_process:
            child.deny_new_process()
        return child

    def _is_removed(self) -> bool:
        try:
            os.stat("cgroup.procs", dir_fd=self._directory.fd)
        except OSError:
            return True
        return False

    def _failure(self, error: OSError, what: str) -> Exception:
        if error.errno in (errno.ENODEV, errno.ENOENT) and self._is_removed():
            return failure(Status.BAD_STATE, Stage.JOB, f"{what}: the cgroup was removed", error.errno)
        return failure_from_errno(error.errno or 0, Stage.JOB, what)


class _Leftover:
    """A directory whose last handle here is gone; the reaper keeps it until it can be removed.

    Args:
        patient: whoever was given it may not have taken hold of it yet: wait until something ran in it and ended.
    """

    def __init__(self, directory: OwnedFd, name: str, parent: CgroupBackend | None, *, patient: bool) -> None:
        self._directory: OwnedFd | None = directory
        self._name = name
        self._parent = parent
        self._patient = patient
        self._events: OwnedFd | None = None

    @property
    def events(self) -> int:
        return select.POLLPRI

    def fileno(self) -> int:
        """cgroup.events, which shows POLLPRI when the directory becomes empty. -1: removed meanwhile."""
        if self._events is None and self._directory is not None:
            try:
                self._events = OwnedFd(os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory.fd))
            except OSError:
                return -1
            # A file that was never read shows an event at once, and so has us look again; unless it was read.
            if self._patient:
                populated_in(self._events.fd)
        return -1 if self._events is None else self._events.fd

    def settle(self) -> bool:
        if self._directory is None:
            return True
        if self._events is not None:
            populated_in(self._events.fd)  # takes note of the event, else it would be reported for ever
        return _remove(self._directory.fd, self._name)

    def release(self) -> None:
        self._directory = self._events = self._parent = None


def _remove(fd: int, name: str) -> bool:
    """Remove a directory and the unused ones below it. False when something keeps it."""
    if is_populated(fd) or is_held_by_others(fd):
        return False
    try:
        parent = open_parent(fd)
    except OSError:
        return True  # a removed directory has no parent
    try:
        for below in child_names(fd):
            _remove_unused(fd, below)
        if os.stat(name, dir_fd=parent).st_ino == os.fstat(fd).st_ino:
            os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError as error:
        return error.errno == errno.ENODEV
    finally:
        os.close(parent)
    return True


def _remove_unused(parent: int, name: str) -> None:
    """Remove a directory that no living process claims."""
    try:
        fd = open_below(parent, name)
    except OSError:
        return
    try:
        status = os.fstat(fd)
        creator = creator_of(fd, name)
        claimed = (status.st_dev, status.st_ino) in _live or (
            creator is not None and creator != Creator.current() and not creator.is_dead()
        )
        if not claimed:
            _remove(fd, name)
    finally:
        os.close(fd)


def _sweep_stale_once(parent: int) -> None:
    """Remove what processes that have died left behind next to where we make our first directory."""
    if os.getpid() in _swept:
        return
    _swept.add(os.getpid())
    for name in child_names(parent):
        try:
            fd = open_below(parent, name)
        except OSError:
            continue
        try:
            creator = creator_of(fd, name)
            if creator is not None and creator.is_dead():
                _remove(fd, name)
        finally:
            os.close(fd)


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
    for backend in sorted(_live.values(), key=lambda backend: -backend.depth):
        if backend._maker_pid == pid:
            backend._maker_pid = 0 if backend.try_remove() else pid
        elif backend._holder_pid == pid:
            let_go(backend._directory.fd)


# Held over a fork, so that the child does not find it locked by a thread it does not have.
os.register_at_fork(before=_table_lock.acquire, after_in_parent=_table_lock.release, after_in_child=_table_lock.release)
atexit.register(_remove_at_exit)
