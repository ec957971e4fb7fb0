"""Leftovers: directories of jobs that nobody holds any more, and when they can be removed.

One that still holds processes waits in the reaper until the last of them has ended. What a process that was killed left
behind is recognised by the marks of cgroup_marks.py and removed by the next program that makes a job in the same place.

Source: cgroups(7).
"""

from __future__ import annotations

import errno
import os
import select
import weakref
from typing import Any

from shoal.handles.cgroup_files import child_names, is_populated, open_below, open_parent, populated_in
from shoal.handles.cgroup_marks import Creator, creator_of, is_held_by_others
from shoal.handles.reaper import OwnedFd

live: weakref.WeakValueDictionary[tuple[int, int], Any] = weakref.WeakValueDictionary()
"""The backends of this process (cgroup.py) by (st_dev, st_ino): one directory has one backend here, however it was reached."""
_swept: set[int] = set()
"""The pid of this process once it has looked for what others left behind; forks have another."""


class Leftover:
    """A directory whose last handle here is gone; the reaper keeps it until it can be removed.

    Args:
        patient: whoever was given it may not have taken hold of it yet: wait until something ran in it and ended.
    """

    def __init__(self, directory: OwnedFd, name: str, parent: object, *, patient: bool) -> None:
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
        return remove(self._directory.fd, self._name)

    def release(self) -> None:
        self._directory = self._events = self._parent = None


def remove(fd: int, name: str) -> bool:
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
        claimed = (status.st_dev, status.st_ino) in live or (creator is not None and creator != Creator.current() and not creator.is_dead())
        if not claimed:
            remove(fd, name)
    finally:
        os.close(fd)


def sweep_stale_once(parent: int) -> None:
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
                remove(fd, name)
        finally:
            os.close(fd)
