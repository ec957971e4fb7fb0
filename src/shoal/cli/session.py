"""Session: from the start of a program to its end. Forwards signals, serves the terminal, keeps the deadline.

One poll loop over the pidfd, the signals and the terminal. When the program has ended, or its time is up, the keeper of its cell is
killed: everything the program left behind goes with it, whatever it did to hide. What is to be waited for, or kept, is left alone.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from shoal.cli.relay import Relay
from shoal.cli.signals import Signals
from shoal.handles.process import Process, ProcessInfo, Usage
from shoal.launcher import END_S

if TYPE_CHECKING:  # loaded only when there is a terminal, or a limit
    from shoal.cli.terminal import Terminal
    from shoal.handles.job_backend import Counters
    from shoal.sandbox.limits import Budget
    from shoal.sandbox.unkilled import Unkilled

_PATIENCE_S = 2.0
_GIVE_UP = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))


Stopped = Literal["timeout", "wall_time", "cpu_time"]
"""Which limit of time was reached."""


class Ended(NamedTuple):
    """How a run ended.

    Attributes:
        returncode: the exit status, or the negative signal.
        stopped: why shoal ended it, if it did.
        unkilled: what is still there although it was killed.
    """

    returncode: int
    stopped: Stopped | None
    wall_s: float
    unkilled: tuple[Unkilled, ...] = ()


class Over(NamedTuple):
    """A run that is over.

    Attributes:
        spent: what its job counted, where it had one.
        enforced: each protection, and whether it was in force.
        pid: of the program. user: whom it ran as, where that was nobody else.
    """

    ended: Ended
    info: ProcessInfo
    spent: tuple[Usage, Counters] | None
    enforced: dict[str, bool | str]
    pid: int
    user: int | None


class Bounds(NamedTuple):
    """How long a program may take, and what becomes of what it leaves running. None: no limit."""

    timeout_s: float | None
    wall_s: float | None
    budget: Budget | None
    linger: Literal["kill", "wait", "keep"]

    @property
    def nearest(self) -> tuple[float, Stopped] | None:
        """The limit of time that comes first."""
        both: list[tuple[float, Stopped]] = []
        both += [(self.timeout_s, "timeout")] if self.timeout_s is not None else []
        both += [(self.wall_s, "wall_time")] if self.wall_s is not None else []
        return min(both, default=None)


class Session:
    """One running program. `signals` and `terminal` are entered already and stay the caller's."""

    def __init__(self, process: Process, signals: Signals, terminal: Terminal | None, bounds: Bounds) -> None:
        self._process, self._signals, self._terminal = process, signals, terminal
        self._keeper = process._keeper
        self._began = time.monotonic()
        self._limit = bounds.nearest
        self._budget, self._linger = bounds.budget, bounds.linger
        self._relay = Relay(signals, terminal, self._send, hangs_up_group=False)
        self._told_to_end: set[int] = set()

    def follow(self) -> Ended:
        """Return when the program has ended, nothing of it is left that is not to be kept, and its last output has been written."""
        if self._terminal:
            self._terminal.claim()
        stopped = self._until_ready(self._process.fileno())
        if stopped is None and self._linger == "wait":
            status = self._process.wait()  # a cell is not gone as long as its program has not been reaped
            rest = None if self._is_given_up(status) else self._process.cell_end()
            stopped = None if rest is None else self._until_ready(rest.fd, lingers=True)
        wall_s = time.monotonic() - self._began
        keeps = stopped is None and self._linger == "keep"
        left: tuple[Unkilled, ...] = ()
        if keeps or self._process.end_cell(END_S):
            returncode = self._process.wait()
        else:
            from shoal.sandbox.unkilled import ending_of, unkilled

            keeps = True  # the kernel does
            left = unkilled(self._process)
            returncode, _ = ending_of(self._process)
        if self._terminal:
            killed = stopped is not None or returncode < 0
            self._drain(self._terminal, killed=killed, keeps=keeps, patience_s=_PATIENCE_S if stopped is not None else None)
        return Ended(returncode, stopped, wall_s, left)

    def _until_ready(self, fd: int, *, lingers: bool = False) -> Stopped | None:
        """Serve signals and the terminal until `fd` tells of an end, or a limit of time is reached.

        Args:
            lingers: the program itself has ended, so that nobody is there to be told of a signal.
        """
        while True:
            look = None if self._budget is None else self._budget.next_look_s()
            if look == 0:
                return "cpu_time"
            left = self._left_s()
            ready = self._relay.poll(fd, left if look is None else look if left is None else min(look, left))
            if fd in ready:
                return None
            if self._limit is not None and self._left_s() == 0:
                return self._limit[1]
            for number in self._signals.take():
                if lingers and number in _GIVE_UP:
                    return None
                if number in _GIVE_UP:
                    # One that has ended meanwhile will not act upon it, so it is meant for what is left.
                    self._told_to_end.add(signal.SIGTERM if self._poll_now(fd) else number)
                self._on_signal(number)
            self._relay.serve(ready)

    def _is_given_up(self, status: int) -> bool:
        """True when the end of the program is the answer to a signal, so that nobody wants to wait for what it left running.

        SIGTERM asks for an end and nothing else. The others a program may have taken for something else, and gone on.
        """
        return signal.SIGTERM in self._told_to_end or -status in self._told_to_end

    # --- while it runs ------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        stops = number == signal.SIGCHLD and self._terminal and self._limit is None
        if stops and self._process.info().state == "stopped":
            # It stopped itself, so the shell gets its prompt back. Not with a time limit, which would not be kept meanwhile.
            self._relay.suspend()
        else:
            self._relay.on_signal(number)

    def _send(self, number: int, group: bool = False) -> None:
        """To the program, or to its whole process group as the keyboard would. It is our child and not yet reaped: its pid is its own."""
        pid = self._process.pid
        try:
            if group and os.getpgid(pid) == pid:
                os.killpg(pid, number)
            else:
                self._process.send_signal(number)
        except (ProcessLookupError, PermissionError):
            pass

    def _left_s(self) -> float | None:
        return None if self._limit is None else max(0.0, self._began + self._limit[0] - time.monotonic())

    # --- when it has ended --------------------------------------------------------------------------

    def _drain(self, terminal: Terminal, killed: bool, keeps: bool, patience_s: float | None) -> None:
        """Write what the program wrote before it ended, until all is written or somebody insists on leaving.

        A terminal that nobody reads holds us up like any other program, except when a time limit was to be kept. What is kept has
        the private terminal still, so its output has no end: what is there now has to do.
        """
        terminal.finish()
        undone = False
        until = None if patience_s is None else time.monotonic() + patience_s
        while True:
            if keeps or self._gone():
                terminal.read_rest()
            if terminal.is_drained:
                if undone or not killed:
                    return
                terminal.undo_modes()
                undone = True
                continue
            left_s = None if until is None else max(0.0, until - time.monotonic())
            ready = self._relay.poll(-1 if keeps or self._gone() or self._keeper is None else self._keeper.fileno(), left_s)
            if left_s == 0 or _GIVE_UP.intersection(self._signals.take()):
                return
            terminal.serve(ready)

    def _gone(self) -> bool:
        """True when nothing of the cell is left, so that nobody holds the private terminal any more."""
        return self._keeper is None or self._keeper.settle()

    @staticmethod
    def _poll_now(fd: int) -> bool:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(0))
