"""The process manager: domains, the capabilities that stand for them, and the names services are found by."""

from shoal.manager.capabilities import Capabilities, observe
from shoal.manager.client import Domain, DomainStatus, Manager, connect, embedded, exit
from shoal.manager.cnode import CNode
from shoal.manager.domains import ExitStatus
from shoal.manager.errors import ManagerError
from shoal.manager.rights import DomainRights, ManagerRights
from shoal.manager.tokens import DomainCap, ManagerCap

__all__ = [
    "CNode",
    "Capabilities",
    "Domain",
    "DomainCap",
    "DomainRights",
    "DomainStatus",
    "ExitStatus",
    "Manager",
    "ManagerCap",
    "ManagerError",
    "ManagerRights",
    "connect",
    "embedded",
    "exit",
    "observe",
]
