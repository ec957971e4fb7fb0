"""One client process that starts programs on request, through the manager or by itself, one JSON object a line. Run by lab.py, not by hand.

Its standard input, output and error are /dev/null: what it starts by itself inherits them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import launchers
from timing import CaseFailed

from shoal.manager import Manager, ManagerError, connect


def through(manager: Manager, program: str, output: int | None) -> Callable[[], None]:
    """Starts a domain and waits for it, on one core after the other."""
    cores = manager.cores()
    turn = os.getpid()

    def launch() -> None:
        nonlocal turn
        turn += 1
        ended = manager.spawn_program(cores[turn % len(cores)], program, [program], {}, stdout=output, stderr=output).wait()
        if ended is None or ended.code != 0:
            raise CaseFailed(f"shoal.manager: the program ended with {ended}")

    return launch


def make(peer: str, program: str, manager: Manager) -> Callable[[], None]:
    """Launches once."""
    if peer == "shoal.manager":
        return through(manager, program, subprocess.DEVNULL)
    if peer == "shoal.manager, output kept":
        return through(manager, program, None)
    return launchers.make(peer, program, None)


def answer(request: dict[str, Any], launch: Callable[[], None]) -> list[float]:
    """Microseconds of each launch: of so many, or as many as there is time for."""
    launch()  # this process has just been woken up
    taken: list[float] = []
    until = time.perf_counter() + request.get("seconds", 0.0)
    while len(taken) < request.get("count", 0) or time.perf_counter() < until:
        started = time.perf_counter_ns()
        launch()
        taken.append((time.perf_counter_ns() - started) / 1000)
    return taken


def main() -> None:
    request_fd, answer_fd = map(int, sys.argv[1:])
    for fd in (request_fd, answer_fd):
        os.set_inheritable(fd, False)
    made: dict[tuple[str, str], Callable[[], None]] = {}
    with os.fdopen(request_fd) as requests, os.fdopen(answer_fd, "w") as answers, connect() as manager:
        for line in requests:
            request = json.loads(line)
            key = (request["peer"], request["program"])
            try:
                launch = made.get(key) or made.setdefault(key, make(*key, manager))
                reply: dict[str, Any] = {"values": answer(request, launch)}
            except (CaseFailed, ManagerError) as error:
                reply = {"failed": str(error)}
            print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
