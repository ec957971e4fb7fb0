"""What does the name service cost with many records and watches in it?

    python bench/names.py                     # 100,000 records, 10,000 watches: about a minute
    python bench/names.py --records 10000 --watches 1000

Prints microseconds for each operation on the registry alone (no transport), the medians of many, and what memory a record takes beside the
estimate that limits go by. The last lines are what a hostile client can make one operation cost.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from shoal.manager import ManagerError
from shoal.manager.names import LocalService, NameService, Query, Registry
from shoal.manager.names.index import cost
from shoal.manager.names.parse import parse
from shoal.manager.names.store import Terms


def measured(what: str, act: Callable[[int], Any], count: int) -> None:
    samples = []
    for number in range(count):
        begun = time.perf_counter()
        act(number)
        samples.append((time.perf_counter() - begun) * 1e6)
    samples.sort()
    print(f"{what:66} {statistics.median(samples):12.1f} {samples[int(len(samples) * 0.99)]:12.1f}")


def refused(act: Callable[[], Any]) -> None:
    try:
        act()
    except ManagerError:
        pass


def record(number: int) -> Query:
    return Query.where(f"job{number}", {"owner": f"user{number % 100}", "prio": number % 10, "iref": number})


def fill(records: int, watches: int) -> tuple[Registry, int]:
    registry = Registry()
    session = registry.open_session()
    tracemalloc.start()
    for number in range(records):
        registry.set(session, record(number))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    estimate = sum(cost(each) for each in registry.find(session, Query(None)))
    print(f"{records} records take {taken / records:.0f} bytes each; the limits count {estimate / records:.0f}\n")
    watchers = [registry.open_session() for _ in range(max(1, watches // 2_000))]
    for number in range(watches):
        watcher = watchers[number % len(watchers)]
        if number % 3 == 0:
            registry.watch(watcher, Query(f"job{number}"))
        elif number % 3 == 1:
            registry.watch(watcher, Query.where(None, {"iref": number}))
        else:
            registry.watch(watcher, Query.where(None, {"owner": "user7", "iref": number}))
    for number in range(100):
        registry.watch(watchers[0], parse(f"r'^other{number}-[0-9]+$'"))
    return registry, session


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--watches", type=int, default=10_000)
    options = parser.parse_args(arguments)
    records = options.records
    registry, session = fill(records, options.watches)

    print(f"{'microseconds, with ' + str(options.watches) + ' watches and 100 patterns':66} {'median':>12} {'p99':>12}")
    measured("parse a query of three constraints", lambda _: parse("_ { prio >= 2, prio < 9, owner: _ }"), 2_000)
    measured("set a new record", lambda number: registry.set(session, Query.where(f"new{number}", {"x": number})), 2_000)
    measured(
        "replace a record, which one watch is told of", lambda number: registry.set(session, record(number * 3 % options.watches)), 2_000
    )
    measured("remove a record", lambda number: registry.remove(session, Query(f"new{number}")), 2_000)
    measured("get by name", lambda number: registry.get(session, Query(f"job{number}")), 2_000)
    measured(
        "get by the value of an attribute, one match", lambda number: registry.get(session, Query.where(None, {"iref": number})), 2_000
    )
    mine = parse("_ { owner: 'user7', prio: 7 }")
    measured(
        f"names by the value of an attribute, {len(registry.names(session, mine))} matches", lambda _: registry.names(session, mine), 50
    )
    begins = parse("r'^job777[0-9]$'")
    measured("names by the beginning, 10 matches", lambda _: registry.names(session, begins), 50)
    anywhere = parse("r'777$'")
    measured(f"names by pattern anywhere, {len(registry.names(session, anywhere))} matches", lambda _: registry.names(session, anywhere), 5)
    compared = parse("_ { prio > 8 }")
    measured(f"names by comparison, {len(registry.names(session, compared))} matches", lambda _: registry.names(session, compared), 5)
    measured("all names", lambda _: registry.names(session, Query(None)), 5)

    names = NameService(LocalService().connect())
    lock, semaphore = names.lock("one"), names.semaphore(1)
    measured("take and let go a lock, in one process", lambda _: (lock.acquire(), lock.release()), 2_000)
    measured("take and post a unit of a semaphore, in one process", lambda _: (semaphore.wait(), semaphore.post()), 2_000)
    serial = Terms(mode="sequential")
    measured("set a sequential record", lambda _: registry.set(session, Query("seq"), serial), 2_000)

    print("\na hostile client")
    worst = parse("_ { iref: _, " + ", ".join(f"prio != {number + 100}" for number in range(60)) + " }")
    measured("look-up that is refused as too long: comparisons", lambda _: refused(lambda: registry.names(session, worst)), 3)
    hostile = registry.open_session()
    slow = "(.*.*.*.*)*" * 20
    for number in range(2_000):
        registry.set(hostile, Query.where(f"x{number}", {"text": f"{number}{'ab' * 3_500}"}))
    bad = Query(None, parse(f"_ {{ text: r'{slow}c' }}").constraints)
    measured("look-up that is refused as too long: patterns", lambda _: refused(lambda: registry.names(session, bad)), 3)
    installed = 0
    try:
        while True:
            registry.watch(hostile, parse(f"_ {{ text: r'{slow}{chr(99 + installed % 20)}{installed}' }}"))
            installed += 1
    except ManagerError:
        pass
    long = Query.where("long", {"text": "ab" * 3_500})
    measured(f"set 7,000 characters that {installed} of its costliest watches compare", lambda _: registry.set(session, long), 5)
    steps = []
    while not steps or registry.is_ending(session):
        begun = time.perf_counter()
        registry.close_session(session, most=1_000)
        steps.append(time.perf_counter() - begun)
    print(f"end a session of {records} records, 1,000 at once: {max(steps) * 1e3:.1f} ms at most, {sum(steps):.2f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
