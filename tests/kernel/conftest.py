"""Fixtures of the tests of cells made ahead, of calls, and of event loops."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rig.cells import PRELUDE, Watched
from rig.domains import manager, state  # noqa: F401
from rig.loops import BACKENDS, Backend, InLoop

from shoal import Sandbox, SandboxExecutor, aio, cells


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


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """Every loop there is; anyio's own tests run on this one, too."""
    backend: Backend = request.param
    return backend


@pytest.fixture(scope="session")
def loops_that_have_run() -> None:
    """What is opened once and kept is open: the libraries' own descriptors, and shoal's."""
    limited = Sandbox(cpu_time=60, limits="best-effort")
    for parameter in BACKENDS:
        if not any(mark.name == "skipif" and mark.args[0] for mark in parameter.marks):
            for box in (None, limited, False, False):
                InLoop(*parameter.values)(lambda box=box: aio.run(["/usr/bin/true"], sandbox=box))  # type: ignore[misc]


@pytest.fixture
def in_loop(anyio_backend: Backend) -> InLoop:
    """Run a coroutine function in a loop of each kind."""
    return InLoop(anyio_backend)
