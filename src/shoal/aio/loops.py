"""Loops: what anyio has no common name for. Which loop this is, tasks that belong to nobody, and waking a loop from a thread.

asyncio (with uvloop as well) and trio. Source: asyncio's event loop; trio.lowlevel.
"""

from __future__ import annotations

import asyncio
import functools
import math
import select
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Signal(Protocol):
    """Something one task waits for. As an event, which takes several times as long to make."""

    def set(self) -> None:
        """It has happened. In the loop; see `Loop.wake()`."""

    async def wait(self) -> None:
        """Return once it has happened."""


class Waiter(Protocol):
    """Waits for descriptors, one after the other, that nobody else waits for.

    As anyio.wait_readable() and move_on_after() do, but those cost twice as much, and what an asyncio loop is closed over while it
    waits in them is never collected, so that nobody would learn that its program is to be ended.
    """

    async def readable(self, fd: int, seconds: float) -> bool:
        """Wait until `fd` is readable. False: the time is up, which may be infinite, or `interrupt()` was called."""

    def interrupt(self) -> None:
        """End a wait."""


class Loop(Protocol):
    """The loop that runs the caller."""

    def signal(self) -> Signal:
        """A new one."""

    def waiter(self) -> Waiter:
        """A new one."""

    def wake(self, call: Callable[[], object]) -> None:
        """From any thread: let the loop make a call. RuntimeError: it has ended."""

    def watch(self, fd: int, call: Callable[[], object]) -> bool:
        """From any thread: let the loop make a call once `fd`, which nobody else waits for, is readable. False: it has no way to."""

    def unwatch(self, fd: int) -> None:
        """From any thread: no more."""

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> object:
        """Start a task that nobody waits for. It is cancelled when the loop ends. Keep what is returned as long as the task is needed."""


class _AsyncioSignal:
    __slots__ = ("_is_set", "_loop", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        if not self._is_set:
            self._waiter = self._loop.create_future()
            await self._waiter


class _Watch:
    """What the tasks of one asyncio loop wait for: descriptors, in an epoll set that the loop watches (epoll(7)), and calls of threads.

    Into the loop's own set a descriptor goes and comes out again by a good deal of Python and two system calls that let other threads
    in; with 200 programs at a time that is a tenth of all the work. Here it goes in by one, is looked at once (EPOLLONESHOT), and is
    gone from the set when it is closed.
    """

    def __init__(self) -> None:
        self._set = select.epoll()
        self._waiting: dict[int, Callable[[], object]] = {}
        self._mail: deque[Callable[[], object]] = deque()
        self._is_told = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Watch:
        """The loop's own, which lives as long as the loop: it knows nothing of the loop, so that nothing keeps either alive."""
        watch = loop.__dict__.get(_WATCH)
        if not isinstance(watch, _Watch):
            watch = loop.__dict__[_WATCH] = cls()
            loop.add_reader(watch._set.fileno(), watch._look)
        return watch

    def begin(self, fd: int, ready: Callable[[], object]) -> None:
        """From any thread: let the loop make a call once `fd` is readable."""
        self._waiting[fd] = ready
        try:
            self._set.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        except FileExistsError:  # seen before, and still open
            self._set.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def end(self, fd: int) -> None:
        """Where nobody waits for it any more."""
        if self._waiting.pop(fd, None) is not None:
            with suppress(OSError):
                self._set.unregister(fd)

    def post(self, call: Callable[[], object], loop: asyncio.AbstractEventLoop) -> None:
        """From any thread: let the loop make a call. What comes while it has not looked comes with one wake-up."""
        self._mail.append(call)
        if not self._is_told:
            self._is_told = True
            try:
                loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._is_told = False
                raise

    def _deliver(self) -> None:
        self._is_told = False  # first: what comes from now on tells again
        while self._mail:
            self._mail.popleft()()

    def _look(self) -> None:
        for fd, _ in self._set.poll(0):
            ready = self._waiting.pop(fd, None)
            if ready is not None:
                ready()


_WATCH = "_shoal_watch"


class _AsyncioWaiter:
    __slots__ = ("_loop", "_ready", "_watch")

    def __init__(self, loop: asyncio.AbstractEventLoop, watch: _Watch) -> None:
        self._loop, self._watch = loop, watch
        self._ready: asyncio.Future[bool] | None = None

    async def readable(self, fd: int, seconds: float) -> bool:
        watch, self._ready = self._watch, self._loop.create_future()
        timer = None if seconds == math.inf else self._loop.call_later(seconds, self.interrupt)
        watch.begin(fd, self._see)
        try:
            return await self._ready
        finally:
            self._ready = None
            watch.end(fd)
            if timer is not None:
                timer.cancel()

    def interrupt(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(False)

    def _see(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(True)


class _Asyncio:
    __slots__ = ("_loop", "_watch")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watch = _Watch.of(loop)

    def signal(self) -> Signal:
        return _AsyncioSignal(self._loop)

    def waiter(self) -> Waiter:
        return _AsyncioWaiter(self._loop, self._watch)

    def wake(self, call: Callable[[], object]) -> None:
        self._watch.post(call, self._loop)

    def watch(self, fd: int, call: Callable[[], object]) -> bool:
        if self._loop.is_closed():
            return False
        self._watch.begin(fd, call)
        return True

    def unwatch(self, fd: int) -> None:
        self._watch.end(fd)

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> object:
        return self._loop.create_task(work(), name=name)


class _TrioWaiter:
    __slots__ = ("_scope",)

    def __init__(self) -> None:
        self._scope: Any = None

    async def readable(self, fd: int, seconds: float) -> bool:
        import trio

        with trio.move_on_after(seconds) as self._scope:
            await trio.lowlevel.wait_readable(fd)
            return True
        return False

    def interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


class _Trio:
    __slots__ = ("_token",)

    def __init__(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()

    def signal(self) -> Signal:
        import trio

        return trio.Event()

    def waiter(self) -> Waiter:
        return _TrioWaiter()

    def wake(self, call: Callable[[], object]) -> None:
        self._token.run_sync_soon(call)

    def watch(self, fd: int, call: Callable[[], object]) -> bool:
        return False  # only a task can wait for a descriptor

    def unwatch(self, fd: int) -> None:
        pass

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> object:
        import trio

        return trio.lowlevel.spawn_system_task(work, name=name)


def current() -> Loop:
    """The loop that runs the caller.

    Raises:
        RuntimeError: none does; says what to do.
    """
    if in_trio():
        return _Trio()
    try:
        return _Asyncio(asyncio.get_running_loop())
    except RuntimeError:
        raise RuntimeError("there is no event loop here; call it in an async function that asyncio.run() or trio.run() runs") from None


def in_trio() -> bool:
    """Whether trio runs the caller. It may do so on top of an asyncio loop, so it is asked first."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


def unbroken(work: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Let no KeyboardInterrupt tear its own steps apart on trio: there it is raised wherever the main task is. While the task waits it
    may come. asyncio cancels the main task instead."""
    protected: Callable[P, Awaitable[T]] | None = None

    @functools.wraps(work)
    def begin(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        nonlocal protected
        if not in_trio():
            return work(*args, **kwargs)
        if protected is None:
            import trio

            protected = trio.lowlevel.enable_ki_protection(work)
        return protected(*args, **kwargs)

    return begin
