"""Where libraries are looked for: the host's files, or (in oci.py) the files of an image. One interface for both.

Called by: linker, closure, executable. Touches: the file system, reading only.
"""

from __future__ import annotations

import os
import stat
from typing import Protocol

from shoal.loader import elf
from shoal.loader.cache import BoundedCache, FileIdentity, identity_at
from shoal.loader.elf import ElfImage
from shoal.status import Stage, failure_from_errno

OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""NONBLOCK: a FIFO must not hold us up. NOCTTY: a terminal must not become ours."""


class FileTree(Protocol):
    """A set of files, by absolute path; symbolic links are followed inside it."""

    def find(self, path: str) -> FileIdentity | None:
        """The identity of the readable regular file at `path`, or None."""

    def watch(self, path: str) -> FileIdentity | None:
        """The identity of anything at `path`: when that of a directory is unchanged, so is the set of names in it."""

    def read(self, path: str, limit: int) -> bytes | None:
        """The whole file, or None when it is absent, unreadable or larger than `limit`."""

    def image(self, path: str, identity: FileIdentity) -> ElfImage:
        """The ELF image of the file that `find` saw.

        Raises:
            ForeignElfError: of another machine.
            SpawnError: not an ELF, or it cannot be read.
        """


class HostTree:
    """The caller's own files."""

    def __init__(self) -> None:
        # libc is a part of nearly every closure: parsed once, not once per program.
        self._images: BoundedCache[FileIdentity, ElfImage] = BoundedCache(1024)

    def find(self, path: str) -> FileIdentity | None:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        # A linker passes over what it may not read, and so do we: reported here it would stop the search.
        if not stat.S_ISREG(found.st_mode) or not os.access(path, os.R_OK, effective_ids=True):
            return None
        return FileIdentity.of(found)

    def watch(self, path: str) -> FileIdentity | None:
        return identity_at(path)

    def read(self, path: str, limit: int) -> bytes | None:
        if self.find(path) is None:
            return None
        try:
            with open(os.open(path, OPEN_FLAGS), "rb") as file:
                data = file.read(limit + 1)
        except OSError:
            return None
        return data if len(data) <= limit else None

    def image(self, path: str, identity: FileIdentity) -> ElfImage:
        known = self._images.get(identity)
        if known is not None:
            return known
        try:
            fd = os.open(path, OPEN_FLAGS)
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.LOADER, f"cannot open the library {path}") from error
        try:
            actual = FileIdentity.of(os.fstat(fd))
            image = elf.parse(lambda offset, size: os.pread(fd, size, offset), actual.size, path)
        finally:
            os.close(fd)
        if actual.is_settled():
            self._images.put(actual, image)
        return image


HOST = HostTree()
