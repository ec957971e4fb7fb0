"""Waiting: who waits for the end of which domain, and what ends or signals one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from shoal.manager import wire
from shoal.manager.callers import Caller
from shoal.manager.domains import Domain, Ended
from shoal.manager.errors import ManagerError
from shoal.manager.rights import DomainRights
from shoal.manager.table import Table

KILL_S: Final = 10.0
"""How long a kill may take before the one who asked is told that it does not work."""


class Waiting:
    """For the loop's thread."""

    def __init__(self, table: Table, again: Callable[[Caller, wire.Request], None]) -> None:
        """
        Args:
            again: carries a request out from its beginning.
        """
        self._table, self._again = table, again
        self._waiting: dict[Caller, dict[int, Domain]] = {}

    def left(self, caller: Caller) -> list[int]:
        """A client has gone: nobody waits there any more. The requests it had."""
        waited = self._waiting.pop(caller, {})
        for rid, domain in waited.items():
            domain.forget((caller, rid))
        return list(waited)

    def has_answered(self, caller: Caller, rid: int) -> Domain | None:
        """It does not wait any more for the answer to this; for which domain it did."""
        return self._waiting.get(caller, {}).pop(rid, None)

    def wait(self, caller: Caller, request: wire.Wait) -> None:
        domain = self._table.allowed(caller, request.domain, DomainRights.WAIT)
        if request.nohang and domain.ended is None:
            raise ManagerError("SPAWN_ERR_DOMAIN_RUNNING", f"domain {domain.id} has not ended")
        self.begins(caller, request.rid, domain)
        domain.wait((caller, request.rid), self._answering(caller, request.rid, _exit))

    def begins(self, caller: Caller, rid: int, domain: Domain) -> None:
        """Note that a client waits there, so that it can be forgotten when it goes."""
        if domain.ended is None:
            self._waiting.setdefault(caller, {})[rid] = domain

    def _answering(self, caller: Caller, rid: int, value: Callable[[Ended], Any]) -> Callable[[Ended | ManagerError], None]:
        def tell(outcome: Ended | ManagerError) -> None:
            self._waiting.get(caller, {}).pop(rid, None)
            if isinstance(outcome, ManagerError):
                caller.refuse(rid, outcome)
            else:
                caller.answer(rid, value(outcome))

        return tell

    def kill(self, caller: Caller, request: wire.Kill) -> None:
        domain = self._table.allowed(caller, request.domain, DomainRights.KILL)
        if request.again and domain.ended is not None and domain.ended.exit.reason == "killed":
            caller.answer(request.rid)
            return
        who = (caller, request.rid)
        first = domain.stop(who, self._answering(caller, request.rid, _nothing))
        self.begins(caller, request.rid, domain)
        self._table.audit(caller, request, None, domain.id)
        kept = self._table.kept.get(domain.id)
        if first and kept is not None:
            kept.kill()
        self._table.loop.call_later(KILL_S, self._give_up_kill, domain, who, caller, request.rid)

    def _give_up_kill(self, domain: Domain, who: object, caller: Caller, rid: int) -> None:
        if domain.stoppers.pop(who, None) is not None:
            what = f"domain {domain.id} was killed {KILL_S:g} s ago and is still there: the kernel does not let go of it"
            caller.refuse(rid, ManagerError("PROC_MGMT_ERR_KILL", what))

    def signal(self, caller: Caller, request: wire.Signal) -> None:
        domain = self._table.allowed(caller, request.domain, DomainRights.SIGNAL)
        if not 1 <= request.number <= 64:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_CAP_HASH", f"signal {request.number}: there are 1 to 64")
        if not 0 <= request.key < 1 << 63:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_CAP_HASH", f"the key of a signal has 63 bits, and is not {request.key}")
        domain.check_running()
        kept = self._table.kept.get(domain.id)
        if kept is None:
            self._table.begin(self._when_found(caller, request, domain))
            return
        kept.send_signal(request.number, key=request.key)
        self._table.audit(caller, request, None, domain.id)
        caller.answer(request.rid)

    async def _when_found(self, caller: Caller, request: wire.Request, domain: Domain) -> None:
        """Carry out a request as soon as the domain's init has been found again."""
        adopting = self._table.adopting.get(domain.id)
        if adopting is None:
            what = f"domain {domain.id} cannot be reached: its init listens to nobody"
            caller.refuse(request.rid, ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", what))
            return
        await asyncio.wait((adopting,))
        self._again(caller, request)


def _exit(ended: Ended) -> list[Any]:
    return [ended.exit.code, ended.exit.reason, ended.exit.signal]


def _nothing(ended: Ended) -> None:
    return None
