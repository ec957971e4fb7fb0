"""AsyncSandboxExecutor: the same for async code, on asyncio and on trio.

Nothing blocks the event loop, and no thread is taken for a call: the executor's own thread tells the loop when a call is over. Whoever is
cancelled while it waits for a call has it killed, and goes on when nothing of it is left.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar

from shoal.executor.sandbox_executor import SandboxExecutor

if TYPE_CHECKING:
    from shoal.executor.call import Call, Progress
    from shoal.plan import Plan
    from shoal.sandbox.box import Sandbox

P = ParamSpec("P")
T = TypeVar("T")


class AsyncSandboxExecutor:
    """Runs functions in sandboxes of their own, for async code. The arguments, and what is not said here, are as of `SandboxExecutor`.

    Used as an async context manager it is ready when it is entered, and when it is left, all its calls are over. An exception, a
    cancellation too, ends them.
    """

    def __init__(
        self,
        sandbox: Sandbox | None = None,
        *,
        preload: Sequence[str] = (),
        max_workers: int | None = None,
        warm: int | None = None,
    ) -> None:
        self._sync = SandboxExecutor(sandbox, preload=preload, max_workers=max_workers, warm=warm)

    async def run(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn(*args, **kwargs)` in a sandbox of its own, and give its result.

        Raises:
            CallError: there is none; says why. Cancelled: the call has been killed and is gone.
        """
        return await self.wait(self._sync.submit(fn, *args, **kwargs))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """Have it run, and go on. The future is for `wait()`, and tells more than the result."""
        return self._sync.submit(fn, *args, **kwargs)

    def submit_with(self, on_progress: Progress, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """As `SandboxExecutor.submit_with()`: `on_progress` is called in another thread."""
        return self._sync.submit_with(on_progress, fn, *args, **kwargs)

    async def wait(self, call: Call[T]) -> T:
        """The result of a call. Who is cancelled meanwhile has it killed first.

        Raises:
            CallError: there is none; says why. concurrent.futures.CancelledError: somebody has cancelled the call.
        """
        loop = _loop()
        over = loop.event()
        call.add_done_callback(lambda _: loop.tell(over))
        try:
            await over.wait()
        except BaseException:
            call.cancel()
            await loop.shielded(lambda: _gone(call, loop))
            raise
        return call.result(0)

    async def map(self, fn: Callable[..., T], *iterables: Iterable[Any], return_exceptions: bool = False) -> AsyncIterator[T]:
        """The results in the order of the arguments, each call in a sandbox of its own. Whoever stops listening has the rest killed.

        Args:
            return_exceptions: a call that failed gives its exception as its result.
        """
        calls = [self._sync.submit(fn, *args) for args in zip(*iterables, strict=False)]
        calls.reverse()
        try:
            while calls:
                try:
                    yield await self.wait(calls[-1])
                except Exception as error:
                    if not return_exceptions or not calls[-1].done():
                        raise
                    yield error  # type: ignore[misc]
                calls.pop()
        finally:
            for call in calls:
                call.cancel()

    async def run_code(
        self, source: str, inputs: Mapping[str, Any] | None = None, *, outputs: Sequence[str] | None = None, name: str = "code"
    ) -> dict[str, Any]:
        """As `SandboxExecutor.run_code()`."""
        return await self.wait(self._sync.submit_code(source, inputs, outputs=outputs, name=name))

    def with_limits(self, **limits: Any) -> Self:
        """As `SandboxExecutor.with_limits()`."""
        other = object.__new__(type(self))
        other._sync = self._sync.with_limits(**limits)
        return other

    async def wait_ready(self) -> None:
        """Wait until the modules are loaded and `warm` sandboxes wait.

        Raises:
            PreloadError: a module cannot be loaded. BrokenSandboxError: there will never be a sandbox.
        """
        await _loop().in_thread(self._sync.wait_ready)

    async def aclose(self, *, cancel: bool = False) -> None:
        """Wait until all calls are over and nothing is left. With `cancel` end them first."""
        loop = _loop()
        if cancel:
            self._sync.cancel_all()
        await loop.shielded(lambda: loop.in_thread(self._sync.shutdown))

    def explain(self) -> Plan:
        """All that a call can touch, as a value that prints readably."""
        return self._sync.explain()

    async def __aenter__(self) -> Self:
        await self.wait_ready()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose(cancel=kind is not None)

    def __repr__(self) -> str:
        return f"<Async{repr(self._sync).removeprefix('<')}"


async def _gone(call: Call[Any], loop: _Loop) -> None:
    event = loop.event()
    call.when_gone(lambda: loop.tell(event))
    await event.wait()


# --- the two event loops --------------------------------------------------------------------------------------------------------


class _Event(Protocol):
    def set(self) -> Any: ...

    async def wait(self) -> Any: ...


class _Loop(Protocol):
    """What is needed of an event loop."""

    def event(self) -> _Event: ...

    def tell(self, event: _Event) -> None:
        """Set it, from any thread. Nothing when the loop is gone."""

    async def shielded(self, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait for it, whoever cancels."""

    async def in_thread(self, what: Callable[[], object]) -> None:
        """Run it elsewhere, and wait."""


def _loop() -> _Loop:
    """The one that runs here. RuntimeError: none does."""
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):
            return _Trio(trio, trio.lowlevel.current_trio_token())
    return _Asyncio(asyncio.get_running_loop())


class _Asyncio:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def event(self) -> _Event:
        return asyncio.Event()

    def tell(self, event: _Event) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(event.set)

    async def shielded(self, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(what())
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                if task.cancelled():
                    raise
                cancelled = error
        task.result()
        if cancelled is not None:
            raise cancelled

    async def in_thread(self, what: Callable[[], object]) -> None:
        await asyncio.to_thread(what)


class _Trio:
    def __init__(self, trio: Any, token: Any) -> None:
        self._trio, self._token = trio, token

    def event(self) -> _Event:
        made: _Event = self._trio.Event()
        return made

    def tell(self, event: _Event) -> None:
        with suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(event.set)

    async def shielded(self, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with self._trio.CancelScope(shield=True):
            await what()

    async def in_thread(self, what: Callable[[], object]) -> None:
        await self._trio.to_thread.run_sync(what, abandon_on_cancel=True)
