"""How many runs in a sandbox per second, one right after the other, for as long as it takes to use up all that was made ahead?

What is made in the background is part of the price here: it takes the same processors.
"""

from __future__ import annotations

from lab import Worker
from question import Answer, Bench, Result, Target, by_row, ratio
from timing import Samples, take_turns

KEY = "sustained"
PEERS = ("shoal.run", "subprocess.run", "bwrap sandbox (subprocess.run)", "sandlock sandbox")
THREADS = (1, 2, 4)


def ask(bench: Bench) -> Answer:
    columns = {threads: f"{threads} thread{'s' if threads > 1 else ''}" for threads in THREADS}
    with Worker(bench.directory) as worker, Worker(bench.directory) as apart:
        homes = dict.fromkeys(PEERS, worker) | {"sandlock sandbox": apart}
        cases = {
            f"{peer}|{column}": home.rate(peer, bench.programs.dynamic, threads, bench.effort.seconds)
            for peer, home in homes.items()
            for threads, column in columns.items()
        }
        rounds = max(3, bench.effort.rounds // 10)
        table = by_row(take_turns(cases, rounds, bench.order, bench.tick))
    ratios = {
        peer: {f"shoal.run /, {column}": ratio(table["shoal.run"][column], row[column]) for column in columns.values()}
        for peer, row in table.items()
    }
    targets = [
        Target(f"shoal.run / {peer}, best of 1 to 4 threads", 3.0, False, ratio(_best(table["shoal.run"]), _best(table[peer])))
        for peer in PEERS[2:]
    ]
    notes = [f"each figure is of at least {bench.effort.seconds:g} s of runs, {max(3, bench.effort.rounds // 10)} times"]
    return Answer(
        KEY,
        "Runs in a sandbox per second, with all that is made in the background",
        "1/s",
        table,
        ratios,
        targets,
        notes,
        less_is_better=False,
    )


def _best(row: dict[str, Result]) -> Result:
    """The column with the highest rate."""
    known = [samples for samples in row.values() if isinstance(samples, Samples)]
    return max(known, key=lambda samples: samples.median) if known else next(iter(row.values()))
