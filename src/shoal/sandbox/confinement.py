"""What of a Sandbox is taken from each process: filter, resource limits, processors, user."""

from __future__ import annotations

import dataclasses
import math
import resource

from shoal.plan import Confinement, Rlimit
from shoal.privileges import can_raise_limits
from shoal.sandbox.box import Sandbox
from shoal.sandbox.seccomp import Seccomp, filter_for
from shoal.units import parse_duration, parse_size


def confinement_of(box: Sandbox, *, privileged: bool) -> Confinement:
    """What to take away.

    Args:
        privileged: the caller is root, who can give it a user of its own.
    Raises:
        ValueError: a limit is higher than what this process itself may have.
    """
    chosen = filter_for(_filter(box))
    return Confinement(
        filter=chosen.program if chosen else b"",
        filter_label=chosen.label if chosen else "",
        early=chosen is not None and chosen.early,
        without_keys=chosen is not None and chosen.denied >= KEYS,
        rlimits=_rlimits(box),
        processors=tuple(sorted(set(box.core_set))),
        nice=box.nice,
        own_user=privileged and box.user == "dynamic",
    )


def hard_limits() -> tuple[int, ...]:
    """What this process may have itself, of all that a box may limit for each process."""
    return tuple(map(_hard_limit, (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)))


def _hard_limit(number: int) -> int:
    return resource.getrlimit(number)[1]


def _filter(box: Sandbox) -> str | Seccomp:
    """The filter asked for, and with it nobody leaves the processors a box names."""
    asked = box.seccomp
    if not box.core_set or asked == "off":
        return asked
    if isinstance(asked, Seccomp):
        return dataclasses.replace(asked, deny=(*asked.deny, _LEAVING)) if _LEAVING not in (asked.allow or ()) else asked
    return Seccomp(base=asked, deny=[_LEAVING])


_LEAVING = "sched_setaffinity"
KEYS = frozenset({"add_key", "request_key", "keyctl"})
"""Every call that uses keys."""


def _rlimits(box: Sandbox) -> tuple[Rlimit, ...]:
    # A dump would hold what the program saw. 1 and not 0: it alone keeps the kernel from starting a collector, core(5).
    # Who has been left 0 and is not root can give no more.
    core = 1 if _hard_limit(resource.RLIMIT_CORE) != 0 or can_raise_limits() else 0
    wanted = []
    if box.open_files is not None:
        wanted.append(("open_files", resource.RLIMIT_NOFILE, box.open_files, box.open_files))
    if box.file_size is not None:
        size = parse_size(box.file_size)
        wanted.append(("file_size", resource.RLIMIT_FSIZE, size, size))
    if box.cpu_time is not None:
        seconds = max(1, math.ceil(parse_duration(box.cpu_time)))
        wanted.append(("cpu_time", resource.RLIMIT_CPU, seconds, seconds + 1))
    return (Rlimit("core_size", resource.RLIMIT_CORE, core, core), *(_possible(*limit) for limit in wanted))


def _possible(name: str, number: int, soft: int, hard: int) -> Rlimit:
    """The limit, if it is no higher than the caller's own."""
    highest = _hard_limit(number)
    if highest == resource.RLIM_INFINITY or hard <= highest:
        return Rlimit(name, number, soft, hard)
    if soft > highest:
        raise ValueError(f"{name}: {soft} is more than this process itself may have, {highest}; see ulimit -Ha")
    return Rlimit(name, number, soft, highest)
