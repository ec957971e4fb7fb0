"""What an ELF file says about itself: machine, interpreter and the libraries it needs. Nothing is executed or mapped.

Called by: executable, closure. Touches: only what `read` gives it. Every offset and length in the file is taken as a claim by
an enemy: checked against the size before it is used, and bounded in number.
Source: elf(5); System V gABI chapters 4 and 5; the kernel's fs/binfmt_elf.c for what may be executed;
glibc's elf/dl-load.c for what may be loaded.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from shoal.status import InternalError, SpawnError, Stage, Status, failure, failure_from_errno

Read = Callable[[int, int], bytes]
"""read(offset, size) -> up to `size` bytes; fewer at the end of the file."""

MAGIC = b"\x7fELF"
MACHINES = {"x86_64": 62, "aarch64": 183}
MACHINE_NAMES = {
    3: "x86 (32-bit)", 8: "MIPS", 20: "PowerPC", 21: "PowerPC 64", 22: "S/390", 40: "ARM (32-bit)",
    62: "x86-64", 183: "AArch64", 243: "RISC-V", 258: "LoongArch",
}  # fmt: skip
HOST_MACHINE = MACHINES.get(os.uname().machine, 0)

ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_GNU_STACK = 1, 2, 3, 0x6474E551
PF_X = 1
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SONAME, DT_RPATH, DT_RUNPATH = 0, 1, 5, 10, 14, 15, 29
DT_FLAGS_1, DT_AUXILIARY, DT_FILTER = 0x6FFFFFFB, 0x7FFFFFFD, 0x7FFFFFFF
DF_1_NODEFLIB = 0x800

HEAD_BYTES = 4096
PROGRAM_HEADERS_BYTES = 65536
"""The kernel refuses larger tables (ELF_MIN_ALIGN or 64 KiB, whichever is larger; load_elf_phdrs)."""
INTERPRETER_BYTES = 4096
DYNAMIC_BYTES = 1 << 20
STRING_BYTES = 1 << 16
PAGE = 4096

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_DYN = struct.Struct("<qQ")
_WANTED = frozenset((DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SONAME, DT_RPATH, DT_RUNPATH, DT_FLAGS_1, DT_AUXILIARY, DT_FILTER))


class ForeignElfError(InternalError):
    """A sound-looking ELF of another machine, word size or byte order: a linker passes over it and searches on."""


class ElfImage(NamedTuple):
    """The parts of an ELF file that decide how it is started."""

    machine: int
    type: int
    interpreter: str | None
    """PT_INTERP; None for a static program and for most libraries."""
    needed: tuple[str, ...] = ()
    soname: str | None = None
    rpath: str | None = None
    """DT_RPATH as written; None when there is a DT_RUNPATH, which makes every linker ignore it."""
    runpath: str | None = None
    filters: tuple[str, ...] = ()
    """DT_FILTER: loaded like a needed library."""
    auxiliary: tuple[str, ...] = ()
    """DT_AUXILIARY: loaded when it can be found."""
    executable_stack: bool = False
    no_default_libraries: bool = False
    """DF_1_NODEFLIB: the default directories are not searched for what this file needs."""

    @property
    def is_static(self) -> bool:
        """Decided by PT_INTERP alone, as the kernel does. Source: spec 5.4."""
        return self.interpreter is None

    @property
    def platform(self) -> str:
        """What $PLATFORM stands for: the kernel's AT_PLATFORM, the same word as uname's machine on both our machines."""
        return {number: name for name, number in MACHINES.items()}.get(self.machine, "")


def parse(read: Read, size: int, name: str = "the file", *, machine: int = HOST_MACHINE) -> ElfImage:
    """Read an ELF image for this machine.

    An executable stack (PT_GNU_STACK with PF_X) is reported, not refused: Linux grants it.

    Args:
        read: gives bytes of the file; a short answer is taken as its end.
        size: of the file, in bytes.
        name: how messages call it.
        machine: the EM_* number wanted; tests and images of other machines pass theirs.
    Raises:
        ForeignElfError: another machine, 32-bit or big-endian (status INTERNAL).
        InternalError: not an ELF, truncated, bad headers, nothing to load.
        InvalidArgsError: PT_INTERP is not NUL-terminated UTF-8.
        SpawnError: `read` failed; never anything else, whatever the bytes are.
    Source: spec 5.4.
    """
    try:
        return _Parser(read, size, name).parse(machine)
    except SpawnError:
        raise
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.LOAD, f"cannot read {name}") from error
    except struct.error as error:  # an offset no file can have: nothing below lets one through, but claims are claims
        raise failure(Status.INTERNAL, Stage.LOAD, f"{name} has bad ELF headers: {error}") from error


class _Parser:
    def __init__(self, read: Read, size: int, name: str) -> None:
        self.read, self.size, self.name = read, size, name
        self.head = read(0, min(HEAD_BYTES, size)) if size > 0 else b""  # one read holds all headers of most files

    def bad(self, what: str) -> SpawnError:
        return failure(Status.INTERNAL, Stage.LOAD, f"{self.name} {what}")

    def bytes_at(self, offset: int, count: int, what: str) -> bytes:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self.bad(f"is truncated: its {what} would end at byte {offset + count} of {self.size}")
        data = self.head[offset : offset + count] if offset + count <= len(self.head) else self.read(offset, count)
        if len(data) != count:
            raise self.bad(f"is truncated: its {what} cannot be read whole")
        return data

    def parse(self, machine: int) -> ElfImage:
        if self.head[:4] != MAGIC:
            raise self.bad("is not a program: it has neither an ELF header nor a #! line")
        kind, actual, header_offset, header_count = self._header(machine)
        table = self.bytes_at(header_offset, header_count * _PHDR.size, "program header table")
        loads: list[tuple[int, int, int]] = []
        interpreter: str | None = None
        dynamic: tuple[int, int] | None = None
        executable_stack = False
        for p_type, p_flags, p_offset, p_vaddr, _, p_filesz, _, _ in _PHDR.iter_unpack(table):
            if p_type == PT_LOAD:
                # The last page of a file is filled up with zeros when mapped, so that much may be missing.
                if p_filesz and p_offset + p_filesz > (self.size + PAGE - 1) // PAGE * PAGE:
                    raise self.bad(f"is truncated: a segment would end at byte {p_offset + p_filesz} of {self.size}")
                loads.append((p_vaddr, p_filesz, p_offset))
            elif p_type == PT_INTERP and interpreter is None:
                interpreter = self._interpreter(p_offset, p_filesz)
            elif p_type == PT_DYNAMIC and dynamic is None:
                dynamic = (p_offset, p_filesz)
            elif p_type == PT_GNU_STACK:
                executable_stack = bool(p_flags & PF_X)
        if not loads:
            raise self.bad("has nothing to load: no PT_LOAD segment")
        if dynamic is None:
            return ElfImage(actual, kind, interpreter, executable_stack=executable_stack)
        return self._dynamic(ElfImage(actual, kind, interpreter, executable_stack=executable_stack), dynamic, loads)

    def _header(self, machine: int) -> tuple[int, int, int, int]:
        if len(self.head) < 20:
            raise self.bad(f"is truncated: an ELF header in {self.size} bytes")
        word, order = self.head[4], self.head[5]
        actual = int.from_bytes(self.head[18:20], "big" if order == 2 else "little")
        if word != 2 or order != 1 or actual != machine:
            if word not in (1, 2) or order not in (1, 2):
                raise self.bad(f"has a bad ELF header: class {word}, byte order {order}")
            said = f"{MACHINE_NAMES.get(actual, f'machine {actual}')}, {32 * word}-bit, {'little' if order == 1 else 'big'}-endian"
            error = failure(Status.INTERNAL, Stage.LOAD, "")
            detail = f"{self.name} is not a program for this machine ({os.uname().machine}): it is for {said}"
            raise ForeignElfError(error.status, error.errno or 0, Stage.LOAD, detail)
        header = _EHDR.unpack(self.bytes_at(0, _EHDR.size, "ELF header"))
        ident, kind, _, version, _, phoff, _, _, ehsize, phentsize, phnum, _, _, _ = header
        if ident[6] != 1 or version != 1:
            raise self.bad(f"has a bad ELF header: version {ident[6]}, {version}")
        if kind not in (ET_EXEC, ET_DYN):
            raise self.bad(f"is an ELF file of type {kind}, not a program or a shared library")
        if phnum == 0:
            raise self.bad("has nothing to load: no program headers")
        if ehsize < _EHDR.size or phentsize != _PHDR.size or phnum * phentsize > PROGRAM_HEADERS_BYTES:
            raise self.bad(f"has a bad ELF header: {phnum} program headers of {phentsize} bytes")
        return kind, actual, phoff, phnum

    def _interpreter(self, offset: int, count: int) -> str:
        if count > INTERPRETER_BYTES:
            raise failure(Status.INVALID_ARGS, Stage.LOAD, f"{self.name} names an ELF interpreter too long to be a path: {count} bytes")
        raw = self.bytes_at(offset, count, "interpreter name")
        if raw[-1:] != b"\0":
            raise failure(Status.INVALID_ARGS, Stage.LOAD, f"{self.name} names an ELF interpreter that does not end with a zero byte")
        try:
            text = raw[: raw.index(b"\0")].decode()  # the kernel, too, stops at the first
        except UnicodeDecodeError as error:
            raise failure(Status.INVALID_ARGS, Stage.LOAD, f"{self.name} names an ELF interpreter that is not UTF-8") from error
        if not text:
            raise failure(Status.INVALID_ARGS, Stage.LOAD, f"{self.name} names an empty ELF interpreter")
        return text

    def _dynamic(self, plain: ElfImage, where: tuple[int, int], loads: list[tuple[int, int, int]]) -> ElfImage:
        offset, count = where
        if count > DYNAMIC_BYTES:
            raise self.bad(f"has a dynamic section of {count} bytes; {DYNAMIC_BYTES} are possible")
        table = self.bytes_at(offset, count // _DYN.size * _DYN.size, "dynamic section")
        single: dict[int, int] = {}
        listed: dict[int, list[int]] = {DT_NEEDED: [], DT_FILTER: [], DT_AUXILIARY: []}
        for tag, value in _DYN.iter_unpack(table):
            if tag == DT_NULL:
                break
            if tag in _WANTED:
                if tag in listed:
                    listed[tag].append(value)
                else:
                    single[tag] = value
        strings = _Strings(self, single.get(DT_STRTAB), single.get(DT_STRSZ, 0), loads)

        def one(tag: int) -> str | None:
            return strings.at(single[tag]) if tag in single else None

        def every(tag: int) -> tuple[str, ...]:
            return tuple(map(strings.at, listed[tag]))

        runpath = one(DT_RUNPATH)
        return plain._replace(
            needed=every(DT_NEEDED), soname=one(DT_SONAME), rpath=one(DT_RPATH) if runpath is None else None, runpath=runpath,
            filters=every(DT_FILTER), auxiliary=every(DT_AUXILIARY), no_default_libraries=bool(single.get(DT_FLAGS_1, 0) & DF_1_NODEFLIB),
        )  # fmt: skip


class _Strings:
    """The dynamic string table. Only the strings asked for are read: in a large library it holds megabytes of symbols."""

    def __init__(self, parser: _Parser, address: int | None, size: int, loads: list[tuple[int, int, int]]) -> None:
        self.parser, self.start, self.size, self.room = parser, -1, size, DYNAMIC_BYTES
        if address is None:
            return
        for vaddr, filesz, offset in loads:
            if vaddr <= address < vaddr + filesz:
                self.start = offset + address - vaddr
                self.size = min(size, vaddr + filesz - address)
                break

    def at(self, index: int) -> str:
        if self.start < 0 or index >= self.size:
            raise self.parser.bad("has a bad dynamic section: a name lies outside its string table")
        limit = min(self.size - index, STRING_BYTES)
        length = min(limit, 256)
        while True:
            raw = self.parser.bytes_at(self.start + index, length, "string table")
            end = raw.find(b"\0")
            # All names together are bounded as well: a table may point at one long string thousands of times.
            self.room -= length if end < 0 else end + 1
            if self.room < 0:
                raise self.parser.bad("has a bad dynamic section: its names are too long together")
            if end >= 0:
                return raw[:end].decode("utf-8", "surrogateescape")
            if length == limit:
                raise self.parser.bad("has a bad dynamic section: a name without an end")
            length = min(limit, length * 16)
