"""The process manager: domains, the capabilities that stand for them, and the names services are found by."""

from shoal.manager.client import Domain, DomainStatus, Manager, connect, embedded, exit
from shoal.manager.domains import ExitStatus
from shoal.manager.errors import ManagerError, ManagerTimeoutError

__all__ = ["Domain", "DomainStatus", "ExitStatus", "Manager", "ManagerError", "ManagerTimeoutError", "connect", "embedded", "exit"]
