"""OciLayoutResolver: programs out of an OCI image-layout directory, with the libraries of their own image.

Called by: resolver users. Touches: the layout directory, reading only, and unnamed temporary files for the layers it unpacked.
Every blob is checked against its digest and size while it is read, and what is used are the bytes that were checked:
the directory may change at any time. Nothing of the host's libraries is used.
Source: OCI image-spec v1.1: image-layout.md, descriptor.md, image-index.md, manifest.md, config.md, layer.md.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import os
import platform
import posixpath
import re
import tempfile
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from shoal.loader import elf
from shoal.loader.closure import search_closure
from shoal.loader.elf import ElfImage
from shoal.loader.layers import ImageFile, LayerTree
from shoal.loader.resolver import Resolved
from shoal.loader.tree import OPEN_FLAGS
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

if TYPE_CHECKING:
    from shoal.handles.vmo import Vmo

REF_NAME = "org.opencontainers.image.ref.name"
JSON_BYTES = 16 << 20
UNPACKED_BYTES = 16 << 30
CHUNK_BYTES = 1 << 20
MAX_INDEX_DEPTH = 4
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

INDEXES = frozenset(("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"))
MANIFESTS = frozenset(("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"))
_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+(gzip|zstd))?|docker\.image\.rootfs\.diff\.tar(?:\.(gzip|zstd))?)"
)
_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Image:
    """One image, ready to be read."""

    tree: LayerTree
    config: Json


class OciLayoutResolver:
    """NAME is a reference in the layout's index (its `org.opencontainers.image.ref.name`), or the digest of a manifest.

    `NAME//path/in/image` picks a file; without it the image's Entrypoint, or else its Cmd, is taken. Only its first word: a
    resolve line adds no arguments. The last images used stay unpacked (`keep` of them) until `close`.
    """

    def __init__(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, keep: int = 2) -> None:
        """Open the layout at `path`.

        Raises:
            SpawnError: it cannot be opened, or is no image layout of version 1.
        """
        self._fd = -1
        self._keep = max(1, keep)
        self._lock = threading.Lock()
        self._images: dict[str, _Image] = {}
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"cannot open the image layout {os.fsdecode(path)}") from error
        try:
            version = str(self._json(self._whole("oci-layout", JSON_BYTES), "oci-layout").get("imageLayoutVersion", ""))
            if not version.startswith("1."):
                raise failure(Status.NOT_SUPPORTED, Stage.HANDLE, f"{os.fsdecode(path)} is an image layout of version {version!r}, not 1")
        except BaseException:
            self.close()
            raise

    def resolve(self, name: str) -> Resolved:
        """The program and its libraries as memory.

        Raises:
            NotFoundError: no such reference, or no such file in the image.
            AccessDeniedError: the file is not executable.
            NotSupportedError: a media type, or zstd without the module for it.
            InternalError: a library is not in the image (INTERNAL), or the layout is damaged (IO).
        """
        from shoal.handles.vmo import Vmo

        reference, _, inner = name.partition("//")
        with self._lock:  # unpacking twice at once would only cost twice
            image = self._image(reference)
            file = _program(image, inner, name)
            executable = Vmo.from_bytes(file.read(0, file.size), posixpath.basename(file.path)).replace_as_executable()
            try:
                files = self._libraries(image.tree, file, name)
            except BaseException:
                executable.close()
                raise
        return Resolved(executable, files=files)

    def close(self) -> None:
        """Give up the directory and the unpacked layers. Closing twice is fine."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
            for image in self._images.values():
                image.tree.close()
            self._images.clear()

    def __enter__(self) -> OciLayoutResolver:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    # --- the program and its libraries ------------------------------------------------------------------

    @staticmethod
    def _libraries(tree: LayerTree, file: ImageFile, name: str) -> tuple[tuple[str, Vmo], ...]:
        from shoal.handles.vmo import Vmo

        image = _elf_of(file, name)
        if image is None or image.is_static:
            return ()
        closure, _ = search_closure(image, name, posixpath.dirname(file.path), tree)
        files: list[tuple[str, Vmo]] = []
        try:
            for library in closure:
                found = tree.file(library.path)
                assert found is not None, "the closure search has just read it"
                files.append((library.inside, Vmo.from_bytes(found.read(0, found.size), posixpath.basename(library.inside))))
        except BaseException:
            for _, vmo in files:
                vmo.close()
            raise
        return tuple(files)

    # --- the image ----------------------------------------------------------------------------------------

    def _image(self, reference: str) -> _Image:
        if self._fd < 0:
            raise failure(Status.BAD_HANDLE, Stage.HANDLE, "this resolver is closed")
        descriptor = self._manifest(reference)
        digest = str(descriptor.get("digest"))
        image = self._images.pop(digest, None) or self._unpack(self._json(self._blob(descriptor), digest))
        self._images[digest] = image
        while len(self._images) > self._keep:
            self._images.pop(next(iter(self._images))).tree.close()
        return image

    def _manifest(self, reference: str) -> Json:
        index = self._json(self._whole("index.json", JSON_BYTES), "index.json")
        found = [
            item for item in _objects(index.get("manifests"))
            if (_object(item.get("annotations")).get(REF_NAME) or item.get("digest")) == reference or item.get("digest") == reference
        ]  # fmt: skip
        chosen = self._for_us(found, 0)
        if chosen is None:
            why = "is not for this machine" if found else "is not in the image layout"
            raise failure(Status.NOT_FOUND, Stage.DIRECTIVES, f"{reference!r} {why}")
        return chosen

    def _for_us(self, descriptors: list[Json], depth: int) -> Json | None:
        """The first manifest for this machine, in the indexes below too."""
        wanted = ("linux", ARCHITECTURES.get(platform.machine(), platform.machine()))
        for item in descriptors:
            where = _object(item.get("platform"))
            if where and (where.get("os"), where.get("architecture")) != wanted:
                continue
            if item.get("mediaType") in INDEXES:
                if depth == MAX_INDEX_DEPTH:
                    raise _damaged("indexes within indexes within indexes")
                below = self._json(self._blob(item), str(item.get("digest")))
                chosen = self._for_us(_objects(below.get("manifests")), depth + 1)
                if chosen is not None:
                    return chosen
            elif item.get("mediaType") in MANIFESTS:
                return item
        return None

    def _unpack(self, manifest: Json) -> _Image:
        config = self._json(self._blob(_object(manifest.get("config"))), "the image's configuration")
        layers = _objects(manifest.get("layers"))
        diff_ids = _object(config.get("rootfs")).get("diff_ids")
        if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
            raise _damaged("the image's configuration does not list its layers")
        tree = LayerTree()
        try:
            room = UNPACKED_BYTES
            for descriptor, diff_id in zip(layers, diff_ids, strict=True):
                layer = self._layer(descriptor, str(diff_id), room)
                room -= os.fstat(layer.fileno()).st_size
                tree.add_layer(layer)
        except BaseException:
            tree.close()
            raise
        return _Image(tree, _object(config.get("config")))

    def _layer(self, descriptor: Json, diff_id: str, room: int) -> IO[bytes]:
        """A layer, checked and uncompressed, in an unnamed temporary file."""
        media_type = str(descriptor.get("mediaType"))
        match = _LAYER.fullmatch(media_type)
        if match is None:
            raise failure(Status.NOT_SUPPORTED, Stage.DIRECTIVES, f"a layer of type {media_type} cannot be read")
        inner = _Digest(diff_id)
        out = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115 - it lives as long as the image
        try:
            with self._open_blob(descriptor) as blob, _decompressor(match[1] or match[2], blob) as source:
                size = 0
                while chunk := source.read(CHUNK_BYTES):
                    size += len(chunk)
                    if size > room:
                        raise failure(Status.OUT_OF_RANGE, Stage.DIRECTIVES, f"the image unpacks to more than {UNPACKED_BYTES} bytes")
                    inner.update(chunk)
                    out.write(chunk)
                blob.finish()
            inner.check(f"layer {descriptor.get('digest')}, unpacked,")
            out.flush()
        except BaseException as error:
            out.close()
            if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)) or type(error).__name__ in ("ZstdError",):
                raise _damaged(f"layer {descriptor.get('digest')}: {error}") from error
            raise
        return out

    # --- blobs ------------------------------------------------------------------------------------------

    def _blob(self, descriptor: Json) -> bytes:
        with self._open_blob(descriptor, JSON_BYTES) as blob:
            data = blob.read(JSON_BYTES)
            blob.finish()
        return data

    def _open_blob(self, descriptor: Json, limit: int = 1 << 62) -> _Blob:
        digest, size = str(descriptor.get("digest")), descriptor.get("size")
        match = _DIGEST.fullmatch(digest)
        if match is None or not isinstance(size, int) or not 0 <= size <= limit:
            raise _damaged(f"a descriptor with digest {digest!r} and size {size!r}")
        path = f"blobs/{match[1] or match[3]}/{match[2] or match[4]}"
        return _Blob(self._open(path), digest, size)

    def _open(self, path: str) -> IO[bytes]:
        try:
            return open(os.open(path, OPEN_FLAGS, dir_fd=self._fd), "rb")
        except OSError as error:
            # Never NOT_FOUND: that is for names. A blob that is missing is damage.
            raise failure(Status.IO, Stage.DIRECTIVES, f"cannot open {path} of the image layout: {error.strerror}", error.errno) from error

    def _whole(self, path: str, limit: int) -> bytes:
        with self._open(path) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise _damaged(f"{path} is larger than {limit} bytes")
        return data

    @staticmethod
    def _json(data: bytes, what: str) -> Json:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _damaged(f"{what} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise _damaged(f"{what} is not a JSON object")
        return value


class _Digest:
    """A running hash and what it should become."""

    def __init__(self, digest: str) -> None:
        if _DIGEST.fullmatch(digest) is None:
            raise _damaged(f"a digest {digest!r}")
        self.wanted = digest
        self.hash = hashlib.new(digest.partition(":")[0])
        self.update = self.hash.update

    def check(self, what: str) -> None:
        if f"{self.wanted.partition(':')[0]}:{self.hash.hexdigest()}" != self.wanted:
            raise _damaged(f"{what} does not have the digest {self.wanted}")


class _Blob:
    """A blob being read; `finish` proves that what was read is what the descriptor promised."""

    def __init__(self, file: IO[bytes], digest: str, size: int) -> None:
        self._file, self._left, self._digest = file, size, _Digest(digest)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        self._digest.update(data)
        return data

    def finish(self) -> None:
        while self.read(CHUNK_BYTES):  # what a decompressor left over is part of the blob all the same
            pass
        if self._left or self._file.read(1):
            raise _damaged(f"blob {self._digest.wanted} is not of the size its descriptor says")
        self._digest.check("a blob")

    def __enter__(self) -> _Blob:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


class _Plain:
    """A layer that is not compressed."""

    def __init__(self, blob: _Blob) -> None:
        self.read = blob.read

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def _decompressor(compression: str | None, blob: _Blob) -> Any:
    if compression is None:
        return _Plain(blob)
    if compression == "gzip":
        return gzip.GzipFile(fileobj=cast("Any", blob), mode="rb")
    for module, make in (("compression.zstd", "ZstdFile"), ("zstandard", "ZstdDecompressor")):
        try:
            found = getattr(importlib.import_module(module), make)
        except ImportError:
            continue
        return found(blob) if make == "ZstdFile" else found().stream_reader(blob, read_across_frames=True)
    raise failure(Status.NOT_SUPPORTED, Stage.DIRECTIVES, "the image has a zstd layer; that needs Python 3.14 or the module zstandard")


def _program(image: _Image, inner: str, name: str) -> ImageFile:
    """The file that is to run: `inner`, or the first word of what the image's configuration says."""
    config = image.config
    words = [inner] if inner else config.get("Entrypoint") or config.get("Cmd") or []
    if not isinstance(words, list) or not words or not isinstance(words[0], str):
        raise failure(Status.NOT_FOUND, Stage.DIRECTIVES, f"the image {name!r} names no program; write {name}//path/in/image")
    word = words[0]
    if inner:
        places = [f"/{inner}"]
    elif "/" in word:
        places = [posixpath.join("/", str(config.get("WorkingDir") or "/"), word)]
    else:
        env = [entry for entry in config.get("Env") or [] if isinstance(entry, str)]
        search = next((entry[5:] for entry in env if entry.startswith("PATH=")), DEFAULT_PATH)
        places = [f"{directory}/{word}" for directory in search.split(":") if directory.startswith("/")]
    files = [file for file in map(image.tree.file, places) if file is not None]
    if not files:
        raise failure(Status.NOT_FOUND, Stage.DIRECTIVES, f"{word!r} is not in the image {name!r}")
    for file in files:
        if file.mode & 0o111:
            return file
    raise failure(Status.ACCESS_DENIED, Stage.DIRECTIVES, f"{files[0].path} of the image {name!r} is not executable")


def _elf_of(file: ImageFile, name: str) -> ElfImage | None:
    """None for what is no sound ELF: a script is followed, and the rest refused, by whoever runs the loop."""
    try:
        return elf.parse(file.read, file.size, name)
    except SpawnError:
        return None


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _damaged(what: str) -> SpawnError:
    return failure(Status.IO, Stage.DIRECTIVES, f"the image layout is damaged: {what}")
