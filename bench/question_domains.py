"""Ten thousand domains that live at the same time: how long it takes to list them and to find them again, and what they take.

Found again by a new manager, after a kill -9. They are started once, by four clients, and end with the question.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from managers import Daemon, command, private_kib
from question import Answer, Bench, Target, by_row
from timing import CaseFailed, Estimate, Samples, Take, Unavailable, take_turns

from shoal.manager import Manager, ManagerError, connect

KEY = "domains"
MANY, FEW, ROUNDS, STARTERS, LOOKED_AT = 10_000, 1_000, 3, 4, 100
LISTED, PRINTED, AS_JSON, FOUND = "statuses()", "shoal ps", "shoal ps --json", "found again after kill -9"
PAUSE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"


def ask(bench: Bench) -> Answer:
    count = MANY if bench.effort.count >= 10 else FEW
    title = f"{count:,} live domains"
    program = _paused(bench.directory)
    with Daemon() as daemon:
        try:
            with connect() as manager:
                before = private_kib(daemon.pid())
                rate = _start(manager, program, count)
                facts = _facts(daemon, before, count)
                cases: dict[str, Take] = {
                    f"{LISTED}|{title}": lambda: [_timed(lambda: _listed(manager, count))],
                    f"{PRINTED}|{title}": lambda: [_timed(lambda: command("ps"))],
                    f"{AS_JSON}|{title}": lambda: [_timed(lambda: command("ps", "--json"))],
                    f"{FOUND}|{title}": lambda: [_timed(lambda: _again(daemon, manager, count))],
                }
                table = by_row(take_turns(cases, ROUNDS, bench.order, bench.tick))
                adopted = (private_kib(daemon.pid()) - before) / count
        except (ManagerError, CaseFailed) as error:
            missing = Unavailable(str(error))
            return Answer(KEY, title, "ms", {name: {title: missing} for name in (LISTED, PRINTED, AS_JSON, FOUND)}, {})
    seconds = {name: _in_seconds(row[title]) for name, row in table.items()}
    targets = [
        Target("list them: shoal ps, s", 0.3, True, seconds[PRINTED]),
        Target("list them: shoal ps --json, s", 0.3, True, seconds[AS_JSON]),
        Target("find them again, s", 5.0, True, seconds[FOUND]),
        Target("memory of the manager for each, KiB", 10.0, True, _exactly(max(facts["manager"], adopted))),
        Target("private memory of an init, KiB", 100.0, True, _exactly(facts["init"])),
        Target("descriptors of the manager for each, without the first 64", 1.0, True, _exactly(facts["descriptors"])),
    ]
    notes = [
        f"started at {rate:,.0f} a second by {STARTERS} clients in one process",
        f"memory of the manager for each: {facts['manager']:.1f} KiB when it has started it, {adopted:.1f} KiB when it has found it again",
        f"an init takes {facts['init']:.0f} KiB of private memory at most, of {LOOKED_AT} looked at",
        "found again: from the signal until a new manager has a link to every one of them, and lists them",
    ]
    return Answer(KEY, title, "ms", table, {}, targets, notes)


def _paused(directory: Path) -> str:
    source, program = directory / "pause.c", directory / "pause"
    source.write_text(PAUSE)
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(source)], check=True)
    return str(program)


def _start(manager: Manager, program: str, count: int) -> float:
    """So many a second."""
    errors: list[ManagerError] = []
    cores = manager.cores()

    def work(first: int) -> None:
        try:
            with connect() as client:
                for number in range(first, count, STARTERS):
                    client.spawn_program(cores[number % len(cores)], program, ["pause"], {})
        except ManagerError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(STARTERS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return count / (time.perf_counter() - started)


def _facts(daemon: Daemon, before: float, count: int) -> dict[str, float]:
    inits = daemon.inits()
    return {
        "manager": (private_kib(daemon.pid()) - before) / count,
        "init": max(private_kib(pid) for pid in inits[:: max(1, len(inits) // LOOKED_AT)]),
        "descriptors": (daemon.descriptors() - 64) / count,
    }


def _listed(manager: Manager, count: int) -> None:
    found = len(manager.statuses())
    if found != count:
        raise CaseFailed(f"{found} of {count} domains are listed")


def _again(daemon: Daemon, manager: Manager, count: int) -> None:
    daemon.kill()
    _listed(manager, count)
    while daemon.descriptors() < count:
        time.sleep(0.001)


def _timed(act: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


def _in_seconds(result: Samples | Unavailable) -> Estimate | None:
    if not isinstance(result, Samples):
        return None
    found = result.estimate()
    return Estimate(found.value / 1000, found.low / 1000, found.high / 1000)


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)
