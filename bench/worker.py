"""One parent process that launches programs on request, so that its size is a fact and not an accident.

Run by lab.py, not by hand. It takes its shape once (resident memory, open descriptors), then answers requests, one JSON
object a line, until the line ends. Its standard input, output and error are /dev/null: what it starts inherits them.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launchers
from timing import CaseFailed

PAGE = mmap.PAGESIZE


class Shape:
    """Memory that is resident and descriptors that are open for as long as this object lives."""

    def __init__(self, memory_bytes: int, descriptors: int) -> None:
        self._memory = mmap.mmap(-1, memory_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if memory_bytes else None
        if self._memory is not None:
            for start in range(0, memory_bytes, PAGE):
                self._memory[start] = 1  # a page that was never written to is not there and costs no launcher anything
        self._descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors)]

    def facts(self) -> dict[str, int]:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        return {"resident_bytes": resident, "descriptors": len(os.listdir("/proc/self/fd"))}


def timed_us(launch: Callable[[], None], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        started = time.perf_counter_ns()
        launch()
        taken.append((time.perf_counter_ns() - started) / 1000)
    return taken


TO_BE_KNOWN = 4
"""So many launches it takes until what is made ahead is made; those are no part of the figure."""


def _after_a_pause(launch: Callable[[], None]) -> float:
    launchers.settle()
    return timed_us(launch, 1)[0]


def per_second(launch: Callable[[], None], threads: int, seconds: float) -> float:
    """Launches per second of `threads` threads that start together and each go on until the time is over."""
    barrier = threading.Barrier(threads + 1)
    counts = [0] * threads
    ended_at = [0.0] * threads
    errors: list[CaseFailed] = []

    def work(index: int) -> None:
        barrier.wait()
        until = time.perf_counter() + seconds
        try:
            while time.perf_counter() < until:
                launch()
                counts[index] += 1
        except CaseFailed as error:
            errors.append(error)
        ended_at[index] = time.perf_counter()

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    started = time.perf_counter()
    barrier.wait()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return sum(counts) / (max(ended_at) - started)


def idle_kib(launch: Callable[[], None]) -> float:
    """What one cell that waits takes of the machine's memory, its share of the kernel's included."""
    import machine

    import shoal

    shoal.cells.drain()
    for _ in range(2):
        launch()  # what is opened once and kept
    shoal.cells.drain()
    before = machine.memory_used_bytes()
    for _ in range(10):  # side by side, since one after the other never needs many
        side_by_side = [threading.Thread(target=launch) for _ in range(shoal.cells.KEPT)]
        for thread in side_by_side:
            thread.start()
        for thread in side_by_side:
            thread.join()
        ready = shoal.cells.wait_ready()
        if ready >= shoal.cells.KEPT // 2:
            break
    else:
        raise CaseFailed(f"only {ready} cells wait, which is too few to measure")
    taken = machine.memory_used_bytes() - before
    shoal.cells.drain()
    return taken / 1024 / ready


def answer(request: dict[str, Any], made: dict[tuple[str, str], Callable[[], None]], directory: Path) -> list[float]:
    if "concurrent" in request:
        import concurrent_peers

        try:
            return [concurrent_peers.per_second(request["peer"], request["program"], request["seconds"], captured=request["captured"])]
        finally:
            launchers.settle()
    key = (request["peer"], request["program"])
    if key not in made:
        made[key] = launchers.make(*key, directory)
    if "idle" in request:
        return [idle_kib(made[key])]
    try:
        if "threads" in request:
            return [per_second(made[key], request["threads"], request["seconds"])]
        made[key]()  # this process has just been woken up and the caches are somebody else's: not part of the figure
        if request.get("paused"):
            return [_after_a_pause(made[key]) for _ in range(TO_BE_KNOWN + request["count"])][TO_BE_KNOWN:]
        return timed_us(made[key], request["count"])
    finally:
        launchers.settle()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-bytes", type=int, default=0)
    parser.add_argument("--descriptors", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("request_fd", type=int)
    parser.add_argument("answer_fd", type=int)
    args = parser.parse_args()
    for fd in (args.request_fd, args.answer_fd):
        os.set_inheritable(fd, False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < args.descriptors + 64:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, args.descriptors + 1024), hard))
    shape = Shape(args.memory_bytes, args.descriptors)
    made: dict[tuple[str, str], Callable[[], None]] = {}
    with os.fdopen(args.request_fd) as requests, os.fdopen(args.answer_fd, "w") as answers:
        print(json.dumps(shape.facts()), file=answers, flush=True)
        for line in requests:
            try:
                reply: dict[str, Any] = {"values": answer(json.loads(line), made, args.directory)}
            except CaseFailed as error:
                reply = {"failed": str(error)}
            print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
