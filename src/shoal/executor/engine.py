"""Engine: what runs the calls of one executor. One thread watches everything; whoever submits hands a waiting copy its call directly.

Copies are made by a `Nursery` and watched by `Runs`; here is who gets which, and when. Everything that is shared is changed under one
lock, and no code of the program's (callbacks of futures, progress) runs under it.

A call is over when its process has ended and been reaped, not before: when its future is done, nothing of it runs.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from shoal.executor.call import Call
from shoal.executor.copy_process import CopyProcess
from shoal.executor.errors import BrokenSandboxError
from shoal.executor.nursery import GroupOf, Nursery
from shoal.executor.outcome import Outcome, progress_of
from shoal.executor.reactor import Reactor
from shoal.executor.runs import KILLED_S, Runs
from shoal.executor.zygote_process import Recipe
from shoal.handles import reaper

log = logging.getLogger("shoal.executor")


class Engine:
    """Runs calls.

    Args:
        recipe: what the zygote is started from.
        group_of: makes the budget of a call; counted: every call has one.
        max_workers: how many run at once. warm: how many copies wait for a call.
    """

    def __init__(self, recipe: Recipe, group_of: GroupOf, *, counted: bool, max_workers: int, warm: int) -> None:
        self.max_workers, self.warm = max_workers, warm
        self._owner = os.getpid()
        self._lock = threading.RLock()  # a signal handler may fork or submit while its thread is in here
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Call[Any]] = deque()
        self._idle: deque[CopyProcess] = deque()
        self._busy = 0
        self._done: list[Callable[[], None]] = []
        """What is to be done once the lock is free: mostly telling futures."""
        self._thread: threading.Thread | None = None
        self._pausing = self._closing = self._stopped = False
        self._last_awaited = self._impatient = False
        self._reactor = Reactor()
        try:
            self._runs = Runs(self._reactor, self)
            self._nursery = Nursery(recipe, self._reactor, group_of, self, counted=counted)
        except BaseException:
            self._reactor.close()
            raise
        self._ensure_thread()

    # --- what others call ---------------------------------------------------------------------------------------------------------

    def submit(self, call: Call[Any]) -> None:
        """Run a call as soon as there is room.

        Raises:
            BrokenSandboxError: there will never be a sandbox for it.
            RuntimeError: it was shut down, or belongs to another process.
        """
        with self._lock:
            self._check_owner()
            if self._nursery.broken is not None:
                raise _fresh(self._nursery.broken)
            if self._closing:
                raise RuntimeError("cannot submit a call after shutdown")
            self._queue.append(call)
            self._dispatch()
            self._ensure_thread()
            if self._done:
                self._signal()

    def give_up(self, call: Call[Any]) -> None:
        """It was cancelled: kill it where it runs."""
        with self._lock:
            if os.getpid() != self._owner:
                return
            with suppress(ValueError):
                self._queue.remove(call)
                call.finish()
            for copy in self._nursery.copies_of(call):
                copy.verdict = "killed"
                copy.kill()
            self._runs.end_of(call, "killed")
            self._signal()

    def wait_ready(self, timeout: float | None) -> bool:
        """Wait until the zygote has loaded its modules and `warm` copies wait. False: not within `timeout`.

        Raises:
            BrokenSandboxError: that will never be.
        """
        with self._lock:
            self._check_owner()
            self._signal()
            self._changed.wait_for(lambda: self._nursery.broken is not None or self._stopped or self._is_ready, timeout)
            if self._nursery.broken is not None:
                raise _fresh(self._nursery.broken)
            return self._is_ready

    def close(self, *, wait: bool, cancel: bool) -> None:
        """Take no more calls. Those that it has are run to their end.

        Args:
            wait: until all is gone. cancel: those that have not begun are not run, as Executor.shutdown() has it.
        """
        with self._lock:
            if os.getpid() != self._owner:
                return
            self._closing = True
            waiting = list(self._queue) if cancel else []
            self._signal()
        for call in waiting:
            call.cancel()
        if wait and threading.current_thread() is not self._thread:
            with self._lock:
                self._changed.wait_for(lambda: self._stopped)
                thread = self._thread
            if thread is not None:
                thread.join()

    def abort(self) -> None:
        """End all calls, and return when nothing is left. For the end of the interpreter."""
        with self._lock:
            if os.getpid() != self._owner or self._stopped:
                return
            self._closing = True
            calls = [*self._queue, *self._nursery.calls, *self._runs.calls]
        for call in calls:
            call.cancel()
        self.close(wait=True, cancel=True)

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closing

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left, or it is somebody else's."""
        return self._stopped or os.getpid() != self._owner

    @property
    def zygote_pid(self) -> int | None:
        with self._lock:
            return self._nursery.zygote_pid

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many calls run and wait, and how many copies wait for one."""
        with self._lock:
            return self._busy, len(self._queue), len(self._idle)

    # --- os.fork() ----------------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Pause: no thread is in the middle of anything while the program forks. The calls go on."""
        with self._lock:
            self._pausing = True
            thread = self._thread
            self._signal()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)  # it may be in a callback, or want the lock that a signal handler's thread holds
        self._lock.acquire()

    def after_fork(self) -> None:
        self._pausing = False
        if not self._stopped:
            self._ensure_thread()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """All of it is the parent's: close what would keep it alive."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._reactor.close()
        self._runs.forget()
        self._nursery.forget()
        self._idle.clear()
        self._queue.clear()
        self._thread = None

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError(f"this executor belongs to process {self._owner}, of which this one is a fork; make another one here")

    # --- the thread ---------------------------------------------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if self._thread is None and not self._pausing:
            self._thread = threading.Thread(target=self._run, name="shoal-executor", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        leaving = False
        while not leaving:
            events = self._reactor.wait()
            with self._lock:
                self._reactor.handle(events)
                self._dispatch()
                if self._is_done():
                    self._stopped = leaving = True
                    self._reactor.close()
                elif self._pausing:
                    leaving = True
                    self._thread = None  # another one goes on when the fork is done
                done, self._done = self._done, []
            for tell in done:
                try:
                    tell()
                except BaseException:
                    log.exception("a call could not be told of its end")
            reaper.sweep()
            with self._lock:
                self._changed.notify_all()

    def _signal(self) -> None:
        if threading.current_thread() is not self._thread and not self._stopped:
            self._reactor.wake()

    @property
    def _is_ready(self) -> bool:
        return self._nursery.is_ready and len(self._idle) >= self.warm

    def _is_done(self) -> bool:
        """Whether nothing is left to be done for anybody, nor of what was done."""
        if not self._closing or self._queue or self._busy:
            return False
        while self._idle:
            self._runs.discard(self._idle.popleft())
        self._nursery.discard_made()
        if self._nursery.asked and not self._impatient:  # what is being made now is told in a moment, and ended then
            if not self._last_awaited:
                self._last_awaited = True
                self._reactor.later(KILLED_S, self._lose_patience)
            return False
        self._nursery.end()
        return not self._runs

    def _lose_patience(self) -> None:
        self._impatient = True

    # --- who gets which -----------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Let calls begin for which there is room, and see to it that there are copies for those that wait."""
        while self._queue and self._busy < self.max_workers:
            call = self._queue[0]
            if call.limits.changed and call.limits.needs_group:
                if not self._nursery.ask(call):
                    return
                self._queue.popleft()
                self._busy += 1
            elif self._idle:
                self._queue.popleft()
                self._busy += 1
                self._start(self._idle.popleft(), call)
            else:
                break
        if self._closing and not self._queue:
            return
        wanted = min(len(self._queue), self.max_workers - self._busy) + self.warm - len(self._idle) - self._nursery.plain
        while wanted > 0 and self._nursery.ask(None):
            wanted -= 1

    def _start(self, copy: CopyProcess, call: Call[Any]) -> None:
        try:
            self._runs.start(copy, call)
        except OSError as error:
            self._busy -= 1
            self._refuse(call, BrokenSandboxError(f"the call of {call.name}() could not be handed over: {error}"))

    def _refuse(self, call: Call[Any], error: BaseException) -> None:
        """It never ran."""
        call.reason = "setup_failed"
        self._done.append(lambda: call.finish(error=_fresh(error)))

    # What nursery and runs tell.

    def take(self, copy: CopyProcess) -> None:
        self._runs.adopt(copy)
        if copy.call is not None:
            self._start(copy, copy.call)
        else:
            self._idle.append(copy)

    def bury(self, copy: CopyProcess) -> None:
        self._runs.bury(copy)

    def take_back(self, call: Call[Any], *, given_up: bool) -> None:
        self._busy -= 1
        if given_up:
            self._done.append(call.finish)
        else:
            self._queue.appendleft(call)

    def no_copies(self, error: BaseException) -> None:
        while self._queue:
            self._refuse(self._queue.popleft(), error)

    def anything_runs(self) -> bool:
        return self._busy > 0

    def known_pids(self) -> set[int]:
        return self._runs.pids

    def over(self, copy: CopyProcess, call: Call[Any] | None, outcome: Outcome | None) -> None:
        if copy in self._idle:  # somebody has killed it while it waited, and may do so again
            self._idle.remove(copy)
            self._nursery.pause()
        if call is not None and outcome is not None:
            self._busy -= 1
            self._done.append(lambda: outcome.tell(call))

    def progressed(self, call: Call[Any], message: bytes) -> None:
        self._done.append(lambda: progress_of(call, message))


def _fresh(error: BaseException) -> BaseException:
    """An exception of its own for each who raises it, since that adds a traceback to it."""
    if not isinstance(error, BrokenSandboxError):
        return error
    made = type(error)(str(error))
    made.__cause__ = error.__cause__
    for note in getattr(error, "__notes__", ()):
        made.add_note(note)
    return made
