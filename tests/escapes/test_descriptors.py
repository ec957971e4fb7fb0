"""Descriptors as the way out: those that were not granted, those that lead further than granted, and those that are passed on."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import threading

import pytest
from attempts import AT_FDCWD, Given
from rig.world import descendants

from shoal import SpawnError
from shoal.sandbox.errors import RequestError

O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def receive_descriptor(end):
    message, ancillary, _, _ = end.recvmsg(1, socket.CMSG_SPACE(4))
    assert message == b"d"
    fds = array.array("i")
    fds.frombytes(ancillary[0][2])
    return fds[0]


# --- those that were not granted ----------------------------------------------------------------------------------------------------


def test_a_descriptor_that_nobody_granted_is_not_there(outside, inside, folder, make_open):
    (folder / "secret").write_text("secret")
    fd = make_open(folder / "secret")
    os.set_inheritable(fd, True)
    read = ("read", fd, bytes(6), 6)
    assert outside.calls(read, close_fds=False)[0].data == b"secret"
    assert inside.errno(*read) == errno.EBADF
    assert inside.attack("descriptors").one("descriptors") == ["0", "1", "2"]


def test_descriptors_that_other_threads_open_during_launches_do_not_get_in(outside, inside, folder):
    (folder / "secret").write_text("secret")
    ended, opened = threading.Event(), threading.Event()

    def churn():
        while not ended.is_set():
            fds = [os.open(folder / "secret", os.O_RDONLY) for _ in range(20)]
            for fd in fds:
                os.set_inheritable(fd, True)
            opened.set()
            for fd in fds:
                os.close(fd)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert opened.wait(10)
        leaked = any(len(outside.attack("descriptors", close_fds=False).one("descriptors")) > 3 for _ in range(100))
        assert leaked, "the attack was not shown to work"
        for _ in range(20):
            assert inside.attack("descriptors").one("descriptors") == ["0", "1", "2"]
    finally:
        ended.set()
        for thread in threads:
            thread.join()


# --- those that lead further ----------------------------------------------------------------------------------------------------------


def finds_the_host(ground, times=1, **box):
    """Whether a program finds the host's files from its working directory. Not, when it is not even started there."""
    looks = [("newfstatat", AT_FDCWD, path, bytes(144), 0) for path in ("../../../../../../etc/passwd", "../secret")]
    confined = ground.but(**box)
    found = False
    for _ in range(times):  # the first launch of a kind takes another way than those after it
        with contextlib.suppress(SpawnError, RequestError):
            found |= confined.errnos(*looks) != [errno.ENOENT, errno.ENOENT]
    return found


@pytest.fixture
def host_directory(folder, make_open):
    """A directory of the host with a file beside it, and a descriptor of it that is nobody's business."""
    (folder / "place").mkdir()
    (folder / "secret").write_text("secret")
    return make_open(folder / "place", O_DIRECTORY)


def test_an_open_directory_leads_out_when_it_is_the_working_directory(outside, host_directory):
    assert outside.errno("newfstatat", AT_FDCWD, "../secret", bytes(144), 0, cwd=f"/proc/self/fd/{host_directory}") == 0


@pytest.mark.cell
def test_a_working_directory_that_is_named_by_a_descriptor_is_not_entered(inside, host_directory):
    for cwd in (f"/proc/self/fd/{host_directory}", f"/proc/self/fd/{host_directory}/..", f"/proc/thread-self/fd/{host_directory}"):
        assert not finds_the_host(inside, times=4, cwd=cwd), cwd


@pytest.mark.cell
def test_a_link_that_an_earlier_program_left_does_not_lead_a_later_one_out(inside, host_directory, folder):
    work = folder / "work"
    work.mkdir()
    assert inside.but(write={"/work": work}).errno("symlinkat", f"/proc/self/fd/{host_directory}", AT_FDCWD, "/work/project") == 0
    assert not finds_the_host(inside, times=4, write={"/work": work}, cwd="/work/project")


def test_no_number_of_a_descriptor_leads_the_working_directory_to_the_root_of_the_host(inside):
    """Also not that of something which the launch itself has open meanwhile: those are numbers that are free here."""
    own = {int(name) for name in os.listdir("/proc/self/fd")}
    for number in [number for number in range(3, 1024) if number not in own][:24]:
        assert not finds_the_host(inside, cwd=f"/proc/self/fd/{number}"), number


def test_a_file_that_was_granted_for_reading_is_not_opened_for_writing_by_its_link(outside, inside, folder, make_open):
    file = folder / "input"
    file.write_text("as it was")
    file.chmod(0o666)
    again = (("openat", AT_FDCWD, "/proc/self/fd/0", os.O_WRONLY), ("write", Given(1), b"changed", 7))
    assert outside.errnos(*again, stdin=make_open(file)) == [0, 0]
    assert file.read_text() == "changedas"
    file.write_text("as it was")
    assert inside.errnos(*again, stdin=make_open(file)) == [errno.EACCES, errno.EBADF]
    assert file.read_text() == "as it was"


def test_a_pipe_that_was_granted_for_writing_is_read_by_a_program_that_is_its_caller(outside, inside):
    """Known, and the same for all programs of Linux: both ends of a pipe are one file, which its owner may open. Who writes to a pipe
    that others write to as well should be somebody else than its caller, or be captured."""
    ours, theirs = os.pipe()
    again = ("openat", AT_FDCWD, "/proc/self/fd/0", os.O_RDONLY)
    try:
        assert outside.errno(*again, stdin=theirs) == 0
        assert inside.errno(*again, stdin=theirs) == (errno.EACCES if inside.has_own_user else 0)
    finally:
        os.close(ours)
        os.close(theirs)


# --- those that are passed on ---------------------------------------------------------------------------------------------------------


@pytest.mark.cell
def test_what_a_program_sends_through_a_granted_socket_does_not_open_its_world_to_the_top(inside, folder, make_open):
    """That it may send what it has is what the socket was granted for. What arrives leads nowhere that the program itself cannot go."""
    (folder / "data").mkdir()
    (folder / "data" / "file").write_text("as it was")
    (folder / "data" / "file").chmod(0o666)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outcomes = inside.but(read={"/data": folder / "data"}).calls(
            ("openat", AT_FDCWD, "/", O_DIRECTORY),
            ("send_descriptor", 0, Given(1)),
            ("openat", AT_FDCWD, "/data", O_DIRECTORY),
            ("send_descriptor", 0, Given(3)),
            stdin=theirs.fileno(),
        )
        assert [outcome.errno for outcome in outcomes] == [0, 0, 0, 0]
        root, data = receive_descriptor(ours), receive_descriptor(ours)
    try:
        assert os.stat("..", dir_fd=root).st_ino == os.stat(".", dir_fd=root).st_ino, "the root of the cell has a parent"
        with pytest.raises(FileNotFoundError):
            os.stat("../../etc/passwd", dir_fd=root)
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):  # even for us
            os.open("file", os.O_WRONLY, dir_fd=data)
    finally:
        os.close(root)
        os.close(data)


def test_what_is_sent_to_a_program_is_all_it_gets(outside, inside, folder, make_open):
    (folder / "one").write_text("granted")
    (folder / "two").write_text("secret")
    take = (("receive_descriptor", 0), ("read", Given(1), bytes(7), 7), ("openat", Given(1), "../two", os.O_RDONLY))
    for ground in (outside, inside):
        ours, theirs = socket.socketpair()
        with ours, theirs, open(folder / "one", "rb") as file:
            ours.sendmsg([b"d"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])
            outcomes = ground.calls(*take, stdin=theirs.fileno())
        assert outcomes[1].data == b"granted"
        assert outcomes[2].errno == errno.ENOTDIR


@pytest.mark.cell
def test_who_holds_the_other_end_of_a_granted_socket_is_not_reached_through_it(outside, inside):
    """The kernel gives out a handle of the process at the other end: the caller itself."""
    so_peerpidfd, get_namespace = 77, 0xFF05  # of the network
    steps = (
        ("getsockopt", 0, socket.SOL_SOCKET, so_peerpidfd, bytes(4), (4).to_bytes(4, "little")),
        ("pidfd_send_signal", 3, 0, 0, 0),
        ("pidfd_getfd", 3, 0, 0),
        ("ioctl", 3, get_namespace, 0),
        ("setns", 3, 0x40000000),
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first, *reached = outside.errnos(*steps, stdin=theirs.fileno())
        if first == errno.ENOPROTOOPT:
            pytest.skip("needs SO_PEERPIDFD")
        assert (first, reached[:2]) == (0, [0, 0])
        for filtered in ("default", "off"):
            errnos = inside.but(seccomp=filtered).errnos(*steps, stdin=theirs.fileno())
            assert errnos[:3] == [0, errno.EINVAL, errno.EPERM]
            assert errnos[3] in (errno.EACCES, errno.ENOTTY)  # the latter before Linux 6.11
            assert errnos[4] == errno.EPERM


@pytest.mark.cell
def test_a_granted_socket_for_datagrams_sends_to_no_abstract_socket_of_the_host(outside, inside):
    """It is of the network that it was made in, and could send to whatever is bound there."""
    name = f"\0shoal-datagrams-{os.getpid()}"
    address = struct.pack("=H", socket.AF_UNIX) + name.encode()
    send = ("sendto", 0, "x", 1, 0, address, len(address))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(name)
        service.setblocking(False)
        assert outside.errno(*send, stdin=theirs.fileno()) == 0
        assert service.recv(2) == b"x"
        error = inside.errno(*send, stdin=theirs.fileno())
        assert error == (errno.EPERM if inside.is_scoped else 0)


@pytest.mark.cell
def test_sandboxes_of_one_caller_cannot_meet_under_a_name(outside, inside):
    address = struct.pack("=H", socket.AF_UNIX) + f"\0shoal-siblings-{os.getpid()}".encode()
    stream = ("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
    meet = (stream, ("bind", Given(1), address, len(address)), ("listen", Given(1), 5))
    visit = (stream, ("connect", Given(1), address, len(address)))
    with outside.held(*meet) as other:
        assert [outcome.errno for outcome in other.outcomes] == [0, 0, 0]
        assert outside.errnos(*visit) == [0, 0]
    for filtered in ("default", "off"):
        sibling = inside.but(seccomp=filtered)
        with sibling.held(*meet) as other:
            assert [outcome.errno for outcome in other.outcomes] == [0, 0, 0]
            assert sibling.errnos(*visit) == [0, errno.ECONNREFUSED]


@pytest.mark.cell
def test_what_one_sandbox_passes_to_another_opens_nothing_more_to_it(outside, inside, folder):
    """Through a socket that both were handed. What was opened before is passed as it is; beyond that the other has its own rules."""
    (folder / "data").mkdir()
    (folder / "data" / "file").write_text("passed")
    for ground, at in ((outside, folder / "data"), (inside, "/data")):
        giver = ground if ground is outside else ground.but(read={"/data": folder / "data"})
        ours, theirs = socket.socketpair()
        with ours, theirs:
            given = giver.errnos(
                ("openat", AT_FDCWD, at, O_DIRECTORY),
                ("send_descriptor", 0, Given(1)),
                ("openat", AT_FDCWD, f"{at}/file", os.O_RDONLY),
                ("send_descriptor", 0, Given(3)),
                ("openat", AT_FDCWD, "/", O_DIRECTORY),
                ("send_descriptor", 0, Given(5)),
                stdin=ours.fileno(),
            )
            ours.close()  # so that nobody waits for what was not sent
            assert given == [0] * 6
            outcomes = ground.calls(
                ("receive_descriptor", 0),
                ("receive_descriptor", 0),
                ("receive_descriptor", 0),
                ("read", Given(2), bytes(6), 6),
                ("openat", Given(1), "file", os.O_RDONLY),
                ("openat", Given(1), "made", os.O_WRONLY | os.O_CREAT, 0o600),
                ("openat", Given(3), "etc/passwd", os.O_RDONLY),
                ("openat", Given(3), "../../etc/passwd", os.O_RDONLY),
                ("fchdir", Given(3)),
                ("newfstatat", AT_FDCWD, "../../../etc/passwd", bytes(144), 0),
                stdin=theirs.fileno(),
            )
        errnos = [outcome.errno for outcome in outcomes]
        assert outcomes[3].data == b"passed"
        if ground is outside:
            assert errnos == [0] * 10
            (folder / "data" / "made").unlink()
        else:
            beyond = errno.EACCES if inside.enforced["landlock"] else 0
            assert errnos == [0, 0, 0, 0, beyond, errno.EROFS, errno.ENOENT, errno.ENOENT, 0, errno.ENOENT]
    assert os.listdir(folder / "data") == ["file"]


@pytest.mark.cell
def test_sandboxes_of_one_caller_cannot_take_each_others_descriptors(outside, inside, folder):
    (folder / "secret").write_text("secret")
    reading = ("openat", AT_FDCWD, "/data/secret", os.O_RDONLY)

    def steal(pid, fd):
        return (("pidfd_open", pid, 0), ("pidfd_getfd", Given(1), fd, 0), ("read", Given(2), bytes(6), 6))

    with outside.held((*reading[:2], folder / "secret", os.O_RDONLY), ("getpid",)) as other:
        assert outside.calls(*steal(other.outcomes[1].value, other.outcomes[0].value))[2].data == b"secret"
    before = descendants()
    with inside.but(read={"/data": folder}).held(reading) as other:
        for pid in descendants() - before:
            assert inside.errnos(*steal(pid, other.outcomes[0].value)) == [errno.ESRCH, errno.EPERM, errno.EBADF]
            assert inside.but(seccomp="off").errnos(*steal(pid, other.outcomes[0].value)) == [errno.ESRCH, errno.EBADF, errno.EBADF]
