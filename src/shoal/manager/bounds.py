"""Bounds: the limits of a domain in a sandbox for everything in it together, and who ends it when its time is up.

The kernel enforces memory, processes, processors and io by a cgroup in which the domain's init lives as well, since all that it starts
begins there. It outlives the manager: where it is, is remembered with the domain.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from shoal.handles.job import Job
from shoal.manager.domains import Ended, ExitStatus
from shoal.manager.errors import ManagerError
from shoal.manager.ledger import CAUSE_CPU_TIME, CAUSE_WALL_TIME
from shoal.sandbox.box import Sandbox
from shoal.sandbox.limits import Budget
from shoal.status import SpawnError
from shoal.units import parse_duration

_SHOAL_PROCESSES = 2  # the domain's init, and the cell's


class Bounds:
    """Those of one domain. For the loop's thread.

    Args:
        until_s: when its time is up, in seconds since boot.
        end: ends the domain, for the cause it is given.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, budget: Budget, until_s: float | None, end: Callable[[int], None]) -> None:
        self._loop = loop
        self._budget = budget
        self._until_s = until_s
        self._end = end
        self._timers: dict[int, asyncio.TimerHandle] = {}

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop, box: Sandbox, end: Callable[[int], None]) -> Bounds | None:
        """Those that a sandbox asks for; None: none.

        Raises:
            ManagerError: they cannot be enforced here; says what would help.
        """
        try:
            budget = Budget.of(box, besides=_SHOAL_PROCESSES, dies_whole=False)
        except SpawnError as error:
            raise ManagerError("SPAWN_ERR_SETUP_CSPACE", error.detail) from error
        wall = None if box.wall_time is None else _uptime_s() + parse_duration(box.wall_time)
        return None if budget.job is None and wall is None else cls(loop, budget, wall, end)

    @classmethod
    def remembered(cls, loop: asyncio.AbstractEventLoop, about: Mapping[str, Any], end: Callable[[int], None]) -> Bounds | None:
        """Those of a domain that an earlier manager has started."""
        job = None
        if about.get("job"):
            with suppress(OSError, SpawnError):
                job = Job._from_fd(os.open(about["job"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        if job is None and about.get("until_s") is None:
            return None
        return cls(loop, Budget(job, {}, about.get("cpu_s")), about.get("until_s"), end)

    def about(self) -> dict[str, Any]:
        """What is to be remembered."""
        job = self._budget.job
        path = None if job is None else os.readlink(f"/proc/self/fd/{job.fileno()}")
        return {"job": path, "cpu_s": self._budget.cpu_s, "until_s": self._until_s}

    def take(self, init: int) -> None:
        """What this init starts, is bound.

        Raises:
            ManagerError: the kernel does not let it in.
        """
        job = self._budget.job
        if job is None:
            return
        try:
            fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=job.fileno())
            try:
                os.write(fd, str(init).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise ManagerError("SPAWN_ERR_SETUP_CSPACE", f"the domain's cgroup takes no process: {error.strerror}") from error

    def start(self) -> None:
        """Look to it from now on that time is kept."""
        if self._until_s is not None:
            self._later(CAUSE_WALL_TIME, max(0.0, self._until_s - _uptime_s()), self._wall_time_is_up)
        self._look_at_processor_time()

    def close(self) -> None:
        """Look no more, and leave the cgroup to the next manager."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def finish(self, ended: Ended) -> Ended:
        """What the cgroup has counted, in place of what the init has; and the cgroup is given up."""
        self.close()
        try:
            spent = self._budget.spent()
        except SpawnError:
            spent = None
        self._budget.close()
        if spent is None:
            return ended
        usage, counted = spent
        was_killed = ended.exit.reason == "signaled" and ended.exit.signal == signal.SIGKILL
        status = ExitStatus(ended.exit.code, "oom", ended.exit.signal) if was_killed and counted.oom_kills else ended.exit
        memory = usage.max_memory_bytes or ended.max_memory_bytes
        return Ended(status, ended.at_s, usage.user_s, usage.system_s, memory, ended.log_lost)

    def _later(self, what: int, seconds: float, do: Callable[[], None]) -> None:
        self._timers[what] = self._loop.call_later(seconds, do)

    def _wall_time_is_up(self) -> None:
        assert self._until_s is not None
        left = self._until_s - _uptime_s()
        if left > 0:  # the loop's clock stands still while the machine sleeps, or differs a little
            self._later(CAUSE_WALL_TIME, left, self._wall_time_is_up)
        else:
            self._end(CAUSE_WALL_TIME)

    def _look_at_processor_time(self) -> None:
        try:
            look = self._budget.next_look_s()
        except SpawnError:
            return  # it has ended
        if look == 0:
            self._end(CAUSE_CPU_TIME)
        elif look is not None:
            self._later(CAUSE_CPU_TIME, look, self._look_at_processor_time)


def _uptime_s() -> float:
    """Seconds since boot, which nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
