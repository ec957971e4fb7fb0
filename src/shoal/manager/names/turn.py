"""A turn: a place in a line of waiters, first come, first served. What locks and semaphores stand on.

Called by: lock.py and semaphore.py, over any Operations. Each waiter has a sequential record, and waits for the one just before it to go:
when the line moves, one waiter wakes, not all. A waiter whose session ends loses its record and so its place, and nobody waits for the
dead.
Source: lib/octopus locks; spec 5.8.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from shoal.handles.deadline import Deadline
from shoal.manager.errors import ManagerError, ManagerTimeoutError
from shoal.manager.names.operations import Operations
from shoal.manager.names.query import Query
from shoal.manager.names.record import Value
from shoal.manager.names.store import Terms


class Line:
    """One line of waiters.

    Args:
        base: their records are named so, and a number.
        attribute, value: what their records say.
        under: the record they end with, if any.
        what: what they wait for, for errors.
    """

    def __init__(self, operations: Operations, base: str, attribute: str, value: Value, what: str, under: str | None = None) -> None:
        self._operations = operations
        self._base = base
        self._mine = Query.where(base, {attribute: value})
        self._all = Query.where(None, {attribute: value})
        self._terms = Terms(mode="sequential", under=under)
        self._what = what
        self._waiter = os.getpid()

    def is_empty(self) -> bool:
        """Whether nobody stands in line."""
        return not self._places()

    def wait(self, deadline: Deadline, lost: Callable[[], ManagerError]) -> str:
        """Stand in line until it is this one's turn. Returns the name of its record: leave() with it.

        Args:
            lost: makes the error for when the record is gone without the session being gone.
        Raises:
            ManagerTimeoutError: the time is up. The place is given up.
            ManagerError: what `lost` makes; LIB_ERR_NAMESERVICE_NOT_BOUND; OCT_ERR_LIMIT, OCT_ERR_MAX_SUBSCRIPTIONS.
        """
        self._waiter = os.getpid()
        ticket = self._operations.set(self._mine, self._terms).name
        try:
            while True:
                places = self._places()
                if ticket not in places:
                    raise lost()
                position = places.index(ticket)
                if position == 0:
                    return ticket
                if deadline.remaining_ms() == 0:
                    raise ManagerTimeoutError(
                        "OCT_ERR_TIMEOUT", f"{self._what} was not free in the time given; {position} are first in line"
                    )
                self._wait_gone(places[position - 1], deadline)
        except BaseException:
            self.leave(ticket)
            raise

    def leave(self, ticket: str) -> bool:
        """Give up a place, and so let the next one go on. Whether it was still there.

        In a process forked from the one that stood in line it does nothing: it is that one's place.
        """
        if os.getpid() != self._waiter:
            return True
        try:
            self._operations.remove(Query(ticket))
        except ManagerError as error:
            if error.code not in ("OCT_ERR_NO_RECORD", "LIB_ERR_NAMESERVICE_NOT_BOUND"):
                raise
            return False
        return True

    def number(self, ticket: str) -> int:
        """The number of a place. Later ones are higher."""
        return int(ticket[len(self._base) :])

    def _places(self) -> list[str]:
        """Records of those in line, first come first. One of another name says the same attribute by accident, and counts for nothing."""
        base = self._base
        found = [name for name in self._operations.names(self._all) if name.startswith(base) and name[len(base) :].isdecimal()]
        return sorted(found, key=self.number)

    def _wait_gone(self, name: str, deadline: Deadline) -> None:
        """Wait until there is no record of this name; the caller looks again, so that a wait cut short does no harm."""
        watching = self._operations.watch(Query(name), on=["delete"], persistent=False, when="present")
        try:
            if watching.installed:
                watching.next(deadline)
        finally:
            watching.discard()
