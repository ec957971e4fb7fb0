"""How long does one call of a function with numpy take, from submit() until its result is there?

One after the other, with a pause before each that is as long as something is made in the background. The others start an interpreter for
each call, or (ProcessPoolExecutor) protect nobody from it.
"""

from __future__ import annotations

from lab import Calls
from question import Answer, Bench, Target, by_row, ratio
from timing import Samples, take_turns

KEY = "call"
OURS, FRESH, SANDLOCK = "SandboxExecutor", "python3 -c (no isolation)", "sandlock python3 -c"
PEERS = (OURS, "SandboxExecutor, none ahead", "ProcessPoolExecutor (no isolation)", FRESH, "shoal.run python3 -c", SANDLOCK)


def ask(bench: Bench) -> Answer:
    with Calls() as calls, Calls() as apart:  # sandlock brings threads along
        homes = dict.fromkeys(PEERS, calls) | {SANDLOCK: apart}
        cases = {f"{peer}|numpy": home.durations(peer, bench.effort.count) for peer, home in homes.items()}
        table = by_row(take_turns(cases, bench.effort.rounds, bench.order, bench.tick))
    ours = table[OURS]["numpy"]
    ratios = {peer: {"/ SandboxExecutor": ratio(row["numpy"], ours)} for peer, row in table.items()}
    targets = [
        Target("a call, us", 5000.0, True, ours.estimate() if isinstance(ours, Samples) else None),
        Target("python3 -c / SandboxExecutor", 20.0, False, ratio(table[FRESH]["numpy"], ours)),
        Target("sandlock python3 -c / SandboxExecutor", 5.0, False, ratio(table[SANDLOCK]["numpy"], ours)),
    ]
    return Answer(KEY, "Call a function with numpy", "us", table, ratios, targets)
