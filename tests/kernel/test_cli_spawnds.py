"""shoal manager spawnd, and --cores: which processors the manager serves itself, and which a spawn daemon does."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import pytest
from rig.desk import Desk, own_desk

CORES = sorted(os.sched_getaffinity(0))
OWN, OTHER = str(CORES[0]), str(CORES[-1])
needs_two = pytest.mark.skipif(len(CORES) < 2, reason="needs two processors")


@pytest.fixture
def desk() -> Iterator[Desk]:
    with own_desk() as made:
        yield made


def wait_served(desk: Desk, core: str) -> None:
    assert desk.shoal("names", "wait", f"proc_mgmt.{core}.ready", "--timeout", "30s").returncode == 0


@needs_two
def test_it_serves_the_cores_that_the_manager_does_not(desk: Desk) -> None:
    assert desk.shoal("manager", "start", "--cores", OWN).returncode == 0
    assert json.loads(desk.shoal("manager", "status", "--json").stdout)["cores"] == [int(OWN)]
    done = desk.shoal("spawn", "--core", OTHER, "true")
    assert done.returncode == 125
    assert done.stderr.startswith(f"shoal: core {OTHER} has no spawn daemon; there is one for {OWN}")
    with desk.begin("manager", "spawnd", "--cores", OTHER) as spawnd:
        wait_served(desk, OTHER)
        assert json.loads(desk.shoal("manager", "status", "--json").stdout)["cores"] == [int(OWN), int(OTHER)]
        assert desk.shoal("spawn", "--core", OTHER, "--", "sh", "-c", "exit 7").returncode == 7
        number = desk.spawn("--core", OTHER, "sleep", "1000")
        spawnd.send_signal(signal.SIGTERM)
        assert spawnd.wait(timeout=30) == 0
        assert spawnd.stderr is not None
        assert spawnd.stderr.read() == ""
    assert desk.shoal("kill", number).returncode == 0
    assert desk.shoal("wait", number).returncode == 137


@needs_two
def test_it_starts_the_manager_and_is_found_again_by_the_next_one(desk: Desk) -> None:
    assert desk.shoal("manager", "start", "--cores", OWN).returncode == 0
    assert desk.shoal("manager", "stop").returncode == 0
    with desk.begin("manager", "spawnd", "--cores", OTHER):
        wait_served(desk, OTHER)
        assert desk.shoal("manager", "stop").returncode == 0
        assert desk.shoal("manager", "start").returncode == 0
        assert json.loads(desk.shoal("manager", "status", "--json").stdout)["cores"] == [int(OWN), int(OTHER)]
        assert desk.shoal("spawn", "--core", OTHER, "--", "sh", "-c", "exit 7").returncode == 7
        second = desk.shoal("manager", "spawnd", "--cores", OTHER)
        assert second.returncode == 125
        assert "a spawn daemon listens at" in second.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["spawnd"], "which cores? usage: shoal manager spawnd --cores LIST"),
        (["spawnd", "--cores", "none"], "which cores?"),
        (["spawnd", "--cores", "1-0"], "--cores 1-0: write numbers and ranges of them"),
        (["start", "--cores", "x"], "--cores x: write numbers and ranges of them"),
        (["start", "--cores", "9999"], "the manager cannot serve core 9999: it may run on"),
        (["stop", "--cores", "1"], "shoal manager stop takes no --cores"),
        (["start", "--address", "/x"], "shoal manager start takes no --address"),
        (["spawnd", "--cores", "0", "--address", "/no/such/folder/socket"], "cannot listen at /no/such/folder/socket"),
    ],
)
def test_what_cannot_be_meant_is_said(desk: Desk, words: list[str], said: str) -> None:
    done = desk.shoal("manager", *words)
    assert done.returncode == 125
    assert re.search(r"^shoal(?: spawnd)?: ", done.stderr)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_core_that_is_served_is_refused(desk: Desk) -> None:
    assert desk.shoal("manager", "start").returncode == 0
    done = desk.shoal("manager", "spawnd", "--cores", OWN)
    assert done.returncode == 125
    assert f"core {OWN} is served by the manager itself; `shoal manager start --cores` says which" in done.stderr


def test_the_cores_are_said_only_when_it_is_started(desk: Desk) -> None:
    assert desk.shoal("manager", "start", "--cores", "none").returncode == 0
    done = desk.shoal("manager", "start", "--cores", OWN)
    assert done.returncode == 125
    assert "the manager runs already" in done.stderr
    done = desk.shoal("spawn", "true")
    assert done.returncode == 125
    assert "no core is served" in done.stderr
