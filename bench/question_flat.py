"""Does a launch cost more when the parent has grown: 4 GiB resident and 10,000 open descriptors?"""

from __future__ import annotations

import resource

import machine
from lab import Worker
from question import Answer, Bench, Target, by_row, ratio
from timing import take_turns

KEY = "flat"
PEERS = ("shoal.spawn", "subprocess.run", "subprocess.Popen", "os.posix_spawn", "shoal cell")
MEMORY_BYTES = 4 * 2**30
DESCRIPTORS = 10_000
SPARE_DESCRIPTORS = 256  # for what the worker and the launchers open themselves


def ask(bench: Bench) -> Answer:
    memory, descriptors, notes = _possible()
    with Worker(bench.directory) as small, Worker(bench.directory, memory_bytes=memory, descriptors=descriptors) as large:
        parents = {"small parent": small, "large parent": large}
        cases = {
            f"{peer}|{parent}": worker.launches(peer, bench.programs.dynamic, bench.effort.count)
            for peer in PEERS
            for parent, worker in parents.items()
        }
        table = by_row(take_turns(cases, bench.effort.rounds, bench.order, bench.tick))
        notes += [
            f"{name}: {worker.resident_bytes / 2**20:.0f} MiB resident, {worker.descriptors} descriptors"
            for name, worker in parents.items()
        ]
    ratios = {peer: {"large / small": ratio(row["large parent"], row["small parent"])} for peer, row in table.items()}
    targets = [Target(f"{peer}, large / small parent", 1.10, True, ratios[peer]["large / small"]) for peer in ("shoal.spawn", "shoal cell")]
    return Answer(KEY, "The same from a small and from a large parent (dynamic program)", "us", table, ratios, targets, notes)


def _possible() -> tuple[int, int, list[str]]:
    """The wanted size, or what fits here, and a line for each thing that had to be scaled down."""
    notes = []
    memory = min(MEMORY_BYTES, machine.memory_available_bytes() // 2 // 2**20 * 2**20)
    if memory < MEMORY_BYTES:
        notes.append(f"scaled down: {memory / 2**30:.1f} GiB instead of {MEMORY_BYTES / 2**30:.0f}, half of the memory that is free")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    descriptors = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard - SPARE_DESCRIPTORS)
    if descriptors < DESCRIPTORS:
        notes.append(f"scaled down: {descriptors} descriptors instead of {DESCRIPTORS}, the hard limit is {hard}")
    return memory, descriptors, notes
