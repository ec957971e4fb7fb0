"""Worlds: whether the mounts of a domain are those of its Plan.

Who mounts anything is outside: in a cell nobody has the privilege. So whatever is mounted besides is worth a look.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from shoal.manager.capabilities.difference import Difference
from shoal.manager.capabilities.granted import Granted, GrantedMount
from shoal.manager.capabilities.mounts import MountPoint, holder, is_below, joined, visible
from shoal.manager.capabilities.observed import Observed, ObservedWorld

_GONE = "//deleted"


def world_differences(granted: Granted, observed: Observed) -> Iterator[Difference]:
    """Of every world that processes of the domain see."""
    if "mnt" not in granted.namespaces:
        return  # it is ours
    for world in observed.worlds:
        if world.namespace == observed.ours.get("mnt"):
            continue  # which is told as a lost namespace
        if world.root not in ("", "/"):
            yield Difference("unseen", f"mounts below {world.root}", "some process has changed its root, and sees a part only")
            continue
        yield from _world(granted, observed, world)


def expected(granted: Granted) -> list[GrantedMount]:
    """Every mount that a world of its own is made of, one by one."""
    found: list[GrantedMount] = []
    if granted.world == "cell" and all(mount.where != "/" for mount in granted.mounts):
        found.append(GrantedMount("/", "tmpfs", "an empty directory", False, options=("nosuid", "nodev"), origin="every cell"))
    for mount in granted.mounts:
        if mount.kind == "devices":
            found += _devices(mount)
        elif mount.kind != "contents":  # which is copied into the root
            found.append(mount)
    return found


def _devices(mount: GrantedMount) -> Iterator[GrantedMount]:
    if mount.on_top:  # of the host's directory, in which no places can be made
        yield GrantedMount(mount.where, "tmpfs", "places for devices", True, options=("nosuid", "nodev"), origin=mount.origin)
    for name in mount.names:
        place = f"{mount.where}/{name}"
        if name == "pts":
            yield GrantedMount(place, "devpts", "terminals of its own", True, options=("nosuid", "noexec"), origin=mount.origin)
        else:
            path = os.path.realpath(f"/dev/{name}")
            yield GrantedMount(place, "device", f"device {path}", True, path, options=("nosuid", "noexec"), origin=mount.origin)
    yield GrantedMount(f"{mount.where}/shm", "tmpfs", "memory", True, options=("nosuid", "nodev"), origin=mount.origin)


def _world(granted: Granted, observed: Observed, world: ObservedWorld) -> Iterator[Difference]:
    wanted = {mount.where: mount for mount in expected(granted)}
    ours = visible(observed.our_mounts)
    seen: set[str] = set()
    for point in visible(world.mounts):
        mount = wanted.get(point.where)
        if mount is not None:
            seen.add(point.where)
            yield from _mount(mount, point, ours)
        elif granted.world == "caller" and _is_ours(point, observed.our_mounts):
            continue
        elif (above := _brings(wanted.values(), point, observed.our_mounts)) is not None:
            yield from _same_limits(above, point)
        else:
            how = "rw" if point.writable else "ro"
            what = f"{point.fstype} {point.source or point.device}, {how}, {point.root} of it; it was not in the plan"
            yield Difference("beyond", f"mount {point.where}", what)
    for where, mount in wanted.items():
        if where not in seen:
            yield Difference("missing", f"mount {where}", f"{mount.what} is not mounted there")


def _mount(mount: GrantedMount, point: MountPoint, ours: Sequence[MountPoint]) -> Iterator[Difference]:
    subject = f"mount {mount.where}"
    if mount.path and point.root.endswith(_GONE):
        yield Difference("missing", subject, "it was removed from the host; what is left of it is seen in there only")
    elif mount.path and not _is_same(mount, point, ours):
        yield Difference("beyond", subject, f"it is {point.root} of {point.source or point.fstype} instead of {mount.path}")
        return
    elif not mount.path and mount.kind not in ("tree", point.fstype):
        yield Difference("beyond", subject, f"it is a {point.fstype} instead of a {mount.kind}")
        return
    yield from _same_limits(mount, point)
    if mount.writable and not point.writable:
        yield Difference("missing", subject, "it was to be writable, and is read-only")


def _same_limits(mount: GrantedMount, point: MountPoint) -> Iterator[Difference]:
    subject = f"mount {point.where}"
    if point.writable and not mount.writable:
        yield Difference("lost", subject, "it was to be read-only, and is writable")
    for option in mount.options:
        if option not in point.options:
            yield Difference("lost", subject, f"it was to be {option}, and is not")
    if any(not word.startswith("unbindable") for word in point.propagation):
        yield Difference("lost", subject, f"what is mounted below it is exchanged with others ({' '.join(point.propagation)})")


def _is_same(mount: GrantedMount, point: MountPoint, ours: Sequence[MountPoint]) -> bool:
    """Whether a mount shows the file of the host that was granted, which may have been renamed meanwhile."""
    host = holder(ours, mount.path)
    if host is not None and host.device == point.device and point.root == host.shows(mount.path):
        return True
    for host in ours:
        if host.device == point.device and is_below(point.root, host.root):
            try:
                found = os.stat(joined(host.where, point.root[len(host.root.rstrip("/")) :]), follow_symlinks=False)
            except OSError:
                continue
            if (found.st_dev, found.st_ino) == (mount.dev, mount.ino):
                return True
    return False


def _brings(wanted: Iterable[GrantedMount], point: MountPoint, ours: Sequence[MountPoint]) -> GrantedMount | None:
    """The directory of the host that has brought this mount along, since on the host it is mounted in it."""
    for mount in sorted(wanted, key=lambda mount: -len(mount.where)):
        if mount.kind == "directory" and mount.path and is_below(point.where, mount.where):
            there = joined(mount.path, point.where[len(mount.where.rstrip("/")) :])
            if any(host.where == there and (host.device, host.root) == (point.device, point.root) for host in ours):
                return mount
    return None


def _is_ours(point: MountPoint, ours: Sequence[MountPoint]) -> bool:
    return any((host.where, host.device, host.root) == (point.where, point.device, point.root) for host in ours)
