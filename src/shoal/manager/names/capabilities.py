"""The capability store: descriptors kept under a key, apart from the records.

Called by: registry.py. Touches: nothing. A key is no secret: reading takes the principal that put the descriptor, the manager capability,
or that it was put `shared`; whoever may not read is told that there is nothing.
Source: spec 5.12.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.manager.errors import ManagerError
from shoal.manager.names.limits import NAME_BYTES
from shoal.manager.names.record import check_unicode, shown
from shoal.manager.names.sessions import Session
from shoal.manager.names.value import Closable


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One stored descriptor.

    Attributes:
        value: the descriptor.
        session: the session it ends with, or None.
        principal: who may read and remove it.
        shared: whether anybody may read it.
    """

    value: Closable
    session: int | None
    principal: str
    shared: bool


class CapabilityStore:
    """Descriptors by key."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, key: str, held: Held) -> None:
        """Keep a descriptor under a key that is free.

        Raises:
            ManagerError: OCT_ERR_CAP_OVERWRITE, it is not; OCT_ERR_QUERY_SIZE, OCT_ERR_PARSER_FAIL, the key.
        """
        check_key(key)
        if key in self._held:
            raise ManagerError("OCT_ERR_CAP_OVERWRITE", f"there is a capability under {shown(key)}; remove it first")
        self._held[key] = held

    def numbered(self, prefix: str) -> str:
        """A key that is free: `prefix` and a number that was not used before."""
        while True:
            key = f"{prefix}{self._number}"
            check_key(key)
            self._number += 1
            if key not in self._held:
                return key

    def read(self, key: str, session: Session) -> Held:
        """What is kept under a key.

        Raises:
            ManagerError: OCT_ERR_CAP_NAME_UNKNOWN, nothing, as far as this session may know.
        """
        held = self._held.get(key)
        if held is None or not (held.shared or session.may_change(held.principal)):
            raise _unknown(key)
        return held

    def take(self, key: str, session: Session) -> Held:
        """The same, and it is no longer kept. Shared or not, removing takes its principal.

        Raises:
            ManagerError: OCT_ERR_CAP_NAME_UNKNOWN; OCT_ERR_NOT_OWNER, it may be read but not removed.
        """
        held = self.read(key, session)
        if not session.may_change(held.principal):
            raise ManagerError("OCT_ERR_NOT_OWNER", f"{shown(key)} was put there by another capability, and only that may remove it")
        return self._held.pop(key)


def check_key(key: str) -> None:
    """Refuse a key that is too long.

    Raises:
        ManagerError: OCT_ERR_QUERY_SIZE, OCT_ERR_PARSER_FAIL.
    """
    if not key or len(key) > NAME_BYTES or check_unicode(key) > NAME_BYTES:
        raise ManagerError("OCT_ERR_QUERY_SIZE", f"the key of a capability has 1 to {NAME_BYTES} bytes: {shown(key)}")


def _unknown(key: str) -> ManagerError:
    return ManagerError("OCT_ERR_CAP_NAME_UNKNOWN", f"there is no capability under {shown(key)}")
