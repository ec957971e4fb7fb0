"""What a question gives back: figures in a table, targets with the measured value beside them, and the raw samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from programs import Programs
from timing import Estimate, Samples, Unavailable

Result = Samples | Unavailable


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure. A round takes `count` launches of each case, or runs `seconds` per rate."""

    rounds: int
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how a question is asked."""

    programs: Programs
    directory: Path
    effort: Effort
    order: random.Random
    tick: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A goal and what came out. `measured` is None when a side of it could not be measured."""

    text: str
    limit: float
    at_most: bool
    measured: Estimate | None
    noise: float = 0.0

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        good = self.measured.value <= self.limit + self.noise if self.at_most else self.measured.value >= self.limit - self.noise
        return "met" if good else "NOT MET"

    @property
    def asked(self) -> str:
        margin = f" (noise {self.noise:.2f})" if self.noise else ""
        return f"{'<=' if self.at_most else '>='} {self.limit:.2f}{margin}"


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's outcome. `results` is by row, then by column, in the order to print."""

    key: str
    title: str
    unit: str
    results: Mapping[str, Mapping[str, Result]]
    ratios: Mapping[str, Mapping[str, Estimate | None]]  # further columns, by row
    targets: Sequence[Target] = ()
    notes: Sequence[str] = field(default=())
    less_is_better: bool = True


def ratio(above: Result, below: Result) -> Estimate | None:
    """Median over median, or None when one side is missing."""
    return above.ratio_to(below) if isinstance(above, Samples) and isinstance(below, Samples) else None


def by_row(results: Mapping[str, Result], separator: str = "|") -> dict[str, dict[str, Result]]:
    """Split names "row|column" as the questions build them."""
    table: dict[str, dict[str, Result]] = {}
    for name, result in results.items():
        row, column = name.split(separator)
        table.setdefault(row, {})[column] = result
    return table
