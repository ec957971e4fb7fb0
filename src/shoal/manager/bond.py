"""Bond: a spawn daemon in a process of its own, as its manager has it, and what the two say to each other.

A spawn daemon makes the inits of domains and hands each over with its socket. The manager tells the init the rest itself, as it does
with those it has made: so a spawn daemon that dies takes nothing with it, and what it was asked for and has not handed over was not begun.

The frames are those of wire.py. The first message is Bind; each has one answer, in the order they were sent in.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from shoal.manager import wire
from shoal.manager.errors import ManagerError
from shoal.manager.nursery import Init
from shoal.privileges import is_privileged

VERSION: Final = 1
GREETING_S: Final = 5.0
"""How long a spawn daemon may take to say that it serves."""
PATIENCE_S: Final = 30.0
"""How long it may take to hand over an init."""
_AT_ONCE: Final = 64
"""How many are asked for before the first has come: as much as certainly fits into a socket."""
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred


class Bind(msgspec.Struct, tag_field="t", tag="bind", array_like=True):
    """From now on inits are asked for. Comes with descriptors of the ledger, and of the directories of sockets and of logs.

    Attributes:
        token: the manager capability, which shows who asks.
    """

    version: int
    token: str


class TakeInit(msgspec.Struct, tag_field="t", tag="init", array_like=True):
    """Answered with the pid of an init, and its socket."""

    makes_cell: bool


class Serving(msgspec.Struct, array_like=True):
    """The answer to Bind.

    Attributes:
        pid: of the spawn daemon, as it knows itself. cores: on which it may run. privileged: whether it makes cells as root does.
    """

    pid: int
    cores: list[int]
    privileged: bool


decode_order = msgspec.msgpack.Decoder(Bind | TakeInit).decode


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """The pid and the user of the other side: unix(7), SO_PEERCRED."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


class Bond:
    """One spawn daemon. For the loop's thread.

    Ownership: has the socket. `on_lost` is called once, when the spawn daemon has gone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str, sock: socket.socket, on_lost: Callable[[Bond], None]) -> None:
        self._loop, self._socket, self._on_lost = loop, sock, on_lost
        self.address = address
        self.pid = 0
        self.cores: tuple[int, ...] = ()
        """Those on which it may run."""
        self._inbox = wire.Inbox()
        self._awaited: deque[asyncio.Future[tuple[Any, list[int]]]] = deque()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        loop.add_reader(sock.fileno(), self._readable)

    @classmethod
    async def to(
        cls, loop: asyncio.AbstractEventLoop, address: str, token: str, fds: Sequence[int], on_lost: Callable[[Bond], None]
    ) -> Bond:
        """The spawn daemon that listens at `address`, once it has said that it serves.

        Args:
            fds: the ledger, and the directories of sockets and of logs; borrowed.
        Raises:
            ManagerError: there is none, or it does not; says why.
        """
        bond = cls(loop, address, _connected(address), on_lost)
        try:
            pid, uid = peer_of(bond._socket)
            if uid != os.geteuid():
                raise _useless(address, f"it belongs to user {uid}, and this manager to {os.geteuid()}")
            answer, _ = await bond._ask(Bind(VERSION, token), fds, GREETING_S)
            try:
                serving = msgspec.convert(answer, Serving)
            except msgspec.ValidationError as error:
                raise _useless(address, f"what listens there is none: {error}") from error
            if serving.pid != pid:
                raise _useless(address, "it is in another pid namespace than the manager, which could not end what it starts")
            if serving.privileged != is_privileged():
                raise _useless(address, "it makes sandboxes in another way than the manager: start both as root, or neither")
            bond.pid, bond.cores = serving.pid, tuple(serving.cores)
        except BaseException:
            bond.close()
            raise
        return bond

    async def take_init(self, *, makes_cell: bool) -> Init:
        """An init that it has made.

        Raises:
            ManagerError: PROC_MGMT_ERR_SPAWND_REQUEST: it has gone, and nothing was begun; or what keeps it from making one.
        """
        async with self._turns:
            pid, fds = await self._ask(TakeInit(makes_cell), (), PATIENCE_S)
        if len(fds) != 1 or not isinstance(pid, int):
            _close(fds)
            raise _useless(self.address, "it answers with what is no init")
        return Init(pid, socket.socket(fileno=fds[0]))

    @property
    def lives(self) -> bool:
        return self._socket.fileno() >= 0

    def close(self) -> None:
        """Let go of it: it goes on listening, for the next manager. Whoever waits for it is told."""
        if not self.lives:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._inbox.close()
        for future in self._awaited:
            if not future.done():
                future.set_exception(self._gone())
                future.exception()
        self._awaited.clear()

    async def _ask(self, order: Bind | TakeInit, fds: Sequence[int], patience_s: float) -> tuple[Any, list[int]]:
        future: asyncio.Future[tuple[Any, list[int]]] = self._loop.create_future()
        if not self.lives:
            raise self._gone()
        try:
            # Whole or not at all: at most so many are under way that there is room for all of them.
            self._socket.sendmsg([wire.frame(wire.encode(order), fds)], wire.ancillary(fds), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError as error:
            raise _useless(self.address, f"it cannot be told: {error.strerror}") from error
        self._awaited.append(future)
        try:
            async with asyncio.timeout(patience_s):
                return await future
        except TimeoutError:
            raise _useless(self.address, f"it has not answered within {patience_s:g} s") from None

    def _readable(self) -> None:
        try:
            while self.lives and self._inbox.receive(self._socket, socket.MSG_DONTWAIT):
                while self.lives and (found := self._inbox.next()) is not None:
                    self._take(*found)
            lost = True
        except BlockingIOError:
            lost = False
        except (OSError, wire.WireError, msgspec.MsgspecError, IndexError):
            lost = True
        if lost and self.lives:
            self.close()
            self._on_lost(self)

    def _take(self, body: bytes, fds: list[int]) -> None:
        try:
            answer = wire.decode_answer(body)
            future = self._awaited.popleft()
        except BaseException:
            _close(fds)
            raise
        if future.done():  # nobody waits any more: an init that nobody talks to ends
            _close(fds)
        elif isinstance(answer, wire.Failure):
            _close(fds)
            future.set_exception(ManagerError(answer.code, answer.message))
        else:
            assert isinstance(answer, wire.Answer)
            future.set_result((answer.value, fds))

    def _gone(self) -> ManagerError:
        return _useless(self.address, "it has gone meanwhile, and nothing was begun")


def _useless(address: str, why: str) -> ManagerError:
    return ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"the spawn daemon at {address}: {why}")


def _connected(address: str) -> socket.socket:
    directory, name = os.path.split(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{fd}/{name}")  # the path of a socket has 107 bytes at most
        finally:
            os.close(fd)
    except OSError as error:
        sock.close()
        why = "it takes nobody at the moment" if isinstance(error, BlockingIOError) else f"none listens there: {error.strerror}"
        raise _useless(address, f"{why}; `shoal manager spawnd` starts one") from error
    return sock


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
