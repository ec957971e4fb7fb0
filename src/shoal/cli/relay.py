"""Relay: between the person at a command and the program that it runs: signals, and a private terminal where there is one."""

from __future__ import annotations

import select
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.cli.signals import FORWARDED, Signals
from shoal.handles.deadline import LONGEST_S

if TYPE_CHECKING:
    from shoal.cli.terminal import Terminal

_BY_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
"""Signals that a keyboard sends, to a whole process group."""


class Relay:
    """For as long as a program runs. `signals` and `terminal` are entered already and stay the caller's.

    Args:
        send: signals the program, or with True its process group; one that has ended is not.
        hangs_up_group: whether the end of the caller's terminal is told to all of the group.
    """

    def __init__(self, signals: Signals, terminal: Terminal | None, send: Callable[[int, bool], object], *, hangs_up_group: bool) -> None:
        self.signals, self.terminal = signals, terminal
        self._send, self._hangs_up_group = send, hangs_up_group
        self._told_of_hangup = False

    def poll(self, fd: int, left_s: float | None = None) -> dict[int, int]:
        """Wait for `fd` (-1: for none), a signal, or something for `serve()`. What is ready, as poll(2) tells it.

        Args:
            left_s: for how long at most, in seconds.
        """
        poller = select.poll()
        if fd >= 0:
            poller.register(fd, select.POLLIN)
        poller.register(self.signals.fileno(), select.POLLIN)
        if self.terminal:
            for terminal_fd, events in self.terminal.interest().items():
                poller.register(terminal_fd, events)
            if self.terminal.pause_s is not None:
                left_s = min(self.terminal.pause_s, left_s if left_s is not None else self.terminal.pause_s)
        # Rounded up: waking a moment early would make the last millisecond a busy loop.
        return dict(poller.poll(None if left_s is None else int(min(LONGEST_S, left_s) * 1000) + 1))

    def serve(self, ready: dict[int, int]) -> None:
        """Move what is there between both terminals."""
        if self.terminal:
            self.terminal.serve(ready)
            if self.terminal.pause_s is not None:
                self.terminal.claim()
            if self.terminal.hung_up and not self._told_of_hangup:
                self._told_of_hangup = True
                self._send(signal.SIGHUP, self._hangs_up_group)

    def on_signal(self, number: int) -> None:
        """Pass on a signal that we were sent, or do what it asks for."""
        if number in FORWARDED:
            by_keyboard = number in _BY_KEYBOARD
            if not (by_keyboard and self.terminal and self.terminal.send_signal(number)):
                self._send(number, by_keyboard)
        elif number == signal.SIGWINCH and self.terminal:
            self.terminal.resize()
        elif number == signal.SIGTSTP:
            self.suspend()
        elif number == signal.SIGCONT and self.terminal:
            self.terminal.claim()
            self.terminal.resize()

    def suspend(self) -> None:
        """Stop the program and ourselves, with the terminal as it was; go on when somebody continues us."""
        self._send(signal.SIGSTOP, True)
        if self.terminal:
            self.terminal.catch_up()
            self.terminal.restore()
        self.signals.stop_myself()
        if self.terminal:
            self.terminal.claim()
            self.terminal.resize()
        self._send(signal.SIGCONT, True)
