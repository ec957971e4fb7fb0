"""Reading and writing the files of a cgroup directory, always relative to its descriptor.

Source: cgroups(7), openat(2).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def read_text(fd: int, name: str) -> str:
    """The whole text of a file of the directory `fd`. Raises OSError."""
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=fd)
    try:
        parts = []
        while part := os.read(file, 1 << 16):
            parts.append(part)
    finally:
        os.close(file)
    return b"".join(parts).decode("ascii", "replace")


def read_keyed(fd: int, name: str) -> dict[str, int]:
    """A file of lines "key number". Raises OSError."""
    return {key: int(value) for key, _, value in (line.partition(" ") for line in read_text(fd, name).splitlines())}


def read_io(fd: int) -> tuple[int, int] | None:
    """Bytes read from and written to all block devices, or None where that is not counted."""
    try:
        fields = [word.partition("=") for line in read_text(fd, "io.stat").splitlines() for word in line.split()[1:]]
    except OSError:
        return None
    return sum(int(n) for key, _, n in fields if key == "rbytes"), sum(int(n) for key, _, n in fields if key == "wbytes")


def write_text(fd: int, name: str, text: str) -> None:
    """Write to a file of the directory `fd`, in one call as the kernel wants it. Raises OSError."""
    file = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=fd)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def open_below(fd: int, name: str) -> int:
    """A descriptor of the directory `name` directly below. Raises OSError."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)


def open_parent(fd: int, mode: int = os.O_PATH) -> int:
    """A descriptor of the directory above. Raises OSError, also when `fd` itself was removed."""
    return os.open("..", mode | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)


def exists(fd: int, name: str) -> bool:
    """Is there a file `name` in the directory `fd`?"""
    try:
        os.stat(name, dir_fd=fd)
    except OSError:
        return False
    return True


def child_names(fd: int) -> list[str]:
    """The directories directly below; none when `fd` was removed."""
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def is_populated(fd: int) -> bool:
    """Is there a live process in the directory or below? The root has no such file, and always is."""
    try:
        return read_keyed(fd, "cgroup.events").get("populated", 0) != 0
    except FileNotFoundError:
        return exists(fd, "cgroup.procs")
    except OSError:
        return False


def walk(fd: int) -> Iterator[int]:
    """The directory and all below it, each open only for its turn; those above come first."""
    yield fd
    for name in child_names(fd):
        try:
            below = open_below(fd, name)
        except OSError:
            continue
        try:
            yield from walk(below)
        finally:
            os.close(below)


def name_of(fd: int) -> str:
    """The last component of an open directory, found by its inode number in the one above."""
    own = os.fstat(fd).st_ino
    try:
        parent = open_parent(fd, os.O_RDONLY)
    except OSError:
        return "/"
    try:
        with os.scandir(parent) as entries:
            return next((entry.name for entry in entries if entry.inode() == own), "/")
    finally:
        os.close(parent)


def populated_in(events: int) -> bool:
    """As `is_populated()`, from a descriptor of cgroup.events; poll(2) then waits for the next change."""
    try:
        return b"populated 1" in os.pread(events, 4096, 0)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
