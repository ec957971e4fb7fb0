"""Starting a keeper: shoal-init as the first process of new namespaces.

Used for cells (by spawn) and for jobs that are pid namespaces (by pidns). The keeper waits on a pipe; what is written there is
described in src/native/init/main.c.
"""

from __future__ import annotations

import errno
import os

from shoal import _native
from shoal.handles.images import init_image
from shoal.handles.reaper import Keeper
from shoal.packing import CWD_FD, Packer, count_strings
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

CONTROL_FD = 3
STAY, DIE_WITH_US, HOLD = b"g", b"d", b"j"
"""What a keeper is told: keep a program's cell; the same until the pipe closes; hold a namespace until the pipe closes."""


def start_keeper(packer: Packer, label: str, clone_flags: int, where: dict[str, int]) -> tuple[Keeper, int]:
    """Launch a keeper, which then waits to be told what to do. Returns it and our end of its pipe.

    Args:
        packer: the ops that its namespaces need.
        label: what it keeps, for messages.
        where: the cgroup or namespaces to begin in, as `Packer.pack` takes them.
    Raises:
        SpawnError: why it could not be started; nothing is left.
    """
    image = init_image()
    try:
        theirs, ours = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.SETUP, f"cannot make a pipe to {label}") from error
    try:
        packer.op("SETSID", "making a session")
        null = packer.made("OPEN", "opening /dev/null", fd=CWD_FD, text="/dev/null", a=os.O_RDWR)
        packer.op("NO_NEW_PRIVS", "setting no_new_privs")
        packer.op("DROP_CAPS", "dropping capabilities")
        packer.fd_map([(theirs, CONTROL_FD)], null)
        packer.op("SIGNALS", "resetting signals")
        packed = packer.pack(clone_flags=clone_flags, exec_fd=image, **where)
        pid, pidfd = launch(packed, packer, (b"shoal-init",), (), label)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return Keeper(pidfd, pid), ours


def launch(packed: bytes, packer: Packer, argv: tuple[bytes, ...], environ: tuple[bytes, ...], label: str) -> tuple[int, int]:
    """Execute a packed plan. Returns pid and pidfd.

    Raises:
        SpawnError: what the core's report means, in words.
    """
    pid, pidfd, stage, index, error, _ = _native.launch(packed, *count_strings(argv), *count_strings(environ))
    if pid > 0:
        return pid, pidfd
    raise _launch_error(packer, label, stage, index, error)


def _launch_error(packer: Packer, label: str, stage: int, index: int, error: int) -> SpawnError:
    if not error:
        return failure(Status.BAD_STATE, Stage.JOB, f"{label}: killed before it began; has its job been killed?", errno.ESRCH)
    if stage == _native.STAGE_OPS and 0 <= index < len(packer.labels):
        detail = f"{label}: {packer.labels[index]}"
        if error == errno.ESTALE:
            return failure(Status.INTERNAL, Stage.NAMESPACE, f"{detail}: it was exchanged for something else meanwhile", error)
        found = failure_from_errno(error, Stage.SETUP, detail)
        # NOT_FOUND belongs to the path given to spawn alone: any later one is INTERNAL (spec 2.4).
        return failure(Status.INTERNAL, Stage.SETUP, detail, error) if found.status is Status.NOT_FOUND else found
    if stage == _native.STAGE_EXEC:
        return _exec_error(error, label)
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
