"""Symbols: where the functions of an ELF file are linked to be. Nothing is executed or mapped.

Called by: manager. As in elf.py every offset and length in the file is a claim, checked before it is used, and bounded.
Source: elf(5), sections and symbols.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from shoal.loader.elf import MAGIC

TABLE_BYTES: Final = 256 << 20
"""A symbol table, or the names of its symbols, may have so many."""
_SECTIONS: Final = struct.Struct("<40xQ10xHHH")  # e_shoff, e_shentsize, e_shnum, e_shstrndx
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_SYMTAB, _FUNC = 2, 2
_LITTLE_64: Final = b"\x02\x01"


class Function(NamedTuple):
    """A function by its name, and the address that it was linked for."""

    name: str
    address: int


def functions(path: str | bytes, containing: bytes) -> list[Function]:
    """The functions in a program whose names contain something, in the order of its symbol table. None where that was stripped off.

    Raises:
        OSError: it cannot be read. ValueError: it is no ELF file of 64 bits, or its tables cannot be right.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return list(_functions(fd, containing))
    finally:
        os.close(fd)


def _functions(fd: int, containing: bytes) -> Iterator[Function]:
    head = os.pread(fd, 64, 0)
    if len(head) < 64 or head[:4] != MAGIC or head[4:6] != _LITTLE_64:
        raise ValueError("it is no program for a 64-bit machine")
    at, size, count, _ = _SECTIONS.unpack(head)
    if not at or not count:
        return
    if size != _SECTION.size:
        raise ValueError(f"its section headers have {size} bytes each")
    sections = list(_SECTION.iter_unpack(_read(fd, at, count * size)))
    for _, kind, _, _, offset, length, link, _, _, _ in sections:
        if kind != _SYMTAB:
            continue
        if link >= count:
            raise ValueError(f"the names of its symbols are in section {link}, and it has {count}")
        names = _read(fd, sections[link][4], sections[link][5])
        if containing not in names:
            continue
        for name, info, _, _, address, _ in _SYMBOL.iter_unpack(_read(fd, offset, length - length % _SYMBOL.size)):
            if info & 0xF == _FUNC and address and name < len(names):
                end = names.find(b"\0", name)
                text = names[name : end if end >= 0 else len(names)]
                if containing in text:
                    yield Function(text.decode("ascii", "backslashreplace"), address)


def _read(fd: int, offset: int, size: int) -> bytes:
    if size > TABLE_BYTES or offset > (1 << 62):
        raise ValueError(f"a table of {size} bytes at {offset}")
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise ValueError("it is truncated: its tables go beyond its end")
    return data
