"""A running manager: its parts put together, with one lock on its state directory, in a process of its own or inside another one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

from shoal.manager.authority import Authority
from shoal.manager.errors import ManagerError
from shoal.manager.layout import Layout
from shoal.manager.server import Server
from shoal.manager.service import Service
from shoal.manager.store import Store

BACKLOG = 4096


class Running:
    """A manager at work. Made and used by the loop's thread."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._stack = ExitStack()
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
            self._lock()
            store = Store(self._layout.database)
            self._stack.callback(store.close)
            authority = Authority(self._layout, store)
            self._publish(authority.own())
            service = self.service = Service(loop, self._layout, store, authority)
            self._stack.callback(service.close)
            await service.adopt()
            listener = self._listen() if listens else None
            self.server = Server(loop, service, listener)
            self._stack.callback(self.server.close)
            service.connect = self.server.add
        except BaseException:
            self._stack.close()
            raise

    async def serve(self) -> None:
        """Until somebody stops it."""
        assert self.service is not None
        await self.service.stopped

    def close(self) -> None:
        """Give everything back; the domains live on."""
        self._stack.close()

    def _lock(self) -> None:
        fd = os.open(self._layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._stack.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            what = (
                f"{self._layout.state} is in use by the manager with pid {owner or '?'}; stop it, or give this one a directory of its own"
            )
            raise ManagerError("PROC_MGMT_ERR_SPAWND_EXISTS", what) from None
        os.truncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def _publish(self, capability: str) -> None:
        """For whoever may read the user's files."""
        draft = f"{self._layout.capability}.{os.getpid()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, capability.encode())
        finally:
            os.close(fd)
        os.rename(draft, self._layout.capability)

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

    def __init__(self, layout: Layout) -> None:
        """Start it.

        Raises:
            ManagerError: as `Running.start()`.
        """
        self._running = Running(layout)
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
        """A connection to it."""
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
