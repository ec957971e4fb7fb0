"""The peers of the question `concurrent`: each keeps a number of programs going for a while, and tells how many per second that were."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from timing import CaseFailed

AT_A_TIME = 200

One = Callable[[], Awaitable[int]]


def per_second(peer: str, program: str, seconds: float, *, captured: bool) -> float:
    """Programs per second through `peer`.

    Raises:
        CaseFailed: the peer is not here, or a program did not end with 0.
    """
    name, _, where = peer.partition(" (")
    if name.startswith("subprocess"):
        return _in_threads(int(name.split()[1]), program, seconds, captured)
    if name.startswith("shoal.aio"):
        boxed = peer.endswith("Sandbox()")
        return _in_loop("asyncio" if boxed else where.rstrip(")"), _shoal(program, captured, boxed=boxed), seconds)
    if name == "anyio.run_process":
        return _in_loop("trio", _anyio(program, captured), seconds)
    return _in_loop(where.rstrip(")") or "asyncio", _asyncio(program, captured), seconds)


def _shoal(program: str, captured: bool, *, boxed: bool) -> One:
    try:
        from shoal import aio
    except ImportError as error:
        raise CaseFailed(str(error)) from error

    async def one() -> int:
        return (await aio.run([program], sandbox=None if boxed else False, capture_output=captured)).returncode

    return one


def _asyncio(program: str, captured: bool) -> One:
    stream = subprocess.PIPE if captured else None

    async def one() -> int:
        process = await asyncio.create_subprocess_exec(program, stdout=stream, stderr=stream)
        if captured:
            await process.communicate()
        return await process.wait()

    return one


def _anyio(program: str, captured: bool) -> One:
    import anyio

    stream = subprocess.PIPE if captured else None

    async def one() -> int:
        return (await anyio.run_process([program], stdout=stream, stderr=stream, check=False)).returncode

    return one


def _in_loop(loop: str, one: One, seconds: float) -> float:
    try:
        import anyio

        __import__(loop)
    except ImportError as error:
        raise CaseFailed(f"{error.name} is not installed") from error

    async def main() -> float:
        bad: list[int] = []
        await one()  # what is opened once and kept, and the threads of those that take any
        started = time.perf_counter()
        until, count = started + seconds, 0

        async def keep_going() -> None:
            nonlocal count
            while time.perf_counter() < until:
                code = await one()
                if code:
                    bad.append(code)
                count += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_A_TIME):
                tasks.start_soon(keep_going)
        if bad:
            raise CaseFailed(f"a program ended with {bad[0]}")
        return count / (time.perf_counter() - started)

    options: dict[str, Any] = {"use_uvloop": True} if loop == "uvloop" else {}
    return anyio.run(main, backend="trio" if loop == "trio" else "asyncio", backend_options=options)


def _in_threads(threads: int, program: str, seconds: float, captured: bool) -> float:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: time.sleep(0.01), range(threads)))  # all of them are there
        started = time.perf_counter()
        until = started + seconds

        def keep_going(_: int) -> int:
            count = 0
            while time.perf_counter() < until:
                if subprocess.run([program], capture_output=captured, check=False).returncode:
                    raise CaseFailed("a program ended badly")
                count += 1
            return count

        counts = list(pool.map(keep_going, range(threads)))
        return sum(counts) / (time.perf_counter() - started)
