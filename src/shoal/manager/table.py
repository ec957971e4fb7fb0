"""The table: the domains that a manager knows, where each part of the service finds them, and who may do what with which."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from shoal.manager import wire
from shoal.manager.authority import Authority
from shoal.manager.bounds import Bounds
from shoal.manager.callers import Caller, defect
from shoal.manager.dispatchers import Shared
from shoal.manager.domains import Domain
from shoal.manager.errors import ManagerError
from shoal.manager.history import from_history
from shoal.manager.kept import Kept
from shoal.manager.launching import Launcher
from shoal.manager.layout import Layout, boot_identity, out_of
from shoal.manager.rights import DomainRights, ManagerRights, shown
from shoal.manager.store import Store

_LOG: Final = logging.getLogger("shoal.manager")
NUMBER_MOST: Final = (1 << 63) - 1
"""More no domain has."""
_AUDITED: Final = frozenset(("PROC_MGMT_ERR_DOMAIN_CAP_HASH", "PROC_MGMT_ERR_NOT_MONITOR"))


class Table:
    """For the loop's thread.

    Attributes:
        launcher: set by the service, before anything else is done.
        domains: those that have not been cleaned up, by number. kept, bounds, shared: what there is besides of some of them.
        adopting: those of which a new manager does not know yet what has become of them.
        next: the number of the next. is_closed: the manager has let go of all of them.
    """

    launcher: Launcher

    def __init__(self, loop: asyncio.AbstractEventLoop, layout: Layout, store: Store, authority: Authority) -> None:
        self.loop, self.layout, self.store, self.authority = loop, layout, store, authority
        self.boot = boot_identity()
        self.domains: dict[int, Domain] = {}
        self.kept: dict[int, Kept] = {}
        self.bounds: dict[int, Bounds] = {}
        self.shared: dict[int, Shared] = {}
        self.adopting: dict[int, asyncio.Task[None]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.next = store.last_id() + 1
        self.is_closed = False

    def begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def written(self, write: Callable[..., object], *words: object) -> None:
        """Write down what can be found out again: on a full disk that is left for later."""
        try:
            write(*words)
        except ManagerError as error:
            _LOG.warning("%s", error)

    def end(self, id: int, cause: int) -> None:
        """Its time is up."""
        kept = self.kept.get(id)
        if kept is not None:
            kept.kill(cause)

    async def reached(self, domain: Domain) -> Kept:
        """The link to its init, as soon as that has been found again.

        Raises:
            ManagerError: it has ended, or listens to nobody.
        """
        if domain.id not in self.kept and (adopting := self.adopting.get(domain.id)) is not None:
            await asyncio.wait((adopting,))
        domain.check_running()
        kept = self.kept.get(domain.id)
        if kept is None:
            raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"domain {domain.id} cannot be reached: its init listens to nobody")
        return kept

    def find(self, id: int) -> Domain:
        domain = self.domains.get(id)
        if domain is not None:
            return domain
        row = self.store.find(id) if 0 <= id <= NUMBER_MOST else None
        if row is None or row.ended is None:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"there is no domain {id}")
        return from_history(row)

    def allowed(self, caller: Caller, which: str | int, right: DomainRights, instead: ManagerRights = ManagerRights.ACT) -> Domain:
        """The domain a request is about.

        Raises:
            ManagerError: there is none, or the caller may not.
        """
        if isinstance(which, str):
            return self.find(self.authority.check(which, right))
        self.need(caller, instead, f"domain {which} by its number")
        return self.find(which)

    def need(self, caller: Caller, right: ManagerRights, what: str) -> None:
        """
        Raises:
            ManagerError: it has not shown a manager capability with that right.
        """
        if not caller.rights & right:
            raise ManagerError("PROC_MGMT_ERR_NOT_MONITOR", f"{what}: that takes a manager capability with the right: {shown(right)}")

    @contextmanager
    def answering(self, caller: Caller, request: wire.Request, failed: str, code: str = "PROC_MGMT_ERR_SPAWND_REQUEST") -> Iterator[None]:
        """In here a request is carried out. What is raised is told to the caller: a defect of ours costs the request, not the manager.

        Args:
            failed: what could not be done, where the system says why, and its code.
        """
        try:
            yield
        except ManagerError as error:
            self.refused(caller, request, error)
            caller.refuse(request.rid, error)
        except OSError as error:
            caller.refuse(request.rid, out_of(error, failed, code))
        except Exception as error:
            caller.refuse(request.rid, defect(error))

    def refused(self, caller: Caller, request: wire.Request, error: ManagerError) -> None:
        if error.code in _AUDITED:
            self.audit(caller, request, error)

    def audit(self, caller: Caller, request: wire.Request, error: ManagerError | None, domain: int | None = None) -> None:
        try:
            self.store.audit(time.time(), caller.who, type(request).__name__.lower(), domain, None if error is None else str(error))
        except (ManagerError, UnicodeError):
            pass  # a full disk keeps nobody from what still works
