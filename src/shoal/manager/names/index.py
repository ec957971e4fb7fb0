"""Finding records: by name at once, by attribute value or by the beginning of the name without looking at the others.

Called by: registry.py. Touches: nothing. Records whose name is a secret (`private`) are found by their whole name only.
A look-up takes the smallest of: the record of that name; the records with that attribute value; the records that have that attribute, of
which each value is compared once; the names that begin as the pattern does; all. What is compared is counted, and a look-up that would go
on too long is refused (Limits.look_up_steps): a client cannot hold up the others with a query.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from sortedcontainers import SortedKeyList

from shoal.manager.errors import ManagerError
from shoal.manager.names.ordering import Key, natural_key, prefix_ranges
from shoal.manager.names.pattern import Pattern
from shoal.manager.names.query import Constraint, Query
from shoal.manager.names.record import Record, Value, is_identifier, shown

if TYPE_CHECKING:
    from shoal.manager.names.value import Closable

PRIVATE: Final = "idcapid."
"""Names that begin so are found by those only who know them whole."""

_UNHELPFUL: Final = 4


class Stored:
    """A record as the registry keeps it.

    Attributes:
        session: the session it ends with, or None.
        principal: who may replace and remove it.
        persistent: whether it is in the journal.
        shared: whether anybody may replace and remove it.
        parent: the name of the record it ends with, or None.
        children: names of the records that end with it.
        value: the descriptor it carries, or None.
        cost: what it takes, in bytes.
    """

    __slots__ = ("children", "cost", "key", "parent", "persistent", "principal", "private", "record", "session", "shared", "value")

    def __init__(
        self,
        record: Record,
        *,
        session: int | None,
        principal: str,
        persistent: bool,
        shared: bool,
        parent: str | None,
        value: Closable | None,
    ) -> None:
        self.record = record
        self.session = session
        self.principal = principal
        self.persistent = persistent
        self.shared = shared
        self.parent = parent
        self.value = value
        self.children: dict[str, None] | None = None
        self.cost = cost(record)
        self.private = record.name.startswith(PRIVATE)
        self.key: Key = natural_key(record.name)

    @property
    def name(self) -> str:
        """The record's name."""
        return self.record.name

    @property
    def size(self) -> tuple[int, int, int]:
        """One record, its bytes, its descriptors: what it takes of the limits."""
        return 1, self.cost, int(self.value is not None)


def cost(record: Record) -> int:
    """The bytes a stored record takes, with its share of the index, on the safe side: test_names_load.py compares it with what is taken."""
    return 700 + 2 * sys.getsizeof(record.text) + 420 * len(record.attributes) + 48 * len(natural_key(record.name)[0])


def value_key(value: Value) -> object:
    """A value as a key: 1 and 1.0 are the same, and True is another."""
    return (value,) if isinstance(value, bool) else value


def _value_of(key: Any) -> Value:
    return key[0] if isinstance(key, tuple) else key  # type: ignore[no-any-return]


class _Attribute:
    """The records that have one attribute, by its value. A value that one record has stands for it without a set of its own."""

    __slots__ = ("count", "values")

    def __init__(self) -> None:
        self.count = 0
        self.values: dict[object, Stored | set[Stored]] = {}

    def add(self, key: object, stored: Stored) -> None:
        self.count += 1
        have = self.values.get(key)
        if have is None:
            self.values[key] = stored
        elif isinstance(have, set):
            have.add(stored)
        else:
            self.values[key] = {have, stored}

    def discard(self, key: object, stored: Stored) -> None:
        self.count -= 1
        have = self.values[key]
        if isinstance(have, set):
            have.discard(stored)
            if len(have) == 1:
                self.values[key] = have.pop()
        else:
            del self.values[key]

    def meeting(self, constraint: Constraint) -> int:
        """How many records meet a constraint, if it asks for one value; else how many there are."""
        if not constraint.is_equality:
            return self.count
        have = self.values.get(value_key(constraint.operand))  # type: ignore[arg-type]
        return 0 if have is None else len(have) if isinstance(have, set) else 1

    def having(self, constraint: Constraint, work: _Work) -> Iterator[Stored]:
        """The records that meet a constraint, which is compared with each value once, not with each record."""
        if constraint.is_equality:
            have = self.values.get(value_key(constraint.operand))  # type: ignore[arg-type]
            yield from () if have is None else have if isinstance(have, set) else (have,)
            return
        for key, have in self.values.items():
            value = _value_of(key)
            work.spend(constraint.steps(value))
            if constraint.holds(value):
                if isinstance(have, set):
                    yield from have
                else:
                    yield have


class _Work:
    """What a look-up may still cost."""

    __slots__ = ("_left", "_query")

    def __init__(self, query: Query, steps: int) -> None:
        self._left = steps
        self._query = query

    def spend(self, steps: int) -> None:
        """Count steps.

        Raises:
            ManagerError: OCT_ERR_ENGINE_FAIL, there were too many.
        """
        self._left -= steps
        if self._left < 0:
            advice = "give an attribute its value with ':', or begin the pattern with ^ and letters"
            raise ManagerError("OCT_ERR_ENGINE_FAIL", f"{shown(self._query.text)} takes too long to look up; {advice}")


class RecordIndex:
    """All stored records."""

    def __init__(self, look_up_steps: int) -> None:
        self._steps = look_up_steps
        self._by_name: dict[str, Stored] = {}
        self._ordered: Any = SortedKeyList(key=_key)
        self._attributes: dict[str, _Attribute] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Stored]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Stored | None:
        """The record of this name."""
        return self._by_name.get(name)

    def add(self, stored: Stored) -> None:
        """Take in a record whose name is free."""
        self._by_name[stored.name] = stored
        if stored.private:
            return
        self._ordered.add(stored)
        for name, value in stored.record.attributes.items():
            attribute = self._attributes.get(name)
            if attribute is None:
                attribute = self._attributes[name] = _Attribute()
            attribute.add(value_key(value), stored)

    def discard(self, stored: Stored) -> None:
        """Forget a record that was added."""
        del self._by_name[stored.name]
        if stored.private:
            return
        self._ordered.remove(stored)
        for name, value in stored.record.attributes.items():
            attribute = self._attributes[name]
            attribute.discard(value_key(value), stored)
            if not attribute.count:
                del self._attributes[name]

    def find(self, query: Query) -> list[Stored]:
        """All records that match, in natural order of their names.

        Raises:
            ManagerError: OCT_ERR_ENGINE_FAIL, the look-up would take too long.
        """
        work = _Work(query, self._steps)
        candidates, in_order = self._candidates(query, work)
        found = list(_matching(candidates, query, work))
        if not in_order:
            found.sort(key=_key)
        return found

    def first(self, query: Query) -> Stored | None:
        """The record that matches and comes first in natural order.

        Raises:
            ManagerError: OCT_ERR_ENGINE_FAIL, the look-up would take too long.
        """
        work = _Work(query, self._steps)
        candidates, in_order = self._candidates(query, work, first=True)
        matching = _matching(candidates, query, work)
        return next(matching, None) if in_order else min(matching, key=_key, default=None)

    def _candidates(self, query: Query, work: _Work, *, first: bool = False) -> tuple[Iterable[Stored], bool]:
        """Records among which are all that match, and whether they come in natural order."""
        if isinstance(query.name, str):
            stored = self._by_name.get(query.name)
            return ([] if stored is None else [stored]), True
        narrowest: tuple[int, _Attribute, Constraint] | None = None
        for constraint in query.constraints:
            attribute = self._attributes.get(constraint.attribute)
            if attribute is None:
                return [], True
            count = attribute.meeting(constraint)
            if narrowest is None or count < narrowest[0]:
                narrowest = (count, attribute, constraint)
        prefix = query.name.prefix if isinstance(query.name, Pattern) else ""
        if prefix and not _begins_a_name(prefix):
            return [], True
        if narrowest is None:
            return self._beginning(prefix), True
        count, attribute, constraint = narrowest
        if not prefix and first and count * _UNHELPFUL > len(self._ordered):
            return self._ordered, True  # most records have it: the first is found sooner by going through all in order
        if prefix and self._count_beginning(prefix) <= count:
            return self._beginning(prefix), True
        return attribute.having(constraint, work), False

    def _places(self, prefix: str) -> Iterator[tuple[int, int]]:
        """Where in the order the names lie that begin so, as far as digits do not tell them apart."""
        for low, high in prefix_ranges(prefix):
            begin = self._ordered.bisect_key_left(low)
            end = self._ordered.bisect_key_left(high)
            if begin < end:
                yield begin, end
            head = low[0][:-1]  # all but the number, or the only text
            if end == len(self._ordered) or self._ordered[end].key[0][: len(head)] != head:
                return  # what follows begins otherwise

    def _beginning(self, prefix: str) -> Iterable[Stored]:
        if not prefix:
            return self._ordered  # type: ignore[no-any-return]
        return itertools.chain.from_iterable(self._ordered.islice(begin, end) for begin, end in self._places(prefix))

    def _count_beginning(self, prefix: str) -> int:
        return sum(end - begin for begin, end in self._places(prefix))


def _key(stored: Stored) -> Key:
    return stored.key


def _begins_a_name(prefix: str) -> bool:
    return is_identifier(prefix + "x")  # so that true and false, which are none, may begin one


def _matching(candidates: Iterable[Stored], query: Query, work: _Work) -> Iterator[Stored]:
    costly = bool(query.patterns)
    each = 1 + len(query.constraints)
    prefix = query.name.prefix if isinstance(query.name, Pattern) else ""
    for stored in candidates:
        record = stored.record
        if prefix and not record.name.startswith(prefix):
            work.spend(1)
            continue
        work.spend(query.steps(record.name, record.attributes) if costly else each)
        if query.matches(record.name, record.attributes):
            yield stored
