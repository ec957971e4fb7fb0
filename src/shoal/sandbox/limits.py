"""Limits of a run for everything in it together: a job of its own, and what the job counted.

Memory, processes, processors and io are enforced by the kernel's controllers. Processor time has no controller: the kernel bounds
it for each process (RLIMIT_CPU), and the sum is looked at whenever it could have been reached, which is known: no machine uses up
processor time faster than all its processors together do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from shoal.handles.delegation import generation, obtain
from shoal.handles.job import Job, given_job
from shoal.handles.job_backend import Counters
from shoal.handles.process import Usage
from shoal.sandbox.box import EACH_PROCESS, Sandbox
from shoal.sandbox.result import Reason, RunUsage
from shoal.status import AccessDeniedError, NotSupportedError, SpawnError, failure
from shoal.units import parse_duration, parse_size

SHORTEST_LOOK_S = 0.002


@dataclass(frozen=True, slots=True)
class Budget:
    """The job of one run.

    Attributes:
        job: None where no limit asks for one, or none can be made and the box allows less.
        enforced: what the job enforces, for `Result.enforced`.
        cpu_s: processor time for all together.
        keeps: what is left at the end lives on.
    """

    job: Job | None
    enforced: dict[str, bool | str]
    cpu_s: float | None
    keeps: bool = False

    @classmethod
    def of(cls, box: Sandbox, *, besides: int = 1, dies_whole: bool = True) -> Budget:
        """The budget that `box` asks for.

        Args:
            besides: processes of ours that will live in the job, too.
            dies_whole: what is out of memory is killed all at once, whoever else of ours is in there.
        Raises:
            NotSupportedError, AccessDeniedError: it cannot be enforced here; says what would help. Not with `limits="best-effort"`.
        """
        if box.memory is None and box.pids is None and box.cpus is None and box.cpu_time is None and not box.io:
            return NO_BUDGET
        asked = [name for name in ("memory", "pids", "cpus", "cpu_time") if getattr(box, name) is not None] + (["io"] if box.io else [])
        cpu_s = None if box.cpu_time is None else parse_duration(box.cpu_time)
        try:
            job = _job_somewhere(box, asked, besides, dies_whole)
        except (NotSupportedError, AccessDeniedError) as error:
            if box.limits == "require":
                raise failure(error.status, error.stage, f"{', '.join(asked)}: {error.detail}{_ADVICE}", error.errno) from None
            weaker: dict[str, bool | str] = dict.fromkeys(asked, False)
            return cls(None, weaker | ({"cpu_time": EACH_PROCESS} if cpu_s else {}), None)
        enforced: dict[str, bool | str] = dict.fromkeys(asked, True)
        return cls(job, enforced | ({"swap": True} if box.memory is not None and box.swap is not None else {}), cpu_s, box.linger == "keep")

    def next_look_s(self) -> float | None:
        """In how many seconds the processor time could be used up; 0: it is. None: there is no such limit."""
        if self.job is None or self.cpu_s is None:
            return None
        used = self.job.usage()
        left = self.cpu_s - used.user_s - used.system_s
        return 0.0 if left <= 0 else max(SHORTEST_LOOK_S, left / (os.cpu_count() or 1))

    def spent(self) -> tuple[Usage, Counters] | None:
        """What was used in all."""
        return None if self.job is None else (self.job.usage(), self.job.counters())

    def close(self) -> None:
        """Kill what is left, unless it is to be kept, and give up the job."""
        if self.job is not None:
            if not self.keeps:
                with suppress(SpawnError):  # it is gone
                    self.job.kill()
            self.job.close()


NO_BUDGET = Budget(None, {}, None)
"""Of a run that has no limits for all together."""

_CONTROLLERS = {"memory": "memory", "pids": "pids", "cpus": "cpu", "io": "io"}


def _job_for(box: Sandbox, besides: int, dies_whole: bool) -> Job:
    """A job with the limits of `box`. Raises NotSupportedError, AccessDeniedError."""
    with Job.default() as default:
        job = default.create_child()
    try:
        job.usage()  # refused where the job is no cgroup
        _limit(job, box, besides, dies_whole)
    except BaseException:
        job.close()
        raise
    return job


def _job_somewhere(box: Sandbox, asked: Sequence[str], besides: int, dies_whole: bool) -> Job:
    """The same, in a cgroup that systemd makes for this process where the one it lives in does not do."""
    while True:
        before = generation()
        try:
            return _job_for(box, besides, dies_whole)
        except (NotSupportedError, AccessDeniedError) as error:
            if given_job() is not None:  # which decides where our jobs are, not where we live
                raise
            refusal = obtain(before, [_CONTROLLERS[name] for name in asked if name in _CONTROLLERS])
            if refusal is None:
                continue
            told = error.detail
            if refusal.reason:
                told += f"; no other cgroup is to be had: {refusal.reason}"
            if refusal.fix and refusal.fix not in told:
                told += f"; try: {refusal.fix}"
            raise failure(error.status, error.stage, told, error.errno) from None


_ADVICE = '; or say limits="best-effort" for what each process can be held to'


def _limit(job: Job, box: Sandbox, besides: int, dies_whole: bool) -> None:
    if box.memory is None and box.pids is None and box.cpus is None and not box.io:
        return
    job.set_limits(
        memory=box.memory,
        swap=box.swap if box.memory is not None and _counts_swap(box) else None,
        pids=None if box.pids is None else box.pids + besides,
        cpus=box.cpus,
        io=box.io,
        dies_whole=dies_whole and box.memory is not None,
    )


def _counts_swap(box: Sandbox) -> bool:
    """Whether there is a limit of swap to be set: without any swap there is nothing to be limited."""
    if box.swap is None:
        return False
    if parse_size(box.swap) > 0:
        return True
    try:
        with open("/proc/swaps", encoding="ascii") as file:
            return len(file.read().splitlines()) > 1
    except OSError:
        return True


def sum_up(
    wall_s: float,
    own: Usage,
    spent: tuple[Usage, Counters] | None,
    returncode: int,
    reason: Reason | Literal["timeout"] | None,
    box: Sandbox,
) -> tuple[RunUsage, Reason | Literal["timeout"] | None]:
    """What was used, and why it ended.

    Args:
        own: of the program and of what it waited for; spent: from `Budget.spent()`.
        reason: who has ended it; None: nobody.
    """
    if spent is None:
        usage = RunUsage(wall_s, own.user_s, own.system_s, own.max_memory_bytes)
    else:
        all_of_it, counted = spent
        usage = RunUsage(
            wall_s,
            all_of_it.user_s,
            all_of_it.system_s,
            all_of_it.max_memory_bytes or own.max_memory_bytes,
            max_pids=counted.max_pids,
            io_read_bytes=counted.io_read_bytes,
            io_write_bytes=counted.io_write_bytes,
            max_rss_bytes=own.max_memory_bytes,
            counts_tree=all_of_it.max_memory_bytes > 0,
        )
        if reason is None and box.memory is not None and counted.oom_kills:
            reason = "oom"
    if reason is None and box.cpu_time is not None and returncode == -signal.SIGXCPU:
        reason = "cpu_time"  # of a single process: RLIMIT_CPU
    return usage, reason
