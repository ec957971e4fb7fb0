"""How long does a run take from a shell, where each command starts anew?

`shoal run` is a Python program: most of its time goes into the interpreter and what that loads, and nothing is ever made ahead. Who
starts many programs is better off with `shoal.run` in one process, which the other questions are about.
"""

from __future__ import annotations

from lab import Worker
from question import Answer, Bench, by_row, ratio
from timing import take_turns

KEY = "command"
OURS = "shoal run, the command"
PEERS = (OURS, "bwrap, the command", "python -c pass")


def ask(bench: Bench) -> Answer:
    with Worker(bench.directory) as worker:
        count = max(1, bench.effort.count // 5)
        cases = {f"{peer}|/bin/true": worker.launches(peer, bench.programs.dynamic, count) for peer in PEERS}
        table = by_row(take_turns(cases, bench.effort.rounds, bench.order, bench.tick))
    ratios = {peer: {"/ shoal run": ratio(row["/bin/true"], table[OURS]["/bin/true"])} for peer, row in table.items()}
    return Answer(KEY, "Run a program in a sandbox from a shell", "us", table, ratios, [])
