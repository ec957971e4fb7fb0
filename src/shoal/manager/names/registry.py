"""The name service as a state machine: records, watches, subscriptions, capabilities, sessions.

Called by: local.py and the daemon, one operation at a time. Touches: nothing: no thread, no clock, no file.
Each operation happens whole or not at all. One that changes something returns, as data, what has to be done about it (`Changes`); one that
raised has changed nothing.
Order: what a session is told, it is told in the order in which it happened; the events of one change come in the order in which the watches
were installed.
Source: usr/skb/octopus and spec 5; the open corners 20 to 24 of its section 11.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Final, Literal

from shoal.manager.errors import ManagerError
from shoal.manager.names.accounts import Accounts
from shoal.manager.names.capabilities import CapabilityStore, Held
from shoal.manager.names.changes import Changes
from shoal.manager.names.events import ENDED, Event
from shoal.manager.names.index import PRIVATE, Stored
from shoal.manager.names.journal import Entry
from shoal.manager.names.limits import Limits
from shoal.manager.names.query import Query
from shoal.manager.names.record import Record, shown
from shoal.manager.names.reserved import check_secret
from shoal.manager.names.sessions import Session
from shoal.manager.names.store import PLAIN, RecordStore, Terms, refuse_name
from shoal.manager.names.value import Closable
from shoal.manager.names.watches import Installed, WatchTable, too_many, weight

When = Literal["always", "present", "absent"]
"""When a watch is installed: always, or only if something matches at this moment, or only if nothing does."""

On = Literal["set", "delete"]


GONE_AT_ONCE: Final = 200
"""How many records of a session that ends should go before it is another's turn: a few milliseconds."""


class Registry:
    """All names. Not to be called from two threads at once."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self.limits = limits
        self._accounts = Accounts(limits)
        self._store = RecordStore(limits, self._accounts)
        self._watches = WatchTable()
        self._subscriptions = WatchTable()
        self._capabilities = CapabilityStore()
        self._sessions: dict[int, Session] = {}
        self._last_session = 0
        self._last_watch = 0

    # --- sessions -------------------------------------------------------------------------------------

    def open_session(self, principal: str = "", *, privileged: bool = False) -> int:
        """The number of a new session, from 1, never used again.

        Args:
            principal: the capability it came with. Records belong to it.
            privileged: whether that is the manager's: nothing is refused then but what passes a limit.
        """
        self._last_session += 1
        self._sessions[self._last_session] = Session(self._last_session, principal, privileged)
        self._accounts.open(self._last_session)
        return self._last_session

    def close_session(self, session: int, *, most: int | None = None) -> Changes:
        """End a session: its watches, its records and what it put into the capability store. Closing one that ended is fine.

        Args:
            most: how many records may go in this step, so that a session with very many does not hold up the others. Go on while
                is_ending().
        """
        changes = Changes()
        who = self._sessions.get(session)
        if who is None:
            return changes
        who.is_ending = True
        for id in list(who.watches):
            self._forget(id)
        for key in list(who.capabilities):
            self._take_capability(key, who, changes)
        for name in list(itertools.islice(who.records, most)):
            stored = self._store.index.get(name)
            if stored is not None and stored.session == session:  # it may have gone with one it was under
                self._drop(stored, changes)
        if not who.records:
            del self._sessions[session]
            self._accounts.close(session)
        return changes

    def is_ending(self, session: int) -> bool:
        """Whether records are left of a session that is being closed. It can do nothing any more."""
        return session in self._sessions and self._sessions[session].is_ending

    # --- records --------------------------------------------------------------------------------------

    def set(self, session: int, query: Query, terms: Terms = PLAIN, value: Closable | None = None) -> tuple[Record, Changes]:
        """Store a record, in the place of one of the same name if there is one.

        Args:
            query: attributes written `name: value` are stored. Any other constraint is tested on the record that is replaced.
            value: a descriptor that comes with it. Owned by the registry from here on, unless this raises.
        Raises:
            ManagerError: OCT_ERR_NO_RECORD_NAME, the name is no identifier; OCT_ERR_CONSTRAINT_MISMATCH, a constraint does not hold, or
                the mode is "new" and there is one; OCT_ERR_NOT_OWNER, another principal's; PROC_MGMT_ERR_NOT_MONITOR, a reserved name;
                OCT_ERR_NO_RECORD, nothing of the name `under`; OCT_ERR_LIMIT; OCT_ERR_INVALID_FORMAT, terms that exclude each other;
                LIB_ERR_NAMESERVICE_NOT_BOUND, the session ended.
        """
        who = self._session(session)
        changes = Changes()
        replaced = self._store.index.get(query.name) if isinstance(query.name, str) else None
        stored = self._store.set(who, query, terms, value, changes)
        if replaced is not None and replaced.name == stored.name:
            self._disown(replaced)
        if stored.session is not None:
            who.records[stored.name] = None
        self._tell(self._watches, Event("set", stored.record, value is not None), stored.private, changes)
        return stored.record, changes

    def get(self, session: int, query: Query, *, unique: bool = False) -> tuple[Record, Closable | None]:
        """The first match in natural order of the names, and the descriptor it carries, which stays the registry's.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD; OCT_ERR_NOT_UNIQUE, `unique` and there are several; OCT_ERR_ENGINE_FAIL, the look-up would take
                too long; LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        self._reads(session, query)
        if unique:
            found = self._store.index.find(query)
            if len(found) > 1:
                names = ", ".join(stored.name for stored in found[:3])
                raise ManagerError(
                    "OCT_ERR_NOT_UNIQUE", f"{len(found)} records match {shown(query.text)}: {names}{', ...' if found[3:] else ''}"
                )
            first = found[0] if found else None
        else:
            first = self._store.index.first(query)
        if first is None:
            raise _nothing(query)
        return first.record, first.value

    def find(self, session: int, query: Query) -> list[Record]:
        """All matches, in natural order of their names.

        Raises:
            ManagerError: OCT_ERR_ENGINE_FAIL, LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        self._reads(session, query)
        return [stored.record for stored in self._store.index.find(query)]

    def names(self, session: int, query: Query) -> list[str]:
        """The names of all matches, in natural order. An empty list is octopus' OCT_ERR_NO_RECORD.

        Raises:
            ManagerError: OCT_ERR_ENGINE_FAIL, LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        return [record.name for record in self.find(session, query)]

    def exists(self, session: int, query: Query) -> bool:
        """Whether anything matches.

        Raises:
            ManagerError: OCT_ERR_ENGINE_FAIL, LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        self._reads(session, query)
        return self._store.index.first(query) is not None

    def remove(self, session: int, query: Query) -> tuple[Record, Changes]:
        """Remove the record of this name, if its constraints hold, and all that is under it.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD_NAME, the name is no identifier; OCT_ERR_NO_RECORD; OCT_ERR_NOT_OWNER;
                PROC_MGMT_ERR_NOT_MONITOR; LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        who = self._session(session)
        name = query.plain_name("remove a record")
        stored = self._store.index.get(name)
        refuse_name(who, name, stored)
        if stored is None or not query.attributes_match(stored.record.attributes):
            raise _nothing(query)
        changes = Changes()
        self._drop(stored, changes)
        return stored.record, changes

    # --- watches and subscriptions --------------------------------------------------------------------

    def watch(
        self,
        session: int,
        query: Query,
        *,
        on: Collection[On] = ("set", "delete"),
        persistent: bool = True,
        when: When = "always",
        existing: bool = False,
    ) -> tuple[int | None, list[Event]]:
        """Tell a session when matching records are set or deleted, from this moment on.

        Returns the number of the watch, or None if `when` kept it from being installed; and matching records there are at this moment, as
        if
        they had just been set: all with `existing`, else one for a `when` that asks whether there is one.

        Args:
            persistent: False ends the watch with its first event, which has `removed` set.
        Raises:
            ManagerError: OCT_ERR_MAX_SUBSCRIPTIONS; OCT_ERR_INVALID_FORMAT, `on` or `when` is none; OCT_ERR_ENGINE_FAIL;
                LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        self._reads(session, query)
        if not on or not set(on) <= {"set", "delete"} or when not in ("always", "present", "absent"):
            raise ManagerError(
                "OCT_ERR_INVALID_FORMAT", "a watch is on 'set', on 'delete' or on both, and when 'always', 'present' or 'absent'"
            )
        found: list[Stored] = []
        if existing:
            found = self._store.index.find(query)
        elif when != "always":
            first = self._store.index.first(query)
            found = [] if first is None else [first]
        present = [Event("set", stored.record, stored.value is not None) for stored in found]
        if when != "always" and bool(present) != (when == "present"):
            return None, present
        return self._install(self._watches, session, query, frozenset(on), persistent), present

    def unwatch(self, session: int, watch: int) -> Changes:
        """Remove a watch. Its session is told, with an event that has no record.

        Raises:
            ManagerError: OCT_ERR_INVALID_ID, no watch of this session; LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        return self._uninstall(self._watches, session, watch, "OCT_ERR_INVALID_ID")

    def subscribe(self, session: int, query: Query) -> int:
        """Tell a session what is published and matches. Returns the number of the subscription.

        Raises:
            ManagerError: OCT_ERR_MAX_SUBSCRIPTIONS, LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        self._reads(session, query)
        return self._install(self._subscriptions, session, query, frozenset({"publish"}), True)

    def unsubscribe(self, session: int, subscription: int) -> Changes:
        """Remove a subscription. Its session is told, with an event that has no record.

        Raises:
            ManagerError: OCT_ERR_NO_SUBSCRIPTION, none of this session; LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        return self._uninstall(self._subscriptions, session, subscription, "OCT_ERR_NO_SUBSCRIPTION")

    def publish(self, session: int, query: Query) -> tuple[int, Changes]:
        """Tell every matching subscription of a record, which is not stored. Returns how many those are; none is no error.

        Constraints that are no attributes are ignored, as in the source.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD_NAME, the name is no identifier; OCT_ERR_PARSER_FAIL; LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        self._session(session)
        name, attributes, _ = query.to_store()
        check_secret(name)
        changes = Changes()
        self._tell(self._subscriptions, Event("publish", Record(name, attributes)), name.startswith(PRIVATE), changes)
        return len(changes.events), changes

    # --- the capability store -------------------------------------------------------------------------

    def put_capability(
        self, session: int, key: str, value: Closable, *, numbered: bool = False, shared: bool = False, keep: bool = False
    ) -> str:
        """Keep a descriptor under a key. Returns the key.

        Args:
            value: owned by the registry from here on, unless this raises.
            numbered: append a number to the key, so that it is free.
            shared: whether other principals may read it.
            keep: whether it stays when the session ends. It never outlives the manager.
        Raises:
            ManagerError: OCT_ERR_CAP_OVERWRITE, the key is taken; OCT_ERR_LIMIT; OCT_ERR_QUERY_SIZE, OCT_ERR_PARSER_FAIL, the key;
                LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        who = self._session(session)
        held = Held(value, None if keep else session, who.principal, shared)
        self._accounts.refuse(held.session, held.principal, (0, 0, 1))
        if numbered:
            key = self._capabilities.numbered(key)
        self._capabilities.put(key, held)
        self._accounts.add(held.session, held.principal, (0, 0, 1))
        if not keep:
            who.capabilities[key] = None
        return key

    def get_capability(self, session: int, key: str) -> Closable:
        """The descriptor under a key, which stays the registry's.

        Raises:
            ManagerError: OCT_ERR_CAP_NAME_UNKNOWN, LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        return self._capabilities.read(key, self._session(session)).value

    def remove_capability(self, session: int, key: str) -> Changes:
        """Give up the descriptor under a key.

        Raises:
            ManagerError: OCT_ERR_CAP_NAME_UNKNOWN, OCT_ERR_NOT_OWNER, LIB_ERR_NAMESERVICE_NOT_BOUND.
        """
        changes = Changes()
        self._take_capability(key, self._session(session), changes)
        return changes

    # --- what survives --------------------------------------------------------------------------------

    def snapshot(self) -> Iterator[Entry]:
        """What restore() needs to be where this registry is, without sessions and what ends with them."""
        return self._store.snapshot()

    def restore(self, entries: Iterable[Entry]) -> list[str]:
        """Take back journal entries that are in force, in any order. For a registry that has no records yet.

        Returns what could not be taken back, a sentence each: a damaged journal costs no more than what is damaged.
        """
        return self._store.restore(entries)

    # --- inside ---------------------------------------------------------------------------------------

    def _session(self, session: int) -> Session:
        found = self._sessions.get(session)
        if found is None or found.is_ending:
            raise ManagerError("LIB_ERR_NAMESERVICE_NOT_BOUND", "this connection to the name service has ended")
        return found

    def _reads(self, session: int, query: Query) -> None:
        self._session(session)
        if isinstance(query.name, str):
            check_secret(query.name)

    def _disown(self, stored: Stored) -> None:
        """Its session has one record less to end with."""
        if stored.session is not None:
            self._sessions[stored.session].records.pop(stored.name, None)

    def _drop(self, stored: Stored, changes: Changes) -> None:
        for each in self._store.drop(stored, changes):
            self._disown(each)
            self._tell(self._watches, Event("delete", each.record, each.value is not None), each.private, changes)

    def _take_capability(self, key: str, who: Session, changes: Changes) -> None:
        held = self._capabilities.take(key, who)
        self._accounts.add(held.session, held.principal, (0, 0, 1), -1)
        if held.session is not None:
            del self._sessions[held.session].capabilities[key]
        changes.released.append(held.value)

    def _tell(self, table: WatchTable, event: Event, private: bool, changes: Changes) -> None:
        assert event.record is not None
        if not len(table):
            return
        last = Event(event.kind, event.record, event.has_value, removed=True)
        for watch in table.concerned(event.record, event.kind, private=private):
            changes.events.append((watch.session, watch.id, event if watch.persistent else last))
            if not watch.persistent:
                self._forget(watch.id)

    def _install(self, table: WatchTable, session: int, query: Query, on: frozenset[str], persistent: bool) -> int:
        limits = self.limits
        who = self._session(session)
        heavy = weight(query)
        if len(table) >= limits.watches:
            raise too_many(f"there are {limits.watches} watches already")
        if len(who.watches) >= limits.watches_per_session:
            raise too_many(f"this session has {limits.watches_per_session} watches already")
        if who.weight + heavy > limits.pattern_weight_per_session:
            raise too_many("the patterns this session watches by would cost too much with every change")
        if heavy and self._watches.weight + self._subscriptions.weight + heavy > limits.pattern_weight:
            raise too_many("the patterns that all sessions watch by would cost too much with every change")
        self._last_watch += 1
        table.add(Installed(self._last_watch, session, query, on, persistent))
        who.watches[self._last_watch] = None
        who.weight += heavy
        return self._last_watch

    def _uninstall(self, table: WatchTable, session: int, id: int, code: str) -> Changes:
        who = self._session(session)
        if id not in who.watches or table.get(id) is None:
            raise ManagerError(code, f"this session has no such watch as {id}; it may have ended")
        self._forget(id)
        return Changes(events=[(session, id, ENDED)])

    def _forget(self, id: int) -> None:
        """Take a watch or subscription out; the numbers of both come from one sequence."""
        table = self._watches if self._watches.get(id) is not None else self._subscriptions
        watch = table.get(id)
        assert watch is not None
        table.discard(watch)
        who = self._sessions[watch.session]
        del who.watches[id]
        who.weight -= weight(watch.query)


def _nothing(query: Query) -> ManagerError:
    return ManagerError("OCT_ERR_NO_RECORD", f"nothing matches {shown(query.text)}")
