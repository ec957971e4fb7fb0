"""Spanning: other dispatchers of a domain, on other cores, and what they share."""

from __future__ import annotations

import os
from contextlib import ExitStack

from shoal.manager import wire
from shoal.manager.callers import Caller
from shoal.manager.dispatchers import Shared, environment_of
from shoal.manager.domains import Domain, State
from shoal.manager.errors import ManagerError
from shoal.manager.handing import channel, memory
from shoal.manager.inspecting import described, has_connection
from shoal.manager.rights import DomainRights
from shoal.manager.spawning import Spawning
from shoal.manager.table import Table


class Spanning:
    """For the loop's thread."""

    def __init__(self, table: Table, spawning: Spawning) -> None:
        self._table, self._spawning = table, spawning

    def span(self, caller: Caller, request: wire.Span) -> None:
        self._table.begin(self._span(caller, request))

    async def _span(self, caller: Caller, request: wire.Span) -> None:
        with self._table.answering(caller, request, "no other dispatcher could be started", "SPAWN_ERR_SPAN"):
            domain = self._table.allowed(caller, request.domain, DomainRights.SPAN)
            pid = await self._spanned(domain, request.core, again=request.again)
            self._table.audit(caller, request, None, domain.id)
            if request.here is None:
                caller.answer(request.rid, pid)
                return
            shared = self._table.shared[domain.id]
            with shared.fetch(request.here, request.core) as end:
                caller.answer(request.rid, pid, (shared.memory(domain.name), end.fileno()))

    async def _spanned(self, domain: Domain, core: int | str, *, again: bool) -> int:
        if again and domain.pids.get(core) and domain.state is State.RUNNING:
            return domain.pids[core]
        domain.check_span(core)
        self._table.launcher.spawnds.number(core)
        kept = await self._table.reached(domain)
        domain.check_span(core)
        others = list(domain.pids)
        first = domain.pids[others[0]]
        shared = self._table.shared.setdefault(domain.id, Shared())
        domain.pids[core] = 0  # taken
        try:
            for other in others:
                shared.connect(core, other)
            with ExitStack() as stack:
                ends = [stack.enter_context(shared.fetch(core, other)) for other in others]
                numbers = list(range(3, 4 + len(ends)))
                given = [memory(numbers[0]), *(channel(numbers[1 + index], index, other) for index, other in enumerate(others))]
                fds = (shared.memory(domain.name), *(end.fileno() for end in ends))
                request = wire.SpawnProgram(
                    rid=0,
                    key="",
                    core=core,
                    path=os.fsencode(domain.path),
                    argv=domain.argv,
                    environ=environment_of(first),
                    cwd=os.fsencode(domain.cwd),
                    targets=numbers,
                    kept=[1, 2],
                    name=None,
                    flags=0,
                    sandbox=domain.sandbox,
                    given=given,
                )
                # A sandbox that keeps a program from the manager does so for all of its dispatchers.
                if domain.sandbox is None or has_connection(domain.descriptors):
                    request, fds = self._spawning.with_own(request, fds, domain.id, stack)
                described_now = described(request, fds)
                pid = domain.pids[core] = await self._table.launcher.add_dispatcher(kept, request, fds)
            try:
                domain.check_running()
                domain.descriptors += [item for item in described_now if item["ino"]]
                self._table.store.change(domain.id, domain.about())
            except BaseException:
                kept.drop(pid)
                raise
            kept.keep(pid)  # which the next manager does, where this one is killed before
        except BaseException:
            domain.pids.pop(core, None)
            shared.drop(core)
            raise
        return domain.pids[core]

    def channel(self, caller: Caller, request: wire.Channel) -> None:
        domain = self._table.allowed(caller, request.domain, DomainRights.SPAN)
        shared = self._table.shared.get(domain.id)
        if shared is None:
            raise ManagerError("LIB_ERR_NO_SPANNED_DISP", f"domain {domain.id} has one dispatcher only")
        with shared.fetch(request.here, request.there) as end:
            caller.answer(request.rid, None, (end.fileno(),))

    def memory(self, caller: Caller, request: wire.Memory) -> None:
        domain = self._table.allowed(caller, request.domain, DomainRights.SPAN)
        domain.check_running()
        shared = self._table.shared.setdefault(domain.id, Shared())
        caller.answer(request.rid, None, (shared.memory(domain.name),))
