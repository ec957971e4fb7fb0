"""Races: somebody exchanges names while programs are started.

How often it is tried is a matter of chance and time; SHOAL_TEST_MANY=1 tries ten times as often.
"""

from __future__ import annotations

import collections
import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from attempts import AT_FDCWD, MANY, Given

from shoal import SpawnError
from shoal.sandbox.errors import RequestError

LAUNCHES = 5_000 if MANY else 500
OF_PLACES = 5_000
"""So many with a place that is exchanged for a link."""


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


@pytest.mark.cell
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


@pytest.mark.cell
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


@pytest.mark.cell
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
            for _ in range(OF_PLACES // (4 if os.geteuid() == 0 else 2)):  # two links, and for root two tiers
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
