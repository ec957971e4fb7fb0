"""The protocol of the manager under fire, for as long as one likes: hostile clients, one after the other, beside a good one.

    python tests/fuzz/wire.py                          # a minute, from a seed of its own choice, which is printed
    python tests/fuzz/wire.py --seconds 3600 --seed 7
    python tests/fuzz/wire.py --seconds 0 --seed SEED  # again one client that did harm: each is drawn from a seed of its own

What went wrong is printed with the seed of the client and what it has sent, and the exit status is 1. tests/unit/test_wire_fuzz.py runs
it for a moment.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rig.besieged import Besieged, descriptors, left_over, storm

from shoal.manager import wire

MESSAGES = 40


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    first = options.seed
    until = time.monotonic() + options.seconds
    with Besieged() as besieged:
        storm(besieged, random.Random(0), MESSAGES)
        before = descriptors()
        for seed in itertools.count(first):
            storm(besieged, random.Random(seed), MESSAGES)
            wrong = besieged.complaints[:]
            if besieged.ask(wire.Status, besieged.domain)["state"] != "running":
                wrong.append("the domain it was told nothing about has ended")
            if left := left_over(before):
                wrong.append(f"descriptors are left: {left}")
            if wrong:
                print(f"seed {seed}: {wrong}\nit was sent {besieged.sent}")
                return 1
            if time.monotonic() > until:
                print(f"{seed - first + 1} clients, seeds {first} to {seed}: nothing went wrong")
                return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
