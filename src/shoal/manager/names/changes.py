"""Changes: what an operation of the registry leaves to be done, as data. Touches: nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.manager.names.events import Event
from shoal.manager.names.journal import Entry
from shoal.manager.names.value import Closable


@dataclass(frozen=True, slots=True)
class Changes:
    """What an operation leaves to be done, in this order.

    Attributes:
        journal: to be written before anybody is answered.
        events: session, watch and event, in the order in which each session is to be told, after the one that asked was answered.
        released: descriptors the registry no longer owns, to be closed.
    """

    journal: list[Entry] = field(default_factory=list)
    events: list[tuple[int, int, Event]] = field(default_factory=list)
    released: list[Closable] = field(default_factory=list)
