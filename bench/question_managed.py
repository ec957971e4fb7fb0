"""What does it cost to have a program kept by the manager, compared with starting it and waiting for it oneself?"""

from __future__ import annotations

from lab import Client, Floor
from managers import Daemon
from question import Answer, Bench, Target, by_row, ratio
from timing import take_turns

KEY = "managed"
MANAGED, LOGGED, DIRECT, FLOOR = "shoal.manager", "shoal.manager, output kept", "shoal.spawn", "vfork+exec in C (the floor)"


def ask(bench: Bench) -> Answer:
    effort = bench.effort
    with Daemon(), Client() as client, Floor(bench.programs) as floor:
        cases = {}
        for column, program in bench.programs.items():
            for peer in (MANAGED, LOGGED, DIRECT):
                cases[f"{peer}|{column}"] = client.launches(peer, program, effort.count)
            cases[f"{FLOOR}|{column}"] = floor.launches(program, effort.count)
        table = by_row(take_turns(cases, effort.rounds, bench.order, bench.tick))
    columns = [column for column, _ in bench.programs.items()]
    ratios = {
        peer: {f"/ shoal.spawn, {column}": ratio(row[column], table[DIRECT][column]) for column in columns} for peer, row in table.items()
    }
    targets = [
        Target(f"spawn and wait / the direct call, {column}", 1.5, True, ratios[MANAGED][f"/ shoal.spawn, {column}"]) for column in columns
    ]
    notes = [
        "from one client, one after the other; all but shoal.spawn and the floor are kept by the daemon, and told of by it",
        "what the manager does for each: an init of its own, a row in the database, an entry in the audit log, a signed capability",
    ]
    return Answer(KEY, "Starting a program and waiting for it, through the manager", "us", table, ratios, targets, notes)
