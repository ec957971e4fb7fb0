"""Channels: what two programs could meet at that nobody granted to both, and what one could hold against the host."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import pytest
from attempts import AT_FDCWD, Given

IPC_CREAT, IPC_EXCL, IPC_RMID = 0o1000, 0o2000, 0
LOCK_EX_NB = 2 | 4
F_SETLK, F_OFD_SETLK, F_SETLEASE = 6, 37, 1024
F_RDLCK, F_WRLCK = 0, 1


@pytest.fixture
def key():
    """A key of System V that nobody else has."""
    return 0x5A000000 + os.getpid()


def finds(key, name):
    """Looks for what another has made under a name."""
    return {
        "shared memory": (("shmget", key, 4096, 0),),
        "messages": (("msgget", key, 0),),
        "semaphores": (("semget", key, 1, 0),),
        "POSIX queue": (("mq_open", name, os.O_RDONLY, 0, 0),),
    }


def makes(key, name):
    return (
        ("shmget", key, 4096, IPC_CREAT | IPC_EXCL | 0o666),
        ("msgget", key, IPC_CREAT | IPC_EXCL | 0o666),
        ("semget", key, 1, IPC_CREAT | IPC_EXCL | 0o666),
        ("mq_open", name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666, 0),
    )


@pytest.mark.cell
def test_what_is_shared_by_a_key_or_a_name_is_not_shared_with_the_host(outside, inside, key):
    name = f"shoal-escapes-{os.getpid()}"
    made = outside.calls(*makes(key, name))
    try:
        assert [outcome.errno for outcome in made] == [0, 0, 0, 0]
        for what, steps in finds(key, name).items():
            assert outside.errnos(*steps) == [0], what
            refused = errno.EPERM if what == "POSIX queue" else errno.ENOENT
            assert inside.errnos(*steps) == [refused], what
            assert inside.but(seccomp="off").errnos(*steps) == [errno.ENOENT], what
        # By number too: the first of a kind is 0 in every namespace.
        assert inside.errnos(("shmat", made[0].value, 0, 0), ("msgctl", made[1].value, IPC_RMID, 0)) == [errno.EINVAL, errno.EINVAL]
    finally:
        gone = (
            ("shmctl", made[0].value, IPC_RMID, 0),
            ("msgctl", made[1].value, IPC_RMID, 0),
            ("semctl", made[2].value, 0, IPC_RMID, 0),
            ("mq_unlink", name),
        )
        assert outside.errnos(*gone) == [0, 0, 0, 0]


@pytest.mark.cell
def test_what_is_shared_by_a_key_or_a_name_is_not_shared_between_siblings_and_does_not_stay(outside, inside, key):
    name = "shoal-siblings"
    # A POSIX queue is closed: to the second wall it is a file, and none that was granted.
    refusals = {"default": errno.EPERM, "off": errno.EACCES if inside.enforced["landlock"] else 0}
    for filtered, refusal in refusals.items():
        ground = inside.but(seccomp=filtered)
        missing = {what: refusal if filtered == "default" and what == "POSIX queue" else errno.ENOENT for what in finds(key, name)}
        with ground.held(*makes(key, name)) as other:
            assert [outcome.errno for outcome in other.outcomes] == [0, 0, 0, refusal]
            for what, steps in finds(key, name).items():
                assert ground.errnos(*steps) == [missing[what]], what
                assert outside.errnos(*steps) == [errno.ENOENT], what
        for what, steps in finds(key, name).items():
            assert ground.errnos(*steps) == [missing[what]], what
            assert outside.errnos(*steps) == [errno.ENOENT], what


@pytest.mark.cell
def test_private_memory_file_systems_are_not_shared_between_siblings(inside):
    make = [("openat", AT_FDCWD, f"{at}/left", os.O_WRONLY | os.O_CREAT, 0o666) for at in ("/tmp", "/dev/shm")]
    look = [("openat", AT_FDCWD, f"{at}/left", os.O_RDONLY) for at in ("/tmp", "/dev/shm")]
    with inside.held(*make) as other:
        assert [outcome.errno for outcome in other.outcomes] == [0, 0]
        assert inside.errnos(*look) == [errno.ENOENT] * 2
        assert not any(os.path.exists(f"{at}/left") for at in ("/tmp", "/dev/shm"))
    assert inside.errnos(*look) == [errno.ENOENT] * 2


# --- locks ------


@pytest.fixture
def file(folder):
    path = folder / "file"
    path.write_text("locked")
    path.chmod(0o644)
    return path


def lock(kind):
    return struct.pack("=hh4xqqi4x", kind, os.SEEK_SET, 0, 0, 0)


@pytest.mark.cell
def test_a_file_that_was_not_granted_cannot_be_locked(outside, inside, file):
    steps = (("openat", AT_FDCWD, file, os.O_RDONLY), ("flock", Given(1), LOCK_EX_NB))
    assert outside.errnos(*steps) == [0, 0]
    assert inside.errnos(*steps)[0] == errno.ENOENT


@pytest.mark.cell
def test_a_file_that_is_read_can_be_locked_against_the_host_while_the_program_lives(inside, file):
    """Known, and so for every read-only mount of Linux: a lock changes no file. It belongs to the file, not to the mount, and ends
    with the program. What has to be locked by others should not be granted."""
    box = inside.but(read={"/data": file.parent})
    opened = ("openat", AT_FDCWD, "/data/file", os.O_RDONLY)
    with box.held(opened, ("flock", Given(1), LOCK_EX_NB)) as holder, open(file, "rb+") as own:
        assert [outcome.errno for outcome in holder.outcomes] == [0, 0]
        with pytest.raises(BlockingIOError):
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(file, "rb+") as own:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.cell
def test_a_file_that_is_read_cannot_be_locked_for_writing(inside, file):
    """With the locks that look at how the file was opened."""
    opened = ("openat", AT_FDCWD, "/data/file", os.O_RDONLY)
    steps = (opened, ("fcntl", Given(1), F_SETLK, lock(F_WRLCK)), ("fcntl", Given(1), F_OFD_SETLK, lock(F_WRLCK)))
    assert inside.but(read={"/data": file.parent}).errnos(*steps) == [0, errno.EBADF, errno.EBADF]


@pytest.mark.cell
def test_a_file_that_is_read_cannot_be_leased(outside, inside, file):
    """Who opens a leased file waits until it is given back, or 45 seconds: the host for its own file. Its owner may lease it, whatever
    the mount, and a program that is its caller is the owner."""
    found = []
    for ground, place in ((outside, file), (inside.but(read={"/data": file.parent}), "/data/file")):
        with ground.held(("openat", AT_FDCWD, place, os.O_RDONLY), ("fcntl", Given(1), F_SETLEASE, F_WRLCK)) as holder:
            try:
                os.close(os.open(file, os.O_RDONLY | os.O_NONBLOCK))
                blocked = False
            except BlockingIOError:
                blocked = True
            found.append((holder.outcomes[1].errno, blocked))
    assert found == [(0, True), (errno.EPERM, False)]


@pytest.mark.cell
def test_locks_and_leases_of_a_program_end_with_it(inside, file):
    box = inside.but(write={"/data": file.parent})
    steps = (
        ("openat", AT_FDCWD, "/data/file", os.O_RDWR),
        ("flock", Given(1), LOCK_EX_NB),
        ("fcntl", Given(1), F_OFD_SETLK, lock(F_WRLCK)),
    )
    assert box.errnos(*steps) == [0, 0, 0]
    with open(file, "rb+") as own:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
