"""Numbers for sequential records: 0, 1, 2 ... for each name, none of them twice, not after deletion and not after a restart.

Called by: store.py. Touches: nothing. So that a lock costs no write to the database each time, numbers are put into the journal in blocks:
after a restart counting goes on at the next block.
How many names are counted at once is bounded. The one that was not used for longest is forgotten, and names that are not counted begin at a
floor above all forgotten counts: no number comes twice, whoever asks for numbers of however many names.
Source: spec 5.4, set modes; corner 10 of section 11.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from shoal.manager.names.journal import Entry, SequenceFloor, SequenceGone, SequenceKept

BLOCK: Final = 256
"""Numbers that one journal entry covers."""


class Sequences:
    """The next number of each name."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: OrderedDict[str, tuple[int, int]] = (
            OrderedDict()
        )  # the next number, and the one the journal covers; the longest unused first
        self._floor = 0

    def __len__(self) -> int:
        return len(self._counts)

    def peek(self, base: str) -> int:
        """The number the next record of this name gets."""
        count = self._counts.get(base)
        return self._floor if count is None else count[0]

    def use(self, base: str, number: int) -> list[Entry]:
        """Count `number`, from peek() or above, as given away. Returns what has to be written."""
        _, covered = self._counts.pop(base, (0, 0))
        entries: list[Entry] = []
        if number >= covered:
            covered = number + BLOCK
            entries.append(SequenceKept(base, covered))
        self._counts[base] = (number + 1, covered)
        if len(self._counts) > self._limit:
            oldest, (count, _) = self._counts.popitem(last=False)
            entries.append(SequenceGone(oldest))
            if count > self._floor:
                self._floor = count
                entries.append(SequenceFloor(count))
        return entries

    def restore(self, entry: SequenceKept | SequenceGone | SequenceFloor) -> None:
        """Take back what was written."""
        if isinstance(entry, SequenceKept):
            self._counts[entry.base] = (entry.upto, entry.upto)
        elif isinstance(entry, SequenceGone):
            self._counts.pop(entry.base, None)
        else:
            self._floor = max(self._floor, entry.floor)

    def snapshot(self) -> Iterator[Entry]:
        """What restore() needs to go on from here."""
        if self._floor:
            yield SequenceFloor(self._floor)
        for base, (_, covered) in self._counts.items():
            yield SequenceKept(base, covered)
