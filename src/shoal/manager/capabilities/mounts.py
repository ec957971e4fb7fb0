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


def is_below(path: str, above: str) -> bool:
    """Whether `path` is `above` or lies below it, by whole components."""
    return above in ("/", path) or path.startswith(above + "/")


def joined(above: str, rest: str) -> str:
    """`rest` below `above`."""
    return "/" + "/".join(part for part in f"{above}/{rest}".split("/") if part)


def holder(mounts: Sequence[MountPoint], path: str) -> MountPoint | None:
    """The mount that what is at `path` belongs to: the one that comes nearest, and of several at one place the last."""
    found: MountPoint | None = None
    for mount in mounts:
        if is_below(path, mount.where) and (found is None or len(mount.where) >= len(found.where)):
            found = mount
    return found


def _plain(word: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), word)
