"""The launcher: runs lowered plans. A child in the caller's world is one launch, a cell is two."""

from __future__ import annotations

import os
from collections.abc import Sequence

from shoal.handles import reaper
from shoal.handles.keeper import DIE_WITH_US, STAY, Strings, launch, start_keeper
from shoal.handles.process import Process
from shoal.handles.reaper import Keeper
from shoal.lowering import Lowered

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
    try:
        os.write(control, DIE_WITH_US if lowered.dies_with_caller else STAY)
    except OSError:
        pass  # somebody has killed the cell already; the process will tell
    if lowered.dies_with_caller:
        keeper.control = control
    else:
        os.close(control)
    return Process._started(pidfd, pid, lowered.name, keeper)
