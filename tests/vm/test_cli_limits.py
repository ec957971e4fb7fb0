"""`shoal run` with limits that hold for all that runs: how it ends, what is said of it, and what is left."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from rig.cli import COMMAND, ENVIRON

HUNGRY = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"


@pytest.fixture
def run(group: Path):
    """`shoal run` in a group that nobody else lives in. Once: by then the group hands on controllers, and nobody may live in it."""

    def run(*words: str, **how: object) -> subprocess.CompletedProcess[str]:
        enter = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group))
        return subprocess.run(
            [*enter, *COMMAND, "run", *words], env=ENVIRON, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **how
        )

    return run


def test_a_program_that_takes_too_much_memory_is_said_to(run, tmp_path: Path) -> None:
    done = run("--memory", "32M", "--json", "--meta", f"{tmp_path}/meta", "--", "sh", "-c", f"({HUNGRY}) & wait; echo not reached")
    told, *_, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (137, "")
    assert told == "shoal: sh: used up its memory of 32M; it was killed with everything it started; reason: oom"
    result = json.loads(last)
    assert (result["reason"], result["exit_code"], result["signal"]) == ("oom", 137, "SIGKILL")
    assert result["enforced"]["memory"] is True
    assert 16 << 20 < result["usage"]["max_memory_bytes"] <= 32 << 20
    assert "cg-oom-killed:1" in (tmp_path / "meta").read_text().splitlines()


def test_one_that_takes_less_is_not(run) -> None:
    done = run("--memory", "64M", "--pids", "20", "--cpus", "1.5", "--json", "--require", "memory", "--", "sh", "-c", "echo fine; exit 3")
    result = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stdout, result["reason"]) == (3, "fine\n", "exited")
    assert {result["enforced"][name] for name in ("memory", "swap", "pids", "cpus")} <= {True}
    assert result["usage"]["max_pids"] >= 2


@pytest.mark.parametrize(("pids", "stdout"), [("4", ""), ("20", "all\n")])
def test_processes_are_limited_together(run, pids: str, stdout: str) -> None:
    done = run("--ro", "/usr", "--pids", pids, "--", "sh", "-c", "for n in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo all")
    assert done.stdout == stdout
    assert (done.returncode == 0) == bool(stdout)


def test_processor_time_is_that_of_all_together(run) -> None:
    spin = "while :; do :; done"
    done = run("--cpu-time", "2s", "--json", "--", "sh", "-c", f"({spin}) & ({spin}) & {spin}")
    result = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, result["reason"], result["enforced"]["cpu_time"]) == (124, "cpu_time", True)
    assert result["usage"]["user_s"] + result["usage"]["system_s"] < 4


def test_a_shipped_profile_has_its_limits_enforced_where_that_can_be(run) -> None:
    done = run("--profile", "untrusted", "--json", "--", "sh", "-c", HUNGRY)
    result = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, result["reason"]) == (137, "oom")
    assert result["enforced"]["pids"] is True


@pytest.mark.parametrize("linger", ["kill", "wait", "keep"])
def test_no_group_is_left(run, group: Path, linger: str) -> None:
    assert run("--memory", "64M", "--linger", linger, "--", "sh", "-c", "exit 4").returncode == 4
    left = [name for name in os.listdir(group) if (group / name).is_dir() and not name.endswith("-self")]
    assert left == []
