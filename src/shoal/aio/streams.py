"""Streams: the ends of a program's pipes that are ours, as anyio has streams; of bytes, and of text.

What is not read stays in the pipe, and the program waits when that is full: nothing is gathered behind the reader's back. A stream ends
when its program does, with what is in the pipe at that moment: whatever the program has left holding the other end cannot keep a
reader waiting.

Iterating gives lines. A line that is longer than LINE_BYTES comes in pieces, so that a program that never ends one costs no memory.

Ownership: a stream has its descriptor, and closes it.
Source: anyio.abc.ByteReceiveStream, ByteSendStream, ObjectReceiveStream; pipe(7).
"""

from __future__ import annotations

import codecs
import fcntl
import io
import locale
import os
import signal
import sys
import termios
from typing import Self

from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfStream,
    ResourceGuard,
    notify_closing,
    wait_readable,
    wait_writable,
)
from anyio.abc import ByteReceiveStream, ByteSendStream, ObjectReceiveStream, ObjectSendStream
from anyio.lowlevel import checkpoint

READ_BYTES = 1 << 16
LINE_BYTES = 1 << 20
"""The longest line that is given in one piece."""


class _End:
    """A descriptor of ours."""

    def __init__(self, fd: int, doing: str) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._guard = ResourceGuard(doing)

    def close(self) -> None:
        """Close it. Who waits for it gets a ClosedResourceError. Closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            notify_closing(fd)
            os.close(fd)

    def __repr__(self) -> str:
        return f"<shoal.aio.{type(self).__name__} {'closed' if self._fd < 0 else f'fd {self._fd}'}>"

    def _check_open(self) -> None:
        if self._fd < 0:
            raise ClosedResourceError

    def __del__(self) -> None:
        if (fd := getattr(self, "_fd", -1)) >= 0 and os is not None:
            self._fd = -1
            os.close(fd)


class ByteReceiver(_End, ByteReceiveStream):
    """What a program writes. Iterate for lines, with their ends; `receive()` for whatever is there."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "reading from")
        self._kept = bytearray()
        self._searched = 0
        self._left: int | None = None  # bytes that were in the pipe when the program had ended
        self._is_over = False

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        """The next bytes, at most `max_bytes`, as soon as there are any.

        Raises:
            EndOfStream: there are no more. ClosedResourceError: it was closed. BusyResourceError: another task is reading.
        """
        with self._guard:
            if not self._kept:
                return await self._read(max_bytes)
            await checkpoint()
            self._check_open()
            return self._take(min(max_bytes, len(self._kept)))

    async def receive_line(self) -> bytes:
        """The next line with its end; the last may have none. b"" after it.

        Raises: as `receive()`, but for the end.
        """
        with self._guard:
            self._check_open()
            while (end := self._kept.find(b"\n", self._searched) + 1) == 0 and len(self._kept) < LINE_BYTES:
                self._searched = len(self._kept)
                try:
                    self._kept += await self._read(READ_BYTES)
                except EndOfStream:
                    break
            return self._take(min(end or len(self._kept), LINE_BYTES))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        line = await self.receive_line()
        if not line:
            raise StopAsyncIteration
        return line

    async def aclose(self) -> None:
        """Close it; the program gets a SIGPIPE when it writes on."""
        self.close()
        await checkpoint()

    def end_now(self) -> None:
        """Its program has ended: there is no more than what is in the pipe."""
        if self._fd >= 0 and self._left is None:
            self._left = int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), sys.byteorder)
            notify_closing(self._fd)

    async def _read(self, most: int) -> bytes:
        await checkpoint()
        while True:
            self._check_open()
            if self._is_over or self._left == 0:
                raise EndOfStream
            try:
                data = os.read(self._fd, most if self._left is None else min(most, self._left))
            except BlockingIOError:
                await self._wait()
                continue
            if not data:
                self._is_over = True
            elif self._left is not None:
                self._left -= len(data)
            if data:
                return data

    async def _wait(self) -> None:
        try:
            await wait_readable(self._fd)
        except ClosedResourceError:
            if self._fd < 0 or self._left is None:
                raise

    def _take(self, count: int) -> bytes:
        data = bytes(self._kept[:count])
        del self._kept[:count]
        self._searched = 0
        return data


class ByteSender(_End, ByteSendStream):
    """What a program reads."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "writing to")
        self._is_broken = False

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Write all of it. Cancelled, it may have written a part.

        Raises:
            BrokenResourceError: nobody reads it any more. ClosedResourceError: it was closed. BusyResourceError: another task is writing.
        """
        with self._guard, memoryview(item).cast("B") as data:
            await checkpoint()
            sent = self.send_now(data)
            while sent < len(data):
                await self._wait()
                sent += self.send_now(data[sent:])

    def send_now(self, data: memoryview) -> int:
        """Write as much as the pipe takes at this moment. How much that was. Raises as `send()`."""
        self._check_open()
        if self._is_broken:
            raise BrokenResourceError
        try:
            return write(self._fd, data) if data else 0
        except BlockingIOError:
            return 0
        except BrokenPipeError as error:
            raise BrokenResourceError from error

    async def aclose(self) -> None:
        """Close it; the program reads the end of file."""
        self.close()
        await checkpoint()

    def end_now(self) -> None:
        """Its program has ended, and who else holds the other end is not the one this was meant for."""
        if self._fd >= 0 and not self._is_broken:
            self._is_broken = True
            notify_closing(self._fd)

    async def _wait(self) -> None:
        try:
            await wait_writable(self._fd)
        except ClosedResourceError:
            if self._fd < 0 or not self._is_broken:
                raise


class TextReceiver(ObjectReceiveStream[str]):
    """What a program writes, as text; every line ends with a newline, whatever it ended with. Iterate for lines."""

    def __init__(self, bytes_of: ByteReceiver, encoding: str | None, errors: str | None) -> None:
        self._bytes = bytes_of
        decoder = codecs.getincrementaldecoder(encoding_of(encoding))(errors or "strict")
        self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._kept = ""
        self._at = 0  # so much of it has been given
        self._is_over = False

    def __repr__(self) -> str:
        return repr(self._bytes).replace("ByteReceiver", "TextReceiver")

    async def receive(self) -> str:
        """The next characters, as soon as there are any.

        Raises:
            EndOfStream: there are no more. UnicodeDecodeError: the program wrote bytes that are no text.
            ClosedResourceError, BusyResourceError: as of bytes.
        """
        while self._at == len(self._kept):
            await self._read()
        return self._take(len(self._kept))

    async def receive_line(self) -> str:
        """The next line with its newline; the last may have none. "" after it. Raises as `receive()`, but for the end."""
        while (end := self._kept.find("\n", self._at) + 1) == 0 and len(self._kept) - self._at < LINE_BYTES:
            try:
                await self._read()
            except EndOfStream:
                break
        return self._take(min(end or len(self._kept), self._at + LINE_BYTES))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        line = await self.receive_line()
        if not line:
            raise StopAsyncIteration
        return line

    async def aclose(self) -> None:
        """Close it; the program gets a SIGPIPE when it writes on."""
        await self._bytes.aclose()

    async def _read(self) -> None:
        if self._is_over:
            raise EndOfStream
        try:
            more = self._decoder.decode(await self._bytes.receive())
        except EndOfStream:
            self._is_over = True
            more = self._decoder.decode(b"", final=True)
        self._kept, self._at = self._kept[self._at :] + more, 0

    def _take(self, end: int) -> str:
        text, self._at = self._kept[self._at : end], end
        return text


class TextSender(ObjectSendStream[str]):
    """What a program reads, as text."""

    def __init__(self, bytes_of: ByteSender, encoding: str | None, errors: str | None) -> None:
        self._bytes = bytes_of
        self._encoder = codecs.getincrementalencoder(encoding_of(encoding))(errors or "strict")

    def __repr__(self) -> str:
        return repr(self._bytes).replace("ByteSender", "TextSender")

    async def send(self, item: str) -> None:
        """Write all of it. Raises UnicodeEncodeError where the encoding lacks a character, and what is raised for bytes."""
        await self._bytes.send(self._encoder.encode(item))

    async def aclose(self) -> None:
        """Close it; the program reads the end of file."""
        await self._bytes.aclose()


def encoding_of(encoding: str | None) -> str:
    """The name of an encoding; None is that of the locale, as with `shoal.run()`.

    Raises:
        LookupError: there is none of that name.
    """
    return codecs.lookup(encoding or ("utf-8" if sys.flags.utf8_mode else locale.getencoding())).name


def write(fd: int, data: memoryview) -> int:
    """os.write() to a pipe. Without a reader that is an error, also in a host program that has SIGPIPE end it.

    Raises:
        BrokenPipeError: nobody reads it. BlockingIOError: it is full.
    """
    if signal.getsignal(signal.SIGPIPE) is not signal.SIG_DFL:
        return os.write(fd, data)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        return os.write(fd, data)
    except BrokenPipeError:
        signal.sigtimedwait({signal.SIGPIPE}, 0)  # it waits for this thread
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
