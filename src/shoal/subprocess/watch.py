"""Watch: one thread that looks after all sandboxes that Popen has started, since nobody else may be looking.

What a sandbox promises holds also while the caller does something else, such as reading a pipe: time limits, and that what a program
leaves running ends with it. The kernel does the waiting; the thread sleeps until a program ends or a limit could be reached, starts
with the first sandbox and ends when there has been none for a moment.

Source: epoll(7), pidfd_open(2), eventfd(2).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from typing import Protocol

from shoal.handles.deadline import LONGEST_S
from shoal.handles.reaper import OwnedFd, pause_for_tracer

IDLE_S = 0.5
"""How long the thread waits for the next sandbox before it ends."""

FORGOTTEN_MOST = 16
"""So many that are over may still have a time to be looked at."""


class Watched(Protocol):
    """Something that ends, and perhaps before it would."""

    def stage(self) -> OwnedFd | None:
        """What becomes readable at its end, or at the next stage of it. None: it is over."""

    def settle(self) -> bool:
        """Do what is to be done at its end. True when it is over. Called when the descriptor is readable."""

    def look(self) -> float | None:
        """End it if it is time to. When to look again, on the clock of time.monotonic(); None: never."""


class _Watch:
    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._new: deque[Watched] = deque()
        self._wake = -1
        """The eventfd of the thread that runs; -1: there is none."""

    def add(self, watched: Watched) -> None:
        """Look after it from now on. Where no thread can be had, as at the end of the interpreter, its waits alone do."""
        with self._lock:
            self._new.append(watched)
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
                return
            with contextlib.suppress(RuntimeError, OSError):
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                try:
                    threading.Thread(target=self._run, args=(self._wake,), name="shoal-subprocess", daemon=True).start()
                except RuntimeError:
                    os.close(self._wake)
                    self._wake = -1

    def forget(self) -> None:
        """After os.fork(): the thread is the parent's, and so are the programs."""
        if self._wake >= 0:
            os.close(self._wake)
        self._begin()

    def _run(self, wake: int) -> None:
        with select.epoll() as epoll:
            epoll.register(wake, select.EPOLLIN)
            _Round(self, epoll, wake).run()

    def take(self) -> list[Watched]:
        """What was added since."""
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self._new.popleft())
        return found

    def end(self, wake: int) -> bool:
        """Whether the thread may end: nothing was added meanwhile."""
        with self._lock:
            if self._new:
                return False
            self._wake = -1
            os.close(wake)
            return True


class _Round:
    """What the thread knows."""

    def __init__(self, watch: _Watch, epoll: select.epoll, wake: int) -> None:
        self._watch, self._epoll, self._wake = watch, epoll, wake
        self._watched: dict[int, tuple[OwnedFd, Watched]] = {}
        self._times: list[tuple[float, int, Watched]] = []
        self._count = itertools.count()

    def run(self) -> None:
        while True:
            for watched in self._watch.take():
                self._follow(watched)
                self._look(watched)
            if not self._watched and not self._epoll.poll(IDLE_S) and self._watch.end(self._wake):
                return
            for fd, _ in self._epoll.poll(self._patience()):
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                else:
                    self._settle(fd)
            while self._times and self._times[0][0] <= time.monotonic():
                self._look(heapq.heappop(self._times)[2])

    def _patience(self) -> float:
        if not self._watched:
            return 0
        return min(LONGEST_S, max(0.0, self._times[0][0] - time.monotonic())) if self._times else -1

    def _follow(self, watched: Watched) -> bool:
        """Sleep until its next stage; whether there is one."""
        owned = watched.stage()
        if owned is not None:  # held until it is ready, so that its number stays its own
            with contextlib.suppress(OSError):
                self._epoll.register(owned.fd, select.EPOLLIN)
                self._watched[owned.fd] = owned, watched
        return owned is not None

    def _settle(self, fd: int) -> None:
        self._epoll.unregister(fd)
        owned, watched = self._watched.pop(fd)
        del owned
        with contextlib.suppress(Exception):  # whoever waits for it is told
            if not watched.settle():
                pause_for_tracer()
                if not self._follow(watched):
                    watched.settle()
        if len(self._times) > 2 * len(self._watched) + FORGOTTEN_MOST:
            alive = {id(each) for _, each in self._watched.values()}
            self._times = [item for item in self._times if id(item[2]) in alive]
            heapq.heapify(self._times)

    def _look(self, watched: Watched) -> None:
        with contextlib.suppress(Exception):
            moment = watched.look()
            if moment is not None:
                heapq.heappush(self._times, (moment, next(self._count), watched))


_watch = _Watch()
os.register_at_fork(after_in_child=_watch.forget)
add = _watch.add
