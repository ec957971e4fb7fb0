"""The event loops that shoal.aio is for: asyncio, asyncio on uvloop, and trio. A test that asks for `in_loop` runs on each of them."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import pytest

Backend = tuple[str, dict[str, Any]]

BACKENDS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(
        ("asyncio", {"use_uvloop": True}),
        id="uvloop",
        marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="needs uvloop"),
    ),
    pytest.param(("trio", {}), id="trio"),
]


class InLoop:
    """Runs a coroutine function in a loop that is made for it."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.options = backend
        self.is_trio = self.backend == "trio"

    def __call__(self, main: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        return anyio.run(main, *args, backend=self.backend, backend_options=self.options)


class CancelledAt:
    """Awaits something, and cancels it where it waits for the n-th time.

    Args:
        cancel: ends the wait: that of a scope, or that of asyncio.
        at: 0 is the first time. Afterwards `times` tells how often it has waited.
    """

    def __init__(self, work: Awaitable[Any], cancel: Callable[[], object], at: int) -> None:
        self._steps = work.__await__()
        self._cancel = cancel
        self._at = at
        self.times = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        value, error = None, None
        while True:
            try:
                step = self._steps.send(value) if error is None else self._steps.throw(error)
            except StopIteration as ended:
                return ended.value
            if self.times == self._at:
                self._cancel()
            self.times += 1
            value, error = None, None
            try:
                value = yield step
            except BaseException as raised:
                error = raised


async def cancelled_at(work: Callable[[], Awaitable[Any]], at: int, *, natively: bool = False) -> bool:
    """Do some work, cancelled where it waits for the n-th time. Whether it waited that often.

    Args:
        natively: by asyncio's Task.cancel(), instead of a scope of anyio's.
    """
    if natively:
        task = asyncio.current_task()
        assert task is not None
        waits = CancelledAt(work(), task.cancel, at)
        try:
            await waits
        except asyncio.CancelledError:
            task.uncancel()
        return waits.times > at
    with anyio.CancelScope() as scope:
        waits = CancelledAt(work(), scope.cancel, at)
        await waits
    return waits.times > at
