"""Callers: a client as each part of the service sees it, and what it is told of a defect of ours."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any, Protocol

from shoal.manager.errors import ManagerError
from shoal.manager.naming import Client
from shoal.manager.rights import ManagerRights


class Caller(Client, Protocol):
    """A client, as the service sees it.

    Attributes:
        who: for the audit log. rights: those of the manager capability that it has shown.
    """

    who: str
    rights: ManagerRights

    def answer(self, rid: int, value: Any = None, fds: Sequence[int] = ()) -> None: ...

    def refuse(self, rid: int, error: ManagerError) -> None: ...


def defect(error: Exception) -> ManagerError:
    """What costs a request, and not the manager."""
    traceback.print_exception(error)
    return ManagerError(
        "PROC_MGMT_ERR_SPAWND_REQUEST", f"a defect of the manager, of which its log tells more: {type(error).__name__}: {error}"
    )
