"""The process manager: domains, the capabilities that stand for them, and the names services are found by."""

from shoal.manager.capabilities import Capabilities, observe
from shoal.manager.cnode import CNode
from shoal.manager.errors import ManagerError
from shoal.manager.rights import DomainRights, ManagerRights
from shoal.manager.tokens import DomainCap, ManagerCap

__all__ = ["CNode", "Capabilities", "DomainCap", "DomainRights", "ManagerCap", "ManagerError", "ManagerRights", "observe"]
