"""NameService: what programs call. Over any Operations: the manager's, or one in this process (names.LocalService).

Called by: users. Touches: nothing itself. Takes text, queries or records, and durations as people write them, and turns them into
operations.
Source: spec section 5; the names of octopus' own calls stand with each method.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from shoal.handles.deadline import Deadline
from shoal.manager.errors import ManagerError, ManagerTimeoutError
from shoal.manager.names.barrier import Barrier
from shoal.manager.names.index import PRIVATE
from shoal.manager.names.lock import Lock
from shoal.manager.names.operations import Operations
from shoal.manager.names.query import Query
from shoal.manager.names.record import Record, shown
from shoal.manager.names.semaphore import Semaphore
from shoal.manager.names.store import Terms
from shoal.manager.names.watch import Watch

if TYPE_CHECKING:
    from shoal.handles import Handle


class NameService:
    """Records that are found by name and by what they say, and what is built of them: watches, messages, locks, barriers, semaphores.

    Wherever a `query` or `record` is asked for, text in the record language will do, a Query, or a Record. Put foreign values into a Query
    or Record, which quote them, rather than into text. What this NameService sets belongs to it, and ends with it unless made persistent.
    May be used from any thread. Made by the manager; `names.LocalService().connect()` gives the Operations of one for this process alone.

    Every method can raise ManagerError with OCT_ERR_PARSER_FAIL (no query; the message has the position and what was expected),
    OCT_ERR_QUERY_SIZE (too long) and LIB_ERR_NAMESERVICE_NOT_BOUND (closed, or the connection is lost).
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    # --- records --------------------------------------------------------------------------------------

    def register(
        self,
        record: str | Query | Record,
        *,
        mode: Literal["replace", "new", "sequential"] = "replace",
        persistent: bool = False,
        value: Handle | None = None,
        shared: bool = False,
    ) -> str:
        """Set a record: `"web { port: 8080, host: 'a.example' }"`. Returns its name. Attributes are replaced, never merged.

        Anything but `name: value`, as in `"web { port: 8081, port == 8080 }"`, is a condition on the record it replaces.

        Args:
            mode: "replace" the record of that name if there is one; "new" refuses then; "sequential" appends a number to the name, 0, 1, 2
                ..., never the same twice.
            persistent: it stays when this NameService is closed, and when the manager dies.
            value: a descriptor that comes with it. Whoever looks the record up gets a copy. It cannot be persistent then.
            shared: whether those who came with another capability may replace and remove it, too.
        Raises:
            ManagerError: OCT_ERR_CONSTRAINT_MISMATCH, a condition does not hold, or mode is "new" and there is one;
                OCT_ERR_NO_RECORD_NAME, the name is a pattern; OCT_ERR_NOT_OWNER, the name belongs to another capability;
                PROC_MGMT_ERR_NOT_MONITOR, it stands for a part of the manager; OCT_ERR_INVALID_FORMAT, a persistent value; OCT_ERR_LIMIT.
        Ownership: `value` stays the caller's; a copy is kept.
        Source: oct_set(), nameservice_register().
        """
        if value is not None:
            _check_handle(value, "value")
        terms = Terms(mode=mode, lifetime="persistent" if persistent else "session", shared=shared)
        return self._operations.set(Query.of(record), terms, value).name

    def get(self, query: str | Query | Record, *, unique: bool = False) -> Record:
        """The matching record that comes first in natural order of names (`a2` before `a10`).

        Args:
            unique: refuse if several match.
        Raises:
            ManagerError: OCT_ERR_NO_RECORD, nothing matches; OCT_ERR_NOT_UNIQUE, several do; OCT_ERR_ENGINE_FAIL, it would take too long.
        Ownership: the record's value is a copy, and the caller's to close.
        Source: oct_get().
        """
        return self._operations.get(Query.of(query), unique=unique)

    def names(self, query: str | Query | Record) -> list[str]:
        """The names of all matching records, in natural order; empty when there is none.

        Raises:
            ManagerError: OCT_ERR_ENGINE_FAIL, it would take too long.
        Source: oct_get_names().
        """
        return self._operations.names(Query.of(query))

    def lookup(self, name: str | Query | Record, *, wait: bool = True, timeout: float | str | None = None) -> Record:
        """The record of a service, waiting for it to be registered.

        Args:
            name: also any query.
            wait: False does not wait.
            timeout: seconds or text such as "30s"; None waits as long as it takes.
        Raises:
            ManagerTimeoutError: not registered in that time.
            ManagerError: LIB_ERR_NAMESERVICE_UNKNOWN_NAME, not registered, and `wait` is False; OCT_ERR_ENGINE_FAIL;
                OCT_ERR_MAX_SUBSCRIPTIONS.
        Ownership: the record's value is a copy, and the caller's to close.
        Source: nameservice_blocking_lookup(), nameservice_lookup(), oct_wait_for().
        """
        query = Query.of(name)
        deadline = Deadline(timeout)
        while True:
            try:
                return self._operations.get(query)
            except ManagerError as error:
                if error.code != "OCT_ERR_NO_RECORD":
                    raise
                if not wait:
                    raise ManagerError("LIB_ERR_NAMESERVICE_UNKNOWN_NAME", f"nothing is registered as {shown(query.text)}") from error
            watching = self._operations.watch(query, on=["set"], persistent=False, when="absent")
            try:
                event = watching.next(deadline) if watching.installed else None
            finally:
                watching.discard()
            if event is not None and event.record is not None and not event.has_value:
                return event.record  # what was set, even if it is gone again
            if event is None and watching.installed:
                raise ManagerTimeoutError("OCT_ERR_TIMEOUT", f"nothing was registered as {shown(query.text)} in the time given")

    def exists(self, query: str | Query | Record) -> bool:
        """Whether a record matches.

        Raises:
            ManagerError: OCT_ERR_ENGINE_FAIL, it would take too long.
        Source: oct_exists().
        """
        return self._operations.exists(Query.of(query))

    def remove(self, query: str | Query | Record) -> None:
        """Remove the record of this name, if what else the query says holds.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD, there is none, or it does not match; OCT_ERR_NO_RECORD_NAME, the name is a pattern;
                OCT_ERR_NOT_OWNER; PROC_MGMT_ERR_NOT_MONITOR.
        Source: oct_del().
        """
        self._operations.remove(Query.of(query))

    # --- records known by a secret --------------------------------------------------------------------

    @staticmethod
    def new_id() -> str:
        """A fresh id capability: text that cannot be guessed, for records only those find who were given it. Source: ID caps, spec 5.4."""
        return secrets.token_hex(16)

    def register_with_id(self, id: str, attributes: str) -> str:
        """Set the record of an id capability; `attributes` with their braces: `"{ tty: 'pts/3' }"`. Whoever has the id may replace it.

        It ends with this NameService. No pattern and no watch by pattern finds it.

        Raises:
            ManagerError: OCT_ERR_IDCAP_INVOKE, not such an id; otherwise as register().
        Source: oct_set_with_idcap().
        """
        return self.register(f"{PRIVATE}{id} {attributes}")

    def get_with_id(self, id: str) -> Record:
        """The record of an id capability.

        Raises:
            ManagerError: OCT_ERR_IDCAP_INVOKE, not such an id; OCT_ERR_NO_RECORD.
        Source: oct_get_with_idcap().
        """
        return self.get(f"{PRIVATE}{id}")

    # --- events ---------------------------------------------------------------------------------------

    def watch(
        self,
        query: str | Query | Record,
        *,
        on: Sequence[Literal["set", "delete"]] = ("set", "delete"),
        persistent: bool = True,
        existing: bool = False,
    ) -> Watch:
        """Events for every matching record that is set or deleted, from this moment on.

        Replacing a record is one set. One that stops matching, because it was replaced by another, is not told of.

        Args:
            on: which of the two.
            persistent: False ends the watch with its first event.
            existing: begin with a "set" event for each matching record there is; none is missed or told twice.
        Raises:
            ManagerError: OCT_ERR_MAX_SUBSCRIPTIONS, too many watches, or patterns that are too costly; OCT_ERR_INVALID_FORMAT, `on` is
                none.
        Source: triggers, oct_trigger_existing_and_watch().
        """
        watching = self._operations.watch(Query.of(query), on=on, persistent=persistent, existing=existing)
        return Watch(watching, watching.present)

    def publish(self, record: str | Query | Record) -> int:
        """Send a record to all subscriptions that it matches. Nothing is stored. Returns how many those are.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD_NAME, the name is a pattern.
        Source: oct_publish().
        """
        return self._operations.publish(Query.of(record))

    def subscribe(self, query: str | Query | Record) -> Watch:
        """Events for every published record that matches, from this moment on.

        Raises:
            ManagerError: OCT_ERR_MAX_SUBSCRIPTIONS, too many, or patterns that are too costly.
        Source: oct_subscribe().
        """
        return Watch(self._operations.subscribe(Query.of(query)), [])

    # --- coordination ---------------------------------------------------------------------------------

    def lock(self, name: str, *, timeout: float | str | None = None) -> Lock:
        """A lock that is held in a `with` block, by one at a time among all who know the name, first come first served.

        Args:
            timeout: how long the block may wait to begin, seconds or text; None as long as it takes.
        Raises:
            ManagerError: OCT_ERR_PARSER_FAIL, no name.
        Source: oct_lock().
        """
        return Lock(self._operations, name, timeout)

    def barrier(self, name: str, parties: int) -> Barrier:
        """A place where `parties` participants wait for one another before and after what they do.

        Raises:
            ValueError: not a number from 1.
            ManagerError: OCT_ERR_PARSER_FAIL, no name.
        Source: oct_barrier_enter(), oct_barrier_leave().
        """
        return Barrier(self._operations, name, parties)

    def semaphore(self, value: int | None = None, *, id: int | None = None, persistent: bool = False) -> Semaphore:
        """A new semaphore with `value` units; or, with `id`, one that somebody made.

        Args:
            persistent: whether a new one stays when this NameService is closed.
        Raises:
            TypeError: both or neither.
            ValueError: a negative number.
            ManagerError: OCT_ERR_LIMIT.
        Source: oct_sem_new().
        """
        if (value is None) == (id is None):
            raise TypeError("give a semaphore either a number of units, which makes one, or the id= of one that is there")
        if id is not None:
            return Semaphore(self._operations, id)
        assert value is not None
        return Semaphore.create(self._operations, value, persistent=persistent)

    # --- the capability store -------------------------------------------------------------------------

    def put_capability(self, name: str, handle: Handle, *, shared: bool = False, keep: bool = False) -> None:
        """Keep a copy of a descriptor under a name that is free.

        Args:
            shared: whether those who came with another capability may get it.
            keep: whether it stays when this NameService is closed. It does not survive the manager.
        Raises:
            ManagerError: OCT_ERR_CAP_OVERWRITE, the name is taken; OCT_ERR_LIMIT.
        Ownership: `handle` stays the caller's.
        Source: oct_put_capability().
        """
        _check_handle(handle, "handle")
        self._operations.put_capability(name, handle, shared=shared, keep=keep)

    def put_numbered_capability(self, name: str, handle: Handle, *, shared: bool = False, keep: bool = False) -> str:
        """The same under `name` and a number that makes it free. Returns the whole name. Source: oct_sput_capability()."""
        _check_handle(handle, "handle")
        return self._operations.put_capability(name, handle, numbered=True, shared=shared, keep=keep)

    def get_capability(self, name: str) -> Handle:
        """A copy of the descriptor under a name, which stays there.

        Raises:
            ManagerError: OCT_ERR_CAP_NAME_UNKNOWN, there is none, or none for this capability.
        Ownership: the copy is the caller's.
        Source: oct_get_capability().
        """
        return self._operations.get_capability(name)

    def remove_capability(self, name: str) -> None:
        """Close the copy under a name.

        Raises:
            ManagerError: OCT_ERR_CAP_NAME_UNKNOWN; OCT_ERR_NOT_OWNER, it may be read only.
        Source: oct_remove_capability().
        """
        self._operations.remove_capability(name)

    # --- the end --------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session, and with it every record, watch, lock and capability that was not to stay. Closing twice is fine."""
        self._operations.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _check_handle(given: object, what: str) -> None:
    """
    Raises:
        TypeError: it cannot be copied as a handle can.
    """
    if not callable(getattr(given, "duplicate", None)):
        raise TypeError(f"{what} must be a shoal handle, not {type(given).__name__}; File.from_fd() makes one of a descriptor")
