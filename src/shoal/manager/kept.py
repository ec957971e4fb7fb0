"""Kept: a domain that lives, as its manager has it."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from shoal.manager import orders
from shoal.manager.ledger import CAUSE_KILLED
from shoal.manager.link import Link


@dataclass(frozen=True, slots=True)
class Seat:
    """What a domain is started under.

    Attributes:
        id: the domain's number. slot: its place in the ledger. key: what tells it from every other that was ever there.
    """

    id: int
    slot: int
    key: int


class Kept:
    """A domain that lives, as its manager has it: the link to its init."""

    __slots__ = ("link", "pid", "seat")

    def __init__(self, seat: Seat, link: Link, pid: int) -> None:
        self.seat, self.link, self.pid = seat, link, pid

    def kill(self, cause: int = CAUSE_KILLED) -> None:
        """End everything in it."""
        self.link.order(orders.END, cause, int(signal.SIGKILL))

    def keep(self, pid: int) -> None:
        """What was started by `add_dispatcher()` is one from now on: it is written down."""
        self.link.order(orders.KEEP, 1, pid)

    def drop(self, pid: int = 0) -> None:
        """End what was started, and is no dispatcher after all; 0: all that nobody has kept."""
        self.link.order(orders.KEEP, 0, pid)

    def send_signal(self, number: int, pid: int = 0, *, key: int = 0) -> None:
        """Signal a dispatcher, or all of them; what has been done with the same key is not done again."""
        self.link.order(orders.SIGNAL, number, pid, c=key)
