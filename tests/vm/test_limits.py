"""Limits hold: what runs in a job gets no more memory, swap, processes and processor time than the job may use."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import groups
import pytest
from rig.launchers import every_launcher
from rig.workload import Reporting, observe

from shoal import CloneFd, InvalidArgsError, SpawnError, SpawnFlags, Status

MIB = 1 << 20
SPIN = "i=0; while [ $i -lt 40000 ]; do i=$((i + 1)); done"


def has_swap():
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


@every_launcher
def test_a_program_that_takes_more_memory_than_its_job_may_use_is_killed(launch, workload, job):
    job.set_limits(memory="32M", swap=0)
    assert observe(launch, workload, "alloc", 8 * MIB, job=job).returncode == 0
    assert groups.values(groups.path_of(job) / "memory.events")["oom_kill"] == 0
    assert observe(launch, workload, "alloc", 128 * MIB, job=job).returncode == -signal.SIGKILL
    assert groups.values(groups.path_of(job) / "memory.events")["oom_kill"] == 1
    assert 8 * MIB <= job.usage().max_memory_bytes <= 32 * MIB
    assert observe(launch, workload, "exit", 3, job=job).returncode == 3  # the job itself lives on


@every_launcher
def test_a_limit_counts_for_the_jobs_below(launch, workload, job):
    job.set_limits(memory="32M", swap=0)
    with job.create_child() as inner:
        assert observe(launch, workload, "alloc", 128 * MIB, job=inner).returncode == -signal.SIGKILL


@pytest.mark.skipif(not has_swap(), reason="needs swap")
@every_launcher
def test_what_does_not_fit_into_memory_goes_to_swap_as_far_as_that_is_allowed(launch, workload, job):
    job.set_limits(memory="16M", swap="128M")
    assert observe(launch, workload, "alloc", 48 * MIB, job=job).returncode == 0
    job.set_limits(swap="8M")
    assert observe(launch, workload, "alloc", 48 * MIB, job=job).returncode == -signal.SIGKILL


@every_launcher
def test_a_fork_bomb_stops_at_the_number_of_processes(launch, workload, job):
    job.set_limits(pids=12)
    with Reporting() as reporting, launch(workload, ["workload", "bomb", "300"], job=job, actions=[reporting.action()]) as process:
        reporting.started()
        assert reporting.line() == ["bomb", "300", "ok", "0"]
        groups.await_file(groups.path_of(job) / "pids.events", lambda text: int(text.split()[1]) > 0)
        assert 1 < len(job.processes(recursive=True)) <= 12
        job.kill()
        assert process.wait(timeout=groups.PATIENCE_S) == -signal.SIGKILL
        assert reporting.rest() == b""
    job.wait_empty(groups.PATIENCE_S)


@every_launcher
def test_a_full_job_takes_no_further_process_and_says_so(launch, workload, job, pipe, world):
    job.set_limits(pids=2 if launch.own_world else 1)  # the first process of a cell is in the job, too
    with launch(workload, ["workload", "drain", "0"], job=job, actions=[CloneFd(pipe.read, 0)]) as process:
        before = world.new_processes()
        with pytest.raises(SpawnError) as caught:
            launch(workload, ["workload"], job=job)
        assert caught.value.status is Status.NO_RESOURCES
        assert world.new_processes() == before
        os.close(pipe.write)
        assert process.wait(timeout=groups.PATIENCE_S) == 0
    job.wait_empty(groups.PATIENCE_S)  # the first process of a cell ends after the program
    assert observe(launch, workload, "exit", 0, job=job).returncode == 0


@every_launcher
def test_processor_time_is_rationed(launch, job):
    job.set_limits(cpus=0.1)
    began = time.monotonic()
    with launch("/bin/sh", ["sh", "-c", SPIN], job=job, flags=SpawnFlags.DEFAULT_LDSVC) as process:
        assert process.wait(timeout=groups.PATIENCE_S) == 0
    wall_s = time.monotonic() - began
    used = job.usage()
    assert used.user_s + used.system_s <= 0.1 * wall_s + 0.1  # one period may be ahead
    assert groups.values(groups.path_of(job) / "cpu.stat")["nr_throttled"] > 0


def test_all_limits_are_set_or_none(job):
    folder = groups.path_of(job)
    job.set_limits(memory="64M", pids=50)
    with pytest.raises(InvalidArgsError):
        job.set_limits(memory="32M", pids=1 << 40)
    assert (folder / "memory.max").read_text().strip() == str(64 * MIB)
    assert (folder / "pids.max").read_text().strip() == "50"


def test_a_limit_can_be_raised_again(job):
    job.set_limits(memory="1M", pids=1, cpus=0.01, swap=0)
    job.set_limits(memory="64M", pids=50, cpus=2, swap="1M")
    shown = [(groups.path_of(job) / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max", "memory.swap.max")]
    assert shown == [str(64 * MIB), "50", "200000 100000", str(MIB)]


def test_a_tree_of_jobs_has_limits_at_every_level(job):
    with job.create_child("middle") as middle, middle.create_child("inner") as inner:
        for at, pids in ((inner, 10), (middle, 20), (job, 30)):
            at.set_limits(pids=pids)
        assert [(groups.path_of(at) / "pids.max").read_text().strip() for at in (job, middle, inner)] == ["30", "20", "10"]
