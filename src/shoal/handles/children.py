"""Children: whose parent a process is. Source: proc_pid_task(5) (`children`)."""

from __future__ import annotations

import os
from contextlib import suppress

LOOKS = 20
"""So often a process is looked at whose threads keep ending."""


def children(pid: int | None = None) -> set[int]:
    """The children of a process, whichever of its threads made them, those that have ended and were not reaped among them.

    The kernel tells them by thread, and those of a thread that ends become another's, which may have been looked at before: so it is
    looked again until no thread has ended meanwhile.

    Args:
        pid: the process; None: this one. One that is not there has none.
    """
    folder = f"/proc/{'self' if pid is None else pid}/task"
    found: set[int] = set()
    with suppress(OSError):
        threads = set(os.listdir(folder))
        for _ in range(LOOKS):
            for thread in threads:
                with suppress(OSError), open(f"{folder}/{thread}/children", "rb", buffering=0) as file:
                    found.update(map(int, file.read().split()))
            before, threads = threads, set(os.listdir(folder))
            if before <= threads:
                break
    return found
