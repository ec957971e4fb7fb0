"""Does it stay responsive with a thousand sandboxes on the machine, and what memory does one take that waits?"""

from __future__ import annotations

from lab import Calls
from question import Answer, Bench, Target, by_row
from timing import Samples, take_turns

KEY = "crowd"
ROUNDS = 3


def ask(bench: Bench) -> Answer:
    count = 20 * bench.effort.count
    with Calls() as calls:
        cases = {
            "a trivial call, us|1,000 run": calls.crowd("running", count),
            "a trivial call, us|1,000 wait": calls.crowd("waiting", count),
        }
        table = by_row(take_turns(cases, ROUNDS, bench.order, bench.tick))
        idle = by_row(take_turns({"a sandbox that waits, KiB|1,000 wait": calls.crowd("idle", 1)}, ROUNDS, bench.order, bench.tick))
    taken = idle["a sandbox that waits, KiB"]["1,000 wait"]
    notes = [
        f"with {column}: p50 {samples.percentile(50):.0f} us, p99 {samples.percentile(99):.0f} us of {sum(map(len, samples.rounds))} calls"
        for column, samples in table["a trivial call, us"].items()
        if isinstance(samples, Samples)
    ]
    notes.append("with 1,000 that wait no call has to wait for a sandbox; with 1,000 that run two are kept ready, and made again meanwhile")
    if isinstance(taken, Samples):
        notes.append(f"a sandbox that waits takes {taken.estimate():.0f} KiB (what processes and kernel hold more, divided by 1,000)")
    targets = [Target("a sandbox that waits, KiB", 3072.0, True, taken.estimate() if isinstance(taken, Samples) else None)]
    return Answer(KEY, "A thousand sandboxes at once", "us", table, {}, targets, notes)
