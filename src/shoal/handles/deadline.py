"""Deadline: how long a wait may still take, and the wait for a descriptor that ends with it.

What takes several waits is a generator of `Wait`s: what happens between them is written once, and who drives it decides whether a
thread sleeps meanwhile (`wait_here()`) or an event loop does something else.

Source: poll(2). Its timeout is an int of milliseconds, so a long wait is made of several.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Generator
from typing import NamedTuple, TypeVar

from shoal.units import parse_duration

T = TypeVar("T")
LONGEST_S = 1 << 20
"""Twelve days: the longest that the kernel is asked to wait at once. What waits with it looks at its clock, and waits again."""


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
        return 0 if left <= 0 else math.ceil(min(LONGEST_S, left) * 1000)

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
        if fd >= 0:
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


class Wait(NamedTuple):
    """One wait: until `fd` is readable, or the deadline has come. -1: nothing but the deadline is waited for."""

    fd: int
    deadline: Deadline


Waits = Generator[Wait, bool, T]
"""Work with waits in between, each of which is answered with whether the descriptor is readable."""


def wait_here(waits: Waits[T]) -> T:
    """Do the work, and let this thread sleep while there is something to wait for."""
    try:
        wait = next(waits)
        while True:
            wait = waits.send(wait.deadline.wait_ready(wait.fd, select.POLLIN))
    except StopIteration as end:
        result: T = end.value
        return result
