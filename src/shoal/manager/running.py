"""A running manager: its parts put together, with one lock on its state directory, in a process of its own or inside another one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

from shoal.manager.authority import Authority
from shoal.manager.errors import ManagerError
from shoal.manager.layout import Layout, unusable
from shoal.manager.server import Server
from shoal.manager.service import Service
from shoal.manager.store import Store

BACKLOG = 4096
ENDING_S: Final = 15.0
"""How long a manager that is ending may take to let go of its state directory."""
_ENDING: Final = "ending"


class Running:
    """A manager at work. Made and used by the loop's thread."""

    def __init__(self, layout: Layout, cores: Sequence[int] | None = None) -> None:
        """
        Args:
            cores: those that it is the spawn daemon of itself, and every later manager of the same state; None: as before.
        """
        self._layout, self._cores = layout, cores
        self._stack = ExitStack()
        self._locked = -1
        self.server: Server | None = None
        self.service: Service | None = None

    async def start(self, *, listens: bool = True) -> None:
        """Take the state directory, find the domains again that are running, then listen.

        Raises:
            ManagerError: another manager has the state directory; or it, or the database, cannot be used.
        """
        loop = asyncio.get_running_loop()
        try:
            self._layout.make()
            await self._lock()
            store = Store(self._layout.database)
            self._stack.callback(store.close)
            authority = Authority(self._layout, store)
            self._publish(authority.own(), or_else=not store.is_new)
            service = self.service = Service(loop, self._layout, store, authority, self._cores)
            self._stack.callback(service.close)
            await service.adopt()
            listener = self._listen() if listens else None
            self.server = Server(loop, service, listener)
            self._stack.callback(self.server.close)
            service.connect = self.server.add
        except OSError as error:
            self._stack.close()
            raise unusable(error.filename or self._layout.state, error) from error
        except BaseException:
            self._stack.close()
            raise

    async def serve(self) -> None:
        """Until somebody stops it; then until what it has begun is done, which its clients are told by the next manager."""
        assert self.service is not None
        assert self.server is not None
        await self.service.stopped
        self._own(f"{os.getpid()} {_ENDING}")
        self.server.close()
        await self.service.settle()

    def close(self) -> None:
        """Give everything back; the domains live on."""
        self._stack.close()

    async def _lock(self) -> None:
        self._locked = fd = os.open(self._layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._stack.callback(os.close, fd)
        last = time.monotonic() + ENDING_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner, _, state = os.pread(fd, 32, 0).decode("ascii", "replace").strip().partition(" ")
            if state != _ENDING or time.monotonic() > last:
                what = f"{self._layout.state} is in use by the manager with pid {owner or '?'}"
                raise ManagerError("PROC_MGMT_ERR_SPAWND_EXISTS", f"{what}; stop it, or give this one a directory of its own")
            await asyncio.sleep(0.01)  # it may be one inside a program that lives on, so that no end of a process tells
        self._own(str(os.getpid()))

    def _own(self, text: str) -> None:
        data = f"{text}\n".encode()
        os.pwrite(self._locked, data, 0)
        os.truncate(self._locked, len(data))

    def _publish(self, capability: str, *, or_else: bool) -> None:
        """For whoever may read the user's files. or_else: the one that is there will do, where the disk is full."""
        draft = f"{self._layout.capability}.new"
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, capability.encode())
            finally:
                os.close(fd)
            os.rename(draft, self._layout.capability)
        except OSError:
            _unlink(draft)
            if not or_else or not os.path.exists(self._layout.capability):
                raise

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stack.callback(listener.close)
        directory = os.open(self._layout.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By way of the descriptor: the path of a socket has 107 bytes at most.
            name = os.path.basename(self._layout.socket)
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                pass
            before = os.umask(0o177)
            try:
                listener.bind(f"/proc/self/fd/{directory}/{name}")
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
        finally:
            os.close(directory)
        self._stack.callback(_unlink, self._layout.socket)
        return listener


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


class Embedded:
    """A manager inside this process, in a thread of its own."""

    def __init__(self, layout: Layout, cores: Sequence[int] | None = None) -> None:
        """Start it.

        Raises:
            ManagerError: as `Running.start()`.
        """
        self._running = Running(layout, cores)
        self._loop = asyncio.new_event_loop()
        self._failure: BaseException | None = None
        ready = threading.Event()
        self._thread = threading.Thread(target=self._live, args=(ready,), name="shoal-manager", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def connect(self) -> socket.socket:
        """A connection to it.

        Raises:
            ManagerError: it has ended, or this process was forked from the one that it is in.
        """
        if not self._thread.is_alive():
            what = "this manager has ended, or is in the process that this one was forked from; connect() reaches one that is in none"
            raise ManagerError("LIB_ERR_NAMESERVICE_NOT_BOUND", what)
        near, far = socket.socketpair()
        self._call(lambda: self._running.server.add(far) if self._running.server is not None else far.close())
        return near

    def close(self) -> None:
        """Stop it; its domains live on."""
        if self._thread.is_alive():
            self._call(self._stop)
            self._thread.join()

    def _call(self, what: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(what)

    def _stop(self) -> None:
        if self._running.service is not None:
            self._running.service.stop()

    def _live(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main(ready))
        except BaseException as error:
            self._failure = error
        finally:
            self._loop.close()
            ready.set()

    async def _main(self, ready: threading.Event) -> None:
        await self._running.start(listens=False)
        ready.set()
        try:
            await self._running.serve()
        finally:
            self._running.close()
