"""What the holder of a capability may do: with one domain, or with the manager itself."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, TypeVar

Rights = TypeVar("Rights", bound="DomainRights | ManagerRights")


class DomainRights(enum.Flag):
    """What the holder of a domain capability may do with that domain.

    Source: who may do what in spec section 3.2, where every copy of a capability could do everything.
    """

    WAIT = enum.auto()
    """Wait for its end and be told its exit status."""
    KILL = enum.auto()
    """End it, on every core."""
    SIGNAL = enum.auto()
    """Send it a signal."""
    SPAN = enum.auto()
    """Start another dispatcher of it on another core, or a command in it."""
    STATUS = enum.auto()
    """See its state, arguments, processes and resource use."""
    CAPABILITIES = enum.auto()
    """See all that it can touch."""
    LOGS = enum.auto()
    """Read what it has written."""
    EXIT = enum.auto()
    """End it with a status of one's choice. The domain's own; whoever starts a domain does not get it."""


class ManagerRights(enum.Flag):
    """What the holder of a manager capability may do."""

    ADD_SPAWND = enum.auto()
    """Give the manager a spawn daemon for a core."""
    LIST = enum.auto()
    """List and inspect every domain, whoever started it."""
    REVOKE = enum.auto()
    """Revoke capabilities, and mint new ones for a domain."""
    ACT = enum.auto()
    """Act on any domain by its number, as the calls of old do."""
    NAMES = enum.auto()
    """Register and remove the names that the system itself uses."""


FOR_SPAWNER: Final = ~DomainRights.EXIT
"""What whoever starts a domain gets."""
FOR_ITSELF: Final = ~DomainRights(0)
"""What a domain gets for itself."""
EVERYTHING: Final = ~ManagerRights(0)
"""What the manager's owner gets."""


def words(rights: DomainRights | ManagerRights) -> tuple[str, ...]:
    """The rights as the words that stand for them in tokens and messages, in their order."""
    return tuple((flag.name or "").lower() for flag in rights)


def from_words(kind: type[Rights], names: Iterable[str]) -> Rights:
    """The rights that `names` stand for.

    Raises:
        ValueError: one is no right of this kind; says which there are.
    """
    bits = 0
    for name in names:
        member = kind.__members__.get(name.upper())
        if member is None or name != name.lower():
            known = ", ".join(item.lower() for item in kind.__members__)
            raise ValueError(f"{name!r} is not one of the {kind.__name__}; there are: {known}")
        bits |= member.value
    return kind(bits)


def shown(rights: DomainRights | ManagerRights) -> str:
    """For people."""
    return " ".join(words(rights)) or "no rights"
