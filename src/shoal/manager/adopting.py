"""Adopting: how a new manager finds the domains again that earlier ones have left. adoption.py decides what is what."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from typing import Any, Final

from shoal.manager.adoption import Found, is_settled, never_began, sort_out
from shoal.manager.bounds import Bounds
from shoal.manager.domains import Domain, State, never
from shoal.manager.endings import Endings
from shoal.manager.errors import ManagerError
from shoal.manager.ledger import ENDED, ENDING, RUNNING, SLOTS_MOST, Slot
from shoal.manager.logs import numbers, remove_log
from shoal.manager.store import Row
from shoal.manager.table import Table
from shoal.manager.wording import shown_bytes

SOON_S: Final = 5.0
"""How long a new manager waits for the inits of its domains before it listens; the others are found while it does. And how long one
that is to end waits for what it has begun."""
TOGETHER: Final = 500
"""How many domains a new manager begins to look for at once: all of 10,000 would take twice the memory that they take afterwards."""
PAUSE_S: Final = 0.02
"""How long it waits for those before it begins with more."""
LOST_S: Final = 1.0
"""How long a new manager looks for a domain of which the ledger says nothing any more."""


class Adopting:
    """For the loop's thread."""

    def __init__(self, table: Table, endings: Endings) -> None:
        self._table, self._endings = table, endings

    async def adopt(self) -> None:
        """Find again what an earlier manager has left."""
        ledger = self._table.launcher.ledger
        last = self._table.loop.time() + SOON_S
        while not ledger.is_settled() and self._table.loop.time() < last:
            await asyncio.sleep(0.01)  # a lock is waited for by a thread, which could not be told to give up: flock(2)
        rows = self._table.store.alive()
        whole = ledger.count
        ledger.reach(max((row.slot + 1 for row in rows if row.slot < SLOTS_MOST), default=0))
        slots = ledger.all()
        left = sort_out(slots, rows, self._table.store.has_end, self._table.boot, self._table.store.fact("boot") or self._table.boot, whole)
        for row in left.unbegun:
            self._table.written(self._table.store.drop, row.id)
        for number in left.done:
            ledger.give_back(number)
        for number in left.free:
            ledger.offer(number)
        if self._table.store.fact("boot") != self._table.boot:
            self._table.written(self._table.store.remember, "boot", self._table.boot)
        for first in range(0, len(left.found), TOGETHER):
            for one in left.found[first : first + TOGETHER]:
                self._table.adopting[one.slot.id] = task = self._table.begin(self._adopt_one(one))
                task.add_done_callback(functools.partial(lambda id, _: self._table.adopting.pop(id, None), one.slot.id))
            await asyncio.wait(self._table.tasks, timeout=PAUSE_S)
        if self._table.tasks:
            await asyncio.wait(self._table.tasks, timeout=SOON_S)
        logged = numbers(self._table.layout.logs)
        if not self._table.store.is_new:  # else they may be what the user has kept, of domains that nobody knows any more
            for id in logged - self._table.store.ids() - self._table.domains.keys():
                remove_log(self._table.layout.logs, id)
        self._table.next = 1 + max(self._table.next - 1, self._table.store.last_id(), *logged, *(one.slot.id for one in left.found))

    async def _adopt_one(self, one: Found) -> None:
        number, slot, row = one.number, one.slot, one.row
        id, ledger = slot.id, self._table.launcher.ledger
        known = self._table.domains[id] = self._remembered(row, number, slot)
        known.state = State.RUNNING if slot.state in (RUNNING, ENDING, ENDED) else State.NIL
        bounds = Bounds.remembered(self._table.loop, known.bounds, lambda cause: self._table.end(id, cause))
        if bounds is not None:
            self._table.bounds[id] = bounds
        kept = None
        if slot.state != ENDED:
            patience_s = LOST_S if one.was_lost and one.this_boot else 0.0
            kept = await self._table.launcher.adopt(number, slot, this_boot=one.this_boot, patience_s=patience_s)
        while kept is not None and kept.link.lives and not is_settled(ledger.read(number)):
            await asyncio.sleep(0.01)  # that who was about to tell it what to become has gone, ends it
        slot = ledger.read(number)
        if never_began(slot) and not one.was_lost:
            self._never_began(known, row)
            return
        if row is None:
            self._table.written(
                self._table.store.add, id, slot.key, None, number, self._table.boot, known.name, "?", b"\0".join(known.argv), known.about()
            )
        if kept is None or id not in self._table.domains:
            self._table.adopting.pop(id, None)  # there is no more to be found out
            self._endings.note(id)
            return
        self._table.kept[id] = kept
        known.is_found(slot.pid)
        for pid in list(known.pids.values())[1:]:
            kept.keep(pid)
        kept.drop()  # the rest of what an earlier manager was about to start, and did not write down
        if bounds is not None:
            bounds.start()
        if known.state is State.STOP_PENDING:  # somebody asked for it meanwhile
            kept.kill()

    def _never_began(self, domain: Domain, row: Row | None) -> None:
        """Whoever asked for it was not answered, and will ask again."""
        self._table.domains.pop(domain.id, None)
        if (bounds := self._table.bounds.pop(domain.id, None)) is not None:
            bounds.finish(never())
        if row is not None:
            self._table.written(self._table.store.drop, row.id)
        self._table.launcher.ledger.give_back(domain.slot)
        domain.not_started(ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"domain {domain.id} was not started"))

    def _remembered(self, row: Row | None, number: int, slot: Slot) -> Domain:
        if row is None:  # the database was lost
            argv = _command_line(slot.pid)
            name = shown_bytes(os.path.basename(argv[0])) if argv else "?"
            return Domain(slot.id, slot.key, number, name, argv, {"?": slot.pid}, slot.started_ns / 1e9)
        about = json.loads(row.about, object_pairs_hook=_with_shared_names)
        core: int | str = int(row.core) if row.core.isdigit() else row.core
        return Domain(
            id=row.id,
            key=row.key,
            slot=number,
            name=row.name,
            argv=row.argv.split(b"\0") if row.argv else [],
            pids={core: slot.pid} | dict(about.get("dispatchers", ())),
            started_s=about.get("started_s", slot.started_ns / 1e9),
            path=about.get("path", ""),
            cwd=about.get("cwd", "/"),
            sandbox=about.get("sandbox"),
            bounds=about.get("bounds", {}),
            descriptors=about.get("descriptors", []),
        )


def _with_shared_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Its names are the same in each of many domains, and take more memory than what they are the names of."""
    return {sys.intern(name): value for name, value in pairs}


def _command_line(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")[:-1]
    except OSError:
        return []
