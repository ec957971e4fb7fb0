"""Importing shoal: what it loads, and where it is not installed as it has to be."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import shoal


def test_an_archive_without_the_core_is_refused_with_what_to_do(tmp_path: Path) -> None:
    package = Path(shoal.__file__).parent
    with zipfile.ZipFile(tmp_path / "shoal.zip", "w") as archive:
        for path in package.rglob("*"):
            archive.write(path, path.relative_to(package.parent))
    code = "import sys; sys.path.insert(0, 'shoal.zip')\ntry: import shoal\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the C core of shoal cannot be loaded from shoal.zip/shoal (")
    assert done.stdout.endswith("; shoal has to be installed with pip, and not in an archive\n")


LAZY = ("shoal", "shoal.handles", "shoal.executor", "shoal.manager")
"""Packages whose names are looked up on first use: shoal.first_use."""
MODULES = {"aio", "executor", "manager", "subprocess"}
"""Those below shoal that are there without being imported by name."""


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_and_programs_see_the_same_names(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    branches = [node for node in ast.parse(Path(module.__file__).read_text()).body if isinstance(node, ast.If)]
    imported = [node for branch in branches for node in branch.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imported for alias in node.names}
    of_ipython = {"load_ipython_extension", "unload_ipython_extension"}  # which it looks up by name, and nobody calls
    assert set(typed) == set(module.__all__) - of_ipython | (MODULES if package == "shoal" else set())
    for name, source in typed.items():
        assert source is not None
        expected = importlib.import_module(f"{source}.{name}") if source == "shoal" else getattr(importlib.import_module(source), name)
        assert getattr(module, name) is expected
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'swapn'"):
        _ = module.swapn


def test_importing_shoal_loads_next_to_nothing_and_all_names_are_there_when_asked_for() -> None:
    code = """\
import sys
before = set(sys.modules)
import shoal
print(*sorted(set(sys.modules) - before))
from shoal import *
print(spawn is shoal.spawn, callable(shoal.spawn), callable(run), cells is shoal.cells, shoal.startup.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"], capture_output=True, text=True, check=True
    )
    loaded, told = done.stdout.splitlines()
    assert {name for name in loaded.split() if name.startswith("shoal")} == {"shoal", "shoal._native", "shoal.first_use"}
    assert not {"dataclasses", "socket", "threading", "subprocess"}.intersection(loaded.split())
    assert told == "True True True True shoal.startup"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_is_there_without_being_imported_by_name(name: str) -> None:
    code = f"import sys, shoal\nbefore = 'shoal.{name}' in sys.modules\nprint(before, shoal.{name}.__name__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"False shoal.{name}\n"


def test_a_function_is_not_replaced_by_a_module_of_its_name() -> None:
    """What is imported below a package becomes an attribute of it."""
    code = """\
import shoal, shoal.aio, shoal.cli.run, shoal.manager.client, shoal.subprocess
print(*(type(getattr(shoal, name)).__name__ for name in shoal.__all__ if name[0].islower()))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split().count("module") == 2, done.stdout  # cells and startup
