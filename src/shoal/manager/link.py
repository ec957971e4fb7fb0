"""The link to the init of one domain: orders go out, what it tells comes in. One descriptor for a domain."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from shoal import _native
from shoal.handles.keeper import Strings, launch_error
from shoal.manager import orders
from shoal.manager.errors import ManagerError
from shoal.manager.layout import out_of
from shoal.manager.orders import Told

_REQUEST: Final = struct.Struct("=IIIIII")  # struct request of src/native/request.h
_REPORT: Final = struct.Struct("=iii")
MESSAGE_MOST: Final = 65536
STRINGS_MOST: Final = 4096
_SILENT: Final = 0  # STAGE_NONE: nothing was told


class Link:
    """Our end of an init's socket. For the loop's thread.

    Ownership: has the socket. `on_end` is called once, when the init has ended or somebody has killed it.
    """

    __slots__ = ("_awaited", "_last", "_loop", "_on_end", "_socket")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._socket: socket.socket | None = sock
        self._on_end = on_end
        self._awaited: deque[asyncio.Future[Told]] = deque()
        self._last = (0, 0)
        loop.add_reader(sock.fileno(), self._readable)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The one whose thread it is for."""
        return self._loop

    @property
    def lives(self) -> bool:
        """Whether its init does, as far as is known."""
        return self._socket is not None

    def order(
        self, kind: int, a: int = 0, b: int = 0, *, core: int = -1, c: int = 0, d: int = 0, e: int = 0, fds: Sequence[int] = ()
    ) -> None:
        """Tell it something. What it is told after its end is lost, and `on_end` is on its way.

        Raises:
            ManagerError: it does not listen at the moment; but that it is to end, it will be told.
        """
        if self._socket is None:
            return
        try:
            orders.order(self._socket, kind, a, b, core=core, c=c, d=d, e=e, fds=fds)
        except ConnectionError:
            pass
        except BlockingIOError:
            if kind != orders.END:
                raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", "the domain's init does not take orders at the moment") from None
            self._last = (a, b)
            self._loop.add_writer(self._socket.fileno(), self._writable)
        except OSError as error:
            raise out_of(error, "the domain's init cannot be told") from error

    def _writable(self) -> None:
        assert self._socket is not None
        self._loop.remove_writer(self._socket.fileno())
        self.order(orders.END, *self._last)

    def ask(
        self, kind: int, a: int = 0, b: int = 0, *, core: int = -1, c: int = 0, d: int = 0, e: int = 0, fds: Sequence[int] = ()
    ) -> asyncio.Future[Told]:
        """Tell it to start something, and get what it will tell of that.

        Raises:
            ManagerError: as `order()`. It was not told, and tells nothing.
        """
        future = self.answer()
        try:
            self.order(kind, a, b, core=core, c=c, d=d, e=e, fds=fds)
        except BaseException:
            with suppress(ValueError):
                self._awaited.remove(future)  # or it would get what is told of the next
            raise
        return future

    def answer(self) -> asyncio.Future[Told]:
        """What it tells next of itself, or about an order to start something."""
        future: asyncio.Future[Told] = self._loop.create_future()
        future.add_done_callback(_seen)
        if self._socket is None:
            future.set_exception(_gone())
        else:
            self._awaited.append(future)
        return future

    def close(self) -> None:
        """Leave it alone: it lives on, and listens for the next."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None
        for future in self._awaited:
            if not future.done():
                future.set_exception(_gone())
        self._awaited.clear()

    def _readable(self) -> None:
        while self._socket is not None:
            try:
                told = orders.told(self._socket)
            except BlockingIOError:
                return
            if told is None or told.kind == orders.TOLD_ENDED:
                self.close()
                self._on_end()
            elif self._awaited and not self._awaited[0].done():
                self._awaited.popleft().set_result(told)
            else:
                for fd in told.fds:
                    os.close(fd)
                if self._awaited:
                    self._awaited.popleft()


def _seen(future: asyncio.Future[Told]) -> None:
    """Whoever gave up before there was an answer does not ask for it."""
    if not future.cancelled():
        future.exception()


def _gone() -> ManagerError:
    return ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", "the domain's init was killed meanwhile")


def send_plan(sock: socket.socket, plan: bytes, argv: Strings, environ: Strings, fds: Sequence[int]) -> None:
    """Tell a waiting process what it is to become.

    Raises:
        ManagerError: it has gone. OSError: too many descriptors are on their way.
    """
    size = _REQUEST.size + len(plan) + len(argv[0]) + len(environ[0])
    if size > MESSAGE_MOST or argv[1] + environ[1] > STRINGS_MOST:
        _send_with_file(sock, plan, argv, environ, fds)
        return
    head = _REQUEST.pack(len(plan), len(argv[0]), argv[1], len(environ[0]), environ[1], len(fds))
    _send(sock, [head, plan, argv[0], environ[0]], fds)


def _send_with_file(sock: socket.socket, plan: bytes, argv: Strings, environ: Strings, fds: Sequence[int]) -> None:
    file = os.memfd_create("shoal-arguments", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as writer:
            writer.write(argv[0])
            writer.write(environ[0])
        head = _REQUEST.pack(len(plan), 0, argv[1], 0, environ[1], len(fds))
        _send(sock, [head, plan], [*fds, file])
    finally:
        os.close(file)


def _send(sock: socket.socket, parts: Sequence[bytes], fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    try:
        sock.sendmsg(parts, ancillary, socket.MSG_NOSIGNAL)
    except ConnectionError:
        raise _gone() from None


class Outcome:
    """What becomes of a process that was sent a plan: it tells by reports, and exec closes its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop, self._socket = loop, sock
        self._report = (_SILENT, -1, 0)
        self._future: asyncio.Future[tuple[int, int, int]] = loop.create_future()
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    async def executed(self, labels: Sequence[str], label: str) -> None:
        """Wait until it has executed the program.

        Raises:
            SpawnError: it did not; says why.
        """
        stage, index, error = await self._future
        if stage == _native.STAGE_EXEC and not error:
            return
        if stage == _SILENT:
            raise _gone()
        raise launch_error(labels, label, stage, index, error)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        while True:
            try:
                data = self._socket.recv(_REPORT.size)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if len(data) != _REPORT.size:
                break
            self._report = _REPORT.unpack(data)
        self.close()
        if not self._future.done():
            self._future.set_result(self._report)
