"""Watching files for changes: inotify(7), which Python has no module for."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from typing import Final

from shoal.manager.errors import ManagerError

_MODIFY, _MOVED_TO, _CREATE, _MOVE_SELF = 0x2, 0x80, 0x100, 0x800
_CLOEXEC, _NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_EVENT: Final = struct.Struct("=iIII")
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Watcher:
    """Tells once of the next change of a file. For the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._fd = -1
        self._told: dict[int, dict[object, Callable[[], None]]] = {}
        self._watched: dict[object, int] = {}

    def once(self, path: str, who: object, tell: Callable[[], None]) -> None:
        """Call `tell` when the file at `path` is written or renamed, or, where there is none, one appears in its directory.

        Args:
            who: by whom it is forgotten. One who watches already watches this instead.
        Raises:
            ManagerError: the system has no more of what it takes.
        """
        self.forget(who)
        if self._fd < 0:
            self._fd = _libc.inotify_init1(_CLOEXEC | _NONBLOCK)
            if self._fd < 0:
                raise _refused("inotify_init1")
            self._loop.add_reader(self._fd, self._readable)
        number = _libc.inotify_add_watch(self._fd, os.fsencode(path), _MODIFY | _MOVE_SELF)
        if number < 0:
            number = _libc.inotify_add_watch(self._fd, os.fsencode(os.path.dirname(path)), _CREATE | _MOVED_TO)
        if number < 0:
            raise _refused("inotify_add_watch")
        self._told.setdefault(number, {})[who] = tell
        self._watched[who] = number

    def forget(self, who: object) -> None:
        """They are not to be told any more."""
        number = self._watched.pop(who, None)
        if number is not None:
            told = self._told[number]
            del told[who]
            if not told:
                del self._told[number]
                _libc.inotify_rm_watch(self._fd, number)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._told.clear()
        self._watched.clear()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at, numbers = 0, set()
        while at < len(data):
            number, _, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size + size
            numbers.add(number)
        if -1 in numbers:  # too many to tell of each
            numbers |= self._told.keys()
        for number in numbers & self._told.keys():
            for who, tell in list(self._told[number].items()):
                self.forget(who)
                self._loop.call_soon(tell)  # one that fails keeps no other from being told


def _refused(call: str) -> ManagerError:
    number = ctypes.get_errno()
    what = f"{call}: {os.strerror(number)}; /proc/sys/fs/inotify has the limits"
    return ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"the log cannot be followed: {what}")
