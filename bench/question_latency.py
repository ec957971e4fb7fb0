"""How long does one run in a sandbox take, from the call until the exit status is known?

One run after the other, with a pause before each that is as long as something is made in the background, as where programs are run
on request: what is made ahead is there when it is needed. What it costs to make it is in the next question. What a
peer cannot do is not asked of the others, but shoal.run installs a system call filter and Landlock rules besides, and gives the
program a user of its own under root.
"""

from __future__ import annotations

from lab import Worker
from question import Answer, Bench, Target, by_row, ratio
from timing import take_turns

KEY = "latency"
WARM, COLD, FLOOR = "shoal.run", "shoal.run, none ahead", "a cell handed over (the floor)"
PLAIN = "subprocess.run"
PEERS = (WARM, COLD, FLOOR, PLAIN, "bwrap sandbox (subprocess.run)", "sandlock sandbox", "crun (os.posix_spawn)")


def ask(bench: Bench) -> Answer:
    with Worker(bench.directory) as worker, Worker(bench.directory) as apart, Worker(bench.directory) as cold:
        homes = dict.fromkeys(PEERS, worker) | {"sandlock sandbox": apart, COLD: cold}
        cases = {
            f"{peer}|/bin/true": home.launches(peer, bench.programs.dynamic, bench.effort.count, paused=True)
            for peer, home in homes.items()
        }
        table = by_row(take_turns(cases, bench.effort.rounds, bench.order, bench.tick))
    ours = table[WARM]["/bin/true"]
    plain = table[PLAIN]["/bin/true"]
    ratios = {
        peer: {"/ shoal.run": ratio(row["/bin/true"], ours), "/ subprocess.run": ratio(row["/bin/true"], plain)}
        for peer, row in table.items()
    }
    targets = [
        Target("shoal.run / subprocess.run", 1.15, True, ratio(ours, plain)),
        Target("bwrap / shoal.run", 6.0, False, ratio(table["bwrap sandbox (subprocess.run)"]["/bin/true"], ours)),
        Target("sandlock / shoal.run", 6.0, False, ratio(table["sandlock sandbox"]["/bin/true"], ours)),
    ]
    notes = ["the floor: what the kernel takes of that, from comparing the thread with what a cell is made for to the program's status"]
    return Answer(KEY, "Run a program in a sandbox and wait", "us", table, ratios, targets, notes)
