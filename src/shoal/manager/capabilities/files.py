"""Files: whether what the processes of a domain have open is what they were handed, or could open by themselves.

Which file a descriptor is of is told by its inode and by the mount it was opened by. In a cell that settles it: what was opened by a
mount of its own world was there to be opened; what was opened by any other has come from outside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from shoal.manager.capabilities.difference import Difference
from shoal.manager.capabilities.granted import Granted, GrantedDescriptor
from shoal.manager.capabilities.kinds import DELETED
from shoal.manager.capabilities.mounts import MountPoint, is_below
from shoal.manager.capabilities.observed import OF_OUR_NETWORK, Observed, ObservedProcess, OpenDescriptor

_ALLOWS = {"r": frozenset("r"), "w": frozenset("w"), "rw": frozenset("rw"), "path": frozenset()}
_FILES = ("file", "directory", "device")


def open_differences(granted: Granted, observed: Observed) -> Iterator[Difference]:
    """Of every process but shoal's own."""
    ours = {point.id: point for point in observed.our_mounts}
    known = all_mounts(observed)
    roots = _handed_directories(granted, observed, known)
    for process in observed.processes:
        if process.keeper or not process.descriptors:
            continue
        namespace = process.namespaces.get("mnt")
        mounts = {point.id for world in observed.worlds if world.namespace == namespace for point in world.mounts}
        for item in process.descriptors:
            what = _problem(granted, observed, process, item, mounts, ours, known, roots)
            if what:
                yield Difference("beyond", f"descriptor {item.fd} of {process.pid}", f"{described(item)}: {what}", process.pid)


def all_mounts(observed: Observed) -> dict[int, MountPoint]:
    """Every mount that is known of, by its number."""
    return {point.id: point for points in (observed.our_mounts, *(world.mounts for world in observed.worlds)) for point in points}


def described(item: OpenDescriptor) -> str:
    """An open descriptor in words."""
    more = f" ({item.what})" if item.what else ""
    return f"{item.link}{more}, {item.access}"


def granted_as(granted: Granted, item: OpenDescriptor, mounts: Mapping[int, MountPoint]) -> GrantedDescriptor | None:
    """What an open descriptor was handed over as, under whatever number it is open now."""
    same = [given for given in granted.descriptors if _is_same(given, item, mounts.get(item.mount))]
    return max(same, key=lambda given: (is_within(item, given), given.fd == item.fd), default=None)


def is_within(item: OpenDescriptor, given: GrantedDescriptor) -> bool:
    """Whether it allows no more than what was handed over did."""
    return _ALLOWS[item.access] <= _ALLOWS[given.access]


def _problem(
    granted: Granted,
    observed: Observed,
    process: ObservedProcess,
    item: OpenDescriptor,
    mounts: Collection[int],
    ours: Mapping[int, MountPoint],
    known: Mapping[int, MountPoint],
    roots: Sequence[tuple[int, str]],
) -> str:
    given = granted_as(granted, item, known)
    if given is not None and is_within(item, given):
        return ""
    if (item.kind, item.inode) in observed.our_descriptors and given is None:
        return "we have it open too, and did not hand it over"
    if item.kind == "socket":
        return "it was not handed over" if item.what.startswith(OF_OUR_NETWORK) and given is None else ""
    if item.kind == "pidfd" and granted.world != "caller":
        return "" if _is_inside(item, observed) else "it stands for a process outside of the domain, and was not handed over"
    if item.kind.endswith(" namespace"):
        return "" if item.inode in process.namespaces.values() else "it is none of its own namespaces, and was not handed over"
    more = "" if given is None else f"it was handed over as {given.access} only"
    if item.kind != "file":
        return more  # it can be made without anything
    if granted.world == "caller":
        return ""  # what its user may open
    if granted.world == "held":
        return more if given is not None else _outside_of_rules(granted, process, item)
    if item.mount in mounts:
        return "" if known[item.mount].writable or "w" not in _ALLOWS[item.access] else "it is writable, by a mount that is read-only"
    if item.link == "/dev/null" or any(mount == item.mount and is_below(item.link, path) for mount, path in roots):
        return ""
    if more:
        return more
    where = f", by the mount at {ours[item.mount].where} of ours" if item.mount in ours else ""
    return f"it was opened outside of its world{where}, and was not handed over"


def _is_same(given: GrantedDescriptor, item: OpenDescriptor, point: MountPoint | None) -> bool:
    if given.ino == 0:  # made after it was written down what it is
        return given.fd == item.fd and given.kind == item.kind
    if given.ino != item.inode or (given.kind in _FILES) != (item.kind == "file"):
        return False
    if item.kind != "file":
        return given.kind == item.kind
    # Some file systems number their files by other devices than mountinfo tells; then the name has to be the same.
    return point is None or point.device_number == given.dev or item.link.removesuffix(DELETED) == given.what.removesuffix(DELETED)


def _handed_directories(granted: Granted, observed: Observed, mounts: Mapping[int, MountPoint]) -> list[tuple[int, str]]:
    """Where directories that were handed over lead, as mount and path: what is below can be opened by them."""
    given = [item for item in granted.descriptors if item.kind == "directory"]
    if not given:
        return []
    found = []
    for process in observed.processes:
        for item in process.descriptors or ():
            if item.kind == "file" and any(_is_same(directory, item, mounts.get(item.mount)) for directory in given):
                found.append((item.mount, item.link))
    return found


def _is_inside(item: OpenDescriptor, observed: Observed) -> bool:
    number = item.what.removeprefix("process ")
    # -1: it has ended; 0: we cannot see it.
    return number in ("-1", "0") or any(number == str(process.pid) for process in observed.processes)


def _outside_of_rules(granted: Granted, process: ObservedProcess, item: OpenDescriptor) -> str:
    if item.access == "path":
        return ""  # which Landlock leaves alone, since nothing can be read by it
    link = item.link.removesuffix(DELETED)
    rules = [rule for rule in granted.files if is_below(link, rule.path.replace("/proc/self", f"/proc/{process.pid}"))]
    if not rules:
        return "no rule allows it, and it was not handed over"
    return "" if item.access == "r" or any(rule.writable for rule in rules) else "it is writable, and was to be read only"
