"""The library closure: the ELF interpreter and the transitive DT_NEEDED libraries, as the dynamic linker would find them.

Called by: executable (the host's files), oci (an image's). Touches: files, through a FileTree.
Two paths per library. `path` is where it is here. `inside` is where the child's linker will look for it in a world that has no
ld.so.cache, no symbolic links, and a program without a visible path. So:
- found through an absolute RPATH or RUNPATH, or in a default directory: `inside` is that very path;
- found only through ld.so.cache (or musl's path file) in some other directory, or through something the child's linker cannot
  repeat (the program's own $ORIGIN, $PLATFORM, a `..` through a directory that will not exist there): `inside` is a default
  directory, under the name that is asked for. Linkers search by that name only, so nothing else can be hit first.
A library that was moved so has another $ORIGIN in the child; what is found through it moves as well.
Open question: two libraries that refer to each other's data by $ORIGIN at run time (plug-ins) are not seen by anyone before
they run; should a sandbox offer the whole directory instead?
Source: DESIGN section 1 (DEFAULT_LDSVC); glibc's elf/dl-deps.c for the breadth-first order and elf/dl-load.c for what is the same library.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from shoal.loader.cache import BoundedCache, FileIdentity, are_as_they_were
from shoal.loader.elf import ElfImage, ForeignElfError
from shoal.loader.linker import Linker, describe, expand
from shoal.loader.tree import HOST, FileTree
from shoal.status import SpawnError, Stage, Status, failure

MAX_LIBRARIES = 4096


class Library(NamedTuple):
    """One file the child's dynamic linker will open (or, for the interpreter, the kernel)."""

    inside: str
    """Absolute path in the child's world."""
    path: str
    """Where the file is, in the tree that was searched."""
    identity: FileIdentity
    """What was seen there; compare after opening."""


class Closure:
    """All that a dynamic program needs before its first instruction, in the order the linker would load it."""

    __slots__ = ("interpreter", "libraries")

    def __init__(self, interpreter: Library, libraries: tuple[Library, ...]) -> None:
        self.interpreter = interpreter
        self.libraries = libraries

    def __iter__(self) -> Iterator[Library]:
        yield self.interpreter
        yield from self.libraries


class _Object(NamedTuple):
    """A loaded object while the search runs. `origin` is None when it cannot be told; `moved`: the child sees another one."""

    label: str
    image: ElfImage
    origin: str | None
    moved: bool
    loader: _Object | None
    inside: str = ""


class _Candidate(NamedTuple):
    path: str
    inside: str | None
    """None: only a default directory can serve it."""


class _Found(NamedTuple):
    name: str
    path: str
    inside: str | None
    identity: FileIdentity
    needed_by: _Object


class _Search:
    """One run. Collects in `watched` everything whose change could change the answer."""

    def __init__(self, tree: FileTree, linker: Linker, platform: str, interpreter: Library) -> None:
        self.tree, self.linker, self.platform = tree, linker, platform
        self.watched: dict[str, FileIdentity | None] = {interpreter.path: interpreter.identity}
        self.names: set[str] = set()
        self.files = {interpreter.identity[:2]}
        self.found: list[_Found] = []
        self.subdirectories: dict[str, tuple[str, ...]] = {}

    def run(self, program: _Object) -> None:
        queue = deque([program])
        while queue:
            needing = queue.popleft()
            image = needing.image
            for name in (*image.filters, *image.needed):
                queue.extend(self.load(needing, name, required=True))
            for name in image.auxiliary:
                queue.extend(self.load(needing, name, required=False))

    def load(self, needing: _Object, name: str, required: bool) -> list[_Object]:
        """Find `name` unless it is there already; the new object, if there is one."""
        if name in self.names or self.linker.is_itself(name):
            return []
        self.names.add(name)
        for candidate in self.candidates(needing, name):
            identity = self.tree.find(candidate.path)
            if identity is None:
                continue
            try:
                image = self.tree.image(candidate.path, identity)
            except ForeignElfError:
                continue
            except SpawnError as error:
                what = f"{needing.label} needs the library {name}: {error.detail}"
                raise failure(_blamed(error), Stage.LOADER, what, error.errno) from error
            return self.accept(needing, name, candidate, identity, image)
        if not required:
            self.names.discard(name)
            return []
        raise failure(Status.INTERNAL, Stage.LOADER, f"the library {name}, needed by {needing.label}, cannot be found")

    def accept(self, needing: _Object, name: str, candidate: _Candidate, identity: FileIdentity, image: ElfImage) -> list[_Object]:
        if len(self.found) >= MAX_LIBRARIES:
            raise failure(Status.INTERNAL, Stage.LOADER, f"{needing.label} needs more than {MAX_LIBRARIES} libraries")
        if candidate.inside is None and needing.image.no_default_libraries and not self.linker.musl:
            why = f"cannot be given to {needing.label}: it refuses default directories (DF_1_NODEFLIB)"
            raise failure(Status.INTERNAL, Stage.LOADER, f"the library {name}, found at {candidate.path}, {why}")
        self.watched[candidate.path] = identity
        self.found.append(_Found(name, candidate.path, candidate.inside, identity, needing))
        self.names.add(candidate.path)
        # A second name of a file already loaded must exist for the search to succeed, but brings nothing new.
        if identity[:2] in self.files:
            return []
        self.files.add(identity[:2])
        if image.soname and not self.linker.musl:  # musl knows libraries by the names they were asked for, glibc by SONAME too
            self.names.add(image.soname)
        moved = candidate.inside is None
        return [_Object(candidate.path, image, os.path.dirname(candidate.path), moved, needing, candidate.inside or "")]

    def candidates(self, needing: _Object, name: str) -> Iterator[_Candidate]:
        if "/" in name:
            yield from self.by_path(needing, name)
        elif self.linker.musl:
            yield from self.as_musl(needing, name)
        else:
            yield from self.as_glibc(needing, name)

    def by_path(self, needing: _Object, name: str) -> Iterator[_Candidate]:
        text, sure = expand(self.linker, name, needing.origin, self.platform)
        # A relative one is relative to a working directory, and the child's is not known here.
        inside = self.repeatable(text, needing, name) if text is not None and sure and text.startswith("/") else None
        if text is None or inside is None:
            # No linker searches for a name with a slash, so it cannot be served from a default directory.
            why = f"needed by {needing.label}, has no path that holds in the child"
            raise failure(Status.INTERNAL, Stage.LOADER, f"the library {name}, {why}")
        yield _Candidate(text, inside)

    def as_glibc(self, needing: _Object, name: str) -> Iterator[_Candidate]:
        if needing.image.runpath is None:
            above: _Object | None = needing
            while above is not None:  # RPATH, unlike RUNPATH, is inherited along the chain of loaders
                if above.image.rpath is not None:
                    yield from self.along(above, above.image.rpath, name)
                above = above.loader
        else:
            yield from self.along(needing, needing.image.runpath, name)
        only_named = needing.image.no_default_libraries
        cached = self.linker.cache.lookup(name, self.linker.hwcaps)
        if cached is not None:
            default = self.is_default(cached)
            if not (default and only_named):
                yield _Candidate(cached, cached if default else None)
        if not only_named:
            for directory in self.linker.defaults:
                yield from self.within(directory, name, directory)

    def as_musl(self, needing: _Object, name: str) -> Iterator[_Candidate]:
        above: _Object | None = needing
        while above is not None:  # musl makes no difference between RPATH and RUNPATH: both are inherited
            path = above.image.runpath if above.image.runpath is not None else above.image.rpath
            if path is not None:
                yield from self.along(above, path, name)
            above = above.loader
        for directory in self.linker.configured:
            yield from self.within(directory, name, directory if directory in self.linker.defaults else None)

    def along(self, owner: _Object, search_path: str, name: str) -> Iterator[_Candidate]:
        for entry in self.linker.entries(search_path):
            text, sure = expand(self.linker, entry, owner.origin, self.platform)
            if text is None or not text.startswith("/"):
                continue  # the empty entry too: it stands for the working directory
            directory = text.rstrip("/")
            yield from self.within(directory, name, self.repeatable(directory, owner, entry) if sure else None)

    def within(self, directory: str, name: str, inside: str | None) -> Iterator[_Candidate]:
        """The places in one directory: those for this processor first."""
        if directory not in self.subdirectories:
            self.watched[directory or "/"] = self.tree.watch(directory or "/")
            self.subdirectories[directory] = tuple(self.hwcaps_of(directory))
        for sub in (*self.subdirectories[directory], ""):
            yield _Candidate(f"{directory}{sub}/{name}", None if inside is None else f"{inside}{sub}/{name}")

    def hwcaps_of(self, directory: str) -> Iterator[str]:
        if self.linker.musl or self.tree.watch(f"{directory}/glibc-hwcaps") is None:
            return
        self.watched[f"{directory}/glibc-hwcaps"] = self.tree.watch(f"{directory}/glibc-hwcaps")
        for level in self.linker.hwcaps():
            sub = f"/glibc-hwcaps/{level}"
            self.watched[directory + sub] = self.tree.watch(directory + sub)
            yield sub

    def is_default(self, path: str) -> bool:
        directory = os.path.dirname(path)
        parent, _, level = directory.rpartition("/glibc-hwcaps/")
        return directory in self.linker.defaults or (parent in self.linker.defaults and level in self.linker.hwcaps())

    def repeatable(self, text: str, owner: _Object, written: str) -> str | None:
        """The same place in the child, or None when its linker would not get there from what is `written` in `owner`."""
        if "ORIGIN" in written and owner.moved:
            return None
        here: list[str] = []
        for part in text.split("/"):
            if part == "..":
                # Only a directory that exists can be left again; besides the owner's own ones, none is sure to.
                if here and not owner.inside.startswith("/" + "/".join(here) + "/"):
                    return None
                del here[-1:]
            elif part not in ("", "."):
                here.append(part)
        return "/" + "/".join(here) if here else ""


def _place(search: _Search, interpreter: Library) -> tuple[Library, ...]:
    """Give every library its `inside`; those without one of their own go where libc is."""
    defaults = search.linker.defaults
    beside_libc = (os.path.dirname(item.inside) for item in search.found if item.name == "libc.so.6" and item.inside)
    directory = next((place for place in beside_libc if place in defaults), defaults[0])
    placed: dict[str, Library] = {interpreter.inside: interpreter}
    for item in search.found:
        inside = item.inside or f"{directory}/{item.name}"
        other = placed.setdefault(inside, Library(inside, item.path, item.identity))
        if other.identity[:2] != item.identity[:2]:
            # Possible only where links make one path of the child out of two of ours.
            why = f"would both be {inside} for the child ({item.name}, needed by {item.needed_by.label})"
            raise failure(Status.INTERNAL, Stage.LOADER, f"the libraries {other.path} and {item.path} {why}")
    return tuple(library for library in placed.values() if library is not interpreter)


def _blamed(error: SpawnError) -> Status:
    """INTERNAL, since what is wrong is not the path given to spawn; but what this process lacks says nothing about a library."""
    return error.status if error.status in (Status.NO_RESOURCES, Status.NO_MEMORY) else Status.INTERNAL


def search_closure(image: ElfImage, name: str, origin: str | None, tree: FileTree) -> tuple[Closure, dict[str, FileIdentity | None]]:
    """The closure of a dynamic program, and what must stay unchanged for it to stay true.

    Args:
        image: the program; it has an interpreter.
        name: how messages call it.
        origin: the directory the program really is in, for $ORIGIN; None when it has none (a program in memory).
        tree: the files to search.
    Raises:
        InternalError: the interpreter or a library is missing or unusable; stage LOADER, naming it and who needs it.
    """
    path = image.interpreter
    if path is None:
        raise ValueError("a static program has no closure")
    if not path.startswith("/") or ".." in path.split("/"):
        raise failure(Status.INTERNAL, Stage.LOADER, f"the ELF interpreter {path} of {name} has no absolute, plain path")
    identity = tree.find(path)
    if identity is None:
        raise failure(Status.INTERNAL, Stage.LOADER, f"the ELF interpreter {path} of {name} cannot be found")
    try:
        linker = describe(tree, path, identity, tree.image(path, identity))
    except SpawnError as error:
        what = f"the ELF interpreter of {name} is unusable: {error.detail}"
        raise failure(_blamed(error), Stage.LOADER, what, error.errno) from error
    interpreter = Library(os.path.normpath(path), path, identity)
    search = _Search(tree, linker, image.platform, interpreter)
    for source in linker.sources:
        search.watched[source] = tree.watch(source)
    # The program itself counts as moved: its world shows no path of it, so its own $ORIGIN leads nowhere there.
    search.run(_Object(name, image, origin, moved=True, loader=None))
    return Closure(interpreter, _place(search, interpreter)), search.watched


_Remembered = tuple[Closure, tuple[tuple[str, FileIdentity | None], ...]]
_closures: BoundedCache[tuple[FileIdentity, str | None], _Remembered] = BoundedCache(512)


def host_closure(image: ElfImage, identity: FileIdentity | None, name: str, origin: str | None) -> Closure:
    """The closure over the host's files, remembered while nothing it rests on changes.

    A remembered closure is checked at each call: every library, the interpreter, ld.so.cache (or musl's path file), and every
    directory where something was looked for on the way, must have the identity they had; directories, because a
    library put in front of another changes no library. That is 3 stat calls for an ordinary program.

    Args:
        identity: the program's; None when nothing can be remembered under it.
    Raises: as `search_closure`.
    """
    if not uses_origin(image):
        origin = None  # so that all names of one program share an entry
    key = None if identity is None else (identity, origin)
    known = _closures.get(key) if key is not None else None
    if known is not None and are_as_they_were(known[1]):
        return known[0]
    closure, watched = search_closure(image, name, origin, HOST)
    if key is not None and key[0].is_settled() and all(seen is None or seen.is_settled() for seen in watched.values()):
        _closures.put(key, (closure, tuple(watched.items())))
    return closure


def watched_files(image: ElfImage, identity: FileIdentity | None, closure: Closure) -> tuple[tuple[str, FileIdentity | None], ...] | None:
    """The files that `closure` stands and falls with; None where it is not remembered, or where the program is decides about it, too."""
    known = None if identity is None or uses_origin(image) else _closures.get((identity, None))
    return known[1] if known is not None and known[0] is closure else None


def uses_origin(image: ElfImage) -> bool:
    """True when the place of the program decides about its libraries."""
    return any("ORIGIN" in text for text in (image.rpath or "", image.runpath or "", *image.needed, *image.filters, *image.auxiliary))
