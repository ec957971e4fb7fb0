"""Received: a descriptor that came from another process becomes the handle it was there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from shoal.handles.base import Handle, Rights
from shoal.handles.clock import UtcClock
from shoal.handles.directory import Directory
from shoal.handles.job import Job
from shoal.handles.netns import NetNs
from shoal.handles.process import Process
from shoal.handles.socket import File, Socket
from shoal.handles.vmo import Vmo

# Those that can tell their own kind of descriptor look at it first.
_MAKERS: Final[Mapping[str, Callable[[int, Rights], Handle]]] = {
    Process.kind: Process._from_fd,
    Job.kind: Job._from_fd,
    Vmo.kind: Vmo._from_fd,
    UtcClock.kind: UtcClock._from_fd,
    Directory.kind: Directory._own,
    Socket.kind: Socket._own,
    File.kind: File._own,
    NetNs.kind: NetNs._own,
}


def received(kind: str, fd: int, rights: int) -> Handle:
    """The handle.

    Args:
        kind: `Handle.kind` of what it was. What a later version, or a wrong one, calls by a kind that does not fit here is still a
            descriptor that was handed over: a File.
        rights: the bits of `Rights`.
    Ownership: takes over `fd`.
    """
    allowed = Rights(rights) & ~Rights.SAME
    try:
        return _MAKERS.get(kind, File._own)(fd, allowed)
    except OSError:
        return File._own(fd, allowed)
