"""What the kernel enforces for a job is told as it is, and compared with what was asked for."""

from __future__ import annotations

import dataclasses

import shoal
from shoal import SpawnFlags
from shoal.handles.job_backend import Limits
from shoal.manager.capabilities import Granted, observe

MIB = 1 << 20
FLAGS = SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC
SLEEP = ["sleep", "1000"]
ASKED = Limits(memory_bytes=64 * MIB, swap_bytes=0, pids=9, cpus=0.5)


def test_limits_in_force_are_told_and_those_that_were_raised_are_differences(job):
    job.set_limits(memory="64M", swap=0, pids=9, cpus=0.5)
    granted = Granted.of_plan(shoal.explain("/bin/sleep", SLEEP, flags=FLAGS), limits=ASKED)
    with shoal.spawn("/bin/sleep", SLEEP, flags=FLAGS, job=job) as process:
        seen = observe(process, granted=granted, job=job)
        there = seen.observed.job
        assert (there.memory_bytes, there.swap_bytes, there.pids, there.cpus) == (64 * MIB, 0, 9, 0.5)
        assert there.pids_used == 1
        assert there.memory_used > 0
        assert [str(item) for item in seen.differences] == []
        job.set_limits(memory="128M", pids=20)
        told = {item.subject for item in observe(process, granted=granted, job=job).differences}
        assert told == {"limit memory_bytes of the job", "limit pids of the job"}
        process.kill()
        process.wait()


def test_a_limit_of_a_job_above_counts_for_those_below(job):
    job.set_limits(memory="64M")
    granted = Granted.of_plan(shoal.explain("/bin/sleep", SLEEP, flags=FLAGS), limits=Limits(memory_bytes=64 * MIB))
    with job.create_child() as inner, shoal.spawn("/bin/sleep", SLEEP, flags=FLAGS, job=inner) as process:
        seen = observe(process, granted=granted, job=inner)
        assert seen.observed.job.memory_bytes == 64 * MIB
        assert seen.differences == ()
        lower = dataclasses.replace(granted, limits=dataclasses.replace(granted.limits, memory_bytes=32 * MIB))
        assert [item.kind for item in observe(process, granted=lower, job=inner).differences] == ["lost"]
        process.kill()
        process.wait()
