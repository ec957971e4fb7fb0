"""UtcClock: what time it is, as an object that can be handed to a process.

A sealed page of memory says how to get from CLOCK_BOOTTIME, which every process can read and nobody can set, to UTC. All fields
are little-endian:

    offset  size  field
         0     8  magic: the bytes "SHOALUTC"
         8     4  version: 1
        12     4  flags: bit 0: mirror; the host's own clock is meant, whatever it is set to
        16     8  reference_ns: CLOCK_BOOTTIME at the moment the page was made (signed)
        24     8  utc_ns: UTC at that moment, nanoseconds since 1970 (signed)
        32     8  rate_ppb: nanoseconds of this clock per second of CLOCK_BOOTTIME; 1,000,000,000 is real time (signed)
        40    24  zeros

A program in C reads it like this:

    struct shoal_utc { char magic[8]; uint32_t version, flags; int64_t reference_ns, utc_ns, rate_ppb; };

    const struct shoal_utc *c = mmap(NULL, sizeof *c, PROT_READ, MAP_PRIVATE, fd, 0);
    struct timespec t;
    int64_t utc;
    if (c == MAP_FAILED || memcmp(c->magic, "SHOALUTC", 8) != 0 || c->version != 1)
        return -1;
    clock_gettime(c->flags & 1 ? CLOCK_REALTIME : CLOCK_BOOTTIME, &t);
    utc = t.tv_sec * 1000000000LL + t.tv_nsec;
    if (!(c->flags & 1))
        utc = c->utc_ns + (int64_t)((__int128)(utc - c->reference_ns) * c->rate_ppb / 1000000000);

A process in another time namespace has another CLOCK_BOOTTIME; shoal makes no time namespaces.

Source: clock_gettime(2), memfd_create(2); zx_clock_create(), zx_utc_reference_get(); spec 6.6.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from typing import ClassVar, Final, NamedTuple, Self

from shoal.handles.base import Handle, Rights
from shoal.handles.vmo import Vmo, check_memory
from shoal.status import Stage, Status, failure, failure_from_errno

MAGIC: Final = b"SHOALUTC"
VERSION: Final = 1
MIRROR: Final = 1

_LAYOUT = struct.Struct("<8sIIqqq24x")
_NS = 1_000_000_000
_INT64 = 1 << 63
_LARGEST_S = 1 << 40


class _Page(NamedTuple):
    magic: bytes
    version: int
    flags: int
    reference_ns: int
    utc_ns: int
    rate_ppb: int


_given_clock: list[Callable[[], UtcClock | None]] = []


def use_given_clock(source: Callable[[], UtcClock | None]) -> None:
    """Make children inherit the clock `source` tells of: the layer that knows what this process was handed at its start."""
    _given_clock[:] = [source]


def given_clock() -> UtcClock | None:
    """The clock this process was handed at its start, borrowed, or None: then its clock is the host's."""
    return _given_clock[0]() if _given_clock else None


class UtcClock(Handle):
    """A clock that tells UTC; `fileno()` is its page of memory, laid out as above."""

    kind: ClassVar[str] = "clock"
    default_rights: ClassVar[Rights] = Rights.DEFAULT_CLOCK & ~Rights.WRITE  # the page is final

    _page: _Page | None

    @classmethod
    def system(cls) -> UtcClock:
        """The host's clock; follows when that is set."""
        return cls._made(MIRROR, time.time_ns(), _NS)

    @classmethod
    def create(cls, *, offset_s: float = 0.0, rate: float = 1.0) -> UtcClock:
        """A clock of its own, which starts now and does not follow when the host's is set.

        Args:
            offset_s: seconds it is ahead of the host's clock now.
            rate: how fast it runs; 1 is real time. Kept to nine digits after the point.
        Raises:
            InvalidArgsError: not finite, out of the range of 64 bits of nanoseconds, or a rate not above zero.
        """
        for what, value in (("offset_s", offset_s), ("rate", rate)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{what} is a number, not {type(value).__name__}")
            # Beyond this 64 bits of nanoseconds are over in any case, and a float may overflow on the way.
            if not -_LARGEST_S < value < _LARGEST_S:  # false for nan, too
                raise failure(Status.INVALID_ARGS, Stage.HANDLE, f"{what} is not finite or far too large")
        rate_ppb = round(rate * _NS)
        if not 0 < rate_ppb < _INT64:
            raise failure(Status.INVALID_ARGS, Stage.HANDLE, f"rate must be above zero, at least 1e-9 and below 9e9: {rate}")
        utc_ns = time.time_ns() + round(offset_s * _NS)
        if not -_INT64 <= utc_ns < _INT64:
            raise failure(Status.INVALID_ARGS, Stage.HANDLE, f"offset_s leads out of what a clock can show: {offset_s}")
        return cls._made(0, utc_ns, rate_ppb)

    @classmethod
    def _from_fd(cls, fd: int, rights: Rights | None = None) -> Self:
        """The handle to a clock that is there already.

        Raises:
            BadHandleError: `fd` is not open.
            WrongTypeError: it is not a clock, or not sealed.
        Ownership: takes over `fd`; on an error it stays with the caller.
        """
        page = _read_page(fd)
        self = super()._own(fd, rights)
        self._page = page
        return self

    @classmethod
    def _own(cls, fd: int, rights: Rights | None = None) -> Self:
        return cls._from_fd(fd, rights)

    def now(self) -> float:
        """Seconds since 1970. Needs `Rights.READ`."""
        return self.now_ns() / _NS

    def now_ns(self) -> int:
        """Nanoseconds since 1970. Needs `Rights.READ`."""
        self.require(Rights.READ, "now()")
        page = self._page
        if page is None:
            raise self._closed_error()
        if page.flags & MIRROR:
            return time.time_ns()
        passed = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - page.reference_ns
        return page.utc_ns + passed * page.rate_ppb // _NS

    @classmethod
    def _made(cls, flags: int, utc_ns: int, rate_ppb: int) -> UtcClock:
        page = _Page(MAGIC, VERSION, flags, time.clock_gettime_ns(time.CLOCK_BOOTTIME), utc_ns, rate_ppb)
        with Vmo.from_bytes(_LAYOUT.pack(*page), "shoal-utc") as memory:
            memory.seal()
            return cls._from_fd(memory.consume())


def _read_page(fd: int) -> _Page:
    check_memory(fd)
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        data = os.pread(fd, _LAYOUT.size, 0)
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"descriptor {fd} cannot be read as a clock") from error
    if not sealed or len(data) < _LAYOUT.size:
        raise failure(Status.WRONG_TYPE, Stage.HANDLE, f"descriptor {fd} is not a clock")
    page = _Page(*_LAYOUT.unpack(data))
    if page.magic != MAGIC or page.version != VERSION:
        raise failure(Status.WRONG_TYPE, Stage.HANDLE, f"descriptor {fd} is not a clock of version {VERSION}")
    return page
