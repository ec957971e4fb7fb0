"""LayerTree: the files of a container image, layer upon layer, without unpacking them into any directory.

Called by: oci. Touches: the files it is given, reading only. It is a FileTree: the closure search runs over an image as it
does over the host, and nothing of the host is ever seen through it (links stay inside the image).
Layers are hostile: names, links and sizes are claims; numbers of entries are bounded.
Source: OCI image-spec, layer.md (whiteouts, opaque whiteouts, hard links); tar(5).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from shoal.loader import elf
from shoal.loader.cache import FileIdentity
from shoal.loader.elf import ElfImage
from shoal.status import Stage, Status, failure

MAX_ENTRIES = 1_000_000
MAX_LINKS = 40
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"

Visit = Callable[[IO[bytes], tarfile.TarInfo, list[str]], None]


@dataclass(eq=False, slots=True)
class _Node:
    """A file (`data` is its layer), a link (`target`), or a directory (`children`)."""

    number: int
    mode: int = 0o755
    data: IO[bytes] | None = None
    offset: int = 0
    size: int = 0
    target: str | None = None
    children: dict[str, _Node] | None = None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A regular file of an image."""

    path: str
    """Its real path: no link on the way."""
    mode: int
    size: int
    data: IO[bytes]
    offset: int

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`."""
        return os.pread(self.data.fileno(), max(0, min(size, self.size - offset)), self.offset + offset)


class LayerTree:
    """Files by absolute path. Build it with `add_layer`, lowest layer first."""

    def __init__(self) -> None:
        self._count = 0
        self._root = self._directory()
        self._layers: list[IO[bytes]] = []

    # --- building -------------------------------------------------------------------------------------

    def add_layer(self, layer: IO[bytes]) -> None:
        """Put an uncompressed tar on top. The tree owns `layer`, a real and seekable file, from here on.

        Raises:
            SpawnError: IO: it is damaged; OUT_OF_RANGE: it has too many entries.
        """
        self._layers.append(layer)
        try:
            # Whiteouts are about the layers below, wherever they stand in this one: so they come first.
            self._each(layer, self._hide)
            self._each(layer, self._add)
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise failure(Status.IO, Stage.DIRECTIVES, f"a layer of the image is damaged: {error}") from error

    def close(self) -> None:
        """Close the layers. The files cannot be read afterwards."""
        for layer in self._layers:
            layer.close()

    def _each(self, layer: IO[bytes], visit: Visit) -> None:
        layer.seek(0)
        with tarfile.open(fileobj=layer, mode="r:") as tar:
            for seen, member in enumerate(tar):
                if seen >= MAX_ENTRIES:
                    raise failure(Status.OUT_OF_RANGE, Stage.DIRECTIVES, f"a layer of the image has more than {MAX_ENTRIES} entries")
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if parts and ".." not in parts:
                    visit(layer, member, parts)
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all

    def _hide(self, layer: IO[bytes], member: tarfile.TarInfo, parts: list[str]) -> None:
        name = parts[-1]
        if not name.startswith(WHITEOUT):
            return
        parent = self._walk(parts[:-1], follow=True)
        if parent is None or parent.children is None:
            return
        if name == OPAQUE:
            parent.children.clear()
        else:
            parent.children.pop(name.removeprefix(WHITEOUT), None)

    def _add(self, layer: IO[bytes], member: tarfile.TarInfo, parts: list[str]) -> None:
        name = parts[-1]
        if name.startswith(WHITEOUT):
            return
        children = self._make_directories(parts[:-1])
        if children is None:
            return
        if member.isdir():
            below = children.get(name)
            if below is None or below.children is None:
                children[name] = self._directory()
        elif member.issym():
            children[name] = self._node(target=member.linkname)
        elif member.islnk():
            linked = self._walk([part for part in member.linkname.split("/") if part not in ("", ".")], follow=False)
            if linked is not None and linked.children is None:
                children[name] = linked
        elif member.isreg() and not member.issparse():
            children[name] = self._node(mode=member.mode, data=layer, offset=member.offset_data, size=member.size)
        else:
            children.pop(name, None)  # a device, a FIFO: it hides what was there and is itself of no use here

    def _node(
        self, *, mode: int = 0o755, data: IO[bytes] | None = None, offset: int = 0, size: int = 0, target: str | None = None
    ) -> _Node:
        self._count += 1
        return _Node(self._count, mode, data, offset, size, target)

    def _directory(self) -> _Node:
        node = self._node()
        node.children = {}
        return node

    def _make_directories(self, parts: list[str]) -> dict[str, _Node] | None:
        """The children of that directory, made where missing; None where a link leads nowhere or a file is in the way."""
        node = self._root
        for index, part in enumerate(parts):
            if node.children is None:
                return None
            below = node.children.get(part)
            if below is not None and below.target is not None:  # usr-merged images: later layers may still say lib/...
                below = self._walk(parts[: index + 1], follow=True)
                if below is None:
                    return None
            elif below is None:
                below = node.children[part] = self._directory()
            node = below
        return node.children

    # --- reading --------------------------------------------------------------------------------------

    def file(self, path: str) -> ImageFile | None:
        """The regular file at `path`, links followed inside the image."""
        trail: list[str] = []
        node = self._walk(path.split("/"), follow=True, trail=trail)
        if node is None or node.data is None:
            return None
        return ImageFile("/" + "/".join(trail), node.mode, node.size, node.data, node.offset)

    def find(self, path: str) -> FileIdentity | None:
        node = self._walk(path.split("/"), follow=True)
        return self._identity(node) if node is not None and node.data is not None else None

    def watch(self, path: str) -> FileIdentity | None:
        node = self._walk(path.split("/"), follow=True)
        return None if node is None else self._identity(node)

    def read(self, path: str, limit: int) -> bytes | None:
        file = self.file(path)
        return file.read(0, file.size) if file is not None and file.size <= limit else None

    def image(self, path: str, identity: FileIdentity) -> ElfImage:
        file = self.file(path)
        if file is None:
            raise failure(Status.NOT_FOUND, Stage.LOADER, f"{path} is not in the image")
        return elf.parse(file.read, file.size, path)

    @staticmethod
    def _identity(node: _Node) -> FileIdentity:
        return FileIdentity(0, node.number, node.size, 0, 0)

    def _walk(self, parts: list[str], *, follow: bool, trail: list[str] | None = None) -> _Node | None:
        """The node at `parts`; `follow` decides about a link in the last place. `trail` receives the real path."""
        todo = [part for part in reversed(parts) if part not in ("", ".")]
        nodes = [self._root]
        names: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del names[-1:]
                del nodes[len(names) + 1 :]
                continue
            node = (nodes[-1].children or {}).get(part)
            if node is None:
                return None
            if node.target is not None and (todo or follow):
                links += 1
                if links > MAX_LINKS:
                    return None
                if node.target.startswith("/"):
                    nodes, names = [self._root], []
                todo.extend(part for part in reversed(node.target.split("/")) if part not in ("", "."))
                continue
            nodes.append(node)
            names.append(part)
        if trail is not None:
            trail.extend(names)
        return nodes[-1]
