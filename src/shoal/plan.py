"""Plan: everything a child will be and be able to touch, as one immutable value.

A plan is what `shoal run --explain` prints and what the core executes; both start from the same value. It is data only:
making one is `draft`'s work, turning it into ops `lowering`'s, executing it `spawn`'s.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from shoal.handles.mount import Bind, Contents, MountSource
from shoal.startup_table import StartupHandle, StartupTable
from shoal.status import on_one_line


@dataclass(frozen=True, slots=True)
class Program:
    """The file that will be executed: after #! lines were followed.

    Attributes:
        path: its absolute path in the caller's world; None for a program in memory.
        fd: a descriptor of a program in memory, or None.
        dev, ino: which file it was when it was looked at.
        label: how to call it.
        interpreter_for: the script it runs, if it runs one.
        dynamic: whether it needs an ELF interpreter.
    """

    path: bytes | None
    fd: int | None
    dev: int
    ino: int
    label: str
    dynamic: bool
    interpreter_for: str | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """One thing at one place in the child's world of files. Mounts are made in order.

    Attributes:
        where: absolute path in the child.
        source: what is there.
        origin: who asked for it: an action with its index, a flag, the library closure.
        make_place: whether the place to mount on is made first. False inside the caller's own directories, where
            nothing is ever created.
        is_entry: an entry of the namespace, listed to the child; libraries are not.
    """

    where: str
    source: MountSource
    origin: str
    make_place: bool = True
    is_entry: bool = True

    @property
    def kind(self) -> str:
        """The word for it in the startup table."""
        return "file" if isinstance(self.source, Contents) or (isinstance(self.source, Bind) and not self.source.is_dir) else "directory"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor of the child.

    Attributes:
        target: its number in the child.
        source: the caller's descriptor, or for a directory handed to a cell what will be mounted, detached, for it.
        label: what it is and where it comes from.
        kept: the library's own, kept between launches; the child may open the same file anew instead of being handed it.
    """

    target: int
    source: int | Bind
    label: str
    kept: bool = False


@dataclass(frozen=True, slots=True)
class JobPlace:
    """Where in the tree of jobs the child begins.

    Attributes:
        label: the job's name.
        cgroup_fd: the job's cgroup, or None to stay in the caller's.
        init_pidfd: the first process of the job's pid namespace, or None.
        deny_new_process: nothing started there may make a process.
    """

    label: str
    cgroup_fd: int | None = None
    init_pidfd: int | None = None
    deny_new_process: bool = False


Network = Literal["caller", "loopback", "host", "handed over", "closed"]


@dataclass(frozen=True, slots=True)
class Rlimit:
    """One resource limit of a process: setrlimit(2). `name` is the word for it in messages."""

    name: str
    resource: int
    soft: int
    hard: int

    def __str__(self) -> str:
        return f"{self.name} {self.soft}" if self.soft == self.hard else f"{self.name} {self.soft} to {self.hard}"


@dataclass(frozen=True, slots=True)
class FileRule:
    """What is allowed with a file of the caller's world, or below a directory, where Landlock is what keeps a child from the rest.

    Attributes:
        path: without symbolic links; dev, ino: which file it was when it was looked at. 0: not looked at, it is the child's own.
        origin: who asked for it.
    """

    path: str
    allowed: int
    dev: int
    ino: int
    writable: bool
    origin: str

    def __str__(self) -> str:
        return f"{self.path}  {'rw' if self.writable else 'ro'}  ({self.origin})"


@dataclass(frozen=True, slots=True)
class Landlock:
    """What a child may do with files, whatever its mounts allow: landlock(7).

    Attributes:
        files: accesses that are denied where no rule allows them; network: the same; scopes: what of others it cannot reach.
        rules: paths in the child's world, and what is allowed there and below.
        program: what is allowed with the file that is executed; given: with files that are handed over as descriptors, when
            they are opened anew by their links in /proc.
        only: all that is allowed, in a world that is not the child's own; `rules` is empty then.
    """

    files: int
    network: int
    scopes: int
    rules: tuple[tuple[str, int], ...]
    program: int
    given: int
    only: tuple[FileRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is taken away from a child besides its world.

    Attributes:
        filter: a seccomp filter, as packed struct sock_filter; filter_label: what it is.
        early: the filter lets pass what a waiting process still has to do, so that it can be installed before.
        without_keys: the filter closes every call that uses keys.
        processors: the only ones it may run on; empty: any.
        own_user: it runs as an unprivileged user that nobody else has while its cell lives, without groups. What it writes to
            the caller's directories belongs to the caller there. Takes root.
        walls: a second filter, which closes what the namespaces would that it lives without; walls_label: what it is.
    """

    filter: bytes = b""
    filter_label: str = ""
    early: bool = False
    without_keys: bool = False
    rlimits: tuple[Rlimit, ...] = ()
    processors: tuple[int, ...] = ()
    nice: int | None = None
    own_user: bool = False
    landlock: Landlock | None = None
    walls: bytes = b""
    walls_label: str = ""

    def listed(self) -> list[str]:
        """In words, for a listing of the plan."""
        found = []
        if self.own_user:
            found.append("a user of its own")
        if self.filter:
            found.append(f"seccomp: {self.filter_label}")
        if self.walls:
            found.append(f"seccomp, besides: {self.walls_label}")
        if self.landlock is not None:
            found.append(f"landlock: {len(self.landlock.rules) + len(self.landlock.only)} rules")
        if self.rlimits:
            found.append("limits of each process: " + ", ".join(str(limit) for limit in self.rlimits))
        if self.processors:
            found.append("processors " + " ".join(str(number) for number in self.processors))
        if self.nice is not None:
            found.append(f"nice {self.nice}")
        return found


NOTHING_MORE = Confinement()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a child will be. `str(plan)` is a listing for people, `to_dict()` the same for programs.

    Attributes:
        program: what is executed.
        argv, environ: byte for byte what the program gets.
        name: the process name.
        world: "caller" (no new namespaces, except private mounts when entries are added) or "cell".
        mounts: all that is in the child's world of files, in a cell; in the caller's world: what is mounted on top of it.
        network: what network it has; netns_fd: the one handed over; userns_fd: the user namespace it belongs to, if not ours.
        descriptors: every open descriptor.
        table: what the child is told about its startup handles.
        cwd: the working directory, looked up in the child's world; the child has none that works when it is not there. Empty: the
            caller's.
        umask: the mask of file modes; None: the caller's.
        job: where it is accounted.
        privileged: made by root, so without a user namespace.
        session: starts a session of its own; terminal: descriptor of its controlling terminal, or None.
        listen_pid: index of the environment variable that gets the child's pid, or None.
        dies_with_caller: a cell that ends when the caller does.
        own_keyring: it gets a session keyring of its own, which is empty; else the caller's.
        confinement: what is taken away besides.
        held: it has no cell, but a holder: a process that is its parent and ends it with all that it has started.
    """

    program: Program
    argv: tuple[bytes, ...]
    environ: tuple[bytes, ...]
    name: str
    world: Literal["caller", "cell"]
    mounts: tuple[Mount, ...]
    network: Network
    netns_fd: int | None
    userns_fd: int | None
    descriptors: tuple[Descriptor, ...]
    table: StartupTable
    cwd: bytes
    job: JobPlace
    privileged: bool
    session: bool
    terminal: int | None
    listen_pid: int | None
    dies_with_caller: bool
    own_keyring: bool
    confinement: Confinement = NOTHING_MORE
    held: bool = False
    umask: int | None = 0o022

    @property
    def protections(self) -> tuple[str, ...]:
        """What confines the child, in the field's terms."""
        found: list[str] = []
        if self.world == "cell":
            namespaces = ["mount", "pid", "ipc", "uts", "cgroup"]
            if self.network != "host":
                namespaces.append("net")
            if not self.privileged:
                namespaces.append("user")
            found.append("namespaces: " + " ".join(namespaces))
            found += ["no_new_privs", "no capabilities", "a session of its own"]
            found += ["a session keyring of its own"] if self.own_keyring else []
        elif self.held:
            found += ["no namespaces: Landlock is all that keeps it from the caller's files"]
            found += ["no_new_privs", "no capabilities", "a session of its own", "a holder, which ends all that it starts"]
        elif self.mounts:
            found.append("namespaces: mount" + ("" if self.privileged else " user"))
        if self.job.deny_new_process:
            found.append("seccomp: no new process")
        return (*found, *self.confinement.listed())

    @property
    def _world(self) -> str:
        return _WORLDS["held" if self.held else self.world]

    @property
    def _rules(self) -> tuple[FileRule, ...]:
        landlock = self.confinement.landlock
        return () if landlock is None else landlock.only

    def to_dict(self) -> dict[str, Any]:
        """The plan in the types of JSON; bytes that are no UTF-8 are escaped as Python's surrogateescape does."""
        return {
            "program": {"path": self.program.label, "dynamic": self.program.dynamic, "script": self.program.interpreter_for},
            "argv": [_text(arg) for arg in self.argv],
            "environ": [_text(item) for item in self.environ],
            "name": self.name,
            "world": self.world,
            "mounts": [
                {"where": mount.where, "what": str(mount.source), "writable": mount.source.writable, "from": mount.origin}
                for mount in self.mounts
            ],
            "files": [{"path": rule.path, "writable": rule.writable, "from": rule.origin} for rule in self._rules],
            "network": self.network,
            "descriptors": [{"fd": item.target, "what": item.label} for item in self.descriptors],
            "handles": [
                {"id": handle.id, "fd": handle.fd, "kind": handle.kind, "rights": handle.rights, "name": handle.name}
                for handle in self.table.handles
            ],
            "cwd": _text(self.cwd) if self.cwd else None,
            "job": self.job.label,
            "protections": list(self.protections),
        }

    def __str__(self) -> str:
        import shlex  # only who prints a plan pays for it

        script = self.program.interpreter_for
        lines = [
            _line("program", self.program.label + (f", for the script {script}" if script else "")),
            _line("arguments", shlex.join(_text(arg) for arg in self.argv)),
            _line("name", self.name),
            _line("world", self._world),
        ]
        if self.held:
            lines += _listing("files", [str(rule) for rule in self._rules], "none can be opened")
        if self.world == "cell" or self.mounts:
            lines += _listing("files", [_mount_line(mount) for mount in self.mounts], "none: the root directory is empty")
        networks = {
            "caller": "the caller's",
            "host": "the caller's, handed over at /svc/net",
            "loopback": "a private loopback device, nothing else",
            "handed over": "the one handed over at /svc/net",
            "closed": "none: no socket can be made or connected",
        }
        lines.append(_line("network", networks[self.network]))
        given = {item.target: item.label for item in self.descriptors}
        shown = sorted((dict.fromkeys(range(3), "/dev/null") | given).items()) if given else []
        lines += _listing("descriptors", [f"{target:<4} {label}" for target, label in shown], "none: 0, 1 and 2 are /dev/null")
        lines += _listing(
            "handles",
            [_handle_line(handle) for handle in self.table.handles],
            "none",
        )
        lines += _listing("environment", [_text(item) for item in self.environ], "empty")
        lines.append(_line("directory", _text(self.cwd) if self.cwd else _CALLERS))
        lines.append(_line("job", self.job.label))
        lines += _listing("confinement", list(self.protections), "none: it may do what the caller may")
        return "\n".join(lines)


_CALLERS = "the caller's"
_WORLDS = {
    "cell": "a cell: nothing of the caller's but what is listed",
    "held": "the caller's, in which nothing can be opened but what is listed",
    "caller": _CALLERS,
}


def _text(data: bytes) -> str:
    return os.fsdecode(data)


def _handle_line(handle: StartupHandle) -> str:
    name = f" {handle.name!r}" if handle.name else ""
    return f"{handle.id:#010x} {handle.kind}{name} at descriptor {handle.fd}, rights {handle.rights:#x}"


def _mount_line(mount: Mount) -> str:
    return f"{mount.where}  {'rw' if mount.source.writable else 'ro'}  {mount.source}  ({mount.origin})"


def _line(title: str, item: str) -> str:
    return f"{title:<12} {on_one_line(item)}"  # what is in a path must not look like another line


def _listing(title: str, items: list[str], nothing: str) -> list[str]:
    first, *rest = items or [nothing]
    return [_line(title, first), *(_line("", item) for item in rest)]
