"""Granted: what a domain was given, as plain data made from its Plan when it is started.

A Plan speaks of descriptors of whoever made it; this speaks of what they were, so that it means the same in a database, in another
process and after a restart. `to_dict()` and `from_dict()` are its form in JSON.

What is secret is not in it: the values of variables that a Sandbox calls secrets are left out here already.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self

from shoal.handles.job_backend import Limits
from shoal.handles.mount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, Bind, Contents, Devices, MountSource, NewMount
from shoal.manager.capabilities.kinds import text, what_is_open
from shoal.plan import Descriptor, Mount, Plan

FORMAT: Final = 1
"""Counted up when the form changes; an older one is still read."""

HIDDEN: Final = "***"
"""What is shown in the place of a secret."""
SHORTEST_SECRET: Final = 4

World = Literal["cell", "held", "caller"]


@dataclass(frozen=True, slots=True)
class GrantedMount:
    """Something at a place of its world of files.

    Attributes:
        where: absolute path in its world.
        kind: "directory", "file", "devices", "contents", "tree", or the type of a new file system, such as "tmpfs".
        what: the same in words.
        path, dev, ino: of a directory or file of the host: where it was, and which.
        options: of the mount, such as "nodev", those that take something away.
        names: of devices. on_top: mounted over what was there, such as the devices of the host.
        origin: who asked for it.
    """

    where: str
    kind: str
    what: str
    writable: bool
    path: str = ""
    dev: int = 0
    ino: int = 0
    options: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    origin: str = ""
    on_top: bool = False


@dataclass(frozen=True, slots=True)
class GrantedFile:
    """A path that Landlock's rules allow, in a world that is not its own."""

    path: str
    writable: bool
    origin: str = ""


@dataclass(frozen=True, slots=True)
class GrantedDescriptor:
    """An open file, pipe, socket or anything else that was handed over.

    Attributes:
        fd: its number in the child.
        kind: "file", "directory", "pipe", "socket", "device", or what the kernel calls it.
        what: where it led.
        dev, ino: which; ino 0: not known when this was written, and only its number and kind are.
        access: "r", "w", "rw" or "path".
        handle: the startup handle id that it is known by, or None; rights: of that handle.
    """

    fd: int
    kind: str
    what: str
    dev: int
    ino: int
    access: str
    handle: int | None = None
    handle_kind: str = ""
    rights: int = 0


@dataclass(frozen=True, slots=True)
class GrantedRlimit:
    """A resource limit of each process; `number` is setrlimit(2)'s."""

    name: str
    number: int
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Limits of all that is in the job together; None: none was asked for. `io` is bytes per second by "major:minor"."""

    memory_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    cpus: float | None = None
    io: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """All that a domain was given, and all that was taken from it.

    Attributes:
        name, argv, cwd: as the program sees them. program: the file, script: what it runs, or "".
        world: "cell": one of its own; "held": the caller's, in which Landlock lets it open `files` only; "caller": the caller's.
        mounts: all of its world in a cell; in the caller's world what is mounted on top.
        network: which it has; network_ino: of the namespace handed over, or 0 where it is not known.
        descriptors: all that are open when it begins; 0, 1 and 2 are /dev/null where they are not here.
        environ: name to value; None where the value is secret.
        namespaces: those of its own.
        no_new_privs, no_capabilities, own_user, own_keyring: taken from it.
        user: who it runs as; None: a number of its own.
        filters: how many seccomp filters it got, and filter_labels: what they are.
        landlock: whether rules of Landlock hold; scoped: whether they keep its signals inside.
        processors: the only ones it may run on; empty: any. nice: the nice value, or None.
        job: where it is accounted. limits: of that.
    """

    name: str
    program: str
    script: str
    argv: tuple[str, ...]
    cwd: str
    world: World
    mounts: tuple[GrantedMount, ...]
    files: tuple[GrantedFile, ...]
    network: str
    network_ino: int
    descriptors: tuple[GrantedDescriptor, ...]
    environ: dict[str, str | None]
    namespaces: tuple[str, ...]
    no_new_privs: bool
    no_capabilities: bool
    own_user: bool
    own_keyring: bool
    user: int | None
    filters: int
    filter_labels: tuple[str, ...]
    landlock: bool
    rlimits: tuple[GrantedRlimit, ...]
    processors: tuple[int, ...]
    nice: int | None
    job: str
    limits: JobLimits
    format: int = FORMAT

    @classmethod
    def of_plan(cls, plan: Plan, *, secrets: Collection[str] = (), limits: Limits | None = None) -> Self:
        """What a plan gives.

        Args:
            plan: its descriptors are open.
            secrets: names of variables whose values are not to be kept, wherever else they appear, too: `Sandbox.secrets`.
            limits: what the job was told.
        """
        confinement, landlock = plan.confinement, plan.confinement.landlock
        confined = plan.world == "cell" or plan.held
        filters = ((confinement.filter_label, confinement.filter), (confinement.walls_label, confinement.walls))
        labels = [label for label, there in (*filters, ("no new process", plan.job.deny_new_process)) if there]
        environ, hide = _variables(plan.environ, secrets)
        return cls(
            name=hide(plan.name),
            program=text(plan.program.path) if plan.program.path else plan.program.label,
            script=plan.program.interpreter_for or "",
            argv=tuple(hide(text(word)) for word in plan.argv),
            cwd=text(plan.cwd),
            world="held" if plan.held else plan.world,
            mounts=tuple(map(_mount, plan.mounts)),
            files=tuple(GrantedFile(text(rule.path), rule.writable, rule.origin) for rule in landlock.only) if landlock else (),
            network=plan.network,
            network_ino=_network(plan),
            descriptors=_descriptors(plan),
            environ=environ,
            namespaces=_namespaces(plan),
            no_new_privs=confined or bool(labels) or landlock is not None,
            no_capabilities=confined,
            own_user=confinement.own_user,
            own_keyring=plan.own_keyring,
            user=None if confinement.own_user else os.geteuid(),
            filters=len(labels),
            filter_labels=tuple(labels),
            landlock=landlock is not None,
            rlimits=tuple(GrantedRlimit(item.name, item.resource, item.soft, item.hard) for item in confinement.rlimits),
            processors=confinement.processors,
            nice=confinement.nice,
            job=plan.job.label,
            limits=_limits(limits),
        )

    def with_descriptors(self, more: Collection[GrantedDescriptor]) -> Self:
        """The same and some descriptors, such as those of another dispatcher of the domain."""
        return replace(self, descriptors=(*self.descriptors, *more))

    def to_dict(self) -> dict[str, Any]:
        """In the types of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict()` gave, also by way of JSON.

        Raises:
            ValueError: not the form of one; says where.
            ImportError: without msgspec, which comes with the extra `manager`.
        """
        import msgspec

        try:
            found: Self = msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"this is no record of what a domain was granted: {error}") from error
        if found.format > FORMAT:
            raise ValueError(
                f"this record of what a domain was granted has form {found.format}, of a later version; this one reads {FORMAT}"
            )
        return found


def _mount(mount: Mount) -> GrantedMount:
    source = mount.source
    path, dev, ino = "", 0, 0
    names: tuple[str, ...] = ()
    if isinstance(source, Bind):
        path, dev, ino = text(source.path), source.dev, source.ino
    elif isinstance(source, Devices):
        names = tuple(map(text, source.names))
    return GrantedMount(
        text(mount.where),
        _kind(source),
        text(str(source)),
        source.writable,
        path,
        dev,
        ino,
        _options(source),
        names,
        mount.origin,
        on_top=not mount.make_place,
    )


def _kind(source: MountSource) -> str:
    if isinstance(source, Bind):
        return "directory" if source.is_dir else "file"
    if isinstance(source, NewMount):
        return source.fstype
    return "devices" if isinstance(source, Devices) else "contents" if isinstance(source, Contents) else "tree"


def _options(source: MountSource) -> tuple[str, ...]:
    """What the mount takes away, as mountinfo calls it."""
    if isinstance(source, Bind):
        attributes = MOUNT_ATTR_NOSUID | (0 if source.devices else MOUNT_ATTR_NODEV)
    elif isinstance(source, NewMount):
        attributes = source.attributes
    else:
        attributes = MOUNT_ATTR_NOSUID
    words = ((MOUNT_ATTR_NOSUID, "nosuid"), (MOUNT_ATTR_NODEV, "nodev"), (MOUNT_ATTR_NOEXEC, "noexec"))
    return tuple(word for bit, word in words if attributes & bit)


def _descriptors(plan: Plan) -> tuple[GrantedDescriptor, ...]:
    handles = {handle.fd: handle for handle in plan.table.handles}
    found = []
    for item in plan.descriptors:
        granted = _descriptor(item)
        if (handle := handles.get(item.target)) is not None:
            granted = replace(granted, handle=handle.id, handle_kind=handle.kind, rights=handle.rights)
        found.append(granted)
    return tuple(found)


def _descriptor(item: Descriptor) -> GrantedDescriptor:
    if isinstance(item.source, Bind):
        source = item.source
        kind = "directory" if source.is_dir else "file"
        return GrantedDescriptor(item.target, kind, text(source.path), source.dev, source.ino, "r")
    kind, what, dev, ino, access = what_is_open(item.source)
    return GrantedDescriptor(item.target, kind, what, dev, ino, access)


def _network(plan: Plan) -> int:
    if plan.netns_fd is None:
        return 0
    try:
        return os.fstat(plan.netns_fd).st_ino
    except OSError:
        return 0  # of a plan that was made to be looked at only


def _namespaces(plan: Plan) -> tuple[str, ...]:
    if plan.world == "cell":
        # A network that was handed over is none of the caller's either; "host" is.
        own = ["mnt", "pid", "ipc", "uts", "cgroup", *(() if plan.network == "host" else ("net",)), *(() if plan.privileged else ("user",))]
        return tuple(own)
    found = ["mnt", *(() if plan.privileged else ("user",))] if plan.mounts else []
    if plan.network == "handed over":
        found.append("net")
    if plan.job.init_pidfd is not None:
        found.append("pid")
    return tuple(found)


def _variables(environ: tuple[bytes, ...], secrets: Collection[str]) -> tuple[dict[str, str | None], Callable[[str], str]]:
    """The variables, and what takes the values of the secret ones out of other text."""
    pairs = [text(item).partition("=")[::2] for item in environ]
    # A short one would be found in the middle of anything.
    values = sorted({value for name, value in pairs if name in secrets and len(value) >= SHORTEST_SECRET}, key=len, reverse=True)

    def hide(shown: str) -> str:
        for value in values:
            shown = shown.replace(value, HIDDEN)
        return shown

    return {name: None if name in secrets else hide(value) for name, value in pairs}, hide


def _limits(limits: Limits | None) -> JobLimits:
    if limits is None:
        return JobLimits()
    return JobLimits(limits.memory_bytes, limits.swap_bytes, limits.pids, limits.cpus, dict(limits.io) or None)
