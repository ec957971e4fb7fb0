"""How many programs per second can one parent start, with 1, 2, 4 and 8 threads?"""

from __future__ import annotations

from lab import Worker
from question import Answer, Bench, by_row, ratio
from timing import take_turns

KEY = "threads"
PEERS = ("shoal.spawn", "shoal cell", "subprocess.Popen", "os.posix_spawn")
THREADS = (1, 2, 4, 8)


def ask(bench: Bench) -> Answer:
    columns = {threads: f"{threads} thread{'s' if threads > 1 else ''}" for threads in THREADS}
    with Worker(bench.directory) as worker:
        cases = {
            f"{peer}|{column}": worker.rate(peer, bench.programs.static, threads, bench.effort.seconds)
            for peer in PEERS
            for threads, column in columns.items()
        }
        # A round is one value per case here, and a long one: a third of the rounds gives the same certainty.
        rounds = max(3, bench.effort.rounds // 3)
        table = by_row(take_turns(cases, rounds, bench.order, bench.tick))
    last = columns[THREADS[-1]]
    ratios = {peer: {f"x Popen, {last}": ratio(row[last], table["subprocess.Popen"][last])} for peer, row in table.items()}
    return Answer(KEY, "Programs started and awaited per second (static program)", "1/s", table, ratios, less_is_better=False)
