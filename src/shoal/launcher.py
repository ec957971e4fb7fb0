"""The launcher: runs lowered plans. A child in the caller's world is one launch, a cell is two; one made ahead needs but a message."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from shoal import _native
from shoal.handles import reaper
from shoal.handles.images import init_image
from shoal.handles.keeper import DIE_WITH_US, STAY, Strings, launch, start_keeper
from shoal.handles.process import Process
from shoal.handles.reaper import Keeper, OwnedFd
from shoal.lowering import Lowered, Waiting
from shoal.packing import count_strings

END_S = 2.0
"""How long a failed launch waits for the cell to be gone; a kernel that takes longer is left to the reaper."""


def _end(keeper: Keeper) -> None:
    keeper.kill()
    try:
        keeper.wait(END_S)
    except TimeoutError:
        reaper.register(keeper)
    else:
        keeper.release()  # now, since the traceback of the error holds it


def run(lowered: Lowered, sources: Sequence[int], argv: Strings, environ: Strings) -> Process:
    """Start the program.

    Args:
        sources: the descriptors to hand over, as many as `lowered.sources`; borrowed.
    Raises:
        SpawnError: nothing was started, or it was killed and reaped.
    """
    if lowered.keeper is None:
        pid, pidfd = launch(lowered.program, sources, argv, environ, lowered.label)
        return Process._started(pidfd, pid, lowered.name)
    keeper, control = start_keeper(lowered.keeper, "the cell", lowered.tasks)
    try:
        pid, pidfd = launch(lowered.program, (keeper.fileno(), control, *sources), argv, environ, lowered.label)
    except BaseException:
        os.close(control)
        _end(keeper)
        raise
    _keep(control, DIE_WITH_US if lowered.dies_with_caller else STAY)
    if lowered.dies_with_caller:
        keeper.control = control
    else:
        os.close(control)
    return Process._started(pidfd, pid, lowered.name, keeper)


def _keep(control: int, mode: bytes) -> None:
    try:
        os.write(control, mode)
    except OSError:
        pass  # somebody has killed the cell already; the process will tell


class WaitingProcess:
    """A process in a cell of its own that waits to become the program.

    Ownership: it has the process and our end of the socket; `become()` passes the process on.
    """

    __slots__ = ("_process", "_socket")

    def __init__(self, process: Process, socket: OwnedFd) -> None:
        self._process = process
        self._socket = socket

    def become(self, plan: bytes, fds: bytes, argv: Strings, environ: Strings) -> Process | None:
        """Send it what it is to be. Returns once it has been executed; None when it could not be, and is gone.

        Args:
            fds: packed C ints, for the slots of the plan; borrowed.
        """
        process = self._process
        stage, _, error = _native.hand_over(self._socket.fd, process.fileno(), plan, *argv, *environ, fds)
        if stage != _native.STAGE_EXEC or error:
            self.give_up()
            return None
        process._begin()
        return process

    def give_up(self) -> None:
        """End it and its cell; the rest is the reaper's."""
        self._process.kill_cell()
        self._process.close()

    def end(self) -> None:
        """The same, and wait until they are gone."""
        self._process.kill_cell()
        with suppress(TimeoutError):
            self._process.wait(END_S)
            if (keeper := self._process._keeper) is not None:
                keeper.wait(END_S)
        self._process.close()

    def forget(self) -> None:
        """After os.fork() in the child: it is the parent's."""
        self._process._forget()
        self._socket = OwnedFd(-1)


def prepare(recipe: Waiting) -> WaitingProcess:
    """Make a cell and a process waiting in it.

    Raises:
        SpawnError: why not; nothing is left.
        OSError: no socket can be made.
    """
    keeper, control = start_keeper(recipe.keeper, "a cell made ahead", recipe.tasks)
    fds = [control]
    try:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs = OwnedFd(near.detach()), far.detach()
        fds.append(theirs)
        holes = (keeper.fileno(), control, init_image(), theirs)
        pid, pidfd = launch(recipe.prepare, holes, count_strings((os.fsencode(recipe.comm), b"w")), (b"", 0), "a process waiting in a cell")
        _keep(control, STAY)
    except BaseException:
        _end(keeper)
        raise
    finally:
        for fd in fds:
            os.close(fd)
    return WaitingProcess(Process._started(pidfd, pid, recipe.name, keeper), ours)
