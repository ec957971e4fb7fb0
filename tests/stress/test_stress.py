"""Tens of thousands of spawns from eight threads, with random flags, actions, kills and failures: then everything is as before.

SHOAL_STRESS_SPAWNS lowers the number (20,000) for a quick look. Half of the spawns are static programs in the caller's world,
a third are cells, a sixth are failures; the whole takes less than a minute on two cores.
"""

import collections
import gc
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from rig.workload import PATIENCE_S

import shoal
from shoal import PA_HND, AddHandle, AddNsEntry, CloneDir, CloneFd, Directory, HandleType, Job, NetNs, SetName, SpawnFlags, TransferFd, Vmo

SPAWNS = int(os.environ.get("SHOAL_STRESS_SPAWNS", "20000"))
THREADS = 8
WARM_UP = max(200, SPAWNS // 10)
GROWTH_KIB = 8192
"""How much more memory may be resident at the end than after the warm-up."""


def resident_kib():
    return int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")))


class Spawner:
    """One thread's share: draws a kind of spawn, carries it out, checks the one outcome it may have."""

    def __init__(self, seed, workload, dynamic, folder):
        self.random = random.Random(seed)
        self.workload, self.dynamic, self.folder = workload, dynamic, folder
        self.seen = collections.Counter()
        self.kinds = [
            (35, self.plain),
            (8, self.with_descriptors),
            (4, self.killed),
            (2, self.dropped),
            (3, self.in_a_job),
            (4, self.dynamic_program),
            (15, self.empty_cell),
            (9, self.furnished_cell),
            (5, self.killed_cell),
            (6, self.missing_file),
            (4, self.bad_action),
            (3, self.bad_handle),
            (2, self.failing_exec),
        ]

    def run(self, count):
        weights = [weight for weight, _ in self.kinds]
        for _, kind in self.random.choices(self.kinds, weights, k=count):
            kind()
            self.seen[kind.__name__] += 1

    def flags(self):
        """Random bits, unassigned ones too; what decides the outcome is set by each kind itself."""
        return SpawnFlags(self.random.choice([0, 0x8, 0x10, 0x18, 0x20, 0x1, 0x40, 0x28, 0x31]))

    def end(self, process, expected):
        with process:
            code = process.wait(timeout=PATIENCE_S)
            assert code == expected, f"ended with {code}, not {expected}"

    def plain(self):
        status = self.random.randrange(256)
        self.end(shoal.spawn(self.workload, ["w", "exit", str(status)], flags=self.flags() | SpawnFlags.CLONE_NAMESPACE), status)

    def with_descriptors(self):
        read_end, write_end = os.pipe()
        targets = self.random.sample(range(3, 1024), 4)
        actions = [CloneFd(write_end, target) for target in targets[:3]] + [TransferFd(write_end, targets[3]), SetName("with descriptors")]
        process = shoal.spawn(
            self.workload, ["w", "write", str(self.random.choice(targets)), "x"], flags=SpawnFlags.CLONE_NAMESPACE, actions=actions
        )
        self.end(process, 0)
        assert os.read(read_end, 10) == b"x"
        assert os.read(read_end, 10) == b""
        os.close(read_end)

    def killed(self):
        process = shoal.spawn(self.workload, ["w", "pause"], flags=self.flags() | SpawnFlags.CLONE_NAMESPACE)
        number = self.random.choice([signal.SIGKILL, signal.SIGTERM])
        process.send_signal(number)
        self.end(process, -number)

    def dropped(self):
        shoal.spawn(self.workload, ["w"], flags=SpawnFlags.CLONE_NAMESPACE)

    def in_a_job(self):
        with Job.default() as default, default.create_child() as job:
            flags = self.random.choice([SpawnFlags(0), SpawnFlags.CLONE_NAMESPACE])
            with shoal.spawn(self.workload, ["w", "children", "2", "5", "pause"], flags=flags, job=job) as process:
                job.kill()
                assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL
            job.wait_empty(timeout=PATIENCE_S)

    def dynamic_program(self):
        flags = SpawnFlags.DEFAULT_LDSVC | self.random.choice([SpawnFlags(0), SpawnFlags.CLONE_NAMESPACE])
        self.end(shoal.spawn(self.dynamic, ["w", "exit", "5"], flags=flags), 5)

    def empty_cell(self):
        self.end(shoal.spawn(self.workload, ["w", "exit", "7"], flags=self.flags()), 7)

    def furnished_cell(self):
        actions = [
            AddNsEntry("/data", Directory.open(self.folder)),
            AddNsEntry("/tmp", Directory.tmpfs("1M")),
            AddNsEntry("/proc", Directory.proc()),
        ]
        actions += self.random.choice([[], [AddNsEntry("/svc/net", NetNs.host())], [CloneDir(str(self.folder))]])
        actions += [AddHandle(PA_HND(HandleType.USER0), Vmo.from_bytes(b"note"))]
        self.end(
            shoal.spawn(self.workload, ["w", "list", "/data", "exit", "9"], flags=self.flags() & ~SpawnFlags.CLONE_STDIO, actions=actions),
            9,
        )

    def killed_cell(self):
        process = shoal.spawn(self.workload, ["w", "daemon", "5", "pause"], actions=[SetName("killed cell")])
        process.kill()
        self.end(process, -signal.SIGKILL)

    def missing_file(self):
        actions = [AddNsEntry("/data", Directory.open(self.folder)), TransferFd(os.open("/dev/zero", os.O_RDONLY), 9)]
        with pytest.raises(shoal.NotFoundError):
            shoal.spawn(self.folder / "missing", ["w"], flags=self.flags(), actions=actions)

    def bad_action(self):
        actions = [
            TransferFd(os.open("/dev/zero", os.O_RDONLY), 9),
            AddHandle(PA_HND(HandleType.USER1), Vmo.from_bytes(b"")),
            CloneFd(0, 1024),
        ]
        self.random.shuffle(actions)
        with pytest.raises(shoal.OutOfRangeError):
            shoal.spawn(self.workload, ["w"], flags=self.flags() & ~SpawnFlags.CLONE_UTC_CLOCK, actions=actions)

    def bad_handle(self):
        vmo = Vmo.from_bytes(b"")
        with pytest.raises(shoal.BadHandleError):
            shoal.spawn(self.workload, ["w"], actions=[AddHandle(PA_HND(HandleType.USER0), vmo), AddHandle(PA_HND(HandleType.USER1), vmo)])
        assert vmo.closed

    def failing_exec(self):
        with pytest.raises(shoal.OutOfRangeError):
            shoal.spawn(self.workload, ["w", "x" * (1 << 18)], flags=self.random.choice([SpawnFlags(0), SpawnFlags.CLONE_NAMESPACE]))


def storm(spawners, total):
    """Let every spawner do its share at the same time; raises the first thing that went wrong."""
    trouble = []

    def work(spawner):
        try:
            spawner.run(total // len(spawners))
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=work, args=(spawner,)) for spawner in spawners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if trouble:
        raise trouble[0]


@pytest.mark.stress
@pytest.mark.timeout(1500)
def test_tens_of_thousands_of_spawns_leave_nothing_behind(workload, workload_dynamic, tmp_path, world):
    (tmp_path / "file").write_text("x")
    spawners = [Spawner(seed, workload, workload_dynamic, tmp_path) for seed in range(THREADS)]
    began = time.monotonic()
    storm(spawners, WARM_UP)
    world.assert_unchanged()
    gc.collect()
    before = resident_kib()
    storm(spawners, SPAWNS - WARM_UP)
    world.assert_unchanged()
    gc.collect()
    grown = resident_kib() - before
    seen = sum((spawner.seen for spawner in spawners), collections.Counter())
    print(f"{sum(seen.values())} spawns in {time.monotonic() - began:.0f} s, resident memory {grown:+d} KiB: {dict(seen)}")
    assert grown <= GROWTH_KIB
    assert set(seen) == {kind.__name__ for _, kind in spawners[0].kinds}
