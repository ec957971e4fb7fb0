"""A workspace: nothing of it changes by what shoal does, however often, and whatever becomes of the one who does it."""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attempts import MANY, PATIENCE_S
from rig.cells import adopting, children

from shoal.sandbox.errors import RequestError

QUIET_LAUNCHES = 1_000
KILLS = 60 if MANY else 6
STRIDES = {"the first launch": 1 if MANY else 8, "launches into cells made ahead": 8 if MANY else 150}
"""The launcher is killed at every so-manyth step; which ones is a matter of chance."""


def mounts_of_the_host():
    return Path("/proc/self/mountinfo").read_text()


def git(repo, *words):
    environ = {"PATH": os.environ["PATH"], "HOME": str(repo.parent), "GIT_CONFIG_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-c", "user.name=somebody", "-c", "user.email=somebody@localhost", "-C", str(repo), *words]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repo(folder):
    """A repository with files that are committed, changed, new, ignored, executable and links."""
    at = folder / "repo"
    (at / "src").mkdir(parents=True)
    git(at, "init", "--quiet")
    for name in ("a", "b", "src/c"):
        (at / name).write_text(name)
    (at / "run").write_text("#!/bin/sh\n")
    (at / "run").chmod(0o755)
    (at / "to-a").symlink_to("a")
    (at / ".gitignore").write_text("ignored\n")
    git(at, "add", ".")
    git(at, "commit", "--quiet", "--message", "as it was")
    (at / "b").write_text("changed")
    (at / "new").write_text("new")
    (at / "ignored").write_text("ignored")
    return at


def state(repo):
    """All inodes, with everything of them but when they were last read; and what git says."""
    found = {}
    for path in sorted([repo, *repo.rglob("*")]):
        at = path.lstat()
        found[str(path)] = (at.st_ino, at.st_mode, at.st_uid, at.st_gid, at.st_nlink, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
    return found, git(repo, "status", "--porcelain", "--ignored"), git(repo, "rev-parse", "HEAD")


@pytest.mark.cell
def test_a_workspace_is_as_it_was_after_programs_that_did_nothing(inside, repo):
    before, mounts = state(repo), mounts_of_the_host()
    box = inside.but(write={"/work": repo}, cwd="/work")
    for _ in range(QUIET_LAUNCHES):
        assert box.run("ids", capture_output=False, stdout=subprocess.DEVNULL).returncode == 0
    assert state(repo) == before
    assert mounts_of_the_host() == mounts


@pytest.mark.cell
def test_a_workspace_with_something_mounted_inside_is_as_it_was(inside, repo):
    """The place has to be there: none is made in a directory of the host."""
    before = state(repo)
    box = inside.but(write={"/work": repo}, read={"/work/src": "/usr/include", "/work/a": "/etc/hostname"})
    for _ in range(QUIET_LAUNCHES // 10):
        assert box.run("ids").returncode == 0
    with pytest.raises(RequestError, match="shoal makes nothing in your directories"):
        inside.but(write={"/work": repo}, read={"/work/missing": "/usr/include"}).run("ids")
    assert state(repo) == before


LAUNCHER = """
import subprocess, sys
from attempts import Ground
box = Ground(workload, args)
print("ready", flush=True)
while True:
    box.run("ids", stdout=subprocess.DEVNULL)
"""


def await_end_of_all_but(besides):
    """Reap whatever ends first: the first process of a cell waits for those that end with it to be reaped."""
    deadline = time.monotonic() + PATIENCE_S
    while adopted := children() - besides:
        assert time.monotonic() < deadline, f"still there: {adopted}"
        with contextlib.ExitStack() as stack:
            ends = []
            for pid in adopted:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
                with contextlib.suppress(ProcessLookupError):
                    ends.append(os.pidfd_open(pid))
                    stack.callback(os.close, ends[-1])
            select.select(ends, [], [], 1.0)


@pytest.mark.cell
def test_a_workspace_is_as_it_was_when_launchers_were_killed(inside, attacks, repo, world):
    """At moments that are chosen by chance: in the middle of a launch, of a run, of an end. Nothing of theirs lives on, either."""
    before, mounts, others = state(repo), mounts_of_the_host(), children()
    chance = random.Random(20)
    box = {**inside.box, "write": {"/work": str(repo)}, "cwd": "/work"}
    script = f"import sys; sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}\nworkload, args = {attacks!r}, {box!r}\n" + LAUNCHER
    with adopting():
        for _ in range(KILLS):
            with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as launcher:
                assert launcher.stdout.readline() == b"ready\n"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    launcher.wait(chance.uniform(0, 0.1))
                assert launcher.poll() is None
                launcher.kill()
        await_end_of_all_but(others)
    world.assert_unchanged()
    assert state(repo) == before
    assert mounts_of_the_host() == mounts


STEPS = """
import stepping, shoal
from attempts import Ground

box, kind, stride, offset = args
ground = Ground(workload, box)
ground.run("ids")  # what is opened once and kept is there
shoal.cells.drain()
times = 1 if kind == "the first launch" else 4
launch = lambda: [ground.run("ids") for _ in range(times)]
stepping.adopt()
undisturbed = stepping.kill_at(0, launch)
killed = [stepping.kill_at(step, launch).killed for step in range(1 + offset, undisturbed.steps, stride)]
answer([undisturbed, sum(killed)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRIDES)
@pytest.mark.cell
def test_a_workspace_is_as_it_was_when_launchers_were_killed_at_every_step(inside, run_attacks, repo, world, kind):
    """A step is the begin or the end of a system call, of the launcher or of anything that it makes: `stepping`. Everything else goes
    on, and has to come to an end by itself. SHOAL_TEST_MANY=1 takes all of them."""
    before, mounts, stride = state(repo), mounts_of_the_host(), STRIDES[kind]
    offset = random.randrange(stride)
    box = {**inside.box, "write": {"/work": str(repo)}, "read": {"/work/src/c": "/etc/hostname"}, "cwd": "/work"}
    (steps, tasks, _), killed = run_attacks(STEPS, box, kind, stride, offset, patience_s=280)
    assert steps > 500
    assert tasks >= 3  # the launcher, the cell's first process, the program
    assert killed > steps // stride // 2, (offset, steps, killed)
    world.assert_unchanged()
    assert state(repo) == before, offset
    assert mounts_of_the_host() == mounts
