"""Mounts: what is mounted where, as the kernel tells it in mountinfo.

Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One mount.

    Attributes:
        id: unique in its mount namespace as long as it is mounted. parent: the one it is mounted in.
        device: "major:minor" of its file system. root: the directory of that file system that is mounted.
        where: where it is, in the world of whom the list was read from.
        options: of this mount; the file system's own are in `super_options`.
        propagation: "shared:1", "master:2"...: with whom mounts are exchanged. Empty: with nobody.
    """

    id: int
    parent: int
    device: str
    root: str
    where: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...] = ()

    @property
    def writable(self) -> bool:
        """Whether anything may be written by way of it."""
        return "ro" not in self.options

    @property
    def device_number(self) -> int:
        """As st_dev has it for most file systems; some (btrfs, overlayfs) give others to their files."""
        major, _, minor = self.device.partition(":")
        return os.makedev(int(major), int(minor))

    def shows(self, path: str) -> str | None:
        """The path below the file system's root of what is at `path` in this world; None: it is not in this mount."""
        if not is_below(path, self.where):
            return None
        return joined(self.root, path[len(self.where.rstrip("/")) :])


def parse_mountinfo(lines: str) -> tuple[MountPoint, ...]:
    """Every mount of a list, in its order."""
    return tuple(_parse(line) for line in lines.splitlines() if " - " in line)


def _parse(line: str) -> MountPoint:
    before, _, after = line.partition(" - ")
    mount_id, parent, device, root, where, options, *propagation = before.split(" ")
    fstype, source, super_options = (*after.split(" "), "", "")[:3]
    return MountPoint(
        int(mount_id),
        int(parent),
        device,
        _plain(root),
        _plain(where),
        tuple(options.split(",")),
        tuple(word for word in propagation if word),
        fstype,
        _plain(source),
        tuple(super_options.split(",")),
    )


def visible(mounts: Sequence[MountPoint]) -> tuple[MountPoint, ...]:
    """The mounts that paths lead to. The others have something mounted over them, or over a directory on the way to them.

    The root is the exception: a path begins at the very mount that is the process's root, whatever is mounted over that.
    """
    by_id = {mount.id: mount for mount in mounts}
    inside: dict[int, list[MountPoint]] = {}
    for mount in mounts:
        if mount.parent in by_id and mount.parent != mount.id:
            inside.setdefault(mount.parent, []).append(mount)

    def is_root(mount: MountPoint) -> bool:
        return mount.parent not in by_id or mount.parent == mount.id

    def is_hidden(mount: MountPoint) -> bool:
        if not is_root(mount) and any(other.where == mount.where for other in inside.get(mount.id, ())):
            return True
        while not is_root(mount):
            parent = by_id[mount.parent]
            over_root = parent.where if is_root(parent) else None
            if mount.where == over_root:
                return True
            if any(other is not mount and other.where != over_root and is_below(mount.where, other.where) for other in inside[parent.id]):
                return True
            mount = parent
        return False

    return tuple(mount for mount in mounts if not is_hidden(mount))


def is_below(path: str, above: str) -> bool:
    """Whether `path` is `above` or lies below it, by whole components."""
    return above in ("/", path) or path.startswith(above + "/")


def joined(above: str, rest: str) -> str:
    """`rest` below `above`."""
    return "/" + "/".join(part for part in f"{above}/{rest}".split("/") if part)


def holder(mounts: Sequence[MountPoint], path: str) -> MountPoint | None:
    """The mount that what is at `path` belongs to: of those given the one that comes nearest."""
    found: MountPoint | None = None
    for mount in mounts:
        if is_below(path, mount.where) and (found is None or len(mount.where) >= len(found.where)):
            found = mount
    return found


def _plain(word: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), word)
