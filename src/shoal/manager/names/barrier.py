"""Barrier: nobody begins before all are there, and nobody goes before all are done. Over any Operations.

Each participant has a sequential record that says whether it is inside. Who comes and finds enough others, or one that is inside, goes in
and says so, which wakes the others: they watch from before they are counted, so nobody misses it, also if the one who opened dies at once.
Who leaves waits for the records of those who were there, not for whoever has come since: the same name can be used round after round. A
participant whose session ends is no longer there: nobody waits for the dead, and it takes another in its place to open.
Source: spec 5.10, whose wake-up record and its weak points this replaces.
"""

from __future__ import annotations

from typing import Self

from shoal.handles.deadline import Deadline
from shoal.manager.errors import ManagerError, ManagerTimeoutError
from shoal.manager.names.operations import Operations
from shoal.manager.names.query import Query
from shoal.manager.names.record import check_name
from shoal.manager.names.store import Terms


class Barrier:
    """A double barrier for a number of participants. Made by NameService.barrier(); each participant makes its own, with the same name.

    More than `parties` may take part: who comes while it is open goes straight in. A `with` block enters and leaves.
    """

    def __init__(self, operations: Operations, name: str, parties: int) -> None:
        check_name(name, "the name of a barrier")
        if isinstance(parties, bool) or not isinstance(parties, int) or parties < 1:
            raise ValueError(f"a barrier takes a number of parties from 1, not {parties!r}")
        self._operations = operations
        self._name = name
        self._parties = parties
        self._members = Query.where(None, {"barrier": name})
        self._inside = Query.where(None, {"barrier": name, "open": True})
        self._mine: str | None = None

    def enter(self, timeout: float | str | None = None) -> None:
        """Wait until enough participants are here.

        Args:
            timeout: seconds or text such as "30s"; None waits as long as it takes.
        Raises:
            ManagerTimeoutError: not in that time. This participant is no longer counted.
            RuntimeError: it has entered through this object already.
            ManagerError: LIB_ERR_NAMESERVICE_NOT_BOUND; OCT_ERR_LIMIT, OCT_ERR_MAX_SUBSCRIPTIONS.
        """
        if self._mine is not None:
            raise RuntimeError(f"the barrier {self._name} was entered through this object already; each participant makes its own")
        deadline = Deadline(timeout)
        opened = self._operations.watch(self._inside, on=["set"], persistent=False, when="absent")
        try:
            record = Query.where(f"{self._name}_", {"barrier": self._name, "open": False})
            self._mine = self._operations.set(record, Terms(mode="sequential")).name
            if opened.installed and len(self._operations.names(self._members)) < self._parties and opened.next(deadline) is None:
                there = len(self._operations.names(self._members))
                what = f"{there} of {self._parties} were at the barrier {self._name} in the time given"
                raise ManagerTimeoutError("OCT_ERR_TIMEOUT", what)
            self._operations.set(Query.where(self._mine, {"barrier": self._name, "open": True}))
        except BaseException:
            self._withdraw()
            raise
        finally:
            opened.discard()

    def leave(self, timeout: float | str | None = None) -> None:
        """Say that this participant is done, and wait until all are.

        Args:
            timeout: seconds or text such as "30s"; None waits as long as it takes.
        Raises:
            ManagerTimeoutError: not in that time. This participant has left all the same.
            RuntimeError: it has not entered through this object.
            ManagerError: LIB_ERR_NAMESERVICE_NOT_BOUND; OCT_ERR_MAX_SUBSCRIPTIONS.
        """
        if self._mine is None:
            raise RuntimeError(f"the barrier {self._name} was not entered through this object")
        deadline = Deadline(timeout)
        others = [name for name in self._operations.names(self._members) if name != self._mine]  # before others can come back
        self._withdraw()
        for name in others:
            gone = self._operations.watch(Query(name), on=["delete"], persistent=False, when="present")
            try:
                if gone.installed and gone.next(deadline) is None:
                    raise ManagerTimeoutError("OCT_ERR_TIMEOUT", f"not all had left the barrier {self._name} in the time given")
            finally:
                gone.discard()

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()

    def _withdraw(self) -> None:
        mine, self._mine = self._mine, None
        if mine is None:
            return
        try:
            self._operations.remove(Query(mine))
        except ManagerError as error:
            if error.code not in ("OCT_ERR_NO_RECORD", "LIB_ERR_NAMESERVICE_NOT_BOUND"):
                raise
