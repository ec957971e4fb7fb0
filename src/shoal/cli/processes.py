"""Processes: what /proc shows of them at one moment, by their parents.

What is read is a snapshot put together of many: a process that ends meanwhile is missing, and one whose parent ends meanwhile hangs from
whoever has it then.
Source: proc_pid_stat(5).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from shoal.handles.threads import folder_of

DOMAIN_INIT = "shoal-domain"
"""The name of a domain's init, the parent of all that runs in it."""


class Process(NamedTuple):
    """One process.

    Attributes:
        name: what it is called, at most 15 bytes. state: one letter.
        ticks: processor time, in clock ticks. resident_pages: memory it holds.
    """

    pid: int
    parent: int
    name: str
    state: str
    ticks: int
    resident_pages: int


class Processes:
    """All of them."""

    def __init__(self, by_pid: Mapping[int, Process]) -> None:
        self._by_pid = by_pid
        self._below: dict[int, list[Process]] = {}
        for process in by_pid.values():
            self._below.setdefault(process.parent, []).append(process)

    @classmethod
    def now(cls) -> Self:
        """As they are."""
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                process = _read(int(name))
                if process is not None:
                    found[process.pid] = process
        return cls(found)

    def children_of(self, pid: int) -> list[Process]:
        """What it has started, by their numbers."""
        return sorted(self._below.get(pid, []))

    def of_domain(self, pids: Sequence[int]) -> list[Process]:
        """The uppermost processes of a domain whose dispatchers are `pids`: what its init has below itself.

        What the init needs to hold a cell is passed over, and what hangs from that is not. Empty where they cannot be seen.
        """
        init = self._init_above(pids[0]) if pids else None
        if init is None:
            return [self._by_pid[pid] for pid in pids if pid in self._by_pid]
        roots: list[Process] = []
        for process in self.children_of(init):
            roots += self.children_of(process.pid) if _is_same_program(process.pid, init) else [process]
        return sorted(roots)

    def all_below(self, roots: Sequence[Process]) -> list[Process]:
        """These and what they have started, each before its own children."""
        found, waiting = [], list(reversed(roots))
        while waiting:
            process = waiting.pop()
            found.append(process)
            waiting += reversed(self.children_of(process.pid))
        return found

    def arguments_of(self, process: Process) -> list[str]:
        """What it was started with, as far as that can be read; empty for one that has ended."""
        try:
            with open(f"{folder_of(process.pid)}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            return []
        return [os.fsdecode(word) for word in (words[:-1] if words[-1:] == [b""] else words)]

    def _init_above(self, pid: int) -> int | None:
        process = self._by_pid.get(pid)
        while process is not None:
            process = self._by_pid.get(process.parent)
            if process is not None and process.name == DOMAIN_INIT:
                return process.pid
        return None


def _is_same_program(pid: int, other: int) -> bool:
    """Whether both execute the same file. By the file, since a name is whatever a process says. False where that may not be looked at."""
    try:
        return os.path.samefile(f"/proc/{pid}/exe", f"/proc/{other}/exe")
    except OSError:
        return False


def _read(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, rest = file.read().rpartition(b")")
        fields = living = rest.split()
        if fields[0] == b"Z":  # or its first thread has ended, and others go on
            with open(f"{folder_of(pid)}/stat", "rb") as file:
                living = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    name = os.fsdecode(head.partition(b"(")[2])
    return Process(pid, int(fields[1]), name, living[0].decode(), int(fields[11]) + int(fields[12]), int(living[21]))


def own_core() -> int:
    """The processor that the calling thread runs on just now."""
    with open("/proc/thread-self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[36])
