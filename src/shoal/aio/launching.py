"""Launching: the short blocking calls of a run, in a few threads that are kept.

A launch is about a third of a millisecond in which the calling thread sleeps in the kernel until the program has been executed, and
much more where a cell is made for it. Measured on 2 cores with 200 programs at a time: launched in the loop's own thread 2,050 a
second, in 2 to 6 other threads 2,400 to 2,900, with 4 near the top. In anyio's worker threads it is 2,400: handing a call over and
its answer back costs them three times as much.

The threads are never ended: a program that asks to be told of the end of its parent (prctl(2), PR_SET_PDEATHSIG) is told of the end of
the thread that made it. A child takes over much from the thread that makes it - processors, priority, network, capabilities - and
should get what the loop's thread has. So both are compared at each launch, and where they differ the loop's thread makes it after all.

Landlock rules that a thread has taken on nobody can see: a program that confines itself does so before its first launch.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import anyio

from shoal import _native
from shoal.aio.loops import Loop, current
from shoal.launcher import END_S

MOST = 4
"""So many calls at a time."""
STUCK_S = 1.0
"""A call that takes so long may take for ever, as on a file server that does not answer; another thread takes its thread's place."""


class Call:
    """One blocking call on its way through a thread.

    Args:
        give_up: made in the thread where nobody has waited for the end of the call.
        then: where the call has begun something, the descriptor that tells of its end, or -1. Whoever waits is then woken by that alone,
            if the loop can do it: once instead of twice, for a program that needs nothing meanwhile.
    """

    __slots__ = (
        "_call",
        "_error",
        "_give_up",
        "_loop",
        "_then",
        "_to_begin",
        "_to_end",
        "_to_wake",
        "_told",
        "_watched",
        "abandoned",
        "made_in",
        "over",
    )

    def __init__(self, call: Callable[[], None], give_up: Callable[[], None], then: Callable[[], int] | None = None) -> None:
        self._call = call
        self._give_up = give_up
        self._then = then
        self._loop: Loop = current()
        self._told = self._loop.signal()
        self._error: BaseException | None = None
        # Each is emptied, atomically, by who is first: to begin it, to have the say of its end, and to leave or not to leave the waking
        # to what it has begun.
        self._to_begin, self._to_end, self._to_wake = [None], [None], [None]
        self._watched = -1
        self.abandoned = False
        self.over = False
        """Whether what it has begun has ended, too."""
        self.made_in = _native.inherited_by_thread()

    async def made(self) -> None:
        """Have it made, and wait for its end; raises what it raises.

        When this is cancelled, the call has not been made, or has ended. One that does not end is `abandoned`, and its thread gives up
        what comes of it.
        """
        if not _threads.submit(self):
            self._make_here()
        try:
            await self._told.wait()
            if _first(self._to_begin):  # no thread has what this one has
                self._make_here()
        except BaseException as error:
            if not _first(self._to_begin):
                if not isinstance(error, GeneratorExit) and _first(self._to_wake):
                    with anyio.move_on_after(END_S, shield=True):
                        await self._told.wait()
                self.abandoned = _first(self._to_end)
            raise
        finally:
            if not self.over:
                self._unwatch()
        failed, self._error = self._error, None
        try:
            if failed is not None:
                raise failed
        finally:
            del failed  # which holds this frame

    def make(self) -> None:
        """In a thread."""
        if not _first(self._to_begin):
            return
        try:
            self._call()
            fd = -1 if self._then is None else self._then()
            if fd >= 0 and self._loop.watch(fd, self._see_end):
                self._watched = fd
        except BaseException as error:
            self._error = error
        if not _first(self._to_end):
            self._unwatch()
            self._give_up()
        elif self._watched < 0 or not _first(self._to_wake):
            self.tell()

    def tell(self) -> None:
        """Wake who waits for it."""
        try:
            self._loop.wake(self._told.set)
        except RuntimeError:  # the loop has ended, and with it all who could have waited
            self._give_up()

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._loop.unwatch(self._watched)

    def _see_end(self) -> None:
        self.over = True
        self._told.set()

    def _make_here(self) -> None:
        self._to_begin.clear()
        self._to_end.clear()
        self._call()
        self._told.set()


def _first(turn: list[None]) -> bool:
    """Whether nobody else was here before."""
    try:
        turn.pop()
    except IndexError:
        return False
    return True


class _Threads:
    """The threads. All of them hand down the same.

    Who submits and who works share no lock: a thread that waits for the interpreter's would hold it meanwhile.
    """

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._queue: SimpleQueue[Call] = SimpleQueue()
        self._count = 0
        self._since: dict[int, float] = {}  # by thread: how long it is at its call
        self._state = b""

    def submit(self, call: Call) -> bool:
        """False: there is no thread that could make it."""
        if self._count < MOST or len(self._since) >= MOST:
            self._see_to_threads(call.made_in)
            if not self._count:
                return False
        self._queue.put(call)
        return True

    def _see_to_threads(self, state: bytes) -> None:
        """Start one more where all are busy. It begins with what its maker has, so that has to be what the others have."""
        with self._starting:
            busy, now = list(self._since.values()), time.monotonic()
            stuck = sum(now - since >= STUCK_S for since in busy)
            if self._count - len(busy) > self._queue.qsize() or self._count - stuck >= MOST or (self._count and state != self._state):
                return
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the threads of the program
            try:
                threading.Thread(target=self._work, name="shoal-aio", daemon=True).start()
            except RuntimeError:  # no more threads; fewer will do
                return
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._count += 1
            self._state = state

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            call = self._queue.get()
            self._since[me] = time.monotonic()
            if self._hands_down(call.made_in):
                call.make()
            else:
                call.tell()
            del call
            del self._since[me]

    def _hands_down(self, wanted: bytes) -> bool:
        """Whether a child of this thread gets what one of the loop's thread would."""
        if wanted == self._state:
            return True
        own = _native.inherited_by_thread()  # it may be that all threads have changed together
        if own == wanted:
            self._state = own
        return own == wanted


_threads = _Threads()


def _forget() -> None:
    """After os.fork() in the child: the threads are the parent's."""
    global _threads
    _threads = _Threads()


os.register_at_fork(after_in_child=_forget)
