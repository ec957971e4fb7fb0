"""What a dynamic linker searches, and in which order: glibc's and musl's rules as data and pure functions.

Called by: closure. Touches: the interpreter, /etc/ld.so.cache and musl's path file, through a FileTree.
LD_LIBRARY_PATH, LD_PRELOAD and /etc/ld.so.preload are not consulted: the first two belong to the child's environment and
are the caller's business, the third does not exist in a child's world.
Not followed either: DT_AUDIT (a missing audit library is no error to glibc), and paths relative to a working directory,
because the child's is not ours.
Source: glibc's elf/dl-load.c (_dl_map_object), elf/dl-hwcaps.c, ld.so(8); musl's ldso/dynlink.c (load_library,
fixup_rpath); x86-64 psABI for the micro-architecture levels.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from shoal.loader import ldcache
from shoal.loader.cache import BoundedCache, FileIdentity
from shoal.loader.elf import MACHINES, ElfImage
from shoal.loader.ldcache import LdCache
from shoal.loader.tree import HOST, FileTree

LD_SO_CACHE = "/etc/ld.so.cache"
LINKER_BYTES = 16 << 20
DIRECTORY_BYTES = 512
MUSL_PATH_BYTES = 1 << 16
MUSL_DIRECTORIES = ("/lib", "/usr/local/lib", "/usr/lib")
MUSL_RESERVED = ("libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet.")
"""Names that musl answers with itself, whatever follows the dot."""

# glibc keeps its default directories as one run of NUL-terminated strings, each ending in a slash. Reading them there is right on
# every distribution (Debian's triplets, Fedora's lib64, a store of one's own), which no table of ours would be.
_SYSTEM_DIRS = rb"(?:/(?:[!-.0-9;-~]+/)*lib[!-.0-9;-~]*/(?:[!-.0-9;-~]+/)*\0)+"
_TOKEN = r"\$(?:(ORIGIN|LIB|PLATFORM)|\{(ORIGIN|LIB|PLATFORM)\})"

_LEVELS = (
    ("x86-64-v2", "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"),
    ("x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)


class Linker(NamedTuple):
    """One dynamic linker, ready to be asked where it would look."""

    musl: bool
    defaults: tuple[str, ...]
    """Directories it searches by itself, best first. They hold in the child's world too."""
    configured: tuple[str, ...]
    """Directories it searches on this system only: musl's path file."""
    cache: LdCache
    machine: int
    names: frozenset[str]
    """Needed names that mean the linker itself."""
    sources: tuple[str, ...]
    """Files that decided the above; when one changes, so may the answers."""

    @property
    def lib(self) -> str:
        """What $LIB stands for."""
        first = self.defaults[0]
        return first[first.index("/lib") + 1 :] if "/lib" in first else "lib"

    def hwcaps(self) -> tuple[str, ...]:
        """Levels of glibc-hwcaps that this processor has, best first. Asked for only where there are variants to choose from."""
        return hwcaps_levels() if self.machine == MACHINES["x86_64"] and not self.musl else ()

    def is_itself(self, name: str) -> bool:
        """True when the needed `name` is answered without any search."""
        return name in self.names or (self.musl and name.startswith(MUSL_RESERVED))

    def entries(self, search_path: str) -> list[str]:
        """The single directories of an RPATH or RUNPATH."""
        if not self.musl:
            return search_path.split(":")
        # musl drops the whole path when it holds a token other than $ORIGIN.
        if "$" in re.sub(_TOKEN, lambda token: "" if "ORIGIN" in token[0] else "$", search_path):
            return []
        return re.split("[:\n]", search_path)


def expand(linker: Linker, text: str, origin: str | None, platform: str) -> tuple[str | None, bool]:
    """Replace $ORIGIN, $LIB and $PLATFORM.

    Returns the text (None when it needs an origin that is not known) and whether the child's linker is sure to arrive at
    the same text: $PLATFORM may be a processor's code name there, and glibc asks the processor.
    """
    if "$" not in text:
        return text, True
    tokens = {token[1] or token[2] for token in re.finditer(_TOKEN, text)}
    if "ORIGIN" in tokens and origin is None:
        return None, False
    values = {"ORIGIN": origin or "", "LIB": linker.lib, "PLATFORM": platform}
    return re.sub(_TOKEN, lambda token: values[token[1] or token[2]], text), "PLATFORM" not in tokens


def describe(tree: FileTree, path: str, identity: FileIdentity, image: ElfImage) -> Linker:
    """The linker at `path`, which is the interpreter some program of `image`'s machine names."""
    base = os.path.basename(path)
    if base.startswith("ld-musl-"):
        return _musl(tree, path, base, image)
    defaults = _system_dirs(tree, path, identity, image.machine)
    cache = _ld_cache(tree, image.machine)
    names = frozenset(name for name in (path, base, image.soname) if name)
    return Linker(False, defaults, (), cache, image.machine, names, (LD_SO_CACHE,))


def _musl(tree: FileTree, path: str, base: str, image: ElfImage) -> Linker:
    # The path file lies beside the linker's own prefix: /lib/ld-musl-x86_64.so.1 and /etc/ld-musl-x86_64.path.
    prefix = os.path.dirname(os.path.dirname(path)).rstrip("/")
    file = f"{prefix}/etc/{base.partition('.so')[0]}.path"
    data = tree.read(file, MUSL_PATH_BYTES)
    text = (data or b"").decode("utf-8", "surrogateescape")
    configured = tuple(entry for entry in re.split("[:\n]", text) if entry.startswith("/"))
    # With a path file musl searches its entries *instead of* its defaults; in the child, where there is none, the defaults.
    configured = configured if data is not None else MUSL_DIRECTORIES
    names = frozenset((path, base))
    return Linker(True, MUSL_DIRECTORIES, configured, ldcache.EMPTY, image.machine, names, (file,))


_dirs_by_linker: BoundedCache[FileIdentity, tuple[str, ...]] = BoundedCache(16)
_ld_caches: BoundedCache[tuple[FileIdentity, int], LdCache] = BoundedCache(4)


def _system_dirs(tree: FileTree, path: str, identity: FileIdentity, machine: int) -> tuple[str, ...]:
    known = _dirs_by_linker.get(identity) if tree is HOST else None
    if known is not None:
        return known
    best = max(_runs(tree.read(path, LINKER_BYTES) or b""), key=len, default=[])
    dirs = tuple(os.fsdecode(entry.rstrip(b"/")) for entry in best) or _usual_dirs(machine)
    if tree is HOST and identity.is_settled():
        _dirs_by_linker.put(identity, dirs)
    return dirs


def _runs(data: bytes) -> Iterator[list[bytes]]:
    """Every run of directory names in a linker."""
    # Few places end like a directory does, and finding those first is a hundred times faster than trying everywhere.
    system_dirs = re.compile(_SYSTEM_DIRS)
    end, at = 0, data.find(b"/\0")
    while at >= 0:
        start = max(end, at - DIRECTORY_BYTES)
        end = at + 2
        while (at := data.find(b"/\0", end)) >= 0 and at - end < DIRECTORY_BYTES:
            end = at + 2
        for run in system_dirs.finditer(data, start, end):
            yield run[0].rstrip(b"\0").split(b"\0")


def _usual_dirs(machine: int) -> tuple[str, ...]:
    # For a linker that hides its directories (packed, or not glibc at all): everything the common distributions use.
    name = {number: name for name, number in MACHINES.items()}.get(machine, "x86_64")
    triplet = f"{name}-linux-gnu"
    return (f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib")


def _ld_cache(tree: FileTree, machine: int) -> LdCache:
    identity = tree.find(LD_SO_CACHE)
    if identity is None:
        return ldcache.EMPTY
    known = _ld_caches.get((identity, machine)) if tree is HOST else None
    if known is None:
        known = ldcache.parse(tree.read(LD_SO_CACHE, ldcache.CACHE_BYTES) or b"", machine)
        if tree is HOST and identity.is_settled():
            _ld_caches.put((identity, machine), known)
    return known


@functools.cache
def hwcaps_levels() -> tuple[str, ...]:
    """The x86-64 levels of this processor, best first. Without /proc none: the plain libraries always work."""
    try:
        with open("/proc/cpuinfo", "rb", buffering=0) as file:
            text = file.read(4096).decode("ascii", "replace")  # the first processor; they are alike
    except OSError:
        return ()
    return levels_of(text)


def levels_of(cpuinfo: str) -> tuple[str, ...]:
    """The levels that the flags of a /proc/cpuinfo text amount to."""
    match = re.search(r"^flags\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    levels: list[str] = []
    for level, needs in _LEVELS:
        if not flags.issuperset(needs.split()):
            break
        levels.insert(0, level)
    return tuple(levels)
