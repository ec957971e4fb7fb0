"""The protocol of the manager under fire, for as long as one likes: hostile clients, one after the other, beside a good one.

    python tests/fuzz/wire.py [SECONDS] [SEED]     # 60 s, from a seed of its own choice, which is printed with what went wrong

Every client is drawn from its own seed, so that one alone can be repeated: python tests/fuzz/wire.py 0 SEED
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rig.besieged import Besieged, descriptors, left_over, storm

from shoal.manager import wire

MESSAGES = 40


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    first = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**9)
    until = time.monotonic() + seconds
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
    sys.exit(main())
