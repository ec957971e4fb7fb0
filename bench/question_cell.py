"""What does an empty world cost, beside the tools people use for one?

All peers start the same program with nothing but the ELF interpreter and the libraries it needs, read-only, without
network and environment. "shoal cell" is what a program that launches more than once gets: cells are made ahead. "none ahead" makes
each when it is needed. sandlock restricts the program in place (Landlock and seccomp), the others make namespaces.
"""

from __future__ import annotations

from lab import Worker
from question import Answer, Bench, Target, by_row, ratio
from timing import take_turns

KEY = "cell"
COLD = "shoal cell, none ahead"
PEERS = ("shoal.spawn", "shoal cell", COLD, "bwrap (subprocess.run)", "bwrap (os.posix_spawn)", "crun (os.posix_spawn)")


def ask(bench: Bench) -> Answer:
    # sandlock brings a runtime with threads of its own into the process that uses it: the others are not to pay for that.
    with Worker(bench.directory) as worker, Worker(bench.directory) as apart, Worker(bench.directory) as cold:
        homes = dict.fromkeys(PEERS, worker) | {"sandlock": apart, COLD: cold}
        cases = {
            f"{peer}|{kind}": home.launches(peer, path, bench.effort.count)
            for peer, home in homes.items()
            for kind, path in bench.programs.items()
        }
        table = by_row(take_turns(cases, bench.effort.rounds, bench.order, bench.tick))
    ratios = {peer: {f"{kind} / cell": ratio(row[kind], table["shoal cell"][kind]) for kind in row} for peer, row in table.items()}
    targets = []
    for peer in ("shoal cell", COLD):
        for kind, _ in bench.programs.items():
            cell = table[peer][kind]
            # bwrap is judged by its cheaper launch, so that subprocess is not counted against it.
            targets += [
                Target(f"{peer} / shoal.spawn, {kind}", 2.5, True, ratio(cell, table["shoal.spawn"][kind])),
                Target(f"bwrap (os.posix_spawn) / {peer}, {kind}", 2.5, False, ratio(table["bwrap (os.posix_spawn)"][kind], cell)),
            ]
    return Answer(KEY, "An empty world: start a program in it and wait", "us", table, ratios, targets)
