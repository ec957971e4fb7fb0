"""Capabilities: what a domain can touch, as it was granted and as it is, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from shoal.handles.job import Job
from shoal.handles.process import Process
from shoal.manager.capabilities.compare import differences
from shoal.manager.capabilities.difference import Difference
from shoal.manager.capabilities.granted import Granted
from shoal.manager.capabilities.looking import look_at
from shoal.manager.capabilities.observed import Observed


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a domain can touch. `str()` is a tree for people, `to_dict()` is for programs, `to_dot()` is a picture.

    Attributes:
        name: what it is called. domain_id: its number, or None outside of a manager.
        granted: what it was given, from its Plan; None: nobody has kept that.
        observed: what the kernel says; None: it has ended.
        differences: where the two are not the same, worst first. Empty also where only one of them is known.
    """

    name: str
    domain_id: int | None
    granted: Granted | None
    observed: Observed | None
    differences: tuple[Difference, ...]

    @classmethod
    def of(cls, granted: Granted | None, observed: Observed | None, *, name: str = "", domain_id: int | None = None) -> Self:
        """The two side by side."""
        found = differences(granted, observed) if granted is not None and observed is not None else ()
        if not name and granted is not None:
            name = granted.name
        return cls(name, domain_id, granted, observed, found)

    @property
    def confined(self) -> bool:
        """Whether it can touch nothing but what it was given, as far as could be seen: nothing "beyond" or "lost"."""
        return not any(item.kind in ("beyond", "lost") for item in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """In the types of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict()` gave, also by way of JSON.

        Raises:
            ValueError: not the form of one; says where.
        """
        import msgspec

        try:
            found: Self = msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"this is no record of what a domain can touch: {error}") from error
        return found

    def to_dot(self) -> str:
        """A picture in the language of Graphviz: `dot -Tsvg`."""
        from shoal.manager.capabilities.picture import picture

        return picture(self)

    def to_tree(self, *, colour: bool = False, ascii_only: bool = False) -> str:
        """The tree that `str()` gives.

        Args:
            colour: with the escape sequences of a terminal; what is "beyond" or "lost" is red, other differences are yellow.
            ascii_only: without the characters that draw lines.
        """
        from shoal.manager.capabilities.tree import tree

        return tree(self, colour=colour, ascii_only=ascii_only)

    def __str__(self) -> str:
        return self.to_tree()


def observe(
    process: Process, *more: Process, granted: Granted | None = None, job: Job | None = None, holders: Iterable[Process] = ()
) -> Capabilities:
    """What a program, and all that belongs to it, can touch at this moment. Needs no manager.

    With `granted` the two are compared: `Granted.of_plan(shoal.explain(...))`, made from the arguments the program was started with
    while its descriptors were still open.

    Args:
        process: what was started; more: others that belong to it. Borrowed, and not waited for.
        job: what they were started in, if nothing else is in it. Without one, what a program in its caller's world has left behind
            is not found.
        holders: processes of shoal's own that hold them, for who has only their pidfds.
    Source: spawn_dump_capabilities_compat() in Barrelfish's spawn_client.c; proc(5).
    """
    return Capabilities.of(granted, look_at((process, *more), job=job, holders=holders), name=process.name)
