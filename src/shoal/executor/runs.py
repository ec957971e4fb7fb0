"""Runs: copies from the moment they wait for a call until nothing of their cell is left.

Everything here is called under the engine's lock, by its thread or by who submits.

What ends a call is always the same: a verdict is noted, its cell is killed, and the end of its process is awaited. So what a call does
with its last breath - two results, a result after its deadline, half of one - changes nothing.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any, Final, Protocol

from shoal.executor.call import Call
from shoal.executor.copy_process import READ_BYTES, CopyProcess, State, Stream, Verdict
from shoal.executor.outcome import Outcome
from shoal.executor.reactor import Reactor
from shoal.handles import reaper
from shoal.status import SpawnError

log = logging.getLogger("shoal.executor")

KILLED_S: Final = 5.0
"""How long after it was killed a process may take to end before its call is over without it."""
CLOSED_S: Final = 1.0
"""How long a call may go on after it has closed what it would tell its result by."""


class Parent(Protocol):
    """Who is told."""

    def over(self, copy: CopyProcess, call: Call[Any] | None, outcome: Outcome | None) -> None:
        """A process has ended, and with it the call that it had."""

    def progressed(self, call: Call[Any], message: bytes) -> None:
        """A call has told how far it is."""


class Runs:
    """Watches copies."""

    def __init__(self, reactor: Reactor, parent: Parent) -> None:
        self._reactor, self._parent = reactor, parent
        self._copies: set[CopyProcess] = set()

    def __bool__(self) -> bool:
        """Whether there is any, or something left of one."""
        return bool(self._copies)

    @property
    def calls(self) -> list[Call[Any]]:
        """Those that run."""
        return [copy.call for copy in self._copies if copy.call is not None]

    @property
    def pids(self) -> set[int]:
        """Of all their processes that we know."""
        return {pid for copy in self._copies for pid in copy.pids}

    def adopt(self, copy: CopyProcess) -> None:
        """It waits for a call."""
        self._copies.add(copy)
        self._reactor.watch(copy.talk_fd, lambda: self._hear(copy))
        if copy.pidfd is not None:
            self._reactor.watch(copy.pidfd.fd, lambda: self._see_end(copy))

    def start(self, copy: CopyProcess, call: Call[Any]) -> None:
        """Hand a call to a copy that waits.

        Raises:
            OSError: that cannot be done; the copy is of no use any more.
        """
        copy.started_at = call.started_at = time.monotonic()
        try:
            copy.begin(call)
        except OSError:
            self.discard(copy)
            raise
        for stream in (copy.stdout, copy.stderr):
            if stream.fd is not None:
                self._watch_stream(copy, stream)
        if call.limits.timeout_s is not None:
            copy.timers.append(self._reactor.later(call.limits.timeout_s, lambda: self.decide(copy, "wall_time")))
        if copy.budget is not None and copy.budget.cpu_s is not None:
            self._look_at_cpu(copy)
        log.debug("call %d of %s() begins", call.number, call.name)

    def end_of(self, call: Call[Any], verdict: Verdict) -> None:
        """End a call where it runs."""
        for copy in self._copies:
            if copy.call is call:
                self.decide(copy, verdict)

    def decide(self, copy: CopyProcess, verdict: Verdict, problem: str = "") -> None:
        """Why a call is over. The first that is said counts; its cell is killed."""
        if copy.state not in (State.READY, State.RUNNING):
            return
        copy.verdict, copy.problem, copy.over_at = verdict, problem, time.monotonic()
        copy.state = State.ENDING
        self._reactor.unwatch(copy.talk_fd)
        copy.timers.append(self._reactor.later(KILLED_S, lambda: self._unkillable(copy)))
        copy.kill()

    def discard(self, copy: CopyProcess) -> None:
        """Nobody needs it."""
        copy.call = None
        self.decide(copy, "killed")

    def bury(self, copy: CopyProcess) -> None:
        """It came to nothing before it waited for a call: end it, and see to what is left."""
        self._copies.add(copy)
        if copy.pidfd is not None:
            copy.state = State.READY
            self._reactor.watch(copy.pidfd.fd, lambda: self._see_end(copy))
            self.discard(copy)
        else:
            copy.kill()
            self._await_cell_end(copy)

    def forget(self) -> None:
        """After os.fork() in the child: all of it is the parent's."""
        for copy in self._copies:
            copy.forget()
        self._copies.clear()

    # --- what comes from them -----------------------------------------------------------------------------------------------------

    def _hear(self, copy: CopyProcess) -> None:
        more = copy.receive()
        if copy.state is State.RUNNING:
            self._take_frames(copy)
        if not more:
            self._reactor.unwatch(copy.talk_fd)
            problem = "it has closed the channel by which results come back"
            copy.timers.append(self._reactor.later(CLOSED_S, lambda: self.decide(copy, "bad_result", problem)))

    def _take_frames(self, copy: CopyProcess) -> None:
        answer, progress = copy.frames()
        if progress is not None and copy.call is not None:
            self._parent.progressed(copy.call, progress)
        if isinstance(answer, str):
            self.decide(copy, "bad_result", answer)
        elif answer is not None:
            self.decide(copy, answer)

    def _watch_stream(self, copy: CopyProcess, stream: Stream) -> None:
        if stream.fd is not None:
            self._reactor.watch(stream.fd.fd, lambda: self._hear_stream(copy, stream))

    def _hear_stream(self, copy: CopyProcess, stream: Stream) -> None:
        fd = stream.fd
        if fd is None:
            return
        if not stream.read():
            self._reactor.unwatch(fd.fd)
            stream.fd = None
        call = copy.call
        if call is not None and call.limits.on_output_limit == "kill" and stream.total > stream.limit:
            self.decide(copy, "output_limit")

    def _look_at_cpu(self, copy: CopyProcess) -> None:
        if copy.state is not State.RUNNING or copy.budget is None:
            return
        with suppress(SpawnError):
            wait = copy.budget.next_look_s()
            if wait == 0:
                self.decide(copy, "cpu_time")
            elif wait is not None:
                copy.timers.append(self._reactor.later(wait, lambda: self._look_at_cpu(copy)))

    # --- their end ----------------------------------------------------------------------------------------------------------------

    def _see_end(self, copy: CopyProcess) -> None:
        """Its process has ended."""
        if not copy.reap():
            reaper.pause_for_tracer()
            return
        if copy.state is State.RUNNING:
            self._hear_late(copy)
        self._over(copy)

    def _hear_late(self, copy: CopyProcess) -> None:
        """What it told before it ended and is not read yet. Somebody else may still be telling."""
        most = copy.call.limits.result_bytes + 2 * READ_BYTES if copy.call is not None else 0
        while copy.state is State.RUNNING and most > 0:
            before = copy.received_bytes
            copy.receive()
            self._take_frames(copy)
            if copy.received_bytes == before:
                break
            most -= copy.received_bytes - before

    def _unkillable(self, copy: CopyProcess) -> None:
        """It was killed and sleeps in the kernel where no signal reaches it. It can do nothing any more, and nobody waits for it."""
        if copy.state is State.ENDING:
            copy.problem = copy.problem or "it was killed, and the kernel has not let go of its process yet"
            self._over(copy)

    def _over(self, copy: CopyProcess) -> None:
        """Tell its call, give up what it had, and wait for the rest of its cell."""
        self._unwatch(copy)
        copy.over_at = copy.over_at or time.monotonic()
        copy.kill()
        for stream in (copy.stdout, copy.stderr):
            with suppress(OSError):
                stream.read_rest()
        call, copy.call = copy.call, None
        outcome = None if call is None else Outcome.of(copy, call)
        self._parent.over(copy, call, outcome)
        self._await_cell_end(copy)

    def _await_cell_end(self, copy: CopyProcess) -> None:
        copy.settle()
        keeper = copy.keeper
        if copy.pidfd is not None or keeper is None or keeper.settle():
            self._forget(copy)
            return
        self._reactor.watch(keeper.fileno(), lambda: self._see_cell_end(copy))
        copy.timers.append(self._reactor.later(reaper.OVERDUE_S, lambda: self._overdue(copy, reaper.OVERDUE_S)))

    def _see_cell_end(self, copy: CopyProcess) -> None:
        if copy.keeper is not None and copy.keeper.settle():
            self._forget(copy)

    def _overdue(self, copy: CopyProcess, waited_s: float) -> None:
        """What its program has made our child, the cell waits for us to reap."""
        if copy in self._copies and copy.keeper is not None:
            reaper.reap_brothers((copy.keeper,))
            wait = min(2 * waited_s, 1.0)
            copy.timers.append(self._reactor.later(wait, lambda: self._overdue(copy, wait)))

    def _unwatch(self, copy: CopyProcess) -> None:
        self._reactor.unwatch(copy.talk_fd)
        for fd in (copy.stdout.fd, copy.stderr.fd, copy.pidfd):
            if fd is not None:
                self._reactor.unwatch(fd.fd)
        for timer in copy.timers:
            timer.cancel()
        copy.timers.clear()

    def _forget(self, copy: CopyProcess) -> None:
        """It is no business of ours any more."""
        self._unwatch(copy)
        if copy.keeper is not None:
            self._reactor.unwatch(copy.keeper.fileno())
        self._copies.discard(copy)
        copy.let_go()
