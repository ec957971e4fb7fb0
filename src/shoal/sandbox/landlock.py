"""Landlock as a second wall: what the mounts of a cell allow, said once more to another part of the kernel.

A mistake in how a world was mounted, or a hole in the kernel's mounts, then opens nothing by itself. An access that the kernel does
not know yet is left out; what is known depends on its ABI.

Source: landlock(7); the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import functools

from shoal import _native
from shoal.handles.mount import Bind, Devices, NewMount
from shoal.plan import Landlock, Mount, Plan

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
_FILES = {1: 13, 2: 14, 3: 15, 5: 16}
"""From this ABI on so many kinds of access to files are known."""
_SCOPES = {6: 0b11}  # abstract unix sockets, signals

_READ = EXECUTE | READ_FILE | READ_DIR
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What can be allowed for something that is no directory."""


@functools.cache
def abi() -> int:
    """What this kernel offers; 0 is nothing."""
    return _native.landlock_abi()


def second_wall(plan: Plan) -> Landlock | None:
    """The rules that say again what the plan's mounts say; None where the kernel has no Landlock."""
    known = _latest(_FILES)
    if not known:
        return None
    handled = (1 << known) - 1
    allowed = {"/": _READ}
    for mount in plan.mounts:
        if mount.where != "/" or mount.source.writable:
            allowed |= _places(mount, handled)
    rules = tuple((place, what & handled) for place, what in allowed.items() if what & handled & ~(_READ & handled) or place == "/")
    return Landlock(handled, 0, _latest(_SCOPES), rules, _READ & handled, _OF_FILES & handled)


def _latest(table: dict[int, int]) -> int:
    return max((value for version, value in table.items() if version <= abi()), default=0)


def _places(mount: Mount, handled: int) -> dict[str, int]:
    """Where in the mount more is allowed than to read, and what."""
    source, where = mount.source, mount.where
    everything = handled & ~(MAKE_CHAR | MAKE_BLOCK)
    if isinstance(source, Devices):
        found = {f"{where}/{name}": WRITE_FILE | READ_FILE | IOCTL_DEV for name in source.names}
        return found | {f"{where}/shm": everything} | ({f"{where}/pts": everything} if "pts" in source.names else {})
    if isinstance(source, Bind) and not source.is_dir:
        return {where: _OF_FILES} if source.writable else {}
    if isinstance(source, NewMount) and source.fstype == "proc":
        return {where: everything} if source.writable else {}
    return {where: everything} if source.writable else {}
