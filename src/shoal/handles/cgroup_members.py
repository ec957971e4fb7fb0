"""Members: the processes directly in a job, and where they are once its directory may hold none.

The kernel gives controllers to the directories below one only if it holds no processes itself. With some controllers (pids
and cpu among them) it seems to allow both, but then takes no whole processes into the directories below any more. So a
directory that is to hand on controllers gets a leaf, a directory with no other purpose: the processes directly in it move
there, and those to come begin there. Seen from outside they are in the same job as before.

Source: cgroups(7), "no internal processes" and "thread mode"; the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from shoal.handles.cgroup_files import child_names, exists, open_below, read_text, write_text
from shoal.handles.cgroup_marks import CREATOR, LEAF, Creator, get_mark, hold, set_mark
from shoal.handles.hierarchy import DELEGATE, LEAF_SUFFIX, is_leaf
from shoal.handles.reaper import OwnedFd
from shoal.status import Stage, Status, failure


def members(fd: int) -> list[int]:
    """The live processes directly in the job of directory `fd`, without those that cannot be seen from here. Raises OSError."""
    found = _pids(fd)
    if get_mark(fd, LEAF) is not None:
        for name in filter(is_leaf, child_names(fd)):
            try:
                leaf = OwnedFd(open_below(fd, name))
                found += _pids(leaf.fd)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):  # removed meanwhile
                    raise
    return [pid for pid in found if pid]


def entrance(fd: int, known: OwnedFd | None) -> OwnedFd | None:
    """The leaf in which a new process of the job begins; None: in the directory itself.

    Args:
        known: what this has answered before.
    Raises:
        OSError: it is gone, and so is the job.
    """
    name = get_mark(fd, LEAF)
    if name is None:
        return None
    if known is not None and exists(known.fd, "cgroup.procs"):
        return known
    # Its maker may have ended long ago, and others may have tidied up.
    leaf = _make_leaf(fd, name)
    hold(leaf.fd)
    return leaf


def make_room(fd: int, *, ours: bool = False) -> None:
    """Move the processes directly in the directory `fd` into its leaf, where those to come will begin, too.

    Args:
        ours: the directory was made by shoal, so whatever is in it is a member of that job. In one we only live in,
            only this process and its children are ours to move.
    Raises:
        NotSupportedError: processes that are not ours live there too; nothing was moved.
        OSError: the kernel does not allow it.
    """
    pids = _pids(fd)
    if strangers := strangers_in(fd, ours=ours):
        who = f"process {strangers[0]}" if strangers[0] else "a process of another pid namespace"
        what = f"limits need a cgroup of our own, but {who} shares the one we live in; start under: {DELEGATE}"
        raise failure(Status.NOT_SUPPORTED, Stage.JOB, what)
    creator = Creator.current()
    name = get_mark(fd, LEAF) or f"shoal-{creator.pid}-{creator.start}-{LEAF_SUFFIX}"
    leaf = _make_leaf(fd, name)
    for pid in pids:
        with suppress(ProcessLookupError):  # ended meanwhile
            write_text(leaf.fd, "cgroup.procs", str(pid))
    set_mark(fd, LEAF, name)


def strangers_in(fd: int, *, ours: bool = False) -> list[int]:
    """The processes directly in the directory `fd` that are not ours to move. Raises OSError.

    Args:
        ours: as for `make_room()`.
    """
    # 0 is a process that cannot be seen from here, and in what we write it would mean ourselves.
    return [pid for pid in _pids(fd) if not pid or not (ours or pid == os.getpid() or _parent_of(pid) == os.getpid())]


def _make_leaf(fd: int, name: str) -> OwnedFd:
    """The directory `name` below `fd`, made where it is missing. Raises OSError."""
    try:
        os.mkdir(name, 0o755, dir_fd=fd)
    except FileExistsError:
        return OwnedFd(open_below(fd, name))
    leaf = OwnedFd(open_below(fd, name))
    set_mark(leaf.fd, CREATOR, str(Creator.current()))
    return leaf


def _pids(fd: int) -> list[int]:
    return [int(pid) for pid in read_text(fd, "cgroup.procs").split()]


def _parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return os.getpid()  # ended meanwhile: no stranger
