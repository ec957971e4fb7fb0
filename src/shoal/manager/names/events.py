"""Events: what a watch is told, and the bounded queue in which events wait for a client that may never read them.

Called by: the registry makes Events; whoever delivers them (local.py, the daemon) keeps a Mailbox. Touches: nothing.
A client that does not drain its mailbox costs a bounded amount of memory and loses only its own events, and is told so: one `overflow`
event stands for all that came after it, until it is taken. What has to arrive, the last event of a watch, always does.
Source: spec 5.5 and 5.7.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from shoal.manager.names.limits import Limits
from shoal.manager.names.record import Record

Kind = Literal["set", "delete", "publish", "overflow", "removed"]

MODE: Final = {"set": 1, "delete": 2, "publish": 32, "removed": 0, "overflow": 0}
"""The bits a notification of this kind has in octopus; the last one of a watch has `REMOVED` besides."""

REMOVED: Final = 16


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to what is watched.

    Attributes:
        kind: "set", a matching record was set; "delete", one was deleted; "publish", one was published to a subscription; "overflow",
            events were lost here, so look again; "removed", the watch ended.
        record: what was set, deleted or published, without its value; None for the other kinds.
        has_value: whether the record carries a descriptor; `get` it to have it.
        removed: whether this is the last event of its watch.
    """

    kind: Kind
    record: Record | None = None
    has_value: bool = False
    removed: bool = False

    @property
    def mode(self) -> int:
        """The bits of the same notification in octopus. Source: spec 5.5."""
        return MODE[self.kind] | (REMOVED if self.removed else 0)


OVERFLOW: Final = Event("overflow")
ENDED: Final = Event("removed", removed=True)


class Mailbox:
    """Events that wait for one reader, oldest first, over all its watches. Bounded by the queue limits in `Limits`."""

    __slots__ = ("_bytes", "_limits", "_lost", "_queue", "_waiting")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: deque[tuple[int, Event]] = deque()
        self._waiting: Counter[int] = Counter()
        self._lost: set[int] = set()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[tuple[int, Event]]:
        return iter(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether its reader should not be given another watch before it has read: last events are kept beyond the bound, one a watch."""
        return len(self._queue) >= self._limits.queued_events_per_session

    def put(self, watch: int, event: Event) -> None:
        """Append an event for `watch`; or, where a bound is reached, note once that events were lost."""
        if event.removed:
            self._append(watch, event)
        elif watch in self._lost:
            return
        elif self._has_room(watch, event):
            self._append(watch, event)
        else:
            self._lost.add(watch)
            self._append(watch, OVERFLOW)

    def take(self) -> tuple[int, Event] | None:
        """The oldest event and its watch, or None."""
        if not self._queue:
            return None
        watch, event = self._queue.popleft()
        self._bytes -= _size(event)
        self._waiting[watch] -= 1
        if not self._waiting[watch]:
            del self._waiting[watch]
        if event is OVERFLOW:
            self._lost.discard(watch)
        return watch, event

    def forget(self, watch: int) -> None:
        """Drop what waits for a watch nobody reads any more."""
        if self._waiting.pop(watch, 0):
            kept = [(each, event) for each, event in self._queue if each != watch]
            self._bytes -= sum(_size(event) for each, event in self._queue if each == watch)
            self._queue = deque(kept)
        self._lost.discard(watch)

    def _has_room(self, watch: int, event: Event) -> bool:
        limits = self._limits
        return (
            self._waiting[watch] < limits.queued_events
            and len(self._queue) < limits.queued_events_per_session
            and self._bytes + _size(event) <= limits.queued_bytes_per_session
        )

    def _append(self, watch: int, event: Event) -> None:
        self._queue.append((watch, event))
        self._waiting[watch] += 1
        self._bytes += _size(event)


def _size(event: Event) -> int:
    return len(event.record.text) if event.record else 0
