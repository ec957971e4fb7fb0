"""Differences: where what a domain can touch is not what it was granted.

Four kinds, worst first:

* "beyond": it can touch something that it was not given.
* "lost": something that was taken from it is back, such as a filter that is not there.
* "missing": something that it was given is not there.
* "unseen": something could not be looked at, so that nobody can say.

No program is expected to sit still. What it may do with what it has is no difference: open and close files below a directory it was
given, as far as that may be written; make pipes, memory, sockets of its own network; close what it was handed, or open it under other
numbers; start processes; lower its limits; give up what is left of its privileges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["beyond", "lost", "missing", "unseen"]
WORST_FIRST: Final[tuple[Kind, ...]] = ("beyond", "lost", "missing", "unseen")


@dataclass(frozen=True, slots=True)
class Difference:
    """One of them.

    Attributes:
        kind: which of the four.
        subject: what it is about: "mount /work", "descriptor 5 of 4711", "no_new_privs of 4711".
        what: in words.
        pid: of which process, or None.
    """

    kind: Kind
    subject: str
    what: str
    pid: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.what}"
