"""The name service of a manager elsewhere, as one session of it: the Operations that a NameService is made of, over a connection.

The session is the connection: when that is lost, what it has set and what it watches has ended, and who waits is told so. The next
operation begins a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from shoal.handles.deadline import Deadline
from shoal.handles.received import received
from shoal.manager import wire
from shoal.manager.connection import Connection, ConnectionLost
from shoal.manager.errors import ManagerError
from shoal.manager.names.events import Event, Kind
from shoal.manager.names.parse import parse
from shoal.manager.names.query import Query
from shoal.manager.names.record import Record
from shoal.manager.names.registry import On, When
from shoal.manager.names.store import PLAIN, Terms

if TYPE_CHECKING:
    from shoal.handles import Handle


class RemoteWatching:
    """A watch of a RemoteNames. See operations.Watching."""

    def __init__(self, connection: Connection, watch: int | None, present: list[Event], *, is_subscription: bool) -> None:
        self.installed = watch is not None
        self.present = present
        self._connection = connection
        self._watch = watch
        self._is_subscription = is_subscription

    def next(self, deadline: Deadline) -> Event | None:
        if self._watch is None:
            return None
        left_ms = deadline.remaining_ms()
        last = None if left_ms is None else time.monotonic() + left_ms / 1000
        try:
            told = self._connection.next_event(self._watch, last)
        except ConnectionLost as error:
            raise _not_bound(error) from error
        return None if told is None else _event((told.kind, told.record, told.has_value, told.removed))

    def close(self) -> None:
        if self._watch is not None:
            with suppress(ManagerError):  # it has ended, and its reader was told
                self._connection.call(wire.NameUnwatch(self._connection.number(), self._watch, self._is_subscription))

    def discard(self) -> None:
        if self._watch is not None:
            self._connection.discard(self._watch, lambda rid: wire.NameUnwatch(rid, self._watch or 0, self._is_subscription))


class RemoteNames:
    """One session. See operations.Operations.

    Args:
        connected: gives the connection, a new one where the last is lost.
    """

    def __init__(self, connected: Callable[[], Connection]) -> None:
        self._connected = connected

    def set(self, query: Query, terms: Terms = PLAIN, value: Handle | None = None) -> Record:
        kind, rights, fds = ("", 0, ()) if value is None else (value.kind, int(value.rights), (value.fileno(),))
        told, _ = self._call(
            lambda rid: wire.NameSet(rid, query.text, terms.mode, terms.lifetime, terms.shared, terms.under, kind, rights), fds
        )
        return _record(told)

    def get(self, query: Query, *, unique: bool = False) -> Record:
        (text, kind, rights), fds = self._call(lambda rid: wire.NameGet(rid, query.text, unique))
        record = _record(text)
        return record.with_value(received(kind, fds[0], rights)) if fds else record

    def names(self, query: Query) -> list[str]:
        return list(self._call(lambda rid: wire.NameList(rid, query.text))[0])

    def exists(self, query: Query) -> bool:
        return bool(self._call(lambda rid: wire.NameExists(rid, query.text))[0])

    def remove(self, query: Query) -> None:
        self._call(lambda rid: wire.NameRemove(rid, query.text))

    def watch(
        self,
        query: Query,
        *,
        on: Collection[On] = ("set", "delete"),
        persistent: bool = True,
        when: When = "always",
        existing: bool = False,
    ) -> RemoteWatching:
        connection = self._connected()
        number = connection.number()
        request = wire.NameWatch(number, query.text, list(on), persistent, when, existing)
        (watch, present), _ = self._on(connection, request)
        return RemoteWatching(connection, watch, [_event(fields) for fields in present], is_subscription=False)

    def subscribe(self, query: Query) -> RemoteWatching:
        connection = self._connected()
        watch, _ = self._on(connection, wire.NameSubscribe(connection.number(), query.text))
        return RemoteWatching(connection, watch, [], is_subscription=True)

    def publish(self, query: Query) -> int:
        return int(self._call(lambda rid: wire.NamePublish(rid, query.text))[0])

    def put_capability(self, key: str, value: Handle, *, numbered: bool = False, shared: bool = False, keep: bool = False) -> str:
        kind, rights = value.kind, int(value.rights)
        told, _ = self._call(lambda rid: wire.CapabilityPut(rid, key, kind, rights, numbered, shared, keep), (value.fileno(),))
        return str(told)

    def get_capability(self, key: str) -> Handle:
        (kind, rights), (fd,) = self._call(lambda rid: wire.CapabilityGet(rid, key))
        return received(kind, fd, rights)

    def remove_capability(self, key: str) -> None:
        self._call(lambda rid: wire.CapabilityRemove(rid, key))

    def close(self) -> None:
        """The session ends with the connection, which is its manager's."""

    def _call(self, make: Callable[[int], wire.Request], fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        connection = self._connected()
        return self._on(connection, make(connection.number()), fds)

    def _on(self, connection: Connection, request: wire.Request, fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        try:
            return connection.call(request, fds)
        except ConnectionLost as error:
            raise _not_bound(error) from error


def _record(text: str) -> Record:
    name, attributes, _ = parse(text).to_store()
    return Record(name, attributes)


def _event(fields: Sequence[Any]) -> Event:
    kind, record, has_value, removed = fields
    return Event(cast("Kind", kind), None if record is None else _record(record), has_value, removed)


def _not_bound(error: ConnectionLost) -> ManagerError:
    what = f"{error.message}; what this session has set and watched has ended with it"
    return ManagerError("LIB_ERR_NAMESERVICE_NOT_BOUND", what)
