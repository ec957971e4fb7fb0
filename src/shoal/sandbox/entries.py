"""Entries: grants become entries of a child's namespace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from shoal.actions import AddNsEntry
from shoal.handles.base import Handle
from shoal.handles.directory import DEVICES, Directory
from shoal.sandbox.errors import RequestError
from shoal.sandbox.grants import Grant, Kind, View


def make_entries(
    grants: Sequence[Grant], view: View, stack: ExitStack, devices: Sequence[str] = (*DEVICES, "pts"), *, own_user: bool = False
) -> list[AddNsEntry]:
    """One entry for each grant. What they hold is closed by `stack`, unless a spawn has consumed it by then.

    Args:
        devices: what Kind.DEVICES stands for.
        own_user: it runs as a user that nobody else has, and whom nothing belongs to yet.
    Raises:
        SpawnError: something cannot be opened.
    """
    entries: list[AddNsEntry] = []
    for grant in grants:
        if grant.kind is Kind.DEVICES and view.host_path(os.path.dirname(grant.dest)) is not None:
            # Device nodes are placed one by one: not in the host's own /dev, which a grant of / has brought along.
            entries.append(AddNsEntry(grant.dest, stack.enter_context(Directory.scratch("64K")), nested=True))
        entries.append(AddNsEntry(grant.dest, stack.enter_context(_handle(grant, devices, own_user)), nested=True))
    return entries


def _handle(grant: Grant, devices: Sequence[str], own_user: bool) -> Handle:
    if grant.kind is Kind.TMPFS:
        return Directory.scratch(grant.size, mode=0o1777 if own_user or grant.dest == "/tmp" else 0o755)
    if grant.kind is Kind.PROC:
        return Directory.proc()
    if grant.kind is Kind.DEVICES:
        return Directory.devices(devices)
    handle = (
        Directory.open(grant.source, writable=grant.writable)
        if os.path.isdir(grant.source)
        else Directory.file(grant.source, writable=grant.writable)
    )
    _check_way(grant, handle)
    return handle


def _check_way(grant: Grant, handle: Handle) -> None:
    """What was opened is what the way was worked out to: no link was put into it meanwhile.

    Raises:
        RequestError: it is something else.
    """
    try:
        found = os.readlink(f"/proc/self/fd/{handle.fileno()}")
    except OSError:
        return  # no /proc to tell
    if found != grant.source:
        handle.close()
        raise RequestError(f"{grant.source}: it was exchanged for something else while it was looked at")
