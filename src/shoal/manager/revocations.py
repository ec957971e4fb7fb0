"""Revocations: capabilities that are good no longer, as data for the manager to keep.

A manager writes a revocation to its record first and applies it then, so that what was revoked stays revoked whatever dies in between.
There are two kinds: of one capability, together with all that were narrowed from it; and of all capabilities for a domain, or for the
manager itself. For the latter a generation is counted up: what was minted in an earlier one is worthless, and what is minted from then
on is good.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from shoal.manager.biscuits import Reading


@dataclass(frozen=True, slots=True)
class Revocation:
    """One of them.

    Attributes:
        kind: of one capability, or of all that are for the same.
        domain_id: which domain they are for; None: the manager itself.
        revocation_id: of one: the last of the token's revocation ids, as hexadecimal digits.
        generation: of all: those of this one and later ones stay good.
        at: when, in seconds since 1970; for people.
    """

    kind: Literal["one", "all"]
    domain_id: int | None
    revocation_id: str
    generation: int
    at: float

    def __post_init__(self) -> None:
        if self.kind not in ("one", "all"):
            raise ValueError(f"a revocation is of one capability or of all, not of {self.kind!r}")
        if self.kind == "one" and not re.fullmatch("[0-9a-f]{32,512}", self.revocation_id):
            raise ValueError("the revocation of one capability takes its whole revocation id: DomainCap.revocation_id")

    def to_dict(self) -> dict[str, Any]:
        """In the types of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError, KeyError: not the form of one."""
        return cls(data["kind"], data["domain_id"], data["revocation_id"], data["generation"], data["at"])


class Revocations:
    """All that were applied. What was revoked for a domain is kept until `forget()`."""

    def __init__(self, stored: Iterable[Revocation] = ()) -> None:
        self._one: dict[int | None, dict[str, Revocation]] = {}
        self._all: dict[int | None, Revocation] = {}
        for item in stored:
            self.apply(item)

    def apply(self, item: Revocation) -> None:
        """From now on. Applying one twice is fine, and so is any order."""
        if item.kind == "one":
            self._one.setdefault(item.domain_id, {}).setdefault(item.revocation_id, item)
        elif item.generation > self.generation(item.domain_id):
            self._all[item.domain_id] = item

    def generation(self, domain_id: int | None) -> int:
        """The generation in which capabilities for a domain, or for the manager itself, are minted now."""
        found = self._all.get(domain_id)
        return 0 if found is None else found.generation

    def of_one(self, reading: Reading) -> Revocation:
        """A revocation of a capability and of all narrowed from it, to be stored and then applied."""
        return Revocation("one", reading.domain_id, reading.revocation_ids[-1], 0, time.time())

    def of_all(self, domain_id: int | None) -> Revocation:
        """A revocation of all capabilities for a domain, or for the manager itself, to be stored and then applied."""
        return Revocation("all", domain_id, "", self.generation(domain_id) + 1, time.time())

    def find(self, reading: Reading) -> Revocation | None:
        """What makes a capability worthless, if anything does."""
        general = self._all.get(reading.domain_id)
        if general is not None and reading.generation < general.generation:
            return general
        if revoked := self._one.get(reading.domain_id):
            return next((revoked[item] for item in reading.revocation_ids if item in revoked), None)
        return None

    def forget(self, domain_id: int) -> None:
        """Drop what concerns a domain that is no longer known, and whose capabilities lead nowhere anyway."""
        self._one.pop(domain_id, None)
        self._all.pop(domain_id, None)

    def __iter__(self) -> Iterator[Revocation]:
        for revoked in list(self._one.values()):
            yield from list(revoked.values())
        yield from list(self._all.values())

    def __len__(self) -> int:
        return sum(map(len, self._one.values())) + len(self._all)
