"""Unkilled: what was killed and has not ended, because it sleeps in the kernel where no signal reaches (state D).

A request to a file server that does not answer is the usual reason; the process ends as soon as that gives up. Nobody can wait for
that: the run is over without it, the reaper takes care of what is left, and the result says so.

Looked for only after a kill that was in vain. Source: proc_pid_stat(5), proc_pid_wchan(5), proc_pid_task(5).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

from shoal.handles.children import children
from shoal.handles.process import Process, Usage
from shoal.launcher import END_S

_UNINTERRUPTIBLE = "D"
_OVER = ("Z", "X", "")


class Unkilled(NamedTuple):
    """One process that has not ended. `where` is the kernel's function that it sleeps in, "" where that is not told."""

    pid: int
    name: str
    state: str
    where: str

    def __str__(self) -> str:
        how = "sleeps uninterruptibly in the kernel" if self.state == _UNINTERRUPTIBLE else f"has not ended yet (state {self.state})"
        return f"process {self.pid} ({self.name}) {how}{f' ({self.where})' if self.where else ''}"


def unkilled(process: Process) -> tuple[Unkilled, ...]:
    """What of a killed cell is still there, its first process aside: that one can only end last."""
    keeper = process._keeper
    pids = dict.fromkeys((process.pid, *_below(process.pid), *(() if keeper is None else _below(keeper.pid))))
    return tuple(each for pid in pids if (each := _look(pid)) is not None)


def ending_of(process: Process) -> tuple[int, Usage]:
    """The return code and what was used, of a program that has ended or will as soon as it can: SIGKILL has been sent."""
    returncode = process.poll()
    usage = process.usage or process.info().usage or Usage(0.0, 0.0, 0)
    return -signal.SIGKILL if returncode is None else returncode, usage


def in_words(found: tuple[Unkilled, ...]) -> str:
    """What is to be said of it."""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"killed {END_S:g} s ago, {found[0]}{more}; it ends when the kernel lets go of it"


def _below(pid: int) -> Iterator[int]:
    """The descendants of a process."""
    for child in sorted(children(pid)):
        yield child
        yield from _below(child)


def _look(pid: int) -> Unkilled | None:
    """What a process does that has not ended: where it sleeps, if one of its threads does; the first of them may have ended before."""
    found = None
    for thread in _listed(f"/proc/{pid}/task"):
        stat = _read(f"/proc/{pid}/task/{thread}/stat")
        state = stat.rpartition(")")[2].split()[0] if stat else ""
        if state not in _OVER and (found is None or state == _UNINTERRUPTIBLE):
            where = _read(f"/proc/{pid}/task/{thread}/wchan").strip("0\n")
            found = Unkilled(pid, _read(f"/proc/{pid}/comm").rstrip("\n"), state, where)
    return found


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
