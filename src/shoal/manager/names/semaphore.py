"""Semaphore: a number of units, each taken by one at a time. Over any Operations.

One record is one unit, `sem.<id>.<n> { sem: <id> }`, under the record of the semaphore, `sem.<id>`: removing that removes all at once, and
a post that comes too late finds nothing to be under.
Source: spec 5.9.
"""

from __future__ import annotations

from typing import Self

from shoal.handles.deadline import Deadline
from shoal.manager.errors import ManagerError, ManagerTimeoutError
from shoal.manager.names.operations import Operations
from shoal.manager.names.query import Query
from shoal.manager.names.store import Terms
from shoal.manager.names.turn import Line


class Semaphore:
    """A counting semaphore. Whoever knows its `id` may post and wait; who waits gets a unit in the order of asking.

    Units do not belong to anybody: one taken by a program that died is not posted by itself. The semaphore ends with the session that made
        it, unless it was made persistent, or when it is destroyed. Made by NameService.semaphore().

    Attributes:
        id: its number, from 1, never used again.
    """

    def __init__(self, operations: Operations, id: int) -> None:
        if isinstance(id, bool) or not isinstance(id, int) or id < 1:
            raise ValueError(f"the id of a semaphore is a number from 1, not {id!r}")
        self.id = id
        self._operations = operations
        self._header = Query(f"sem.{id}")
        self._unit = Query.where(None, {"sem": id})
        self._line = Line(operations, f"sem.{id}.wait_", "semaphore_waiter", id, f"a unit of semaphore {id}", under=f"sem.{id}")

    @classmethod
    def create(cls, operations: Operations, value: int, *, persistent: bool = False) -> Self:
        """A new one with `value` units.

        Raises:
            ValueError: a negative number.
            ManagerError: OCT_ERR_LIMIT.
        """
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"a semaphore has a number of units from 0, not {value!r}")
        id = 0
        while not id:  # numbers begin at 0 and ids at 1
            made = operations.set(Query("sem."), Terms(mode="sequential", lifetime="persistent" if persistent else "session"))
            id = int(made.name.removeprefix("sem."))
            if not id:
                operations.remove(Query(made.name))
        try:
            operations.set(Query.where(f"sem.{id}", {"semaphore": id}), Terms(lifetime="persistent" if persistent else "session"))
            semaphore = cls(operations, id)
            for _ in range(value):
                semaphore.post()
        except BaseException:
            operations.remove(Query(f"sem.{id}"))
            raise
        return semaphore

    def post(self) -> None:
        """Add a unit, which wakes the first in line.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD, the semaphore was destroyed; OCT_ERR_LIMIT.
        """
        try:
            terms = Terms(mode="sequential", lifetime="parent", shared=True, under=f"sem.{self.id}")
            self._operations.set(Query.where(f"sem.{self.id}.", {"sem": self.id, "semaphore": self.id}), terms)
        except ManagerError as error:
            raise self._destroyed() if error.code == "OCT_ERR_NO_RECORD" else error from None

    def wait(self, timeout: float | str | None = None) -> None:
        """Take a unit, waiting for one.

        Args:
            timeout: seconds or text such as "30s"; None waits as long as it takes.
        Raises:
            ManagerTimeoutError: not in that time.
            ManagerError: OCT_ERR_NO_RECORD, the semaphore was destroyed; LIB_ERR_NAMESERVICE_NOT_BOUND; OCT_ERR_LIMIT,
                OCT_ERR_MAX_SUBSCRIPTIONS, too many wait.
        """
        if self.trywait():
            return
        deadline = Deadline(timeout)
        try:
            ticket = self._line.wait(deadline, self._destroyed)
        except ManagerError as error:
            raise self._destroyed() if error.code == "OCT_ERR_NO_RECORD" else error from None
        try:
            self._wait_unit(deadline)
        finally:
            self._line.leave(ticket)

    def trywait(self) -> bool:
        """Take a unit if there is one and nobody waits for it. Whether one was taken.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD, the semaphore was destroyed.
        """
        if self._line.is_empty() and self._take_unit():
            return True
        if not self._operations.exists(self._header):
            raise self._destroyed()
        return False

    def destroy(self) -> None:
        """End it, for everybody. Who waits gets OCT_ERR_NO_RECORD.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD, it was destroyed before; OCT_ERR_NOT_OWNER, it belongs to another capability.
        """
        try:
            self._operations.remove(self._header)
        except ManagerError as error:
            raise self._destroyed() if error.code == "OCT_ERR_NO_RECORD" else error from None

    def __enter__(self) -> None:
        self.wait()

    def __exit__(self, *exc: object) -> None:
        self.post()

    def _wait_unit(self, deadline: Deadline) -> None:
        """Take a unit as the first in line: nobody but trywait() competes."""
        watching = self._operations.watch(Query.where(None, {"semaphore": self.id}))
        try:
            while not self._take_unit():
                if not self._operations.exists(self._header):
                    raise self._destroyed()
                if watching.next(deadline) is None:
                    raise ManagerTimeoutError("OCT_ERR_TIMEOUT", f"semaphore {self.id} had no unit in the time given")
        finally:
            watching.discard()

    def _take_unit(self) -> bool:
        while True:
            try:
                name = self._operations.get(self._unit).name
            except ManagerError as error:
                if error.code != "OCT_ERR_NO_RECORD":
                    raise
                return False
            try:
                self._operations.remove(Query(name))
            except ManagerError as error:
                if error.code != "OCT_ERR_NO_RECORD":
                    raise
                continue  # somebody else took it first
            return True

    def _destroyed(self) -> ManagerError:
        return ManagerError("OCT_ERR_NO_RECORD", f"there is no semaphore {self.id}, or no longer")
