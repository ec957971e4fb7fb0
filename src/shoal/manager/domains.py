"""Domains: what a manager knows of each, its states, and who waits for what.

The table of the spec, completed: NIL before the first instruction, RUNNING, STOP_PENDING from the first accepted kill, STOPPED once
no dispatcher is left and the status is final, CLEANED when everything of it has been given back. Nothing here does I/O.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from shoal.manager.errors import ManagerError
from shoal.manager.ledger import CAUSE_CPU_TIME, CAUSE_ITSELF, CAUSE_KILLED, CAUSE_UNBEGUN, CAUSE_WALL_TIME, Slot

KILLED_STATUS: Final = 9
"""EXIT_STATUS_KILLED of the seed."""
LOST_STATUS: Final = 255
_CLD_EXITED: Final = 1

Reason = Literal["exited", "killed", "signaled", "oom", "wall_time", "cpu_time", "lost"]


_BY_CAUSE: Final[dict[int, Reason]] = {CAUSE_KILLED: "killed", CAUSE_WALL_TIME: "wall_time", CAUSE_CPU_TIME: "cpu_time"}


class State(enum.Enum):
    """The states of the seed. The values are the words of the public interface."""

    NIL = "nil"
    RUNNING = "running"
    STOP_PENDING = "stop_pending"
    STOPPED = "stopped"
    CLEANED = "cleaned"

    @property
    def letter(self) -> str:
        """What ps shows."""
        return {"nil": "N", "running": "R", "cleaned": "C"}.get(self.value, "S")


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a domain ended.

    Attributes:
        code: the exit code; 9 for a kill, as in the seed; 128 + N for signal N; 255 for a domain that was lost.
        reason: told apart from a program that exits with 9.
        signal: that ended it, if one did.
    """

    code: int
    reason: Reason
    signal: int | None


@dataclass(slots=True)
class Ended:
    """An end with what it cost; times in seconds since 1970."""

    exit: ExitStatus
    at_s: float
    user_s: float = 0.0
    system_s: float = 0.0
    max_memory_bytes: int = 0
    log_lost: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "code": self.exit.code,
            "reason": self.exit.reason,
            "signal": self.exit.signal,
            "at_s": self.at_s,
            "user_s": self.user_s,
            "system_s": self.system_s,
            "max_memory_bytes": self.max_memory_bytes,
            "log_lost": self.log_lost,
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Ended:
        rest = {key: value for key, value in told.items() if key not in ("code", "reason", "signal")}
        return cls(ExitStatus(told["code"], told["reason"], told["signal"]), **rest)


def ended_by(slot: Slot) -> Ended:
    """What an init has written, as an end."""
    if slot.cause not in (CAUSE_ITSELF, CAUSE_UNBEGUN):
        status = ExitStatus(KILLED_STATUS, _BY_CAUSE.get(slot.cause, "killed"), KILLED_STATUS)
    elif slot.code == _CLD_EXITED:
        status = ExitStatus(slot.status, "exited", None)
    else:
        status = ExitStatus(128 + slot.status, "signaled", slot.status)
    return Ended(
        status,
        slot.ended_ns / 1e9,
        slot.user_us / 1e6,
        slot.system_us / 1e6,
        slot.max_rss_kib * 1024,
        slot.log_lost,
    )


def never() -> Ended:
    """The end of what has not begun."""
    return Ended(ExitStatus(LOST_STATUS, "lost", None), time.time())


Waiter = Callable[["Ended | ManagerError"], None]


@dataclass(slots=True)
class Domain:
    """One domain.

    Attributes:
        pids: of its dispatchers, by core; the first comes first. 0: one that is being started.
        sandbox: as JSON, without its variables; None: it sees what the manager does. bounds: what Bounds wants to be remembered.
        descriptors: what those lead to that it was handed: inspecting.py.
    """

    id: int
    key: int
    slot: int
    name: str
    argv: list[bytes]
    pids: dict[int | str, int]
    started_s: float
    path: str = ""
    cwd: str = "/"
    sandbox: str | None = None
    bounds: dict[str, Any] = field(default_factory=dict)
    descriptors: list[dict[str, Any]] = field(default_factory=list)
    state: State = State.NIL
    ended: Ended | None = None
    waiters: dict[object, Waiter] = field(default_factory=dict)
    stoppers: dict[object, Waiter] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """What is to be remembered besides, in the types of JSON."""
        others = [[core, pid] for core, pid in list(self.pids.items())[1:]]
        told = {
            "descriptors": self.descriptors,
            "path": self.path,
            "cwd": self.cwd,
            "sandbox": self.sandbox,
            "bounds": self.bounds,
            "dispatchers": others,
            "started_s": self.started_s,
        }
        return {name: value for name, value in told.items() if value}

    # --- what may be asked of it ----------------------------------------------------------------

    def wait(self, who: object, waiter: Waiter) -> None:
        """Call `waiter` when it has ended; at once, if it has."""
        if self.ended is not None:
            waiter(self.ended)
        else:
            self.waiters[who] = waiter

    def stop(self, who: object, stopper: Waiter) -> bool:
        """Call `stopper` when it is gone. True: the one who asks is the first, so that it has to be brought about.

        Raises:
            ManagerError: it has ended already.
        """
        if self.state in (State.STOPPED, State.CLEANED):
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", f"domain {self.id} has ended already")
        self.stoppers[who] = stopper
        first = self.state is not State.STOP_PENDING
        if self.state is State.RUNNING:
            self.state = State.STOP_PENDING
        return first and self.state is not State.NIL

    def check_running(self) -> None:
        """
        Raises:
            ManagerError: it is not.
        """
        if self.state is not State.RUNNING:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", f"domain {self.id} is not running, but {self.state.value}")

    def check_span(self, core: int | str) -> None:
        """
        Raises:
            ManagerError: no dispatcher can be added on that core.
        """
        self.check_running()
        if core in self.pids:
            raise ManagerError("PROC_MGMT_ERR_ALREADY_SPANNED", f"domain {self.id} has a dispatcher on core {core} already")

    def forget(self, who: object) -> None:
        """Nobody waits there any more."""
        self.waiters.pop(who, None)
        self.stoppers.pop(who, None)

    # --- what happens to it -----------------------------------------------------------------------

    def running(self, core: int | str, pid: int) -> None:
        """Its first dispatcher runs. A kill that came before is carried out now."""
        self.pids[core] = pid
        self.state = State.STOP_PENDING if self.stoppers else State.RUNNING

    def is_found(self, pid: int) -> None:
        """It runs, as a new manager finds; pid: of its first dispatcher. A kill that came meanwhile is carried out now."""
        self.pids[next(iter(self.pids))] = pid
        self.state = State.STOP_PENDING if self.stoppers else State.RUNNING

    def has_ended(self, ended: Ended) -> None:
        """Everybody who waits is told."""
        self.ended = ended
        self.state = State.STOPPED
        told = [*self.stoppers.values(), *self.waiters.values()]
        self.stoppers.clear()
        self.waiters.clear()
        for each in told:
            each(ended)

    def not_started(self, error: ManagerError) -> None:
        """It never began: whoever waits is told so."""
        told = [*self.stoppers.values(), *self.waiters.values()]
        self.stoppers.clear()
        self.waiters.clear()
        for each in told:
            each(error)
