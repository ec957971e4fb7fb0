"""Observed: what a domain can touch at this moment, read from the kernel, process by process.

A process that ends while it is looked at is left out. What may not be looked at is named, never guessed. Landlock's rules and session
keyrings are the two things that the kernel shows to nobody.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from shoal.manager.capabilities.kinds import access_of, kind_of
from shoal.manager.capabilities.mounts import MountPoint
from shoal.manager.capabilities.procfs import ProcessDirectory
from shoal.manager.capabilities.sockets import sockets_of

OF_OUR_NETWORK: Final = "of our network"
"""How the words for a socket begin that belongs to the network of whoever looked, and not to its process's."""
MOST_PROCESSES: Final = 4096
"""So many are looked at; a millisecond each."""
MOST_DESCRIPTORS: Final = 20_000
"""So many are looked at in all; 20 microseconds each."""
MOST_THREADS: Final = 64
"""Of so many threads of a process the descriptors are looked at: all but the oddest programs have one table for all."""
_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@dataclass(frozen=True, slots=True)
class OpenDescriptor:
    """One open descriptor of a process.

    Attributes:
        fd: its number. kind, inode, access: as in `GrantedDescriptor`; a "file" may be a directory or a device.
        link: where the kernel says it leads, by the names in the world it belongs to.
        mount: the id of the mount it was opened by.
        what: more of it, such as a socket's addresses; or "".
        inherited: it would be there after an exec.
    """

    fd: int
    kind: str
    link: str
    inode: int
    access: str
    mount: int
    what: str = ""
    inherited: bool = False


@dataclass(frozen=True, slots=True)
class ObservedProcess:
    """One process.

    Attributes:
        pid: as we see it; inner_pid: as it does itself. parent: as we see it; 0: from outside.
        state: a letter, as in proc_pid_stat(5). name: as the kernel shows it.
        exe, cwd, root: where these lead, by the names in its own world; empty: not to be seen.
        users, groups: real, effective, saved, of file accesses. more_groups: supplementary.
        capabilities: the sets by their names in `status`, as bits.
        seccomp: 0 none, 1 strict, 2 filters; filters: how many, None: this kernel does not tell.
        tracer: who traces it, or 0.
        namespaces: their inodes, by name, as far as they may be seen.
        limits: soft and hard, by the number of setrlimit(2) as text; None: unlimited.
        cgroup: in the v2 tree; label: of a security module; user_map: of its user namespace.
        descriptors: all that are open; None: they may not be seen.
        hidden: what we may not look at.
        keeper: it is shoal's own, and holds the rest.
    """

    pid: int
    inner_pid: int
    parent: int
    name: str
    state: str
    exe: str
    cwd: str
    root: str
    users: tuple[int, ...]
    groups: tuple[int, ...]
    more_groups: tuple[int, ...]
    capabilities: dict[str, int]
    no_new_privs: bool
    seccomp: int
    filters: int | None
    tracer: int
    threads: int
    processors: tuple[int, ...]
    nice: int
    namespaces: dict[str, int]
    limits: dict[str, tuple[int | None, int | None]]
    cgroup: str
    label: str
    user_map: str
    descriptors: tuple[OpenDescriptor, ...] | None
    hidden: tuple[str, ...] = ()
    keeper: bool = False


@dataclass(frozen=True, slots=True)
class ObservedWorld:
    """The files that the processes of one mount namespace see from one root directory."""

    namespace: int
    root: str
    mounts: tuple[MountPoint, ...]


@dataclass(frozen=True, slots=True)
class ObservedNetwork:
    """A network namespace."""

    namespace: int
    interfaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ObservedJob:
    """What the kernel enforces and counts for all together. None: no limit, or it is not counted.

    Attributes:
        memory_bytes, swap_bytes, pids, cpus: the lowest of the job's and of all above it. io: bytes per second by "major:minor".
        processors: those that it may run on.
        memory_used, pids_used: at this moment.
    """

    path: str
    memory_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    cpus: float | None = None
    io: dict[str, int] = field(default_factory=dict)
    processors: tuple[int, ...] = ()
    memory_used: int | None = None
    pids_used: int | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """A picture of all of a domain's processes.

    Attributes:
        at: when, in seconds since 1970.
        ours: the namespaces of whoever looked, by name; our_mounts: their mounts; our_user: who that is.
        our_descriptors: pipes and sockets that whoever looked has open, too.
        hidden: what could not be looked at at all.
    """

    at: float
    processes: tuple[ObservedProcess, ...]
    worlds: tuple[ObservedWorld, ...]
    networks: tuple[ObservedNetwork, ...]
    job: ObservedJob | None
    ours: dict[str, int]
    our_user: int
    our_mounts: tuple[MountPoint, ...]
    our_descriptors: tuple[tuple[str, int], ...]
    hidden: tuple[str, ...] = ()

    def for_others(self) -> Observed:
        """The same without what concerns whoever looked alone, and without shoal's own processes."""
        processes = tuple(process for process in self.processes if not process.keeper)
        return replace(self, processes=processes, our_mounts=(), our_descriptors=())


class Look:
    """A look at a domain, process by process; `finished()` is the picture.

    Args:
        processes, descriptors: the most of them that are looked at, in all; of what is left out the picture tells how much it was.
    """

    def __init__(self, processes: int = MOST_PROCESSES, descriptors: int = MOST_DESCRIPTORS) -> None:
        self._most_processes = processes
        self._left = descriptors
        self._processes: dict[int, ObservedProcess] = {}
        self._worlds: dict[tuple[int, str], ObservedWorld] = {}
        self._networks: dict[int, ObservedNetwork] = {}
        self._sockets: dict[int, str] = {}
        self._hidden: list[str] = []
        self._too_many: set[int] = set()
        self._job: ObservedJob | None = None
        self.cells: frozenset[int] = frozenset()
        """Pid namespaces whose first process is shoal's own."""

    def at(self, pid: int, belongs: Callable[[ProcessDirectory], bool], *, keeper: bool = False) -> None:
        """Look at the process that has this number now, if it lives and `belongs` says that it is one of those meant.

        Args:
            keeper: it is shoal's own.
        """
        if pid in self._processes:
            return
        if len(self._processes) >= self._most_processes:
            self._too_many.add(pid)
            return
        try:
            with ProcessDirectory(pid) as directory:
                if belongs(directory) and (seen := self._process(pid, directory, keeper=keeper)) is not None:
                    self._processes[pid] = seen
        except (FileNotFoundError, ProcessLookupError):
            pass
        except OSError as error:
            self._hidden.append(f"process {pid}: {error.strerror}")

    def pids(self) -> set[int]:
        """Those looked at so far."""
        return set(self._processes)

    def pid_namespaces(self) -> set[int]:
        """The pid namespaces that they live in, as far as these are shown."""
        return {process.namespaces["pid"] for process in self._processes.values() if "pid" in process.namespaces}

    def job(self, job: ObservedJob) -> None:
        """Take note of the job."""
        self._job = job

    def hide(self, what: str) -> None:
        """Take note of something that could not be looked at."""
        self._hidden.append(what)

    def finished(self) -> Observed:
        """The picture."""
        if self._too_many:
            self._hidden.append(f"{len(self._too_many)} more processes, beyond {self._most_processes}")
        with ProcessDirectory("self") as own:
            return Observed(
                time.time(),
                tuple(sorted(self._processes.values(), key=lambda process: process.pid)),
                tuple(self._worlds.values()),
                tuple(self._networks.values()),
                self._job,
                own.namespaces(),
                os.geteuid(),
                own.mounts(),
                _own_descriptors(own),
                tuple(self._hidden),
            )

    def _process(self, pid: int, directory: ProcessDirectory, *, keeper: bool) -> ObservedProcess | None:
        if not directory.lives():
            return None
        fields = directory.stat_fields()
        status = directory.status()
        inner = status.get("NSpid", "").split()
        hidden: list[str] = []
        namespaces = directory.namespaces()
        if len(namespaces) < 7:
            hidden.append("namespaces")
        root = _link(directory, "root", hidden)
        first = keeper or self._is_first_of_cell(namespaces, inner)
        if not first:
            self._look_around(directory, namespaces, root, hidden)
        filters = status.get("Seccomp_filters")
        seen = ObservedProcess(
            pid=pid,
            inner_pid=int(inner[-1]) if inner else pid,
            parent=int(fields[1]),
            name=status.get("Name", ""),
            state=fields[0],
            exe=_link(directory, "exe", hidden),
            cwd=_link(directory, "cwd", hidden),
            root=root,
            users=_numbers(status.get("Uid")),
            groups=_numbers(status.get("Gid")),
            more_groups=_numbers(status.get("Groups")),
            capabilities={name: int(status[name], 16) for name in _SETS if name in status},
            no_new_privs=status.get("NoNewPrivs") == "1",
            seccomp=int(status.get("Seccomp", "0")),
            filters=None if filters is None else int(filters),
            tracer=int(status.get("TracerPid", "0")),
            threads=int(status.get("Threads", "1")),
            processors=numbers_of(status.get("Cpus_allowed_list", "")),
            nice=int(fields[16]),
            namespaces=namespaces,
            limits={str(number): pair for number, pair in directory.limits().items()},
            cgroup=directory.cgroup(),
            label=_optional(directory, "attr/current"),
            user_map=" ".join(_optional(directory, "uid_map").split()),
            descriptors=() if first else self._descriptors(directory, namespaces.get("net"), hidden),
            hidden=tuple(dict.fromkeys(hidden)),
            keeper=first,
        )
        return seen if directory.lives() else None  # ended meanwhile: it was half of a picture

    def _is_first_of_cell(self, namespaces: Mapping[str, int], inner: Sequence[str]) -> bool:
        return inner[-1:] == ["1"] and namespaces.get("pid") in self.cells

    def _look_around(self, directory: ProcessDirectory, namespaces: Mapping[str, int], root: str, hidden: list[str]) -> None:
        """The world and the network of a process, where they are not known yet."""
        mnt, net = namespaces.get("mnt", 0), namespaces.get("net", 0)
        if (mnt, root) not in self._worlds:
            try:
                self._worlds[mnt, root] = ObservedWorld(mnt, root, directory.mounts())
            except PermissionError:
                hidden.append("mounts")
        if net and net not in self._networks:
            with suppress(PermissionError):
                self._networks[net] = ObservedNetwork(net, tuple(directory.interfaces()))

    def _descriptors(self, directory: ProcessDirectory, net: int | None, hidden: list[str]) -> tuple[OpenDescriptor, ...] | None:
        found: dict[tuple[int, str, int], OpenDescriptor] = {}
        try:
            threads = directory.threads()
            for tid in threads[:MOST_THREADS]:  # each of which may have a table of its own
                numbers = directory.descriptors(tid)
                for number in numbers[: self._left]:
                    with suppress(FileNotFoundError, ProcessLookupError):  # closed meanwhile
                        item = _descriptor(directory, tid, number)
                        found.setdefault((number, item.link, item.mount), item)
                if len(numbers) > self._left:
                    hidden.append(f"{len(numbers) - self._left} more descriptors")
                self._left = max(0, self._left - len(numbers))
            if len(threads) > MOST_THREADS:
                hidden.append(f"the descriptors of {len(threads) - MOST_THREADS} of its threads, where these have others")
        except PermissionError:
            hidden.append("descriptors")
            return None
        named = self._named(directory, net, found.values())
        return tuple(sorted(named, key=lambda item: item.fd))

    def _named(self, directory: ProcessDirectory, net: int | None, items: Collection[OpenDescriptor]) -> Iterator[OpenDescriptor]:
        """The same, with what is known of sockets."""
        inodes = {item.inode for item in items if item.kind == "socket"} - self._sockets.keys()
        if inodes and net is not None:
            listed = sockets_of(directory, inodes) or {}
            with ProcessDirectory("self") as own:
                if own.namespaces().get("net") != net and (rest := inodes - listed.keys()):
                    listed |= {inode: f"{OF_OUR_NETWORK}: {what}" for inode, what in (sockets_of(own, rest) or {}).items()}
            self._sockets |= listed
        yield from (replace(item, what=self._sockets.get(item.inode, "")) if item.kind == "socket" else item for item in items)


def _descriptor(directory: ProcessDirectory, tid: str, number: int) -> OpenDescriptor:
    link, info = directory.descriptor(tid, number)
    kind, inode = kind_of(link)
    flags = int(info.get("flags", "0"), 8)
    what = f"process {info.get('Pid', '-1')}" if kind == "pidfd" else ""
    inode = inode or int(info.get("ino", "0"))
    return OpenDescriptor(number, kind, link, inode, access_of(flags), int(info.get("mnt_id", "0")), what, not flags & os.O_CLOEXEC)


def numbers_of(text: str) -> tuple[int, ...]:
    """A list such as "0-3,8" as numbers: cpuset(7)."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.strip().isdecimal():
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(word) for word in (text or "").split())


def _link(directory: ProcessDirectory, name: str, hidden: list[str]) -> str:
    try:
        return directory.link(name)
    except PermissionError:
        hidden.append(name)
        return ""


def _optional(directory: ProcessDirectory, name: str) -> str:
    try:
        return directory.read(name).strip("\0\n ")
    except OSError:
        return ""


def _own_descriptors(own: ProcessDirectory) -> tuple[tuple[str, int], ...]:
    """What another process could only have from us."""
    found: set[tuple[str, int]] = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            kind, inode = kind_of(own.link(f"fd/{name}"))
            if kind in ("pipe", "socket"):
                found.add((kind, inode))
    return tuple(sorted(found))
