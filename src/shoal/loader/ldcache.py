"""/etc/ld.so.cache: from a library's name to the files ldconfig found for it, best first.

Called by: linker. Touches: nothing; it is given the bytes. A corrupt file is no file: the linker itself then
goes on to its default directories, and so do we.
Source: glibc's elf/cache.c and sysdeps/generic/dl-cache.h (struct cache_file, cache_file_new, cache_extension).
Not followed: entries for the hardware-capability bits that glibc dropped in 2.37 ("tls", "haswell"); their plain
twins are used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from shoal.loader.elf import MACHINES

OLD_MAGIC = b"ld.so-1.7.0"
NEW_MAGIC = b"glibc-ld.so.cache1.1"
EXTENSION_MAGIC = 0xEAA42174
SECTION_HWCAPS = 1
HWCAP_EXTENSION = 1 << 62
CACHE_BYTES = 64 << 20
STRING_BYTES = 4097

FLAGS = {MACHINES["x86_64"]: 0x0303, MACHINES["aarch64"]: 0x0A03}
"""FLAG_ELF_LIBC6 with the machine's 64-bit kind: the entries a 64-bit linker looks at."""

_OLD_HEADER = struct.Struct("<11sxI")
_OLD_ENTRY_BYTES = 12
_HEADER = struct.Struct("<20sIIB3xI12x")
_ENTRY = struct.Struct("<iIIIQ")
_EXTENSION = struct.Struct("<II")
_SECTION = struct.Struct("<IIII")


def _no_levels() -> Sequence[str]:
    return ()


class LdCache:
    """The entries for one machine. Immutable. Names are taken apart at once, paths only when they are looked up."""

    def __init__(self, data: bytes = b"", start: int = 0, entries: Mapping[bytes, Sequence[tuple[int, int]]] | None = None) -> None:
        self._data, self._start, self._entries = data, start, entries or {}

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, name: str, levels: Callable[[], Sequence[str]] = _no_levels) -> str | None:
        """The file for `name`: of those for a glibc-hwcaps level the one whose level `levels()` names first, else the plain one."""
        found = self._entries.get(name.encode("utf-8", "surrogateescape"), ())
        try:
            variants = {_level(self._data, self._start, hwcap): value for value, hwcap in reversed(found) if hwcap}
            for level in levels() if variants else ():
                if level in variants:
                    return self._path(variants[level])
            return next((self._path(value) for value, hwcap in found if not hwcap), None)
        except (struct.error, ValueError, IndexError):
            return None

    def _path(self, value: int) -> str | None:
        path = _string(self._data, self._start + value)
        return path if path.startswith("/") else None


EMPTY = LdCache()


def parse(data: bytes, machine: int) -> LdCache:
    """Read a cache file. Anything wrong with it makes it empty; nothing is ever raised for its contents."""
    wanted = FLAGS.get(machine)
    try:
        start = _new_format_at(data)
        if wanted is None or start is None:
            return EMPTY
        return LdCache(data, start, _collect(data, start, wanted))
    except (struct.error, ValueError, IndexError, OverflowError):
        return EMPTY


def _new_format_at(data: bytes) -> int | None:
    if data.startswith(NEW_MAGIC):
        return 0
    if data.startswith(OLD_MAGIC):  # glibc before 2.32 wrote both; the new one follows, aligned to 8
        _, count = _OLD_HEADER.unpack_from(data)
        start = int(_OLD_HEADER.size + count * _OLD_ENTRY_BYTES + 7) & ~7
        if data[start : start + len(NEW_MAGIC)] == NEW_MAGIC:
            return start
    return None


def _collect(data: bytes, start: int, wanted: int) -> dict[bytes, list[tuple[int, int]]]:
    """Name to (offset of the path, hwcap), best first: ldconfig has sorted them."""
    _, count, strings_bytes, order, _ = _HEADER.unpack_from(data, start)
    table_end = start + _HEADER.size + count * _ENTRY.size
    if order & 3 not in (0, 2) or table_end + strings_bytes > len(data):
        raise ValueError("other byte order, or truncated")
    found: dict[bytes, list[tuple[int, int]]] = {}
    find = data.index
    for flags, key, value, _, hwcap in _ENTRY.iter_unpack(data[start + _HEADER.size : table_end]):
        if flags == wanted and (hwcap == 0 or hwcap >> 32 == HWCAP_EXTENSION >> 32):
            at = start + key
            # Bounded, so that a large cache of a hostile image without any zero byte costs no more than its size.
            name = data[at : find(b"\0", at, at + STRING_BYTES)]
            found.setdefault(name, []).append((value, hwcap))
    return found


def _level(data: bytes, start: int, hwcap: int) -> str:
    """The name of the glibc-hwcaps level that an entry's number stands for; "" for none."""
    extension = int(_HEADER.unpack_from(data, start)[4])
    if not extension:
        return ""
    magic, count = _EXTENSION.unpack_from(data, extension)  # counted from the start of the file, unlike the strings
    if magic != EXTENSION_MAGIC or count > 64:
        return ""
    for index in range(count):
        tag, _, offset, size = _SECTION.unpack_from(data, extension + _EXTENSION.size + index * _SECTION.size)
        number = hwcap & 0xFFFFFFFF
        if tag == SECTION_HWCAPS and number < size // 4:
            (name,) = struct.unpack_from("<I", data, offset + 4 * number)
            return _string(data, start + int(name))
    return ""


def _string(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset, offset + STRING_BYTES)].decode("utf-8", "surrogateescape")
