"""Threads: where /proc tells of a process whose first thread may have ended.

It has given up memory, descriptors and namespaces then, and shows as a zombie, while others go on with them: pthread_exit(3),
proc_pid_task(5).
"""

from __future__ import annotations

import os
from contextlib import suppress


def folder_of(pid: int) -> str:
    """The directory of /proc in which to look at a process: its own, or that of another of its threads where the first has ended."""
    with suppress(OSError):
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        if fields[0] == b"Z" and int(fields[17]) > 1:
            others = [name for name in os.listdir(f"/proc/{pid}/task") if name != str(pid)]
            return f"/proc/{pid}/task/{others[0]}" if others else f"/proc/{pid}"
    return f"/proc/{pid}"
