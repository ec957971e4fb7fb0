"""ELF files made to measure for tests: sound by default, with any part replaced on request."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from shoal.loader.elf import HOST_MACHINE

BASE = 0x400000


def build(
    *,
    interpreter: bytes | None = None,
    needed: Sequence[bytes] = (),
    soname: bytes | None = None,
    rpath: bytes | None = None,
    runpath: bytes | None = None,
    entries: Sequence[tuple[int, int]] = (),
    machine: int = HOST_MACHINE,
    kind: int = 3,
    stack: int | None = None,
    tail: bytes = b"",
) -> bytes:
    """One PT_LOAD over the whole file; the strings of `needed` and the others in one table."""
    strings = bytearray(b"\0")

    def put(text: bytes) -> int:
        strings.extend(text + b"\0")
        return len(strings) - len(text) - 1

    dynamic = [(1, put(text)) for text in needed]
    dynamic += [(tag, put(text)) for tag, text in ((14, soname), (15, rpath), (29, runpath)) if text is not None]
    dynamic += entries
    with_dynamic = bool(dynamic)
    count = 1 + (interpreter is not None) + with_dynamic + (stack is not None)
    at = 64 + 56 * count
    interpreter_at = at
    at += len(interpreter or b"")
    strings_at = at
    at += len(strings)
    dynamic_at = at = (at + 7) & ~7
    dynamic += [(5, BASE + strings_at), (10, len(strings)), (0, 0)]
    table = b"".join(struct.pack("<qQ", *entry) for entry in dynamic) if with_dynamic else b""
    size = dynamic_at + len(table) + len(tail)
    headers = [struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 4096)]
    if interpreter is not None:
        headers.append(struct.pack("<IIQQQQQQ", 3, 4, interpreter_at, 0, 0, len(interpreter), len(interpreter), 1))
    if with_dynamic:
        headers.append(struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, BASE + dynamic_at, 0, len(table), len(table), 8))
    if stack is not None:
        headers.append(struct.pack("<IIQQQQQQ", 0x6474E551, stack, 0, 0, 0, 0, 0, 16))
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, kind, machine, 1, BASE, 64, 0, 0, 64, 56, count, 0, 0, 0)
    data = header + b"".join(headers) + (interpreter or b"") + bytes(strings)
    return data.ljust(dynamic_at, b"\0") + table + tail
