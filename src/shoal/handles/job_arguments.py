"""What may be asked of a job: names, policies and limits, checked before anything is done.

Source: Zircon's <zircon/syscalls/policy.h> for the conditions; spec 6.3. cgroups(7) for the names.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from shoal.handles.cgroup_marks import looks_like_ours
from shoal.status import Stage, Status, failure
from shoal.units import parse_size

_NAME_MAX: Final = 255
_KERNEL_PREFIXES: Final = ("cgroup", "cpu", "cpuset", "dmem", "hugetlb", "io", "irq", "memory", "misc", "perf_event", "pids", "rdma")

ENFORCED: Final = "new_process"
"""The one condition of a policy that Linux can enforce for a whole tree of processes."""
CONDITIONS: Final = (
    "bad_handle",
    "wrong_object",
    "vmar_wx",
    "new_any",
    "new_vmo",
    "new_channel",
    "new_event",
    "new_eventpair",
    "new_port",
    "new_socket",
    "new_fifo",
    "new_timer",
    ENFORCED,
    "new_profile",
    "new_pager",
    "ambient_mark_vmo_exec",
    "new_iob",
)
ACTIONS: Final = ("allow", "deny")


def check_name(name: str) -> None:
    """Raise InvalidArgsError unless this can be the name of a directory of the cgroup tree."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a job is text, not {type(name).__name__}")
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        encoded = b""
    why = None
    if not encoded:
        why = "it is empty or cannot be encoded"
    elif any(character in name for character in "/\0\n"):
        why = "it has a slash, a NUL or a line break in it"
    elif name.startswith("."):
        why = "it begins with a dot"
    elif len(encoded) > _NAME_MAX:
        why = f"it has {len(encoded)} bytes, {_NAME_MAX} are possible"
    elif "." in name and name.partition(".")[0] in _KERNEL_PREFIXES:
        why = f"the kernel keeps names beginning with {name.partition('.')[0]!r} and a dot for itself"
    elif looks_like_ours(name):
        why = "it looks like the names shoal chooses itself"
    if why is not None:
        raise failure(Status.INVALID_ARGS, Stage.JOB, f"{name!r} cannot be the name of a job: {why}")


def check_policy(policy: Mapping[str, str]) -> bool:
    """Is new_process to be denied? Raises InvalidArgsError or NotSupportedError."""
    if not policy:
        raise failure(Status.INVALID_ARGS, Stage.JOB, 'a policy needs an entry, such as {"new_process": "deny"}')
    for condition, action in policy.items():
        if condition not in CONDITIONS:
            raise failure(Status.INVALID_ARGS, Stage.JOB, f"unknown condition {condition!r}{_nearest(condition, CONDITIONS)}")
        if action not in ACTIONS:
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, f"unknown action {action!r}{_nearest(action, ACTIONS)}")
        if action == "deny" and condition != ENFORCED:
            raise failure(
                Status.NOT_SUPPORTED, Stage.JOB, f"{condition!r} cannot be denied: Linux has no means to enforce it; {ENFORCED!r} can"
            )
    return policy.get(ENFORCED) == "deny"


def _nearest(word: object, known: Iterable[str]) -> str:
    import difflib  # costly, and only for mistakes

    choices = list(known)
    close = difflib.get_close_matches(str(word).lower(), choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(choices)}"


def parse_limit(what: str, value: int | str | None) -> int | None:
    """Bytes, or None."""
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as error:
        raise failure(Status.INVALID_ARGS, Stage.JOB, f"{what}: {error}") from error


def check_count(pids: int | None) -> int | None:
    """A number of processes, or None."""
    if pids is None:
        return None
    if isinstance(pids, bool) or not isinstance(pids, int):
        raise TypeError(f"pids is a number of processes, not {type(pids).__name__}")
    if pids < 0:
        raise failure(Status.INVALID_ARGS, Stage.JOB, f"pids cannot be negative: {pids}")
    return pids


def check_io(io: Mapping[str, int | str]) -> tuple[tuple[str, int], ...]:
    """Block devices as "major:minor", and bytes per second."""
    found = []
    for path, rate in io.items():
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            what = f"io: {path!r}: {getattr(error, 'strerror', None) or error}; name a block device, as lsblk lists them"
            raise failure(Status.INVALID_ARGS, Stage.JOB, what) from error
        if not stat.S_ISBLK(status.st_mode):
            raise failure(Status.INVALID_ARGS, Stage.JOB, f"io: {path!r} is no block device; lsblk lists them")
        per_second = parse_limit(f"io of {path}", rate) or 0
        if per_second == 0:
            raise failure(Status.INVALID_ARGS, Stage.JOB, f"io: 0 bytes per second for {path!r} would be for ever")
        found.append((f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}", per_second))
    return tuple(found)


def check_cpus(cpus: float | None) -> float | None:
    """Processors' worth of time, or None."""
    if cpus is None:
        return None
    if isinstance(cpus, bool) or not isinstance(cpus, int | float):
        raise TypeError(f"cpus is a number, not {type(cpus).__name__}")
    if not (math.isfinite(cpus) and cpus >= 0.01):
        raise failure(Status.INVALID_ARGS, Stage.JOB, f"cpus must be at least 0.01: {cpus}")
    return float(cpus)
