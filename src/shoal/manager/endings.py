"""Endings: how domains have ended, from the ledger to whoever waits, and into the database."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from shoal.manager.adoption import never_began
from shoal.manager.domains import LOST_STATUS, Domain, Ended, ExitStatus, State, ended_by
from shoal.manager.errors import ManagerError
from shoal.manager.ledger import ENDED
from shoal.manager.logs import remove_log
from shoal.manager.table import Table

HISTORY_MOST: Final = 10_000
"""How many domains that have ended are remembered; the oldest goes first."""
RETRY_S: Final = 1.0
"""How long what could not be written is left alone."""


class Endings:
    """For the loop's thread."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._endings: list[int] = []
        self._unwritten: dict[int, Ended] = {}
        self._again: asyncio.TimerHandle | None = None

    def note(self, id: int) -> None:
        """The init of a domain has ended. Those of one turn of the loop are written together."""
        if not self._endings:
            self._table.loop.call_soon(self._note_all)
        self._endings.append(id)

    def _note_all(self) -> None:
        if self._table.is_closed:
            return  # the next manager finds them in the ledger
        endings, self._endings = self._endings, []
        done: list[Domain] = []
        for id in endings:
            self._table.kept.pop(id, None)
            domain = self._table.domains.get(id)
            if domain is None or domain.ended is not None:
                continue
            slot = self._table.launcher.ledger.read(domain.slot)
            if id in self._table.adopting and never_began(slot):
                continue  # as its adoption finds out
            whole = slot.state == ENDED and slot.key == domain.key
            if not whole:
                self._table.launcher.unlink_socket(domain.slot)
            ended = ended_by(slot) if whole else Ended(ExitStatus(LOST_STATUS, "lost", None), time.time())
            if (shared := self._table.shared.pop(id, None)) is not None:
                shared.close()
            bounds = self._table.bounds.pop(id, None)
            if bounds is not None:
                ended = bounds.finish(ended)
            self._unwritten[id] = ended
            domain.has_ended(ended)
            done.append(domain)
        self._write()

    def _write(self) -> None:
        """Into the database; only then their slots are free. What cannot be written now stays in the ledger, and is tried again."""
        if not self._unwritten or self._table.is_closed:
            return
        try:
            self._table.store.end((id, ended.to_dict()) for id, ended in self._unwritten.items())
            forgotten = self._table.store.forget(HISTORY_MOST)
        except ManagerError:
            if self._again is None:
                self._again = self._table.loop.call_later(RETRY_S, self._write_again)
            return
        for id in forgotten:
            remove_log(self._table.layout.logs, id)
            self._table.authority.forget(id)
        for id in self._unwritten:
            domain = self._table.domains.pop(id)
            domain.state = State.CLEANED
            self._table.launcher.ledger.give_back(domain.slot)
        self._unwritten.clear()

    def _write_again(self) -> None:
        self._again = None
        self._write()
