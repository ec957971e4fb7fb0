"""The peers of a call: each runs the same few lines of Python with numpy once, checks the answer, and leaves nothing behind.

Those that keep something between calls (an executor, a pool) have an `end`. What an executor makes in the background is waited for by
`settle`, so that a paused measurement does not compete with it.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timing import CaseFailed

SOURCE = "import numpy; print(int((numpy.arange(1000) ** 2).sum()))"
RIGHT = 332833500


def work() -> int:
    import numpy

    return int((numpy.arange(1000) ** 2).sum())


def nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Caller:
    """One way to have it run.

    Attributes:
        call: once, from the request until the answer is there.
        submit: the same without waiting, where that is possible; gives something with result().
    """

    call: Callable[[], None]
    submit: Callable[[], Any] | None = None
    settle: Callable[[], object] = nothing
    end: Callable[[], object] = nothing


def _check(found: int) -> None:
    if found != RIGHT:
        raise CaseFailed(f"the answer is {found}")


def _executor(warm: int, workers: int) -> Caller:
    import shoal

    executor = shoal.SandboxExecutor(preload=["numpy"], max_workers=workers, warm=warm)
    executor.wait_ready()
    return Caller(
        lambda: _check(executor.submit(work).result()),
        lambda: executor.submit(work),
        executor.wait_ready,
        lambda: executor.shutdown(cancel_futures=True),
    )


def pool() -> Caller:
    """No isolation, and workers that are used again: what a call costs when nobody is protected from it."""
    workers = concurrent.futures.ProcessPoolExecutor(2, initializer=work)
    workers.submit(work).result()
    return Caller(lambda: _check(workers.submit(work).result()), lambda: workers.submit(work), end=workers.shutdown)


def fresh() -> Caller:
    """No isolation: an interpreter of its own for each call."""

    def call() -> None:
        done = subprocess.run([sys.executable, "-c", SOURCE], check=False, capture_output=True, text=True)
        _check(int(done.stdout or -1))

    return Caller(call)


def fresh_in_shoal() -> Caller:
    """The same in a sandbox of shoal.run."""
    import shoal

    box = shoal.Sandbox.profile("python")

    def call() -> None:
        done = shoal.run([sys.executable, "-c", SOURCE], sandbox=box, capture_output=True, text=True)
        _check(int(done.stdout or -1))

    return Caller(call)


def fresh_in_sandlock() -> Caller:
    """The same in sandlock, with the interpreter and its packages to read."""
    try:
        from sandlock import Sandbox  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise CaseFailed(f"sandlock cannot be imported: {error}") from error
    places = [sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null"]
    readable = sorted({os.path.realpath(path) for path in [*places, "/dev/urandom"] if os.path.exists(path)})

    def call() -> None:
        done = Sandbox(fs_readable=readable, clean_env=True).run([sys.executable, "-c", SOURCE])
        if not done.success:
            raise CaseFailed(f"sandlock: the program ended with {done.exit_code}: {done.error}")
        _check(int(done.stdout or -1))

    return Caller(call)


MAKERS: dict[str, Callable[[], Caller]] = {
    "SandboxExecutor": lambda: _executor(2, 2),
    "SandboxExecutor, none ahead": lambda: _executor(0, 2),
    "SandboxExecutor, 4 at once": lambda: _executor(4, 4),
    "ProcessPoolExecutor (no isolation)": pool,
    "python3 -c (no isolation)": fresh,
    "shoal.run python3 -c": fresh_in_shoal,
    "sandlock python3 -c": fresh_in_sandlock,
}
