"""Fixtures of the attacks: the grounds they are made on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import Ground, build

TIERS = {"own-user": {"user": "dynamic"}, "callers-user": {"user": "caller"}} if os.geteuid() == 0 else {"callers-user": {}}
"""As whom the program runs: started by root, as a user of its own, or as root without capabilities; else as the caller."""


@pytest.fixture(scope="session")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of the attacks."""
    return build(tmp_path_factory.mktemp("attacks"))


@pytest.fixture
def outside(attacks: str) -> Ground:
    """Without confinement: a plain child of this process."""
    return Ground(attacks)


@pytest.fixture(params=TIERS)
def inside(request: pytest.FixtureRequest, attacks: str) -> Ground:
    """In a sandbox, for each tier."""
    return Ground(attacks, TIERS[request.param])


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
