"""Listing: what ps shows of domains, of one and of many, those that have ended included; and what one can touch."""

from __future__ import annotations

import asyncio
import bisect
import json
from collections.abc import Iterable
from typing import Any, Final

from shoal.manager import wire
from shoal.manager.callers import Caller
from shoal.manager.domains import Domain
from shoal.manager.errors import ManagerError
from shoal.manager.history import from_history
from shoal.manager.inspecting import capabilities_of
from shoal.manager.ledger import Slot
from shoal.manager.rights import DomainRights, ManagerRights
from shoal.manager.table import NUMBER_MOST, Table

HISTORY_ROWS: Final = 1000
MANY_BYTES: Final = 2 << 20
"""How much is told of many domains in one answer."""
STATUS_BYTES: Final = 200
"""What the status of a domain takes besides its name and its arguments, at most."""
ARGUMENTS_SHOWN: Final = 4096
"""How many bytes of its arguments are told of each of many."""


class Listing:
    """For the loop's thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def status(self, caller: Caller, request: wire.Status) -> None:
        caller.answer(request.rid, status_of(self._table.allowed(caller, request.domain, DomainRights.STATUS, ManagerRights.LIST)))

    def alive(self, caller: Caller, request: wire.List) -> None:
        self._table.need(caller, ManagerRights.LIST, "the list of all domains")
        ids = sorted(self._table.domains)
        first = 0 if request.after is None else bisect.bisect_right(ids, request.after)
        self._answer_many(caller, request.rid, (self._table.domains[id] for id in ids[first:]))

    def _answer_many(self, caller: Caller, rid: int, domains: Iterable[Domain]) -> None:
        """As many as there is room for, and one at least."""
        found: list[dict[str, Any]] = []
        room = MANY_BYTES
        for domain in domains:
            told = status_of(domain) | {"argv": _shortened(domain.argv)}
            room -= STATUS_BYTES + len(domain.name) + sum(map(len, told["argv"]))
            if found and room < 0:
                break
            found.append(told)
        caller.answer(rid, found)

    def history(self, caller: Caller, request: wire.History) -> None:
        self._table.need(caller, ManagerRights.LIST, "the list of all domains")
        before = self._table.next if request.before is None else min(max(request.before, 0), NUMBER_MOST)
        self._answer_many(caller, request.rid, map(from_history, self._table.store.ended(before, HISTORY_ROWS)))

    def capabilities(self, caller: Caller, request: wire.Capabilities) -> None:
        domain = self._table.allowed(caller, request.domain, DomainRights.CAPABILITIES, ManagerRights.LIST)
        if domain.ended is not None:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", f"domain {domain.id} has ended, and can touch nothing any more")
        domain.check_running()
        slot, granted = self._table.launcher.ledger.read(domain.slot), self._table.store.granted(domain.id)
        self._table.begin(self._inspected(caller, request, domain, slot, granted))

    async def _inspected(self, caller: Caller, request: wire.Capabilities, domain: Domain, slot: Slot, granted: bytes | None) -> None:
        with self._table.answering(caller, request, f"domain {domain.id} could not be looked at"):
            found = await asyncio.to_thread(capabilities_of, domain, slot, granted)
            caller.answer(request.rid, json.dumps(found.to_dict()))


def _shortened(argv: list[bytes]) -> list[bytes]:
    """As much as people look at."""
    room, shown = ARGUMENTS_SHOWN, list[bytes]()
    for word in argv:
        if len(word) > room:
            return [*shown, word[:room] + b"..."]
        shown.append(word)
        room -= len(word) + 1
    return shown


def status_of(domain: Domain) -> dict[str, Any]:
    """What ps shows of a domain."""
    return {
        "id": domain.id,
        "name": domain.name,
        "state": domain.state.value,
        "argv": domain.argv,
        "cores": list(domain.pids),
        "pids": list(domain.pids.values()),
        "started_s": domain.started_s,
        "ended": None if domain.ended is None else domain.ended.to_dict(),
    }
