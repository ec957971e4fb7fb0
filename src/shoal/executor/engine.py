"""Engine: what runs the calls of one executor. One thread watches everything; whoever submits hands a waiting copy its call directly.

Touches: the zygote, its copies, their descriptors; futures. Everything that is shared is changed under one lock, and no code of the
program's (callbacks of futures, progress) runs under it.

A call is over when its process has ended and been reaped, not before: when its future is done, nothing of it runs. What ends a call is
always the same: a verdict is noted, its cell is killed, and the end of its process is awaited. So what a call does with its last breath -
two results, a result after its deadline, half of one - changes nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from shoal import _native
from shoal.executor.call import Call
from shoal.executor.copy_process import CopyProcess, State
from shoal.executor.errors import BrokenSandboxError, PreloadError
from shoal.executor.outcome import Outcome, progress_of
from shoal.executor.reactor import Reactor
from shoal.executor.zygote_process import Made, Recipe, ZygoteProcess
from shoal.handles import reaper
from shoal.handles.keeper import launch_error
from shoal.sandbox.limits import Budget
from shoal.status import SpawnError

log = logging.getLogger("shoal.executor")

ASKED_MOST: Final = 4
"""So many copies are asked for at once: the zygote makes one after the other."""
HOPELESS: Final = 3
"""After so many failures in a row, with nothing running whose end could help, what waits is told."""
KILLED_S: Final = 5.0
"""How long after it was killed a process may take to end before its call is over without it."""
CLOSED_S: Final = 1.0
"""How long a call may go on after it has closed what it would tell its result by."""
RETRY_S: Final = 0.05

GroupOf = Callable[["Call[Any] | None"], Budget]

_BUFFER = 256 << 10


class Engine:
    """Runs calls.

    Args:
        recipe: what the zygote is started from.
        group_of: makes the budget of a call, where something is to be counted for all of it; raises what `Budget.of()` does.
        counted: every call is counted.
        max_workers: how many run at once. warm: how many copies wait for a call.
    """

    def __init__(
        self, recipe: Recipe, group_of: Callable[[Call[Any] | None], Budget], *, counted: bool, max_workers: int, warm: int
    ) -> None:
        self.max_workers, self.warm = max_workers, warm
        self._recipe, self._group_of, self._counted = recipe, group_of, counted
        self._begin()
        self._zygote: ZygoteProcess | None = ZygoteProcess(recipe)  # here, so that its errors are the constructor's
        self._watch_zygote()
        self._ensure_thread()
        log.debug("zygote %d started, to load %s", self._zygote.pid, ", ".join(recipe.preload) or "nothing")

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._owner = os.getpid()
        self._queue: deque[Call[Any]] = deque()
        self._copies: set[CopyProcess] = set()
        self._asked: deque[CopyProcess] = deque()
        self._idle: deque[CopyProcess] = deque()
        self._done: list[Callable[[], None]] = []
        """What is to be done once the lock is free: mostly telling futures."""
        self._reactor = Reactor()
        self._thread: threading.Thread | None = None
        self._buffer = memoryview(bytearray(_BUFFER))
        self._busy = 0
        self._failures = 0
        self._pausing = self._closing = self._stopped = False
        self._retrying = self._waiting_for_last = self._impatient = False
        self._broken: BaseException | None = None

    # --- what others call ---------------------------------------------------------------------------------------------------------

    def submit(self, call: Call[Any]) -> None:
        """Run a call as soon as there is room.

        Raises:
            BrokenSandboxError: there will never be a sandbox for it.
            RuntimeError: it was shut down.
        """
        with self._lock:
            self._check_owner()
            if self._broken is not None:
                raise self._broken
            if self._closing:
                raise RuntimeError("cannot submit a call after shutdown")
            self._queue.append(call)
            self._dispatch()
            self._ensure_thread()
            if self._queue or self._done or len(self._idle) < self.warm:
                self._signal()

    def give_up(self, call: Call[Any]) -> None:
        """It was cancelled: kill it where it runs."""
        with self._lock:
            if os.getpid() != self._owner:
                return
            with suppress(ValueError):
                self._queue.remove(call)
                call.finish()
            for copy in self._copies:
                if copy.call is call:
                    self._decide(copy, "killed")
            self._signal()

    def wait_ready(self, timeout: float | None) -> bool:
        """Wait until the zygote has loaded its modules and `warm` copies wait. False: not within `timeout`.

        Raises:
            BrokenSandboxError: that will never be.
        """
        with self._lock:
            self._check_owner()
            self._signal()
            fine = self._changed.wait_for(lambda: self._broken is not None or self._stopped or self._is_ready(), timeout)
            if self._broken is not None:
                raise self._broken
            return fine and not self._stopped

    def close(self, *, wait: bool, cancel: bool) -> None:
        """Take no more calls. Those that it has are run to their end, or ended.

        Args:
            wait: until all is gone. cancel: end those that wait, as Executor.shutdown() has it.
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
            calls = [*self._queue, *(copy.call for copy in self._copies if copy.call is not None)]
        for call in calls:
            call.cancel()
        self.close(wait=True, cancel=True)

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closing

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return self._stopped or os.getpid() != self._owner

    @property
    def zygote_pid(self) -> int | None:
        with self._lock:
            return None if self._zygote is None else self._zygote.pid

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
            thread.join(1.0)  # a signal handler may fork while its thread holds the lock
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
        for copy in self._copies:
            copy.forget()
        if self._zygote is not None:
            self._zygote.forget()
        self._copies.clear()
        self._idle.clear()
        self._asked.clear()
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
        while True:
            events = self._reactor.wait()
            with self._lock:
                self._reactor.handle(events)
                self._dispatch()
                over = self._is_over()
                if over:
                    self._stopped = True
                    self._reactor.close()
                leaving = over or self._pausing
                if leaving and not over:
                    self._thread = None  # another one goes on when the fork is done
                done, self._done = self._done, []
                self._changed.notify_all()
            for tell in done:
                try:
                    tell()
                except BaseException:
                    log.exception("a call could not be told of its end")
            reaper.sweep()
            if leaving:
                return

    def _signal(self) -> None:
        if threading.current_thread() is not self._thread and not self._stopped:
            self._reactor.wake()

    def _is_ready(self) -> bool:
        return self._zygote is not None and self._zygote.ready and len(self._idle) >= min(self.warm, self.max_workers + self.warm)

    def _is_over(self) -> bool:
        """Whether nothing is left to be done for anybody, nor of what was done."""
        if not self._closing or self._queue or self._busy:
            return False
        for copy in list(self._copies):
            if copy.state is not State.ASKED:
                self._discard(copy)
        if self._asked and not self._impatient:  # what is being made now is told in a moment, and ended then
            if not self._waiting_for_last:
                self._waiting_for_last = True
                self._reactor.later(KILLED_S, self._lose_patience)
            return False
        self._end_zygote()
        return not self._copies

    def _lose_patience(self) -> None:
        self._impatient = True

    # --- the zygote ---------------------------------------------------------------------------------------------------------------

    def _watch_zygote(self) -> None:
        zygote = self._zygote
        assert zygote is not None
        self._reactor.watch(zygote.talk_fd, self._hear_zygote)
        self._reactor.watch(zygote.errors_fd, self._hear_errors)

    def _hear_errors(self) -> None:
        zygote = self._zygote
        if zygote is None:
            return
        fd = zygote.errors_fd
        text = zygote.hear_errors().decode("utf-8", "backslashreplace")
        if zygote.errors_fd < 0:
            self._reactor.unwatch(fd)
        for line in text.splitlines():
            log.info("zygote: %s", line)

    def _hear_zygote(self) -> None:
        while (zygote := self._zygote) is not None:
            heard = zygote.hear()
            if heard is None:
                return
            if heard is True:
                if zygote.refused:
                    self._refused(zygote.refused)
                    return
                log.debug("zygote %d is ready", zygote.pid)
            elif heard is False:
                self._lost_zygote(zygote)
                return
            elif self._asked:
                self._take_made(self._asked.popleft(), heard)

    def _refused(self, why: str) -> None:
        self._end_zygote()
        text, _, more = why.partition("\n")
        error = PreloadError(f"preload: {text}")
        if more:
            error.add_note(more.rstrip())
        self._break(error)

    def _lost_zygote(self, zygote: ZygoteProcess) -> None:
        """It has ended by itself, or by somebody's hand. Those that run already have nothing to do with it."""
        self._hear_errors()
        how, said, was_ready = zygote.status(), zygote.said, zygote.ready
        self._end_zygote()
        self._failures += 1
        words = f"the interpreter that calls are forked from has ended ({how})"
        if said:
            words += f"; it said last: {said.decode('utf-8', 'backslashreplace').strip()[-500:]}"
        log.warning("%s%s", words, "" if was_ready else ", before it was ready")
        if self._failures >= HOPELESS:
            self._break(BrokenSandboxError(f"{words}, {self._failures} times in a row"))
        elif not self._closing or self._queue:
            self._start_zygote()

    def _start_zygote(self) -> None:
        try:
            self._zygote = ZygoteProcess(self._recipe)
        except (SpawnError, OSError) as error:
            self._failures += 1
            if self._failures >= HOPELESS:
                broken = BrokenSandboxError(f"no interpreter can be started that calls could be forked from: {error}")
                broken.__cause__ = error
                self._break(broken)
            else:
                self._reactor.later(RETRY_S, self._start_zygote)
            return
        self._watch_zygote()
        log.info("zygote %d started in its place", self._zygote.pid)

    def _end_zygote(self) -> None:
        zygote, self._zygote = self._zygote, None
        if zygote is None:
            return
        self._reactor.unwatch(zygote.talk_fd)
        self._reactor.unwatch(zygote.errors_fd)
        known = {copy.pid for copy in self._copies} | {copy.keeper.pid for copy in self._copies if copy.keeper is not None}
        zygote.end(known)
        for copy in list(self._asked):  # nobody makes them any more; what they were for waits again
            self._take_back(copy)

    def _break(self, error: BaseException) -> None:
        """There will be no sandbox any more."""
        self._broken = error
        self._fail_waiting(error)

    def _fail_waiting(self, error: BaseException) -> None:
        while self._queue:
            self._tell(self._queue.popleft(), error)

    def _tell(self, call: Call[Any], error: BaseException) -> None:
        """It never ran."""
        call.reason = "setup_failed"
        self._done.append(lambda: call.finish(error=_fresh(error)))

    # --- copies: made ---------------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Let calls begin for which there is room, and see to it that there are copies for those that wait."""
        while self._queue and self._busy < self.max_workers:
            call = self._queue[0]
            if call.cancelled():
                self._queue.popleft()
                continue
            if call.limits.changed and call.limits.needs_group:
                if len(self._asked) >= ASKED_MOST or not self._ask(call):
                    return
                self._queue.popleft()
                self._busy += 1
                continue
            copy = self._next_idle()
            if copy is None:
                break
            self._queue.popleft()
            self._busy += 1
            self._start(copy, call)
        self._refill()

    def _next_idle(self) -> CopyProcess | None:
        while self._idle:
            copy = self._idle.popleft()
            if copy.state is State.READY:
                return copy
        return None

    def _refill(self) -> None:
        if self._closing and not self._queue:
            return
        plain = sum(copy.call is None for copy in self._asked) + sum(
            copy.call is None and copy.state is State.MAKING for copy in self._copies
        )
        room = self.max_workers - self._busy
        wanted = min(len(self._queue), room) + self.warm - len(self._idle) - plain
        while wanted > 0 and len(self._asked) < ASKED_MOST and self._ask(None):
            wanted -= 1

    def _ask(self, call: Call[Any] | None) -> bool:
        """Ask the zygote for a copy. Whether that could be done; else it is tried again."""
        zygote = self._zygote
        if zygote is None or not zygote.ready or self._retrying or self._broken is not None:
            return False
        budget = None
        try:
            if self._counted or call is not None:
                budget = self._group_of(call)
            copy = CopyProcess(budget, call)
        except (SpawnError, OSError, ValueError) as error:
            if budget is not None:
                budget.close()
            self._not_made(error, call)
            return False
        fds = [fd.fd for fd in copy.theirs]
        if budget is not None and budget.job is not None:
            placement = budget.job.placement("an executor")
            if placement.cgroup_fd is not None:
                fds.append(placement.cgroup_fd)
        asked = zygote.ask(fds, in_group=len(fds) > 3)
        copy.theirs = ()
        if not asked:
            copy.let_go()
            return False
        self._asked.append(copy)
        self._copies.add(copy)
        return True

    def _not_made(self, error: Exception, call: Call[Any] | None) -> None:
        """There is no copy, for a reason that may pass as long as something runs."""
        self._failures += 1
        log.debug("no copy could be made: %s", error)
        if self._busy > (call is not None and call not in self._queue) or self._failures < HOPELESS:
            self._pause()
            return
        self._failures = 0
        broken = BrokenSandboxError(f"no sandbox can be made for a call: {error}")
        broken.__cause__ = error
        self._fail_waiting(broken)

    def _pause(self) -> None:
        if not self._retrying:
            self._retrying = True
            self._reactor.later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retrying = False

    def _take_made(self, copy: CopyProcess, made: Made) -> None:
        copy.keeper, copy.pid, copy.pidfd = made.keeper, made.pid, made.pidfd
        if copy.pidfd is None:
            labels = self._recipe.copies.copy.labels if made.of_copy else self._recipe.copies.keeper.labels
            self._failed(copy, launch_error(labels, "a call", made.stage, made.index, made.error))
            return
        copy.state = State.MAKING
        copy.greet()
        assert copy.talk is not None
        self._reactor.watch(copy.talk.fileno(), lambda: self._hear(copy))
        self._reactor.watch(copy.pidfd.fd, lambda: self._see_end(copy))
        if copy.verdict is not None:  # it was cancelled meanwhile
            copy.kill()

    def _failed(self, copy: CopyProcess, error: Exception) -> None:
        call = copy.call
        self._take_back(copy)
        if copy.verdict is None:
            self._not_made(error, call)

    def _take_back(self, copy: CopyProcess) -> None:
        """It came to nothing. What it was for waits again, in front."""
        call, copy.call = copy.call, None
        self._forget(copy)
        if call is not None:
            self._busy -= 1
            if copy.verdict is None:
                self._queue.appendleft(call)
            else:
                self._done.append(call.finish)

    def _ready(self, copy: CopyProcess, report: tuple[int, int, int]) -> None:
        stage, index, error = report
        if stage != _native.STAGE_EXEC or error:
            self._failed(copy, launch_error(self._recipe.copies.copy.labels, "a call", stage, index, error))
            return
        assert copy.keeper is not None
        with suppress(OSError):
            os.write(copy.keeper.control, self._recipe.copies.mode)
        self._failures = 0
        copy.state = State.READY
        call = copy.call
        if call is not None:
            self._start(copy, call)
        else:
            self._idle.append(copy)

    def _start(self, copy: CopyProcess, call: Call[Any]) -> None:
        """Hand a call to a copy that waits."""
        copy.started_at = call.started_at = time.monotonic()
        try:
            copy.begin(call, call.limits.rlimits)
        except OSError as error:
            copy.call = None
            self._busy -= 1
            self._tell(call, BrokenSandboxError(f"the call of {call.name}() could not be handed over: {error}"))
            self._discard(copy)
            return
        for stream in (copy.stdout, copy.stderr):
            if stream.fd is not None:
                self._reactor.watch(stream.fd.fd, lambda stream=stream: self._hear_stream(copy, stream))  # type: ignore[misc]
        if call.limits.timeout_s is not None:
            copy.deadline = copy.started_at + call.limits.timeout_s
            self._reactor.later(call.limits.timeout_s, lambda: self._late(copy))
        if copy.budget is not None and copy.budget.cpu_s is not None:
            self._look_at_cpu(copy)
        log.debug("call %d of %s() begins", call.number, call.name)

    # --- copies: over ---------------------------------------------------------------------------------------------------------------

    def _hear(self, copy: CopyProcess) -> None:
        talk = copy.talk
        if talk is None:
            return
        more = copy.receive(self._buffer)
        if copy.state is State.MAKING and (report := copy.take_report()) is not None:
            self._ready(copy, report)
        if copy.state is State.RUNNING:
            self._take_frames(copy)
        if not more and copy.talk is talk:
            self._reactor.unwatch(talk.fileno())
            if copy.state is State.RUNNING:
                self._reactor.later(CLOSED_S, lambda: self._closed(copy))

    def _take_frames(self, copy: CopyProcess) -> None:
        answer, progress = copy.frames()
        if progress is not None and copy.call is not None:
            call = copy.call
            self._done.append(lambda: progress_of(call, progress))
        if isinstance(answer, str):
            copy.problem = answer
            self._decide(copy, "bad_result")
        elif answer is not None:
            self._decide(copy, answer)

    def _hear_stream(self, copy: CopyProcess, stream: Any) -> None:
        fd = stream.fd
        if fd is None:
            return
        if not stream.read(self._buffer):
            self._reactor.unwatch(fd.fd)
            stream.fd = None
        call = copy.call
        if call is not None and call.limits.on_output_limit == "kill" and stream.total > stream.limit:
            self._decide(copy, "output_limit")

    def _late(self, copy: CopyProcess) -> None:
        if copy.state is State.RUNNING and copy.deadline is not None and time.monotonic() >= copy.deadline:
            self._decide(copy, "wall_time")

    def _look_at_cpu(self, copy: CopyProcess) -> None:
        if copy.state is not State.RUNNING or copy.budget is None:
            return
        with suppress(SpawnError):
            wait = copy.budget.next_look_s()
            if wait == 0:
                self._decide(copy, "cpu_time")
            elif wait is not None:
                self._reactor.later(wait, lambda: self._look_at_cpu(copy))

    def _closed(self, copy: CopyProcess) -> None:
        if copy.state is State.RUNNING:
            copy.problem = "it has closed the channel by which results come back"
            self._decide(copy, "bad_result")

    def _decide(self, copy: CopyProcess, verdict: Any) -> None:
        """Why a call is over. The first that is said counts; its cell is killed."""
        if copy.verdict is None:
            copy.verdict = verdict
            copy.over_at = time.monotonic()
        if copy.state in (State.RUNNING, State.READY, State.MAKING):
            copy.state = State.ENDING
            if copy.talk is not None:
                self._reactor.unwatch(copy.talk.fileno())
            self._reactor.later(KILLED_S, lambda: self._unkillable(copy))
        copy.kill()

    def _see_end(self, copy: CopyProcess) -> None:
        """Its process has ended."""
        pidfd = copy.pidfd
        if pidfd is None or not copy.reap():
            if pidfd is not None:
                reaper.pause_for_tracer()
            return
        self._reactor.unwatch(pidfd.fd)
        if copy.state is State.MAKING:
            copy.receive(self._buffer)
            report = copy.take_report() or (_native.STAGE_OPS, -1, 0)
            error = launch_error(self._recipe.copies.copy.labels, "a call", report[0], report[1], report[2])
            self._failed(copy, error)
            return
        copy.over_at = copy.over_at or time.monotonic()
        if copy.state is State.RUNNING:
            self._hear_late(copy)
        self._over(copy)

    def _hear_late(self, copy: CopyProcess) -> None:
        """What it told before it ended, which is not all read yet. Somebody else may still be telling."""
        most = copy.call.limits.result_bytes + 2 * _BUFFER if copy.call is not None else 0
        while copy.verdict is None and most > 0 and copy.talk is not None:
            before = copy.received_bytes
            if not copy.receive(self._buffer) or copy.received_bytes == before:
                self._take_frames(copy)
                break
            most -= copy.received_bytes - before
            self._take_frames(copy)

    def _unkillable(self, copy: CopyProcess) -> None:
        """It was killed and sleeps in the kernel where no signal reaches it. It can do nothing any more, and nobody waits for it."""
        if copy.state is State.ENDING:
            copy.problem = copy.problem or "it was killed, and the kernel has not let go of its process yet"
            self._over(copy)

    def _over(self, copy: CopyProcess) -> None:
        """Tell its call, give up what it had, and wait for the rest of its cell."""
        self._unwatch_all(copy)
        copy.kill()
        for stream in (copy.stdout, copy.stderr):
            with suppress(OSError):
                stream.read_rest(self._buffer)
        call, copy.call = copy.call, None
        if call is not None:
            self._busy -= 1
            outcome = Outcome.of(copy, call)
            self._done.append(lambda: outcome.tell(call))
        copy.close_talk()
        copy.stdout.fd = copy.stderr.fd = None
        if copy.state is State.READY:  # somebody has killed it while it waited, and may do so again
            with suppress(ValueError):
                self._idle.remove(copy)
            self._pause()
        copy.state = State.ENDED
        keeper = copy.keeper
        if copy.ended is None or keeper is None or keeper.fileno() < 0:
            self._forget(copy)
            return
        copy.pidfd = None
        keeper.left_alone()
        if keeper.settle():
            self._forget(copy)
            return
        self._reactor.watch(keeper.fileno(), lambda: self._see_cell_end(copy))
        self._reactor.later(reaper.OVERDUE_S, lambda: self._overdue(copy, reaper.OVERDUE_S))

    def _see_cell_end(self, copy: CopyProcess) -> None:
        keeper = copy.keeper
        if keeper is not None and keeper.settle():
            self._reactor.unwatch(keeper.fileno())
            self._forget(copy)

    def _overdue(self, copy: CopyProcess, waited_s: float) -> None:
        """What its program has made our child, the cell waits for us to reap."""
        if copy in self._copies and copy.keeper is not None:
            reaper.reap_brothers((copy.keeper,))
            wait = min(2 * waited_s, 1.0)
            self._reactor.later(wait, lambda: self._overdue(copy, wait))

    def _discard(self, copy: CopyProcess) -> None:
        """Nobody needs it."""
        if copy.state in (State.MAKING, State.READY, State.RUNNING):
            with suppress(ValueError):
                self._idle.remove(copy)
            copy.state = State.ENDING
            copy.verdict = copy.verdict or "killed"
            self._reactor.later(KILLED_S, lambda: self._unkillable(copy))
            copy.kill()

    def _unwatch_all(self, copy: CopyProcess) -> None:
        fds = [stream.fd.fd for stream in (copy.stdout, copy.stderr) if stream.fd is not None]
        fds += [copy.pidfd.fd] if copy.pidfd is not None else []
        fds += [copy.talk.fileno()] if copy.talk is not None else []
        for fd in fds:
            self._reactor.unwatch(fd)

    def _forget(self, copy: CopyProcess) -> None:
        """It is no business of ours any more."""
        self._unwatch_all(copy)
        if copy.keeper is not None:
            self._reactor.unwatch(copy.keeper.fileno())
        with suppress(ValueError):
            self._asked.remove(copy)
        self._copies.discard(copy)
        copy.let_go()


def _fresh(error: BaseException) -> BaseException:
    """An exception of its own for each future: whoever raises it adds a traceback to it."""
    if isinstance(error, BrokenSandboxError):
        made = type(error)(str(error))
        made.__cause__ = error.__cause__
        for note in getattr(error, "__notes__", ()):
            made.add_note(note)
        return made
    return error
