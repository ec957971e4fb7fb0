"""Taking turns and summing up: rounds in random order, medians, and how far they can be trusted.

On a busy machine the same call costs 30 % more a minute later. So nobody is measured alone: every round measures every
case once, in a new random order, and uncertainty comes from resampling whole rounds. A ratio resamples the same rounds
on both sides, which cancels whatever slowed both down.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

RESAMPLES = 1000
CONFIDENCE = 0.95

Take = Callable[[], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the interval that holds it at CONFIDENCE."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".0f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True, slots=True)
class Samples:
    """All values of one case, kept by the round they were taken in."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def median(self) -> float:
        return self._median_of(range(len(self.rounds)))

    def percentile(self, percent: int) -> float:
        values = sorted(value for taken in self.rounds for value in taken)
        return values[min(len(values) - 1, len(values) * percent // 100)]

    def estimate(self) -> Estimate:
        return _interval(self.median, [self._median_of(picked) for picked in _resampled(len(self.rounds))])

    def ratio_to(self, other: Samples) -> Estimate:
        """Median of this over median of `other`; both must come from the same rounds."""
        if len(self.rounds) != len(other.rounds):
            raise ValueError("samples of different runs cannot be compared")
        drawn = [self._median_of(picked) / other._median_of(picked) for picked in _resampled(len(self.rounds))]
        return _interval(self.median / other.median, drawn)

    def _median_of(self, picked: Sequence[int]) -> float:
        return statistics.median([value for index in picked for value in self.rounds[index]])


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A case that could not be measured, and why. Printed, never left out."""

    reason: str


def take_turns(
    cases: Mapping[str, Take], rounds: int, order: random.Random, tick: Callable[[int], None] = lambda done: None
) -> dict[str, Samples | Unavailable]:
    """Measure every case once per round. A case that fails is reported as unavailable; the others go on.

    Args:
        cases: name to a function that measures a few times and returns the values.
        order: source of each round's order.
        tick: called after each round with the number of rounds done.
    """
    values: dict[str, list[tuple[float, ...]]] = {name: [] for name in cases}
    failed: dict[str, Unavailable] = {}
    for done in range(1, rounds + 1):
        turn = [name for name in cases if name not in failed]
        order.shuffle(turn)
        for name in turn:
            try:
                values[name].append(tuple(cases[name]()))
            except CaseFailed as error:
                failed[name] = Unavailable(str(error))
        tick(done)
    return {name: failed.get(name) or Samples(tuple(values[name])) for name in cases}


class CaseFailed(Exception):
    """A peer is missing here, or a program it started did not end with 0."""


def _resampled(count: int) -> list[list[int]]:
    # The same draws for everyone: a ratio then compares like with like, and a report can be recomputed from its JSON.
    draw = random.Random(count)
    return [draw.choices(range(count), k=count) for _ in range(RESAMPLES)]


def _interval(value: float, drawn: list[float]) -> Estimate:
    drawn.sort()
    tail = (1 - CONFIDENCE) / 2
    return Estimate(value, drawn[int(tail * len(drawn))], drawn[int((1 - tail) * len(drawn)) - 1])
