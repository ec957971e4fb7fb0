"""Operations: what a NameService needs of whoever keeps the names, in this process or at the other end of a socket.

Implemented by: local.py, and the daemon's client. Used by: everything above it (service.py, watch.py, turn.py, lock.py, barrier.py,
semaphore.py), which therefore behaves alike over any transport.
An implementation is one session, may be used from any thread, and gives each operation the meaning and the errors of the method of the same
name of the Registry. Descriptors are lent to it and given by it: it takes a copy of what it is passed, and the caller owns what it returns.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from shoal.handles.deadline import Deadline
from shoal.manager.names.events import Event
from shoal.manager.names.query import Query
from shoal.manager.names.record import Record
from shoal.manager.names.registry import On, When
from shoal.manager.names.store import PLAIN, Terms

if TYPE_CHECKING:
    from shoal.handles import Handle


class Watching(Protocol):
    """A watch or subscription, and the events that wait for its reader.

    Attributes:
        installed: False when `when` kept it from being installed; no event comes then.
        present: matching records there were at that moment, as events.
    """

    installed: bool
    present: list[Event]

    def next(self, deadline: Deadline) -> Event | None:
        """The oldest event not yet taken, waiting for one; None when the time is up.

        Raises:
            ManagerError: LIB_ERR_NAMESERVICE_NOT_BOUND, the session ended.
        """

    def close(self) -> None:
        """Remove it. Events that came before are still there, and one more comes, with `removed`. Closing what has ended is fine."""

    def discard(self) -> None:
        """Remove it, and its events with it: nobody reads them. Never waits and never raises, so that destructors may call it."""


class Operations(Protocol):
    """One session of a name service."""

    def set(self, query: Query, terms: Terms = PLAIN, value: Handle | None = None) -> Record: ...

    def get(self, query: Query, *, unique: bool = False) -> Record: ...

    def names(self, query: Query) -> list[str]: ...

    def exists(self, query: Query) -> bool: ...

    def remove(self, query: Query) -> None: ...

    def watch(
        self,
        query: Query,
        *,
        on: Collection[On] = ("set", "delete"),
        persistent: bool = True,
        when: When = "always",
        existing: bool = False,
    ) -> Watching: ...

    def subscribe(self, query: Query) -> Watching: ...

    def publish(self, query: Query) -> int: ...

    def put_capability(self, key: str, value: Handle, *, numbered: bool = False, shared: bool = False, keep: bool = False) -> str: ...

    def get_capability(self, key: str) -> Handle: ...

    def remove_capability(self, key: str) -> None: ...

    def close(self) -> None:
        """End the session. Threads that wait for it get LIB_ERR_NAMESERVICE_NOT_BOUND."""
