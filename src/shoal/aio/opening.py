"""open_process(): a program with streams, for as long as a block lasts.

Source: anyio.open_process().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from shoal.aio.driving import launch
from shoal.aio.loops import unbroken
from shoal.aio.process import Process, Streams
from shoal.aio.run import Box, starter_of
from shoal.aio.streams import ByteReceiver, ByteSender, TextReceiver, TextSender, encoding_of
from shoal.arguments import StrOrBytesPath
from shoal.handles.reaper import OwnedFd
from shoal.sandbox.output import grow, open_pipe
from shoal.sandbox.request import PIPE, STDOUT, STREAMS, Request, Starter, words_of
from shoal.sandbox.running import Running
from shoal.sandbox.unboxed import Unboxed

P = TypeVar("P", bound=Process)


class Pipes:
    """The pipes of a program: its ends, to be lent to it at its start, and streams at ours."""

    def __init__(self) -> None:
        self.lent: dict[int, OwnedFd] = {}
        self._streams: list[ByteReceiver | ByteSender] = []

    def to_it(self) -> ByteSender:
        """A pipe to what it reads."""
        reader, writer = open_pipe()
        self.lent[0] = OwnedFd(reader)
        self._streams.append(stream := ByteSender(writer))
        return stream

    def from_it(self, target: int, *, roomy: bool) -> ByteReceiver:
        """A pipe from what it writes.

        Args:
            roomy: it can hold four times as much as others, where the kernel allows.
        """
        reader, writer = open_pipe()
        self.lent[target] = OwnedFd(writer)
        if roomy:
            grow(reader)
        self._streams.append(stream := ByteReceiver(reader))
        return stream

    def close(self) -> None:
        """Close ours."""
        for stream in self._streams:
            stream.close()

    def end_now(self) -> None:
        """The program has ended."""
        for stream in self._streams:
            stream.end_now()


Dress = Callable[[ByteSender | None, ByteReceiver | None, ByteReceiver | None], Streams]
"""Makes of streams of bytes what a caller wants to have."""


async def opened(kind: type[P], request: Request, dress: Dress, *, roomy: bool = False, streams_end_with_it: bool = True) -> P:
    """Start a program whose PIPEs become streams.

    Args:
        roomy: the pipes can hold four times as much as others, where the kernel allows.
        streams_end_with_it: else they end when nobody holds the other end any more.
    """
    pipes = Pipes()
    try:
        try:
            stdin = pipes.to_it() if request.stdin == PIPE else None
            stdout = pipes.from_it(1, roomy=roomy) if request.stdout == PIPE else None
            stderr = pipes.from_it(2, roomy=roomy) if request.stderr == PIPE else None
            streams = dress(stdin, stdout, stderr)
        except BaseException:
            pipes.lent.clear()
            raise
        numbers: dict[str, Any] = {STREAMS[target]: owned.fd for target, owned in pipes.lent.items()}
        running = Running(replace(request, **numbers))
        await launch(running, pipes.lent)
    except BaseException as error:
        if not isinstance(error, GeneratorExit):
            pipes.close()
        raise
    return kind(running, pipes, streams, streams_end_with_it=streams_end_with_it)


@unbroken
async def _opened(request: Request, dress: Dress) -> Process:
    return await opened(Process, request, dress)


def request_for(
    starter: Starter, args: Sequence[StrOrBytesPath], stdin: Any, stdout: Any, stderr: Any, pass_fds: Sequence[int] = ()
) -> Request:
    """What is to be started with streams.

    Raises:
        TypeError, ValueError: what is wrong with it.
    """
    for name, given in (("stdin", stdin), ("stdout", stdout)):
        if given == STDOUT:
            raise ValueError(f"{name} cannot be STDOUT, which is for stderr")
    host_cwd = starter.host_cwd if isinstance(starter, Unboxed) else None
    return Request(starter, words_of(args), host_cwd, None, stdin, stdout, stderr, {number: number for number in pass_fds})


def open_process(
    args: Sequence[StrOrBytesPath],
    *,
    sandbox: Box = None,
    stdin: Any = PIPE,
    stdout: Any = PIPE,
    stderr: Any = PIPE,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: StrOrBytesPath | None = None,
    start_new_session: bool = False,
    pass_fds: Sequence[int] = (),
) -> Opening:
    """A program that runs for as long as a block lasts: `async with open_process([...]) as process`.

    Leaving the block ends the program, and all that it has started, and waits until it is gone; so does a cancellation. The limits of
    the sandbox hold whatever the block does.

    Args:
        args, sandbox, env, cwd: as `run()` has them.
        stdin, stdout, stderr: PIPE is a stream; or a descriptor, a file, DEVNULL, or None for the caller's own. stderr may be STDOUT.
        text, encoding, errors: streams of text instead of bytes.
        start_new_session: only with sandbox=False, since a sandbox is one: it has no terminal, and signals of the keyboard do not reach it.
        pass_fds: descriptors that it gets besides, under the same numbers.
    Raises:
        What `run()` raises where a program cannot be started.
    Ownership: the streams are the process's, and are closed with it.
    Source: anyio.open_process().
    """
    request = request_for(starter_of(sandbox, env, cwd, session=start_new_session), args, stdin, stdout, stderr, pass_fds)
    as_text = text or encoding is not None or errors is not None
    return Opening(request, _as_text(encoding_of(encoding), errors) if as_text else _as_bytes)


class Opening:
    """What `open_process()` returns: to be entered, once."""

    def __init__(self, request: Request, dress: Dress) -> None:
        self._request, self._dress = request, dress
        self._process: Process | None = None

    async def __aenter__(self) -> Process:
        if self._process is not None:
            raise RuntimeError("an open_process() is for one block; make another one for each")
        self._process = await _opened(self._request, self._dress)
        return self._process

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._process is not None:
            await self._process.aclose()

    def __repr__(self) -> str:
        return f"<open_process({self._request.words!r}), {'to be entered with async with' if self._process is None else 'entered'}>"

    def __await__(self) -> NoReturn:
        raise TypeError("open_process() is not awaited but entered: async with open_process([...]) as process")


def _as_bytes(stdin: ByteSender | None, stdout: ByteReceiver | None, stderr: ByteReceiver | None) -> Streams:
    return stdin, stdout, stderr


def _as_text(encoding: str, errors: str | None) -> Dress:
    def dress(stdin: ByteSender | None, stdout: ByteReceiver | None, stderr: ByteReceiver | None) -> Streams:
        return (
            None if stdin is None else TextSender(stdin, encoding, errors),
            None if stdout is None else TextReceiver(stdout, encoding, errors),
            None if stderr is None else TextReceiver(stderr, encoding, errors),
        )

    return dress
