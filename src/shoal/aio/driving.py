"""Driving: the steps of a run, taken in an event loop.

What a run does is in `shoal.sandbox.running`. Here is how a loop waits between its steps, and what becomes of a run when whoever waits
for it is cancelled: all of it is killed at once and awaited, whatever else wants to end meanwhile.
"""

from __future__ import annotations

import math
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import anyio
from anyio.lowlevel import checkpoint

from shoal.aio.launching import Call
from shoal.aio.loops import Waiter, current, unbroken
from shoal.handles.deadline import Deadline, Wait, is_ready
from shoal.handles.reaper import OwnedFd
from shoal.sandbox.output import Pump, Why
from shoal.sandbox.request import Request
from shoal.sandbox.result import Result
from shoal.sandbox.running import Move, Running, Steps, too_late

T = TypeVar("T")


@unbroken
async def conduct(request: Request) -> Result:
    """A run from its start to its result. Nothing of it is left, however this ends.

    Raises:
        TimeoutExpired: it took longer than the request allows.
        SpawnError, RequestError, ValueError: it could not be started.
    """
    running = Running(request, in_loop=True)
    await follow(running, is_over=await launch(running))
    (result,) = await outcomes_of([running])
    if running.is_late:
        raise too_late(request.words, request.timeout_s, [result])
    return result


async def conduct_all(requests: Sequence[Request], lent: Sequence[dict[int, OwnedFd]]) -> tuple[list[Result], bool]:
    """Runs at the same time. Their results, and whether they took longer than the requests allow. Raises as `conduct()` does.

    Args:
        lent: as of `launch()`, one for each.
    """
    begun: list[Running] = []
    try:
        for request, fds in zip(requests, lent, strict=True):
            running = Running(request, in_loop=True)
            await launch(running, fds)
            begun.append(running)
    except BaseException as error:
        for fds in lent[len(begun) + 1 :]:
            fds.clear()
        for running in begun:
            running.kill()
        for running in begun:
            await end(running, error)
            running.close()
        raise
    troubles: list[Exception] = []

    async def follow_one(running: Running) -> None:
        try:
            await follow(running)
        except Exception as error:
            troubles.append(error)

    try:
        async with anyio.create_task_group() as group:
            for running in begun:
                group.start_soon(follow_one, running)
    except BaseExceptionGroup as error:
        raise error.exceptions[0] from None  # a KeyboardInterrupt: what went wrong with a run is among the troubles
    if troubles:
        raise troubles[0]
    return await outcomes_of(begun), any(running.is_late for running in begun)


async def launch(running: Running, lent: dict[int, OwnedFd] | None = None) -> bool:
    """Start its program, and where nothing is to be done before its end, wait for that, too. Whether it has ended. On an error nothing
    is left of it.

    Args:
        lent: descriptors that are only for the start; closed afterwards, by whoever is last to need them.
    """

    def begin() -> None:
        try:
            running.begin()
        except BaseException:
            running.close()
            raise
        finally:
            if lent:
                lent.clear()

    call = Call(begin, running.close, running.only_end if lent is None else None)
    try:
        await call.made()
    except BaseException as error:
        if not call.abandoned:
            if lent:
                lent.clear()
            await end(running, error)
            running.close()
        raise
    return call.over


async def follow(running: Running, *, is_over: bool = False) -> None:
    """Wait for its end, and give up what it has.

    Args:
        is_over: it has ended already.
    """
    with cared_for(running):
        try:
            await drive(running.following(), running.pump, is_over=is_over)
        except BaseException as error:
            await end(running, error)
            raise


_followed: set[Running] = set()
"""So that a run is still whole when the task that follows it is collected, as after a loop that was closed over it."""


@contextmanager
def cared_for(running: Running) -> Iterator[None]:
    """Whatever happens meanwhile, what the run has is given up."""
    _followed.add(running)
    try:
        yield
    finally:
        _followed.discard(running)
        running.close()


async def outcomes_of(runs: Sequence[Running]) -> list[Result]:
    """How they ended. Why one ended badly has to be looked for in files."""

    def find() -> None:
        try:
            found.extend(running.outcome() for running in runs)
        except BaseException:
            for running in runs:
                running.remove_spilled()
            raise

    found: list[Result] = []
    if all(running.ended_well for running in runs):
        find()
    else:
        with anyio.CancelScope(shield=True):  # they have ended, and somebody is to learn of the files they spilled
            await Call(find, _nothing).made()
    return found


async def end(running: Running, error: BaseException) -> None:
    """Kill all of it, and wait until it is gone. `error` says why; with the end of its task there is nothing to wait in."""
    running.kill()
    if not isinstance(error, GeneratorExit):
        await to_the_end(running.ending())


async def to_the_end(steps: Steps[T]) -> T:
    """Take steps that end by themselves before long, whoever wants to cancel that."""
    answer: object = None
    waiter = current().waiter()
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as ended:
            result: T = ended.value
            return result
        with anyio.CancelScope(shield=True):
            answer = await _insist(step, waiter)


async def _insist(step: Wait | Move, waiter: Waiter) -> bool | Why:
    """One step, which asyncio's own cancellations do not end either. The first of them is on its way already."""
    while True:
        try:
            answer = await take(step, None, waiter)
        except anyio.get_cancelled_exc_class():
            continue
        return answer


async def drive(steps: Steps[T], pump: Pump | None, waiter: Waiter | None = None, *, is_over: bool = False) -> T:
    """Take steps, and let the loop go on between them.

    Args:
        waiter: waits for its end, and may be interrupted.
        is_over: what the first step waits for has come already.
    """
    answer: object = None
    other: Waiter | None = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as ended:
            result: T = ended.value
            return result
        if is_over and isinstance(step, Move):
            answer, is_over = Why.ENDED, False
            continue
        if other is None:
            other = current().waiter()
        answer = await take(step, pump, other if waiter is None or isinstance(step, Wait) else waiter)


async def take(step: Wait | Move, pump: Pump | None, waiter: Waiter) -> bool | Why:
    """One step."""
    if isinstance(step, Wait):
        return await _readable(step.fd, step.deadline, waiter)
    if pump is None or pump.fileno() < 0:
        return Why.ENDED if await _readable(step.fd, step.deadline, waiter) else Why.DEADLINE
    with pump.watching(step.fd):
        while True:
            why = pump.turn(step.fd)
            if why is not Why.DEADLINE and why is not None:
                return why
            if not await _readable(pump.fileno(), step.deadline, waiter):
                return Why.DEADLINE


async def _readable(fd: int, deadline: Deadline, waiter: Waiter) -> bool:
    remaining_ms = deadline.remaining_ms()
    if fd < 0:
        await anyio.sleep((remaining_ms or 0) / 1000)
        return False
    if remaining_ms == 0:
        await checkpoint()
    elif await waiter.readable(fd, math.inf if remaining_ms is None else remaining_ms / 1000):
        return True
    return is_ready(fd, select.POLLIN)


def _nothing() -> None:
    """There is nothing to be given up."""
