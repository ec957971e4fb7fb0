"""UtcClock: what it tells, its layout, and what is refused."""

from __future__ import annotations

import fcntl
import math
import os
import struct
import subprocess
import time
from pathlib import Path

import pytest
from rig.world import World

from shoal.handles.base import Rights
from shoal.handles.clock import UtcClock
from shoal.handles.vmo import Vmo
from shoal.status import AccessDeniedError, BadHandleError, InvalidArgsError, WrongTypeError

LAYOUT = struct.Struct("<8sIIqqq24x")


def test_the_systems_clock_tells_the_hosts_time(world: World) -> None:
    with UtcClock.system() as clock:
        before = time.time_ns()
        now = clock.now_ns()
        assert before <= now <= time.time_ns()
        assert abs(clock.now() - time.time()) < 5
    world.assert_unchanged()


@pytest.mark.parametrize("offset", [0.0, 3600.0, -1e9, 5e9, 0.25])
def test_an_offset_is_kept(offset: float) -> None:
    with UtcClock.create(offset_s=offset) as clock:
        assert abs(clock.now() - time.time() - offset) < 5


@pytest.mark.parametrize("rate", [2.0, 0.5, 1.0, 1000])
def test_a_rate_is_kept(rate: float) -> None:
    with UtcClock.create(rate=rate) as clock:
        began, at = time.clock_gettime_ns(time.CLOCK_BOOTTIME), clock.now_ns()
        time.sleep(0.05)
        passed, told = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - began, clock.now_ns() - at
        assert told == pytest.approx(passed * rate, rel=0.2)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, -math.inf, 1e-12, 1e10])
def test_an_impossible_rate_is_an_invalid_argument(rate: float, world: World) -> None:
    with pytest.raises(InvalidArgsError):
        UtcClock.create(rate=rate)
    world.assert_unchanged()


@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf, 1e300, -1e11, 10**400])
def test_an_impossible_offset_is_an_invalid_argument(offset: float) -> None:
    with pytest.raises(InvalidArgsError):
        UtcClock.create(offset_s=offset)
    with pytest.raises(TypeError):
        UtcClock.create(offset_s="1")  # type: ignore[arg-type]


def test_reading_needs_the_right_and_an_open_handle() -> None:
    clock = UtcClock.system()
    assert not Rights.WRITE & clock.rights
    with clock.duplicate(Rights.WAIT) as less, pytest.raises(AccessDeniedError, match="READ"):
        less.now()
    with clock.duplicate(Rights.READ) as reader:
        assert abs(reader.now() - clock.now()) < 5
    clock.close()
    with pytest.raises(BadHandleError):
        clock.now()


def test_the_page_is_as_documented_and_final() -> None:
    with UtcClock.create(offset_s=100, rate=1.5) as clock:
        data = os.pread(clock.fileno(), 4096, 0)
        assert len(data) == 64
        magic, version, flags, reference, utc, rate = LAYOUT.unpack(data)
        assert (magic, version, flags, rate) == (b"SHOALUTC", 1, 0, 1_500_000_000)
        assert abs(reference - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) < 5e9
        assert abs(utc - time.time_ns() - 100e9) < 5e9
        assert fcntl.fcntl(clock.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        with pytest.raises(PermissionError):
            os.pwrite(clock.fileno(), b"x", 0)
    with UtcClock.system() as clock:
        assert LAYOUT.unpack(os.pread(clock.fileno(), 64, 0))[2] == 1


def test_the_c_code_of_the_documentation_reads_it(tmp_path: Path) -> None:
    import shoal.handles.clock as module

    lines = (module.__doc__ or "").splitlines()
    first = next(index for index, line in enumerate(lines) if "struct shoal_utc {" in line)
    last = next(index for index, line in enumerate(lines) if "rate_ppb / 1000000000" in line)
    declaration, *body = (line.strip() for line in lines[first : last + 1])
    program = "\n".join(
        [
            *(f"#include <{name}.h>" for name in ("stdint", "stdio", "stdlib", "string", "sys/mman", "time")),
            declaration,
            "int main(int argc, char **argv) { int fd = atoi(argv[1]); (void)argc;",
            *body,
            'printf("%lld\\n", (long long)utc); return 0; }',
        ]
    )
    source, binary = tmp_path / "read.c", tmp_path / "read"
    source.write_text(program)
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", binary, source], check=True)
    for clock in (UtcClock.system(), UtcClock.create(offset_s=-1e6, rate=3)):
        with clock:
            before = clock.now_ns()
            told = int(subprocess.run([binary, str(clock.fileno())], pass_fds=[clock.fileno()], capture_output=True, check=True).stdout)
            assert before <= told <= clock.now_ns()


def test_a_handed_over_clock_is_taken_and_nothing_else(closed_fd: int, world: World) -> None:
    with UtcClock.create(offset_s=50) as clock, UtcClock._from_fd(os.dup(clock.fileno()), Rights.READ) as same:
        assert abs(same.now() - clock.now()) < 5
    page = LAYOUT.pack(b"SHOALUTC", 1, 0, 0, 0, 1)
    wrong = {"short": page[:-1], "magic": b"x" + page[1:], "version": page[:8] + b"\2" + page[9:]}
    for what, data in wrong.items():
        with Vmo.from_bytes(data, what) as vmo:
            vmo.seal()
            with pytest.raises(WrongTypeError):
                UtcClock._from_fd(vmo.fileno())
    with Vmo.from_bytes(page, "not sealed") as vmo, pytest.raises(WrongTypeError):
        UtcClock._from_fd(vmo.fileno())
    with pytest.raises(BadHandleError):
        UtcClock._from_fd(closed_fd)
    world.assert_unchanged()
