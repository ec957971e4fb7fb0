"""A bar on a terminal: how many calls of a `map` are over. Writes to standard error, and only where that is a terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TextIO

_AFTER_S = 0.5
"""What is over sooner shows none."""
_EACH_S = 0.1
_WIDTH = 24


class Bar:
    """Draws itself when it is told that something is done.

    Args:
        total: how many there are; None: not known yet.
    """

    def __init__(self, name: str, total: int | None, stream: TextIO | None = None) -> None:
        self.total = total
        self._name = name
        self._stream = sys.stderr if stream is None else stream
        self._lock = threading.Lock()
        self._begun = self._drawn = time.monotonic()
        self._done = self._failed = 0
        self._shown = False

    @staticmethod
    def is_wanted(asked: bool | None) -> bool:
        """Whether to show one: as asked, or where somebody looks."""
        if asked is not None:
            return asked
        try:
            return sys.stderr.isatty()
        except (AttributeError, ValueError):
            return False

    def step(self, *, failed: bool) -> None:
        """One more is over."""
        with self._lock:
            self._done += 1
            self._failed += failed
            now = time.monotonic()
            if now - self._begun >= _AFTER_S and now - self._drawn >= _EACH_S:
                self._draw(now)

    def close(self) -> None:
        """The last picture, and a new line."""
        with self._lock:
            if self._shown:
                self._draw(time.monotonic())
                self._write("\n")
                self._shown = False

    def _draw(self, now: float) -> None:
        self._drawn, self._shown = now, True
        spent = max(now - self._begun, 1e-9)
        rate = self._done / spent
        if self.total:
            full = int(_WIDTH * self._done / self.total)
            left = (self.total - self._done) / rate if rate else 0.0
            text = f"{self._name} [{'#' * full}{'.' * (_WIDTH - full)}] {self._done}/{self.total}  {rate:.0f}/s  {_clock(left)} left"
        else:
            text = f"{self._name} {self._done}  {rate:.0f}/s"
        if self._failed:
            text += f"  {self._failed} failed"
        self._write("\r\x1b[K" + text[: self._columns() - 1])

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody looks any more


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
