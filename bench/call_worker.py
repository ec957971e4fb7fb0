"""A process that makes calls on request, one JSON object a line. Run by lab.py, not by hand.

Its standard input, output and error are /dev/null.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import deque
from typing import Any

import callers
import machine
from timing import CaseFailed

CROWD = 1000
"""Sandboxes that exist at once."""


def answer(request: dict[str, Any], made: dict[str, callers.Caller]) -> list[float]:
    if "crowd" in request:
        return crowd(request["crowd"], request["count"])
    peer = request["peer"]
    if peer not in made:
        made[peer] = callers.MAKERS[peer]()
    caller = made[peer]
    caller.call()  # this process has just been woken up, and the caches are somebody else's
    if "seconds" in request:
        return [per_second(caller, request["outstanding"], request["seconds"])]
    taken = []
    for _ in range(request["count"]):
        caller.settle()
        started = time.perf_counter_ns()
        caller.call()
        taken.append((time.perf_counter_ns() - started) / 1000)
    caller.settle()
    return taken


def per_second(caller: callers.Caller, outstanding: int, seconds: float) -> float:
    """Calls per second, with so many submitted and not answered at any time."""
    submit = caller.submit
    if submit is None:
        raise CaseFailed("it runs one after the other only")
    waiting = deque(submit() for _ in range(outstanding))
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        waiting.popleft().result()
        done += 1
        waiting.append(submit())
    spent = time.perf_counter() - started
    for call in waiting:
        call.result()
    return done / spent


def crowd(what: str, count: int) -> list[float]:
    """Microseconds of a trivial call, or KiB of one sandbox, with a thousand of them there.

    Args:
        what: "waiting": they wait for a call; "running": each runs one that sleeps; "idle": the memory of one that waits.
    """
    import shoal

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 16_000)), hard))
    try:
        if what == "running":
            with shoal.SandboxExecutor(preload=["numpy"], max_workers=CROWD + 2, warm=2) as executor:
                calls = [executor.submit(time.sleep, 3600) for _ in range(CROWD)]
                while not all(call.running() for call in calls):
                    time.sleep(0.01)
                taken = _trivial(executor, count)
                for call in calls:
                    call.cancel()
            return taken
        with shoal.SandboxExecutor(preload=["numpy"], max_workers=2, warm=0) as executor:
            executor.submit(callers.work).result()
            before = machine.memory_used_bytes()
            with shoal.SandboxExecutor(preload=["numpy"], max_workers=2, warm=CROWD) as many:
                many.wait_ready()
                if what == "idle":
                    return [(machine.memory_used_bytes() - before) / 1024 / CROWD]
                return _trivial(many, count)
    except (shoal.SpawnError, OSError) as error:
        raise CaseFailed(f"no thousand sandboxes here: {error}") from error


def _trivial(executor: Any, count: int) -> list[float]:
    executor.wait_ready()
    taken = []
    for _ in range(count):
        started = time.perf_counter_ns()
        executor.submit(callers.nothing).result()
        taken.append((time.perf_counter_ns() - started) / 1000)
    return taken


def main() -> None:
    request_fd, answer_fd = map(int, sys.argv[1:])
    for fd in (request_fd, answer_fd):
        os.set_inheritable(fd, False)
    made: dict[str, callers.Caller] = {}
    with os.fdopen(request_fd) as requests, os.fdopen(answer_fd, "w") as answers:
        for line in requests:
            try:
                reply: dict[str, Any] = {"values": answer(json.loads(line), made)}
            except (CaseFailed, ImportError) as error:
                reply = {"failed": str(error)}
            print(json.dumps(reply), file=answers, flush=True)
    for caller in made.values():
        caller.end()


if __name__ == "__main__":
    main()
