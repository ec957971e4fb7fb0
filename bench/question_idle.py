"""How much memory does a cell take that waits for its launch?"""

from __future__ import annotations

from lab import Worker
from question import Answer, Bench, Target, by_row
from timing import take_turns

KEY = "idle"


def ask(bench: Bench) -> Answer:
    with Worker(bench.directory) as worker:
        cases = {"shoal.run|KiB": worker.idle_kib("shoal.run", bench.programs.dynamic)}
        table = by_row(take_turns(cases, max(3, bench.effort.rounds // 4), bench.order, bench.tick))
    found = table["shoal.run"]["KiB"]
    estimate = found.estimate() if hasattr(found, "estimate") else None
    return Answer(
        KEY,
        "Memory of one cell that waits (what processes and kernel hold more, divided by the cells)",
        "KiB",
        table,
        {},
        [Target("a waiting cell, KiB", 512.0, True, estimate)],
    )
