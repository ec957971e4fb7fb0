"""Limits of a sandbox hold for everything in it together, and the result says which one ended the run."""

from __future__ import annotations

import pytest

import shoal
from shoal import Sandbox

MIB = 1 << 20


@pytest.fixture(autouse=True)
def controllers(delegation):
    assert delegation.is_dir()


def run(workload, *words, **box):
    patience = {"wall_time": 120} | box
    return shoal.run([workload, *map(str, words)], sandbox=Sandbox(**patience), capture_output=True, text=True)


def test_an_oom_kill_is_told_apart_from_other_ends(workload):
    killed = run(workload, "alloc", 128 * MIB, memory="32M")
    assert (killed.reason, killed.returncode) == ("oom", -9)
    assert killed.enforced["memory"] is True
    assert killed.usage.max_memory_bytes <= 32 * MIB
    assert "cg-oom-killed:1" in killed.meta()
    small = run(workload, "alloc", 8 * MIB, memory="64M")
    assert (small.reason, small.returncode) == ("exited", 0)
    assert small.usage.max_memory_bytes >= 8 * MIB


def test_a_memory_bomb_takes_its_whole_sandbox_along(workload):
    done = shoal.run(
        ["sh", "-c", f"{workload} alloc {128 * MIB} & {workload} pause & wait"],
        sandbox=Sandbox(read=["/usr", workload], memory="48M", wall_time=120),
        capture_output=True,
    )
    assert done.reason == "oom"


def test_a_fork_bomb_stops_at_the_number_of_processes(workload):
    done = run(workload, "bomb", 300, pids=12, wall_time=5)
    assert done.reason in ("wall_time", "exited")
    assert done.enforced["pids"] is True
    assert done.usage.max_pids is None or done.usage.max_pids <= 13  # the first process of the cell is one more


def test_processors_are_a_share_of_time():
    spin = "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done"
    box = Sandbox(read=["/usr"], wall_time=300)
    slow = shoal.run(["sh", "-c", spin], sandbox=box.replace(cpus=0.2))
    assert slow.enforced["cpus"] is True
    assert slow.usage.user_s + slow.usage.system_s < 0.3 * slow.usage.wall_s


def test_processor_time_of_all_together_ends_the_run():
    script = "for i in 1 2 3; do (while :; do :; done) & done; wait"
    done = shoal.run(["sh", "-c", script], sandbox=Sandbox(read=["/usr"], cpu_time=2, wall_time=120))
    assert (done.reason, done.enforced["cpu_time"]) == ("cpu_time", True)


def test_the_same_limits_run_after_run(workload):
    for _ in range(3):
        assert run(workload, "alloc", 8 * MIB, memory="64M", pids=8, cpus=1).returncode == 0
