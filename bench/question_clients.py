"""How many domains per second does one manager start and wait for, with 1, 2 and 4 clients?"""

from __future__ import annotations

from contextlib import ExitStack

from lab import Client, Floor, floors_at_once, together
from managers import Daemon
from question import Answer, Bench, Target, by_row, ratio
from timing import Estimate, Samples, take_turns

KEY = "clients"
MANAGED, DIRECT, FLOOR = "shoal.manager", "shoal.spawn", "vfork+exec in C (the floor)"
CLIENTS = (1, 2, 4)
WANTED, OF_THE_FLOOR = 1000.0, 0.7


def ask(bench: Bench) -> Answer:
    columns = {count: f"{count} client{'s' if count > 1 else ''}" for count in CLIENTS}
    latencies: dict[str, list[float]] = {}
    with ExitStack() as stack:
        stack.enter_context(Daemon())
        clients = [stack.enter_context(Client()) for _ in range(CLIENTS[-1])]
        floors = [stack.enter_context(Floor(bench.programs)) for _ in range(CLIENTS[-1])]
        cases = {}
        for count, column in columns.items():
            for peer in (MANAGED, DIRECT):
                kept = latencies.setdefault(f"{peer}, {column}", [])
                cases[f"{peer}|{column}"] = together(clients[:count], peer, bench.programs.static, bench.effort.seconds, kept)
            cases[f"{FLOOR}|{column}"] = floors_at_once(floors[:count], bench.programs.static, bench.effort.seconds)
        table = by_row(take_turns(cases, max(3, bench.effort.rounds // 5), bench.order, bench.tick))
    most = columns[CLIENTS[-1]]
    ratios = {peer: {f"/ the floor, {most}": ratio(row[most], table[FLOOR][most])} for peer, row in table.items()}
    ours, floor = table[MANAGED][most], table[FLOOR][most]
    limit = min(WANTED, OF_THE_FLOOR * floor.median) if isinstance(floor, Samples) else WANTED
    measured: Estimate | None = ours.estimate() if isinstance(ours, Samples) else None
    text = f"domains per second, {most} (or {OF_THE_FLOOR:.0%} of the floor, whichever is lower)"
    notes = [f"each figure is of {bench.effort.seconds:g} s; each client, and each copy of the floor, is a process of its own"]
    notes += [
        f"{name}: p50 {_percentile(taken, 50):,.0f} us, p99 {_percentile(taken, 99):,.0f} us" for name, taken in latencies.items() if taken
    ]
    return Answer(
        KEY,
        "Programs started and waited for per second (static)",
        "1/s",
        table,
        ratios,
        [Target(text, limit, False, measured)],
        notes,
        False,
    )


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
