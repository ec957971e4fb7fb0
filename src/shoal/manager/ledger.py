"""The ledger: one file in which each domain's own init keeps what is true of the domain, so that it outlives every manager.

A slot belongs to one domain from before its first instruction until the database has its exit status. Only its init writes it then.
The layout is in src/native/domain.h.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import struct
from dataclasses import dataclass
from typing import Final

from shoal.manager.errors import ManagerError

FREE, ASSIGNED, RUNNING, ENDING, ENDED = range(5)
CAUSE_ITSELF, CAUSE_KILLED, CAUSE_WALL_TIME, CAUSE_CPU_TIME, CAUSE_UNBEGUN = range(5)

SLOTS_MOST: Final = 1 << 20
"""More domains no machine has: a number beyond is damage."""
_SLOT: Final = struct.Struct("=IiQQQiiiiqqqqqQQQ16x")
COMMANDS: Final = 1
"""In `can`: its init starts commands."""
SIZE: Final = 128
"""Bytes of a slot."""
_STEP: Final = 1024
assert _SLOT.size == SIZE


@dataclass(frozen=True, slots=True)
class Slot:
    """What an init has written.

    Attributes:
        state: FREE to ENDED. cause: who ended it; CAUSE_UNBEGUN: its program was never executed.
        init_start: in clock ticks since boot, which with the pid tells it from any other process.
        code, status: of the dispatcher that ended first, as waitid(2) tells; where a cause is given, the status is the one ordered.
        can: what an init of an older version could not.
    """

    state: int
    cause: int
    id: int
    key: int
    init_start: int
    init_pid: int
    pid: int
    code: int
    status: int
    user_us: int
    system_us: int
    max_rss_kib: int
    started_ns: int
    ended_ns: int
    log_bytes: int
    log_lost: int
    can: int = 0


class Ledger:
    """The file, and which of its slots nobody has. Grows by 1,024 slots, whose place on the disk is taken beforehand."""

    def __init__(self, path: str) -> None:
        """Open it, or make it.

        Raises:
            OSError: it cannot be opened or made.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.count = os.fstat(self._fd).st_size // SIZE
        """How many slots there are."""
        self._unused: list[int] = []

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def all(self) -> list[Slot]:
        """Every slot, by its number."""
        data = b""
        while len(data) < self.count * SIZE and (more := os.pread(self._fd, self.count * SIZE - len(data), len(data))):
            data += more
        return [Slot(*fields) for fields in _SLOT.iter_unpack(data[: len(data) // SIZE * SIZE])]

    def is_settled(self) -> bool:
        """Whether no init that an earlier manager may have told of a slot is still about to write there: DOMAIN_PENDING in domain.h."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def reach(self, count: int) -> None:
        """Have at least so many slots.

        Raises:
            ManagerError: the disk is full.
        """
        if count > self.count:
            self._grow(-(-(count - self.count) // _STEP) * _STEP)

    def _grow(self, by: int) -> None:
        try:
            os.posix_fallocate(self._fd, self.count * SIZE, by * SIZE)
        except OSError as error:
            raise ManagerError("PROC_MGMT_ERR_CREATE_DOMAIN_TABLE", f"the ledger cannot grow: {error.strerror}") from error
        self.count += by

    def offer(self, number: int) -> None:
        """Say that nobody has this slot."""
        heapq.heappush(self._unused, number)

    def read(self, number: int) -> Slot:
        """What is in one slot."""
        data = os.pread(self._fd, SIZE, number * SIZE)
        return Slot(*_SLOT.unpack(data.ljust(SIZE, b"\0")))

    def take(self) -> int:
        """A slot that nobody has.

        Raises:
            ManagerError: the disk is full.
        """
        if not self._unused:
            self._grow(_STEP)
            self._unused = list(range(self.count - _STEP, self.count))
        return heapq.heappop(self._unused)

    def give_back(self, number: int) -> None:
        """Clear a slot, whose init has ended, and let it be taken again."""
        os.pwrite(self._fd, bytes(SIZE), number * SIZE)
        self.offer(number)
