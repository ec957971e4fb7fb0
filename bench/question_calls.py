"""How many calls per second, with so many submitted and not answered at any time? What is made in the background is part of the price."""

from __future__ import annotations

from lab import Calls
from question import Answer, Bench, Target, by_row, ratio
from timing import Samples, take_turns

KEY = "calls"
OURS, POOL = "SandboxExecutor, 4 at once", "ProcessPoolExecutor (no isolation)"
OUTSTANDING = (1, 4, 16)


def ask(bench: Bench) -> Answer:
    rounds = max(3, bench.effort.rounds // 8)
    with Calls() as calls:
        cases = {
            f"{peer}|{outstanding} outstanding": calls.rate(peer, outstanding, bench.effort.seconds)
            for peer in (OURS, POOL)
            for outstanding in OUTSTANDING
        }
        table = by_row(take_turns(cases, rounds, bench.order, bench.tick))
    most = f"{OUTSTANDING[-1]} outstanding"
    ours = table[OURS][most]
    ratios = {peer: {f"/ SandboxExecutor, {most}": ratio(row[most], ours)} for peer, row in table.items()}
    targets = [Target("calls per second", 300.0, False, ours.estimate() if isinstance(ours, Samples) else None)]
    notes = [f"each figure is of at least {bench.effort.seconds:g} s of calls, {rounds} times"]
    return Answer(KEY, "Calls of a function with numpy per second", "1/s", table, ratios, targets, notes, less_is_better=False)
