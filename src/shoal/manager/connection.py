"""A client's end of the connection: requests from any number of threads, each answered when it is.

Nobody reads in the background: of the threads that wait for an answer one reads for all of them.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from shoal.handles.deadline import LONGEST_S, Deadline
from shoal.manager import wire
from shoal.manager.errors import ManagerError
from shoal.manager.wire import WireError

EVENTS_MOST: Final = 16_384
"""Events of one watch that wait here for a reader; what comes beyond that is told as one "overflow"."""
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred


class ConnectionLost(ManagerError):
    """The manager has gone. What was under way may or may not have been carried out; requests with a key can be sent again."""

    def __init__(self, message: str = "the connection to the manager is lost") -> None:
        super().__init__("PROC_MGMT_ERR_SPAWND_REQUEST", message)

    def __reduce__(self) -> Any:
        return type(self), (self.message,)


class _Pending:
    __slots__ = ("answer", "fds", "ready")

    def __init__(self) -> None:
        self.answer: wire.Answer | wire.Failure | None = None
        self.fds: list[int] = []
        self.ready = False


class Connection:
    """One connection.

    Ownership: has the socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._inbox = wire.Inbox()
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._lock = threading.Condition()
        self._reading = False
        self._lost: ManagerError | None = None
        self._pending: dict[int, _Pending] = {}
        self._events: dict[int, deque[wire.Event]] = {}
        self._discarded: deque[Callable[[int], wire.Request]] = deque()
        self.made_in = os.getpid()
        self._peer = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]

    def number(self) -> int:
        """For a new request."""
        return next(self._numbers)

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    def await_peer(self, patience_s: float) -> None:
        """Wait until the process at the other end is gone."""
        if self._peer in (0, os.getpid()):
            return
        try:
            pidfd = os.pidfd_open(self._peer)
        except OSError:
            return
        try:
            Deadline(patience_s).wait_ready(pidfd, select.POLLIN)
        finally:
            os.close(pidfd)

    def close(self) -> None:
        if self.made_in != os.getpid():  # who we were forked from goes on with it, and the threads that may have its locks are there
            self._socket.close()
            self._inbox.close()
            return
        with self._lock:
            self._fail(ConnectionLost("the connection to the manager was closed"))
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        except OSError:
            pass
        with self._lock:
            while self._reading:
                self._lock.wait()
            self._socket.close()
            self._inbox.close()

    def call(self, request: wire.Request, fds: Sequence[int] = (), last: float | None = None) -> tuple[Any, list[int]]:
        """Send a request and wait for its answer, and the descriptors that come with it.

        Args:
            fds: borrowed. last: by time.monotonic(); None waits for ever.
        Raises:
            TypeError: a field has what it cannot have.
            ManagerError: it was refused. ConnectionLost: nobody is there. TimeoutError: not in time.
        """
        pending = _Pending()
        self._send_discarded()
        with self._lock:
            if self._lost is not None:
                raise self._lost
            self._pending[request.rid] = pending
        try:
            self._send(wire.frame(wire.packed(request), fds), fds)
            if not self._await(lambda: pending.ready, last):
                raise TimeoutError(f"the manager did not answer {type(request).__name__.lower()} in time")
        except WireError as error:
            raise ManagerError("FLOUNDER_ERR_TX_MSG_SIZE", str(error)) from None
        finally:
            with self._lock:
                self._pending.pop(request.rid, None)
        answer = pending.answer
        if answer is None:
            raise self._lost or ConnectionLost()
        if isinstance(answer, wire.Failure):
            raise ManagerError(answer.code, answer.message)
        return answer.value, pending.fds

    def tell(self, request: wire.Request) -> None:
        """Send a request, whose answer nobody waits for.

        Raises:
            ConnectionLost: nobody is there.
        """
        self._send(wire.frame(wire.packed(request)), ())

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        with self._sending:
            try:
                sent = self._socket.sendmsg([data], wire.ancillary(fds), socket.MSG_NOSIGNAL)
                if sent < len(data):
                    self._socket.sendall(data[sent:], socket.MSG_NOSIGNAL)
            except OSError as error:
                with self._lock:
                    self._fail(ConnectionLost(f"the connection to the manager is lost: {error.strerror or error}"))
                    raise self._lost or ConnectionLost() from None

    def next_event(self, watch: int, last: float | None) -> wire.Event | None:
        """The next event of a watch, waiting for it; None when the time is up.

        Raises:
            ConnectionLost: no more will come.
        """
        self._send_discarded()
        self._await(lambda: bool(self._events.get(watch)) or self._lost is not None, last)
        with self._lock:
            queue = self._events.get(watch)
            if queue:
                event = queue.popleft()
                if event.removed:
                    del self._events[watch]
                return event
            if self._lost is not None:
                raise self._lost
        return None

    def discard(self, watch: int, make: Callable[[int], wire.Request]) -> None:
        """Nobody will ask for the events of a watch any more. Only notes it, so that a destructor may call this."""
        self._events.pop(watch, None)
        self._discarded.append(make)

    def _send_discarded(self) -> None:
        while self._discarded:
            request = self._discarded.popleft()(self.number())
            self._send(wire.frame(wire.packed(request)), ())

    def _await(self, is_ready: Callable[[], bool], last: float | None) -> bool:
        with self._lock:
            while not is_ready():
                left = None if last is None else min(LONGEST_S, last - time.monotonic())
                if left is not None and left <= 0:
                    return False
                if self._reading:
                    self._lock.wait(left)
                    continue
                self._reading = True
                self._lock.release()
                try:
                    found = self._read(left)
                finally:
                    self._lock.acquire()
                    self._reading = False
                    self._lock.notify_all()
                for body, fds in found:
                    self._deliver(body, fds)
        return True

    def _read(self, left: float | None) -> list[tuple[bytes, list[int]]]:
        found: list[tuple[bytes, list[int]]] = []
        try:
            if left is not None:
                poll = select.poll()
                poll.register(self._socket, select.POLLIN)
                if not poll.poll(int(left * 1000) + 1):
                    return found
            if not self._inbox.receive(self._socket):
                raise ConnectionLost()
            while (frame := self._inbox.next()) is not None:
                found.append(frame)
        except (OSError, WireError, ConnectionLost) as error:
            with self._lock:
                self._fail(
                    error if isinstance(error, ConnectionLost) else ConnectionLost(f"the connection to the manager is lost: {error}")
                )
        return found

    def _deliver(self, body: bytes, fds: list[int]) -> None:
        answer = wire.decode_answer(body)
        if isinstance(answer, wire.Event):
            queue = self._events.setdefault(answer.watch, deque())
            if len(queue) < EVENTS_MOST or answer.removed:
                queue.append(answer)
            elif queue[-1].kind != "overflow":
                queue.append(wire.Event(answer.watch, "overflow", None, False, False))
        else:
            pending = self._pending.get(answer.rid)
            if pending is not None:
                pending.answer, pending.fds, pending.ready = answer, fds, True
                return
        for fd in fds:  # nobody waits for it any more
            os.close(fd)

    def _fail(self, error: ManagerError) -> None:
        if self._lost is None:
            self._lost = error
        for pending in self._pending.values():
            pending.ready = True
        self._lock.notify_all()
