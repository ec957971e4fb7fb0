"""Adoption: what a new manager makes of what earlier ones have left in the ledger and in the database. Decides; touches nothing.

Both may be older than what is true, and either may have been lost. An init that lives is the last word, so each that may live is looked
for; what is not found has ended, or never began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from shoal.manager.biscuits import LAST_DOMAIN
from shoal.manager.ledger import ASSIGNED, CAUSE_ITSELF, CAUSE_UNBEGUN, ENDED, ENDING, FREE, RUNNING, Slot
from shoal.manager.store import Row

SIGCHLD: Final = 17
_NOTHING: Final = Slot(FREE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_EXIT_SIGNAL: Final = 35  # in /proc/PID/stat, counted after the name: proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Found:
    """What may be a living domain.

    Attributes:
        slot: what the ledger says; where it says nothing, as much as the database knows.
        row: None where the database does not know it.
        was_lost: the part of the ledger that it was in is gone, or has never reached the disk.
        this_boot: it was started during this boot, so that the number of its init's process means something.
    """

    number: int
    slot: Slot
    row: Row | None
    was_lost: bool
    this_boot: bool


@dataclass(slots=True)
class Left:
    """What there is.

    Attributes:
        found: to be looked for. free: slots nobody has. done: slots of which everything is written down already.
        unbegun: rows of what was about to be started, and was not.
    """

    found: list[Found] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    unbegun: list[Row] = field(default_factory=list)


def sort_out(
    slots: Sequence[Slot], rows: Iterable[Row], has_end: Callable[[int, int], bool], boot: str, ledger_boot: str, whole: int
) -> Left:
    """Sort it.

    Args:
        rows: those of which no end is known, each with a slot.
        has_end: whether the database knows the end of a domain, by number and key.
        boot, ledger_boot: this one, and the one the ledger was last used in.
        whole: how many slots the ledger had when it was opened.
    """
    left = Left()
    by_slot: dict[int, list[Row]] = {}
    for row in rows:
        by_slot.setdefault(row.slot, []).append(row)
    for number, slot in enumerate(slots):
        damaged = not _is_plausible(slot)
        if damaged:
            slot = _NOTHING  # noqa: PLW2901
        here = sorted(by_slot.pop(number, ()), key=lambda row: row.id)
        if slot.state == FREE:
            mine = here.pop() if here else None
            if mine is not None:
                slot = _as_remembered(mine)  # noqa: PLW2901
        else:
            mine = next((row for row in here if (row.id, row.key) == (slot.id, slot.key)), None)
            here = [row for row in here if row is not mine]
        left.unbegun += here
        if slot.state == FREE:
            (left.done if damaged else left.free).append(number)
        elif mine is None and slot.state == ENDED and has_end(slot.id, slot.key):
            left.done.append(number)
        else:
            this_boot = ledger_boot == boot and (mine is None or mine.boot == boot)
            was_lost = number >= whole or damaged or (slots[number].state == FREE and not this_boot)
            left.found.append(Found(number, slot, mine, was_lost, this_boot))
    left.unbegun += (row for rest in by_slot.values() for row in rest)  # with numbers no slot has
    return left


def _is_plausible(slot: Slot) -> bool:
    """Whether an init can have written it."""
    return slot.state == FREE or (
        slot.state <= ENDED and slot.id <= LAST_DOMAIN and slot.key >> 63 == 0 and CAUSE_ITSELF <= slot.cause <= CAUSE_UNBEGUN
    )


def _as_remembered(row: Row) -> Slot:
    return Slot(ASSIGNED, 0, row.id, row.key, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def never_began(slot: Slot) -> bool:
    """Whether it ended, or its init did, before it had executed its program."""
    return slot.state in (FREE, ASSIGNED) or (slot.state in (ENDING, ENDED) and slot.cause == CAUSE_UNBEGUN)


def is_settled(slot: Slot) -> bool:
    """Whether what its living init has written tells if it began."""
    if slot.state == RUNNING:
        return has_executed(slot.pid)
    return slot.state == ENDED or not never_began(slot)


def has_executed(pid: int) -> bool:
    """Whether a dispatcher is the program that it was to become. What has not executed anything does not end with SIGCHLD: init.h."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[_EXIT_SIGNAL]) == SIGCHLD
    except OSError:
        return False  # it has ended, of which its init tells
