"""Names of a package that are looked up when they are first used: importing it then costs next to nothing (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping


def names(
    package: str, places: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` for the package.

    For type checkers the same names are imported under `if TYPE_CHECKING`.

    Args:
        places: module: its names. A module without any is a name itself.
        modules: of the package, that are found in it as well, and that `from package import *` leaves out: they take libraries.
    """
    where = {name: module for module, given in places.items() for name in given or (module.rpartition(".")[2],)}
    below = {name: f"{package}.{name}" for name in modules}

    def find(name: str) -> object:
        if name not in where and name not in below:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib

        place = where.get(name) or below[name]
        module = importlib.import_module(place)
        value: object = getattr(module, name) if places.get(place) else module
        setattr(sys.modules[package], name, value)
        return value

    def known() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where, *below})

    return find, known, sorted(where)
