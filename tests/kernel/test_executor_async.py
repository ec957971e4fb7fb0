"""The same for async code: one set of claims, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time

import pytest
import trio

from shoal import AsyncSandboxExecutor
from shoal.executor import RemoteError

PATIENCE_S = 60


class OnAsyncio:
    cancelled = asyncio.CancelledError

    @staticmethod
    def run(function):
        return asyncio.run(function())

    @staticmethod
    async def gather(*functions):
        return list(await asyncio.gather(*(function() for function in functions)))

    @staticmethod
    async def cancelled_after(function, started):
        task = asyncio.ensure_future(function())
        await asyncio.sleep(0)  # what was cancelled before it began has begun nothing
        while not started():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class OnTrio:
    cancelled = trio.Cancelled

    @staticmethod
    def run(function):
        return trio.run(function)

    @staticmethod
    async def gather(*functions):
        results = {}

        async def one(index, function):
            results[index] = await function()

        async with trio.open_nursery() as nursery:
            for index, function in enumerate(functions):
                nursery.start_soon(one, index, function)
        return [results[index] for index in range(len(functions))]

    @staticmethod
    async def cancelled_after(function, started):
        async with trio.open_nursery() as nursery:

            async def cancel():
                while not started():
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel)
            await function()
        assert nursery.cancel_scope.cancelled_caught


@pytest.fixture(params=[OnAsyncio, OnTrio])
def loop(request):
    return request.param


def test_calls_are_awaited(loop):
    async def main():
        async with AsyncSandboxExecutor(max_workers=2, warm=1) as ex:
            assert await ex.run(pow, 2, 5) == 32
            assert await ex.run_code("y = x + 1", {"x": 1}) == {"y": 2}
            assert [n async for n in ex.map(lambda n: n * n, range(5))] == [0, 1, 4, 9, 16]
            assert await loop.gather(*(lambda n=n: ex.run(pow, n, 2) for n in range(6))) == [n * n for n in range(6)]
            with pytest.raises(ZeroDivisionError) as caught:
                await ex.run_code("1 / 0")
            assert isinstance(caught.value, RemoteError)
            kept = [n async for n in ex.map(lambda n: 1 // n, [1, 0], return_exceptions=True)]
            assert kept[0] == 1
            assert isinstance(kept[1], ZeroDivisionError)
            with pytest.raises(TimeoutError):
                await ex.with_limits(timeout=0.2).run(time.sleep, 600)
            call = ex.submit(len, "abc")
            assert await ex.wait(call) == 3
            assert call.reason == "returned"
            assert "Async" in repr(ex)

    loop.run(main)


def test_the_loop_goes_on_while_a_call_runs(loop):
    async def main():
        beats = []

        async with AsyncSandboxExecutor(max_workers=1, warm=1) as ex:
            call = ex.submit(time.sleep, 600)

            async def beat():
                sleep = asyncio.sleep if loop is OnAsyncio else trio.sleep
                while len(beats) < 5:
                    await sleep(0.001)
                    if call.running():
                        beats.append(call.done())
                call.cancel()

            async def wait():
                with pytest.raises(concurrent.futures.CancelledError):
                    await ex.wait(call)

            await loop.gather(beat, wait)
        assert beats == [False] * 5

    loop.run(main)


def test_who_is_cancelled_has_the_call_killed_and_goes_on_when_it_is_gone(loop, world):
    async def main():
        async with AsyncSandboxExecutor(max_workers=1, warm=1) as ex:
            call = ex.submit(time.sleep, 600)
            await loop.cancelled_after(lambda: ex.wait(call), call.running)
            assert call.cancelled()
            assert call.wait_gone(0)
            assert await ex.run(len, "ab") == 2

    loop.run(main)
    world.assert_unchanged()


def test_an_exception_in_the_block_ends_all_calls(loop, world):
    async def main():
        async with AsyncSandboxExecutor(max_workers=1, warm=0) as ex:
            calls = [ex.submit(time.sleep, 600) for _ in range(3)]
            raise KeyError(calls)

    with pytest.raises(KeyError) as caught:
        loop.run(main)
    assert all(call.cancelled() and call.wait_gone(0) for call in caught.value.args[0])
    del caught
    world.assert_unchanged()


def test_who_stops_listening_to_a_map_has_the_rest_killed(loop):
    async def main():
        async with AsyncSandboxExecutor(max_workers=1, warm=0) as ex:
            results = ex.map(time.sleep, [0, 600, 600])
            async for _ in results:
                break
            await results.aclose()
            assert await ex.run(len, "") == 0

    loop.run(main)


def test_loops_may_be_nested_in_threads(loop):
    """As in a notebook, where a loop runs already: the plain executor blocks, and works."""
    from shoal import SandboxExecutor

    async def main():
        with SandboxExecutor(max_workers=1, warm=0) as ex:
            return ex.submit(len, "abc").result(PATIENCE_S)

    assert loop.run(main) == 3


def test_one_executor_serves_loops_in_many_threads_and_one_after_the_other():
    pool, found = AsyncSandboxExecutor(max_workers=2, warm=1), []

    async def use(number):
        return await pool.run(pow, number, 2)

    def in_a_loop(number):
        found.append(asyncio.run(use(number)))

    async def in_a_loop_within_a_loop():
        return await asyncio.to_thread(lambda: asyncio.run(use(9)))

    threads = [threading.Thread(target=in_a_loop, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(found) == [0, 1, 4, 9]
    assert asyncio.run(in_a_loop_within_a_loop()) == 81
    asyncio.run(pool.aclose())


def test_a_future_can_be_awaited_as_asyncio_does():
    from shoal import SandboxExecutor

    async def main():
        with SandboxExecutor(max_workers=1, warm=0) as ex:
            assert await asyncio.wrap_future(ex.submit(len, "ab")) == 2
            assert await asyncio.get_running_loop().run_in_executor(ex, pow, 2, 3) == 8

    asyncio.run(main())


def test_without_a_loop_it_says_so():
    ex = AsyncSandboxExecutor(max_workers=1, warm=0)
    try:
        with pytest.raises(RuntimeError, match="no running event loop"):
            ex.wait(ex.submit(len, "")).send(None)
    finally:
        ex._sync.shutdown()
