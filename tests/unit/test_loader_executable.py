import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import elf_image
import pytest

from shoal.loader import Kind, inspect, library_closure, open_executable
from shoal.status import (
    AccessDeniedError,
    BadHandleError,
    BadPathError,
    InternalError,
    InvalidArgsError,
    NotDirError,
    NotFoundError,
    NotSupportedError,
    OutOfRangeError,
    Stage,
)

SETTLED_NS = 10**9


@pytest.fixture
def make(tmp_path):
    def make(data: bytes, name: str = "prog", mode: int = 0o755) -> str:
        path = tmp_path / name
        path.write_bytes(data)
        path.chmod(mode)
        return str(path)

    return make


@pytest.fixture
def old_enough(monkeypatch):
    """Files just written count as settled, as they would a moment later."""
    monkeypatch.setattr("shoal.loader.cache.SETTLE_NS", -(10**12))


def both(path):
    """What `inspect` says of a path and of a descriptor."""
    by_path = inspect(path)
    fd = open_executable(path)
    try:
        assert inspect(fd) == by_path
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)
    return by_path


def test_the_kinds_of_programs_are_told_apart(make):
    assert both("/bin/true").kind is Kind.DYNAMIC
    assert both(make(elf_image.build(), "static")).kind is Kind.STATIC
    assert both(make(b"#!/bin/sh -e\n" + b"x" * 5000, "script")).kind is Kind.SCRIPT
    assert both(make(b"hello", "text")).kind is Kind.UNKNOWN


def test_a_script_brings_its_first_bytes_and_a_program_its_image(make):
    script = inspect(make(b"#!/bin/sh\n" + b"x" * 5000))
    assert len(script.window) == 2058
    assert script.image is None
    assert inspect("/bin/true").window == b""
    assert inspect("/bin/true").program("/bin/true").needed


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", OutOfRangeError, "is empty"),
        (b"x", InternalError, "not a program"),
        (b"#", InternalError, "not a program"),
        (elf_image.build(machine=40), InternalError, "ARM"),
        (elf_image.build()[:80], InternalError, "truncated"),
        (elf_image.build(interpreter=b"/x"), InvalidArgsError, "zero byte"),
    ],
)
def test_what_is_wrong_inside_a_file_is_told_when_the_program_is_asked_for(make, data, error, says):
    path = make(data)
    found = both(path)
    assert found.kind is Kind.UNKNOWN
    with pytest.raises(error, match=says) as caught:
        found.program(path)
    assert caught.value.detail.startswith(path)


def test_a_script_is_no_program():
    with pytest.raises(InternalError, match="script"):
        inspect(shutil.which("ldd")).program("ldd")


@pytest.mark.parametrize("call", [inspect, open_executable])
class TestPaths:
    def test_nothing_there_is_not_found(self, call, tmp_path):
        path = str(tmp_path / "missing")
        with pytest.raises(NotFoundError, match="missing") as caught:
            call(path)
        assert caught.value.stage is Stage.LOAD
        with pytest.raises(NotFoundError, match="''"):
            call("")
        with pytest.raises(NotFoundError):
            call(path + "/")

    def test_a_dangling_link_is_not_found(self, call, tmp_path):
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(NotFoundError, match="link"):
            call(tmp_path / "link")

    def test_a_slash_after_a_file_or_a_file_on_the_way_is_not_dir(self, call):
        for path in ("/bin/true/", "/bin/true/x"):
            with pytest.raises(NotDirError, match=path):
                call(path)

    def test_too_long_or_looping_is_bad_path(self, call, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        for path in ("/" + "x" * 256, "/x" * 3000, str(tmp_path / "loop")):
            with pytest.raises(BadPathError):
                call(path)

    def test_a_zero_byte_is_invalid_args_and_no_path_a_type_error(self, call):
        for path in ("/bin/true\0", b"\0"):
            with pytest.raises(InvalidArgsError, match="zero byte"):
                call(path)
        with pytest.raises(TypeError):
            call(None)

    def test_directories_and_special_files_are_not_supported_and_never_waited_for(self, call, tmp_path):
        os.mkfifo(tmp_path / "fifo", 0o755)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "socket"))
            os.chmod(tmp_path / "socket", 0o755)
            for path, word in (
                (tmp_path, "directory"),
                (tmp_path / "fifo", "FIFO"),
                (tmp_path / "socket", "socket"),
                ("/dev/null", "device"),
            ):
                with pytest.raises(NotSupportedError, match=word) as caught:
                    call(path)
                assert str(path) in caught.value.detail

    def test_bytes_and_path_objects_are_paths(self, call):
        for path in (b"/bin/true", Path("/bin/true")):
            result = call(path)
            if isinstance(result, int):
                os.close(result)


def test_without_execute_permission_access_is_denied_also_for_root(make):
    path = make(b"#!/bin/sh\n", mode=0o644)
    with pytest.raises(AccessDeniedError, match="not executable") as caught:
        inspect(path)
    assert path in caught.value.detail
    fd = open_executable(path)
    try:
        with pytest.raises(AccessDeniedError, match="its name"):
            inspect(fd, "its name")
    finally:
        os.close(fd)


def test_permission_is_asked_for_again_when_the_file_is_known(make, old_enough):
    path = make(b"#!/bin/sh\n")
    assert inspect(path) is inspect(path)
    os.chmod(path, 0o644)
    with pytest.raises(AccessDeniedError):
        inspect(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_an_unreadable_file_is_denied_to_others_even_when_it_is_known(tmp_path, old_enough):
    code = """
import os, sys
from shoal.loader import inspect, open_executable
from shoal.status import AccessDeniedError
path = sys.argv[1]
inspect(path)
os.setresuid(65534, 65534, 65534)
for call in (inspect, open_executable):
    try:
        call(path)
    except AccessDeniedError as error:
        assert path in str(error), error
    else:
        raise SystemExit(f"{call} allowed it")
"""
    tmp_path.chmod(0o755)  # the folders above are closed to others: so the path is relative
    (tmp_path / "prog").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "prog").chmod(0o711)
    subprocess.run(
        [sys.executable, "-c", code, "prog"], cwd=tmp_path, check=True, env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare, to mount")
def test_a_noexec_mount_is_denied_and_said_so(tmp_path):
    code = """
import sys
from shoal.loader import inspect, open_executable
from shoal.status import AccessDeniedError
for target in (sys.argv[1], open_executable(sys.argv[1])):
    try:
        inspect(target)
    except AccessDeniedError as error:
        assert "noexec" in str(error), error
    else:
        raise SystemExit(f"{target} was allowed")
"""
    mounted = 'mount -t tmpfs -o noexec,size=1M none "$1" && cp /bin/true "$1" && exec "$2" -c "$3" "$1/true"'
    env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.environ["PATH"]}
    subprocess.run(["unshare", "-m", "sh", "-c", mounted, "sh", tmp_path, sys.executable, code], check=True, env=env)


def test_a_changed_file_is_looked_at_again(make, old_enough):
    path = make(b"#!/bin/a\n")
    assert inspect(path).window == b"#!/bin/a\n"
    make(b"#!/bin/b\n")
    assert inspect(path).window == b"#!/bin/b\n"


def test_a_file_written_this_moment_is_never_remembered(make):
    path = make(b"#!/bin/a\n")
    for letter in b"bcdefgh":
        with open(path, "r+b") as file:
            file.seek(7)
            file.write(bytes([letter]))
        assert inspect(path).window == b"#!/bin/%c\n" % letter


def test_a_memfd_is_read_every_time_as_a_mapping_may_change_it():
    fd = os.memfd_create("prog", os.MFD_CLOEXEC)
    try:
        os.write(fd, b"#!/bin/sh\n")
        assert inspect(fd).window == b"#!/bin/sh\n"
        assert not inspect(fd).cacheable
        os.pwrite(fd, b"#!/bin/ls\n", 0)
        assert inspect(fd, "prog").window == b"#!/bin/ls\n"
    finally:
        os.close(fd)


def test_a_descriptor_may_be_a_mere_place():
    fd = os.open("/bin/true", os.O_PATH | os.O_CLOEXEC)
    try:
        assert inspect(fd).kind is Kind.DYNAMIC
        assert library_closure(inspect(fd), fd).libraries
    finally:
        os.close(fd)


def test_a_descriptor_that_is_not_open_is_a_bad_handle(tmp_path):
    with open(tmp_path / "x", "w") as file:
        number = file.fileno()
    with pytest.raises(BadHandleError, match=str(number)):
        inspect(number)
    with pytest.raises(BadHandleError):
        inspect(-1)
    reader, writer = os.pipe()
    try:
        with pytest.raises(NotSupportedError, match="FIFO"):
            inspect(reader)
    finally:
        os.close(reader)
        os.close(writer)
