"""What does the drop-in cost beside the module it stands in for?"""

from __future__ import annotations

from lab import Worker
from question import Answer, Bench, Target, by_row, ratio
from timing import take_turns

KEY = "import"
WAYS = ("run", "run, captured", "Popen, waited for with a timeout")
OURS, STANDARD = "shoal.subprocess", "subprocess"
LIMIT = 1.05


def ask(bench: Bench) -> Answer:
    peers = [f"{module}.{way}" for way in WAYS for module in (OURS, STANDARD)]
    with Worker(bench.directory) as worker:
        cases = {
            f"{peer}|{kind}": worker.launches(peer, path, bench.effort.count) for peer in peers for kind, path in bench.programs.items()
        }
        table = by_row(take_turns(cases, bench.effort.rounds, bench.order, bench.tick))
        note = f"parent: {worker.resident_bytes / 2**20:.0f} MiB resident, {worker.descriptors} descriptors"
    beside = {f"{module}.{way}": f"{STANDARD}.{way}" for way in WAYS for module in (OURS, STANDARD)}
    ratios = {peer: {f"{kind} / {STANDARD}": ratio(row[kind], table[beside[peer]][kind]) for kind in row} for peer, row in table.items()}
    targets = [
        Target(f"{OURS}.run / {STANDARD}.run, {kind}", LIMIT, True, ratios[f"{OURS}.run"][f"{kind} / {STANDARD}"])
        for kind, _ in bench.programs.items()
    ]
    return Answer(KEY, "Start a program and wait for it, by the standard module and by the drop-in", "us", table, ratios, targets, [note])
