"""Mounts and roots: a program cannot change its world, and what happens to the host's mounts does not reach it."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from attempts import AT_FDCWD, Given
from rig.features import needs

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, MS_MOVE = 0x1, 0x20, 0x1000, 0x4000, 0x40000, 0x2000
MNT_DETACH, AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE = 2, 0x1000, 0x8000, 1
NEWNS, NEWUSER = 0x00020000, 0x10000000
O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
WRITABLE = struct.pack("=QQQQ", 0, MS_RDONLY, 0, 0)  # struct mount_attr: takes read-only away
BY_HAND = (("unshare", NEWNS), ("mount", "none", "/", 0, MS_REC | MS_PRIVATE, 0))
AS_OWNER = (("unshare", NEWUSER | NEWNS), *BY_HAND[1:])


def changes(at):
    """Ways to change what is mounted at a directory, and to reach what lies below it."""
    return (
        ("mount", "none", at, "tmpfs", 0, 0),
        ("mount", at, "/tmp", 0, MS_BIND, 0),
        ("mount", "none", at, 0, MS_REMOUNT | MS_BIND, 0),
        ("mount", "none", at, 0, MS_REMOUNT, 0),
        ("mount", at, "/tmp", 0, MS_MOVE, 0),
        ("mount_setattr", AT_FDCWD, at, 0, WRITABLE, len(WRITABLE)),
        ("umount2", at, MNT_DETACH),
        ("umount2", "/", MNT_DETACH),
        ("pivot_root", at, at),
        ("chroot", at),
        ("fsopen", "tmpfs", 0),
        ("fsopen", "proc", 0),
        ("open_tree", AT_FDCWD, at, OPEN_TREE_CLONE),
        ("move_mount", AT_FDCWD, at, AT_FDCWD, "/tmp", 0),
        ("mount", "none", "/tmp", "proc", 0, 0),
        ("mount", "none", "/tmp", "sysfs", 0, 0),
        ("mount", "none", "/tmp", "cgroup2", 0, 0),
        ("mount", "none", "/tmp", "overlay", 0, "lowerdir=/,upperdir=/tmp,workdir=/tmp"),
    )


def works_outside(outside, at):
    """Mounting, remounting and unmounting, in a mount namespace of its own."""
    begin = BY_HAND if os.geteuid() == 0 else AS_OWNER
    steps = (*begin, ("mount", "none", at, "tmpfs", MS_RDONLY, 0), ("mount", "none", at, 0, MS_REMOUNT | MS_BIND, 0), ("umount2", at, 0))
    return outside.errnos(*steps) == [0] * len(steps)


@pytest.mark.cell
def test_no_mount_can_be_made_changed_moved_or_taken_away(outside, inside, folder):
    (folder / "file").write_text("as it was")
    assert works_outside(outside, folder)
    for filtered in ("default", "off"):
        box = inside.but(read={"/data": folder}, seccomp=filtered)
        assert box.errnos(*changes("/data")) == [errno.EPERM] * len(changes("/data"))
    assert (folder / "file").read_text() == "as it was"


@pytest.mark.cell
def test_a_user_namespace_of_its_own_gives_no_program_other_mounts(outside, inside, folder):
    """Without the filter it may have one, with all privileges there; those do not reach what was mounted before."""
    assert works_outside(outside, folder)
    box = inside.but(read={"/data": folder})
    assert box.errnos(("unshare", NEWUSER | NEWNS), *changes("/data")) == [errno.EPERM] * (len(changes("/data")) + 1)
    unfiltered = box.but(seccomp="off")
    taken = ("umount2", "/data", MNT_DETACH), ("umount2", "/", MNT_DETACH), ("mount_setattr", AT_FDCWD, "/data", 0, WRITABLE, len(WRITABLE))
    remount = (("mount", "none", "/data", 0, MS_REMOUNT | MS_BIND, 0), ("mount", "none", "/data", 0, MS_REMOUNT, 0))
    first, *errnos = unfiltered.errnos(("unshare", NEWUSER | NEWNS), *taken, *remount)
    assert first == 0
    assert set(errnos) <= {errno.EPERM, errno.EINVAL}
    # Whatever it mounts on top, what was read-only stays so.
    errnos = unfiltered.errnos(
        ("unshare", NEWUSER | NEWNS),
        ("mount", "/data", "/tmp", 0, MS_BIND | MS_REC, 0),
        ("openat", AT_FDCWD, "/tmp/new", os.O_WRONLY | os.O_CREAT, 0o600),
        ("openat", AT_FDCWD, "/data/new", os.O_WRONLY | os.O_CREAT, 0o600),
    )
    assert errnos[3] == errno.EROFS
    assert os.listdir(folder) == []


@pytest.mark.cell
def test_what_lies_below_a_mount_is_not_uncovered(inside, folder):
    """An empty directory over a secret of the host."""
    (folder / "home" / "private").mkdir(parents=True)
    (folder / "home" / "private" / "key").write_text("secret")
    (folder / "nothing").mkdir()
    look = ("newfstatat", AT_FDCWD, "/home/private/key", bytes(144), 0)
    steps = (look, ("umount2", "/home/private", MNT_DETACH), look)
    box = inside.but(read={"/home": folder / "home", "/home/private": folder / "nothing"})
    assert inside.but(read={"/home": folder / "home"}).errno(*look) == 0
    assert box.errnos(*steps) == [errno.ENOENT, errno.EPERM, errno.ENOENT]
    errnos = box.but(seccomp="off").errnos(("unshare", NEWUSER | NEWNS), *steps)
    assert errnos[0::3] == [0, errno.ENOENT]
    assert errnos[2] in (errno.EPERM, errno.EINVAL)


@pytest.mark.cell
def test_the_classic_way_out_of_a_chroot_is_none_out_of_a_cell(outside, inside, folder):
    """A directory is kept open, the root is changed to one below it, and `..` is followed from the one that was kept."""
    climb = (
        ("mkdirat", AT_FDCWD, "jail", 0o755),
        ("openat", AT_FDCWD, ".", O_DIRECTORY),
        ("chroot", "jail"),
        ("fchdir", Given(2)),
        ("chdir", "../../../../../../../../../.."),
        ("chroot", "."),
        ("newfstatat", AT_FDCWD, "/etc/passwd", bytes(144), 0),
    )
    if os.geteuid() == 0:
        jail = (("chroot", str(folder)), ("chdir", "/"), ("newfstatat", AT_FDCWD, "/etc/passwd", bytes(144), 0))
        shifted = tuple(tuple(Given(item.call + 3) if isinstance(item, Given) else item for item in step) for step in climb)
        assert outside.errnos(*jail, *shifted) == [0, 0, errno.ENOENT, 0, 0, 0, 0, 0, 0, 0]
    for filtered in ("default", "off"):
        errnos = inside.but(seccomp=filtered, cwd="/tmp").errnos(*climb)
        assert errnos == [0, 0, errno.EPERM, 0, 0, errno.EPERM, errno.ENOENT]
    # With all privileges in a namespace of its own it can climb, and gets to the top of the cell.
    own = inside.but(seccomp="off", cwd="/tmp")
    errnos = own.errnos(("unshare", NEWUSER), *(tuple(Given(3) if isinstance(item, Given) else item for item in step) for step in climb))
    assert errnos[0] == 0
    assert errnos[-1] == errno.ENOENT


# --- propagation ----------------------------------------------------------------------------------------------------------------------

PROPAGATION = """
import subprocess
from attempts import AT_FDCWD, Ground
from shoal import NotSupportedError

box, how, top = args
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", top], check=True)
subprocess.run(["mount", "--make-shared", top], check=True)
os.makedirs(f"{top}/data/sub")
wait = ("read", 0, bytes(1), 1)
look = ("newfstatat", AT_FDCWD, "/data/sub/new", bytes(144), 0)
write = ("openat", AT_FDCWD, "/data/sub/written", os.O_WRONLY | os.O_CREAT, 0o600)
ground = Ground(workload, {**box, how: {"/data": f"{top}/data"}})
try:
    ground.run("ids")
except NotSupportedError:
    answer(None)
    sys.exit()
with ground.held(("getpid",), wait, look, write, expect=1) as held:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=777", "none", f"{top}/data/sub"], check=True)
    open(f"{top}/data/sub/new", "w").close()
    held.let_go()
    held.line()
    seen, written = held.line()[1], held.line()[1]
answer([seen, written, os.listdir(f"{top}/data/sub")])
"""


@pytest.mark.root
@needs("unshare and setpriv (Debian package util-linux)")
@pytest.mark.parametrize("how", ["read", "write"])
@pytest.mark.cell
def test_what_the_host_mounts_later_does_not_appear_inside(inside, run_attacks, how, public_folder):
    """Where mounts are shared, as systemd makes them, it would come without any of the attributes that the grant was given."""
    alone = ("unshare", "--mount", "--propagation", "private")
    found = run_attacks(PROPAGATION, inside.box, how, str(public_folder), prefix=alone)
    if found is None:
        pytest.skip("needs a tmpfs that maps ids (Linux 6.3)")
    seen, written, there = found
    assert (seen, there) == (str(errno.ENOENT), ["new"])
    assert written == (str(errno.EROFS) if how == "read" else "ok")


@pytest.mark.root
@pytest.mark.cell
def test_what_a_program_mounts_does_not_appear_on_the_host(inside, folder):
    """Without the filter, in a namespace of its own."""
    before = Path("/proc/self/mountinfo").read_text()
    steps = (("unshare", NEWUSER | NEWNS), ("mount", "none", "/work", "tmpfs", 0, 0))
    with inside.but(seccomp="off", write={"/work": folder}).held(*steps) as held:
        assert held.outcomes[0].errno == 0
        assert Path("/proc/self/mountinfo").read_text() == before
