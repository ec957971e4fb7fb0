"""The launcher: runs lowered plans. A child in the caller's world is one launch, a cell is two; one made ahead needs but a message."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from shoal import _native
from shoal.handles import reaper
from shoal.handles.idmap import make_id_map
from shoal.handles.images import init_image
from shoal.handles.keeper import DIE_WITH_US, STAY, Strings, launch, start_keeper
from shoal.handles.process import Process
from shoal.handles.reaper import Keeper, OwnedFd
from shoal.lowering import Lowered, Waiting
from shoal.packing import count_strings

FIRST_USER = 0x70000000
"""Above what people, distributions and containers use: login.defs(5), subuid(5). The pid of the cell is added to it."""
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
        user, id_map = _user(keeper, lowered)
        if user and lowered.terminal is not None:
            os.fchown(lowered.terminal, user[0], -1)
        pid, pidfd = launch(lowered.program, (keeper.fileno(), control, *user, *sources), argv, environ, lowered.label)
        del id_map  # open until now
    except BaseException:
        os.close(control)
        _end(keeper)
        raise
    _keep(keeper, control, lowered.dies_with_caller)
    return Process._started(pidfd, pid, lowered.name, keeper)


def user_of(keeper: Keeper) -> int:
    """The number of the cell's own user.

    Nobody else has it: no two living processes have the same pid, and the cell's first one lives as long as the cell.
    """
    return FIRST_USER + keeper.pid


def _user(keeper: Keeper, lowered: Lowered | Waiting) -> tuple[tuple[int, ...], OwnedFd | None]:
    """The number of the cell's own user and the descriptor of its id map, for the holes; and what keeps that open."""
    if not lowered.own_user:
        return (), None
    user = user_of(keeper)
    if not lowered.maps_ids:
        return (user,), None
    id_map = make_id_map(user)
    return (user, id_map.fd), id_map


def _keep(keeper: Keeper, control: int, dies_with_caller: bool) -> None:
    """Tell the cell's first process that it has something to keep, and how long. Takes over our end of its socket."""
    try:
        os.write(control, DIE_WITH_US if dies_with_caller else STAY)
    except OSError:
        pass  # somebody has killed the cell already; the process will tell
    if dies_with_caller:
        keeper.control = control
    else:
        os.close(control)


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
        self._socket = OwnedFd(-1)
        return process

    def give_up(self) -> None:
        """End it and its cell; the rest is the reaper's."""
        self._socket = OwnedFd(-1)  # which ends it, too, where we may not signal it any more
        with suppress(OSError):
            self._process.kill_cell()
        self._process.close()

    def end(self) -> None:
        """The same, and wait until they are gone."""
        self._socket = OwnedFd(-1)
        with suppress(OSError):
            self._process.end_cell(END_S)
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
    theirs = -1
    try:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs = OwnedFd(near.detach()), far.detach()
        user, id_map = _user(keeper, recipe)
        holes = (keeper.fileno(), control, *user, init_image(), theirs)
        wait = count_strings((os.fsencode(recipe.comm), b"w"))
        pid, pidfd = launch(recipe.prepare, holes, wait, (b"", 0), "a process waiting in a cell")
        del id_map  # open until now
    except BaseException:
        os.close(control)
        _end(keeper)
        raise
    finally:
        if theirs >= 0:
            os.close(theirs)
    _keep(keeper, control, recipe.dies_with_caller)
    keeper.look_ahead()
    return WaitingProcess(Process._started(pidfd, pid, recipe.name, keeper), ours)
