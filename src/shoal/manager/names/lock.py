"""Lock: one holder at a time among all who know its name. Over any Operations. Source: spec 5.8."""

from __future__ import annotations

from shoal.handles.deadline import Deadline
from shoal.manager.errors import ManagerError, ManagerTimeoutError
from shoal.manager.names.operations import Operations
from shoal.manager.names.record import check_name
from shoal.manager.names.turn import Line


class Lock:
    """A named lock, held by one at a time; who waits gets it in the order of asking. Made by NameService.lock().

    It is let go when its session ends, however that happens. It cannot be taken twice, also not by who holds it; and one Lock object is
    for one holder, so threads that compete make one each. Its records are `<name>_<number>`: `number` is higher with each holder, so a
    service that is told it can refuse a holder that was thought dead. A process forked from the holder's holds nothing by its copy.

    Args:
        timeout: how long entering a `with` block may wait; None as long as it takes.
    """

    def __init__(self, operations: Operations, name: str, timeout: float | str | None = None) -> None:
        check_name(name, "the name of a lock")
        self._line = Line(operations, f"{name}_", "lock", name, f"the lock {name}")
        self._name = name
        self._timeout = timeout
        self._ticket: str | None = None

    @property
    def number(self) -> int | None:
        """The number of this holder, higher than that of all before it; None while not held."""
        return None if self._ticket is None else self._line.number(self._ticket)

    def acquire(self, timeout: float | str | None = None) -> None:
        """Wait for the lock and take it.

        Args:
            timeout: seconds or text such as "30s"; None waits as long as it takes.
        Raises:
            ManagerTimeoutError: not in that time.
            RuntimeError: it is held through this object.
            ManagerError: LIB_ERR_NAMESERVICE_NOT_BOUND; OCT_ERR_LIMIT or OCT_ERR_MAX_SUBSCRIPTIONS, too many wait.
        """
        if self._ticket is not None:
            raise RuntimeError(f"the lock {self._name} is held through this object already; another holder makes its own with names.lock()")
        self._ticket = self._line.wait(Deadline(timeout), self._lost)

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it or waits for it. Whether that was so.

        Raises:
            RuntimeError, ManagerError: as acquire().
        """
        try:
            self.acquire(0)
        except ManagerTimeoutError:
            return False
        return True

    def release(self) -> None:
        """Let the lock go to the next in line.

        Raises:
            RuntimeError: it is not held through this object.
            ManagerError: OCT_ERR_NO_RECORD, it was lost meanwhile: its record was removed, or the session ended.
        """
        if self._ticket is None:
            raise RuntimeError(f"the lock {self._name} is not held through this object")
        ticket, self._ticket = self._ticket, None
        if not self._line.leave(ticket):
            raise self._lost()

    def __enter__(self) -> None:
        self.acquire(self._timeout)

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _lost(self) -> ManagerError:
        return ManagerError("OCT_ERR_NO_RECORD", f"the lock {self._name} was lost: its record is gone, so another may hold it by now")
