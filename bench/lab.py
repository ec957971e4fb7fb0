"""The processes that do the measuring, seen from the one that asks: start them, take turns with them, end them.

Every figure comes from a process that was started for it, with the shape the question needs. Nothing is measured in the
process that draws the table, which has grown by then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from programs import Programs
from timing import CaseFailed, Take

HERE = Path(__file__).parent


class _Conversation:
    """A child process that answers one line to each line. Ends when its requests end."""

    def __init__(self, argv: list[str]) -> None:
        request_read, request_write = os.pipe()
        answer_read, answer_write = os.pipe()
        try:
            # Not over stdin and stdout: those are what the measured programs inherit, and must be the same for all peers.
            self._process = subprocess.Popen(
                [*argv, str(request_read), str(answer_write)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(request_read, answer_write),
            )
        finally:
            os.close(request_read)
            os.close(answer_write)
        self._requests = os.fdopen(request_write, "w")
        self._answers = os.fdopen(answer_read)

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.listen()

    def listen(self) -> str:
        line = self._answers.readline()
        if not line:
            raise CaseFailed(f"the measuring process ended with {self._process.wait()}")
        return line

    def tell(self, line: str) -> None:
        print(line, file=self._requests, flush=True)

    def _values(self, request: dict[str, Any]) -> list[float]:
        self.tell(json.dumps(request))
        return self._answered()

    def _answered(self) -> list[float]:
        reply = json.loads(self.listen())
        if "failed" in reply:
            raise CaseFailed(reply["failed"])
        values: list[float] = reply["values"]
        return values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._requests.close()
        self._answers.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Worker(_Conversation):
    """A Python process of a given size that launches programs through any peer."""

    def __init__(self, directory: Path, *, memory_bytes: int = 0, descriptors: int = 0) -> None:
        shape = ["--memory-bytes", str(memory_bytes), "--descriptors", str(descriptors), "--directory", str(directory)]
        super().__init__([sys.executable, str(HERE / "worker.py"), *shape])
        facts = json.loads(self.listen())
        self.resident_bytes: int = facts["resident_bytes"]
        self.descriptors: int = facts["descriptors"]

    def launches(self, peer: str, program: str, count: int, *, paused: bool = False) -> Take:
        """Durations in microseconds of `count` launches, one after the other.

        Args:
            paused: before each, wait until nothing is made in the background.
        """
        return lambda: self._values({"peer": peer, "program": program, "count": count, "paused": paused})

    def rate(self, peer: str, program: str, threads: int, seconds: float) -> Take:
        """One value: launches per second."""
        return lambda: self._values({"peer": peer, "program": program, "threads": threads, "seconds": seconds})

    def concurrent(self, peer: str, program: str, seconds: float, *, captured: bool) -> Take:
        """One value: programs per second, with many at any time."""
        return lambda: self._values({"peer": peer, "program": program, "concurrent": True, "captured": captured, "seconds": seconds})

    def idle_kib(self, peer: str, program: str) -> Take:
        """One value: the memory of a cell that waits, in KiB."""
        return lambda: self._values({"peer": peer, "program": program, "idle": True})


class Calls(_Conversation):
    """A Python process that calls functions through any peer of callers.py."""

    def __init__(self) -> None:
        super().__init__([sys.executable, str(HERE / "call_worker.py")])

    def durations(self, peer: str, count: int) -> Take:
        """Durations in microseconds of `count` calls, each after a pause as long as something is made in the background."""
        return lambda: self._values({"peer": peer, "count": count})

    def rate(self, peer: str, outstanding: int, seconds: float) -> Take:
        """One value: calls per second."""
        return lambda: self._values({"peer": peer, "outstanding": outstanding, "seconds": seconds})

    def crowd(self, what: str, count: int) -> Take:
        """Microseconds of a trivial call, or KiB of a sandbox, with a thousand of them there."""
        return lambda: self._values({"crowd": what, "count": count})


class Client(_Conversation):
    """A Python process that starts programs through the manager, or by itself."""

    def __init__(self) -> None:
        super().__init__([sys.executable, str(HERE / "manager_worker.py")])

    def launches(self, peer: str, program: str, count: int) -> Take:
        """Durations in microseconds of `count` launches, one after the other."""
        return lambda: self._values({"peer": peer, "program": program, "count": count})

    def begin(self, peer: str, program: str, seconds: float) -> None:
        """Let it launch one after the other until the time is over."""
        self.tell(json.dumps({"peer": peer, "program": program, "seconds": seconds}))

    def finish(self) -> list[float]:
        """The durations in microseconds of what it has launched."""
        return self._answered()


def together(clients: Sequence[Client], peer: str, program: str, seconds: float, kept: list[float]) -> Take:
    """One value: launches per second of all clients at the same time. Their durations are added to `kept`."""

    def take() -> list[float]:
        for client in clients:
            client.begin(peer, program, seconds)
        taken = [client.finish() for client in clients]
        for each in taken:
            kept.extend(each)
        return [sum(len(each) / sum(each) for each in taken) * 1e6]

    return take


class Floor(_Conversation):
    """The C launcher of floor.c, which times itself."""

    def __init__(self, programs: Programs) -> None:
        super().__init__([programs.floor])

    def launches(self, program: str, count: int) -> Take:
        def take() -> list[float]:
            taken = [int(word) / 1000 for word in self.ask(f"{count + 1} {program}").split()]
            if min(taken) < 0:
                raise CaseFailed("floor: a launch failed")
            return taken[1:]  # the first one warms up, as in the worker

        return take


def floors_at_once(floors: Sequence[Floor], program: str, seconds: float) -> Take:
    """One value: launches per second of several C launchers at the same time, each of which takes about so many seconds."""

    def take() -> list[float]:
        first = [int(word) for word in floors[0].ask(f"50 {program}").split()]
        count = max(50, int(seconds * 1e9 / (sum(first) / len(first)) / len(floors)))
        for floor in floors:
            floor.tell(f"{count} {program}")
        taken = [[int(word) for word in floor.listen().split()] for floor in floors]
        if min(map(min, taken)) < 0:
            raise CaseFailed("floor: a launch failed")
        return [sum(len(each) / sum(each) for each in taken) * 1e9]

    return take
