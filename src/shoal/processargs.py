"""What a child is told about the handles it starts with: their numbers, the startup table, and the variables of socket activation.

Source: processargs and startup handles in spec sections 4 and 7; sd_listen_fds(3) for LISTEN_FDS.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.entries import NETWORK_PREFIX
from shoal.handles.base import PA_HND_TYPE, HandleType
from shoal.handles.mount import Bind
from shoal.handles.netns import NetNs
from shoal.plan import Descriptor, Mount
from shoal.startup_table import StartupEntry, StartupHandle

_LISTED = re.compile(r"[\x21-\x39\x3b-\x7e]{1,255}")
"""What sd_listen_fds_with_names(3) takes for a name."""
_NOT_LISTENED_TO = frozenset((HandleType.JOB_DEFAULT, HandleType.CLOCK_UTC, HandleType.LDSVC_LOADER))


@dataclass(frozen=True, slots=True)
class Startup:
    """A startup handle on its way to the child.

    Attributes:
        id: the startup handle id.
        source: the caller's descriptor, or what will be mounted for it.
        given: an action gave it; the others come with a flag.
        kept: the caller's library keeps the descriptor between launches.
        name: what the two programs call it, or "".
    """

    id: int
    kind: str
    rights: int
    source: int | Bind
    given: bool
    kept: bool = False
    name: str = ""

    def described(self, fd: int) -> StartupHandle:
        """Its line in the table."""
        if isinstance(self.source, Bind):
            return StartupHandle(self.id, fd, self.kind, self.rights, self.source.dev, self.source.ino, self.name)
        status = os.fstat(self.source)
        return StartupHandle(self.id, fd, self.kind, self.rights, status.st_dev, status.st_ino, self.name)

    def placed(self, fd: int) -> Descriptor:
        """Its place among the child's descriptors."""
        return Descriptor(fd, self.source, f"{self.kind} handle {self.id:#x}", self.kept)


def numbering_order(handles: Sequence[Startup]) -> list[int]:
    """The positions in the order in which they get numbers: those of actions first, so that they can begin at 3."""
    return sorted(range(len(handles)), key=lambda position: not handles[position].given)


def listed_entries(mounts: Sequence[Mount], *, network: bool) -> tuple[StartupEntry, ...]:
    """The entries of the namespace, as the child is told of them."""
    entries = [StartupEntry(mount.where, mount.kind, mount.source.writable) for mount in mounts if mount.is_entry]
    if network:
        entries.append(StartupEntry(NETWORK_PREFIX, NetNs.kind, False))
    return tuple(entries)


def listen_variables(handles: Sequence[Startup], numbers: Sequence[int]) -> list[bytes]:
    """What programs made for socket activation look at, where the handles given begin at 3 without a gap; else nothing.

    The last one is LISTEN_PID, with room for the digits that only the child knows.
    """
    pairs = zip(numbers, handles, strict=True)
    given = sorted(
        (fd, item.name if _LISTED.fullmatch(item.name) else item.kind)
        for fd, item in pairs
        if item.given and PA_HND_TYPE(item.id) not in _NOT_LISTENED_TO
    )
    if not given or [fd for fd, _ in given] != list(range(3, 3 + len(given))):
        return []
    names = ":".join(kind for _, kind in given)
    return [b"LISTEN_FDS=%d" % len(given), b"LISTEN_FDNAMES=" + names.encode(), b"LISTEN_PID=" + b"0" * 10]
