"""The process manager: domains, the capabilities that stand for them, and the names services are found by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from shoal.manager.errors import ManagerError, ManagerTimeoutError

if TYPE_CHECKING:
    from shoal.manager.capabilities import Capabilities, observe
    from shoal.manager.client import Manager, connect, embedded, exit
    from shoal.manager.cnode import CNode
    from shoal.manager.command import Command
    from shoal.manager.domains import ExitStatus
    from shoal.manager.held import Domain, DomainStatus
    from shoal.manager.names import Barrier, Event, NameService, Query, Record, Semaphore, Watch
    from shoal.manager.rights import DomainRights, ManagerRights
    from shoal.manager.tokens import DomainCap, ManagerCap

# Loaded when they are first used: a program that looks at what it was handed needs few of them, and none of the extra "manager".
_WHERE: Final = {
    "CNode": "cnode",
    "Capabilities": "capabilities",
    "Command": "command",
    "Domain": "held",
    "DomainCap": "tokens",
    "DomainRights": "rights",
    "DomainStatus": "held",
    "ExitStatus": "domains",
    "Manager": "client",
    "ManagerCap": "tokens",
    "ManagerRights": "rights",
    **dict.fromkeys(("Barrier", "Event", "NameService", "Query", "Record", "Semaphore", "Watch"), "names"),
    "connect": "client",
    "embedded": "client",
    "exit": "client",
    "observe": "capabilities",
}

__all__ = [
    "Barrier",
    "CNode",
    "Capabilities",
    "Command",
    "Domain",
    "DomainCap",
    "DomainRights",
    "DomainStatus",
    "Event",
    "ExitStatus",
    "Manager",
    "ManagerCap",
    "ManagerError",
    "ManagerRights",
    "ManagerTimeoutError",
    "NameService",
    "Query",
    "Record",
    "Semaphore",
    "Watch",
    "connect",
    "embedded",
    "exit",
    "observe",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(f"{__name__}.{_WHERE[name]}")
    except ModuleNotFoundError as error:
        if error.name in ("msgspec", "biscuit_auth", "lark", "re2", "sortedcontainers"):
            what = f"{error}; the process manager takes more than shoal itself: pip install 'shoal[manager]'"
            raise ModuleNotFoundError(what, name=error.name) from error
        raise
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
