"""Process: a program with streams, that runs or has ended.

A task that belongs to the program watches it from its start to its end: it keeps the limits of time, ends what the program leaves
running, and ends the streams. So they hold whether or not anybody waits for the program or reads what it writes.

Source: anyio.abc.Process, whose names these are.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

import anyio
from anyio.abc import Process as AnyioProcess

from shoal.aio.driving import cared_for, drive, end
from shoal.aio.loops import current, unbroken
from shoal.sandbox.result import Reason, RunUsage
from shoal.sandbox.running import Running

Streams = tuple[Any, Any, Any]
"""What stands for stdin, stdout and stderr."""


class Ends(Protocol):
    """The ends of its pipes that are ours."""

    def close(self) -> None:
        """Close them."""

    def end_now(self) -> None:
        """The program has ended."""


class Process(AnyioProcess):
    """A program that runs, or has ended. Made by `open_process()`."""

    def __init__(self, running: Running, ends: Ends, streams: Streams, *, streams_end_with_it: bool) -> None:
        self.args = running.request.words
        self._stdin, self._stdout, self._stderr = streams
        self._running = running
        self._ends = ends
        self._streams_end_with_it = streams_end_with_it
        self._ended = anyio.Event()
        self._trouble: Exception | None = None
        self._pid = 0 if running.process is None else running.process.pid
        loop = current()
        self._waiter = loop.waiter()
        self._watcher = loop.start(self._watch, f"shoal.aio: {self.args[0]}")

    @property
    def stdin(self) -> Any:
        """A stream of what it reads, where that was asked for; else None."""
        return self._stdin

    @property
    def stdout(self) -> Any:
        """A stream of what it writes, where that was asked for; else None."""
        return self._stdout

    @property
    def stderr(self) -> Any:
        """A stream of its messages, where that was asked for; else None."""
        return self._stderr

    @property
    def pid(self) -> int:
        """Its process id as the caller sees it."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative signal; None as long as it runs."""
        return self._running.returncode

    @property
    def reason(self) -> Reason | None:
        """Why it ended, as `Result.reason`; None as long as it runs."""
        return self._running.reason

    @property
    def usage(self) -> RunUsage | None:
        """What it used, as `Result.usage`; None as long as it runs."""
        return self._running.usage

    @property
    def enforced(self) -> Mapping[str, bool | str]:
        """Each protection, and whether it is in force, as `Result.enforced`."""
        return self._running.enforced

    @property
    def unkilled(self) -> tuple[int, ...]:
        """Pids of what was killed and has not ended, as `Result.unkilled`."""
        return tuple(each.pid for each in self._running.left)

    async def wait(self) -> int:
        """Wait until it has ended, and what it left running has been ended, as `Sandbox.linger` says. Gives the return code.

        Any number of tasks may wait. What it writes has to be read meanwhile: a pipe that is full keeps it from ending.
        """
        await self._ended.wait()
        if self._trouble is not None:
            raise self._trouble
        if self._running.returncode is None:
            raise anyio.ClosedResourceError  # the loop ends, and has ended it
        return self._running.returncode

    def send_signal(self, signal: int) -> None:
        """Send it a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        process = self._running.process
        if process is None or process.closed:
            raise ProcessLookupError(errno.ESRCH, f"process {self._pid} ({self.args[0]}) has ended")
        process.send_signal(signal)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM). Fine when it has ended already."""
        with suppress(ProcessLookupError):
            self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and all that it has started. Its reason then is "killed". Fine when it has ended already."""
        if not self._ended.is_set():
            self._running.kill()
            self._waiter.interrupt()

    async def aclose(self) -> None:
        """Close its streams, and end it with all that it has started, as far as it has not ended. Returns when that is gone."""
        await _close(self)

    def __repr__(self) -> str:
        how = "running" if self.returncode is None else f"returned {self.returncode}, {self.reason}"
        return f"<shoal.aio.Process {self.args[0]!r} pid {self._pid} {how}>"

    async def _watch(self) -> None:
        running = self._running
        try:
            with cared_for(running):
                try:
                    await drive(running.following(), None, self._waiter)
                except BaseException as error:
                    await end(running, error)
                    raise
        except GeneratorExit:  # the loop is gone, and nobody will ever wait for it
            raise
        except Exception as error:
            self._trouble = error
        except BaseException:
            self._tell()
            raise
        self._tell()

    def _tell(self) -> None:
        """It has ended."""
        if self._streams_end_with_it:
            self._ends.end_now()
        self._ended.set()


@unbroken
async def _close(process: Process) -> None:
    with anyio.CancelScope(shield=True):
        process.kill()
        process._ends.close()  # not before: a program that a closed pipe ends would leave its children to nobody
        while not process._ended.is_set():
            # asyncio's own cancellations come in here, too. The first of them is on its way already.
            with suppress(anyio.get_cancelled_exc_class()):
                await process._ended.wait()
