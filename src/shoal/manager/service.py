"""The service: what a manager does for its clients, whatever they reach it by. For the loop's thread.

Here its parts are put together, and each request goes to one of them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from shoal.manager import wire
from shoal.manager.adopting import SOON_S, Adopting
from shoal.manager.announcing import Announcing, own_cores
from shoal.manager.authority import Authority
from shoal.manager.callers import Caller
from shoal.manager.endings import Endings
from shoal.manager.errors import ManagerError
from shoal.manager.executing import Executing
from shoal.manager.following import Following
from shoal.manager.launching import Launcher
from shoal.manager.layout import Layout
from shoal.manager.listing import Listing
from shoal.manager.naming import Naming
from shoal.manager.rights import ManagerRights
from shoal.manager.spanning import Spanning
from shoal.manager.spawning import Spawning
from shoal.manager.store import Store
from shoal.manager.table import Table
from shoal.manager.waiting import Waiting

AUDIT_AT_ONCE: Final = 10_000
"""Entries of the audit log in one answer."""

Handler = Callable[[Caller, Any], None]


class Service:
    """One manager. `close()` leaves every domain running."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, layout: Layout, store: Store, authority: Authority, cores: Iterable[int] | None = None
    ) -> None:
        """
        Args:
            cores: those that it is the spawn daemon of itself, and every later manager of the same state; None: as before.
        Raises:
            ManagerError: it may not run on one of them.
        """
        table = self._table = Table(loop, layout, store, authority)
        self._naming = Naming(store, loop.call_soon)
        self._announcing = Announcing(table, self._naming)
        endings = Endings(table)
        own, changed = own_cores(store, cores), self._announcing.core_changed
        table.launcher = Launcher(loop, layout, own, authority.own, changed, endings.note)
        self._adopting = Adopting(table, endings)
        self._spawning = Spawning(table, self._naming, self._connected)
        self._spanning = Spanning(table, self._spawning)
        self._executing = Executing(table)
        self._waiting = Waiting(table, lambda caller, request: self.handle(caller, request, []))
        self._following = Following(table, self._waiting)
        self._listing = Listing(table)
        self.connect: Callable[[socket.socket, str], None] = lambda sock, who: sock.close()
        """Serves the other end of a socket, for who that is."""
        self.stopped: asyncio.Future[None] = loop.create_future()
        self._handlers: dict[type, Handler] = {
            wire.AddSpawnd: self._announcing.add_spawnd,
            wire.Audit: self._audited,
            wire.Cancel: self._cancel,
            wire.Capabilities: self._listing.capabilities,
            wire.Channel: self._spanning.channel,
            wire.Cores: self._announcing.cores,
            wire.History: self._listing.history,
            wire.Kill: self._waiting.kill,
            wire.List: self._listing.alive,
            wire.Logs: self._following.logs,
            wire.Memory: self._spanning.memory,
            wire.Mint: self._mint,
            wire.Revoke: self._revoke,
            wire.Signal: self._waiting.signal,
            wire.Span: self._spanning.span,
            wire.Status: self._listing.status,
            wire.Stop: self._stop,
            wire.Wait: self._waiting.wait,
        }

    def _connected(self, sock: socket.socket, who: str) -> None:
        self.connect(sock, who)

    # --- beginning and end ----------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Find again what an earlier manager has left: its spawn daemons, and its domains."""
        self._announcing.announce()
        self._table.begin(self._announcing.rebind())
        await self._adopting.adopt()

    async def settle(self) -> None:
        """Wait until what was begun is done: a spawn that is under way is carried out and written down."""
        if self._table.tasks:
            await asyncio.wait(self._table.tasks, timeout=SOON_S)

    def close(self) -> None:
        """Leave every domain alone, for the next manager."""
        self._table.is_closed = True
        for task in tuple(self._table.tasks):
            task.cancel()
        for kept in self._table.kept.values():
            kept.link.close()
        for bounds in self._table.bounds.values():
            bounds.close()
        for shared in self._table.shared.values():
            shared.close()
        self._following.close()
        self._table.launcher.close()
        self.stop()

    def stop(self) -> None:
        """Have the manager ended."""
        if not self.stopped.done():
            self.stopped.set_result(None)

    # --- requests ---------------------------------------------------------------------------------

    def handle(self, caller: Caller, request: wire.Request, fds: list[int]) -> None:
        """Carry out a request. Takes over the descriptors."""
        if isinstance(request, wire.SpawnProgram):
            self._table.begin(self._spawning.spawn(caller, request, fds))
            return
        if isinstance(request, wire.Exec):
            self._table.begin(self._executing.execute(caller, request, fds))
            return
        name = type(request).__name__.lower()
        with self._table.answering(caller, request, f"the manager cannot carry out {name}"):
            if isinstance(request, wire.NameRequest):
                self._naming.handle(caller, request, fds)
                return
            for fd in fds:
                os.close(fd)
            handler = self._handlers.get(type(request))
            if handler is None:
                raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"this manager does not know {name} yet")
            handler(caller, request)

    def rights_of(self, caller: Caller, hello: wire.Hello) -> ManagerRights:
        """What a client may do by the manager capability that it shows.

        Raises:
            ManagerError: it is not good.
        """
        assert hello.token is not None
        try:
            return self._table.authority.rights_of(hello.token)
        except ManagerError as error:
            self._table.refused(caller, hello, error)
            raise

    def left(self, caller: Caller) -> None:
        """A client has gone: nobody waits there any more."""
        self._naming.left(caller)
        for rid in self._waiting.left(caller):
            self._following.forget(caller, rid)

    def _mint(self, caller: Caller, request: wire.Mint) -> None:
        self._table.need(caller, ManagerRights.REVOKE, "a new capability for a domain")
        caller.answer(request.rid, self._table.authority.mint(self._table.find(request.domain).id))

    def _revoke(self, caller: Caller, request: wire.Revoke) -> None:
        self._table.need(caller, ManagerRights.REVOKE, "revoking")
        if isinstance(request.domain, str):
            id = self._table.authority.revoke_one(request.domain)
        else:
            id = self._table.find(request.domain).id
            self._table.authority.revoke(id)
        self._table.audit(caller, request, None, id)
        caller.answer(request.rid)

    def _cancel(self, caller: Caller, request: wire.Cancel) -> None:
        domain = self._waiting.has_answered(caller, request.other)
        if domain is not None:
            domain.forget((caller, request.other))
            self._following.forget(caller, request.other)
        caller.answer(request.rid)

    def _stop(self, caller: Caller, request: wire.Stop) -> None:
        self._table.need(caller, ManagerRights.ACT, "stopping the manager")
        caller.answer(request.rid)
        self._table.audit(caller, request, None)
        self.stop()

    def _audited(self, caller: Caller, request: wire.Audit) -> None:
        self._table.need(caller, ManagerRights.LIST, "the audit log")
        caller.answer(request.rid, self._table.store.audited(min(max(request.count, 0), AUDIT_AT_ONCE)))
