"""Deadline: how long a wait may still take, and the wait for a descriptor that ends with it.

Source: poll(2). Its timeout is an int of milliseconds, so a long wait is made of several.
"""

from __future__ import annotations

import math
import select
import time

from shoal.units import parse_duration

_LONGEST_MS = 1 << 30


class Deadline:
    """A moment after which a wait gives up, or never.

    Args:
        timeout: seconds or text such as "1m30s"; None and infinity never end. A negative number is over at once: it
            is what `end - now` gives when the time is up.
    Raises:
        TypeError, ValueError: `timeout` is not a duration.
    """

    __slots__ = ("_end",)

    def __init__(self, timeout: float | str | None) -> None:
        if isinstance(timeout, int | float) and not isinstance(timeout, bool):
            timeout = None if timeout == math.inf else max(0.0, float(timeout)) if timeout < 0 else timeout
        self._end = None if timeout is None else time.monotonic() + parse_duration(timeout)

    def remaining_ms(self) -> int | None:
        """Milliseconds left, rounded up, at most twelve days at once; 0 when it is over, None for never."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        return 0 if left <= 0 else min(_LONGEST_MS, math.ceil(left * 1000))

    def at_most(self, seconds: float) -> Deadline:
        """The same, or one that is over after `seconds`: whichever comes first."""
        sooner = Deadline(seconds)
        return self if self._end is not None and sooner._end is not None and self._end < sooner._end else sooner

    def wait_ready(self, fd: int, events: int) -> bool:
        """Wait until `fd` shows one of `events` (or an error); False when the deadline came first.

        Any number of threads may wait for one descriptor, whatever its number (select(2) stops at 1,023).
        A signal runs its Python handler and the wait goes on, unless the handler raises.
        """
        poller = select.poll()
        poller.register(fd, events)
        while True:
            remaining = self.remaining_ms()
            if poller.poll(remaining):
                return True
            if remaining == 0:
                return False


def is_ready(fd: int, events: int) -> bool:
    """Does `fd` show one of `events` now? Never waits."""
    poller = select.poll()
    poller.register(fd, events)
    return bool(poller.poll(0))
