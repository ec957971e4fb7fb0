"""The user namespaces in which an ordinary user may make what a cell takes.

As a rule a process is made in a new one, and maps its ids itself. Two kinds of things are made in one that is kept instead, by a
process of ours that was executed for it. Sharing it is no way from one cell to another: nobody in them has a capability there.

* What is to be used together: networks, and jobs that are pid namespaces. Who enters one of them can enter the other only if both
  belong to the same user namespace, and it must be left by nobody on the way.
* All that is started by a caller which has changed its user since it was executed, as a daemon does that began as root. Such a process
  is not dumpable: what is in its folder of /proc belongs to root, and the same goes for children that still have its memory, so that
  they can write no map.

Source: user_namespaces(7); prctl(2), PR_SET_DUMPABLE; proc(5).
"""

from __future__ import annotations

import errno
import os
import socket
import sys

from shoal.handles import reaper
from shoal.handles.forks import held_over_forks
from shoal.handles.keeper import keeper_plan, open_null, start_keeper
from shoal.handles.kept import KeptFd
from shoal.packing import CLONE_NEWUSER, Packer, Place
from shoal.status import Stage, failure_from_errno

GIVE = "u"
"""What a process of ours is told that makes a user namespace: src/native/init/userns.c."""

_kept: dict[tuple[int, int, int], KeptFd] = {}
_lock = held_over_forks()


def own_user_namespace(packer: Packer, where: Place) -> int:
    """Give a process that is about to be made a user namespace in which it may do everything that its cell takes.

    Args:
        packer: for the ops that are needed; they come first.
        where: where the process begins; gets a user namespace to enter if it has to have one.
    Returns:
        what the process is to be made with, for clone(2).
    Raises:
        SpawnError: none can be had.
    """
    if _may_map_ids():
        map_ids(packer)
        return CLONE_NEWUSER
    if not where.get("enter_flags", 0) & CLONE_NEWUSER:
        where.update(kept_user_namespace())
    return 0


def map_ids(packer: Packer) -> None:
    """Ops that map the caller's own user and group, and nobody else, into a new user namespace: user_namespaces(7)."""
    uid, gid = os.geteuid(), os.getegid()
    packer.op("WRITE", "denying setgroups", text="/proc/self/setgroups", text2="deny")
    packer.op("WRITE", "mapping the user id", text="/proc/self/uid_map", text2=f"{uid} {uid} 1\n")
    packer.op("WRITE", "mapping the group id", text="/proc/self/gid_map", text2=f"{gid} {gid} 1\n")


def _may_map_ids() -> bool:
    try:
        return os.stat("/proc/self/fd").st_uid == os.geteuid()
    except OSError:  # which is told when it is tried
        return True


def kept_user_namespace() -> Place:
    """The one that is kept for the present user, to be entered; made on first use.

    Raises:
        SpawnError: no user namespace can be made.
    """
    try:
        own = os.stat("/proc/self/ns/user").st_ino
    except OSError:  # no /proc, no way into another one
        own = 0
    with _lock:
        fd = _kept.setdefault((own, os.geteuid(), os.getegid()), KeptFd(_made)).fd()
    return {"enter_fd": fd, "enter_flags": CLONE_NEWUSER}


def _made() -> int:
    packer = Packer()
    packer.unshare_fds()
    keeper, control = start_keeper(keeper_plan(packer, open_null(packer), 0), "a user namespace", GIVE)
    with socket.socket(fileno=control) as near:
        try:
            data, fds, _, _ = socket.recv_fds(near, 4, 1, socket.MSG_CMSG_CLOEXEC)
        finally:
            reaper.register(keeper)
    if fds:
        return fds[0]
    error = int.from_bytes(data, sys.byteorder, signed=True) if data else errno.EMFILE
    raise failure_from_errno(error or errno.EMFILE, Stage.CLONE, "cannot make a user namespace; `shoal doctor` tells why")
