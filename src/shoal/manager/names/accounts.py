"""The accounts: what all sessions, each session and each principal keep, and the refusal of what would pass a limit.

Called by: store.py and registry.py. Touches: nothing. A record or descriptor is on two accounts: that of its session, or of its principal
where it outlives the session; and that of all together.
"""

from __future__ import annotations

from typing import Final

from shoal.manager.errors import ManagerError
from shoal.manager.names.limits import Limits

LIMIT: Final = "OCT_ERR_LIMIT"


class Account:
    """What one session keeps, or one principal beyond its sessions, or all together."""

    __slots__ = ("memory", "most_memory", "most_records", "most_values", "records", "values", "who")

    def __init__(self, who: str, records: int, memory: int, values: int) -> None:
        self.who = who
        self.records = self.memory = self.values = 0
        self.most_records, self.most_memory, self.most_values = records, memory, values

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on it."""
        return not (self.records or self.values)

    def add(self, records: int, memory: int, values: int) -> None:
        """Count more, or less."""
        self.records += records
        self.memory += memory
        self.values += values

    def refuse(self, records: int, memory: int, values: int) -> None:
        """Raise unless that much more may be kept.

        Raises:
            ManagerError: OCT_ERR_LIMIT.
        """
        for more, have, most, what in (
            (records, self.records, self.most_records, "records"),
            (memory, self.memory, self.most_memory, "bytes of records"),
            (values, self.values, self.most_values, "descriptors"),
        ):
            if more > 0 and have + more > most:
                raise ManagerError(LIMIT, f"{self.who} may keep {most} {what}; remove some first")


class Accounts:
    """All accounts."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all = Account("all sessions together", limits.records, limits.memory, limits.values)
        self._sessions: dict[int, Account] = {}
        self._principals: dict[str, Account] = {}

    def open(self, session: int) -> None:
        """Begin an account for a session."""
        limits = self._limits
        self._sessions[session] = Account("a session", limits.records_per_session, limits.memory_per_session, limits.values_per_session)

    def close(self, session: int) -> None:
        """End it. It is empty by then."""
        account = self._sessions.pop(session)
        assert account.is_empty

    def refuse(self, session: int | None, principal: str, size: tuple[int, int, int], instead_of: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Raise unless records, bytes and descriptors of this size may be kept.

        Args:
            session: that they end with, or None.
            instead_of: what goes from the same account, and so makes room.
        Raises:
            ManagerError: OCT_ERR_LIMIT.
        """
        more = [new - old for new, old in zip(size, instead_of, strict=True)]
        self._account(session, principal).refuse(*more)
        self._all.refuse(*more)

    def add(self, session: int | None, principal: str, size: tuple[int, int, int], sign: int = 1) -> None:
        """Count what is kept now, or with the sign -1 what is no longer."""
        records, memory, values = size
        account = self._account(session, principal)
        for each in (account, self._all):
            each.add(sign * records, sign * memory, sign * values)
        if session is None:
            if account.is_empty:
                self._principals.pop(principal, None)
            else:
                self._principals[principal] = account

    def _account(self, session: int | None, principal: str) -> Account:
        if session is not None:
            return self._sessions[session]
        limits = self._limits
        account = self._principals.get(principal)
        if account is None:
            who = "what outlives its sessions: a capability"
            account = Account(who, limits.records_per_principal, limits.memory_per_session, limits.values_per_session)
        return account
