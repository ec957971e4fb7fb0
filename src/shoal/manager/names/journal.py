"""Journal entries: what a change leaves behind that has to survive the manager.

Made by: store.py and sequences.py, as data. The daemon writes each to its database under `key`, replacing what is there, before it
answers; Registry.restore() takes them back in any order. Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class RecordKept:
    """A persistent record was set.

    Attributes:
        name: its name.
        text: its canonical text.
        principal: who may replace and remove it.
        shared: whether anybody may.
        parent: the name of the record it ends with, or None.
    """

    deletes: ClassVar[bool] = False
    name: str
    text: str
    principal: str
    shared: bool
    parent: str | None

    @property
    def key(self) -> str:
        """What its row is found by."""
        return f"record {self.name}"


@dataclass(frozen=True, slots=True)
class RecordGone:
    """A persistent record was removed, or is no longer persistent: the row with this key is deleted."""

    deletes: ClassVar[bool] = True
    name: str

    @property
    def key(self) -> str:
        """What the row is found by."""
        return f"record {self.name}"


@dataclass(frozen=True, slots=True)
class SequenceKept:
    """Numbers below `upto` may have been given to sequential records of this name."""

    deletes: ClassVar[bool] = False
    base: str
    upto: int

    @property
    def key(self) -> str:
        """What its row is found by."""
        return f"sequence {self.base}"


@dataclass(frozen=True, slots=True)
class SequenceGone:
    """The count of this name was forgotten: the row with this key is deleted."""

    deletes: ClassVar[bool] = True
    base: str

    @property
    def key(self) -> str:
        """What the row is found by."""
        return f"sequence {self.base}"


@dataclass(frozen=True, slots=True)
class SequenceFloor:
    """Names that are not counted, or no longer, begin at this number."""

    deletes: ClassVar[bool] = False
    floor: int

    @property
    def key(self) -> str:
        """What its row is found by."""
        return "floor"


Entry = RecordKept | RecordGone | SequenceKept | SequenceGone | SequenceFloor
