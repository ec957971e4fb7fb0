"""The server: connections of clients, each of which can spoil only itself."""

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
from shoal.manager.names.events import Event, Mailbox
from shoal.manager.names.limits import Limits
from shoal.manager.naming import event_fields
from shoal.manager.rights import ManagerRights
from shoal.manager.service import Service
from shoal.manager.wire import WireError

UNSENT_MOST: Final = 16 << 20
"""Bytes that may wait for a client that does not read."""
UNSENT_FDS_MOST: Final = 256
"""Descriptors that may."""
PATIENCE_S: Final = 30.0
"""How long the rest of a request with descriptors may take to come."""
_MESSAGE_MOST: Final = 64 << 10
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred

LIMITS: Final = Limits()


class Connection:
    """One client. A Caller of the service."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        service: Service,
        on_close: Callable[[Connection], None],
        who: str = "",
    ) -> None:
        """
        Args:
            who: for the audit log, and as owner of records; "": the user at the other end.
        """
        self._loop, self._socket, self._service = loop, sock, service
        self._on_close = on_close
        self._inbox = wire.Inbox()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._unsent_bytes = self._unsent_fds = 0
        self.rights = ManagerRights(0)
        self._mailbox = Mailbox(LIMITS)
        self._patience: asyncio.TimerHandle | None = None
        self._greeted = False
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        self.uid = uid
        self.who = who or f"uid {uid} pid {pid}"
        self.principal = who or f"uid {uid}"
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    @property
    def is_privileged(self) -> bool:
        return bool(self.rights & ManagerRights.NAMES)

    @property
    def is_deaf(self) -> bool:
        return self._mailbox.is_full

    def tell(self, watch: int, event: Event) -> None:
        """Send an event, as soon as the client has read what was sent before."""
        self._mailbox.put(watch, event)
        if not self._unsent:
            self._send_events()

    def _send_events(self) -> None:
        while not self._unsent and (taken := self._mailbox.take()) is not None:
            watch, event = taken
            self.send(wire.encode(wire.Event(watch, *event_fields(event))))

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._inbox.close()
        self._limit_patience()
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()
        self._on_close(self)

    # --- in -----------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            if not self._inbox.receive(self._socket):  # once: if there is more, the loop says so, when it is our turn again
                self.close()
                return
            while (found := self._inbox.next()) is not None:
                self._be_patient()
                self._take(*found)
                if self._socket.fileno() < 0:
                    return
        except BlockingIOError:
            pass
        except (OSError, WireError):
            self.close()
        self._limit_patience()

    def _limit_patience(self) -> None:
        """Among descriptors may be the client's own end: as long as we have that, nothing tells us that the client has gone."""
        if not self._inbox.holds_descriptors:
            self._be_patient()
        elif self._patience is None and self._socket.fileno() >= 0:
            self._patience = self._loop.call_later(PATIENCE_S, self.close)

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _take(self, body: bytes, fds: list[int]) -> None:
        try:
            request = wire.decode_request(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            for fd in fds:
                os.close(fd)
            raise WireError(str(error)) from error
        if isinstance(request, wire.Hello):
            for fd in fds:
                os.close(fd)
            self._greet(request)
        elif self._greeted:
            self._service.handle(self, request, fds)
        else:
            for fd in fds:
                os.close(fd)
            raise WireError("the first message has to be a greeting")

    def _greet(self, hello: wire.Hello) -> None:
        if hello.version != wire.VERSION:
            what = f"this manager speaks version {wire.VERSION} of the protocol, its client {hello.version}; start it anew"
            self.refuse(hello.rid, ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", what))
            return
        self._greeted = True
        if hello.token is not None:
            try:
                self.rights = self._service.rights_of(self, hello)
            except ManagerError as error:
                self.refuse(hello.rid, error)
                return
        self.answer(hello.rid, {"pid": os.getpid(), "version": wire.VERSION})

    # --- out ----------------------------------------------------------------------------------------

    def answer(self, rid: int, value: Any = None, fds: Sequence[int] = ()) -> None:
        """Send an answer; the descriptors are borrowed."""
        body = wire.encode(wire.Answer(rid, value))
        if len(body) > wire.FRAME_MOST:
            what = f"the answer has {len(body)} bytes, and one of more than {wire.FRAME_MOST} cannot be sent"
            self.refuse(rid, ManagerError("FLOUNDER_ERR_TX_MSG_SIZE", what))
        else:
            self.send(body, fds)

    def refuse(self, rid: int, error: ManagerError) -> None:
        message = error.message if len(error.message) <= _MESSAGE_MOST else error.message[:_MESSAGE_MOST] + "..."
        self.send(wire.encode(wire.Failure(rid, "ManagerError", error.code, message.encode("utf-8", "backslashreplace").decode())))

    def send(self, body: bytes, fds: Sequence[int] = ()) -> None:
        if self._socket.fileno() < 0:
            return
        data = wire.frame(body, fds)
        if not self._unsent:
            try:
                sent = self._socket.sendmsg([data], wire.ancillary(fds), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._loop.call_soon(self.close)
                return
            if sent == len(data):
                return
            if sent:
                data, fds = data[sent:], ()
            self._loop.add_writer(self._socket.fileno(), self._writable)
        self._unsent_bytes += len(data)
        self._unsent_fds += len(fds)
        if self._unsent_bytes > UNSENT_MOST or self._unsent_fds > UNSENT_FDS_MOST:  # it never reads
            self._loop.call_soon(self.close)
            return
        kept: list[int] = []
        self._unsent.append((data, kept))  # which has what was duplicated before it fails
        try:
            for fd in fds:
                kept.append(os.dup(fd))
        except OSError:  # no more descriptors
            self._loop.call_soon(self.close)

    def _writable(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                sent = self._socket.sendmsg([data], wire.ancillary(fds), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            for fd in fds:
                os.close(fd)
            self._unsent_bytes -= sent
            self._unsent_fds -= len(fds)
            if sent < len(data):
                self._unsent[0] = (data[sent:], [])
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._socket.fileno())
        self._send_events()


class Server:
    """Listens, and has the connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop, service: Service, listener: socket.socket | None) -> None:
        self._loop, self._service = loop, service
        self._connections: set[Connection] = set()
        self._listener = listener
        if listener is not None:
            listener.setblocking(False)
            loop.add_reader(listener.fileno(), self._accept)

    def add(self, sock: socket.socket, who: str = "") -> None:
        """Serve the other end of `sock`, which is taken over. `who`: see Connection."""
        connection = Connection(self._loop, sock, self._service, self._left, who)
        if connection.uid not in (os.geteuid(), 0):
            connection.close()
            return
        self._connections.add(connection)

    def close(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for connection in tuple(self._connections):
            connection.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no more descriptors: whoever is there is served first
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(0.1, self._listen_again)
            return
        self.add(sock)

    def _listen_again(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _left(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._service.left(connection)
