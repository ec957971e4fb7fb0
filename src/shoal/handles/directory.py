"""Directory: a part of a file system that can be an entry of a child's namespace.

A read-only handle makes a read-only mount, whatever the files' own permissions say.
Source: fuchsia.io directories as namespace entries; open_tree(2), fsmount(2), mount_setattr(2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import ClassVar, Self

from shoal.arguments import StrOrBytesPath
from shoal.handles.base import Handle, Rights
from shoal.handles.made import make_tmpfs
from shoal.handles.mount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, Bind, Devices, MountSource, NewMount, Tree
from shoal.status import Stage, Status, failure, failure_from_errno
from shoal.units import parse_size

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
"""What `Directory.devices()` holds when not told otherwise: nodes that reveal and reach nothing."""


class Directory(Handle):
    """A directory (or a single file) of the caller's world, a new tmpfs, or a recipe made in the child's own world."""

    kind: ClassVar[str] = "directory"
    default_rights: ClassVar[Rights] = Rights.BASIC | Rights.READ | Rights.ENUMERATE | Rights.GET_PROPERTY

    _tmpfs: str | None = None
    _recipe: NewMount | Devices | None = None

    @classmethod
    def open(cls, path: StrOrBytesPath, *, writable: bool = False) -> Self:
        """The directory at `path`, with everything mounted below it.

        Args:
            path: in the caller's world; symbolic links are followed now, once.
            writable: whether a child may change what is in it.
        Raises:
            NotFoundError, AccessDeniedError, NotDirError: as the kernel answers; names the path.
        """
        return cls._open(path, os.O_DIRECTORY, writable)

    @classmethod
    def file(cls, path: StrOrBytesPath, *, writable: bool = False) -> Self:
        """A single file (or device, or socket) at `path`, to be an entry of its own.

        Raises:
            NotFoundError, AccessDeniedError: as the kernel answers; names the path.
        """
        return cls._open(path, 0, writable)

    @classmethod
    def _open(cls, path: StrOrBytesPath, flags: int, writable: bool) -> Self:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"cannot open {os.fsdecode(path)!r}") from error
        except ValueError as error:
            raise failure(Status.INVALID_ARGS, Stage.HANDLE, f"cannot open {os.fsdecode(path)!r}: {error}") from error
        return cls._own(fd, cls.default_rights | (Rights.WRITE if writable else Rights.NONE))

    @classmethod
    def tmpfs(cls, size: int | str, *, mode: int = 0o755) -> Self:
        """A new, empty, writable file system in memory. It can be mounted in one child; fill it through `fileno()` before.

        Args:
            size: bytes, or text such as "64M": what can be stored in it.
            mode: permissions of its root directory.
        Raises:
            ValueError: not a size.
            AccessDeniedError, NotSupportedError: this machine lets no mount be made; `shoal doctor` tells why.
        """
        size_bytes = _tmpfs_size(size)
        self = cls._own(make_tmpfs(size_bytes, mode), cls.default_rights | Rights.WRITE)
        self._tmpfs = f"tmpfs of {size_bytes} bytes"
        return self

    @classmethod
    def scratch(cls, size: int | str, *, mode: int = 0o755) -> Self:
        """A recipe: an empty, writable file system in memory, which each child makes for itself.

        Args:
            size: bytes, or text such as "64M": what can be stored in it.
            mode: permissions of its root directory.
        Raises:
            ValueError: not a size.
        """
        size_bytes = _tmpfs_size(size)
        return cls._from_recipe(
            NewMount(
                "tmpfs", f"size={size_bytes},nr_inodes={files_in(size_bytes)},mode={mode:o}", True, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
            )
        )

    @classmethod
    def proc(cls) -> Self:
        """A recipe: the child's own /proc, read-only, showing nothing but its cell's processes. Usable as an entry of a cell."""
        return cls._from_recipe(NewMount("proc", "", False, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC))

    @classmethod
    def devices(cls, names: Sequence[str] = DEVICES) -> Self:
        """A recipe: a /dev with the named nodes of the host, `shm` in memory, and links to /proc/self/fd. For a cell.

        Args:
            names: below the host's /dev; "pts" stands for a private set of pseudo-terminals.
        Raises:
            InvalidArgsError: a name with `..`, or an absolute one.
            NotFoundError: the host has no such device.
        """
        for name in names:
            if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise failure(Status.INVALID_ARGS, Stage.HANDLE, f"{name!r} is not the name of a device below /dev")
            if name != "pts" and not os.path.exists(f"/dev/{name}"):
                raise failure(Status.NOT_FOUND, Stage.HANDLE, f"this machine has no /dev/{name}")
        return cls._from_recipe(Devices(tuple(names)))

    @classmethod
    def _from_recipe(cls, recipe: NewMount | Devices) -> Self:
        self = cls._own(-1)
        self._recipe = recipe
        return self

    @property
    def closed(self) -> bool:
        """True once the handle was closed or consumed."""
        return self._fd < 0 and self._recipe is None

    @property
    def is_recipe(self) -> bool:
        """Whether it is made in the child, so that there is no descriptor to speak of here."""
        return self._recipe is not None

    @property
    def writable(self) -> bool:
        """Whether a child may change what is in it."""
        return Rights.WRITE in self._rights

    def source(self) -> MountSource:
        """What to mount, as data. Borrowed: a Tree's descriptor stays the handle's.

        Raises:
            BadHandleError: closed or consumed.
        """
        if self._recipe is not None:
            return self._recipe
        fd = self.fileno()
        if self._tmpfs is not None:
            return Tree(fd, self._tmpfs, self.writable)
        return bind_source(fd, self.writable, keep=True)

    def close(self) -> None:
        """Give up the descriptor or the recipe. Closing twice is fine."""
        self._recipe = None
        super().close()

    def consume(self) -> int:
        """Move the descriptor out; the handle is closed afterwards. -1 for a recipe, or when it already was."""
        self._recipe = None
        return super().consume()

    def _wrap_duplicate(self, fd: int, rights: Rights) -> Self:
        copy = super()._wrap_duplicate(fd, rights)
        copy._tmpfs = self._tmpfs
        return copy

    def duplicate(self, rights: Rights = Rights.SAME) -> Self:
        """A second handle with the same rights or fewer; without WRITE it mounts read-only. See `Handle.duplicate`."""
        if self._recipe is None:
            return super().duplicate(rights)
        copy = type(self)._from_recipe(self._recipe)
        copy._rights = self._narrowed(rights)
        return copy

    def __repr__(self) -> str:
        return f"<shoal.Directory {self._recipe}>" if self._recipe is not None else super().__repr__()


def bind_source(fd: int, writable: bool, *, devices: bool = False, keep: bool = False) -> Bind:
    """The file system object behind `fd`, with the name it has now.

    Args:
        keep: `fd` stays open until the child is made, so it can be mounted whatever becomes of the name.
    """
    status = os.fstat(fd)
    path = os.readlink(f"/proc/self/fd/{fd}")
    # A device that is named itself is meant to be used; those in a directory that is handed over are not.
    devices = devices or stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    is_dir = stat.S_ISDIR(status.st_mode)
    return Bind(path, status.st_dev, status.st_ino, is_dir, writable, devices, fd if keep else -1, private=is_private(status.st_mode))


def _tmpfs_size(size: int | str) -> int:
    size_bytes = parse_size(size)
    if size_bytes <= 0:
        raise failure(Status.INVALID_ARGS, Stage.HANDLE, "a tmpfs needs a size above 0")
    return size_bytes


def files_in(size_bytes: int) -> int:
    """How many files a file system in memory may have: an empty one takes a KiB of the kernel's memory, and none of the size."""
    return max(64, size_bytes // 4096)


def is_private(mode: int) -> bool:
    """Whether others may not even read it, or enter it."""
    needed = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
    return mode & needed != needed
