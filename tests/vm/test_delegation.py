"""Jobs with limits for an ordinary user, in a group of their own and in one of others. Source: cgroups(7), "delegation"."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import groups
import pytest
from rig.features import needs

ORDINARY_UID = 65534


def can_run_for_others():
    """Whether a user without rights reaches the interpreter."""
    paths = [Path(sys.executable).absolute(), Path(sys.base_prefix).resolve()]
    return all(above.stat().st_mode & 0o001 for path in paths for above in (path, *path.parents))


pytestmark = [
    pytest.mark.root,
    needs("unshare and setpriv (Debian package util-linux)"),
    pytest.mark.skipif(not can_run_for_others(), reason="needs an interpreter that every user may run"),
]

JOBS = """
with Job.default() as default, default.create_child() as job:
    text = ""
    try:
        job.set_limits(memory="32M", swap=0, pids=20, cpus=1)
    except shoal.SpawnError as error:
        text = f"{error.status.name}: {error}"
    is_cgroup = os.path.isdir(f"/proc/self/fd/{job.fileno()}")
    ends = []
    for flags in (SpawnFlags.CLONE_NAMESPACE, SpawnFlags(0)):
        for verbs in (["exit", "3"], ["alloc", str(128 << 20)] if not text else ["exit", "4"]):
            with shoal.spawn(workload, ["workload", *verbs], flags=flags, job=job) as process:
                ends.append(process.wait(timeout=60))
        with shoal.spawn(workload, ["workload", "pause"], flags=flags, job=job) as process:
            ends.append(process.pid in job.processes())
            process.kill()
            process.wait(timeout=60)
    job.kill()
    job.wait_empty(60)
answer([os.getuid(), text, is_cgroup, ends])
"""


@pytest.fixture
def program(workload):
    """The way to the workload is open to others."""
    for folder in (Path(workload), *Path(workload).parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    return workload


def give(path, *files):
    """Make a group, or some files of it, the ordinary user's."""
    os.chown(path, ORDINARY_UID, ORDINARY_UID)
    for name in files:
        os.chown(path / name, ORDINARY_UID, ORDINARY_UID)


def test_in_a_group_of_their_own_a_user_has_jobs_with_limits(run_inside, group, program):
    give(group, "cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
    uid, text, is_cgroup, ends = run_inside(group, JOBS, uid=ORDINARY_UID)
    assert uid == ORDINARY_UID
    assert text == ""
    assert is_cgroup
    assert ends == [3, -signal.SIGKILL, True] * 2
    assert {path.stat().st_uid for path in group.iterdir() if path.is_dir()} <= {ORDINARY_UID}


def test_in_a_group_whose_controllers_they_may_not_hand_on_a_user_has_jobs_without_limits(run_inside, group, program):
    give(group, "cgroup.procs")
    _, text, is_cgroup, ends = run_inside(group, JOBS, uid=ORDINARY_UID)
    assert text.startswith(("NOT_SUPPORTED", "ACCESS_DENIED"))
    assert "Delegate=yes" in text
    assert is_cgroup
    assert ends == [3, 4, True] * 2


@needs("user namespaces for ordinary users")
def test_in_a_group_that_is_not_theirs_a_users_jobs_are_pid_namespaces(run_inside, group, program):
    _, text, is_cgroup, ends = run_inside(group, JOBS, uid=ORDINARY_UID)
    assert text.startswith("NOT_SUPPORTED")
    assert not is_cgroup
    assert ends == [3, 4, True] * 2
    assert groups.pids_in(group) == []
    assert [path.name for path in group.iterdir() if path.is_dir()] == []


@needs("user namespaces for ordinary users")
def test_a_directory_without_its_list_of_processes_is_no_delegation(run_inside, group, program):
    """Groups could be made there, but nothing could be put into them."""
    give(group)
    _, text, is_cgroup, ends = run_inside(group, JOBS, uid=ORDINARY_UID)
    assert text.startswith("NOT_SUPPORTED")
    assert not is_cgroup
    assert ends == [3, 4, True] * 2


def test_a_user_cannot_lift_a_limit_above_them(run_inside, group, program):
    (group / "memory.max").write_text(str(48 << 20))
    (group / "memory.swap.max").write_text("0")
    give(group, "cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
    script = """
with Job.default() as default, default.create_child() as job:
    job.set_limits(memory="1G")
    with shoal.spawn(workload, ["workload", "alloc", str(128 << 20)], flags=SpawnFlags.CLONE_NAMESPACE, job=job) as process:
        answer(process.wait(timeout=60))
"""
    assert run_inside(group, script, uid=ORDINARY_UID) == -signal.SIGKILL
