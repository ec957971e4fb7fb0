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
    """Tells once of the next change of a file, or of one that appears. For the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._fd = -1
        self._told: dict[int, dict[str, dict[object, Callable[[], None]]]] = {}  # of each name in a directory; of a file itself: ""
        self._watched: dict[object, tuple[int, str]] = {}

    def once(self, path: str, who: object, tell: Callable[[], None]) -> None:
        """Call `tell` when the file at `path` is written or renamed, or, where there is none, one appears in its directory.

        Args:
            who: by whom it is forgotten. One who watches already watches this instead.
        Raises:
            ManagerError: the system has no more of what it takes.
        """
        self.forget(who)
        number = self._add(path, _MODIFY | _MOVE_SELF)
        if number < 0:
            self.appears(path, who, tell)
        else:
            self._note(number, "", who, tell)

    def appears(self, path: str, who: object, tell: Callable[[], None]) -> None:
        """Call `tell` when another file gets the name `path`, whether there is one or not.

        Args, Raises: as of `once()`.
        """
        self.forget(who)
        directory, name = os.path.split(path)
        number = self._add(directory, _CREATE | _MOVED_TO)
        if number < 0:
            raise _refused("inotify_add_watch")
        self._note(number, name, who, tell)

    def forget(self, who: object) -> None:
        """They are not to be told any more."""
        number, name = self._watched.pop(who, (-1, ""))
        if number < 0:
            return
        of_names = self._told[number]
        of_names[name].pop(who)
        if not of_names[name]:
            del of_names[name]
        if not of_names:
            del self._told[number]
            _libc.inotify_rm_watch(self._fd, number)

    def _add(self, path: str, events: int) -> int:
        if self._fd < 0:
            self._fd = _libc.inotify_init1(_CLOEXEC | _NONBLOCK)
            if self._fd < 0:
                raise _refused("inotify_init1")
            self._loop.add_reader(self._fd, self._readable)
        number: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), events)
        return number

    def _note(self, number: int, name: str, who: object, tell: Callable[[], None]) -> None:
        self._told.setdefault(number, {}).setdefault(name, {})[who] = tell
        self._watched[who] = number, name

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
        at, changed = 0, set()
        while at < len(data):
            number, _, _, size = _EVENT.unpack_from(data, at)
            end = at + _EVENT.size + size
            changed.add((number, os.fsdecode(data[at + _EVENT.size : end].rstrip(b"\0"))))
            at = end
        if (-1, "") in changed:  # too many to tell of each
            changed = {(number, name) for number, of_names in self._told.items() for name in of_names}
        for number, name in changed:
            told = self._told[number].get(name) if number in self._told else None
            for who, tell in list(told.items()) if told else []:
                self.forget(who)
                self._loop.call_soon(tell)  # one that fails keeps no other from being told


def _refused(call: str) -> ManagerError:
    number = ctypes.get_errno()
    what = f"{call}: {os.strerror(number)}; /proc/sys/fs/inotify has the limits"
    return ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"files cannot be watched: {what}")
