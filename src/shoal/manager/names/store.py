"""The records: setting one, with all that may be against it, and removing one, with all that ends with it.

Called by: registry.py. Touches: nothing. Nothing is changed before everything has been checked.
Records may be `under` another one, one level deep: they end with it, whoever set them, so what belongs together goes in one step. A
semaphore is such a record with its units under it.
Source: spec 5.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from shoal.manager.errors import ManagerError
from shoal.manager.names.accounts import Accounts
from shoal.manager.names.changes import Changes
from shoal.manager.names.index import RecordIndex, Stored
from shoal.manager.names.journal import Entry, RecordGone, RecordKept, SequenceFloor, SequenceGone, SequenceKept
from shoal.manager.names.limits import Limits
from shoal.manager.names.parse import parse
from shoal.manager.names.query import Query, hold
from shoal.manager.names.record import Record, shown
from shoal.manager.names.reserved import check_secret, is_reserved
from shoal.manager.names.sequences import Sequences
from shoal.manager.names.sessions import Session
from shoal.manager.names.value import Closable

Mode = Literal["replace", "new", "sequential"]
"""What setting a record does where there is one of its name: replace it, refuse, or append a number to the name so that there is none."""

Lifetime = Literal["session", "persistent", "parent"]
"""What a record ends with: the session that set it, nothing (it survives the manager), or only the record it is under."""

MODES: Final = frozenset({"replace", "new", "sequential"})
LIFETIMES: Final = frozenset({"session", "persistent", "parent"})


@dataclass(frozen=True, slots=True)
class Terms:
    """How a record is set, besides what it says.

    Attributes:
        mode: what happens where there is one of its name.
        lifetime: what it ends with.
        shared: whether other principals may replace and remove it.
        under: the name of a record: when that is removed, this one is, too.
    Raises:
        ManagerError: OCT_ERR_INVALID_FORMAT, terms that exclude each other.
    """

    mode: Mode = "replace"
    lifetime: Lifetime = "session"
    shared: bool = False
    under: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.lifetime not in LIFETIMES:
            raise _contradiction(f"{self.mode!r} is no mode, or {self.lifetime!r} no lifetime")
        if self.lifetime == "parent" and self.under is None:
            raise _contradiction("a record that ends with its parent has to be under one")
        if self.lifetime == "persistent" and self.under is not None:
            raise _contradiction(f"a record under {self.under} ends with it; it is as persistent as that")


PLAIN: Final = Terms()


class RecordStore:
    """All records, who they belong to, and the numbers of sequential ones."""

    def __init__(self, limits: Limits, accounts: Accounts) -> None:
        self.index = RecordIndex(limits.look_up_steps)
        self._accounts = accounts
        self._sequences = Sequences(limits.sequences)

    def set(self, who: Session, query: Query, terms: Terms, value: Closable | None, changes: Changes) -> Stored:
        """Store a record for a session. See Registry.set()."""
        name, attributes, conditions = query.to_store()
        base, number = name, 0
        if terms.mode == "sequential":
            number = self._free_number(base)
            name = f"{base}{number}"
        record = Record(name, attributes)
        parent = self._parent(terms, value)
        old = self.index.get(name)
        refuse_name(who, name, old)
        if old is not None and terms.mode == "new":
            raise ManagerError("OCT_ERR_CONSTRAINT_MISMATCH", f"there is a record {name}, and this one was to be new")
        if conditions and (old is None or not hold(conditions, old.record.attributes)):
            what = "there is no such record" if old is None else f"it is {shown(old.record.text)}"
            raise ManagerError("OCT_ERR_CONSTRAINT_MISMATCH", f"{name} was not replaced: {what}, and {shown(query.text)} asks for another")
        new = Stored(
            record,
            session=who.id if terms.lifetime == "session" else None,
            principal=who.principal,
            persistent=terms.lifetime == "persistent" or (terms.lifetime == "parent" and parent is not None and parent.persistent),
            shared=terms.shared,
            parent=terms.under,
            value=value,
        )
        if terms.under == name:
            raise _contradiction(f"{name} cannot be under itself")
        if old is not None and old.children:
            if new.parent is not None:
                raise _contradiction(f"{name} has records under it, so it cannot be under {new.parent}")
            if old.persistent != new.persistent:
                raise _contradiction(f"{name} has records under it; whether it is persistent stays as it is")
        same_account = old is not None and (old.session, old.session or old.principal) == (new.session, new.session or new.principal)
        self._accounts.refuse(new.session, new.principal, new.size, old.size if old is not None and same_account else (0, 0, 0))

        if terms.mode == "sequential":
            changes.journal.extend(self._sequences.use(base, number))
        if old is not None:
            new.children = old.children
            self._detach(old, changes)
        self._attach(new)
        if new.persistent:
            changes.journal.append(_kept(new))
        elif old is not None and old.persistent:
            changes.journal.append(RecordGone(name))
        return new

    def drop(self, stored: Stored, changes: Changes) -> list[Stored]:
        """Remove a record and all under it. Returns them: the record before its children, and those in the order they were set."""
        dropped = [stored]
        for name in stored.children or ():
            child = self.index.get(name)
            assert child is not None
            dropped.append(child)
        for each in dropped:
            self._detach(each, changes)
            if each.persistent:
                changes.journal.append(RecordGone(each.name))
        return dropped

    def snapshot(self) -> Iterator[Entry]:
        """See Registry.snapshot()."""
        yield from self._sequences.snapshot()
        for stored in self.index:
            if stored.persistent:
                yield _kept(stored)

    def restore(self, entries: Iterable[Entry]) -> list[str]:
        """See Registry.restore()."""
        complaints = []
        children: list[Stored] = []
        for entry in entries:
            if isinstance(entry, SequenceKept | SequenceGone | SequenceFloor):
                self._sequences.restore(entry)
            if not isinstance(entry, RecordKept):
                continue
            try:
                stored = self._restored(entry)
            except ManagerError as error:
                complaints.append(f"the persistent record {shown(entry.name)} is lost: {error.message}")
                continue
            if stored.parent is None:
                self._attach(stored)
            else:
                children.append(stored)
        for stored in children:
            assert stored.parent is not None
            parent = self.index.get(stored.parent)
            if parent is None or parent.parent is not None or self.index.get(stored.name) is not None:
                complaints.append(f"the persistent record {stored.name} is lost: {stored.parent}, which it ends with, is not there")
            else:
                self._attach(stored)
        return complaints

    def _restored(self, entry: RecordKept) -> Stored:
        name, attributes, _ = parse(entry.text).to_store()
        if name != entry.name or self.index.get(name) is not None:
            raise ManagerError("OCT_ERR_PARSER_FAIL", "its row has the text of another")
        return Stored(
            Record(name, attributes),
            session=None,
            principal=entry.principal,
            persistent=True,
            shared=entry.shared,
            parent=entry.parent,
            value=None,
        )

    def _free_number(self, base: str) -> int:
        number = self._sequences.peek(base)
        while self.index.get(f"{base}{number}") is not None:
            number += 1
        return number

    def _parent(self, terms: Terms, value: Closable | None) -> Stored | None:
        if value is not None and terms.lifetime == "persistent":
            raise _contradiction("a descriptor cannot outlive the manager, so a record with a value is not persistent")
        if terms.under is None:
            return None
        parent = self.index.get(terms.under)
        if parent is None:
            raise ManagerError("OCT_ERR_NO_RECORD", f"there is no record {shown(terms.under)} to be under")
        if parent.parent is not None:
            raise _contradiction(f"{parent.name} is under {parent.parent} itself, and one level is all there is")
        if value is not None and parent.persistent and terms.lifetime == "parent":
            raise _contradiction(f"a descriptor cannot outlive the manager, and {parent.name} does")
        return parent

    def _attach(self, stored: Stored) -> None:
        self.index.add(stored)
        self._accounts.add(stored.session, stored.principal, stored.size)
        if stored.parent is not None:
            parent = self.index.get(stored.parent)
            assert parent is not None
            if parent.children is None:
                parent.children = {}
            parent.children[stored.name] = None

    def _detach(self, stored: Stored, changes: Changes) -> None:
        """Take a record out, leaving the journal and its children to the caller."""
        self.index.discard(stored)
        self._accounts.add(stored.session, stored.principal, stored.size, -1)
        if stored.parent is not None:
            parent = self.index.get(stored.parent)
            if parent is not None and parent.children is not None:
                del parent.children[stored.name]
        if stored.value is not None:
            changes.released.append(stored.value)


def refuse_name(who: Session, name: str, old: Stored | None) -> None:
    """Raise unless this session may set or remove a record of this name, in the place of `old`.

    Raises:
        ManagerError: PROC_MGMT_ERR_NOT_MONITOR, OCT_ERR_NOT_OWNER, OCT_ERR_IDCAP_INVOKE.
    """
    check_secret(name)
    if is_reserved(name) and not who.privileged:
        raise ManagerError(
            "PROC_MGMT_ERR_NOT_MONITOR", f"{name} stands for a part of the manager; setting or removing it takes its capability"
        )
    if old is not None and not (old.shared or old.private or who.may_change(old.principal)):
        raise ManagerError("OCT_ERR_NOT_OWNER", f"{name} belongs to another capability, and only that may replace or remove it")


def _contradiction(what: str) -> ManagerError:
    return ManagerError("OCT_ERR_INVALID_FORMAT", what)


def _kept(stored: Stored) -> RecordKept:
    return RecordKept(stored.name, stored.record.text, stored.principal, stored.shared, stored.parent)
