"""create_subprocess_exec(), create_subprocess_shell(): asyncio's calls, for code that was written for them.

The names and shapes are asyncio's: change the import, and the code runs on asyncio and trio, in a sandbox where one is given. Without
one (the default here) it runs as the caller, as ever. What is otherwise than in asyncio:

* Nothing waits for SIGCHLD or takes a thread for each child, and a child that the loop's end meets is killed with its descendants.
* `kill()` kills the whole tree, and `wait()` returns when that is gone, as with `open_process()`.
* What is written and not yet taken by the program is written on in the background; what the program writes stays in the pipe until
  it is read. The pipe is made as large as asyncio's buffer, where the kernel allows.

Source: Python's asyncio.subprocess, asyncio.StreamReader, asyncio.StreamWriter.
"""

from __future__ import annotations

from asyncio import IncompleteReadError, LimitOverrunError
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

from shoal.aio.loops import current, unbroken
from shoal.aio.opening import opened, request_for
from shoal.aio.process import Process, Streams
from shoal.aio.run import Box, starter_of
from shoal.aio.streams import READ_BYTES, ByteReceiver, ByteSender
from shoal.arguments import StrOrBytesPath
from shoal.sandbox.request import Request

LIMIT = 1 << 16
"""How long a line may be, unless the caller says otherwise."""


class StreamReader:
    """What a program writes, as asyncio's StreamReader gives it."""

    def __init__(self, stream: ByteReceiver, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._kept = bytearray()
        self._is_over = False

    async def read(self, n: int = -1) -> bytes:
        """As soon as there are any, at most `n` bytes; -1: all until the end. b"" after it."""
        if n < 0:
            while await self._more():
                pass
            return self._take(len(self._kept))
        if n and not self._kept:
            await self._more()
        return self._take(min(n, len(self._kept)))

    async def readline(self) -> bytes:
        """The next line with its end; the last may have none. b"" after it.

        Raises:
            ValueError: it is longer than the limit.
        """
        try:
            return await self.readuntil(b"\n")
        except IncompleteReadError as error:
            return error.partial
        except LimitOverrunError as error:
            has_end = self._kept.startswith(b"\n", error.consumed)
            self._take(error.consumed + 1 if has_end else len(self._kept))
            raise ValueError(error.args[0]) from None

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes.

        Raises:
            IncompleteReadError: there are not that many; it has those that there are.
        """
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        while len(self._kept) < n:
            if not await self._more():
                raise IncompleteReadError(self._take(len(self._kept)), n)
        return self._take(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Until `separator`, which is part of it.

        Raises:
            IncompleteReadError: it does not come any more. LimitOverrunError: it does not come within the limit.
        """
        if not separator:
            raise ValueError("Separator should be at least one-byte string")
        searched = 0
        while (at := self._kept.find(separator, searched)) < 0:
            searched = max(0, len(self._kept) + 1 - len(separator))
            if searched > self._limit:
                raise LimitOverrunError("Separator is not found, and chunk exceed the limit", searched)
            if not await self._more():
                raise IncompleteReadError(self._take(len(self._kept)), None)
        if at > self._limit:
            raise LimitOverrunError("Separator is found, but chunk is longer than limit", at)
        return self._take(at + len(separator))

    def at_eof(self) -> bool:
        """Whether the end has been read."""
        return self._is_over and not self._kept

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def _more(self) -> bool:
        """Read what is there, as soon as there is something. False: there is no more."""
        if self._is_over:
            return False
        try:
            self._kept += await self._stream.receive(READ_BYTES)
        except (EndOfStream, ClosedResourceError):
            self._is_over = True
        return not self._is_over

    def _take(self, count: int) -> bytes:
        data = bytes(self._kept[:count])
        del self._kept[:count]
        return data


class StreamWriter:
    """What a program reads, as asyncio's StreamWriter takes it."""

    def __init__(self, stream: ByteSender) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._flusher: object = None
        self._flushed = anyio.Event()
        self._flushed.set()
        self._is_closing = self._is_broken = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write it, at once or in the background. What a program does not read any more is dropped; `drain()` tells."""
        if self._is_closing:
            raise RuntimeError("stdin has been closed; nothing can be written to it")
        if not self._is_broken and data:
            self._kept += data
            self._flush_now()

    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write all of them."""
        self.write(b"".join(data))

    async def drain(self) -> None:
        """Wait until all has been taken.

        Raises:
            BrokenPipeError: the program does not read it any more.
        """
        await self._flushed.wait()
        if self._is_broken:
            raise BrokenPipeError("the program does not read its stdin any more")

    def can_write_eof(self) -> bool:
        """True."""
        return True

    def write_eof(self) -> None:
        """As `close()`."""
        self.close()

    def close(self) -> None:
        """Let the program read the end of file, once all has been written."""
        if not self._is_closing:
            self._is_closing = True
            if self._flushed.is_set():
                self._stream.close()

    def is_closing(self) -> bool:
        """Whether `close()` has been called."""
        return self._is_closing

    async def wait_closed(self) -> None:
        """Wait until all has been written, and it is closed."""
        await self._flushed.wait()

    def _flush_now(self) -> None:
        """Write what fits into the pipe; the rest is for a task of its own."""
        if self._flushed.is_set():
            self._write_some()
            if self._kept:
                self._flushed = anyio.Event()
                self._flusher = current().start(self._flush, "shoal.aio: stdin")

    def _write_some(self) -> None:
        try:
            with memoryview(self._kept) as view:
                sent = self._stream.send_now(view)
            del self._kept[:sent]
        except (BrokenResourceError, ClosedResourceError):
            self._is_broken = True
            self._kept.clear()

    async def _flush(self) -> None:
        try:
            while self._kept:
                chunk = bytes(self._kept[:READ_BYTES])
                await self._stream.send(chunk)
                del self._kept[: len(chunk)]
        except (BrokenResourceError, ClosedResourceError):
            self._is_broken = True
            self._kept.clear()
        finally:
            if self._is_closing:
                self._stream.close()
            self._flushed.set()


class PortedProcess(Process):
    """A program, as asyncio.subprocess.Process; and what `Process` tells besides."""

    async def communicate(self, input: bytes | bytearray | memoryview | None = None) -> tuple[bytes | None, bytes | None]:
        """Write `input`, close stdin, read all of the output, and wait for the end. The output; None for what is no PIPE.

        A cancellation leaves the program alone.
        """
        if input is not None and self.stdin is None:
            raise ValueError("there is an input, but stdin is no PIPE")
        read: dict[str, bytes] = {}

        async def read_all(name: str, reader: StreamReader) -> None:
            read[name] = await reader.read()

        async with anyio.create_task_group() as tasks:
            for name, reader in (("stdout", self.stdout), ("stderr", self.stderr)):
                if reader is not None:
                    tasks.start_soon(read_all, name, reader)
            if self.stdin is not None:
                tasks.start_soon(self._feed, b"" if input is None else input)
        await self.wait()
        return read.get("stdout"), read.get("stderr")

    async def _feed(self, data: bytes | bytearray | memoryview) -> None:
        with suppress(BrokenPipeError):
            self.stdin.write(data)
            await self.stdin.drain()
        self.stdin.close()


async def create_subprocess_exec(
    program: StrOrBytesPath,
    *args: StrOrBytesPath,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = LIMIT,
    sandbox: Box = False,
    env: Mapping[str, str] | None = None,
    cwd: StrOrBytesPath | None = None,
    start_new_session: bool = False,
    pass_fds: Sequence[int] = (),
    **others: Any,
) -> PortedProcess:
    """asyncio.create_subprocess_exec(), on asyncio and trio, and in a sandbox where one is given.

    Args:
        stdin, stdout, stderr: None is the caller's own; PIPE, DEVNULL, a descriptor or a file. stderr may be STDOUT.
        limit: of `StreamReader.readline()` and `readuntil()`, in bytes.
        sandbox: what it gets; False: it runs in no sandbox. None is `Sandbox()`.
        env, cwd, start_new_session: without a sandbox, which has its own.
        pass_fds: descriptors it gets besides, under the same numbers.
        others: what asyncio passes on to subprocess.Popen is refused, unless it says what is so anyway.
    Raises:
        What `run()` raises where a program cannot be started. TypeError: an argument that is not there, and what to do instead.
    Ownership: the process ends with the loop at the latest; `aclose()` ends it.
    Source: Python's asyncio.create_subprocess_exec().
    """
    _check_others(others)
    starter = starter_of(sandbox, env, cwd, session=start_new_session)
    request = request_for(starter, [program, *args], stdin, stdout, stderr, pass_fds)
    return await _opened(request, limit, sandbox is not False)


async def create_subprocess_shell(
    cmd: str | bytes,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = LIMIT,
    sandbox: Box = False,
    env: Mapping[str, str] | None = None,
    cwd: StrOrBytesPath | None = None,
    start_new_session: bool = False,
    pass_fds: Sequence[int] = (),
    **others: Any,
) -> PortedProcess:
    """asyncio.create_subprocess_shell(): as `create_subprocess_exec()`, with a line for /bin/sh."""
    if not isinstance(cmd, str | bytes):
        raise ValueError(f"cmd must be a line for the shell, not {cmd!r}")
    given = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "env": env, "cwd": cwd}
    return await create_subprocess_exec(
        "/bin/sh", "-c", cmd, limit=limit, sandbox=sandbox, start_new_session=start_new_session, pass_fds=pass_fds, **given, **others
    )


@unbroken
async def _opened(request: Request, limit: int, streams_end_with_it: bool) -> PortedProcess:
    def dress(stdin: ByteSender | None, stdout: ByteReceiver | None, stderr: ByteReceiver | None) -> Streams:
        return (
            None if stdin is None else StreamWriter(stdin),
            None if stdout is None else StreamReader(stdout, limit),
            None if stderr is None else StreamReader(stderr, limit),
        )

    return await opened(PortedProcess, request, dress, roomy=True, streams_end_with_it=streams_end_with_it)


_AS_IT_IS: Mapping[str, Any] = {
    "bufsize": 0,
    "close_fds": True,
    "encoding": None,
    "errors": None,
    "restore_signals": True,
    "shell": False,
    "text": False,
    "universal_newlines": False,
}
_INSTEAD: Mapping[str, str] = {
    "preexec_fn": "nothing of the caller's runs in the child; what it was for is mostly an attribute of a Sandbox",
    "executable": "give the program first; its name in argv is its own",
    "process_group": "a sandbox is a session of its own; without one, start_new_session=True",
    "user": "a sandbox has a user of its own under root",
    "group": "a sandbox has a user of its own under root",
    "extra_groups": "a sandbox has a user of its own under root",
    "umask": "set it in the program, or run it by a shell that does",
}


def _check_others(others: Mapping[str, Any]) -> None:
    for name, value in others.items():
        if name in _AS_IT_IS and (value is None or value == _AS_IT_IS[name]):
            continue
        advice = _INSTEAD.get(name)
        if advice is None and name not in _AS_IT_IS:
            raise TypeError(f"there is no argument {name!r}")
        raise TypeError(f"{name}={value!r} is not possible here" + (f": {advice}" if advice else f"; it is always {_AS_IT_IS[name]!r}"))
