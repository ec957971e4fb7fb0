"""What does it cost to start a program and to wait for it, from a small parent?"""

from __future__ import annotations

from lab import Floor, Worker
from question import Answer, Bench, Target, by_row, ratio
from timing import take_turns

KEY = "plain"
PEERS = ("shoal.spawn", "subprocess.run", "subprocess.Popen", "os.posix_spawn")
FLOOR = "C vfork+exec"


def ask(bench: Bench) -> Answer:
    with Worker(bench.directory) as worker, Floor(bench.programs) as floor:
        count = bench.effort.count
        cases = {f"{peer}|{kind}": worker.launches(peer, path, count) for peer in PEERS for kind, path in bench.programs.items()}
        cases |= {f"{FLOOR}|{kind}": floor.launches(path, count) for kind, path in bench.programs.items()}
        table = by_row(take_turns(cases, bench.effort.rounds, bench.order, bench.tick))
        note = f"parent: {worker.resident_bytes / 2**20:.0f} MiB resident, {worker.descriptors} descriptors"
    ratios = {peer: {f"{kind} / Popen": ratio(row[kind], table["subprocess.Popen"][kind]) for kind in row} for peer, row in table.items()}
    targets = [
        Target(f"shoal.spawn / subprocess.Popen, {kind}", 1.00, True, ratios["shoal.spawn"][f"{kind} / Popen"], noise=0.05)
        for kind, _ in bench.programs.items()
    ]
    return Answer(KEY, "Start a program and wait for it", "us", table, ratios, targets, [note])
