"""Limits of a cgroup: the files they are written to, and getting the controllers those files need.

A controller has to be switched on in every directory from the top down to the one above. Directories that shoal made
are switched freely. Above them is the cgroup this process lives in, where the kernel allows the memory controller only
once no process is left in it; so when only this process and its children are there they move into a leaf below it
first, as the kernel's documentation advises. Anything above that belongs to somebody else and is left alone.

Source: cgroups(7), "no internal processes"; the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from shoal.handles.cgroup_files import open_below, open_parent, read_text, write_text
from shoal.handles.cgroup_marks import CREATOR, Creator, made_by_shoal, set_mark
from shoal.handles.hierarchy import DELEGATE, LEAF_SUFFIX, Home, find_home, v1_controllers
from shoal.handles.job_backend import Limits
from shoal.handles.reaper import OwnedFd
from shoal.status import Stage, Status, failure, failure_from_errno

_PERIOD_US = 100_000
_SHORTEST_QUOTA_US = 1_000
_MOVES = 5
"""How often a process started by another thread meanwhile may undo a move."""


def apply(fd: int, name: str, limits: Limits) -> None:
    """Write the limits given, all or none.

    Args:
        fd: the directory of the job.
        name: its name, for messages.
    Raises:
        NotSupportedError: a controller is missing; says which, why, and how to get it.
    """
    wanted = _files(limits)
    missing = sorted({file.partition(".")[0] for file in wanted if not _exists(fd, file)})
    if missing:
        _enable_above(fd, name, missing)
    before: dict[str, str] = {}
    file = ""
    try:
        for file, value in wanted.items():
            old = read_text(fd, file).strip()
            write_text(fd, file, value)
            before[file] = old
    except OSError as error:
        for done, old in before.items():
            write_text(fd, done, old)
        if error.errno == errno.ENOENT:
            what = f"this kernel has no {file}, so it cannot limit that for job {name}"
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, what, error.errno) from error
        raise failure_from_errno(error.errno or 0, Stage.JOB, f"cannot write {wanted[file]!r} to {file} of job {name}") from error


def _files(limits: Limits) -> dict[str, str]:
    wanted: dict[str, str] = {}
    if limits.memory_bytes is not None:
        wanted["memory.max"] = str(limits.memory_bytes)
    if limits.swap_bytes is not None:
        wanted["memory.swap.max"] = str(limits.swap_bytes)
    if limits.pids is not None:
        wanted["pids.max"] = str(limits.pids)
    if limits.cpus is not None:
        wanted["cpu.max"] = f"{max(_SHORTEST_QUOTA_US, round(limits.cpus * _PERIOD_US))} {_PERIOD_US}"
    return wanted


def _enable_above(fd: int, name: str, controllers: list[str]) -> None:
    """Switch the controllers on in the directory above `fd`, and where needed in those further up."""
    parent = OwnedFd(open_parent(fd, os.O_RDONLY))
    home = find_home()
    is_home = isinstance(home, Home) and os.path.samestat(os.fstat(parent.fd), os.stat(home.path))
    present = read_text(parent.fd, "cgroup.controllers").split()
    absent = [controller for controller in controllers if controller not in present]
    ours = made_by_shoal(parent.fd)
    if absent and ours and not is_home:
        _enable_above(parent.fd, name, absent)
    elif absent:
        raise _not_available(absent[0], name)
    if not ours and not is_home:
        raise _not_available(controllers[0], name)
    request = " ".join(f"+{controller}" for controller in controllers)
    for attempt in range(_MOVES):
        try:
            write_text(parent.fd, "cgroup.subtree_control", request)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or not is_home or attempt == _MOVES - 1:
                what = f"cannot switch on {', '.join(controllers)} for job {name}; start under: {DELEGATE}"
                raise failure(Status.NOT_SUPPORTED, Stage.JOB, what, error.errno) from error
            make_room(parent.fd)


def make_room(home: int) -> None:
    """Move this process and its children from the cgroup `home` into a leaf below it.

    Raises:
        NotSupportedError: processes that are not ours live there too; nothing was moved.
    """
    pids = [int(pid) for pid in read_text(home, "cgroup.procs").split()]
    strangers = [pid for pid in pids if pid != os.getpid() and _parent_of(pid) != os.getpid()]
    if strangers:
        raise failure(
            Status.NOT_SUPPORTED,
            Stage.JOB,
            f"limits need a cgroup of our own, but process {strangers[0]} shares the one we live in; start under: {DELEGATE}",
        )
    creator = Creator.current()
    leaf_name = f"shoal-{creator.pid}-{creator.start}-{LEAF_SUFFIX}"
    with suppress(FileExistsError):  # made earlier
        os.mkdir(leaf_name, 0o755, dir_fd=home)
    leaf = OwnedFd(open_below(home, leaf_name))
    set_mark(leaf.fd, CREATOR, str(creator))
    for pid in pids:
        try:
            write_text(leaf.fd, "cgroup.procs", str(pid))
        except ProcessLookupError:
            continue  # ended meanwhile


def _not_available(controller: str, name: str) -> Exception:
    if place := v1_controllers().get(controller):
        why = f"it is taken by the cgroup v1 hierarchy at {place}; boot with systemd.unified_cgroup_hierarchy=1"
    elif not _kernel_has(controller):
        why = "this kernel was built or booted without it"
    else:
        why = f"it was not delegated to the cgroup of this process; start under: {DELEGATE}"
    return failure(Status.NOT_SUPPORTED, Stage.JOB, f"job {name} cannot be limited: no {controller} controller: {why}")


def _kernel_has(controller: str) -> bool:
    try:
        with open("/proc/cgroups", encoding="ascii") as file:
            rows = [line.split() for line in file if not line.startswith("#")]
    except OSError:
        return True
    return any(row[0] == controller and row[3] == "1" for row in rows)


def _parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return os.getpid()  # ended meanwhile: no stranger


def _exists(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd)
    except OSError:
        return False
    return True
