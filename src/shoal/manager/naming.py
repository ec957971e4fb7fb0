"""The name service of a manager: a Registry, of which each connection is a session, and what of it survives in the store."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from shoal.manager import wire
from shoal.manager.errors import ManagerError
from shoal.manager.names.changes import Changes
from shoal.manager.names.events import Event
from shoal.manager.names.journal import Entry, RecordGone, RecordKept, SequenceFloor, SequenceGone, SequenceKept
from shoal.manager.names.parse import parse
from shoal.manager.names.registry import GONE_AT_ONCE, On, Registry, When
from shoal.manager.names.store import Lifetime, Mode, Terms
from shoal.manager.store import Store

_LOG: Final = logging.getLogger("shoal.manager")
_KINDS: Final[dict[str, type]] = {kind.__name__: kind for kind in (RecordKept, RecordGone, SequenceKept, SequenceGone, SequenceFloor)}


class Client(Protocol):
    """A client, as the name service sees it.

    Attributes:
        principal: whom its records belong to. is_privileged: it holds the manager capability.
    """

    principal: str

    @property
    def is_privileged(self) -> bool: ...

    def answer(self, rid: int, value: Any = None, fds: Sequence[int] = ()) -> None: ...

    def tell(self, watch: int, event: Event) -> None: ...

    @property
    def is_deaf(self) -> bool:
        """Whether it has to read before it is given another watch."""
        ...


class Kept:
    """A descriptor that a record carries."""

    __slots__ = ("fd", "kind", "rights")

    def __init__(self, fd: int, kind: str, rights: int) -> None:
        self.fd, self.kind, self.rights = fd, kind, rights

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Naming:
    """For the loop's thread."""

    def __init__(self, store: Store, later: Callable[[Callable[[], None]], object]) -> None:
        """
        Args:
            later: has something called at another turn of the loop.
        Raises:
            ManagerError: what is to be restored cannot be read.
        """
        self._store, self._later = store, later
        self._registry = Registry()
        self._sessions: dict[Client, int] = {}
        self._clients: dict[int, Client] = {}
        for complaint in self._registry.restore(_entry(text) for text in store.names()):
            _LOG.warning("%s", complaint)
        self._own = self._registry.open_session("the manager", privileged=True)

    # --- the manager's own names ----------------------------------------------------------------------

    def announce(self, record: str) -> None:
        """Set a record of the manager's own, which ends with it."""
        _, changes = self._registry.set(self._own, parse(record))
        self._carry_out(changes)

    def announce_new(self, records: Sequence[str]) -> list[str]:
        """Set records, unless there is one with the name of the first. The names of those that were set: all or none.

        Raises:
            ManagerError: they cannot be.
        """
        done: list[str] = []
        try:
            for record in records:
                name = record.partition(" ")[0]
                if not done and self._registry.exists(self._own, parse(name)):
                    break
                self.announce(record)
                done.append(name)
        except ManagerError:
            for name in done:
                self.withdraw(name)
            raise
        return done

    def withdraw(self, name: str) -> None:
        """Remove one."""
        try:
            _, changes = self._registry.remove(self._own, parse(name))
        except ManagerError:
            return
        self._carry_out(changes)

    # --- clients ----------------------------------------------------------------------------------------

    def handle(self, client: Client, request: wire.NameRequest, fds: list[int]) -> None:
        """Carry out a request, which takes over its descriptors.

        Raises:
            ManagerError: it is refused.
        """
        try:
            _HANDLERS[type(request)](self, client, self._session(client), request, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def left(self, client: Client) -> None:
        """A client has gone, and its session with it."""
        session = self._sessions.pop(client, None)
        if session is not None:
            del self._clients[session]
            self._end(session)

    def _end(self, session: int) -> None:
        """End a session, so much of it at a time that the others are served meanwhile."""
        try:
            self._carry_out(self._registry.close_session(session, most=GONE_AT_ONCE))
        except ManagerError as error:
            _LOG.warning("%s", error)  # nobody waits for the answer
        if self._registry.is_ending(session):
            self._later(functools.partial(self._end, session))

    def _session(self, client: Client) -> int:
        session = self._sessions.get(client)
        if session is None:
            session = self._registry.open_session(client.principal, privileged=client.is_privileged)
            self._sessions[client] = session
            self._clients[session] = client
        return session

    def _carry_out(self, changes: Changes, answer: Callable[[], None] | None = None) -> None:
        """What an operation leaves to be done: written first, then answered, then told to others."""
        try:
            if changes.journal:
                self._store.keep_names((entry.key, None if entry.deletes else _text(entry)) for entry in changes.journal)
            if answer is not None:
                answer()
        finally:
            for session, watch, event in changes.events:
                client = self._clients.get(session)
                if client is not None:
                    client.tell(watch, event)
            for value in changes.released:
                value.close()

    def _set(self, client: Client, session: int, request: wire.NameSet, fds: list[int]) -> None:
        terms = Terms(cast("Mode", request.mode), cast("Lifetime", request.lifetime), request.shared, request.under)
        value = Kept(fds[0], request.kind, request.rights) if fds else None
        record, changes = self._registry.set(session, parse(request.query), terms, value)
        del fds[:1]  # the registry's now
        self._carry_out(changes, lambda: client.answer(request.rid, record.text))

    def _get(self, client: Client, session: int, request: wire.NameGet, fds: list[int]) -> None:
        record, value = self._registry.get(session, parse(request.query), unique=request.unique)
        if isinstance(value, Kept):
            client.answer(request.rid, [record.text, value.kind, value.rights], (value.fd,))
        else:
            client.answer(request.rid, [record.text, "", 0])

    def _list(self, client: Client, session: int, request: wire.NameList, fds: list[int]) -> None:
        client.answer(request.rid, self._registry.names(session, parse(request.query)))

    def _exists(self, client: Client, session: int, request: wire.NameExists, fds: list[int]) -> None:
        client.answer(request.rid, self._registry.exists(session, parse(request.query)))

    def _remove(self, client: Client, session: int, request: wire.NameRemove, fds: list[int]) -> None:
        _, changes = self._registry.remove(session, parse(request.query))
        self._carry_out(changes, lambda: client.answer(request.rid))

    def _watch(self, client: Client, session: int, request: wire.NameWatch, fds: list[int]) -> None:
        _check_reads(client)
        on = cast("list[On]", request.on)
        when = cast("When", request.when)
        query = parse(request.query)
        watch, present = self._registry.watch(session, query, on=on, persistent=request.persistent, when=when, existing=request.existing)
        client.answer(request.rid, [watch, [event_fields(event) for event in present]])

    def _subscribe(self, client: Client, session: int, request: wire.NameSubscribe, fds: list[int]) -> None:
        _check_reads(client)
        client.answer(request.rid, self._registry.subscribe(session, parse(request.query)))

    def _unwatch(self, client: Client, session: int, request: wire.NameUnwatch, fds: list[int]) -> None:
        remove = self._registry.unsubscribe if request.is_subscription else self._registry.unwatch
        self._carry_out(remove(session, request.watch), lambda: client.answer(request.rid))

    def _publish(self, client: Client, session: int, request: wire.NamePublish, fds: list[int]) -> None:
        reached, changes = self._registry.publish(session, parse(request.query))
        self._carry_out(changes, lambda: client.answer(request.rid, reached))

    def _put_capability(self, client: Client, session: int, request: wire.CapabilityPut, fds: list[int]) -> None:
        if not fds:
            raise ManagerError("OCT_ERR_INVALID_FORMAT", "a capability is stored with a descriptor, and none came")
        value = Kept(fds[0], request.kind, request.rights)
        key = self._registry.put_capability(
            session, request.key, value, numbered=request.numbered, shared=request.shared, keep=request.keep
        )
        del fds[:1]
        client.answer(request.rid, key)

    def _get_capability(self, client: Client, session: int, request: wire.CapabilityGet, fds: list[int]) -> None:
        value = self._registry.get_capability(session, request.key)
        assert isinstance(value, Kept)
        client.answer(request.rid, [value.kind, value.rights], (value.fd,))

    def _remove_capability(self, client: Client, session: int, request: wire.CapabilityRemove, fds: list[int]) -> None:
        self._carry_out(self._registry.remove_capability(session, request.key), lambda: client.answer(request.rid))


_HANDLERS: Final[dict[type, Callable[[Naming, Client, int, Any, list[int]], None]]] = {
    wire.NameSet: Naming._set,
    wire.NameGet: Naming._get,
    wire.NameList: Naming._list,
    wire.NameExists: Naming._exists,
    wire.NameRemove: Naming._remove,
    wire.NameWatch: Naming._watch,
    wire.NameSubscribe: Naming._subscribe,
    wire.NameUnwatch: Naming._unwatch,
    wire.NamePublish: Naming._publish,
    wire.CapabilityPut: Naming._put_capability,
    wire.CapabilityGet: Naming._get_capability,
    wire.CapabilityRemove: Naming._remove_capability,
}


def event_fields(event: Event) -> tuple[str, str | None, bool, bool]:
    """An event as it is sent."""
    return event.kind, None if event.record is None else event.record.text, event.has_value, event.removed


def _check_reads(client: Client) -> None:
    if client.is_deaf:
        raise ManagerError("OCT_ERR_LIMIT", "too many events wait for this client: read those of the watches there are before another")


def _text(entry: Entry) -> str:
    return json.dumps([type(entry).__name__, dataclasses.asdict(entry)])


def _entry(text: str) -> Entry:
    kind, fields = json.loads(text)
    entry: Entry = _KINDS[kind](**fields)
    return entry
