"""The floor of a run in a sandbox: what the kernel takes for it, with nothing on top.

Of a launch into a cell made ahead only what cannot be left out: whether the thread is as the cell was made for, the message, the
answer, the program's life, and its status. No look-up of the program or its libraries, no objects, no bookkeeping: what shoal.run takes
more is the price of those. The rest of a launch happens between two of them, where it is not measured.
"""

from __future__ import annotations

import array
import os
import select
from pathlib import Path

from timing import CaseFailed

from shoal import Sandbox, _native
from shoal.factory import Factory, WaitingProcess
from shoal.sandbox.launch import Boxed, Order
from shoal.sandbox.program import find_program

_NULL = array.array("i", [0, 1, 2]).tobytes()


class Handed:
    """Launches one program, into one cell after the other. `settle()` before each."""

    def __init__(self, program: str, directory: Path) -> None:
        found = find_program(program, os.defpath, str(directory))
        cooked = Boxed.of(Sandbox()).cook(Order(found, [], {0: 0, 1: 1, 2: 2}, str(directory)))
        if cooked is None:
            raise CaseFailed("no cell is made ahead here")
        self._told = (cooked.recipe.finish, *cooked.argv, *cooked.environ, _NULL)
        self._inherited = _native.inherited()
        self._factory = Factory(cooked.recipe)
        self._ready: WaitingProcess | None = None
        self._ended: WaitingProcess | None = None
        self.settle()

    def settle(self) -> None:
        """Give up the last cell, and have another."""
        if self._ended is not None:
            self._ended.end()
            self._ended = None
        if self._ready is None:
            self._factory.ask(1)
            self._ready = self._factory.receive(wait=True)

    def __call__(self) -> None:
        waiting, self._ready = self._ready, None
        if waiting is None:
            raise CaseFailed("no cell could be made")
        self._ended = waiting
        pidfd = waiting._process.fileno()
        if _native.inherited() != self._inherited:
            raise CaseFailed("the thread is not as it was")
        stage, _, error = _native.hand_over(waiting._socket.fd, pidfd, *self._told)
        end = select.poll()
        end.register(pidfd, select.POLLIN)
        end.poll()
        ended = _native.wait(pidfd, os.WEXITED | os.WNOWAIT)
        if stage != _native.STAGE_EXEC or error or ended is None or ended[1:3] != (os.CLD_EXITED, 0):
            raise CaseFailed(f"a cell handed over: the program ended with {ended}")
