"""The launcher: runs lowered plans. A child in the caller's world is one launch, a cell is two."""

from __future__ import annotations

import os
from collections.abc import Sequence

from shoal.handles import reaper
from shoal.handles.idmap import make_id_map
from shoal.handles.keeper import DIE_WITH_US, STAY, Strings, launch, start_keeper
from shoal.handles.process import Process
from shoal.handles.reaper import Keeper, OwnedFd
from shoal.lowering import FIRST_USER, Lowered

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


def _user(keeper: Keeper, lowered: Lowered) -> tuple[tuple[int, ...], OwnedFd | None]:
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
