"""World: the ops that make a child's world of files, from the mounts of a Plan.

The world of a cell is a tmpfs with two things in it: the program's file, mounted read-only, and a directory that becomes the
root. The root is mounted on top, so that no path leads to the rest; the program is executed from there. That gives the
process its name (the kernel takes the last component), and keeps /proc/self/exe on a read-only mount, so that not even a
root without capabilities can write to the host's file through it.

A mount can only be cloned by who lives in its mount namespace, with privileges there. Root clones all it needs first and takes
it into a mount namespace in which nothing is. Without root the mounts of the host have to be copied into the cell's own
namespace and thrown out in the end. open_tree(2), move_mount(2), mount_namespaces(7).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from shoal.handles.keeper import ID_MAPPED
from shoal.handles.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    Bind,
    Contents,
    Devices,
    NewMount,
    Tree,
)
from shoal.packing import CLONE_NEWNS, CWD_FD, NO_FD, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, Packer
from shoal.plan import Mount, Plan
from shoal.privileges import is_initial_user_namespace

AT_RECURSIVE = 0x8000
MOUNT_ATTR_IDMAP = 0x00100000
OPEN_TREE_CLONE = 1
COMM_BYTES = 15
LINKS = "descriptors-of-this-process"  # longer than any name a program can have
MANY_MOUNTS = 256
"""With more than so many there would be too few slots to hold all of them at once."""

_DEVICE_LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"))
_DEVICE_ATTRIBUTES = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC


def comm(plan: Plan) -> str:
    """The name the kernel will show: 15 bytes, one path component."""
    name = os.fsencode(plan.name.rsplit("/", 1)[-1])[:COMM_BYTES]
    if name in (b"", b".", b".."):
        name = os.path.basename(plan.program.path or b"")[:COMM_BYTES] or b"shoal"
    return os.fsdecode(name)


def begins_empty(plan: Plan) -> bool:
    """Whether the cell of this plan can be made in a mount namespace in which nothing is.

    In a user namespace a new /proc can only be mounted where another one is to be seen: user_namespaces(7).
    """
    if not plan.privileged or len(plan.mounts) > MANY_MOUNTS:
        return False
    return is_initial_user_namespace() or not any(
        isinstance(mount.source, NewMount) and mount.source.fstype in ("proc", "sysfs") for mount in plan.mounts
    )


class World:
    """Adds the ops of one plan to a packer: first `clone()`, then, where the child lives by then, the others.

    Args:
        empty: what surrounds the world is a mount namespace with nothing in it, and nothing can be found there by its path.
        memory_fd: the number of a program in memory.
        id_map: the user namespace that maps the caller's ids to the child's, or NO_FD.
        executes: something is executed in it.
    """

    def __init__(
        self,
        packer: Packer,
        plan: Plan,
        *,
        empty: bool = False,
        memory_fd: int | None = None,
        id_map: int = NO_FD,
        executes: bool = True,
    ) -> None:
        self._executes = executes
        self._id_map = id_map
        self._packer = packer
        self._plan = plan
        self._empty = empty
        self._memory_fd = memory_fd
        self._cloned: dict[Bind, list[int]] = {}
        self._links = NO_FD
        self._made: set[str] = set()
        self.base = self.root = CWD_FD
        """Once it is made: what the program is executed from, and the root directory."""

    def clone(self) -> None:
        """Clone what cannot be cloned later."""
        for source in self._sources():
            if source.fd >= 0:
                tree = self._packer.made("OPEN_TREE", f"cloning {source}", fd=source.fd, text="", a=OPEN_TREE_CLONE | AT_RECURSIVE)
            elif self._empty:
                tree = self._found(source, f"cloning {source}")
            else:
                continue
            self._cloned.setdefault(source, []).append(tree)
        if self._memory_fd is not None and self._empty:
            self._links = self._clone_links()

    def make(self) -> tuple[int, str]:
        """The world of a cell. What is made gets its modes by the mask that is set before.

        Returns:
            What the program is executed by: a directory and a path below it. "" where nothing is executed.
        """
        packer, plan = self._packer, self._plan
        if not self._empty:
            packer.op("PRIVATE_MOUNTS", "making mounts private")
        base = packer.made(
            "FSMOUNT",
            "making the root file system",
            text="tmpfs",
            text2="size=64m,nr_inodes=16384,mode=755",
            a=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        )
        around = packer.made("OPEN", "opening what is around the world", fd=CWD_FD, text="/", a=os.O_PATH | os.O_DIRECTORY)
        packer.op("MOVE_MOUNT", "mounting the root file system", fd=base, fd2=around, text="")
        packer.op("MKDIRS", "making the root directory", fd=base, text="root", a=0o755)
        exec_path = self._place_program(base) if self._executes else ""
        root = self._root(base)
        for mount in plan.mounts:
            if mount.where != "/":
                self._mount(mount, root)
        if not any(mount.where == "/" for mount in plan.mounts):
            packer.op("MOUNT_SETATTR", "making the root directory read-only", fd=root, a=MOUNT_ATTR_RDONLY)
        packer.op("PIVOT", "changing the root", fd=NO_FD if self._empty else base, fd2=root)
        self.base, self.root = base, root
        return base, exec_path

    def enter(self, base: int) -> tuple[int, str]:
        """The world that another process has made by the same plan, in whose mount namespace the child lives by now.

        Args:
            base: what that process executed the program from.
        Returns:
            As `make()`.
        """
        self.base = base
        self.root = self._packer.made("OPEN", "opening the root directory", fd=CWD_FD, text="/", a=os.O_PATH | os.O_DIRECTORY)
        return base, self._exec_path

    @property
    def _exec_path(self) -> str:
        return f"exe/{comm(self._plan)}"

    def _place_program(self, base: int) -> str:
        """Where the program is executed from; its path below `base`."""
        packer, plan = self._packer, self._plan
        exec_path = self._exec_path
        packer.op("MKDIRS", "making the program's directory", fd=base, text="exe", a=0o755)
        if self._memory_fd is not None:
            # A file in memory has no mount to clone, but the kernel's own link to it can be executed, under any name.
            links = self._links if self._empty else self._clone_links()
            packer.op("MKDIRS", "making the program's directory", fd=base, text=f"exe/{LINKS}", a=0o755)
            packer.op("MOVE_MOUNT", "mounting /proc/self/fd", fd=links, fd2=base, text=f"exe/{LINKS}")
            # Not through `..`: from a directory below the mount point of the root that leads into the root.
            packer.op("SYMLINK", "naming the program", fd=base, text=exec_path, text2=f"{LINKS}/{self._memory_fd}")
        else:
            packer.op("TOUCH", "making the program's place", fd=base, text=exec_path, a=0o444)
            self._bind(self._program(), f"mounting {plan.program.label}", base, exec_path)
        return exec_path

    def mount_on_top(self, *, private: bool) -> None:
        """Mount the plan's mounts over the caller's world.

        Args:
            private: the mount namespace is the child's own already.
        """
        packer = self._packer
        if not private:
            packer.op("UNSHARE", "making a mount namespace", a=CLONE_NEWNS)
        packer.op("PRIVATE_MOUNTS", "making mounts private")
        root = packer.made("OPEN", "opening the root directory", fd=CWD_FD, text="/", a=os.O_PATH | os.O_DIRECTORY)
        for mount in self._plan.mounts:
            self._mount(Mount(os.path.realpath(mount.where), mount.source, mount.origin, make_place=False), root)

    def detached(self, source: Bind) -> int:
        """A directory as a mount of its own, attached nowhere: nothing above it can be reached from it."""
        label = f"opening {source.path}"
        return self._packer.made("OPEN", label, fd=self._tree(source, label), text=".", a=os.O_RDONLY | os.O_DIRECTORY)

    def _sources(self) -> Iterable[Bind]:
        plan = self._plan
        if plan.world == "cell" and plan.program.fd is None and self._executes:
            yield self._program()
        for source in (*(mount.source for mount in plan.mounts), *(item.source for item in plan.descriptors)):
            if isinstance(source, Bind):
                yield source
            elif isinstance(source, Devices):
                yield from (_device(name) for name in source.names if name != "pts")

    def _program(self) -> Bind:
        program = self._plan.program
        path = os.path.realpath(program.path or b"")
        private = self._id_map != NO_FD and not _others_execute(path)
        return Bind(os.fsdecode(path), program.dev, program.ino, is_dir=False, writable=False, private=private)

    def _clone_links(self) -> int:
        packer = self._packer
        links = packer.made("OPEN", "opening /proc/self/fd", fd=CWD_FD, text="/proc/self/fd", a=os.O_PATH | os.O_DIRECTORY)
        return packer.made("OPEN_TREE", "cloning /proc/self/fd", fd=links, text="", a=OPEN_TREE_CLONE | AT_RECURSIVE)

    def _found(self, source: Bind, label: str) -> int:
        """A clone of what has this name, if it is still the same."""
        packer = self._packer
        seen = packer.made("OPEN", label, fd=CWD_FD, text=source.path, a=os.O_PATH, b=RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
        packer.op("EXPECT", label, fd=seen, a=source.dev, b=source.ino)
        return packer.made("OPEN_TREE", label, fd=seen, text="", a=OPEN_TREE_CLONE | AT_RECURSIVE)

    def _tree(self, source: Bind, label: str, attributes: int | None = None) -> int:
        """A mount of its own of a directory or file, attached nowhere yet, with attributes of its own."""
        cloned = self._cloned.get(source)
        tree = cloned.pop() if cloned else self._found(source, label)
        chosen = _attributes(source) if attributes is None else attributes
        if self._id_map != NO_FD and needs_id_map(source):
            label = f"{label}, {ID_MAPPED}"
            self._packer.op("MOUNT_SETATTR", label, fd=tree, fd2=self._id_map, a=chosen | MOUNT_ATTR_IDMAP, b=AT_RECURSIVE)
        else:
            self._packer.op("MOUNT_SETATTR", label, fd=tree, a=chosen, b=AT_RECURSIVE)
        return tree

    def _bind(self, source: Bind, label: str, root: int, where: str, attributes: int | None = None) -> None:
        if self._cloned.get(source) or (self._id_map != NO_FD and needs_id_map(source)):
            self._packer.op("MOVE_MOUNT", label, fd=self._tree(source, label, attributes), fd2=root, text=where)
        else:
            chosen = _attributes(source) if attributes is None else attributes
            self._packer.op("BIND", label, text=source.path, a=source.dev, b=source.ino, flags=chosen, fd2=root, text2=where)

    def _root(self, base: int) -> int:
        """The mount that becomes "/": an empty directory, or the entry for "/" itself."""
        packer = self._packer
        for mount in self._plan.mounts:
            if mount.where == "/":
                if isinstance(mount.source, Bind):
                    tree = self._tree(mount.source, _label(mount))
                elif isinstance(mount.source, Tree):
                    tree = mount.source.fd
                else:
                    raise ValueError(f"{mount.source} cannot be the root of a world")
                packer.op("MOVE_MOUNT", _label(mount), fd=tree, fd2=base, text="")
                return tree
        root = packer.made("OPEN_TREE", "cloning the root directory", fd=base, text="root", a=OPEN_TREE_CLONE)
        packer.op("MOVE_MOUNT", "mounting the root directory", fd=root, fd2=base, text="")
        return root

    def _make_directories(self, path: str, root: int, label: str) -> None:
        if path and path not in self._made:
            self._packer.op("MKDIRS", label, fd=root, text=path, a=0o755)
            self._made.add(path)

    def _mount(self, mount: Mount, root: int) -> None:
        packer, source, where, label = self._packer, mount.source, mount.where.strip("/"), _label(mount)
        is_file = (isinstance(source, Bind) and not source.is_dir) or isinstance(source, Contents)
        if mount.make_place:
            self._make_directories(os.path.dirname(where) if is_file else where, root, label)
            if is_file and not isinstance(source, Contents):
                packer.op("TOUCH", label, fd=root, text=where, a=0o444)
        if isinstance(source, Bind):
            self._bind(source, label, root, where)
        elif isinstance(source, Contents):
            packer.op("COPY", label, fd=source.fd, fd2=root, text=where, a=source.mode)
        elif isinstance(source, Tree):
            if not source.writable:
                packer.op("MOUNT_SETATTR", label, fd=source.fd, a=MOUNT_ATTR_RDONLY, b=AT_RECURSIVE)
            packer.op("MOVE_MOUNT", label, fd=source.fd, fd2=root, text=where)
        elif isinstance(source, NewMount):
            attributes = source.attributes | (0 if source.writable else MOUNT_ATTR_RDONLY)
            self._new(source.fstype, source.options, attributes, root, where, label)
        else:
            if not mount.make_place:
                # Nothing is made in the caller's own directory: a file system of the child's own goes on top of it first.
                self._new("tmpfs", "size=64k,mode=755", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, root, where, label)
            self._mount_devices(source, where, root, label)

    def _new(self, fstype: str, options: str, attributes: int, root: int, where: str, label: str) -> None:
        tree = self._packer.made("FSMOUNT", label, text=fstype, text2=options, a=attributes)
        self._packer.op("MOVE_MOUNT", label, fd=tree, fd2=root, text=where)

    def _mount_devices(self, source: Devices, where: str, root: int, label: str) -> None:
        packer = self._packer
        for name in source.names:
            place = f"{where}/{name}"
            if name == "pts":
                self._make_directories(place, root, label)
                self._new("devpts", "newinstance,ptmxmode=0666,mode=620", _DEVICE_ATTRIBUTES, root, place, label)
                packer.op("SYMLINK", label, fd=root, text=f"{where}/ptmx", text2="pts/ptmx")
                continue
            self._make_directories(os.path.dirname(place), root, label)
            packer.op("TOUCH", label, fd=root, text=place, a=0o444)
            self._bind(_device(name), label, root, place, _DEVICE_ATTRIBUTES)
        for name, target in _DEVICE_LINKS:
            packer.op("SYMLINK", label, fd=root, text=f"{where}/{name}", text2=target)
        self._make_directories(f"{where}/shm", root, label)
        self._new("tmpfs", "size=64m,nr_inodes=16384,mode=1777", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, root, f"{where}/shm", label)


def needs_id_map(source: Bind) -> bool:
    """Whether a child with a user of its own is to be there as if it were the caller: to write, or to read what only the caller may."""
    return (source.writable or source.private) and not source.devices


def _others_execute(path: str | bytes) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IXOTH)
    except OSError:
        return True  # it is gone, which the child will tell


def _device(name: str) -> Bind:
    path = os.path.realpath(f"/dev/{name}")
    status = os.stat(path)
    return Bind(path, status.st_dev, status.st_ino, is_dir=False, writable=True, devices=True)


def _attributes(source: Bind) -> int:
    return (0 if source.writable else MOUNT_ATTR_RDONLY) | MOUNT_ATTR_NOSUID | (0 if source.devices else MOUNT_ATTR_NODEV)


def _label(mount: Mount) -> str:
    return f"mounting {mount.source} at {mount.where} ({mount.origin})"
