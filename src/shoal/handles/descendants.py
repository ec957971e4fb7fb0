"""Descendants: what a process has started, and what those have, as far as parents lead to it.

For programs that live in no cell and no job, where nothing but the parent tells what belongs together. What has lost its parent on
the way has become somebody else's child and is not found: whoever wants that to be impossible uses a sandbox or a job.

They are stopped before any is killed: what is stopped cannot start another one meanwhile, and its children stay its own. Looking goes
on until it finds nothing new. A pid is believed only after its pidfd is open: by then it cannot have become another's.

Touches: /proc, and signals. Source: proc_pid_task(5) (`children`), proc_pid_stat(5), pidfd_send_signal(2).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

from shoal.handles.reaper import OwnedFd

PASSES = 100
"""So often is looked, whatever a program does to be faster."""
QUIET_PASSES = 2
"""After so many that found nothing new there is nothing new: a fork that had begun when its process was told to stop is over by then."""


def kill_tree(pidfd: OwnedFd, pid: int) -> list[OwnedFd]:
    """Kill a child of this process and its descendants.

    Returns:
        The pidfds of the descendants, to wait for their end. They are nobody's business here: their parents or init reap them.
    Args:
        pid: of the child, which has not been reaped, so that the number is its own.
    """
    if not _send(pidfd, signal.SIGSTOP):
        return []
    members, quiet = {pid: pidfd}, 0
    for _ in range(PASSES):
        new = {child: found for parent in tuple(members) for child, found in _children(parent) if child not in members}
        for found in new.values():
            _send(found, signal.SIGSTOP)
        members |= new
        quiet = 0 if new else quiet + 1
        if quiet == QUIET_PASSES:
            break
    for member in members.values():
        _send(member, signal.SIGKILL)
    del members[pid]
    return list(members.values())


def _children(parent: int) -> Iterator[tuple[int, OwnedFd]]:
    """The children of a process, of all its threads."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{parent}/task"):
            with suppress(OSError), open(f"/proc/{parent}/task/{thread}/children", encoding="ascii") as file:
                for child in map(int, file.read().split()):
                    with suppress(OSError):
                        found = OwnedFd(os.pidfd_open(child))
                        if _parent_of(child) == parent and _send(found, 0):
                            yield child, found


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def _send(pidfd: OwnedFd, number: int) -> bool:
    """Whether it was there to get it. One of another user's, which may not be signalled, is as good as not there."""
    try:
        signal.pidfd_send_signal(pidfd.fd, number)
    except OSError:
        return False
    return True
