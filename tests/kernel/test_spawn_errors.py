"""Bad input: for each, an error of the right class, everything consumed that must be, and nothing left over. Source: spec 2.1, 7, 9.2."""

import contextlib
import errno
import os
import socket
import struct

import pytest
from rig.features import needs
from rig.launchers import every_launcher
from rig.workload import observe

import shoal
from shoal import (
    AccessDeniedError,
    CloneFd,
    InternalError,
    InvalidArgsError,
    NotFoundError,
    NotSupportedError,
    OutOfRangeError,
    SpawnError,
    Stage,
    Status,
    TransferFd,
)
from shoal.status import BadPathError, NotDirError


@pytest.fixture
def executable(tmp_path):
    """Writes a file with the execute permission and returns its path."""

    def write(content, name="program", mode=0o755):
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(mode)
        return str(path)

    return write


def refused(launch, path, expected, status, stage=Stage.LOAD, argv=("workload",), **more):
    with pytest.raises(expected) as caught:
        launch(path, list(argv), **more)
    assert type(caught.value) is expected
    assert caught.value.status is status
    assert caught.value.stage is stage
    return caught.value


# --- the path ------------------------------------------------------------------------------------------------------


@every_launcher
def test_a_missing_file_is_not_found_and_a_file_not_found_error(launch, tmp_path, world):
    error = refused(launch, tmp_path / "missing", NotFoundError, Status.NOT_FOUND)
    assert isinstance(error, FileNotFoundError)
    assert error.errno == errno.ENOENT
    assert str(tmp_path / "missing") in str(error)
    world.assert_unchanged()


@every_launcher
def test_an_empty_path_is_not_found(launch):
    refused(launch, "", NotFoundError, Status.NOT_FOUND)
    refused(launch, b"", NotFoundError, Status.NOT_FOUND)


@every_launcher
def test_a_dangling_link_is_not_found(launch, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    refused(launch, tmp_path / "link", NotFoundError, Status.NOT_FOUND)


@every_launcher
def test_the_path_is_not_searched_for(launch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(launch, "true", NotFoundError, Status.NOT_FOUND)


@every_launcher
def test_a_relative_path_counts_from_the_callers_working_directory(launch, workload, monkeypatch):
    monkeypatch.chdir(os.path.dirname(workload))
    assert observe(launch, os.path.basename(workload), "exit", 3).returncode == 3


@every_launcher
@pytest.mark.parametrize("tail", ["/", "/x", "/x/y"])
def test_a_path_that_goes_through_a_file_or_ends_in_a_slash_after_one_is_not_dir(launch, workload, tail):
    error = refused(launch, workload + tail, NotDirError, Status.NOT_DIR)
    assert isinstance(error, NotADirectoryError)


@every_launcher
@pytest.mark.parametrize("path", ["/" + "x" * 256, "/" + "/".join(["x" * 250] * 17)])
def test_a_component_or_path_that_is_too_long_is_a_bad_path(launch, path):
    error = refused(launch, path, BadPathError, Status.BAD_PATH)
    assert len(str(error).encode()) <= 1023


@every_launcher
def test_links_that_go_in_a_circle_are_a_bad_path(launch, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refused(launch, tmp_path / "a", BadPathError, Status.BAD_PATH)


@every_launcher
@pytest.mark.parametrize("path", ["/bin/true\0", "\0", "/bin\0/true", b"/bin/true\0x"])
def test_a_path_with_nul_is_an_invalid_argument(launch, path, world):
    refused(launch, path, InvalidArgsError, Status.INVALID_ARGS)
    world.assert_unchanged()


@every_launcher
def test_a_path_need_not_be_utf_8(launch, workload, tmp_path):
    for name in (b"\xff\xfe", "ü".encode("latin-1"), b"new\nline"):
        path = os.fsencode(tmp_path) + b"/" + name
        os.symlink(workload, path)
        assert observe(launch, path, "exit", 3).returncode == 3
        assert observe(launch, os.fsdecode(path), "exit", 4).returncode == 4
    error = refused(launch, os.fsencode(tmp_path) + b"/missing\xff", NotFoundError, Status.NOT_FOUND)
    assert "missing" in str(error).encode("utf-8").decode()  # the text itself is always proper


# --- what is there but cannot be run -------------------------------------------------------------------------------


@every_launcher
def test_a_directory_is_not_supported(launch, tmp_path, world):
    refused(launch, tmp_path, NotSupportedError, Status.NOT_SUPPORTED)
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("mode", [0o755, 0o600])
def test_a_fifo_is_not_supported_and_does_not_block(launch, tmp_path, mode, world):
    os.mkfifo(tmp_path / "fifo", mode)
    os.chmod(tmp_path / "fifo", mode)
    with pytest.raises((NotSupportedError, AccessDeniedError) if mode == 0o600 else NotSupportedError):
        launch(tmp_path / "fifo", ["workload"])
    world.assert_unchanged()


@every_launcher
def test_a_socket_and_a_device_are_not_programs(launch, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "socket"))
        for path in (tmp_path / "socket", "/dev/null"):
            with pytest.raises((NotSupportedError, AccessDeniedError)):
                launch(path, ["workload"])


@every_launcher
def test_a_file_without_execute_permission_is_denied_even_to_root(launch, executable):
    error = refused(launch, executable(b"#!/bin/sh\n", mode=0o644), AccessDeniedError, Status.ACCESS_DENIED)
    assert isinstance(error, PermissionError)
    assert "program" in str(error)


@needs("an ordinary user")
@every_launcher
def test_an_executable_that_cannot_be_read_is_denied(launch, executable):
    refused(launch, executable(b"#!/bin/sh\n", mode=0o111), AccessDeniedError, Status.ACCESS_DENIED)


@needs("an ordinary user")
@every_launcher
def test_a_folder_that_cannot_be_entered_is_denied(launch, executable, tmp_path):
    path = executable(b"#!/bin/sh\n")
    tmp_path.chmod(0)
    try:
        refused(launch, path, AccessDeniedError, Status.ACCESS_DENIED)
    finally:
        tmp_path.chmod(0o755)


@every_launcher
def test_an_empty_file_is_out_of_range(launch, executable, world):
    with pytest.raises(OutOfRangeError) as caught:
        launch(executable(b""), ["workload"])
    assert caught.value.status is Status.OUT_OF_RANGE
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("content", [b"x", b"#", b"\x7fELF", b"no magic"])
def test_a_few_bytes_are_no_program(launch, executable, content):
    with pytest.raises((OutOfRangeError, InternalError)) as caught:
        launch(executable(content), ["workload"])
    assert caught.value.status in (Status.OUT_OF_RANGE, Status.INTERNAL)


def _elf(workload, **changes):
    """The workload with some header fields changed: name=(offset, format, value)."""
    with open(workload, "rb") as file:
        content = bytearray(file.read())
    for offset, form, value in changes.values():
        struct.pack_into(form, content, offset, value)
    return bytes(content)


@every_launcher
@pytest.mark.parametrize(
    "damage",
    [
        {"machine": (18, "<H", 243)},
        {"machine": (18, "<H", 0)},
        {"class_": (4, "B", 1)},
        {"data": (5, "B", 2)},
        {"type_": (16, "<H", 1)},
        {"phnum": (56, "<H", 0)},
        {"phentsize": (54, "<H", 5)},
        {"phoff": (32, "<Q", 1 << 40)},
    ],
    ids="-".join,
)
def test_an_elf_that_cannot_be_loaded_here_is_internal(launch, workload, executable, damage, world):
    with pytest.raises(InternalError) as caught:
        launch(executable(_elf(workload, **damage)), ["workload"])
    assert type(caught.value) is InternalError
    assert caught.value.status is Status.INTERNAL
    assert "program" in str(caught.value)
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("size", [10, 16, 63, 64, 100])
def test_a_truncated_elf_is_internal(launch, workload, executable, size, world):
    with pytest.raises(InternalError) as caught:
        launch(executable(_elf(workload)[:size]), ["workload"])
    assert caught.value.status is Status.INTERNAL
    world.assert_unchanged()


@every_launcher
def test_an_elf_without_the_bytes_its_headers_promise_never_runs_its_program(launch, workload, executable, world):
    """The headers are whole, the segments are not: refused, or ended by a signal before the first verb."""
    path = executable(_elf(workload)[:5000])
    with contextlib.suppress(InternalError), launch(path, ["workload", "exit", "0"]) as process:
        assert process.wait(timeout=30) < 0
    world.assert_unchanged()


@every_launcher
def test_text_without_a_directive_is_internal(launch, executable):
    with pytest.raises(InternalError) as caught:
        launch(executable(b"echo this has no first line for us\n"), ["workload"])
    assert caught.value.status is Status.INTERNAL


# --- arguments and environment -------------------------------------------------------------------------------------


@every_launcher
@pytest.mark.parametrize(
    ("suffix", "argv", "environ", "named"),
    [
        ("", ["true", "a\ud800"], None, r"argv\[1\]"),
        ("", ["true"], {"A": "secret\ud800"}, "the environment variable 'A'"),
        ("", ["true"], ["A=secret\ud800"], "the environment variable 'A'"),
        ("\ud800", ["true"], None, "the path '.*ud800'"),
    ],
)
def test_text_that_cannot_be_encoded_is_an_error_that_names_it(launch, workload, suffix, argv, environ, named, pipe, world):
    with pytest.raises(InvalidArgsError, match=rf"{named} has '.ud800' in it, which the encoding of file names \(utf-8\) lacks") as caught:
        launch(workload + suffix, argv, environ=environ, actions=[TransferFd(pipe.write, 5)])
    assert "secret" not in str(caught.value)
    world.assert_unchanged(besides={pipe.write})


@every_launcher
@pytest.mark.parametrize("argv", [["workload", "a\0b"], ["\0"], [b"workload\0"]])
def test_an_argument_with_nul_is_an_invalid_argument(launch, workload, argv, world):
    with pytest.raises(InvalidArgsError) as caught:
        launch(workload, argv)
    assert caught.value.status is Status.INVALID_ARGS
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("environ", [{"A": "b\0c"}, {"A\0": "b"}, ["A=b\0c"], [b"\0"]])
def test_an_environment_string_with_nul_is_an_invalid_argument(launch, workload, environ, world):
    with pytest.raises(InvalidArgsError):
        launch(workload, ["workload"], environ=environ)
    world.assert_unchanged()


@every_launcher
def test_an_argument_of_10_megabytes_is_out_of_range_with_e2big(launch, workload, pipe, world):
    with pytest.raises(OutOfRangeError) as caught:
        launch(workload, ["workload", "x" * 10_000_000], actions=[TransferFd(pipe.read, 5)])
    assert caught.value.errno == errno.E2BIG
    assert len(str(caught.value).encode()) <= 1023
    world.assert_unchanged(besides={pipe.read})


@every_launcher
def test_100_000_environment_variables_are_out_of_range_with_e2big(launch, workload, pipe, world):
    environ = {f"VARIABLE_{number}": "x" * 100 for number in range(100_000)}
    with pytest.raises(OutOfRangeError) as caught:
        launch(workload, ["workload"], environ=environ, actions=[TransferFd(pipe.read, 5)])
    assert caught.value.errno == errno.E2BIG
    world.assert_unchanged(besides={pipe.read})


@every_launcher
def test_many_arguments_of_a_possible_size_go_through(launch, workload):
    argv = ["workload", *(["x" * 1000] * 1000)]
    report = observe(launch, workload, argv=argv, environ={"WORKLOAD": "env exit 5"})
    assert report.returncode == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": None},
        {"path": 3},
        {"argv": None},
        {"argv": "workload"},
        {"argv": b"workload"},
        {"argv": ["workload", 3]},
        {"argv": ["workload", None]},
        {"environ": "A=1"},
        {"environ": {"A": 1}},
        {"environ": {1: "A"}},
        {"environ": [3]},
        {"flags": "CLONE_ALL"},
        {"flags": None},
        {"job": 3},
        {"job": "default"},
        {"actions": 3},
    ],
    ids=repr,
)
def test_an_argument_of_the_wrong_type_is_a_type_error(workload, wrong, world):
    call = {"path": workload, "argv": ["workload"]} | wrong
    with pytest.raises(TypeError) as caught:
        shoal.spawn(**call)
    assert not isinstance(caught.value, SpawnError)
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("bad", [object(), None, 3, "CloneFd", (1, 2)])
def test_a_wrong_action_is_a_type_error_before_anything_is_consumed(launch, workload, pipe, bad, world):
    with pytest.raises(TypeError, match=r"action 1|actions\[1\]"):
        launch(workload, ["workload"], actions=[TransferFd(pipe.read, 5), bad])
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize(
    "make",
    [lambda: CloneFd("5", 5), lambda: CloneFd(5, "5"), lambda: CloneFd(None, 5), lambda: TransferFd(5.0, 5)],
    ids=["a", "b", "c", "d"],
)
def test_a_wrong_type_inside_an_action_is_a_type_error_before_anything_is_consumed(launch, workload, pipe, make, world):
    with pytest.raises(TypeError):
        launch(workload, ["workload"], actions=[TransferFd(pipe.read, 5), make()])
    world.assert_unchanged()


@every_launcher
def test_actions_may_come_from_a_generator_and_are_taken_once(launch, workload, make_pipe):
    pipes = [make_pipe() for _ in range(3)]
    report = observe(launch, workload, "fds", actions=(CloneFd(pipe.read, 10 + at) for at, pipe in enumerate(pipes)))
    assert {10, 11, 12} <= set(report.fds())
