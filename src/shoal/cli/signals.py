"""Signals: what `shoal run` is sent while a program runs, as something that can be polled.

Each signal is noted by Python's handler, which only wakes the poll loop; what it means is decided there. A signal that was
ignored when shoal started (nohup, a background job of a script) stays ignored.
Source: signal.set_wakeup_fd(), signal(7).
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What the program gets when shoal is sent it."""

NOTICED = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD)
"""What shoal itself acts upon."""


class Signals:
    """While entered, signals arrive through `fileno()` and `take()` instead of ending the process. Main thread only."""

    def __init__(self) -> None:
        self._read = self._write = -1
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*FORWARDED, *NOTICED):
            # An ignored SIGCHLD would make the kernel throw the program's exit status away.
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGCHLD:
                self._before[number] = signal.signal(number, _noted)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        """Readable when `take()` has something."""
        return self._read

    def take(self) -> list[int]:
        """The signals that arrived since the last call, oldest first."""
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []

    def stop_myself(self) -> None:
        """Be stopped as by ctrl-Z; returns when continued, or at once where nobody could continue us (an orphaned group)."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, _noted)


def _noted(number: int, frame: FrameType | None) -> None:
    """The wakeup descriptor has told the poll loop already."""
