"""Fixtures for tests that need the controllers of cgroup v2: memory, pids and cpu, to be handed on to groups of our own.

The group of this session has to be one that nobody else lives in. So it is in the virtual machine (see README.md);
elsewhere the tests are skipped, and the skip says what is in the way.
"""

from __future__ import annotations

import itertools
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import groups
import pytest

from shoal import Job, SpawnError

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def delegation() -> Path:
    """The group of this session, once it hands on the controllers."""
    try:
        with Job.default() as default, default.create_child() as job:
            job.set_limits(memory="1G", pids=100_000, cpus=64)
            return groups.path_of(default)
    except SpawnError as error:
        pytest.skip(f"needs a cgroup v2 group with controllers and nobody else in it: {error}")


@pytest.fixture
def job(delegation: Path) -> Iterator[Job]:
    """A job that can have limits."""
    assert delegation.is_dir()
    with Job.default() as default, default.create_child() as made:
        yield made
        made.kill()
        made.wait_empty(groups.PATIENCE_S)


@pytest.fixture
def group(delegation: Path) -> Iterator[Path]:
    """A group that shoal has not made, in which nothing lives and nothing is switched on: the home of a program to come."""
    path = delegation / f"test-{os.getpid()}-{next(_numbers)}"
    path.mkdir()
    yield path
    groups.remove(path)


@pytest.fixture
def run_inside(run_python: Callable[..., Any]) -> Callable[..., Any]:
    """As run_python, for an interpreter that lives in the group given, as the user `uid` when that is given."""

    def run(group: Path, script: str, *args: Any, uid: int | None = None) -> Any:
        enter = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group))
        become = () if uid is None else ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all")
        preamble = f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport groups, shoal\nfrom shoal import Job, SpawnFlags\n"
        return run_python(preamble + script, *args, prefix=(*enter, *become))

    return run


@pytest.fixture
def stranger() -> Iterator[Callable[[Path], int]]:
    """Puts a process into a group that is not the business of any program started there. Returns its pid."""
    started = []

    def start(group: Path) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    select.select([], [], [])
            finally:
                os._exit(1)
        started.append(pid)
        (group / "cgroup.procs").write_text(str(pid))
        return pid

    yield start
    for pid in started:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
