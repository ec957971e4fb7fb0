"""Landlock: in a cell as a second wall, without one as the first.

The second wall says what the mounts of a cell allow once more to another part of the kernel: a mistake in how a world was mounted, or
a hole in the kernel's mounts, then opens nothing by itself. The first wall is all there is of the kind. An access that the kernel
does not know yet is left out; what is known depends on its ABI.

Source: landlock(7); the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from shoal import _native
from shoal.handles.mount import Bind, Devices, NewMount
from shoal.plan import FileRule, Landlock, Mount, Plan

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
_FILES = {1: 13, 2: 14, 3: 15, 5: 16}
"""From this ABI on so many kinds of access to files are known."""
_NETWORK = {4: 0b11}  # TCP: bind, connect
_SCOPES = {6: 0b11}  # abstract unix sockets, signals

_READ = EXECUTE | READ_FILE | READ_DIR
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What can be allowed for something that is no directory."""
OF_DIRECTORIES = ((1 << 16) - 1) & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)
"""What is allowed below a directory that is handed over to be written, where its mount does not say that it has no devices."""


@functools.cache
def abi() -> int:
    """What this kernel offers; 0 is nothing."""
    return _native.landlock_abi()


def second_wall(plan: Plan) -> Landlock | None:
    """The rules that say again what the plan's mounts say; None where the kernel has no Landlock."""
    known = _latest(_FILES, abi())
    if not known:
        return None
    handled = (1 << known) - 1
    allowed = {"/": _READ}
    for mount in plan.mounts:
        if mount.where != "/" or mount.source.writable:
            allowed |= _places(mount, handled)
    rules = tuple((place, what & handled) for place, what in allowed.items() if what & handled & ~(_READ & handled) or place == "/")
    return Landlock(handled, 0, _latest(_SCOPES, abi()), rules, _READ & handled, OF_FILES & handled)


def first_wall(only: Sequence[FileRule], known_abi: int, *, network: bool) -> Landlock:
    """The rules that are all there is.

    Args:
        only: what is allowed; the same file may come more than once.
        network: connections are made by whom the filter lets make sockets.
    """
    handled = (1 << _latest(_FILES, known_abi)) - 1
    once: dict[tuple[str, int], FileRule] = {}
    for rule in only:
        other = once.get((rule.path, rule.ino), rule)
        both = dataclasses.replace(other, allowed=other.allowed | rule.allowed, writable=other.writable or rule.writable)
        once[rule.path, rule.ino] = both
    rules = tuple(dataclasses.replace(rule, allowed=rule.allowed & handled) for rule in once.values() if rule.allowed & handled)
    closed = 0 if network else _latest(_NETWORK, known_abi)
    return Landlock(handled, closed, _latest(_SCOPES, known_abi), (), 0, OF_FILES & handled, rules)


def _latest(table: dict[int, int], known_abi: int) -> int:
    return max((value for version, value in table.items() if version <= known_abi), default=0)


def _places(mount: Mount, handled: int) -> dict[str, int]:
    """Where in the mount more is allowed than to read, and what."""
    source, where = mount.source, mount.where
    everything = handled & ~(MAKE_CHAR | MAKE_BLOCK)
    if isinstance(source, Devices):
        found = {f"{where}/{name}": WRITE_FILE | READ_FILE | IOCTL_DEV for name in source.names}
        return found | {f"{where}/shm": everything} | ({f"{where}/pts": everything} if "pts" in source.names else {})
    if isinstance(source, Bind) and not source.is_dir:
        return {where: OF_FILES} if source.writable else {}
    if isinstance(source, NewMount) and source.fstype == "proc":
        return {where: everything} if source.writable else {}
    return {where: everything} if source.writable else {}
