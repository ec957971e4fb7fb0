"""Reactor: descriptors that are waited for and moments to come, for one thread; anybody may add to them."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress

from shoal.handles.deadline import LONGEST_S

Handler = Callable[[], None]


class Timer:
    """Something to be done at a moment, unless it is cancelled before."""

    __slots__ = ("_handler",)

    def __init__(self, handler: Handler) -> None:
        self._handler: Handler | None = handler

    def cancel(self) -> None:
        """It is not to be done. Fine when it was."""
        self._handler = None

    def run(self) -> None:
        """Its moment has come."""
        handler, self._handler = self._handler, None
        if handler is not None:
            handler()


class Reactor:
    """An epoll set with something to do for each descriptor in it, and for moments in time.

    `wait()` needs no lock; everything else is called under that of the owner.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._until = float("inf")  # when the wait that goes on now ends
        self.watch(self._wake, self._woken)

    def watch(self, fd: int, handler: Handler) -> None:
        """Call `handler` whenever `fd` is readable, or will never be again."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """No longer. Before it is closed. Fine where nobody watches it."""
        if fd >= 0 and self._handlers.pop(fd, None) is not None:
            with suppress(OSError):
                self._epoll.unregister(fd)

    def later(self, seconds: float, handler: Handler) -> Timer:
        """Call `handler` once, in so many seconds."""
        when, timer = time.monotonic() + seconds, Timer(handler)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        if when < self._until:
            self.wake()
        return timer

    def wake(self) -> None:
        """Let `wait()` return."""
        with suppress(OSError):  # it is awake, or over
            os.eventfd_write(self._wake, 1)

    def wait(self) -> list[int]:
        """Wait until there is something to be handled. The descriptors that show something."""
        timers = self._timers
        self._until = float("inf")  # from here on whoever adds one sooner wakes us
        self._until = until = timers[0][0] if timers else float("inf")
        try:
            found = self._epoll.poll(-1 if until == float("inf") else min(LONGEST_S, max(0.0, until - time.monotonic())))
        except InterruptedError:
            found = []
        self._until = 0.0  # whatever comes now is seen before the next wait
        return [fd for fd, _ in found]

    def handle(self, fds: list[int]) -> None:
        """Call what is to be called, descriptors first."""
        # What one of them closes, another may open again under the same number: that shows nothing yet.
        shown = [(fd, self._handlers.get(fd)) for fd in fds]
        for fd, handler in shown:
            if handler is not None and self._handlers.get(fd) is handler:
                handler()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2].run()

    def close(self) -> None:
        """Watch nothing any more."""
        self._handlers.clear()
        self._timers.clear()
        self._epoll.close()
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
