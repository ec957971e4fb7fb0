"""What does it cost to check a capability?

    python bench/tokens.py

Prints microseconds, the medians of many: the first time a manager sees a token, for each number of narrowings, and from then on; and what
it costs to make one, to narrow one, and to refuse one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from shoal.manager import DomainCap, DomainRights, ManagerError
from shoal.manager.biscuits import MOST_BLOCKS
from shoal.manager.rights import FOR_SPAWNER
from shoal.manager.rootkey import RootKey
from shoal.manager.tokens import Mint
from shoal.manager.verifier import Verifier

COUNT = 2_000


def measured(act: Callable[[], object]) -> str:
    samples = []
    for _ in range(COUNT):
        begun = time.perf_counter()
        act()
        samples.append((time.perf_counter() - begun) * 1e6)
    samples.sort()
    return f"{statistics.median(samples):10.1f} {samples[int(len(samples) * 0.99)]:10.1f}"


def refused(act: Callable[[], object]) -> None:
    try:
        act()
    except ManagerError:
        pass


def main() -> None:
    key = RootKey.generate()
    mint, cap = Mint(key), Mint(key).domain(7)
    print(f"{'microseconds':48} {'median':>10} {'p99':>10}")
    for narrowings in range(MOST_BLOCKS):
        check(key, cap, narrowings)
        if narrowings < MOST_BLOCKS - 1:
            cap = cap.attenuate(FOR_SPAWNER, expires="1h")
    fresh = mint.domain(7)
    other = Mint(RootKey.generate()).domain(7).to_token()
    verifier = Verifier(key.public)
    print(f"{'minting':48} {measured(lambda: mint.domain(7))}")
    print(f"{'narrowing, by its holder':48} {measured(lambda: fresh.attenuate(DomainRights.WAIT, expires=60))}")
    print(f"{'refusing one of another manager':48} {measured(lambda: refused(lambda: verifier.verify(other, 7, DomainRights.WAIT)))}")


def check(key: RootKey, cap: DomainCap, narrowings: int) -> None:
    token, verifier = cap.to_token(), Verifier(key.public)
    what = f"narrowed {narrowings} times, {len(token)} characters"
    first = measured(lambda: Verifier(key.public).verify(token, 7, DomainRights.WAIT))
    again = measured(lambda: verifier.verify(token, 7, DomainRights.WAIT))
    print(f"{f'{what}: first':48} {first}\n{f'{what}: again':48} {again}")


if __name__ == "__main__":
    main()
