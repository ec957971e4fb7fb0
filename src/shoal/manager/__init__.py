"""The process manager: domains, the capabilities that stand for them, and the names services are found by."""

from shoal.manager.errors import ManagerError

__all__ = ["ManagerError"]
