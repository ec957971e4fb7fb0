"""Fixtures for all tests: real programs on a real kernel, and a world that must be as it was.

See rig/ for what they are made of. Settings of pytest itself are in pyproject.toml.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest
from rig.features import has
from rig.launchers import LAUNCHERS, Launcher, make_launcher
from rig.workload import PATIENCE_S, build_workload, is_open
from rig.world import World

from shoal import NetNs, SetName, SpawnError, SpawnFlags

WARM_UP = SpawnFlags.CLONE_UTC_CLOCK | SpawnFlags.CLONE_JOB
PATH = os.pathsep.join(entry for entry in sys.path if entry)

hypothesis.settings.register_profile(
    "shoal",
    deadline=None,  # a spawn on a busy machine is slow now and then; that is no failure of the property
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("shoal")


def pytest_configure() -> None:
    # Who is started in the background by a script ignores these, as would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root") and not has("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_collection_finish() -> None:
    # What is there by now stays, and is not to be gone through by each test that looks for handles which nobody refers to.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TMPDIR of this session's own, so that a forgotten file can only be ours."""
    folder = tmp_path_factory.mktemp("tmp")
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
    return folder


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The static workload: needs nothing to run.

    It has run once in every way already, so that what shoal opens once and keeps (the program of a cell's first process,
    the place for names, the clock, the default job) is there before a test looks at descriptors.
    """
    path = build_workload(tmp_path_factory.mktemp("bin"), static=True)
    for name in LAUNCHERS:
        with make_launcher(name)(path, ["workload"], flags=WARM_UP, actions=[SetName("warm-up")]) as process:
            process.wait(timeout=PATIENCE_S)
    return path


@pytest.fixture(scope="session")
def workload_dynamic(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same program with an ELF interpreter and a shared libc."""
    return build_workload(tmp_path_factory.mktemp("bin"), static=False)


@pytest.fixture
def launch(request: pytest.FixtureRequest) -> Iterator[Launcher]:
    """One way to start a program; see rig/launchers.py."""
    launcher = make_launcher(request.param)
    yield launcher
    launcher.clean_up()


@pytest.fixture
def cell() -> Iterator[Launcher]:
    """Starts programs in an empty world."""
    launcher = make_launcher("cell")
    yield launcher
    launcher.clean_up()


@pytest.fixture
def direct() -> Iterator[Launcher]:
    """Starts programs in the caller's world."""
    launcher = make_launcher("direct")
    yield launcher
    launcher.clean_up()


class Pipe(NamedTuple):
    read: int
    write: int


@pytest.fixture
def make_pipe() -> Iterator[Callable[[], Pipe]]:
    """Makes pipes whose ends, where they are still ours, are closed after the test."""
    made: list[tuple[int, int, int]] = []

    def make() -> Pipe:
        pipe = Pipe(*os.pipe())
        made.extend((fd, os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in pipe)
        return pipe

    yield make
    for fd, dev, ino in made:
        if is_open(fd) and (os.fstat(fd).st_dev, os.fstat(fd).st_ino) == (dev, ino):
            os.close(fd)


@pytest.fixture
def pipe(make_pipe: Callable[[], Pipe]) -> Pipe:
    """A pipe."""
    return make_pipe()


@pytest.fixture
def closed_fd() -> int:
    """A number that is no descriptor, and high enough not to become one during a test."""
    fd = 900
    while is_open(fd):
        fd += 1
    return fd


@pytest.fixture(scope="session")
def kept_user_namespace() -> None:
    """Without root, networks and jobs are made in a user namespace that is opened once and kept."""
    with contextlib.suppress(SpawnError), NetNs.new():
        pass


@pytest.fixture
def world(kept_user_namespace: None) -> World:
    """What there is now. Ask for it last, so that the other fixtures are part of it."""
    return World()


@pytest.fixture
def run_python(workload: str) -> Callable[..., Any]:
    """Run a script in an interpreter of its own, for tests that change what cannot be changed back: limits, descriptors 0 to 2.

    The script finds `workload`, `args`, and writes its result with `answer(value)`. Returns that value.
    """
    preamble = (
        "import json, os, sys\n"
        "workload, args, _answer = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])\n"
        "def answer(value):\n    os.write(_answer, json.dumps(value).encode())\n"
    )

    def run(script: str, *args: Any, prefix: tuple[str, ...] = (), patience_s: float = 120, **more: Any) -> Any:
        with tempfile.TemporaryFile() as answers:
            command = [*prefix, sys.executable, "-W", "error", "-c", preamble + script, workload, json.dumps(args), str(answers.fileno())]
            done = subprocess.run(
                command,
                pass_fds=[answers.fileno()],
                capture_output=True,
                text=True,
                timeout=patience_s,
                env=os.environ | {"PYTHONPATH": PATH},
                check=False,
                **more,
            )
            assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            answers.seek(0)
            return json.loads(answers.read())

    return run
