"""What a call sees of the interpreter: its installation and packages, read-only, so that what was not loaded before still can be.

Besides what the box grants. Directories are granted as they are: a prefix such as /opt/python or a virtual environment as a whole, of
/usr and /usr/local what belongs to Python and the shared libraries that extension modules need.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from types import ModuleType

from shoal.sandbox.grants import Grant, Kind, View, is_inside

SHARED_PREFIXES = ("/", "/usr", "/usr/local")
"""Where more is installed than an interpreter."""
PLACE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""Where shoal itself is found."""
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")


def interpreter_grants() -> tuple[Grant, ...]:
    """What is granted for this interpreter, outermost directories only."""
    wanted = {prefix for prefix in _prefixes() if os.path.realpath(prefix) not in SHARED_PREFIXES}
    wanted.update(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    wanted.update(path for path in sys.path if path and _is_packages(path))
    wanted.update(LIBRARIES)
    wanted.add(os.path.join(PLACE, "shoal"))
    wanted.add(os.path.realpath(sys.executable))
    existing = {os.path.normpath(path) for path in wanted if path and os.path.exists(path)}
    found: dict[str, Grant] = {}
    for path in sorted(existing | {os.path.realpath(path) for path in existing}):
        if not any(is_inside(path, other) and grant.source == other for other, grant in found.items()):
            found[path] = Grant(Kind.PATH, path, os.path.realpath(path), asked=False)
    return tuple(found.values())


def _prefixes() -> set[str]:
    return {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}


def _is_packages(path: str) -> bool:
    """Whether this entry of sys.path is where packages are installed, and not somebody's own directory."""
    known = {os.path.realpath(found) for found in [*site.getsitepackages(), site.getusersitepackages()]}
    return os.path.realpath(path) in known or os.path.basename(path) in ("site-packages", "dist-packages")


def visible_path(view: View, path: Iterable[str]) -> tuple[str, ...]:
    """The entries of a module search path that a call can see, and not only something below."""
    found = [entry for entry in path if os.path.isabs(entry) and view.missing(entry) is None and view.host_path(entry) is not None]
    return (*found, *([] if PLACE in found else [PLACE]))


def out_of_sight(modules: Iterable[tuple[str, ModuleType]], path: Iterable[str], loaded: frozenset[str]) -> set[str]:
    """Packages and modules that a call could not import: what is in them has to go along by value.

    Args:
        modules: loaded here, by name.
        path: what a call searches; loaded: what is loaded there already.
    """
    known = tuple(os.path.realpath(entry) for entry in path)
    found = set()
    for name, module in modules:
        top = name.partition(".")[0]
        if top in found or top in loaded or top in ("__main__", "__mp_main__"):
            continue
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and not any(is_inside(os.path.realpath(file), entry) for entry in known):
            found.add(top)
    return found
