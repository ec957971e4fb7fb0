"""Spawning: from the request for a domain to the domain.

Every request is either carried out once or not at all: it has a key, which is remembered with the domain before its first instruction,
so that the same request sent again finds what the first has made.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

import msgspec

from shoal.manager import wire
from shoal.manager.bounds import Bounds
from shoal.manager.boxes import from_text, to_be_remembered
from shoal.manager.callers import Caller
from shoal.manager.domains import Domain, State, never
from shoal.manager.errors import ManagerError
from shoal.manager.handing import capability, lowest_free, manager
from shoal.manager.inspecting import described, described_later, granted_in_cell
from shoal.manager.naming import Naming
from shoal.manager.table import Table
from shoal.manager.wording import shown_bytes
from shoal.manager.workers import records_of

_OMP: Final = 0b10
_FLAGS_KNOWN: Final = 0b01 | _OMP  # NEW_DOMAIN, which every one is

NAME_MOST: Final = 4096
"""Characters of a domain's name: whatever is listed has room for a few of them."""


class Spawning:
    """For the loop's thread.

    Args:
        connect: serves the other end of a socket, for who that is.
    """

    def __init__(self, table: Table, naming: Naming, connect: Callable[[socket.socket, str], None]) -> None:
        self._table, self._naming, self._connect = table, naming, connect
        self._requests: dict[str, asyncio.Future[Domain]] = {}
        self._tokens: dict[int, str] = {}

    async def spawn(self, caller: Caller, request: wire.SpawnProgram, fds: list[int]) -> None:
        try:
            with self._table.answering(caller, request, "the domain could not be started", "SPAWN_ERR_RUN"):
                domain = await self._spawned(request, fds)
                caller.answer(request.rid, [domain.id, self._token_of(domain.id)])
                self._table.audit(caller, request, None, domain.id)  # before it can ask for anything else
        finally:
            for fd in fds:
                os.close(fd)

    async def _spawned(self, request: wire.SpawnProgram, fds: Sequence[int]) -> Domain:
        if request.flags & ~_FLAGS_KNOWN:
            raise ManagerError("SPAWN_ERR_GET_CMDLINE_ARGS", f"flags {request.flags:#x}: bits beyond NEW_DOMAIN and OMP mean nothing")
        under_way = self._requests.get(request.key)
        if under_way is not None:
            return await asyncio.shield(under_way)
        future = self._requests[request.key] = self._table.loop.create_future()
        try:
            domain = await self._carried_out(request.key) or await self._start(request, fds)
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # whether anybody else waits or not
            raise
        else:
            future.set_result(domain)
            return domain
        finally:
            del self._requests[request.key]

    async def _carried_out(self, key: str) -> Domain | None:
        """The domain that a request made which was sent before."""
        before = self._table.store.by_request(key)
        if before is not None and (adopting := self._table.adopting.get(before)) is not None:
            await asyncio.wait((adopting,))  # then it is known whether it began
            before = self._table.store.by_request(key)
        return None if before is None else self._table.find(before)

    async def _start(self, request: wire.SpawnProgram, fds: Sequence[int]) -> Domain:
        request = _checked(request, fds)
        workers = await asyncio.to_thread(records_of, request.path) if request.flags & _OMP else ()
        seat = self._table.launcher.new_seat(self._table.next)
        self._table.next += 1
        name = request.name if request.name is not None else shown_bytes(os.path.basename(request.path))
        bounds = None
        try:
            domain = Domain(
                id=seat.id,
                key=seat.key,
                slot=seat.slot,
                name=name,
                argv=request.argv,
                pids={},
                started_s=time.time(),
                path=os.fsdecode(request.path),
                cwd=os.fsdecode(request.cwd),
                sandbox=None if request.sandbox is None else to_be_remembered(request.sandbox),
                descriptors=described(request, fds),
            )
            if request.sandbox is not None:
                bounds = Bounds.of(self._table.loop, from_text(request.sandbox), lambda cause: self._table.end(seat.id, cause))
                domain.bounds = {} if bounds is None else bounds.about()
            argv = b"\0".join(request.argv)
            plan = self._table.launcher.plan(request)
            granted = None if plan is None else granted_in_cell(plan, request)
            if request.own:
                domain.descriptors += described_later(self._own_handles(request)[1])
            self._table.store.add(
                seat.id, seat.key, request.key, seat.slot, self._table.boot, name, str(request.core), argv, domain.about(), granted
            )
        except BaseException:
            self._table.launcher.ledger.give_back(seat.slot)
            if bounds is not None:
                bounds.finish(never())
            raise
        self._table.domains[seat.id] = domain
        self._table.loop.call_soon(self._premint, seat.id)  # while it starts
        registered: list[str] = []
        try:
            registered = self._naming.announce_new(workers)
            with ExitStack() as stack:
                if request.own:
                    request, fds = self.with_own(request, fds, seat.id, stack)
                kept = await self._table.launcher.start(seat, request, fds, bounds)
        except BaseException as error:
            for name in registered:
                self._naming.withdraw(name)
            del self._table.domains[seat.id]
            self._tokens.pop(seat.id, None)
            if bounds is not None:
                bounds.finish(never())
            self._table.launcher.ledger.give_back(seat.slot)
            self._table.written(self._table.store.drop, seat.id)
            domain.not_started(ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"domain {seat.id} was not started: {error}"))
            raise
        self._table.kept[seat.id] = kept
        if bounds is not None:
            self._table.bounds[seat.id] = bounds
            bounds.start()
        domain.running(request.core, kept.pid)
        if domain.state is State.STOP_PENDING:
            kept.kill()
        return domain

    def with_own(
        self, request: wire.SpawnProgram, fds: Sequence[int], id: int, stack: ExitStack
    ) -> tuple[wire.SpawnProgram, tuple[int, ...]]:
        """The same with the capability for the domain itself, and a connection to us."""
        targets, given = self._own_handles(request)
        vmo = stack.enter_context(self._table.authority.own_of_domain(id).to_vmo())
        near, far = socket.socketpair()
        stack.callback(far.close)
        self._connect(near, f"domain {id}")
        request = msgspec.structs.replace(request, given=[*request.given, *given], targets=[*request.targets, *targets])
        return request, (*fds, vmo.fileno(), far.fileno())

    @staticmethod
    def _own_handles(request: wire.SpawnProgram) -> tuple[list[int], list[wire.Given]]:
        """The numbers of the two, and what the program is told of them."""
        first = lowest_free((*request.targets, *request.kept))
        second = lowest_free((*request.targets, *request.kept, first))
        return [first, second], [capability(first, request.core), manager(second)]

    def _premint(self, id: int) -> None:
        if id in self._table.domains:
            self._tokens[id] = self._table.authority.mint(id)

    def _token_of(self, id: int) -> str:
        return self._tokens.pop(id, None) or self._table.authority.mint(id)


def _checked(request: wire.SpawnProgram, fds: Sequence[int]) -> wire.SpawnProgram:
    """
    Raises:
        ManagerError: descriptors and what is said of them do not fit, or the name is too long to be listed.
    """
    if request.name is not None and len(request.name) > NAME_MOST:
        raise ManagerError("SPAWN_ERR_GET_CMDLINE_ARGS", f"a name of {len(request.name)} characters; {NAME_MOST} at most")
    targets = [*request.targets, *request.kept]
    if len(fds) != len(request.targets) or len(set(targets)) != len(targets) or not all(0 <= target < 1024 for target in targets):
        raise ManagerError("SPAWN_ERR_SETUP_FDCAP", f"{len(fds)} descriptors came for the numbers {targets}: each once, 0 to 1023")
    if any(number not in (1, 2) for number in request.kept):
        raise ManagerError("SPAWN_ERR_SETUP_FDCAP", "only 1 and 2 can be kept in the log")
    if any(item.target not in request.targets for item in request.given):
        raise ManagerError("SPAWN_ERR_SETUP_ARGCN", "a handle came without its descriptor")
    return msgspec.structs.replace(request, startup=None)
