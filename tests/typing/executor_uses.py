"""Typical uses of the executors, as a type checker sees them. Checked by `make lint`; never run."""

import asyncio
import concurrent.futures
from collections.abc import Iterator
from typing import Any, assert_type

from shoal import AsyncSandboxExecutor, Plan, RunUsage, Sandbox, SandboxExecutor
from shoal.executor import Call, CallError, RemoteError, report


def grade(source: str, tests: list[int], *, strict: bool = False) -> dict[str, float]:
    report(1, len(tests), "graded")
    return {source: float(strict)}


def plain() -> None:
    with SandboxExecutor(Sandbox(memory="1G"), preload=["json"], max_workers=4, warm=2) as executor:
        assert_type(executor, SandboxExecutor)
        call = executor.submit(grade, "x", [1], strict=True)
        assert_type(call, Call[dict[str, float]])
        future: concurrent.futures.Future[dict[str, float]] = call
        assert_type(call.result(), dict[str, float])
        assert_type(call.usage, RunUsage | None)
        assert_type(call.stdout, str)
        assert_type(executor.map(len, ["a", "b"], return_exceptions=True), Iterator[int])
        assert_type(executor.run_code("y = x", {"x": 1}, outputs=["y"]), dict[str, Any])
        assert_type(executor.submit_with(print, grade, "x", []), Call[dict[str, float]])
        limited = executor.with_limits(timeout="2s", memory="64M")
        assert_type(limited, SandboxExecutor)
        assert_type(executor.explain(), Plan)
        as_any_other: concurrent.futures.Executor = limited
        as_any_other.submit(len, "abc").result()
        for done in concurrent.futures.as_completed([future]):
            print(done.result())
        try:
            call.result(timeout=1)
        except RemoteError as error:
            assert_type(error.traceback_text, str)
        except CallError as error:
            print(error.reason)
        executor.submit(grade, "x", [1], unknown=True)  # type: ignore[call-arg]
        executor.submit(grade, 3, [1])  # type: ignore[arg-type]


async def awaited() -> None:
    async with AsyncSandboxExecutor(max_workers=2) as executor:
        assert_type(await executor.run(grade, "x", [1]), dict[str, float])
        assert_type(await executor.wait(executor.submit(len, "abc")), int)
        async for length in executor.map(len, ["a"]):
            assert_type(length, int)
        await asyncio.wrap_future(executor.submit(len, ""))
