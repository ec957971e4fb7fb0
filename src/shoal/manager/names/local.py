"""The name service inside this process: a Registry behind one lock, its sessions, and their waiting threads.

Called by: manager.embedded() and tests. Touches: threads only in that they wait here, each on a condition of its own watch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from shoal.handles.deadline import Deadline
from shoal.manager.errors import ManagerError
from shoal.manager.names.changes import Changes
from shoal.manager.names.events import Event, Mailbox
from shoal.manager.names.journal import Entry
from shoal.manager.names.query import Query
from shoal.manager.names.record import Record
from shoal.manager.names.registry import GONE_AT_ONCE, On, Registry, When
from shoal.manager.names.store import PLAIN, Terms
from shoal.manager.names.value import Closable

if TYPE_CHECKING:
    from shoal.handles import Handle


class LocalService:
    """A name service for the threads of this process.

    Args:
        registry: the names; a new one by default.
        journal: called with what has to survive, one call at a time and in order, before the operation returns. If it raises, so does the
            operation, whose change is in force all the same.
    """

    def __init__(self, registry: Registry | None = None, journal: Callable[[Sequence[Entry]], None] | None = None) -> None:
        self._registry = Registry() if registry is None else registry
        self._journal = journal
        self._lock = threading.Lock()
        self._watchings: dict[int, LocalWatching] = {}
        self._discarded: deque[tuple[int, int, bool]] = deque()  # a destructor may run while this thread holds the lock

    def connect(self, principal: str = "", *, privileged: bool = False) -> LocalNames:
        """A new session. See Registry.open_session()."""
        with self._lock:
            return LocalNames(self, self._registry.open_session(principal, privileged=privileged))

    @contextmanager
    def _registry_alone(self) -> Iterator[tuple[Registry, list[Changes]]]:
        """The registry, for one operation; what it leaves to be done goes into the list, and is done before this returns."""
        left: list[Changes] = []
        try:
            with self._lock:
                self._remove_discarded(left)
                try:
                    yield self._registry, left
                finally:
                    for changes in left:
                        self._deliver(changes)
        finally:
            for changes in left:
                for value in changes.released:
                    value.close()

    def _deliver(self, changes: Changes) -> None:
        try:
            if changes.journal and self._journal is not None:
                self._journal(changes.journal)
        finally:
            for _, watch, event in changes.events:
                watching = self._watchings.pop(watch, None) if event.removed else self._watchings.get(watch)
                if watching is not None:
                    watching._deliver(event)

    def _remove_discarded(self, left: list[Changes]) -> None:
        while self._discarded:
            session, watch, is_subscription = self._discarded.popleft()
            self._watchings.pop(watch, None)
            try:
                remove = self._registry.unsubscribe if is_subscription else self._registry.unwatch
                left.append(remove(session, watch))
            except ManagerError:
                pass  # it fired, or its session ended, since


class LocalWatching:
    """A watch of a LocalNames. See operations.Watching."""

    def __init__(self, service: LocalService, session: int, watch: int | None, present: list[Event], *, is_subscription: bool) -> None:
        self.installed = watch is not None
        self.present = present
        self._service = service
        self._session = session
        self._watch = watch
        self._is_subscription = is_subscription
        self._mailbox = Mailbox(service._registry.limits)
        self._arrived = threading.Condition(service._lock)
        self._session_ended = False

    def next(self, deadline: Deadline) -> Event | None:
        with self._arrived:
            while True:
                taken = self._mailbox.take()
                if taken is not None:
                    return taken[1]
                if self._session_ended:
                    raise ManagerError("LIB_ERR_NAMESERVICE_NOT_BOUND", "the name service was closed while something waited for it")
                remaining = deadline.remaining_ms()
                if remaining == 0:
                    return None
                self._arrived.wait(None if remaining is None else remaining / 1000)

    def close(self) -> None:
        if self._watch is None:
            return
        with self._service._registry_alone() as (registry, left):
            try:
                remove = registry.unsubscribe if self._is_subscription else registry.unwatch
                left.append(remove(self._session, self._watch))
            except ManagerError:
                pass  # it has ended, and its reader was told

    def discard(self) -> None:
        if self._watch is not None:
            self._service._discarded.append((self._session, self._watch, self._is_subscription))

    def _deliver(self, event: Event) -> None:
        self._mailbox.put(0, event)
        self._arrived.notify_all()

    def _end(self) -> None:
        self._session_ended = True
        self._arrived.notify_all()


class LocalNames:
    """One session of a LocalService. See operations.Operations."""

    def __init__(self, service: LocalService, session: int) -> None:
        self._service = service
        self._session = session

    def set(self, query: Query, terms: Terms = PLAIN, value: Handle | None = None) -> Record:
        copy = None if value is None else value.duplicate()
        try:
            with self._service._registry_alone() as (registry, left):
                record, changes = registry.set(self._session, query, terms, copy)
                copy = None
                left.append(changes)
                return record
        finally:
            if copy is not None:
                copy.close()

    def get(self, query: Query, *, unique: bool = False) -> Record:
        with self._service._registry_alone() as (registry, _):
            record, value = registry.get(self._session, query, unique=unique)
            return record if value is None else record.with_value(_copy(value))

    def names(self, query: Query) -> list[str]:
        with self._service._registry_alone() as (registry, _):
            return registry.names(self._session, query)

    def exists(self, query: Query) -> bool:
        with self._service._registry_alone() as (registry, _):
            return registry.exists(self._session, query)

    def remove(self, query: Query) -> None:
        with self._service._registry_alone() as (registry, left):
            left.append(registry.remove(self._session, query)[1])

    def watch(
        self,
        query: Query,
        *,
        on: Collection[On] = ("set", "delete"),
        persistent: bool = True,
        when: When = "always",
        existing: bool = False,
    ) -> LocalWatching:
        with self._service._registry_alone() as (registry, _):
            watch, present = registry.watch(self._session, query, on=on, persistent=persistent, when=when, existing=existing)
            return self._watching(watch, present, is_subscription=False)

    def subscribe(self, query: Query) -> LocalWatching:
        with self._service._registry_alone() as (registry, _):
            return self._watching(registry.subscribe(self._session, query), [], is_subscription=True)

    def publish(self, query: Query) -> int:
        with self._service._registry_alone() as (registry, left):
            reached, changes = registry.publish(self._session, query)
            left.append(changes)
            return reached

    def put_capability(self, key: str, value: Handle, *, numbered: bool = False, shared: bool = False, keep: bool = False) -> str:
        copy = value.duplicate()
        try:
            with self._service._registry_alone() as (registry, _):
                return registry.put_capability(self._session, key, copy, numbered=numbered, shared=shared, keep=keep)
        except BaseException:
            copy.close()
            raise

    def get_capability(self, key: str) -> Handle:
        with self._service._registry_alone() as (registry, _):
            return _copy(registry.get_capability(self._session, key))

    def remove_capability(self, key: str) -> None:
        with self._service._registry_alone() as (registry, left):
            left.append(registry.remove_capability(self._session, key))

    def close(self) -> None:
        with self._service._registry_alone():
            watchings = self._service._watchings
            for watch, watching in list(watchings.items()):
                if watching._session == self._session:
                    watching._end()
                    del watchings[watch]
        is_ending, failure = True, None
        while is_ending:  # others have the registry in between
            try:
                with self._service._registry_alone() as (registry, left):
                    left.append(registry.close_session(self._session, most=GONE_AT_ONCE))
                    is_ending = registry.is_ending(self._session)
            except Exception as error:  # of the journal; the session ends all the same
                failure = error
        if failure is not None:
            raise failure

    def _watching(self, watch: int | None, present: list[Event], *, is_subscription: bool) -> LocalWatching:
        watching = LocalWatching(self._service, self._session, watch, present, is_subscription=is_subscription)
        if watch is not None:
            self._service._watchings[watch] = watching
        return watching


def _copy(value: Closable) -> Handle:
    """A copy for the caller, made while the registry cannot give the original up."""
    return cast("Handle", value).duplicate()
