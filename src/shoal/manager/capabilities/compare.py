"""Compare: what a domain can touch against what it was granted.

Mounts and open files have rules of their own, in worlds.py and files.py; here is the rest: namespaces, privileges, limits, networks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from shoal.lowering import FIRST_USER
from shoal.manager.capabilities.difference import WORST_FIRST, Difference
from shoal.manager.capabilities.files import open_differences
from shoal.manager.capabilities.granted import Granted
from shoal.manager.capabilities.observed import Observed, ObservedProcess
from shoal.manager.capabilities.worlds import world_differences

# Devices that the kernel puts into every new network where the modules for them are loaded. They are down, and lead nowhere.
_OF_EVERY_NETWORK: Final = ("lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0")


def differences(granted: Granted, observed: Observed) -> tuple[Difference, ...]:
    """All there are, worst first."""
    found = [Difference("unseen", "the domain", what) for what in observed.hidden]
    processes = [process for process in observed.processes if not process.keeper]
    found += world_differences(granted, observed)
    found += open_differences(granted, observed)
    for process in processes:
        found += [Difference("unseen", f"{what} of {process.pid}", "we may not look", process.pid) for what in process.hidden]
        found += _namespaces(granted, observed, process)
        found += _privileges(granted, observed, process)
        found += _limits(granted, process)
    found += _networks(granted, observed, processes)
    found += _job(granted, observed, processes)
    return tuple(sorted(dict.fromkeys(found), key=lambda item: WORST_FIRST.index(item.kind)))


def _namespaces(granted: Granted, observed: Observed, process: ObservedProcess) -> Iterator[Difference]:
    for name in granted.namespaces:
        own, ours = process.namespaces.get(name), observed.ours.get(name)
        if own is not None and own == ours:
            what = f"it was to be apart, and is in the same {name} namespace as we are"
            yield Difference("lost", f"{name} namespace of {process.pid}", what, process.pid)
    net = process.namespaces.get("net")
    if granted.network_ino and net not in (None, granted.network_ino):
        yield Difference("beyond", f"net namespace of {process.pid}", "it is not in the network that was handed over", process.pid)


def _privileges(granted: Granted, observed: Observed, process: ObservedProcess) -> Iterator[Difference]:
    pid = process.pid
    if granted.no_new_privs and not process.no_new_privs:
        yield Difference("lost", f"no_new_privs of {pid}", "it may gain privileges by executing a file", pid)
    held = [name for name, bits in process.capabilities.items() if bits and (name != "CapBnd" or granted.world == "cell")]
    if granted.no_capabilities and held:
        where = "" if process.namespaces.get("user") in (None, observed.ours.get("user")) else ", in a user namespace of its own"
        sets = " ".join(f"{name}={process.capabilities[name]:x}" for name in held)
        yield Difference("lost", f"capabilities of {pid}", f"it was to have none{where}: {sets}", pid)
    if granted.filters and (process.seccomp != 2 or (process.filters is not None and process.filters < granted.filters)):
        there = "none" if process.seccomp != 2 else str(process.filters)
        yield Difference("lost", f"seccomp of {pid}", f"of {granted.filters} filters {there} is in force", pid)
    yield from _users(granted, process)
    if process.tracer and all(process.tracer != other.pid for other in observed.processes):
        yield Difference("lost", f"tracer of {pid}", f"process {process.tracer} traces it, and can have it do anything", pid)


def _users(granted: Granted, process: ObservedProcess) -> Iterator[Difference]:
    users, pid = set(process.users), process.pid
    shown = " ".join(map(str, sorted(users)))
    if granted.own_user and (len(users) != 1 or min(users) < FIRST_USER):
        yield Difference("lost", f"user of {pid}", f"it was to be a user of its own, and is {shown}", pid)
    elif granted.own_user and process.more_groups:
        yield Difference("lost", f"groups of {pid}", f"it was to be in none, and is in {' '.join(map(str, process.more_groups))}", pid)
    elif granted.user and users != {granted.user}:  # root may become anybody
        yield Difference("beyond", f"user of {pid}", f"it was started as {granted.user}, and is {shown}", pid)


def _limits(granted: Granted, process: ObservedProcess) -> Iterator[Difference]:
    pid = process.pid
    for limit in granted.rlimits:
        there = process.limits.get(str(limit.number))
        if there is not None and (_above(there[0], limit.soft) or _above(there[1], limit.hard)):
            shown = " to ".join("unlimited" if value is None else str(value) for value in there)
            yield Difference("lost", f"limit {limit.name} of {pid}", f"it was to be {limit.soft} to {limit.hard}, and is {shown}", pid)
    if granted.processors and (more := set(process.processors) - set(granted.processors)):
        yield Difference("lost", f"processors of {pid}", f"it may run on {' '.join(map(str, sorted(more)))}, too", pid)
    if granted.nice is not None and process.nice < granted.nice:
        yield Difference("lost", f"nice of {pid}", f"it was to be {granted.nice}, and is {process.nice}", pid)


def _above(value: int | None, limit: int) -> bool:
    """Whether a limit that is in force is higher than it was to be; -1 and None are none."""
    return limit >= 0 and (value is None or value > limit)


def _networks(granted: Granted, observed: Observed, processes: list[ObservedProcess]) -> Iterator[Difference]:
    if granted.network != "loopback":
        return
    used = {process.namespaces.get("net") for process in processes}
    for network in observed.networks:
        more = [name for name in network.interfaces if name not in _OF_EVERY_NETWORK]
        if network.namespace in used and more and network.namespace != observed.ours.get("net"):
            yield Difference("beyond", "network", f"besides the loopback device there is {' '.join(more)}")


def _job(granted: Granted, observed: Observed, processes: list[ObservedProcess]) -> Iterator[Difference]:
    job, limits = observed.job, granted.limits
    pairs = [
        (name, wanted, None if job is None else getattr(job, name))
        for name in ("memory_bytes", "swap_bytes", "pids", "cpus")
        if (wanted := getattr(limits, name)) is not None
    ]
    pairs += [(f"io of {device}", rate, None if job is None else job.io.get(device)) for device, rate in (limits.io or {}).items()]
    if job is None:
        if pairs:
            names = " ".join(name for name, _, _ in pairs)
            yield Difference("unseen", "limits of the job", f"there is no job to look at; these were asked for: {names}")
        return
    for name, wanted, there in pairs:
        # The kernel counts memory in pages, and processor time in thousandths.
        if there is None or there > wanted * (1 + 1e-3) + (os.sysconf("SC_PAGE_SIZE") if name.endswith("bytes") else 0):
            yield Difference("lost", f"limit {name} of the job", f"it was to be {wanted}, and is {'unlimited' if there is None else there}")
    for process in processes:
        inside = process.cgroup == job.path or process.cgroup.startswith(job.path.rstrip("/") + "/")
        if job.path and process.cgroup and not inside:
            yield Difference("lost", f"job of {process.pid}", f"it is in cgroup {process.cgroup}, outside of the job's", process.pid)
