"""Watches: who wants to know of which records. A change finds the watches it concerns without going through all.

Called by: registry.py, once for watches on stored records and once for subscriptions to published ones. Touches: nothing.
Each watch lies in one place, by the narrowest thing its query says: the whole name, an attribute's value, the beginning of the name, an
attribute. The rest is compared with every change, and what that may cost is bounded (Limits.pattern_weight).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shoal.manager.errors import ManagerError
from shoal.manager.names.index import value_key
from shoal.manager.names.pattern import Pattern
from shoal.manager.names.query import Query
from shoal.manager.names.record import Record


@dataclass(frozen=True, slots=True, eq=False)
class Installed:
    """One watch.

    Attributes:
        id: its number, from 1, never used again.
        session: whom to tell.
        query: which records.
        on: the kinds of events.
        persistent: whether it stays after the first.
    """

    id: int
    session: int
    query: Query
    on: frozenset[str]
    persistent: bool


def weight(query: Query) -> int:
    """What the patterns of a query weigh."""
    return sum(pattern.weight for pattern in query.patterns)


def _place(query: Query) -> tuple[str, object]:
    if isinstance(query.name, str):
        return "name", query.name
    for constraint in query.constraints:
        if constraint.is_equality:
            return "value", (constraint.attribute, value_key(constraint.operand))  # type: ignore[arg-type]
    if isinstance(query.name, Pattern) and query.name.prefix:
        return "prefix", query.name.prefix
    if query.constraints:
        return "attribute", query.constraints[0].attribute
    return "any", None


class WatchTable:
    """Watches by number, and by what concerns them."""

    def __init__(self) -> None:
        self._by_id: dict[int, Installed] = {}
        self._places: dict[tuple[str, object], dict[int, Installed]] = {}
        self._prefix_lengths: dict[int, int] = {}
        self.weight = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, id: int) -> Installed | None:
        """The watch of this number."""
        return self._by_id.get(id)

    def add(self, watch: Installed) -> None:
        """Install a watch."""
        place = _place(watch.query)
        self._by_id[watch.id] = watch
        self._places.setdefault(place, {})[watch.id] = watch
        self.weight += weight(watch.query)
        if place[0] == "prefix":
            length = len(str(place[1]))
            self._prefix_lengths[length] = self._prefix_lengths.get(length, 0) + 1

    def discard(self, watch: Installed) -> None:
        """Remove one that was added."""
        place = _place(watch.query)
        del self._by_id[watch.id]
        there = self._places[place]
        del there[watch.id]
        if not there:
            del self._places[place]
        self.weight -= weight(watch.query)
        if place[0] == "prefix":
            length = len(str(place[1]))
            self._prefix_lengths[length] -= 1
            if not self._prefix_lengths[length]:
                del self._prefix_lengths[length]

    def concerned(self, record: Record, kind: str, *, private: bool) -> list[Installed]:
        """The watches that want to know of this, oldest first."""
        name, attributes = record.name, record.attributes
        found = [
            watch
            for watch in (self._named(name) if private else self._near(record))
            if kind in watch.on and watch.query.matches(name, attributes)
        ]
        found.sort(key=lambda watch: watch.id)
        return found

    def _named(self, name: str) -> Iterator[Installed]:
        yield from self._places.get(("name", name), {}).values()

    def _near(self, record: Record) -> Iterator[Installed]:
        name = record.name
        places = self._places
        yield from self._named(name)
        for attribute, value in record.attributes.items():
            yield from places.get(("value", (attribute, value_key(value))), {}).values()
            yield from places.get(("attribute", attribute), {}).values()
        for length in self._prefix_lengths:
            if length <= len(name):
                yield from places.get(("prefix", name[:length]), {}).values()
        yield from places.get(("any", None), {}).values()


def too_many(what: str) -> ManagerError:
    """The error for a watch that would pass a bound."""
    return ManagerError("OCT_ERR_MAX_SUBSCRIPTIONS", f"{what}; close watches, or watch by name or attribute value instead of by pattern")
