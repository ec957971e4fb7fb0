"""Sessions: who asks, and what ends with them.

Called by: registry.py. Touches: nothing. A session is one connection. Its principal is the capability it came with: what one session of a
principal made, another of the same principal may change. A privileged session came with the manager capability.
Source: spec 5.11 and 5.13 (ours).
"""

from __future__ import annotations


class Session:
    """One connection, and what ends with it.

    Attributes:
        id: its number, from 1, never used again.
        principal: the capability it came with.
        privileged: whether that is the manager's.
        records: names of the records that end with it, oldest first.
        capabilities: keys in the capability store that end with it.
        watches: numbers of its watches and subscriptions.
        weight: of the patterns in them.
        is_ending: whether it is being closed.
    """

    __slots__ = ("capabilities", "id", "is_ending", "principal", "privileged", "records", "watches", "weight")

    def __init__(self, id: int, principal: str, privileged: bool) -> None:
        self.id = id
        self.principal = principal
        self.privileged = privileged
        self.records: dict[str, None] = {}
        self.capabilities: dict[str, None] = {}
        self.watches: dict[int, None] = {}
        self.weight = 0
        self.is_ending = False

    def may_change(self, principal: str) -> bool:
        """Whether what belongs to `principal` may be replaced and removed."""
        return self.privileged or self.principal == principal
