"""Packer: writes the packed form of a plan that the core runs. The layout is described in src/native/op.h.

Each op carries a label for people; when the core reports that op N failed, the label says what N was doing.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import TypedDict

from shoal import _native
from shoal.arguments import StrOrBytesPath
from shoal.status import Stage, Status, failure

CODE = {name: code for code, name in enumerate(_native.OPS)}

CWD_FD = -100
NO_FD = -1
SLOTS = 1024
OPS_MAX = 4096
TARGET_CLOEXEC = 0x40000000
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_HEAD = struct.Struct("=IIIIQiiQiIQ")
_OP = struct.Struct("=HHiiiIIQQ")
_INT, _LONG = struct.Struct("=i"), struct.Struct("=Q")
_NO_STR = 0xFFFFFFFF
_CGROUP_AT, _ENTER_AT, _EXEC_AT = 24, 28, 40  # in the header
_FD_AT, _FD2_AT, _A_AT = 4, 8, 24  # in an op
_FIRST_HOLE = -5000


class Place(TypedDict, total=False):
    """Where a process begins, for `Packer.packed()`: a cgroup, and what it enters, by setns(2) with these flags."""

    cgroup_fd: int
    enter_fd: int
    enter_flags: int


class Packed:
    """A packed plan, perhaps with holes: places for descriptors and other numbers that are known only when it is launched.

    Attributes:
        labels: what each op is doing, for people.
        holes: how many numbers `filled()` takes.
        nested: it makes a pid namespace in one it enters, so that the pid the core tells is not as seen from here.
    """

    __slots__ = ("_data", "_highest_fd", "_holes", "_last", "_unshare_at", "_values", "labels", "nested")

    def __init__(
        self,
        data: bytes,
        labels: list[str],
        holes: list[list[int]],
        values: frozenset[int],
        highest_fd: int,
        unshare_at: int | None,
        nested: bool,
    ) -> None:
        self._data = data
        self._values = values
        self._holes = holes
        self._highest_fd = highest_fd
        self._unshare_at = unshare_at
        self._last: tuple[Sequence[int], bytes] = ((-1,), b"")  # the same numbers come again and again
        self.labels = labels
        self.nested = nested

    @property
    def holes(self) -> int:
        return len(self._holes)

    def filled(self, fds: Sequence[int]) -> bytes:
        """What the core takes, with the holes filled in the order they were made."""
        last = self._last
        if last[0] == fds:
            return last[1]
        data = bytearray(self._data)
        highest = self._highest_fd
        for index, (places, fd) in enumerate(zip(self._holes, fds, strict=True)):
            if index not in self._values:
                highest = max(highest, fd)
            for place in places:
                _INT.pack_into(data, place, fd)
        if self._unshare_at is not None:
            _LONG.pack_into(data, self._unshare_at, highest + 1)
        packed = bytes(data)
        self._last = (fds, packed)
        return packed

    def template(self) -> tuple[bytes, tuple[int, ...]]:
        """For whom fills the only hole itself, with 32 bits: the bytes, and where they go."""
        (places,) = self._holes
        return self._data, tuple(places)


class Packer:
    """Collects ops in order. Descriptor operands are numbers of this process, slots from `made()`, or holes from `hole()`."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self._ops: list[bytes] = []
        self._blob = bytearray(b"\0")
        self._strings: dict[bytes, int] = {b"": 0}
        self._slots = 0
        self._holes: list[list[int]] = []
        self._values: set[int] = set()
        self._holes_in_blob: list[tuple[int, int]] = []
        self._highest_fd = 2
        self._unshare_at: int | None = None

    def op(
        self,
        name: str,
        label: str,
        *,
        fd: int = NO_FD,
        fd2: int = NO_FD,
        out: int | None = None,
        text: str | bytes | None = None,
        text2: str | bytes | None = None,
        a: int = 0,
        b: int = 0,
        flags: int = 0,
    ) -> None:
        """Add one op. `out` is a slot."""
        at = _HEAD.size + len(self._ops) * _OP.size
        self._note(fd, at + _FD_AT)
        self._note(fd2, at + _FD2_AT)
        self._ops.append(
            _OP.pack(CODE[name], flags, fd, fd2, -1 if out is None else -1000 - out, self._string(text), self._string(text2), a, b)
        )
        self.labels.append(label)

    def made(
        self,
        name: str,
        label: str,
        *,
        fd: int = NO_FD,
        text: str | bytes | None = None,
        text2: str | bytes | None = None,
        a: int = 0,
        b: int = 0,
        flags: int = 0,
    ) -> int:
        """Add an op that makes a descriptor; returns the slot it will be in, usable as `fd` afterwards."""
        if self._slots == SLOTS:
            raise failure(Status.OUT_OF_RANGE, Stage.NAMESPACE, f"a child's world takes more than {SLOTS} mounts to make")
        self._slots += 1
        slot = -1000 - (self._slots - 1)
        self.op(name, label, fd=fd, out=slot, text=text, text2=text2, a=a, b=b, flags=flags)
        return slot

    def hole(self) -> int:
        """A descriptor whose number is told at the launch."""
        self._holes.append([])
        return _FIRST_HOLE - (len(self._holes) - 1)

    def value_hole(self) -> int:
        """A number told at the launch that is no descriptor."""
        self._values.add(len(self._holes))
        return self.hole()

    def received(self) -> int:
        """A descriptor that comes with the plan, in a message: the next slot."""
        self._slots += 1
        return -1000 - (self._slots - 1)

    def unshare_fds(self) -> None:
        """Leave the parent's descriptor table. What is left behind is known only when all other numbers are."""
        self._unshare_at = _HEAD.size + len(self._ops) * _OP.size + _A_AT
        self.op("UNSHARE_FDS", "leaving the caller's descriptor table")

    def fd_map(self, pairs: Sequence[tuple[int, int]], null_fd: int) -> None:
        """Place descriptors: (source, target). 0-2 without a source get `null_fd`; all others are closed."""
        numbers = array("i", (number for pair in pairs for number in pair))
        placed = self._aligned(numbers.tobytes())
        for index, (source, _) in enumerate(pairs):
            if source <= _FIRST_HOLE:
                self._holes_in_blob.append((_FIRST_HOLE - source, placed.offset + 2 * _INT.size * index))
            else:
                self._highest_fd = max(self._highest_fd, source)
        self.op("FD_MAP", "placing descriptors", fd=null_fd, text=placed, a=len(pairs))

    def inherit_fds(self, stdio: Sequence[int], kept: Sequence[int], *, close_others: bool) -> None:
        """What is at 0, 1 and 2 (NO_FD: what the caller has there), and the numbers that survive exec, in ascending order."""
        numbers = array("i", (*stdio, *kept))
        self._highest_fd = max(self._highest_fd, *numbers)
        placed = self._aligned(numbers.tobytes())
        self.op("INHERIT_FDS", "placing descriptors", text=placed, a=len(numbers), b=int(close_others))

    def seccomp(self, program: bytes, label: str) -> None:
        """Install a filter: packed struct sock_filter."""
        self.op("SECCOMP", label, text=self._aligned(program), a=len(program) // 8)

    def affinity(self, processors: Sequence[int], label: str) -> None:
        """Run on these processors only."""
        mask = bytearray(8 * (max(processors) // 64 + 1))
        for number in processors:
            mask[number // 8] |= 1 << number % 8
        self.op("AFFINITY", label, text=self._aligned(bytes(mask)), a=len(mask))

    def packed(
        self,
        *,
        clone_flags: int = 0,
        cgroup_fd: int = NO_FD,
        enter_fd: int = NO_FD,
        enter_flags: int = 0,
        exec_fd: int = CWD_FD,
        exec_path: str | bytes = "",
        collect: bool = False,
        sibling: bool = False,
    ) -> Packed:
        """The packed plan."""
        if len(self._ops) > OPS_MAX:
            raise failure(Status.OUT_OF_RANGE, Stage.NAMESPACE, f"a child's world takes more than {OPS_MAX} steps to make")
        for fd, at in ((cgroup_fd, _CGROUP_AT), (enter_fd, _ENTER_AT), (exec_fd, _EXEC_AT)):
            self._note(fd, at)
        path = self._string(exec_path)
        flags = 0 if self._unshare_at is None and not collect else _native.PLAN_SHARE_FDS
        flags |= _native.PLAN_COLLECT if collect else 0
        flags |= _native.PLAN_SIBLING if sibling else 0
        head = _HEAD.pack(
            _native.PLAN_MAGIC, len(self._ops), len(self._blob), flags, clone_flags, cgroup_fd, enter_fd, enter_flags, exec_fd, path, 0
        )
        blob_at = _HEAD.size + len(self._ops) * _OP.size
        for hole, at in self._holes_in_blob:
            self._holes[hole].append(blob_at + at)
        nested = bool(clone_flags & enter_flags & CLONE_NEWPID)
        return Packed(
            b"".join((head, *self._ops, self._blob)),
            self.labels,
            self._holes,
            frozenset(self._values),
            self._highest_fd,
            self._unshare_at,
            nested,
        )

    def _note(self, fd: int, at: int) -> None:
        if fd <= _FIRST_HOLE:
            self._holes[_FIRST_HOLE - fd].append(at)
        elif fd > self._highest_fd:
            self._highest_fd = fd

    def _string(self, text: str | bytes | _Placed | None) -> int:
        if text is None:
            return _NO_STR
        if isinstance(text, _Placed):
            return text.offset
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        offset = self._strings.get(data)
        if offset is None:
            offset = self._strings[data] = len(self._blob)
            self._blob += data
            self._blob += b"\0"
        return offset

    def _aligned(self, data: bytes) -> _Placed:
        self._blob += b"\0" * (-len(self._blob) % 8)
        offset = len(self._blob)
        self._blob += data
        self._blob += b"\0"
        return _Placed(offset)


def operand_at(index: int) -> int:
    """Where the operand `a` of the op with this index lies in a packed plan: 8 bytes."""
    return _HEAD.size + index * _OP.size + _A_AT


class _Placed(bytes):
    """Data already in the blob."""

    offset: int

    def __new__(cls, offset: int) -> _Placed:
        self = super().__new__(cls)
        self.offset = offset
        return self


def encode_words(words: Iterable[StrOrBytesPath], what: str = "argv") -> tuple[bytes, ...]:
    """Words as the kernel takes them.

    Raises:
        InvalidArgsError: the encoding of file names lacks a character of one of them; names it as an item of `what`.
    """
    words = tuple(words)
    try:
        return tuple(map(os.fsencode, words))
    except UnicodeEncodeError as error:
        raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, not_encoded(item_of(words, error, what), error)) from None


def item_of(words: Sequence[StrOrBytesPath], error: UnicodeEncodeError, what: str) -> str:
    """How the word that `error` is about is called."""
    return next((f"{what}[{index}]" for index, word in enumerate(words) if os.fspath(word) == error.object), what)


def not_encoded(what: str, error: UnicodeEncodeError) -> str:
    """Why `what` cannot be given to the kernel, without the rest of it, which may be a secret."""
    remedy = "" if error.encoding == "utf-8" else "; a UTF-8 locale has it, and so has Python with PYTHONUTF8=1"
    return f"{what} has {error.object[error.start]!a} in it, which the encoding of file names ({error.encoding}) lacks{remedy}"


def count_strings(strings: Iterable[bytes]) -> tuple[bytes, int]:
    """NUL-terminated strings in one piece, and how many."""
    items = list(strings)
    return (b"\0".join(items) + b"\0" if items else b""), len(items)
