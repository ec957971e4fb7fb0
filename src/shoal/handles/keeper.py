"""Starting a keeper: shoal-init as the first process of new namespaces.

Used for cells (by spawn) and for jobs that are pid namespaces (by pidns). The keeper waits on a socket; what is written there is
described in src/native/init/main.c.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Unpack

from shoal import _native
from shoal.handles.images import init_image
from shoal.handles.pidfd import pid_of
from shoal.handles.reaper import Keeper
from shoal.packing import CWD_FD, Packed, Packer, Place, count_strings
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

CONTROL_FD = 3
ID_MAPPED = "its files as the child's own"
"""The end of what an op is called that maps ids: some file systems cannot (tmpfs before Linux 6.3)."""
"""What the first op is called that a new user namespace needs."""
OWN_KEYRING = "making a session keyring of its own"
ENTER_NETWORK = "entering the network handed over"
"""What the op is called that leaves the caller's."""
MAKE_NETWORK = "n"
STAY, DIE_WITH_US, HOLD = b"g", b"d", b"j"
"""What a keeper is told: keep a program's cell; the same until the socket closes; hold a namespace until then."""


def open_null(packer: Packer) -> int:
    """The slot of /dev/null; to be opened before the caller's files are left."""
    return packer.made("OPEN", "opening /dev/null", fd=CWD_FD, text="/dev/null", a=os.O_RDWR)


def keeper_plan(packer: Packer, null: int, clone_flags: int, **where: Unpack[Place]) -> Packed:
    """The plan of a keeper, with two holes: shoal-init's image and its end of the socket.

    Args:
        packer: the ops that its namespaces need.
        null: from `open_null()`.
        where: the cgroup or namespaces to begin in.
    """
    image, control = packer.hole(), packer.hole()
    packer.op("SETSID", "making a session")
    keeper_tail(packer, control, null)
    return packer.packed(clone_flags=clone_flags, exec_fd=image, **where)


def keeper_tail(packer: Packer, control: int, null: int) -> None:
    """The last ops of a keeper.

    Args:
        control: its end of the socket.
    """
    packer.fd_map([(control, CONTROL_FD)], null)
    packer.op("SIGNALS", "resetting signals")


def start_keeper(plan: Packed, label: str, tasks: str = "") -> tuple[Keeper, int]:
    """Launch a keeper, which does its tasks and then waits to be told what to do. Returns it and our end of its socket.

    Args:
        plan: from `keeper_plan`.
        label: what it keeps, for messages.
        tasks: what to do first, as letters: MAKE_NETWORK.
    Raises:
        SpawnError: why it could not be started; nothing is left.
    """
    image = init_image()
    try:
        theirs, ours = (end.detach() for end in socket.socketpair())
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.SETUP, f"cannot make a socket to {label}") from error
    try:
        pid, pidfd = launch(plan, (image, theirs), count_strings((b"shoal-init", tasks.encode())), (b"", 0), label)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return Keeper(pidfd, pid), ours


Strings = tuple[bytes, int]
"""NUL-terminated strings in one piece, and how many: from `packing.count_strings`."""


def launch(plan: Packed, fds: Sequence[int], argv: Strings, environ: Strings, label: str) -> tuple[int, int]:
    """Execute a packed plan. Returns pid and pidfd.

    Args:
        fds: what fills its holes.
    Raises:
        SpawnError: what the core's report means, in words.
    """
    pid, pidfd, stage, index, error, _ = _native.launch(plan.filled(fds), *argv, *environ)
    if pid > 0:
        return pid_of(pidfd) or pid if plan.nested else pid, pidfd
    raise launch_error(plan.labels, label, stage, index, error)


def launch_error(labels: Sequence[str], label: str, stage: int, index: int, error: int) -> SpawnError:
    """What the core's report of a failed launch means, in words."""
    if not error:
        return failure(Status.BAD_STATE, Stage.JOB, f"{label}: killed before it began; has its job been killed?", errno.ESRCH)
    if stage == _native.STAGE_OPS and 0 <= index < len(labels):
        detail = f"{label}: {labels[index]}"
        if error == errno.ESTALE:
            return failure(Status.INTERNAL, Stage.NAMESPACE, f"{detail}: it was exchanged for something else meanwhile", error)
        if error == errno.EINVAL and labels[index].endswith(ID_MAPPED):
            what = f'{detail}: its file system cannot do that on this kernel; run as the caller (user="caller"), or use another file system'
            return failure(Status.NOT_SUPPORTED, Stage.SETUP, what, error)
        if error == errno.EPERM and labels[index] == ENTER_NETWORK:
            what = f"{detail}: it and the job, a pid namespace, were made by different processes; let one make both, or run as root"
            return failure(Status.ACCESS_DENIED, Stage.SETUP, what, error)
        if error == errno.EDQUOT and labels[index] == OWN_KEYRING:
            what = f"{detail}: this user has as many keys as it may; /proc/sys/kernel/keys/maxkeys says how many"
            return failure(Status.NO_RESOURCES, Stage.SETUP, what, error)
        found = failure_from_errno(error, Stage.SETUP, detail)
        # NOT_FOUND belongs to the path given to spawn alone: any later one is INTERNAL (spec 2.4).
        return failure(Status.INTERNAL, Stage.SETUP, detail, error) if found.status is Status.NOT_FOUND else found
    if stage == _native.STAGE_EXEC:
        return _exec_error(error, label)
    if stage == _native.STAGE_ENTER and error == errno.ESRCH:
        return failure(Status.BAD_STATE, Stage.JOB, f"{label}: the job has been killed", error)
    if stage == _native.STAGE_ENTER:
        return failure_from_errno(error, Stage.CLONE, f"{label}: cannot enter the namespaces it belongs in")
    if error in (errno.EPERM, errno.ENOSPC, errno.EINVAL, errno.EUSERS):
        detail = f"{label}: this machine does not let new namespaces be made; `shoal doctor` tells why"
        return failure_from_errno(error, Stage.CLONE, detail)
    if error in (errno.ENODEV, errno.ENOENT):
        return failure(Status.BAD_STATE, Stage.JOB, f"{label}: the job has been killed or removed", error)
    if error == errno.EACCES:
        detail = f"{label}: the kernel does not let this user start a process in the job's cgroup"
        return failure(Status.ACCESS_DENIED, Stage.JOB, detail, error)
    return failure_from_errno(error, Stage.CLONE, f"{label}: cannot make a process")


def _exec_error(error: int, label: str) -> SpawnError:
    if error == errno.E2BIG:
        detail = f"{label}: arguments and environment together are larger than the kernel takes"
        return failure(Status.OUT_OF_RANGE, Stage.EXEC, detail, error)
    if error in (errno.ENOEXEC, errno.ELIBBAD):
        return failure(Status.INTERNAL, Stage.EXEC, f"{label}: not a program this machine can execute", error)
    if error == errno.ENOENT:
        detail = f"{label}: its ELF interpreter is missing in the child's world, or the file vanished"
        return failure(Status.INTERNAL, Stage.EXEC, detail, error)
    return failure_from_errno(error, Stage.EXEC, f"{label}: cannot be executed")
