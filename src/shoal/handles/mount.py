"""What a handle stands for as an entry of a child's namespace: plain data that the plan carries and the core mounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory, file or socket of the caller's world, known by its inode: the name is only the way to it.

    The child looks it up anew in its own copy of the mount table, refusing symbolic links, and refuses anything with another
    identity. So nobody can exchange it between the look and the mount.
    """

    path: str
    dev: int
    ino: int
    is_dir: bool
    writable: bool
    devices: bool = False
    """Device nodes inside stay usable."""
    fd: int = -1
    """A descriptor of it, borrowed: a privileged caller mounts that one, wherever its name leads by now."""
    follow_fd: int = -1
    """The same, for a caller who may not: the name is read from it anew when it has changed."""
    private: bool = False
    """Nobody but its owner may use it."""

    def __str__(self) -> str:
        return f"{'directory' if self.is_dir else 'file'} {self.path}"


@dataclass(frozen=True, slots=True)
class Tree:
    """A file system of its own that is mounted nowhere yet, held by a descriptor."""

    fd: int
    label: str
    writable: bool

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True)
class NewMount:
    """A file system made inside the child's world, because it depends on the child's namespaces."""

    fstype: str
    options: str
    writable: bool
    attributes: int = 0

    def __str__(self) -> str:
        return f"new {self.fstype}" + (f" ({self.options})" if self.options else "")


@dataclass(frozen=True, slots=True)
class Devices:
    """A directory with these device nodes of the host and nothing else, `shm`, and the usual links into /proc/self/fd."""

    names: tuple[str, ...]
    writable: bool = False

    def __str__(self) -> str:
        return "devices " + " ".join(self.names)


@dataclass(frozen=True, slots=True)
class Contents:
    """The bytes of a memory object, as a file."""

    fd: int
    size: int
    mode: int
    label: str
    writable: bool = False

    def __str__(self) -> str:
        return f"contents of {self.label} ({self.size} bytes)"


MountSource: TypeAlias = Bind | Tree | NewMount | Devices | Contents
