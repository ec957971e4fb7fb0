"""Networks handed over, into every world and together with jobs. Source: network_namespaces(7), user_namespaces(7)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.features import needs
from rig.launchers import Launcher, every_launcher
from rig.workload import PATIENCE_S
from rig.world import World

from shoal import AccessDeniedError, Action, AddNsEntry, Directory, Job, NetNs

MAKE_AND_SEND = """
import socket, sys, shoal
with shoal.NetNs.new() as network, socket.socket(fileno=int(sys.argv[1])) as peer:
    socket.send_fds(peer, [b"."], [network.fileno()])
"""


@pytest.fixture
def network() -> Iterator[NetNs]:
    with NetNs.new() as made:
        yield made


@pytest.fixture
def job() -> Iterator[Job]:
    with Job.default() as default, default.create_child() as made:
        yield made


@pytest.fixture
def network_of_another_process() -> Iterator[NetNs]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run([sys.executable, "-c", MAKE_AND_SEND, str(theirs.fileno())], pass_fds=[theirs.fileno()], check=True)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    with NetNs._own(fds[0]) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["alone", "with-a-mount"])
def more(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], list[Action]]:
    """What is handed over besides: a mount takes another way into the caller's world."""
    return lambda: [AddNsEntry(os.fspath(tmp_path), Directory.open("/usr"))] if request.param else []


def pausing(launch: Launcher, workload: str, network: NetNs, more: Callable[[], list[Action]], **how: Any) -> Any:
    return launch(workload, ["workload", "pause"], actions=[AddNsEntry("/svc/net", network.duplicate()), *more()], **how)


def lives_in(pid: int, network: NetNs) -> bool:
    return os.stat(f"/proc/{pid}/ns/net").st_ino == os.fstat(network.fileno()).st_ino


@every_launcher
def test_it_is_the_childs_network_each_time(
    launch: Launcher, workload: str, network: NetNs, more: Callable[[], list[Action]], world: World
) -> None:
    for _ in range(3):
        with pausing(launch, workload, network, more) as process:
            assert lives_in(process.pid, network)
            process.kill()
            assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    world.assert_unchanged()


@every_launcher
def test_who_is_in_a_job_too_does_not_survive_its_kill(
    launch: Launcher, workload: str, network: NetNs, job: Job, more: Callable[[], list[Action]]
) -> None:
    with job.create_child() as inner:
        for place in (inner, job):
            with pausing(launch, workload, network, more, job=place) as process:
                assert lives_in(process.pid, network)
                assert process.pid in place.processes()
                place.kill()
                assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL


@every_launcher
def test_one_that_another_process_has_made(
    launch: Launcher, workload: str, network_of_another_process: NetNs, more: Callable[[], list[Action]]
) -> None:
    with pausing(launch, workload, network_of_another_process, more) as process:
        assert lives_in(process.pid, network_of_another_process)
        process.kill()
        assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL


@needs("an ordinary user")
@every_launcher
def test_without_root_it_is_not_for_a_job_that_is_a_pid_namespace(
    launch: Launcher, workload: str, network_of_another_process: NetNs, job: Job, more: Callable[[], list[Action]]
) -> None:
    # Only who has left the job could enter it.
    if "-ns" not in job.name:
        pytest.skip("an ordinary user has jobs made of cgroups here")
    with pytest.raises(AccessDeniedError, match="made by different processes; let one make both"):
        pausing(launch, workload, network_of_another_process, more, job=job)
    assert job.processes() == []
