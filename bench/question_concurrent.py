"""How many programs per second, with 200 of them at any time, from one process that has other things to do as well?

Every peer has the same: a program that ends at once, with the caller's standard streams, or with its output captured. Starting, waiting
and collecting is all that the parent does. A pool of threads is the way to have the standard module wait for many; with as many threads
as programs, which is what it takes for 200 at a time, and with four, which is what the processors here are good for.
"""

from __future__ import annotations

from lab import Worker
from question import Answer, Bench, Target, by_row, ratio
from timing import take_turns

KEY = "concurrent"
OURS, BOXED = "shoal.aio (asyncio)", "shoal.aio, Sandbox()"
STANDARD, ON_UVLOOP, POOL = "asyncio's own", "asyncio's own (uvloop)", "subprocess, 200 threads"
PEERS = (
    OURS,
    "shoal.aio (uvloop)",
    "shoal.aio (trio)",
    BOXED,
    STANDARD,
    ON_UVLOOP,
    "anyio.run_process (trio)",
    POOL,
    "subprocess, 4 threads",
)
COLUMNS = ("plain", "output captured")


def ask(bench: Bench) -> Answer:
    with Worker(bench.directory) as worker, Worker(bench.directory) as apart:
        homes = dict.fromkeys(PEERS, worker) | {ON_UVLOOP: apart}  # it brings a handler of SIGCHLD along
        cases = {
            f"{peer}|{column}": home.concurrent(peer, bench.programs.dynamic, bench.effort.seconds, captured=column != "plain")
            for peer, home in homes.items()
            for column in COLUMNS
        }
        table = by_row(take_turns(cases, bench.effort.rounds, bench.order, bench.tick))
    ours = table[OURS]
    ratios = {
        peer: {f"x asyncio, {column}": ratio(row[column], table[STANDARD][column]) for column in COLUMNS} for peer, row in table.items()
    }
    targets = [
        Target("shoal.aio / asyncio.create_subprocess_exec", 1.5, False, ratio(ours["plain"], table[STANDARD]["plain"])),
        Target("shoal.aio / subprocess.run in 200 threads", 1.0, False, ratio(ours["plain"], table[POOL]["plain"])),
        Target("the same, output captured", 1.5, False, ratio(ours["output captured"], table[STANDARD]["output captured"])),
    ]
    notes = ["shoal.aio runs them in no sandbox, as the others do, but where it says Sandbox(); asyncio's own is create_subprocess_exec()"]
    notes += [f"each figure is of {bench.effort.seconds:g} s of runs, {bench.effort.rounds} times"]
    title = "Programs per second, 200 at a time (/bin/true)"
    return Answer(KEY, title, "1/s", table, ratios, targets, notes, less_is_better=False)
