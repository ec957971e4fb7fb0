"""Tree: what a domain can touch, as lines for people. Every line that is about a difference begins with its mark.

What comes from a program, such as the name of a file, may hold anything; it is made printable, so that it cannot speak to the terminal.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shoal.manager.capabilities.difference import WORST_FIRST, Kind
from shoal.manager.capabilities.files import all_mounts, granted_as, is_within
from shoal.manager.capabilities.granted import HIDDEN, Granted, GrantedDescriptor, GrantedMount
from shoal.manager.capabilities.mounts import MountPoint, holder
from shoal.manager.capabilities.observed import Observed, ObservedJob, ObservedProcess, OpenDescriptor
from shoal.status import on_one_line

if TYPE_CHECKING:
    from shoal.manager.capabilities.view import Capabilities

MARKS: Final[Mapping[Kind, str]] = {"beyond": "!!", "lost": "!", "missing": "-", "unseen": "?"}
"""What stands before a line that is about a difference."""
WORLDS: Final = {
    "cell": "a cell: nothing of the host's but what is listed",
    "held": "the host's, in which Landlock lets it open nothing but what is listed",
    "caller": "that of whoever started it: it may open what its user may",
}
NETWORKS: Final = {
    "caller": "that of whoever started it",
    "host": "the host's",
    "loopback": "a loopback device of its own, nothing else",
    "handed over": "one that was handed over",
    "closed": "none: no socket can be made or connected",
}
_COLOURS: Final[Mapping[Kind, str]] = {"beyond": "1;31", "lost": "31", "missing": "33", "unseen": "33"}
_LINES: Final = ("├── ", "└── ", "│   ", "    ")
_ASCII: Final = ("|-- ", "`-- ", "|   ", "    ")
_LONGEST: Final = 160


@dataclass(slots=True)
class Node:
    """A line, and those below it."""

    text: str
    kind: Kind | None = None
    below: list[Node] = field(default_factory=list)


def tree(capabilities: Capabilities, *, colour: bool = False, ascii_only: bool = False) -> str:
    """The lines."""
    root = _root(capabilities)
    words = _LINES if not ascii_only else _ASCII
    return "\n".join([_line(root, colour=colour), *_drawn(root, "", words, colour=colour)])


def shown(value: str) -> str:
    """Text from elsewhere on one line, and not too long."""
    plain = on_one_line(value)
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 3] + "..."


def _drawn(node: Node, indent: str, words: tuple[str, str, str, str], *, colour: bool) -> Iterator[str]:
    for position, below in enumerate(node.below):
        is_last = position == len(node.below) - 1
        yield indent + words[is_last] + _line(below, colour=colour)
        yield from _drawn(below, indent + words[2 + is_last], words, colour=colour)


def _line(node: Node, *, colour: bool) -> str:
    if node.kind is None:
        return shown(node.text)
    line = f"{MARKS[node.kind]} {shown(node.text)}"
    return f"\x1b[{_COLOURS[node.kind]}m{line}\x1b[0m" if colour else line


class _Marks:
    """Which lines are about a difference."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._kinds: dict[str, Kind] = {}
        for item in capabilities.differences:  # worst first
            self._kinds.setdefault(item.subject, item.kind)

    def of(self, subject: str) -> Kind | None:
        """The worst that is said of a subject."""
        return self._kinds.get(subject)

    def of_any(self, subject: str) -> Kind | None:
        """The worst that is said of it for any process."""
        found = [kind for name, kind in self._kinds.items() if name == subject or name.startswith(f"{subject} of ")]
        return min(found, key=WORST_FIRST.index, default=None)


def _root(capabilities: Capabilities) -> Node:
    granted, observed, marks = capabilities.granted, capabilities.observed, _Marks(capabilities)
    number = "" if capabilities.domain_id is None else f"domain {capabilities.domain_id} "
    command = f": {shlex.join(granted.argv)}" if granted is not None else ""
    root = Node(f"{number}{capabilities.name or 'a domain without a name'}{command}")
    if granted is not None:
        script = f", for the script {granted.script}" if granted.script else ""
        root.below += [Node(f"program: {granted.program}{script}"), Node(f"directory: {granted.cwd}")]
    root.below += [_files(granted, observed, marks), _network(granted, observed, marks)]
    if granted is not None:
        root.below += [_descriptors(granted.descriptors), _environment(granted), _protections(granted, observed, marks)]
    root.below.append(_job(granted, observed, marks))
    if observed is None:
        root.below.append(Node("processes: none, it has ended"))
    else:
        processes = [process for process in observed.processes if not process.keeper]
        mounts = all_mounts(observed)
        below = [_process(process, granted, mounts, marks) for process in processes]
        root.below.append(Node(f"processes: {len(below)}" if below else "processes: none", below=below))
    root.below.append(_differences(capabilities))
    return root


def _differences(capabilities: Capabilities) -> Node:
    if capabilities.granted is None or capabilities.observed is None:
        return Node("differences: only one side is known, so that nothing can be compared")
    if not capabilities.differences:
        return Node("differences: none")
    below = [Node(f"{item.subject}: {item.what}", item.kind) for item in capabilities.differences]
    return Node(f"differences: {len(below)}  ({', '.join(f'{MARKS[kind]} {kind}' for kind in WORST_FIRST)})", below=below)


def _files(granted: Granted | None, observed: Observed | None, marks: _Marks) -> Node:
    below: list[Node] = []
    known: set[str] = set()
    if granted is not None:
        for mount in granted.mounts:
            below.append(Node(_mount(mount), marks.of(f"mount {mount.where}")))
            known |= {mount.where, *(f"{mount.where}/{name}" for name in (*mount.names, "shm"))}
        below += [Node(f"{rule.path}  {_how(rule.writable)}  ({rule.origin})") for rule in granted.files]
    for world in () if observed is None else observed.worlds:
        if world.namespace == (observed.ours.get("mnt") if observed else None):
            continue
        for point in world.mounts:
            kind = marks.of(f"mount {point.where}")
            if point.where not in known and (granted is None or kind is not None):
                known.add(point.where)
                below.append(Node(f"{point.where}  {_how(point.writable)}  {point.fstype} {_source(point)}", kind))
    if granted is not None:
        return Node(f"files: {WORLDS[granted.world]}", below=below)
    return Node(
        "files: those of a world of its own" if below else "files: those of our own world, as far as its user may open them", below=below
    )


def _mount(mount: GrantedMount) -> str:
    return f"{mount.where}  {_how(mount.writable)}  {mount.what}  ({mount.origin})"


def _source(point: MountPoint) -> str:
    return point.root if point.root != "/" else point.source


def _how(writable: bool) -> str:
    return "rw" if writable else "ro"


def _network(granted: Granted | None, observed: Observed | None, marks: _Marks) -> Node:
    line = f"network: {NETWORKS.get(granted.network, granted.network)}" if granted is not None else "network"
    below = []
    for network in () if observed is None else observed.networks:
        whose = "ours" if observed is not None and network.namespace == observed.ours.get("net") else "its own"
        below.append(Node(f"{whose}: {' '.join(network.interfaces) or 'no device'}"))
    return Node(line, marks.of("network") or marks.of_any("net namespace"), below)


def _descriptors(descriptors: Iterable[GrantedDescriptor]) -> Node:
    below = []
    for item in descriptors:
        handle = "" if item.handle is None else f"  = startup handle {item.handle:#x}, a {item.handle_kind}, rights {item.rights:#x}"
        below.append(Node(f"{item.fd:<3} {item.access:<4} {item.what}{handle}"))
    return Node("handed over" if below else "handed over: nothing, 0, 1 and 2 are /dev/null", below=below)


def _environment(granted: Granted) -> Node:
    below = [Node(f"{name}={HIDDEN if value is None else value}") for name, value in granted.environ.items()]
    return Node("environment" if below else "environment: empty", below=below)


def _protections(granted: Granted, observed: Observed | None, marks: _Marks) -> Node:
    below: list[Node] = []
    if granted.namespaces:
        kinds = [kind for name in granted.namespaces if (kind := marks.of_any(f"{name} namespace")) is not None]
        below.append(Node(f"namespaces of its own: {' '.join(granted.namespaces)}", min(kinds, key=WORST_FIRST.index, default=None)))
    if granted.no_new_privs:
        below.append(Node("no_new_privs", marks.of_any("no_new_privs")))
    if granted.no_capabilities:
        below.append(Node("no capabilities", marks.of_any("capabilities")))
    user = "a user of its own, in no group" if granted.own_user else f"user {granted.user}"
    below.append(Node(user, marks.of_any("user") or marks.of_any("groups")))
    if granted.filters:
        below.append(Node(f"seccomp: {', '.join(granted.filter_labels)}", marks.of_any("seccomp")))
    # These the kernel shows to nobody.
    unseen = " (not to be seen from outside)" if observed is not None else ""
    below += [Node(f"Landlock{unseen}")] if granted.landlock else []
    below += [Node(f"a session keyring of its own{unseen}")] if granted.own_keyring else []
    for limit in granted.rlimits:
        value = str(limit.soft) if limit.soft == limit.hard else f"{limit.soft} to {limit.hard}"
        below.append(Node(f"limit of each process: {limit.name} {value}", marks.of_any(f"limit {limit.name}")))
    if granted.processors:
        below.append(Node(f"processors {' '.join(map(str, granted.processors))}", marks.of_any("processors")))
    if granted.nice is not None:
        below.append(Node(f"nice {granted.nice}", marks.of_any("nice")))
    return Node("protections", below=below)


def _job(granted: Granted | None, observed: Observed | None, marks: _Marks) -> Node:
    job = None if observed is None else observed.job
    line = f"job: {granted.job}" if granted is not None else "job"
    if job is not None and job.path:
        line += f" (cgroup {job.path})"
    below = []
    if granted is not None:
        wanted = {name: getattr(granted.limits, name) for name in ("memory_bytes", "swap_bytes", "pids", "cpus")}
        below += [Node(f"{name} {value}", marks.of(f"limit {name} of the job")) for name, value in wanted.items() if value is not None]
        io = granted.limits.io or {}
        below += [Node(f"io of {device} {rate} bytes/s", marks.of(f"limit io of {device} of the job")) for device, rate in io.items()]
    if job is not None:
        below += [Node(line) for line in _enforced(job)]
    return Node(line, marks.of("limits of the job") or marks.of_any("job"), below)


def _enforced(job: ObservedJob) -> Iterator[str]:
    pairs = (("memory_bytes", job.memory_bytes), ("swap_bytes", job.swap_bytes), ("pids", job.pids), ("cpus", job.cpus))
    limits = [f"{name} {value}" for name, value in pairs if value is not None]
    limits += [f"io of {device} {rate}" for device, rate in job.io.items()]
    yield "in force: " + (", ".join(limits) if limits else "no limit")
    used = [
        f"{value} {name}" for name, value in (("bytes", job.memory_used), ("processes and threads", job.pids_used)) if value is not None
    ]
    if used:
        yield "in use: " + ", ".join(used)


def _process(process: ObservedProcess, granted: Granted | None, mounts: Mapping[int, MountPoint], marks: _Marks) -> Node:
    inside = f" ({process.inner_pid} inside)" if process.inner_pid != process.pid else ""
    users = " ".join(map(str, dict.fromkeys(process.users)))
    line = f"{process.pid}{inside} {process.name}: user {users}, {process.exe or 'its program is not to be seen'}"
    below = [Node(_open(item, granted, mounts), marks.of(f"descriptor {item.fd} of {process.pid}")) for item in process.descriptors or ()]
    below += [Node(f"{what} may not be looked at", "unseen") for what in process.hidden]
    if granted is None:
        held = " ".join(name for name, bits in process.capabilities.items() if bits and name != "CapBnd") or "none"
        filters = "none" if process.seccomp == 0 else f"{process.filters} filters" if process.filters else "in force"
        privileges = "no_new_privs" if process.no_new_privs else "may gain privileges"
        below.insert(0, Node(f"{privileges}; capabilities: {held}; seccomp: {filters}"))
    return Node(line, marks.of(f"tracer of {process.pid}"), below)


def _open(item: OpenDescriptor, granted: Granted | None, mounts: Mapping[int, MountPoint]) -> str:
    more = f"  {item.what}" if item.what else ""
    line = f"{item.fd:<3} {item.access:<4} {item.link}{more}"
    if granted is None:
        return line
    given = granted_as(granted, item, mounts)
    if given is not None and is_within(item, given):
        return f"{line}  (handed over as {given.fd})"
    place = holder([_point(mount) for mount in granted.mounts], item.link) if item.kind == "file" else None
    return f"{line}  (below {place.where})" if place is not None and place.where != "/" else line


def _point(mount: GrantedMount) -> MountPoint:
    return MountPoint(0, 0, "0:0", "/", mount.where, (), (), "", "")
