"""Logs: what a domain has written, as its init keeps it: entries with a time and a stream, in two files of which the older is complete.

The layout of an entry is in src/native/domain.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple

from shoal.manager.biscuits import LAST_DOMAIN

_HEAD: Final = struct.Struct("=QII")
STREAMS: Final = {"stdout": (1,), "stderr": (2,), "both": (1, 2)}
NOTHING_SEEN: Final = (0, 0)
_NEWLINE: Final = ord("\n")


class Entry(NamedTuple):
    """One piece of output. `at_s`: seconds since 1970. `stream`: 1 or 2."""

    at_s: float
    stream: int
    data: bytes


def names(id: int) -> tuple[str, str]:
    """The files of a domain's log, the older one first."""
    return f"{id}.log.1", f"{id}.log"


def numbers(directory: str) -> set[int]:
    """The domains of which there are logs."""
    found = (name.partition(".log")[0] for name in os.listdir(directory))
    return {int(number) for number in found if number.isdecimal() and int(number) <= LAST_DOMAIN}


def state_of(directory: str, id: int) -> tuple[int, int]:
    """Which file it is that is being written, and how large: what tells whether there is more."""
    try:
        found = os.stat(os.path.join(directory, names(id)[1]))
    except FileNotFoundError:
        return NOTHING_SEEN
    return found.st_ino, found.st_size


def open_log(directory: str, id: int) -> tuple[tuple[int, int], list[int]]:
    """Its state and descriptors of its files, the older one first. They belong together: what its init begins anew meanwhile is seen.

    Raises:
        OSError: no more descriptors.
    """
    older, newer = (os.path.join(directory, name) for name in names(id))
    while True:
        state = state_of(directory, id)
        fds = _opened(newer)
        try:
            inode = os.fstat(fds[0]).st_ino if fds else NOTHING_SEEN[0]
            fds[:0] = _opened(older)
            if inode == state[0] == state_of(directory, id)[0]:
                return state, fds
        except BaseException:
            _close(fds)
            raise
        _close(fds)


def _opened(path: str) -> list[int]:
    try:
        return [os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)]
    except FileNotFoundError:
        return []


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def remove_log(directory: str, id: int) -> None:
    """What a domain has written is not to be kept any longer."""
    for name in names(id):
        with suppress(OSError):
            os.unlink(os.path.join(directory, name))


class LogReader:
    """Reads the log of one domain.

    Args:
        ask: given a `state_of()`, waits until it is another or the domain has ended; given None, does not wait. Gives whether it has
            ended, the state, and descriptors of the files, the older one first, which are ours then.
    """

    def __init__(
        self, ask: Callable[[tuple[int, int] | None], tuple[Any, list[int]]], stream: Literal["stdout", "stderr", "both"] = "both"
    ) -> None:
        if stream not in STREAMS:
            raise ValueError(f'stream {stream!r}: there are "stdout", "stderr" and "both"')
        self._ask = ask
        self._streams = STREAMS[stream]
        self._seen: dict[int, int] = {}  # how far each file was read, by its inode

    def entries(self, *, follow: bool = False, last: int | None = None) -> Iterator[Entry]:
        """What is there now, or its last lines; with `follow` also what comes until the domain has ended."""
        (ended, state), fds = self._ask(None)
        try:
            if last is not None:
                yield from last_lines([entry for fd in fds for entry in self._from(fd)], last)
            while True:
                for fd in fds:
                    yield from self._from(fd)
                if ended or not follow:
                    return
                (ended, state), more = self._ask(tuple(state))
                before, fds = fds, more  # kept until now, so that no new file has an old one's number
                _close(before)
                inodes = {os.fstat(fd).st_ino for fd in fds}
                self._seen = {inode: at for inode, at in self._seen.items() if inode in inodes}  # the others' numbers come again
        finally:
            _close(fds)

    def _from(self, fd: int) -> Iterator[Entry]:
        inode = os.fstat(fd).st_ino
        at = self._seen.get(inode, 0)
        while len(head := os.pread(fd, _HEAD.size, at)) == _HEAD.size:
            at_ns, size, stream = _HEAD.unpack(head)
            data = os.pread(fd, size, at + _HEAD.size)
            if len(data) < size:
                return  # it is being written
            at += _HEAD.size + size
            self._seen[inode] = at
            if stream in self._streams:
                yield Entry(at_ns / 1e9, stream, data)


def last_lines(entries: list[Entry], count: int) -> list[Entry]:
    """The entries that hold the last `count` lines, the first of each stream cut at the beginning of a line.

    A line may come in pieces, between which the other stream has written, and the last one of a stream may have no end yet.
    """
    kept: list[Entry] = []
    is_open = {1: False, 2: False}  # whether the line that is being taken began in an earlier piece
    for entry in reversed(entries):
        data, stream = entry.data, entry.stream
        at = len(data)
        while at > 0:
            if is_open[stream] and data[at - 1] == _NEWLINE:
                is_open[stream] = False
            if not is_open[stream]:
                if count == 0:
                    break
                count -= 1
            at = data.rfind(b"\n", 0, at - 1 if data[at - 1] == _NEWLINE else at) + 1
            is_open[stream] = at == 0
        if at < len(data):
            kept.append(entry._replace(data=data[at:]))
        if count == 0 and not any(is_open.values()):
            break
    return kept[::-1]
