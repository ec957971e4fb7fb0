"""Fixtures of the attacks: the grounds they are made on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import LANDLOCK, SECRET, Ground, build

from shoal.probe import landlock_abi

CELLS = {"own-user": {"user": "dynamic"}, "callers-user": {"user": "caller"}} if os.geteuid() == 0 else {"callers-user": {}}
WITHOUT_CELL = {"landlock": {LANDLOCK: 99}, "landlock-5": {LANDLOCK: 5}, "landlock-1": {LANDLOCK: 1}}
TIERS = {**CELLS, **(WITHOUT_CELL if landlock_abi() else {})}
"""As whom the program runs: started by root, as a user of its own, or as root without capabilities; else as the caller. In a cell, or
without one where the kernel has Landlock."""


@pytest.fixture(scope="session")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of the attacks."""
    return build(tmp_path_factory.mktemp("attacks"))


@pytest.fixture
def outside(attacks: str) -> Ground:
    """Without confinement: a plain child of this process."""
    return Ground(attacks)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every attack is made in every tier, unless what it asserts is of a cell."""
    if "inside" in metafunc.fixturenames:
        only_cells = any(metafunc.definition.iter_markers("cell"))
        metafunc.parametrize("inside", CELLS if only_cells else TIERS, indirect=True)
    if "landlocked" in metafunc.fixturenames:
        metafunc.parametrize("landlocked", [name for name in TIERS if name not in CELLS], indirect=True)


@pytest.fixture
def inside(request: pytest.FixtureRequest, attacks: str) -> Ground:
    """In a sandbox, for each tier."""
    return Ground(attacks, TIERS[request.param])


@pytest.fixture
def landlocked(request: pytest.FixtureRequest, attacks: str) -> Ground:
    """In a sandbox without a cell, with as much of Landlock as kernels of different ages know."""
    return Ground(attacks, TIERS[request.param])


@pytest.fixture
def target(outside: Ground) -> Iterator[tuple[int, int]]:
    """A process of the same user outside, its pid and where its secret lies in its memory. It is unharmed in the end."""
    with outside.held(verb=("target",), expect=1) as held:
        _, pid, address = held.lines[0]
        yield int(pid), int(address)
        held.let_go()
        assert held.line() == ["unharmed", SECRET.decode()]


@pytest.fixture
def run_attacks(attacks: str, run_python: Callable[..., Any]) -> Callable[..., Any]:
    """As run_python, for a script that makes attacks itself: `workload` is their program."""
    preamble = f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nworkload = {attacks!r}\n"

    def run(script: str, *args: Any, **how: Any) -> Any:
        return run_python(preamble + script, *args, **how)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory that every user may enter."""
    at = tmp_path / "open"
    at.mkdir(mode=0o755)
    return at


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A directory that every user can reach, which is not so of those that pytest makes."""
    with tempfile.TemporaryDirectory(prefix="escapes-", dir="/tmp") as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@pytest.fixture
def make_open() -> Iterator[Callable[..., int]]:
    """Opens files that are closed after the test."""
    made: list[int] = []

    def make(path: str | Path, flags: int = os.O_RDONLY) -> int:
        made.append(os.open(path, flags))
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)
