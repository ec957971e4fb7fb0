"""A snapshot of everything a spawn could leave behind in this process and on this machine, and the claim that it did not.

Called by: the `world` fixture and the stress test. Touches nothing: it reads /proc, the cgroup tree and the temporary folder.
What the kernel takes down by itself after a program has ended (the last processes of a cell, the namespaces they held) may
still be going when a test is done, so `assert_unchanged()` waits for the processes it finds too many, through pidfds.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rig.features import unified_cgroup
from shoal import cells
from shoal.handles import reaper

SETTLE_S = 20.0
"""How long asynchronous teardown may take. Only a leak ever waits this long."""

_TRAITS = (
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "NoNewPrivs",
    "Seccomp",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
)


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            st = os.fstat(int(name))
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor that read the folder
            continue
        found[int(name)] = f"{target} (dev {st.st_dev}, inode {st.st_ino})"
    return found


def parents() -> dict[int, int]:
    """The parent of every process, zombies included."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                found[int(name)] = int(Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return found


def descendants(root: int | None = None) -> set[int]:
    """The processes below `root` (this one), zombies included, those of cells included."""
    by_parent: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        by_parent.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [os.getpid() if root is None else root]
    while todo:
        for pid in by_parent.get(todo.pop(), ()):
            found.add(pid)
            todo.append(pid)
    return found


def _processes() -> dict[int, str]:
    found = {}
    for pid in descendants():
        with contextlib.suppress(OSError):
            head, _, tail = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
            found[pid] = f"{head.partition('(')[2]!r} in state {tail.split()[0]}, started at {tail.split()[19]}"
    return found


def _namespaces() -> frozenset[str]:
    found = set()
    threads = [f"/proc/self/task/{task}/ns" for task in os.listdir("/proc/self/task")]
    for folder in [*threads, *(f"/proc/{pid}/ns" for pid in descendants())]:
        with contextlib.suppress(OSError):
            found |= {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    return frozenset(found)


def _cgroups() -> frozenset[str]:
    """The groups this process has made: a group carries the pid of its maker, and other sessions may be at work here."""
    own = unified_cgroup()
    if own is None:
        return frozenset()
    return frozenset(folder for folder, _, _ in os.walk(own) if f"/shoal-{os.getpid()}-" in folder)


def _files() -> frozenset[str]:
    found = set()
    for folder in {os.environ.get("TMPDIR", "/tmp"), "/dev/shm", "/run"}:
        with contextlib.suppress(OSError):
            found |= {f"{folder}/{name}" for name in os.listdir(folder) if name.startswith(("shoal", ".shoal"))}
    return frozenset(found)


def _traits() -> dict[str, str]:
    status = Path(f"/proc/self/task/{os.getpid()}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    traits = {name: lines[name].strip() for name in _TRAITS if name in lines} | {"cwd": os.getcwd(), "root": os.readlink("/proc/self/root")}
    own = 3 << 31  # 32 and 33 are the C library's, set up with its first thread
    return traits | {name: f"{int(traits[name], 16) & ~own:016x}" for name in ("SigCgt", "SigIgn") if name in traits}


@dataclass(frozen=True)
class Snapshot:
    descriptors: dict[int, str]
    processes: dict[int, str]
    mounts: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]
    traits: dict[str, str]

    @classmethod
    def take(cls) -> Snapshot:
        mounts = frozenset(Path("/proc/self/mountinfo").read_text().splitlines())
        return cls(_descriptors(), _processes(), mounts, _namespaces(), _cgroups(), _files(), _traits())

    def differences(self, now: Snapshot, besides: Collection[int]) -> list[str]:
        """What is different now, one sentence each."""
        found = []
        for what, then_map, now_map in (("descriptor", self.descriptors, now.descriptors), ("trait", self.traits, now.traits)):
            for key in sorted({*then_map, *now_map}, key=str):
                if key not in besides and then_map.get(key) != now_map.get(key):
                    found.append(f"{what} {key}: was {then_map.get(key, 'not there')}, is {now_map.get(key, 'not there')}")
        found += [f"process {pid} is left over: {now.processes[pid]}" for pid in sorted(now.processes.keys() - self.processes.keys())]
        for what, then_set, now_set in (
            ("mount", self.mounts, now.mounts),
            ("namespace", self.namespaces, now.namespaces),
            ("cgroup", self.cgroups, now.cgroups),
            ("temporary file", self.files, now.files),
        ):
            found += [f"{what} appeared: {item}" for item in sorted(now_set - then_set)]
            if what != "namespace":
                found += [f"{what} is gone: {item}" for item in sorted(then_set - now_set)]
        return found


class World:
    """What there was when the test began."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Take what there is now as what there should be."""
        deadline = time.monotonic() + SETTLE_S
        gc.collect()
        cells.drain()
        reaper.sweep()
        while reaper.pending() and time.monotonic() < deadline:  # what an earlier test let go is not for this one to watch
            self._await_ending(descendants())
            reaper.sweep()
        self._before = Snapshot.take()

    def new_processes(self) -> set[int]:
        """Descendants that were not there when the test began."""
        return descendants() - self._before.processes.keys()

    def assert_unchanged(self, besides: Collection[int] = ()) -> None:
        """Descriptors, children, mounts, namespaces, cgroups, temporary files and credentials are what they were.

        Args:
            besides: descriptor numbers that are meant to have changed.
        """
        deadline = time.monotonic() + SETTLE_S
        while True:
            gc.collect()  # a handle nobody refers to is closed by its collection
            cells.drain()
            reaper.sweep()
            now = Snapshot.take()
            differences = self._before.differences(now, besides)
            if not differences:
                return
            if time.monotonic() > deadline:
                raise AssertionError("the world has changed:\n  " + "\n  ".join(differences))
            self._await_ending(now.processes.keys() - self._before.processes.keys())

    @staticmethod
    def _await_ending(pids: Collection[int]) -> None:
        """Return when one of `pids` has ended, or after a short while: the end of a cgroup or a mount has no event."""
        watched = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                watched.append(os.pidfd_open(pid))
        try:
            select.select(watched, [], [], 0.02)
        finally:
            for pidfd in watched:
                os.close(pidfd)
