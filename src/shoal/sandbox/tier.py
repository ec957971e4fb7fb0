"""Tier: what a Sandbox is made of on this machine. Chosen here and nowhere else, once, by trying.

* "cell, root": namespaces made by a privileged caller; a user of its own.
* "cell, user namespace": the same by an ordinary user, in a user namespace.
* "landlock": where neither is allowed (a container's seccomp filter, AppArmor, a sysctl). Landlock is then the first wall instead of
  the second, a filter closes what namespaces would have kept apart, and a holder ends the tree.

A sandbox runs in the first of these that works. Where none does it is refused: there is no tier without a wall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.privileges import is_privileged
from shoal.probe import cell_fix, is_forbidden, landlock_abi, landlock_fix, try_cell
from shoal.status import Stage, Status, failure

Name = Literal["cell, root", "cell, user namespace", "landlock"]


@dataclass(frozen=True, slots=True)
class Tier:
    """One of them.

    Attributes:
        abi: what Landlock knows here; 0: there is none.
        why: why there is no cell, and fix: what would allow one. Empty in a cell.
    """

    name: Name
    abi: int
    why: str = ""
    fix: str = ""

    @property
    def is_cell(self) -> bool:
        return self.name != "landlock"

    @property
    def described(self) -> str:
        """In words, for people."""
        if self.is_cell:
            return f"{self.name}: namespaces, seccomp" + (f", Landlock ABI {self.abi} as a second wall" if self.abi else "")
        return f"landlock: Landlock ABI {self.abi} as the first wall, seccomp; no namespaces ({self.why})"


def tier() -> Tier:
    """The one that sandboxes of this process get.

    Raises:
        NotSupportedError: there is none; says what would bring one.
    """
    privileged = is_privileged()
    known = _known.get(privileged)
    return known if known is not None else _tried(privileged=privileged)


_known: dict[bool, Tier] = {}
"""What was found, by whether the caller was privileged."""


def _tried(*, privileged: bool) -> Tier:
    abi = landlock_abi()
    refusal = try_cell(privileged=privileged)
    if refusal is None or not is_forbidden(refusal):
        cell = Tier("cell, root" if privileged else "cell, user namespace", abi)
        if refusal is None:
            _known[privileged] = cell
        return cell  # which says what it lacks at this moment when it is made
    fix = cell_fix(refusal, privileged=privileged)
    if not abi:
        what = f"neither namespaces ({refusal}) nor Landlock can be had here, and a sandbox takes one of them"
        raise failure(Status.NOT_SUPPORTED, Stage.SETUP, f"{what}. For namespaces: {fix}. For Landlock: {landlock_fix()}", refusal.error)
    _known[privileged] = found = Tier("landlock", abi, str(refusal), fix)
    return found
