"""Fixtures of the tests of cells made ahead, and of calls."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rig.cells import PRELUDE, Watched
from rig.domains import manager, state  # noqa: F401

from shoal import SandboxExecutor, cells


@pytest.fixture
def watched(cell: Any) -> Watched:
    return Watched(cell)


@pytest.fixture
def as_many_as_ever() -> Iterator[None]:
    yield
    cells.limit(cells.KEPT)


@pytest.fixture
def script(run_python: Callable[..., Any]) -> Callable[..., Any]:
    """Run a script in an interpreter of its own, with all that is needed to launch and to watch. `first` runs before shoal is there."""
    return lambda text, *args, first="", **how: run_python(first + PRELUDE + text, *args, **how)


@pytest.fixture(scope="module")
def ex() -> Iterator[SandboxExecutor]:
    """An executor with numpy loaded."""
    with SandboxExecutor(preload=["numpy"], max_workers=3, warm=2) as executor:
        yield executor
