"""Limits of a cgroup: the files they are written to, and getting the controllers those files need.

A controller has to be switched on in every directory from the top down to the one above, and the kernel wants those to hold
no processes themselves; cgroup_members.py makes room. Directories that shoal made are switched freely. Above them is the
cgroup this process lives in, which is switched when only this process and its children are there. Anything above that
belongs to somebody else and is left alone.

Source: cgroups(7), "no internal processes"; the kernel's Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os

from shoal.handles.cgroup_files import exists, name_of, open_parent, read_text, write_text
from shoal.handles.cgroup_marks import made_by_shoal
from shoal.handles.cgroup_members import make_room
from shoal.handles.hierarchy import DELEGATE, Home, find_home, v1_controllers
from shoal.handles.job_backend import Limits
from shoal.handles.reaper import OwnedFd
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

_PERIOD_US = 100_000
_SHORTEST_QUOTA_US = 1_000
_MOVES = 5
"""How often a process started by another thread meanwhile may undo a move."""
_STRICT = ("memory",)
"""Switched on along with any other controller: with it the kernel refuses processes in a directory that hands on controllers.
Without it they are let in, and the directories below take no processes any more."""


def apply(fd: int, name: str, limits: Limits) -> None:
    """Write the limits given, all or none.

    Args:
        fd: the directory of the job.
        name: its name, for messages.
    Raises:
        NotSupportedError: a controller is missing; says which, why, and how to get it.
    """
    wanted = _files(limits)
    missing = sorted({key.partition(".")[0] for key in wanted if not exists(fd, _file(key))})
    if missing:
        _enable_above(fd, name, missing)
    before: dict[str, str] = {}
    key = file = ""
    try:
        for key, value in wanted.items():
            file = _file(key)
            old = read_text(fd, file).strip()
            write_text(fd, file, value)
            before[file] = old
    except OSError as error:
        for done, old in before.items():
            if done != "io.max":  # only limits that were not there before
                write_text(fd, done, old)
        if error.errno == errno.ENOENT:
            what = f"this kernel has no {file}, so it cannot limit that for job {name}"
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, what, error.errno) from error
        raise failure_from_errno(error.errno or 0, Stage.JOB, f"cannot write {wanted[key]!r} to {file} of job {name}") from error


def _file(key: str) -> str:
    """A file that takes one line for each device comes once for each."""
    return key.partition(" ")[0]


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
    if limits.dies_whole:
        wanted["memory.oom.group"] = "1"
    for device, rate in limits.io:
        wanted[f"io.max {device}"] = f"{device} rbps={rate} wbps={rate}"
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
        present = read_text(parent.fd, "cgroup.controllers").split()  # what is strict has come with them
    elif absent:
        raise _not_available(absent[0], name)
    if not ours and not is_home:
        raise _not_available(controllers[0], name)
    is_root = not exists(parent.fd, "cgroup.type")  # which alone may hold processes all the same
    strict = [controller for controller in _STRICT if controller in present and not is_root]
    request = " ".join(f"+{controller}" for controller in dict.fromkeys([*strict, *controllers]))
    for attempt in range(_MOVES):
        try:
            if not is_root:
                make_room(parent.fd, ours=ours)
            write_text(parent.fd, "cgroup.subtree_control", request)
            return
        except SpawnError:
            raise
        except OSError as error:
            if error.errno == errno.EBUSY and attempt < _MOVES - 1:
                continue  # a process was started there by another thread meanwhile
            what = f"cannot switch on {', '.join(controllers)} for job {name} in cgroup {name_of(parent.fd)}"
            if not ours:
                what += f"; start under: {DELEGATE}"
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, what, error.errno) from error


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
