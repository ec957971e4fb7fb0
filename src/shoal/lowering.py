"""Lowering: a Plan becomes the ops that the core runs. No decision is taken here that the Plan does not show.

A child in the caller's world is one launch. A cell is two: first its pid 1 in new namespaces, then the program, which enters
them, makes the cell's world of files there and is executed in it. They share the namespaces, so whatever the program's
launch mounts is the cell's.

The world of a cell is a tmpfs with two things in it: the program's file, mounted read-only, and a directory that becomes the
root. The root is mounted on top, so that no path leads to the rest; the program is executed from there. That gives the
process its name (the kernel takes the last component), and keeps /proc/self/exe on a read-only mount, so that not even a
root without capabilities can write to the host's file through it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from shoal.handles.directory import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from shoal.handles.keeper import MAKE_NETWORK, keeper_plan
from shoal.handles.kept import wants_reopening
from shoal.handles.made import map_ids
from shoal.handles.mount import Bind, Contents, Devices, NewMount, Tree
from shoal.packing import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    CWD_FD,
    NO_FD,
    TARGET_CLOEXEC,
    Packed,
    Packer,
)
from shoal.plan import Mount, Plan

AT_RECURSIVE = 0x8000
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
OPEN_TREE_CLONE = 1
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_NO_MAGICLINKS = 0x02
COMM_BYTES = 15
HOSTNAME = "shoal"
LINKS = "descriptors-of-this-process"  # longer than any name a program can have
ENTERING = "entering the working directory"

_DEVICE_LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"))

Trees = dict[int, int]
"""Mounts cloned ahead: from the descriptor that held them to the slot they are in."""

NameIt = Callable[[str, bytes], tuple[int, str | bytes]]
"""Given a wanted comm and a target path: a directory descriptor and a relative path whose last component is that name."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """What `launcher` runs: packed plans whose holes are for the descriptors of one launch.

    Attributes:
        keeper: of the cell's pid 1, or None in the caller's world; its holes are `keeper_plan`'s.
        tasks: what the keeper does first.
        program: holes for the keeper's pidfd and its socket (in a cell only), then one for each of `sources`.
        sources: the caller's descriptors that are handed over, in the order of the plan's descriptors.
    """

    keeper: Packed | None
    tasks: str
    program: Packed
    sources: tuple[int, ...]
    name: str
    label: str
    dies_with_caller: bool


def lower(plan: Plan, *, filter_program: bytes | None, name_it: NameIt, nowhere_fd: int = NO_FD) -> Lowered:
    """The whole of a plan.

    Args:
        filter_program: a seccomp filter that the plan's job asks for.
        nowhere_fd: an unusable directory to stand in when the wanted one cannot be entered, or NO_FD.
    """
    keeper, tasks = _lower_keeper(plan) if plan.world == "cell" else (None, "")
    program = _lower_program(plan, filter_program, name_it, nowhere_fd)
    sources = tuple(item.source for item in plan.descriptors if isinstance(item.source, int) and not item.reopened)
    return Lowered(keeper, tasks, program, sources, plan.name, plan.program.label, plan.dies_with_caller)


def _lower_keeper(plan: Plan) -> tuple[Packed, str]:
    """A cell's pid 1, and its tasks after exec."""
    packer = Packer()
    packer.unshare_fds()
    clone_flags, tasks = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS, ""
    where = _placement(plan)
    if plan.userns_fd is not None:
        # A network made without root belongs to a user namespace; only who lives there may enter it.
        where["enter_fd"], where["enter_flags"] = plan.userns_fd, CLONE_NEWUSER
    elif not plan.privileged:
        clone_flags |= CLONE_NEWUSER
        map_ids(packer)
    if plan.netns_fd is not None:
        packer.op("SETNS", "entering the network handed over", fd=plan.netns_fd, a=CLONE_NEWNET)
    elif plan.network == "loopback":
        # The slowest of the namespaces is made while the program's launch makes the world of files.
        tasks = MAKE_NETWORK
        if not plan.privileged:
            packer.op("KEEP_CAPS", "keeping what it takes to make a network", a=1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN)
    # Not with the clone: the root of the new cgroup namespace is the cgroup one is in, and the clone itself moves us there.
    packer.op("UNSHARE", "making a cgroup namespace", a=CLONE_NEWCGROUP)
    packer.op("HOSTNAME", "setting the host name", text=HOSTNAME)
    return keeper_plan(packer, clone_flags, **where), tasks


def _lower_program(plan: Plan, filter_program: bytes | None, name_it: NameIt, nowhere_fd: int) -> Packed:
    packer = Packer()
    packer.unshare_fds()
    in_cell = plan.world == "cell"
    keeper, control = (packer.hole(), packer.hole()) if in_cell else (NO_FD, NO_FD)
    holes = [packer.hole() if isinstance(item.source, int) and not item.reopened else NO_FD for item in plan.descriptors]
    clone_flags = 0
    where = _placement(plan)
    needs_null = {0, 1, 2} - {item.target for item in plan.descriptors}
    if in_cell:
        where = {
            "cgroup_fd": where.get("cgroup_fd", NO_FD),
            "enter_fd": keeper,
            "enter_flags": CLONE_NEWPID | (0 if plan.privileged else CLONE_NEWUSER),
        }
    elif plan.mounts and not plan.privileged:
        clone_flags = CLONE_NEWUSER | CLONE_NEWNS
        map_ids(packer)
    null = packer.made("OPEN", "opening /dev/null", fd=CWD_FD, text="/dev/null", a=os.O_RDWR) if needs_null else NO_FD
    for position, item in enumerate(plan.descriptors):
        if isinstance(item.source, int) and item.reopened:
            holes[position] = _reopened(packer, item.source, os.O_RDONLY)
    if not in_cell and plan.netns_fd is not None:
        packer.op("SETNS", "entering the network handed over", fd=plan.netns_fd, a=CLONE_NEWNET)
    # What is held by descriptor has to be cloned here: a mount can only be cloned by who lives in its mount namespace.
    trees = {
        source.fd: packer.made("OPEN_TREE", f"cloning {source}", fd=source.fd, text="", a=OPEN_TREE_CLONE | AT_RECURSIVE)
        for source in _held(plan)
    }
    if in_cell:
        packer.op("SETNS", "entering the cell", fd=keeper, a=CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    memory_fd = _memory_target(plan) if plan.program.fd is not None else None
    pairs = [
        (_detached(packer, item.source, trees) if isinstance(item.source, Bind) else hole, item.target)
        for hole, item in zip(holes, plan.descriptors, strict=True)
    ]
    exec_fd: int
    exec_path: str | bytes
    if in_cell:
        exec_fd, exec_path = _make_world(packer, plan, memory_fd, trees)
        packer.op("WAIT_READY", "waiting for the cell's network namespace", fd=control, fd2=keeper)
        if plan.network != "host":
            packer.op("SETNS", "entering the cell's network", fd=keeper, a=CLONE_NEWNET)
    else:
        if plan.mounts:
            _mount_on_top(packer, plan, clone_flags, trees)
        exec_fd, exec_path = _executable_in_callers_world(plan, memory_fd, name_it)
        if wants_reopening(exec_fd):
            exec_fd = _reopened(packer, exec_fd, os.O_PATH)
    packer.op("CHDIR", ENTERING, fd=nowhere_fd, text=plan.cwd)
    packer.op("NAME", "setting the name", text=comm(plan))
    packer.op("UMASK", "setting the file mode mask", a=0o022)
    if plan.session:
        packer.op("SETSID", "making a session")
    if plan.terminal is not None:
        packer.op("CONTROLLING_TTY", "taking the controlling terminal", fd=plan.terminal)
    if in_cell or filter_program is not None:
        packer.op("NO_NEW_PRIVS", "setting no_new_privs")
    if in_cell:
        packer.op("DROP_CAPS", "dropping capabilities")
    if plan.program.fd is not None and memory_fd is not None:
        pairs.append((plan.program.fd, memory_fd | TARGET_CLOEXEC))
    packer.fd_map(pairs, null)
    if plan.listen_pid is not None:
        packer.op("ENV_PID", "setting LISTEN_PID", a=plan.listen_pid, b=len("LISTEN_PID="))
    if filter_program is not None:
        packer.seccomp(filter_program, "installing the filter of the job")
    packer.op("SIGNALS", "resetting signals")
    return packer.packed(clone_flags=clone_flags, exec_fd=exec_fd, exec_path=exec_path, **where)  # type: ignore[arg-type]


def _reopened(packer: Packer, fd: int, flags: int) -> int:
    return packer.made("OPEN", "opening what is kept for all children", fd=CWD_FD, text=f"/proc/{os.getpid()}/fd/{fd}", a=flags)


def comm(plan: Plan) -> str:
    """The name the kernel will show: 15 bytes, one path component."""
    name = os.fsencode(plan.name.rsplit("/", 1)[-1])[:COMM_BYTES]
    if name in (b"", b".", b".."):
        name = os.path.basename(plan.program.path or b"")[:COMM_BYTES] or b"shoal"
    return os.fsdecode(name)


def _placement(plan: Plan) -> dict[str, int]:
    if plan.job.init_pidfd is not None:
        return {"enter_fd": plan.job.init_pidfd, "enter_flags": CLONE_NEWPID | (0 if plan.privileged else CLONE_NEWUSER)}
    return {"cgroup_fd": NO_FD if plan.job.cgroup_fd is None else plan.job.cgroup_fd}


def _memory_target(plan: Plan) -> int:
    """A number for a program in memory that no descriptor of the child has: it is executed through its link in /proc."""
    taken = {item.target for item in plan.descriptors}
    return next(number for number in range(3, 1024) if number not in taken)


def _executable_in_callers_world(plan: Plan, memory_fd: int | None, name_it: NameIt) -> tuple[int, str | bytes]:
    wanted = comm(plan)
    if memory_fd is not None:
        return name_it(wanted, b"/proc/self/fd/%d" % memory_fd)
    path = plan.program.path or b""
    if os.fsdecode(os.path.basename(path)[:COMM_BYTES]) == wanted:
        return CWD_FD, path
    return name_it(wanted, path)


def _held(plan: Plan) -> list[Bind]:
    sources = [mount.source for mount in plan.mounts] + [item.source for item in plan.descriptors]
    return [source for source in sources if isinstance(source, Bind) and source.fd >= 0]


def _clone(packer: Packer, source: Bind, trees: Trees, label: str) -> int:
    """A mount of its own of a directory or file, attached nowhere yet, with attributes of its own."""
    tree = trees.get(source.fd)
    if tree is None:
        seen = packer.made("OPEN", label, fd=CWD_FD, text=source.path, a=os.O_PATH, b=RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
        packer.op("EXPECT", label, fd=seen, a=source.dev, b=source.ino)
        tree = packer.made("OPEN_TREE", label, fd=seen, text="", a=OPEN_TREE_CLONE | AT_RECURSIVE)
    packer.op("MOUNT_SETATTR", label, fd=tree, a=_attributes(source), b=AT_RECURSIVE)
    return tree


def _detached(packer: Packer, source: Bind, trees: Trees) -> int:
    """A directory as a mount of its own, attached nowhere: nothing above it can be reached from it."""
    label = f"opening {source.path}"
    return packer.made("OPEN", label, fd=_clone(packer, source, trees, label), text=".", a=os.O_RDONLY | os.O_DIRECTORY)


def _attributes(source: Bind) -> int:
    return (0 if source.writable else MOUNT_ATTR_RDONLY) | MOUNT_ATTR_NOSUID | (0 if source.devices else MOUNT_ATTR_NODEV)


def _make_world(packer: Packer, plan: Plan, memory_fd: int | None, trees: Trees) -> tuple[int, str]:
    packer.op("PRIVATE_MOUNTS", "making mounts private")
    base = packer.made(
        "FSMOUNT", "making the root file system", text="tmpfs", text2="size=64m,mode=755", a=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    )
    host = packer.made("OPEN", "opening the caller's root", fd=CWD_FD, text="/", a=os.O_PATH | os.O_DIRECTORY)
    packer.op("MOVE_MOUNT", "mounting the root file system", fd=base, fd2=host, text="")
    packer.op("MKDIRS", "making the root directory", fd=base, text="root", a=0o755)
    packer.op("MKDIRS", "making the program's directory", fd=base, text="exe", a=0o755)
    exec_path = f"exe/{comm(plan)}"
    program = plan.program
    if memory_fd is not None:
        # A file in memory has no mount to clone, but the kernel's own link to it can be executed, under any name.
        links = packer.made("OPEN", "opening /proc/self/fd", fd=CWD_FD, text="/proc/self/fd", a=os.O_PATH | os.O_DIRECTORY)
        tree = packer.made("OPEN_TREE", "cloning /proc/self/fd", fd=links, text="", a=OPEN_TREE_CLONE | AT_RECURSIVE)
        packer.op("MKDIRS", "making the program's directory", fd=base, text=f"exe/{LINKS}", a=0o755)
        packer.op("MOVE_MOUNT", "mounting /proc/self/fd", fd=tree, fd2=base, text=f"exe/{LINKS}")
        # Not through `..`: from a directory below the mount point of the root that leads into the root.
        packer.op("SYMLINK", "naming the program", fd=base, text=exec_path, text2=f"{LINKS}/{memory_fd}")
    else:
        packer.op("TOUCH", "making the program's place", fd=base, text=exec_path, a=0o444)
        path = os.path.realpath(program.path or b"")
        attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        packer.op("BIND", f"mounting {program.label}", text=path, a=program.dev, b=program.ino, flags=attributes, fd2=base, text2=exec_path)
    root = _root(packer, plan, base, trees)
    made: set[str] = set()
    for mount in plan.mounts:
        if mount.where != "/":
            _mount(packer, mount, root, made, trees)
    if not any(mount.where == "/" for mount in plan.mounts):
        packer.op("MOUNT_SETATTR", "making the root directory read-only", fd=root, a=MOUNT_ATTR_RDONLY)
    packer.op("PIVOT", "changing the root", fd=base, fd2=root)
    return base, exec_path


def _root(packer: Packer, plan: Plan, base: int, trees: Trees) -> int:
    """The mount that becomes "/": an empty directory, or the entry for "/" itself."""
    for mount in plan.mounts:
        if mount.where == "/":
            if isinstance(mount.source, Bind):
                tree = _clone(packer, mount.source, trees, _label(mount))
            elif isinstance(mount.source, Tree):
                tree = mount.source.fd
            else:
                raise ValueError(f"{mount.source} cannot be the root of a world")
            packer.op("MOVE_MOUNT", _label(mount), fd=tree, fd2=base, text="")
            return tree
    root = packer.made("OPEN_TREE", "cloning the root directory", fd=base, text="root", a=OPEN_TREE_CLONE)
    packer.op("MOVE_MOUNT", "mounting the root directory", fd=root, fd2=base, text="")
    return root


def _mount_on_top(packer: Packer, plan: Plan, clone_flags: int, trees: Trees) -> None:
    if not clone_flags & CLONE_NEWNS:
        packer.op("UNSHARE", "making a mount namespace", a=CLONE_NEWNS)
    packer.op("PRIVATE_MOUNTS", "making mounts private")
    root = packer.made("OPEN", "opening the root directory", fd=CWD_FD, text="/", a=os.O_PATH | os.O_DIRECTORY)
    for mount in plan.mounts:
        where = os.path.realpath(mount.where)
        _mount(packer, Mount(where, mount.source, mount.origin, make_place=False), root, set(), trees)


def _label(mount: Mount) -> str:
    return f"mounting {mount.source} at {mount.where} ({mount.origin})"


def _make_directories(packer: Packer, path: str, root: int, made: set[str], label: str) -> None:
    if path and path not in made:
        packer.op("MKDIRS", label, fd=root, text=path, a=0o755)
        made.add(path)


def _mount(packer: Packer, mount: Mount, root: int, made: set[str], trees: Trees) -> None:
    where = mount.where.strip("/")
    label = _label(mount)
    source = mount.source
    is_file = (isinstance(source, Bind) and not source.is_dir) or isinstance(source, Contents)
    if mount.make_place:
        _make_directories(packer, os.path.dirname(where) if is_file else where, root, made, label)
        if is_file and not isinstance(source, Contents):
            packer.op("TOUCH", label, fd=root, text=where, a=0o444)
    if isinstance(source, Bind) and source.fd in trees:
        packer.op("MOVE_MOUNT", label, fd=_clone(packer, source, trees, label), fd2=root, text=where)
    elif isinstance(source, Bind):
        packer.op("BIND", label, text=source.path, a=source.dev, b=source.ino, flags=_attributes(source), fd2=root, text2=where)
    elif isinstance(source, Contents):
        packer.op("COPY", label, fd=source.fd, fd2=root, text=where, a=source.mode)
    elif isinstance(source, Tree):
        if not source.writable:
            packer.op("MOUNT_SETATTR", label, fd=source.fd, a=MOUNT_ATTR_RDONLY, b=AT_RECURSIVE)
        packer.op("MOVE_MOUNT", label, fd=source.fd, fd2=root, text=where)
    elif isinstance(source, NewMount):
        attributes = source.attributes | (0 if source.writable else MOUNT_ATTR_RDONLY)
        tree = packer.made("FSMOUNT", label, text=source.fstype, text2=source.options, a=attributes)
        packer.op("MOVE_MOUNT", label, fd=tree, fd2=root, text=where)
    else:
        if not mount.make_place:
            # Nothing is made in the caller's own directory: a file system of the child's own goes on top of it first.
            tree = packer.made("FSMOUNT", label, text="tmpfs", text2="size=64k,mode=755", a=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
            packer.op("MOVE_MOUNT", label, fd=tree, fd2=root, text=where)
        _mount_devices(packer, source, where, root, made, label)


def _mount_devices(packer: Packer, source: Devices, where: str, root: int, made: set[str], label: str) -> None:
    for name in source.names:
        place = f"{where}/{name}"
        if name == "pts":
            _make_directories(packer, place, root, made, label)
            attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
            tree = packer.made("FSMOUNT", label, text="devpts", text2="newinstance,ptmxmode=0666,mode=620", a=attributes)
            packer.op("MOVE_MOUNT", label, fd=tree, fd2=root, text=place)
            packer.op("SYMLINK", label, fd=root, text=f"{where}/ptmx", text2="pts/ptmx")
            continue
        path = os.path.realpath(f"/dev/{name}")
        status = os.stat(path)
        _make_directories(packer, os.path.dirname(place), root, made, label)
        packer.op("TOUCH", label, fd=root, text=place, a=0o444)
        packer.op(
            "BIND", label, text=path, a=status.st_dev, b=status.st_ino, flags=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, fd2=root, text2=place
        )
    for name, target in _DEVICE_LINKS:
        packer.op("SYMLINK", label, fd=root, text=f"{where}/{name}", text2=target)
    _make_directories(packer, f"{where}/shm", root, made, label)
    shm = packer.made("FSMOUNT", label, text="tmpfs", text2="size=64m,mode=1777", a=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    packer.op("MOVE_MOUNT", label, fd=shm, fd2=root, text=f"{where}/shm")
