"""Kernel objects that need a moment in another namespace to be made: a tmpfs without root, a network namespace.

A borrowed child runs a few ops on this process's own descriptor table and ends; what it made stays behind as a descriptor.
"""

from __future__ import annotations

import os
from typing import Unpack

from shoal import _native
from shoal.handles.forks import held_over_forks
from shoal.handles.kept import KeptFd
from shoal.handles.mount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from shoal.handles.userns import kept_user_namespace, own_user_namespace
from shoal.packing import CLONE_NEWNET, CLONE_NEWNS, CWD_FD, Packer, Place
from shoal.privileges import is_privileged
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno


def explain_refusal(errno: int, what: str) -> SpawnError:
    """The error for a namespace or mount that the machine does not allow, with the way out."""
    return failure_from_errno(
        errno,
        Stage.SETUP,
        f"{what} is not allowed here: it takes root or unprivileged user namespaces; `shoal doctor` tells what is missing",
    )


def _collect(packer: Packer, clone_flags: int, slot: int, what: str, **where: Unpack[Place]) -> int:
    plan = packer.packed(clone_flags=clone_flags, collect=True, **where).filled(())
    _, _, stage, index, errno, slots = _native.launch(plan, b"", 0, b"", 0)
    if slots is None:
        if stage == _native.STAGE_CLONE or errno in (1, 13):
            raise explain_refusal(errno, what)
        raise failure_from_errno(errno, Stage.SETUP, f"cannot make {what}: {packer.labels[index]}")
    if errno:
        raise failure(Status.INTERNAL, Stage.SETUP, f"cannot make {what}")
    wanted = -1000 - slot
    for index, fd in enumerate(slots):
        if index != wanted and fd >= 0:
            os.close(fd)
    return slots[wanted]


def make_tmpfs(size_bytes: int, mode: int) -> int:
    """A descriptor of a new tmpfs that is mounted nowhere."""
    packer = Packer()
    clone_flags, where = 0, Place()
    if not is_privileged():
        clone_flags = own_user_namespace(packer, where) | CLONE_NEWNS
    slot = packer.made(
        "FSMOUNT", "making a tmpfs", text="tmpfs", text2=f"size={size_bytes},mode={mode:o}", a=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    )
    return _collect(packer, clone_flags, slot, "a tmpfs", **where)


def make_netns() -> int:
    """A descriptor of a new network namespace whose loopback device is up."""
    packer = Packer()
    where = Place() if is_privileged() else kept_user_namespace()
    packer.op("LOOPBACK_UP", "bringing the loopback device up")
    slot = packer.made("OPEN", "opening the network namespace", fd=CWD_FD, text="/proc/self/ns/net", a=os.O_RDONLY)
    return _collect(packer, CLONE_NEWNET, slot, "a network namespace", **where)


def _make_empty_mounts() -> int:
    """A descriptor of a mount namespace in which nothing is but one empty directory that cannot be written.

    Raises:
        SpawnError: also for a root who may make mount namespaces, but not clone the mounts of the one it lives in; what is
            cloned could not be taken there.
    """
    packer = Packer()
    packer.made("OPEN_TREE", "cloning the root directory", fd=CWD_FD, text="/", a=1)
    packer.op("UNSHARE", "making a mount namespace", a=CLONE_NEWNS)
    slot = packer.made("OPEN", "opening the mount namespace", fd=CWD_FD, text="/proc/thread-self/ns/mnt", a=os.O_RDONLY)
    packer.op("PRIVATE_MOUNTS", "making mounts private")
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    root = packer.made("FSMOUNT", "making an empty root directory", text="tmpfs", text2="size=4k,mode=555", a=attributes)
    host = packer.made("OPEN", "opening the root directory", fd=CWD_FD, text="/", a=os.O_RDONLY | os.O_DIRECTORY)
    packer.op("MOVE_MOUNT", "mounting the empty root directory", fd=root, fd2=host, text="")
    packer.op("PIVOT", "leaving the caller's mounts", fd=root, fd2=root)
    return _collect(packer, 0, slot, "a mount namespace")


def empty_mounts() -> int:
    """The one made on first use and kept, or -1 where none can be made or used."""
    global _refused
    with _lock:
        if _refused:
            return -1
        try:
            return _empty_mounts.fd()
        except SpawnError:
            _refused = True
            return -1


_lock = held_over_forks()
_refused = False
_empty_mounts = KeptFd(_make_empty_mounts)
