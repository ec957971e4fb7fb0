"""Names of a package that are looked up when they are first used: importing it then costs next to nothing (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping


def names(package: str, places: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` for the package.

    For type checkers the same names are imported under `if TYPE_CHECKING`.

    Args:
        places: module: its names. A module without any is a name itself.
    """
    where = {name: module for module, given in places.items() for name in given or (module.rpartition(".")[2],)}

    def find(name: str) -> object:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib

        module = importlib.import_module(where[name])
        value: object = getattr(module, name) if places[where[name]] else module
        setattr(sys.modules[package], name, value)
        return value

    def known() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where})

    return find, known, sorted(where)
