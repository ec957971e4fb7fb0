"""Running: one run, from its start to its result, without a way to wait.

What a run does is written here once. Between its steps something has to be waited for: a thread sleeps (`run()`), an event loop does
other things (`shoal.aio`). So `following()` is a generator of waits, and whoever drives it waits in the way it has.

Ownership: pipes, process and job are the run's; `close()` gives up all of them, in any state.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from shoal import records
from shoal.cells import fetch
from shoal.handles import reaper
from shoal.handles.deadline import Deadline, Wait
from shoal.handles.process import Process, Usage
from shoal.handles.reaper import OwnedFd
from shoal.launcher import END_S
from shoal.sandbox.errors import NOT_EXECUTABLE, NOT_FOUND, RequestError
from shoal.sandbox.landlocked import note_own_user
from shoal.sandbox.launch import Boxed, Order
from shoal.sandbox.limits import NO_BUDGET, Budget, sum_up
from shoal.sandbox.output import Captured, Pump, Why
from shoal.sandbox.program import Program, current_directory, find_program
from shoal.sandbox.request import PIPE, STDOUT, Request
from shoal.sandbox.result import Reason, Result, RunUsage, decoded
from shoal.status import Stage, Status, failure
from shoal.units import parse_duration

if TYPE_CHECKING:
    from shoal.handles.job_backend import Counters
    from shoal.sandbox.denied import Denied
    from shoal.sandbox.unkilled import Unkilled

T = TypeVar("T")
LOGGER = "shoal.run"
LOOK_S = 0.2
"""How often somebody looks after a cell that outlives its program."""


class Move(NamedTuple):
    """A wait in which the pipes are served: until `fd` is readable and what was in them is read, a limit, or the deadline."""

    fd: int
    deadline: Deadline


Steps = Generator[Wait | Move, Any, T]
"""A `Wait` is answered with whether its descriptor is readable, a `Move` with `Why` it is over."""
End = Reason | Literal["timeout"] | None


class Running:
    """One run. `begin()` (or `prepare()`, to look only), drive `following()`, `close()`, `result()`; `ending()` at any time between.

    Args:
        in_loop: the pipes can be waited for in an event loop.
    """

    __slots__ = (
        "_budget",
        "_captured",
        "_doomed",
        "_end",
        "_in_loop",
        "_order",
        "_started",
        "_wall_s",
        "enforced",
        "is_over",
        "left",
        "process",
        "pump",
        "reason",
        "request",
        "returncode",
        "usage",
        "was_killed",
    )

    def __init__(self, request: Request, *, in_loop: bool = False) -> None:
        self.request = request
        self.process: Process | None = None
        self.pump: Pump | None = None
        self.enforced: Mapping[str, bool | str] = {}
        self.is_over = False
        self.was_killed = False
        self.returncode: int | None = None
        self.usage: RunUsage | None = None
        self.reason: Reason | None = None
        self.left: tuple[Unkilled, ...] = ()
        self._in_loop = in_loop
        self._end: End = None
        self._budget = NO_BUDGET
        self._order: Order | None = None
        self._started = 0.0
        self._wall_s = 0.0
        self._doomed: list[OwnedFd] = []
        self._captured: Mapping[str, Captured] = {}

    # --- from the start to the end -------------------------------------------------------------------

    def prepare(self) -> Order:
        """Find the program, and open what it is to be given. What was opened is open until `close()`.

        Raises:
            NotFoundError, AccessDeniedError: there is no such program, or it cannot be executed.
        """
        request, starter = self.request, self.request.starter
        host_cwd = request.host_cwd
        if host_cwd is None:
            host_cwd = current_directory() if starter.looks_around(request.words[0]) else "/"
        program = _program(request.words[0], starter.search, host_cwd)
        ends: Mapping[int, int] = {}
        if request.has_pipes:
            self.pump = Pump(
                data=request.data,
                stdout=request.stdout == PIPE,
                stderr=request.stderr == PIPE,
                limit_bytes=request.output_limit_bytes,
                policy=request.on_output_limit,
                spill_directory=request.spill_directory,
                in_loop=self._in_loop,
                heard=request.heard,
            )
            ends = self.pump.ends
        self._order = Order(program, request.words[1:], request.descriptors(ends), host_cwd)
        return self._order

    def begin(self) -> None:
        """Start the program. On an error nothing runs; what was opened is open until `close()`.

        Raises:
            What `prepare()` does. SpawnError, RequestError: it could not be started; ValueError: what was asked for cannot be meant.
        """
        request, starter = self.request, self.request.starter
        order = self.prepare()
        self._started = time.monotonic()
        budget = self._budget = Budget.of(starter.box)
        enforced = starter.enforced_with(budget.enforced)
        process = self.process = starter.launch(order, budget.job)
        note_own_user(enforced, process)
        self.enforced = enforced
        # What is to be done once for each run is done while the program starts.
        records.began(LOGGER, request.words[0], process.pid)
        process.look_ahead()
        reaper.sweep()
        fetch()

    def following(self) -> Steps[None]:
        """Wait for the end, and bring it about where it has to be. Afterwards all that `result()` tells is known."""
        process = self.process
        assert process is not None
        self._end, gone = yield from self._until_end(process)
        self._wall_s = time.monotonic() - self._started
        if self.pump is not None:
            self._captured = self.pump.finish()
        if gone:
            returncode = yield from process.waiting()
            own = process.usage or Usage(0.0, 0.0, 0)
        else:
            from shoal.sandbox.unkilled import ending_of, unkilled

            self.left = unkilled(process)
            returncode, own = ending_of(process)
        self._sum_up(returncode, own, self._budget.spent())

    def only_end(self) -> int:
        """The descriptor that becomes readable with its end, where there is nothing to be waited for besides; else -1."""
        has_limit = self.request.timeout_s is not None or self.request.starter.box.wall_time is not None
        if self.process is None or self.pump is not None or has_limit or self._budget.next_look_s() is not None:
            return -1
        return self.process.fileno()

    def kill(self) -> None:
        """Kill all of it. The end is then to be waited for as ever: whoever waits for a `Move` answers it now. The reason is "killed"."""
        if self.process is not None and not self.process.closed and not self.is_over:
            self.was_killed = True
            self._doomed += self.request.starter.kill(self.process)

    def ending(self) -> Steps[None]:
        """End all of it, whatever it was doing, and wait until it is gone or cannot be killed."""
        process = self.process
        if process is not None and not self.is_over:
            self.kill()
            yield from self._ending(process)

    def close(self) -> None:
        """Give up all that the run has. What it has started and nobody has ended is killed. Closing twice is fine."""
        process = self.process
        if process is not None and not process.closed:
            self.kill()
            process.close()
        if self.pump is not None:
            self.pump.close()
        budget, self._budget = self._budget, NO_BUDGET
        budget.close()
        self._doomed.clear()

    @property
    def is_closed(self) -> bool:
        """Whether `close()` has been called."""
        return self.process is None or self.process.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _until_end(self, process: Process) -> Steps[tuple[End, bool]]:
        """Why it ended (None: by itself), and whether all has ended."""
        box, patience = self.request.starter.box, self.request.timeout_s
        wall = None if box.wall_time is None else parse_duration(box.wall_time)
        by_wall = wall is not None and (patience is None or wall < patience)
        limit = wall if by_wall else patience
        last = None if limit is None else self._started + limit
        why = yield from self._move(process.fileno(), last)
        if why is Why.ENDED and box.linger == "wait" and (rest := process.cell_end()) is not None:
            yield from process.waiting()  # a cell is not gone as long as its program has not been reaped
            while (why := (yield from self._move(rest.fd, _sooner(last)))) is Why.DEADLINE and (last is None or time.monotonic() < last):
                reaper.sweep()  # what its program made our child, the cell waits for us to reap
        if why is Why.ENDED:
            return None, (yield from process.ending(END_S)) if box.linger == "kill" and process.left_something() else True
        if why != "killed":
            self._doomed += self.request.starter.kill(process)
        gone = yield from self._ending(process)
        if isinstance(why, str):
            return why, gone
        return "output_limit" if why is Why.LIMIT else "wall_time" if by_wall else "timeout", gone

    def _ending(self, process: Process) -> Steps[bool]:
        """Wait until all that has been killed is gone. Whether it is."""
        gone = yield from process.ending(END_S)
        deadline = Deadline(END_S)
        for pidfd in self._doomed:
            gone = (yield Wait(pidfd.fd, deadline)) and gone
        return gone

    def _move(self, until: int, last: float | None) -> Steps[Why | Literal["cpu_time", "killed"]]:
        """Move bytes until `until` is readable, `last` has come, the processor time is used up, or somebody has killed it."""
        while not self.was_killed:
            left = None if last is None else last - time.monotonic()
            look = self._budget.next_look_s()
            if look == 0:
                return "cpu_time"
            soonest = look if left is None else left if look is None else min(look, left)
            why: Why = yield Move(until, Deadline(soonest))
            if not self.was_killed and (why is not Why.DEADLINE or (last is not None and time.monotonic() >= last)):
                return why
        return "killed"

    # --- what is told of it --------------------------------------------------------------------------

    def _sum_up(self, returncode: int, own: Usage, spent: tuple[Usage, Counters] | None) -> None:
        self.usage, self._end = sum_up(self._wall_s, own, spent, returncode, self._end, self.request.starter.box)
        if self._end == "killed" and returncode >= 0:
            self._end = None  # it was quicker
        self.returncode = returncode
        by_itself: Reason = "exited" if returncode >= 0 else "signaled"
        self.reason = by_itself if self._end is None else "killed" if self._end == "timeout" else self._end
        self.is_over = True
        if self.process is not None:
            records.ended(LOGGER, self.request.words[0], self.process.pid, returncode, self.reason, self.message)

    @property
    def message(self) -> str:
        """What a person should know of what is left."""
        if not self.left:
            return ""
        from shoal.sandbox.unkilled import in_words

        return in_words(self.left)

    @property
    def ended_well(self) -> bool:
        """Whether `result()` takes no time: nothing has to be found out."""
        return self._end is not None or not self.returncode

    @property
    def is_late(self) -> bool:
        """Whether it took longer than the request allows."""
        return self._end == "timeout"

    def result(self) -> Result:
        """How it ended. Once it is over.

        Raises:
            TimeoutExpired: it took longer than the request allows.
            UnicodeError, LookupError: its output is not in the encoding it was said to be in, or there is no such encoding.
        """
        result = self.outcome()
        if self.is_late:
            raise too_late(self.request.words, self.request.timeout_s, [result])
        return result

    def outcome(self) -> Result:
        """The same, also of what took too long: it was killed."""
        request, captured = self.request, self._captured
        assert self.usage is not None
        assert self.reason is not None
        assert self.returncode is not None
        try:
            output: dict[str, Any] = {
                name: decoded(item.data, truncated=item.facts.truncated, encoding=request.encoding, errors=request.errors)
                if request.as_text
                else item.data
                for name, item in captured.items()
            }
        except (UnicodeError, LookupError):
            self.remove_spilled()
            raise
        return Result(
            request.words,
            self.returncode,
            output.get("stdout"),
            output.get("stderr"),
            reason=self.reason,
            usage=self.usage,
            enforced=self.enforced,
            output={name: item.facts for name, item in captured.items()},
            denied=() if self.ended_well else self._denied(captured),
            unkilled=[each.pid for each in self.left],
            message=self.message,
        )

    def remove_spilled(self) -> None:
        """Remove the files that nobody will ever learn of."""
        for item in self._captured.values():
            if item.facts.spill_path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(item.facts.spill_path)

    def _denied(self, captured: Mapping[str, Captured]) -> tuple[Denied, ...]:
        starter, order, process = self.request.starter, self._order, self.process
        if not isinstance(starter, Boxed) or order is None or process is None or self.returncode is None:
            return ()
        from shoal.sandbox.denied import denied_in

        heard = captured.get("stdout" if self.request.stderr == STDOUT else "stderr")
        since = time.time() - self._wall_s
        return denied_in(starter, order, process, since, self.returncode, None if heard is None else heard.data)


def too_late(words: Sequence[str] | str, timeout_s: float | None, results: Sequence[Result]) -> subprocess.TimeoutExpired:
    """What is raised for what has taken too long: with the output of the last, and what is to be known of each."""
    late = subprocess.TimeoutExpired(words, timeout_s or 0.0, results[-1].stdout, results[-1].stderr)
    for result in results:
        for facts in result.output.values():
            if facts.spill_path is not None:
                late.add_note(f"what it wrote is in {facts.spill_path}")
        if result.message:
            late.add_note(result.message)
    return late


def _sooner(last: float | None) -> float:
    soon = time.monotonic() + LOOK_S
    return soon if last is None else min(soon, last)


def _program(name: str, search: str, host_cwd: str) -> Program:
    try:
        return find_program(name, search, host_cwd)
    except RequestError as error:
        status = {NOT_FOUND: Status.NOT_FOUND, NOT_EXECUTABLE: Status.ACCESS_DENIED}.get(error.code, Status.INVALID_ARGS)
        raise failure(status, Stage.LOAD, error.message) from None
