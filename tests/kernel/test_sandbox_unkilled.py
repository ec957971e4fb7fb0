"""A run ends although something in it cannot be killed: a file server does not answer, and who asked it sleeps where no signal reaches."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.cli import COMMAND, ENVIRON, User, wait_gone, wait_running
from rig.features import needs
from rig.fuse import REACHED_S, Stuck, mounted

import shoal
from shoal import Sandbox
from shoal.handles import reaper
from shoal.launcher import END_S

pytestmark = [
    pytest.mark.root,
    needs("file systems in user space (/dev/fuse)"),
    pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell"),
]
SLACK_S = 6.0
"""How much longer than it says a run may take on a busy machine. Without a bound it takes for ever."""


@pytest.fixture(scope="module", autouse=True)
def what_is_opened_once_and_kept() -> None:
    shoal.run(["/usr/bin/true"])


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Stuck]:
    (tmp_path / "stuck").mkdir()
    with mounted(tmp_path / "stuck") as found:
        yield found


@pytest.fixture
def box(stuck: Stuck) -> Sandbox:
    return Sandbox(read={"/usr": "/usr", "/data": stuck.folder})


@pytest.fixture
def in_time(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run a command; its return code, and what it said. To a file: what is stuck would keep a pipe open."""

    def run(*command: str) -> tuple[int, str]:
        with (tmp_path / "said").open("w+") as said:
            done = subprocess.run(command, env=ENVIRON, stdout=said, stderr=said, timeout=2 * END_S + 2 * SLACK_S, check=False)
            said.seek(0)
            return done.returncode, said.read()

    return run


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def assert_let_go(stuck: Stuck, pids: tuple[int, ...], world: Any) -> None:
    """Nothing is left once the kernel lets go."""
    stuck.let_go()
    assert wait_gone(pids)
    world.assert_unchanged()


def test_a_limit_of_time_is_kept_by_what_cannot_be_killed(stuck, box, world):
    began = time.monotonic()
    done = shoal.run(["cat", "/data/stuck"], sandbox=box.replace(wall_time=REACHED_S))
    assert time.monotonic() - began < REACHED_S + 2 * END_S + SLACK_S
    assert (done.reason, done.returncode) == ("wall_time", -signal.SIGKILL)
    (pid,) = done.unkilled
    assert state(pid) == "D"
    assert re.search(rf"process {pid} \(cat\) sleeps uninterruptibly in the kernel", done.message)
    assert done.message in str(shoal.RunError(done))
    assert_let_go(stuck, done.unkilled, world)


def test_a_timeout_says_what_is_left(stuck, box, world):
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        shoal.run(["sh", "-c", "echo partly; cat /data/stuck"], sandbox=box, timeout=REACHED_S, capture_output=True, text=True)
    assert time.monotonic() - began < REACHED_S + 2 * END_S + SLACK_S
    assert caught.value.output == "partly\n"
    (note,) = caught.value.__notes__
    pid = int(re.search(r"process (\d+) \(cat\) sleeps uninterruptibly", note)[1])
    assert state(pid) == "D"
    assert_let_go(stuck, (pid,), world)


def test_a_program_that_leaves_such_a_thing_behind_has_ended_all_the_same(stuck, box, tmp_path, world):
    told = tmp_path / "told"
    os.mkfifo(told)

    def tell():
        stuck.wait()
        told.write_text("it is stuck\n")

    teller = threading.Thread(target=tell)
    teller.start()
    box = box.replace(read={**box.read, "/told": told})
    done = shoal.run(["sh", "-c", "cat /data/stuck & read line < /told"], sandbox=box, capture_output=True)
    teller.join()
    assert (done.reason, done.returncode, done.denied) == ("exited", 0, ())
    assert len(done.unkilled) == 1
    assert "(cat) sleeps uninterruptibly" in done.message
    assert_let_go(stuck, done.unkilled, world)


def test_what_was_started_by_something_that_cannot_be_killed_either_is_told_of(stuck, box, workload, world):
    """Its parent is a thread by then that is not the first of its process."""
    done = shoal.run([workload, "open-twice", "/data/stuck"], sandbox=box.replace(wall_time=REACHED_S))
    assert done.reason == "wall_time"
    assert len(done.unkilled) == 2
    assert_let_go(stuck, done.unkilled, world)


def test_later_runs_are_not_held_up(stuck, box, world):
    done = shoal.run(["cat", "/data/stuck"], sandbox=box.replace(wall_time=REACHED_S))
    for _ in range(3):
        assert shoal.run(["sh", "-c", "exit 3"], sandbox=Sandbox(read=["/usr"])).returncode == 3
    assert reaper.pending()
    assert_let_go(stuck, done.unkilled, world)
    assert not reaper.pending()


def test_a_caller_that_ends_meanwhile_ends(stuck, in_time):
    script = f"""
import shoal
box = shoal.Sandbox(read={{"/usr": "/usr", "/data": {str(stuck.folder)!r}}}, wall_time={REACHED_S})
print(*shoal.run(["cat", "/data/stuck"], sandbox=box).unkilled, flush=True)
"""
    code, said = in_time(sys.executable, "-c", script)
    assert code == 0
    assert state(int(said)) == "D"
    stuck.let_go()
    assert wait_gone([int(said)])


def test_a_parent_that_waits_in_vfork_is_no_such_thing(workload, world):
    """It shows as D, but SIGKILL reaches it."""
    ended = []
    runner = threading.Thread(target=lambda: ended.append(shoal.run([workload, "vfork"], sandbox=Sandbox(wall_time=1))))
    runner.start()
    assert wait_running(workload, "D")
    runner.join()
    (done,) = ended
    assert (done.reason, done.unkilled, done.message) == ("wall_time", (), "")
    world.assert_unchanged()


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_command_ends_in_time_and_says_so(stuck, in_time, options):
    places = ("--ro", "/usr", "--ro", f"{stuck.folder}:/data")
    code, said = in_time(*COMMAND, "run", *options, "--timeout", "300ms", *places, "cat", "/data/stuck")
    assert code == 124
    assert "timed out after 0.3 s" in said
    pid = int(re.search(r"note: killed 2 s ago, process (\d+) \(cat\) sleeps uninterruptibly", said)[1])
    if options:
        assert json.loads(said.splitlines()[-1])["unkilled"] == [pid]
    stuck.let_go()
    assert wait_gone([pid])


def test_the_command_gives_the_terminal_back(stuck, world):
    with User(*COMMAND, "run", "--timeout", "300ms", "--ro", "/usr", "--ro", f"{stuck.folder}:/data", "cat", "/data/stuck") as user:
        code, seen = user.until_end()
        assert code == 124
        assert "sleeps uninterruptibly" in seen
        assert user.is_as_found
    pid = int(re.search(r"process (\d+) \(cat\)", seen)[1])
    stuck.let_go()
    assert wait_gone([pid])
    world.assert_unchanged()
