"""The process manager: domains, the capabilities that stand for them, and the names services are found by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal import first_use

if TYPE_CHECKING:
    from shoal.manager.capabilities import Capabilities as Capabilities
    from shoal.manager.capabilities import observe as observe
    from shoal.manager.client import Manager as Manager
    from shoal.manager.client import connect as connect
    from shoal.manager.client import embedded as embedded
    from shoal.manager.client import exit as exit
    from shoal.manager.cnode import CNode as CNode
    from shoal.manager.command import Command as Command
    from shoal.manager.domains import ExitStatus as ExitStatus
    from shoal.manager.errors import ManagerError as ManagerError
    from shoal.manager.errors import ManagerTimeoutError as ManagerTimeoutError
    from shoal.manager.held import Domain as Domain
    from shoal.manager.held import DomainStatus as DomainStatus
    from shoal.manager.names import Barrier as Barrier
    from shoal.manager.names import Event as Event
    from shoal.manager.names import NameService as NameService
    from shoal.manager.names import Query as Query
    from shoal.manager.names import Record as Record
    from shoal.manager.names import Semaphore as Semaphore
    from shoal.manager.names import Watch as Watch
    from shoal.manager.rights import DomainRights as DomainRights
    from shoal.manager.rights import ManagerRights as ManagerRights
    from shoal.manager.tokens import DomainCap as DomainCap
    from shoal.manager.tokens import ManagerCap as ManagerCap
else:
    # A program that looks at what it was handed needs few of them, and none of the extra "manager".
    _find, __dir__, __all__ = first_use.names(
        __name__,
        {
            "shoal.manager.capabilities": ("Capabilities", "observe"),
            "shoal.manager.client": ("Manager", "connect", "embedded", "exit"),
            "shoal.manager.cnode": ("CNode",),
            "shoal.manager.command": ("Command",),
            "shoal.manager.domains": ("ExitStatus",),
            "shoal.manager.errors": ("ManagerError", "ManagerTimeoutError"),
            "shoal.manager.held": ("Domain", "DomainStatus"),
            "shoal.manager.names": ("Barrier", "Event", "NameService", "Query", "Record", "Semaphore", "Watch"),
            "shoal.manager.rights": ("DomainRights", "ManagerRights"),
            "shoal.manager.tokens": ("DomainCap", "ManagerCap"),
        },
    )

    def __getattr__(name: str) -> object:
        try:
            return _find(name)
        except ModuleNotFoundError as error:
            if error.name in ("msgspec", "biscuit_auth", "lark", "re2", "sortedcontainers"):
                what = f"{error}; the process manager takes more than shoal itself: pip install 'shoal[manager]'"
                raise ModuleNotFoundError(what, name=error.name) from error
            raise
