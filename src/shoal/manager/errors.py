"""ManagerError: what the process manager, its spawn daemons and its name service refuse, with the code the seed gives it."""

from __future__ import annotations

from shoal.status import ShoalError


class ManagerError(ShoalError):
    """A request the manager did not carry out.

    Attributes:
        code: what went wrong, by the name the seed knows it by, such as "PROC_MGMT_ERR_INVALID_SPAWND" or "OCT_ERR_NO_RECORD".
    Source: errors/errno.fugu in Barrelfish.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} [{code}]")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[ManagerError], tuple[str, str]]:
        return type(self), (self.code, self.message)


class ManagerTimeoutError(ManagerError, TimeoutError):
    """What was waited for did not happen in the time given. Nothing of the wait is left behind."""
