"""Clients at work while the manager, a spawn daemon, their nurseries, inits of domains and the clients themselves are killed at random.

SHOAL_CHAOS_SECONDS says for how long (20); SHOAL_CHAOS_SEED repeats the choices of a run, though not its timing.
"""

import os
import random
from pathlib import Path

import pytest
from rig import managed
from rig.chaos import Model, chaos, connect, forget_everything, leftovers
from rig.workload import build_workload

SECONDS = float(os.environ.get("SHOAL_CHAOS_SECONDS", "20"))


state = managed.state


@pytest.fixture
def program(tmp_path):
    """A copy nobody else runs."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return build_workload(tmp_path, static=True)


@pytest.mark.stress
@pytest.mark.timeout(SECONDS + 300)
def test_whoever_is_killed_no_domain_and_no_status_is_lost_and_nothing_is_done_twice(state, program, tmp_path):
    seed = os.environ.get("SHOAL_CHAOS_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"SHOAL_CHAOS_SEED={seed}")
    with chaos(seed, state, tmp_path, program) as run:
        run.run(SECONDS)
        with connect() as manager:
            model = Model(run, manager)
            wrong = model.compare()
            print(f"{len(model.requests)} requests, {len(model.domains)} domains; killed: {dict(run.killed)}")
            print((tmp_path / "clients.log").read_text())
            print((state / "manager.log").read_text())
            print("".join(path.read_text() for path in tmp_path.glob("spawnds.log")))
            forget_everything(manager)
            daemon = managed.manager_pid(state)
            manager.stop()
        managed.wait_gone(daemon)
        run.end_spawnd()
        for name in (managed.DOMAIN, managed.NURSERY):
            for pid in managed.processes(state, name):
                managed.wait_gone(pid)
        assert not wrong, "\n".join(wrong)
        left = leftovers(state, program, model)
        assert not left, "\n".join(left)
