"""Factory: a process of ours that makes cells ahead of their use, seen from here; src/native/init/make.c is what it does.

It is asked by a socket and answers by it, cell by cell, so that what was made waits there until somebody takes it, without a thread
or a descriptor of this process.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from shoal import _native
from shoal.handles import reaper
from shoal.handles.children import children
from shoal.handles.deadline import Deadline
from shoal.handles.images import init_image
from shoal.handles.keeper import Strings, launch
from shoal.handles.process import Process
from shoal.handles.reaper import Keeper, OwnedFd
from shoal.launcher import END_S
from shoal.packing import count_strings
from shoal.recipe import Recipe
from shoal.status import SpawnError

_MADE = struct.Struct("=iii")  # struct made of src/native/recipe.h
_CELLS = struct.Struct("=I")
_FDS = 4
_ANCILLARY = socket.CMSG_SPACE(_FDS * 4)
# As plain ints: the operators of an enum make a new member each time, which shows on every launch.
_ASK = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_NO_WAIT = int(socket.MSG_DONTWAIT)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)


class WaitingProcess:
    """A process in a cell of its own that waits to become the program.

    Ownership: it has the process and our end of the socket; `become()` passes the process on.
    """

    __slots__ = ("_process", "_socket")

    def __init__(self, process: Process, socket: OwnedFd) -> None:
        self._process = process
        self._socket = socket

    def become(self, plan: bytes, fds: Sequence[int], argv: Strings, environ: Strings) -> Process | None:
        """Send it what it is to be. Returns once it has been executed; None when it could not be, and is gone.

        Args:
            fds: for the slots of the plan; borrowed.
        """
        process = self._process
        numbers = array.array("i", fds).tobytes()
        stage, _, error = _native.hand_over(self._socket.fd, process.fileno(), plan, *argv, *environ, numbers)
        if stage != _native.STAGE_EXEC or error:
            self.give_up()
            return None
        process._begin()
        self._socket.close()
        return process

    @property
    def pids(self) -> tuple[int, ...]:
        """Its own, and that of the first process of its cell."""
        keeper = self._process._keeper
        return (self._process.pid,) if keeper is None else (self._process.pid, keeper.pid)

    def give_up(self) -> None:
        """End it and its cell; the rest is the reaper's."""
        self._socket.close()  # which ends it, too, where we may not signal it any more
        with suppress(OSError):
            self._process.kill_cell()
        self._process.close()

    def end(self) -> None:
        """The same, and wait until they are gone."""
        self._socket.close()
        with suppress(OSError):
            self._process.end_cell(END_S)
        self._process.close()

    def forget(self) -> None:
        """After os.fork() in the child: it is the parent's."""
        self._process._forget()
        self._socket.close()


class Factory:
    """Makes cells by one recipe. For one thread at a time.

    Attributes:
        making: how many were asked for and have not been received yet.
        failed: it can make none.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Start it.

        Raises:
            SpawnError: why not. OSError: no socket or no memory file can be made.
        """
        self.making = 0
        self.failed = False
        self._recipe = recipe
        self._handed_over: weakref.WeakSet[Keeper] = weakref.WeakSet()  # of cells that are somebody's by now
        near, far = socket.socketpair()  # a stream: each answer has its descriptors, and no two are ever taken for one
        with far:
            self._socket: socket.socket | None = near
            file = os.memfd_create("shoal-recipe", os.MFD_CLOEXEC)
            try:
                os.write(file, recipe.file)
                argv = count_strings((b"shoal-cells", b"f", recipe.comm))
                pid, pidfd = launch(recipe.maker, (init_image(), far.fileno(), file), argv, (b"", 0), "a process that makes cells")
            except BaseException:
                near.close()
                raise
            finally:
                os.close(file)
        self._process = Keeper(pidfd, pid)

    def ask(self, cells: int, quiet_for: int = -1) -> None:
        """Ask for more.

        Args:
            quiet_for: the pidfd of a program that is not to be disturbed for a moment, or -1.
        """
        message = _CELLS.pack(cells)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", quiet_for))] if quiet_for >= 0 else []
        try:
            if self._socket is not None:
                self._socket.sendmsg([message], ancillary, _ASK)
                self.making += cells
        except OSError:
            self.failed = True

    def fileno(self) -> int:
        """Readable when there is something to receive; -1 when there never will be."""
        return -1 if self._socket is None else self._socket.fileno()

    def receive(self, *, wait: bool = False) -> WaitingProcess | None:
        """The next cell that it has made, if there is one.

        Args:
            wait: wait for it, where one was asked for.
        """
        if self._socket is None or not self.making or self.failed:
            return None
        try:
            return self._next(self._socket, 0 if wait else _NO_WAIT)
        except BlockingIOError:
            return None
        except EOFError:
            self.failed = True  # it has ended: somebody has killed it
            return None

    def _next(self, talk: socket.socket, flags: int) -> WaitingProcess | None:
        """The next answer: a cell, or None and `failed`.

        Raises:
            BlockingIOError: there is none yet. EOFError: there never will be.
        """
        try:
            data, ancillary, _, _ = talk.recvmsg(_MADE.size, _ANCILLARY, flags | _CLOEXEC)
        except ConnectionError:
            raise EOFError from None
        if len(data) != _MADE.size:
            raise EOFError
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content[: len(content) // 4 * 4])
        self.making -= 1
        keeper, waiting, error = _MADE.unpack(data)
        if error or len(fds) != _FDS:
            _undo((keeper, waiting), fds)
            self.failed = True
            return None
        return self._received(keeper, waiting, *fds)

    def _received(self, keeper_pid: int, pid: int, keeper_pidfd: int, pidfd: int, control: int, talk: int) -> WaitingProcess:
        keeper = Keeper(keeper_pidfd, keeper_pid)
        self._handed_over.add(keeper)
        if self._recipe.dies_with_caller:
            keeper.control = control
        else:
            os.close(control)
        return WaitingProcess(Process._started(pidfd, pid, self._recipe.name, keeper), OwnedFd(talk))

    def end(self, known: Callable[[], Collection[int]]) -> list[WaitingProcess]:
        """End it. Returns the cells that nobody has received yet: they are the caller's to end.

        Args:
            known: gives the processes of those that were received.
        """
        if self._socket is None:
            return []
        cells = []
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # what it is making now is its last one
        deadline = Deadline(END_S)
        with suppress(OSError, EOFError):
            while deadline.wait_ready(self._socket.fileno(), select.POLLIN):
                if (cell := self._next(self._socket, _NO_WAIT)) is not None:
                    cells.append(cell)
        self._socket.close()
        self._socket = None
        with suppress(OSError):  # it may be a former user's
            self._process.kill()
        if self.making and not self._has_finished():
            ours = {keeper.pid for keeper in self._handed_over}
            end_orphans(self._process, ours.union(known(), *(cell.pids for cell in cells)))
        with suppress(TimeoutError):
            self._process.wait(END_S)
        reaper.register(self._process)
        return cells

    def _has_finished(self) -> bool:
        """Whether it has ended by itself, and so has told of every cell."""
        if not Deadline(END_S).wait_ready(self._process.fileno(), select.POLLIN):
            return False
        try:
            found = _native.wait(self._process.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return found is not None and found[1:3] == (os.CLD_EXITED, 0)

    def forget(self) -> None:
        """After os.fork() in the child: it is the parent's."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._process.release()


def end_orphans(maker: Keeper, known: Collection[int]) -> None:
    """End what a process was making when somebody killed it: it is our child, of which nobody has told us.

    It is still in the maker's session, whose number stays its own until it is reaped. Source: setsid(2), proc_pid_stat(5).

    Args:
        known: the processes of which somebody has.
    """
    Deadline(END_S).wait_ready(maker.fileno(), select.POLLIN)  # from then on there will be no more
    for pid in children():
        with suppress(OSError):
            if pid not in known and pid != maker.pid and _session_of(pid) == maker.pid:
                _undo((pid,), ())


def _undo(pids: Collection[int], fds: Sequence[int]) -> None:
    """What could not be completed is still our child."""
    for fd in fds:
        os.close(fd)
    for pid in pids:
        if pid > 0:
            with suppress(OSError):
                child = Keeper(os.pidfd_open(pid), pid)
                child.kill()
                reaper.register(child)


def _session_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[3])


def start_factory(recipe: Recipe) -> Factory | None:
    """A factory, or None where none can be started: a launch will say why."""
    try:
        return Factory(recipe)
    except (SpawnError, OSError):
        return None
