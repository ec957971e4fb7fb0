"""Packer: writes the packed form of a plan that the core runs. The layout is described in src/native/op.h.

Each op carries a label for people; when the core reports that op N failed, the label says what N was doing.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable

from shoal import _native
from shoal.status import Stage, Status, failure

CODE = {name: code for code, name in enumerate(_native.OPS)}

CWD_FD = -100
NO_FD = -1
SLOTS = 1024
OPS_MAX = 4096
TARGET_CLOEXEC = 0x40000000

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_HEAD = struct.Struct("=IIIIQiiQiIQ")
_OP = struct.Struct("=HHiiiIIQQ")
_NO_STR = 0xFFFFFFFF


class Packer:
    """Collects ops in order. Descriptor operands are numbers of this process, or slots from `slot()`."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.highest_fd = 2
        self.exec_fd = CWD_FD
        self._ops: list[bytes] = []
        self._blob = bytearray(b"\0")
        self._strings: dict[bytes, int] = {b"": 0}
        self._slots = 0
        self._unshare_at: int | None = None
        self._pairs_at = 0

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
        self.highest_fd = max(self.highest_fd, fd, fd2)
        self._ops.append(
            _OP.pack(CODE[name], flags, fd, fd2, -1 if out is None else -1000 - out, self._string(text), self._string(text2), a, b)
        )
        self.labels.append(label)

    def slot(self) -> int:
        """A fresh place for a descriptor that an op will make; usable as `out`, and as `fd` afterwards."""
        if self._slots == SLOTS:
            raise failure(Status.OUT_OF_RANGE, Stage.NAMESPACE, f"a child's world takes more than {SLOTS} mounts to make")
        self._slots += 1
        return -1000 - (self._slots - 1)

    def made(self, name: str, label: str, *, fd: int = NO_FD, text: str | bytes | None = None, text2: str | bytes | None = None, a: int = 0, b: int = 0) -> int:
        """Add an op that makes a descriptor; returns the slot it will be in."""
        slot = self.slot()
        self.op(name, label, fd=fd, out=slot, text=text, text2=text2, a=a, b=b)
        return slot

    def unshare_fds(self) -> None:
        """Leave the parent's descriptor table. Its one operand is known only when all ops are there."""
        self._unshare_at = len(self._ops)
        self.op("UNSHARE_FDS", "leaving the caller's descriptor table")

    def fd_map(self, pairs: Iterable[tuple[int, int]], null_fd: int) -> None:
        """Place descriptors: (source or slot, target). 0-2 without a source get `null_fd`; all others are closed."""
        numbers = array("i")
        count = 0
        for source, target in pairs:
            numbers.extend((source, target))
            self.highest_fd = max(self.highest_fd, source)
            count += 1
        placed = self._aligned(numbers.tobytes())
        self._pairs_at = placed.offset
        self.op("FD_MAP", "placing descriptors", fd=null_fd, text=placed, a=count)

    def pairs_at(self) -> int:
        """Where in the packed plan the pairs of `fd_map` are: array of C ints, (source, target) each."""
        return _HEAD.size + len(self._ops) * _OP.size + self._pairs_at

    def unshared_at(self) -> int:
        """Where in the packed plan the first descriptor to leave behind is written, as a 64-bit number."""
        return _HEAD.size + (self._unshare_at or 0) * _OP.size + 24

    def seccomp(self, program: bytes, label: str) -> None:
        """Install a filter: packed struct sock_filter."""
        self.op("SECCOMP", label, text=self._aligned(program), a=len(program) // 8)

    def pack(
        self,
        *,
        clone_flags: int = 0,
        cgroup_fd: int = NO_FD,
        enter_fd: int = NO_FD,
        enter_flags: int = 0,
        exec_fd: int = CWD_FD,
        exec_path: str | bytes = "",
        collect: bool = False,
    ) -> bytes:
        """The packed plan."""
        if len(self._ops) > OPS_MAX:
            raise failure(Status.OUT_OF_RANGE, Stage.NAMESPACE, f"a child's world takes more than {OPS_MAX} steps to make")
        self.exec_fd = exec_fd
        self.highest_fd = max(self.highest_fd, exec_fd)
        if self._unshare_at is not None:
            self._ops[self._unshare_at] = _OP.pack(CODE["UNSHARE_FDS"], 0, NO_FD, NO_FD, -1, _NO_STR, _NO_STR, self.highest_fd + 1, 0)
        path = self._string(exec_path)
        flags = (_native.PLAN_SHARE_FDS | _native.PLAN_COLLECT) if collect else _native.PLAN_SHARE_FDS
        head = _HEAD.pack(
            _native.PLAN_MAGIC, len(self._ops), len(self._blob), flags, clone_flags, cgroup_fd, enter_fd, enter_flags, exec_fd, path, 0
        )
        return b"".join((head, *self._ops, self._blob))

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


class _Placed(bytes):
    """Data already in the blob."""

    offset: int

    def __new__(cls, offset: int) -> _Placed:
        self = super().__new__(cls)
        self.offset = offset
        return self


def count_strings(strings: Iterable[bytes]) -> tuple[bytes, int]:
    """NUL-terminated strings in one piece, and how many."""
    items = list(strings)
    return (b"\0".join(items) + b"\0" if items else b""), len(items)
