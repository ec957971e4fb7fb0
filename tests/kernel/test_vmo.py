"""Vmo: contents, sizes, seals, execution, and copies of files of every sort."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig.world import World

from shoal.handles.base import Rights
from shoal.handles.vmo import Vmo
from shoal.status import (
    AccessDeniedError,
    BadHandleError,
    BadPathError,
    InvalidArgsError,
    NotDirError,
    NotFileError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
    WrongTypeError,
)


def test_a_new_memory_is_zeros_of_exactly_its_size(world: World) -> None:
    with Vmo.create("5K", "nothing") as vmo:
        assert vmo.size == 5120
        assert vmo.read() == bytes(5120)
        assert vmo.name == "nothing"
        assert vmo.rights == Rights.DEFAULT_VMO
        assert not vmo.is_sealed
    with Vmo.create(0) as empty:
        assert empty.size == 0
        assert empty.read() == b""
        assert empty.name == ""
    world.assert_unchanged()


@settings(max_examples=40)
@given(st.binary(max_size=10_000), st.data())
def test_what_is_written_is_read(data: bytes, draw: st.DataObject) -> None:
    with Vmo.from_bytes(data) as vmo:
        assert vmo.read() == data
        offset = draw.draw(st.integers(0, len(data)))
        size = draw.draw(st.integers(0, len(data) - offset))
        assert vmo.read(size, offset) == data[offset : offset + size]
        assert vmo.write(b"x" * size, offset) == size
        assert vmo.read() == data[:offset] + b"x" * size + data[offset + size :]


@pytest.mark.parametrize(("size", "offset"), [(11, 0), (1, 10), (0, 11), (-1, 11), (5, 6), (1, -1), (-1, -1)])
def test_reading_past_the_end_is_out_of_range(size: int, offset: int) -> None:
    with Vmo.from_bytes(b"0123456789") as vmo, pytest.raises(OutOfRangeError):
        vmo.read(size, offset)


def test_writing_past_the_end_is_out_of_range_and_writes_nothing() -> None:
    with Vmo.from_bytes(b"0123456789") as vmo:
        for data, offset in ((b"xx", 9), (b"x", 10), (b"x", -1), (b"", 11), (b"x" * 11, 0)):
            with pytest.raises(OutOfRangeError):
                vmo.write(data, offset)
        assert vmo.read() == b"0123456789"
        assert vmo.write(b"", 10) == 0


@pytest.mark.parametrize("size", [1 << 63, 1 << 70, "9000P"])
def test_an_impossible_size_is_out_of_range(size: int | str, world: World) -> None:
    with pytest.raises(OutOfRangeError):
        Vmo.create(size)
    world.assert_unchanged()


@pytest.mark.parametrize("size", [-1, "much", ""])
def test_what_is_no_size_is_an_invalid_argument(size: int | str) -> None:
    with pytest.raises(InvalidArgsError):
        Vmo.create(size)


def test_wrong_types_are_type_errors() -> None:
    for wrong in (1.5, None, True, b"5"):
        with pytest.raises(TypeError):
            Vmo.create(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Vmo.from_bytes("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Vmo(1)  # type: ignore[call-arg]


def test_a_name_is_cut_at_31_bytes_and_may_be_cut_in_a_character() -> None:
    with Vmo.create(1, "x" * 300) as vmo:
        assert vmo.name == "x" * 31
    with Vmo.create(1, "é" * 16) as vmo:
        assert os.fsencode(vmo.name) == ("é" * 16).encode()[:31]
    with pytest.raises(InvalidArgsError):
        Vmo.create(1, "a\0b")


def test_nothing_can_change_its_size() -> None:
    with Vmo.create(10) as vmo:
        for size in (0, 20):
            with pytest.raises(PermissionError):
                os.ftruncate(vmo.fileno(), size)


def test_a_sealed_memory_cannot_be_written_through_any_handle(world: World) -> None:
    with Vmo.from_bytes(b"final") as vmo, vmo.duplicate() as copy:
        vmo.seal()
        vmo.seal()
        assert copy.is_sealed
        for handle in (vmo, copy):
            with pytest.raises(AccessDeniedError, match="sealed"):
                handle.write(b"x")
        with pytest.raises(PermissionError):
            os.pwrite(vmo.fileno(), b"x", 0)
        assert copy.read() == b"final"
    world.assert_unchanged()


def test_a_memory_mapped_for_writing_cannot_be_sealed() -> None:
    with Vmo.create(4096) as vmo, mmap.mmap(vmo.fileno(), 4096):
        with pytest.raises(UnavailableError, match="mapped"):
            vmo.seal()
        assert not vmo.is_sealed


def test_a_duplicate_without_write_cannot_write_even_around_the_handle() -> None:
    with Vmo.from_bytes(b"data") as vmo, vmo.duplicate(Rights.READ | Rights.DUPLICATE) as less:
        for operation in (lambda: less.write(b"x"), less.seal):
            with pytest.raises(AccessDeniedError, match="WRITE"):
                operation()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(less.fileno(), b"x", 0)
        with less.duplicate() as again:
            assert again.read() == b"data"
            assert fcntl.fcntl(again.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        vmo.write(b"D")
        assert less.read() == b"Data"


def test_reading_needs_the_right() -> None:
    with Vmo.from_bytes(b"data") as vmo, vmo.duplicate(Rights.WRITE) as less:
        with pytest.raises(AccessDeniedError, match="READ"):
            less.read()
        assert less.write(b"x") == 1


def test_an_executable_memory_runs_and_never_changes(workload: str, world: World) -> None:
    vmo = Vmo.from_file(workload)
    assert not Rights.EXECUTE & vmo.rights
    program = vmo.replace_as_executable()
    assert vmo.closed
    assert Rights.EXECUTE & program.rights
    assert not Rights.WRITE & program.rights
    assert program.is_sealed
    assert subprocess.run([f"/proc/self/fd/{program.fileno()}", "exit", "5"], pass_fds=[program.fileno()], check=False).returncode == 5
    program.close()
    world.assert_unchanged()


def test_a_new_memory_cannot_be_executed(workload: str) -> None:
    with Vmo.from_file(workload) as vmo, pytest.raises(PermissionError):
        subprocess.run([f"/proc/self/fd/{vmo.fileno()}"], pass_fds=[vmo.fileno()], check=False)


def test_replace_as_executable_consumes_the_handle_also_when_it_fails(world: World) -> None:
    vmo = Vmo.create(4096)
    with mmap.mmap(vmo.fileno(), 4096), pytest.raises(UnavailableError):
        vmo.replace_as_executable()
    assert vmo.closed
    with pytest.raises(BadHandleError):
        vmo.replace_as_executable()
    world.assert_unchanged()


def test_a_closed_memory_refuses_everything() -> None:
    vmo = Vmo.create(1)
    vmo.close()
    for operation in (vmo.read, vmo.seal, vmo.duplicate, vmo.replace_as_executable, vmo.fileno, lambda: vmo.write(b""), lambda: vmo.size):
        with pytest.raises(BadHandleError):
            operation()


@pytest.mark.parametrize("size", [1, 4095, 4096, 1_000_000])
def test_a_file_is_copied_whole(tmp_path: Path, size: int, world: World) -> None:
    path = tmp_path / ("n" * 40)
    data = os.urandom(size)
    path.write_bytes(data)
    with Vmo.from_file(path) as vmo:
        assert vmo.read() == data
        assert vmo.name == "n" * 31
        path.write_bytes(b"other")
        assert vmo.read() == data
    with Vmo.from_file(os.fsencode(path)) as vmo:
        assert vmo.read() == b"other"
    world.assert_unchanged()


def test_files_that_do_not_tell_their_size_are_copied() -> None:
    with Vmo.from_file("/proc/self/status") as vmo:
        assert vmo.read().startswith(b"Name:")
    with Vmo.from_file("/proc/self/environ") as vmo:
        assert vmo.size > 0


def test_an_empty_file_is_an_empty_memory(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with Vmo.from_file(tmp_path / "empty") as vmo:
        assert vmo.size == 0


def test_what_is_no_regular_file_is_refused_and_nothing_blocks(tmp_path: Path, world: World) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "link", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(NotFileError):
            Vmo.from_file(path)
    world.assert_unchanged()


def test_a_file_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for path, error in (
        (tmp_path / "missing", NotFoundError),
        (tmp_path / "file" / "below", NotDirError),
        (tmp_path / "loop", BadPathError),
        (tmp_path / ("x" * 300), BadPathError),
    ):
        with pytest.raises(error, match=path.name[:20]):
            Vmo.from_file(path)
    with pytest.raises(InvalidArgsError):
        Vmo.from_file("a\0b")
    with pytest.raises(TypeError):
        Vmo.from_file(3)  # type: ignore[arg-type]


@pytest.mark.root
def test_an_unreadable_file_is_access_denied(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    script = """
from shoal.handles.vmo import Vmo
from shoal.status import AccessDeniedError
try:
    Vmo.from_file(args[0])
except AccessDeniedError as error:
    answer(error.status.name)
"""
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    assert run_python(script, str(path), prefix=prefix) == "ACCESS_DENIED"


def test_a_file_larger_than_2_gib_is_copied(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    """sendfile moves at most 2 GiB - 4 KiB at once."""
    available = int(next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")).split()[1])
    if available < 4 << 20:
        pytest.skip("needs 4 GiB of free memory")
    path = tmp_path / "large"
    size = (2 << 30) + 5000
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    with Vmo.from_file(path) as vmo:
        assert vmo.size == size
        assert vmo.read(5, size - 5) == b"\0\0end"


def test_a_file_that_shrinks_meanwhile_is_copied_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            path.write_bytes(b"x" * 500_000)
            os.truncate(path, 1000)
            with path.open("ab") as file:
                file.write(b"x" * 2_000_000)

    path.write_bytes(b"x" * 1000)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            with Vmo.from_file(path) as vmo:
                assert vmo.read().strip(b"x\0") == b""
    finally:
        stop.set()
        thread.join()


def test_a_handed_over_memfd_is_taken_and_nothing_else(tmp_path: Path, closed_fd: int, world: World) -> None:
    with Vmo._from_fd(os.memfd_create("given"), Rights.READ) as vmo:
        assert vmo.name == "given"
        assert vmo.rights == Rights.READ
    (tmp_path / "file").touch()
    for path in ("/dev/null", tmp_path, tmp_path / "file"):
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(WrongTypeError):
            Vmo._from_fd(fd)
        os.close(fd)
    with pytest.raises(BadHandleError):
        Vmo._from_fd(closed_fd)
    world.assert_unchanged()


def test_a_memory_nobody_refers_to_is_closed(world: World) -> None:
    for _ in range(10):
        Vmo.create(1)
    gc.collect()
    world.assert_unchanged()


def test_running_out_of_descriptors_is_a_clear_error(run_python: Callable[..., Any]) -> None:
    script = """
import resource
from shoal.handles.vmo import Vmo
from shoal.status import NoResourcesError
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5, 100))
held = []
try:
    while True:
        held.append(Vmo.create(1))
except NoResourcesError as error:
    copies = 0
    try:
        held[0].duplicate()
    except NoResourcesError:
        answer(error.errno)
"""
    assert run_python(script) == 24
