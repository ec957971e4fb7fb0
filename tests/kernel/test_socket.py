"""Socket and File: taking over descriptors of all sorts, or leaving them with their owner."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest
from rig.workload import is_open
from rig.world import World

from shoal.handles.base import Rights
from shoal.handles.socket import File, Socket
from shoal.handles.vmo import Vmo
from shoal.status import BadHandleError, WrongTypeError


def test_a_socket_object_is_detached(world: World) -> None:
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    with Socket.from_fd(ours) as handle:
        assert ours.fileno() == -1
        assert handle.fileno() == number
        assert handle.rights == Rights.DEFAULT_SOCKET
        os.write(handle.fileno(), b"x")
        assert theirs.recv(1) == b"x"
    assert theirs.recv(1) == b""
    theirs.close()
    world.assert_unchanged()


def test_a_number_is_taken_over_and_made_close_on_exec(world: World) -> None:
    ours, theirs = socket.socketpair()
    number = ours.detach()
    os.set_inheritable(number, True)
    with Socket.from_fd(number) as handle:
        assert handle.fileno() == number
        assert not os.get_inheritable(number)
    assert not is_open(number)
    theirs.close()
    world.assert_unchanged()


def test_what_is_no_socket_stays_with_its_owner(tmp_path: Path, world: World) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(WrongTypeError, match=r"File\.from_fd"):
        Socket.from_fd(file)
    reader, writer = os.pipe()
    for fd in (reader, writer):
        with pytest.raises(WrongTypeError):
            Socket.from_fd(fd)
        os.close(fd)
    world.assert_unchanged()


def test_an_open_file_is_closed_once_its_descriptor_was_taken(tmp_path: Path, world: World) -> None:
    path = tmp_path / "file"
    file = path.open("w")
    file.write("kept in a buffer")
    with File.from_fd(file) as handle:
        assert file.closed
        assert path.read_text() == "kept in a buffer"
        os.write(handle.fileno(), b"!")
    assert path.read_text() == "kept in a buffer!"
    world.assert_unchanged()


def test_rights_follow_from_how_the_file_was_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for flags, rights in ((os.O_RDONLY, Rights.READ), (os.O_WRONLY, Rights.WRITE), (os.O_RDWR, Rights.IO), (os.O_PATH, Rights.NONE)):
        with File.from_fd(os.open(tmp_path / "file", flags)) as handle:
            assert handle.rights & Rights.IO == rights
            with handle.duplicate() as copy:
                assert os.path.samestat(os.fstat(copy.fileno()), os.fstat(handle.fileno()))


def test_handles_pipes_directories_and_temporary_files_can_be_files(world: World) -> None:
    reader, writer = os.pipe()
    vmo = Vmo.create(1)
    for given in (reader, writer, vmo, os.open("/", os.O_RDONLY), tempfile.TemporaryFile()):  # noqa: SIM115
        File.from_fd(given).close()
    assert vmo.closed
    del given
    world.assert_unchanged()


@pytest.mark.parametrize("wrong", [None, "0", 1.0, True, b"0", object()])
def test_what_has_no_descriptor_is_a_type_error(wrong: object) -> None:
    for kind in (Socket, File):
        with pytest.raises(TypeError):
            kind.from_fd(wrong)  # type: ignore[arg-type]


def test_what_is_not_open_is_a_bad_handle(closed_fd: int) -> None:
    gone, other = socket.socketpair()
    gone.close()
    other.close()
    for wrong in (closed_fd, -1, 1 << 40, gone):
        for kind in (Socket, File):
            with pytest.raises(BadHandleError):
                kind.from_fd(wrong)
