"""Races: somebody exchanges names while programs are started, and the one who starts them is killed.

How often it is tried is a matter of chance and time; SHOAL_TEST_MANY=1 tries ten times as often.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attempts import AT_FDCWD, MANY, PATIENCE_S, Given
from rig.cells import adopting, children

from shoal import SpawnError
from shoal.sandbox.errors import RequestError

LAUNCHES = 5_000 if MANY else 500
QUIET_LAUNCHES = 1_000 if MANY else 200
KILLS = 60 if MANY else 6


@contextlib.contextmanager
def exchanging(outside, one, other):
    """Meanwhile two names are exchanged, hundreds of thousands of times a second."""
    command = [outside.program, "swap", str(one), str(other)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout.readline() == b"swapping\n"
        yield
        swapper.stdin.close()
        word, rounds = swapper.stdout.readline().split()
        assert (word, swapper.wait()) == (b"swapped", 0)
    assert int(rounds) > 1_000, "it was hardly exchanged at all"


def mounts_of_the_host():
    return Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def exchanged(folder):
    """A directory that was meant, another that was not, and a link to that one."""
    for name in ("meant", "secret"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    (folder / "link").symlink_to(folder / "secret")
    return folder


def content(place):
    return (("openat", AT_FDCWD, f"{place}/file", os.O_RDONLY), ("read", Given(1), bytes(6), 6))


def test_what_is_mounted_is_what_the_name_was_found_to_be(outside, inside, exchanged):
    """A link that the name leads through is followed once. Then its target is granted at its own place as well: a secret that is seen at
    one place only came in between the look and the mount."""
    meant, secret = exchanged / "meant", exchanged / "secret"
    look = (*content(meant), ("newfstatat", AT_FDCWD, secret, bytes(144), 0))
    before = mounts_of_the_host()
    seen = collections.Counter()
    with exchanging(outside, meant, exchanged / "link"):
        for _ in range(LAUNCHES // 2 if os.geteuid() == 0 else LAUNCHES):  # root has two tiers
            try:
                outcomes = inside.but(read=[meant]).calls(*look)
            except (SpawnError, RequestError) as error:
                seen[type(error).__name__] += 1
            else:
                seen[outcomes[1].data.strip(b"\0").decode(), "followed" if outcomes[2].errno == 0 else "not followed"] += 1
    assert mounts_of_the_host() == before
    assert seen["meant", "not followed"], seen
    assert not seen["secret", "not followed"], seen


def test_a_directory_that_is_exchanged_for_another_is_one_of_them(outside, inside, exchanged):
    (exchanged / "other").mkdir()
    for name in ("file", "mark"):
        (exchanged / "other" / name).write_text("others")
        (exchanged / "meant" / name).write_text("meant!")
    look = (*content("/data"), ("openat", AT_FDCWD, "/data/mark", os.O_RDONLY), ("read", Given(3), bytes(6), 6))
    seen = collections.Counter()
    box = inside.but(read={"/data": exchanged / "meant"})
    with exchanging(outside, exchanged / "meant", exchanged / "other"):
        for _ in range(LAUNCHES // 10):
            try:
                outcomes = box.calls(*look)
            except (SpawnError, RequestError) as error:
                seen[type(error).__name__] += 1
            else:
                assert outcomes[1].data == outcomes[3].data
                seen[outcomes[1].data] += 1
    assert seen[b"meant!"] + seen[b"others"], seen


def test_a_place_that_is_exchanged_for_a_link_is_not_followed(outside, inside, folder):
    """Something is mounted inside a directory that a sibling writes to, which exchanges the place for a link meanwhile."""
    work, data = folder / "work", folder / "data"
    (work / "sub" / "place").mkdir(parents=True)
    (work / "decoy" / "place").mkdir(parents=True)
    data.mkdir()
    (data / "file").write_text("meant!")
    (work / "link").symlink_to("decoy")
    (work / "out").symlink_to("/tmp")
    mounts, size = ("openat", AT_FDCWD, "/proc/self/mountinfo", os.O_RDONLY), 8192
    look = (mounts, ("read", Given(1), bytes(size), size))
    before, seen = mounts_of_the_host(), collections.Counter()
    box = inside.but(write={"/work": work}, read={"/work/sub/place": data})
    for link in ("link", "out"):
        with exchanging(outside, work / "sub", work / link):
            for _ in range(LAUNCHES // 10):
                try:
                    outcomes = box.calls(*look)
                except (SpawnError, RequestError) as error:
                    seen[type(error).__name__] += 1
                    continue
                places = [line.split()[4] for line in outcomes[1].data.rstrip(b"\0").decode().splitlines()]
                inner = [place for place in places if place.startswith("/work/")]
                # The directory is mounted as well, to keep it there. Its name may be exchanged again by the time of the look.
                names = ("/work/sub", f"/work/{link}")
                assert len(inner) == 2, places
                assert inner[0] in names, places
                assert inner[1] in [f"{name}/place" for name in names], places
                seen["mounted"] += 1
    assert seen["mounted"], seen
    assert mounts_of_the_host() == before
    assert [sorted(path.name for path in (work / at / "place").iterdir()) for at in ("sub", "decoy")] == [[], []]


# --- a workspace ------


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


def test_a_workspace_is_as_it_was_after_programs_that_did_nothing(inside, repo):
    before, mounts = state(repo), mounts_of_the_host()
    box = inside.but(write={"/work": repo}, cwd="/work")
    for _ in range(QUIET_LAUNCHES):
        assert box.run("ids", capture_output=False, stdout=subprocess.DEVNULL).returncode == 0
    assert state(repo) == before
    assert mounts_of_the_host() == mounts


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
