"""Spawnd: a spawn daemon in a process of its own. Makes the inits of the domains on its cores, for the manager that has bound to it.

What it starts has its limits, its cgroup and its nice value, and does not depend on it: when it ends, in whatever way, its domains run
on, and their manager keeps them. It listens at a socket that only its user can open, and serves whoever shows the manager capability.

Source: usr/spawnd in Barrelfish.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from shoal.manager import wire
from shoal.manager.bond import VERSION, Bind, Serving, TakeInit, decode_order, peer_of
from shoal.manager.daemon import notify
from shoal.manager.errors import ManagerError
from shoal.manager.layout import Layout, out_of
from shoal.manager.nurseries import Nurseries
from shoal.manager.rights import ManagerRights
from shoal.manager.rootkey import RootKey
from shoal.manager.verifier import Verifier
from shoal.privileges import is_privileged

BACKLOG: Final = 16
_BIND_FDS: Final = 3


class Spawnd:
    """One spawn daemon. For the loop's thread.

    Args:
        address: the path of its socket.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, layout: Layout, address: str) -> None:
        """Listen.

        Raises:
            ManagerError: another one does, or it cannot.
        """
        self._loop, self._layout, self._address = loop, layout, address
        self._managers: set[_Manager] = set()
        self._listener = _listening(address)
        self._file = _identity(address)
        loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Serve nobody any more. What has been started runs on."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        if self._file is not None and _identity(self._address) == self._file:
            with suppress(OSError):
                os.unlink(self._address)
        for manager in tuple(self._managers):
            manager.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if peer_of(sock)[1] != os.geteuid():
            sock.close()
            return
        self._managers.add(_Manager(self._loop, self._layout, sock, self._managers.discard))


class _Manager:
    """A manager, as its spawn daemon sees it: one connection, with the nurseries that it is served from."""

    def __init__(self, loop: asyncio.AbstractEventLoop, layout: Layout, sock: socket.socket, on_close: Callable[[_Manager], None]) -> None:
        self._loop, self._layout, self._socket, self._on_close = loop, layout, sock, on_close
        self._inbox = wire.Inbox()
        self._orders: asyncio.Queue[TakeInit] = asyncio.Queue()
        self._fds: list[int] = []
        self._nurseries: Nurseries | None = None
        self._work = loop.create_task(self._serve())
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._inbox.close()
        self._work.cancel()
        if self._nurseries is not None:  # with which its inits end that nobody has taken, and another manager need not wait for those
            self._nurseries.close()
        _close(self._fds)
        self._on_close(self)

    def _readable(self) -> None:
        try:
            while self._socket.fileno() >= 0 and self._inbox.receive(self._socket):
                while self._socket.fileno() >= 0 and (found := self._inbox.next()) is not None:
                    self._take(*found)
        except BlockingIOError:
            return
        except (OSError, wire.WireError, msgspec.MsgspecError, UnicodeError):
            pass
        self.close()

    def _take(self, body: bytes, fds: list[int]) -> None:
        with _given_back(fds):
            order = decode_order(body)
            if isinstance(order, TakeInit):
                if self._nurseries is None or fds:
                    raise wire.WireError("the first message has to be Bind, and no other has descriptors")
                self._orders.put_nowait(order)
                return
            if self._nurseries is not None:
                raise wire.WireError("it is bound already")
            try:
                self._check(order, fds)
            except ManagerError as error:
                self._refuse(error)
                return
            self._fds += fds
            fds.clear()
        self._nurseries = Nurseries(self._loop, *self._fds)
        self._answer(Serving(os.getpid(), sorted(os.sched_getaffinity(0)), is_privileged()))

    def _check(self, order: Bind, fds: Sequence[int]) -> None:
        """
        Raises:
            ManagerError: it is not the manager whose state directory we were started for, or is of another version.
        """
        if order.version != VERSION or len(fds) != _BIND_FDS:
            what = f"this spawn daemon speaks version {VERSION} of the protocol, its manager {order.version}; start it anew"
            raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", what)
        try:
            public = RootKey.open(self._layout.state).public  # anew, since a manager that begins anew has another
        except ManagerError as error:
            raise ManagerError("SPAWN_ERR_IDENTIFY_PROC_MNGR_CAP", f"who asks cannot be told: {error.message}") from error
        try:
            Verifier(public).verify_manager(order.token, ManagerRights(0))
        except ManagerError as error:
            what = f"this spawn daemon serves the manager of {self._layout.state}, and who asks is another: {error.message}"
            raise ManagerError("SPAWN_ERR_NOT_PROC_MNGR", what) from error

    async def _serve(self) -> None:
        while True:
            order = await self._orders.get()
            assert self._nurseries is not None
            try:
                init = await self._nurseries.take_init(makes_cell=order.makes_cell)
            except ManagerError as error:
                self._refuse(error)
                continue
            with init.socket:
                self._answer(init.pid, (init.socket.fileno(),))

    def _answer(self, value: object, fds: Sequence[int] = ()) -> None:
        self._send(wire.Answer(0, value), fds)

    def _refuse(self, error: ManagerError) -> None:
        self._send(wire.Failure(0, "ManagerError", error.code, error.message))

    def _send(self, answer: wire.Answer | wire.Failure, fds: Sequence[int] = ()) -> None:
        """A manager asks for no more at once than there is room for answers to: what does not fit has been asked for by somebody else."""
        if self._socket.fileno() < 0:
            return
        frame = wire.frame(wire.encode(answer), fds)
        try:
            if self._socket.sendmsg([frame], wire.ancillary(fds), socket.MSG_NOSIGNAL) == len(frame):
                return
        except OSError as error:
            if fds and not isinstance(error, BlockingIOError | ConnectionError):  # too many descriptors are on their way
                self._refuse(out_of(error, "no init could be handed over"))
                return
        self._loop.call_soon(self.close)


@contextmanager
def _given_back(fds: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        _close(fds)


def _listening(address: str) -> socket.socket:
    folder, name = os.path.split(address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # of several that are started at the same time one listens
            _take_place(listener, directory, name)
            listener.listen(BACKLOG)
        finally:
            os.close(directory)
    except OSError as error:
        listener.close()
        raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"cannot listen at {address}: {error.strerror}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _take_place(listener: socket.socket, directory: int, name: str) -> None:
    path = f"/proc/self/fd/{directory}/{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.setblocking(False)
        try:
            other.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(name, dir_fd=directory)  # of one that was killed
        else:
            what = f"a spawn daemon listens at {os.readlink(f'/proc/self/fd/{directory}')}/{name} already"
            raise ManagerError("PROC_MGMT_ERR_SPAWND_EXISTS", what)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()


async def run(layout: Layout, cores: Sequence[int], address: str | None = None) -> int:
    """Be a spawn daemon until SIGTERM or SIGINT. The exit status.

    Args:
        layout: of the manager that is served; it is started where it does not run.
        cores: those to serve.
        address: the path of the socket; None: one beside the manager's.
    """
    loop = asyncio.get_running_loop()
    where = os.path.abspath(address) if address is not None else layout.spawnd_socket(cores[0])
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        layout.make()
        spawnd = Spawnd(loop, layout, where)
    except ManagerError as error:
        print(f"shoal spawnd: {error}", file=sys.stderr)
        return 1
    try:
        await asyncio.to_thread(_offer, layout, cores, where)
        notify("READY=1")
        await stopped.wait()
    except ManagerError as error:
        print(f"shoal spawnd: {error}", file=sys.stderr)
        return 1
    finally:
        notify("STOPPING=1")
        spawnd.close()
    return 0


def _offer(layout: Layout, cores: Sequence[int], address: str) -> None:
    """Tell the manager, unless it remembers from before."""
    from shoal.manager.client import Manager
    from shoal.manager.daemon import dial

    def token() -> str | None:
        try:
            with open(layout.capability, encoding="ascii") as file:
                return file.read()
        except OSError:
            return None

    with Manager(lambda left: dial(layout, left, starts=True), token, lambda: None) as manager:
        for core in cores:
            manager._add_spawnd(core, address, again=True)


def main() -> int:
    """`python -m shoal.manager.spawnd STATE RUN ADDRESS CORE...`"""
    state, run_directory, address, *cores = sys.argv[1:]
    return asyncio.run(run(Layout(state, run_directory), [int(core) for core in cores], address))


if __name__ == "__main__":
    sys.exit(main())
