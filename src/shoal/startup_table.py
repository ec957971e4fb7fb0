"""The SHOAL_STARTUP line: what a child was handed, as one line of text that any language can read.

Called by: draft.py, which writes the line into the child's environment, and startup/, which reads it there.
Touches: nothing. A line that does not follow the format is a ValueError, whatever is in it; a word with a key
this version does not know is skipped, so that later versions may say more.
Format: docs/startup-format.md.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple, Self

VARIABLE: Final = "SHOAL_STARTUP"
"""The environment variable that carries the line."""

VERSION: Final = "1"
"""The first word of every line this version writes and reads."""

_AS_IT_IS: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/:._-+@~")
# Patterns are compiled when a line is first read: most programs that import this never read one.
# Digits are bounded before int() sees them: a long number costs quadratic time, and Python refuses it with its own error.
_HANDLE: Final = r"0x([0-9a-f]{1,8}):([0-9]{1,10}):([a-z][a-z0-9_-]{0,31}):0x([0-9a-f]{1,8}):([0-9]{1,20}):([0-9]{1,20})"
_ENTRY: Final = r"(?s)(/[^\x00]*):([a-z][a-z0-9_-]{0,31}):(rw|ro)"
_ESCAPE: Final = rb"%[0-9a-fA-F]{2}"
_MAX_FD: Final = 0x7FFFFFFF


class StartupHandle(NamedTuple):
    """One handle given to the child, and the descriptor it arrives at.

    Attributes:
        id: the startup handle id (`PA_HND(type, arg)`).
        fd: the descriptor number in the child.
        kind: the word for the handle's type, `Handle.kind`.
        rights: what the handle may be used for, as the bits of `Rights`.
        dev, ino: st_dev and st_ino of the descriptor; they tell a stale table from a true one.
        name: what the two programs call it, or "".
    """

    id: int
    fd: int
    kind: str
    rights: int
    dev: int
    ino: int
    name: str = ""

    def _word(self) -> str:
        return f"handle={self.id:#x}:{self.fd}:{self.kind}:{self.rights:#x}:{self.dev}:{self.ino}"


class StartupEntry(NamedTuple):
    """One entry of the child's namespace: an absolute path where something was put for it.

    Attributes:
        prefix: the absolute path in the child.
        kind: the word for what is there.
        writable: False when the entry is read-only.
    """

    prefix: str
    kind: str
    writable: bool

    def _word(self) -> str:
        return f"ns={_quote(self.prefix)}:{self.kind}:{'rw' if self.writable else 'ro'}"


class StartupTable(NamedTuple):
    """All that a child is told about what it was handed.

    Attributes:
        name: the process name, or None where it is argv[0].
        handles: in the order they were given; ids may repeat.
        entries: the namespace of a cell, in the order the entries were made. Empty in the caller's world.
    """

    name: str | None = None
    handles: tuple[StartupHandle, ...] = ()
    entries: tuple[StartupEntry, ...] = ()

    def encode(self) -> str:
        """The line: printable ASCII without quotes or line breaks.

        Raises:
            ValueError: a field does not fit the format, so that nobody could read the line back.
        """
        words = [VERSION]
        if self.name is not None:
            words.append(f"name={_quote(self.name)}")
        for handle in self.handles:
            words += [handle._word(), *([f"label={_quote(handle.name)}"] if handle.name else [])]
        words += [entry._word() for entry in self.entries]
        line = " ".join(words)
        if StartupTable.decode(line) != self:
            raise ValueError(f"this startup table cannot be written as a line: {self!r}")
        return line

    @classmethod
    def decode(cls, line: str) -> Self:
        """The table that `line` describes.

        Raises:
            ValueError: not a line of this format; the message names the offending word.
        """
        version, *words = line.split(" ")
        if version != VERSION:
            raise ValueError(f"{VARIABLE} has version {version[:20]!r}; this program reads version {VERSION}")
        name: str | None = None
        handles: list[StartupHandle] = []
        entries: list[StartupEntry] = []
        for word in words:
            key, _, value = word.partition("=")
            if key == "name":
                name = _unquote(value)
            elif key == "handle":
                handles.append(_read_handle(value))
            elif key == "label":
                if not handles:
                    raise ValueError(f"{VARIABLE} has a label before any handle: {value[:100]!r}")
                handles[-1] = handles[-1]._replace(name=_unquote(value))
            elif key == "ns":
                entries.append(_read_entry(value))
        return cls(name, tuple(handles), tuple(entries))


def _read_handle(value: str) -> StartupHandle:
    match = re.fullmatch(_HANDLE, value)
    if not match or int(match[2]) > _MAX_FD:
        raise ValueError(f"{VARIABLE} has a bad handle: {value[:100]!r}")
    id, fd, kind, rights, dev, ino = match.groups()
    return StartupHandle(int(id, 16), int(fd), kind, int(rights, 16), int(dev), int(ino))


def _read_entry(value: str) -> StartupEntry:
    match = re.fullmatch(_ENTRY, _unquote(value))
    if not match:
        raise ValueError(f"{VARIABLE} has a bad namespace entry: {value[:100]!r}")
    return StartupEntry(match[1], match[2], match[3] == "rw")


def _quote(text: str) -> str:
    return "".join(chr(byte) if byte in _AS_IT_IS else f"%{byte:02X}" for byte in os.fsencode(text))


def _unquote(value: str) -> str:
    # A % that is no escape stands for itself: refusing it would lose the whole table for one word.
    return os.fsdecode(re.sub(_ESCAPE, lambda escape: bytes((int(escape[0][1:], 16),)), os.fsencode(value)))
