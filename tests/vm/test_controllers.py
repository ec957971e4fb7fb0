"""Getting controllers where they are not handed on yet: who moves where, and that every job works as before. Source: cgroups(7)."""

from __future__ import annotations

import os
import signal
import threading

import groups
import pytest
from rig.features import needs
from rig.launchers import every_launcher
from rig.workload import PATIENCE_S

from shoal import BadStateError, Job, NotSupportedError, SpawnFlags, spawn

LIMITS = [{"memory": "64M"}, {"swap": "64M"}, {"pids": 20}, {"cpus": 0.5}, {"memory": "64M", "pids": 20, "cpus": 0.5}]


@pytest.mark.parametrize("limits", LIMITS, ids="+".join)
@pytest.mark.parametrize("flags", ["CLONE_NAMESPACE", "0"])
def test_after_the_first_limit_every_job_takes_processes_as_before(run_inside, group, limits, flags):
    """Also the default job, the job that has no limit, and the one that was made before."""
    script = """
flags = SpawnFlags.CLONE_NAMESPACE if args[1] == "CLONE_NAMESPACE" else SpawnFlags(0)
default = Job.default()
earlier = default.create_child("earlier")
limited = default.create_child("limited")
limited.set_limits(**args[0])
later = default.create_child("later")
below = limited.create_child("below")
found = []
for job in (None, default, earlier, limited, later, below):
    with shoal.spawn(workload, ["workload", "pause"], flags=flags, job=job) as process:
        found.append([groups.group_of(process.pid), job is None or process.pid in job.processes()])
        process.kill()
        process.wait(timeout=60)
own = groups.group_of("self")
answer([[own if name == own else name, known] for name, known in found] + [[own, os.getpid() in default.processes()]])
"""
    *found, (own, known) = run_inside(group, script, limits, flags)
    assert known
    assert own.endswith("-self")
    assert found == [[own, True], [own, True], ["earlier", True], ["limited", True], ["later", True], ["below", True]]
    assert groups.pids_in(group) == []
    enabled = (group / "cgroup.subtree_control").read_text().split()
    assert set(enabled) <= {"memory", "pids", "cpu"}  # what was asked for, and what keeps processes out


def test_the_default_job_stays_the_same_job(run_inside, group):
    script = """
before = Job.default()
with before.create_child() as job:
    job.set_limits(pids=5)
after = Job.default()
answer([os.path.samestat(os.fstat(before.fileno()), os.fstat(after.fileno())), [child.name for child in after.children()]])
"""
    assert run_inside(group, script) == [True, []]


@every_launcher
def test_a_job_in_which_something_runs_can_have_children_with_limits(launch, workload, job):
    """What ran directly in it still does, as does what is started in it afterwards."""
    with launch(workload, ["workload", "pause"], job=job) as first, job.create_child("inner") as inner:
        inner.set_limits(pids=20)
        with launch(workload, ["workload", "pause"], job=job) as second, launch(workload, ["workload", "pause"], job=inner) as third:
            assert {first.pid, second.pid} <= set(job.processes())
            assert third.pid not in job.processes()
            assert third.pid in inner.processes()
            assert {first.pid, second.pid, third.pid} <= set(job.processes(recursive=True))
            assert [child.name for child in job.children()] == ["inner"]
            assert groups.pids_in(groups.path_of(job)) == []
            job.kill()
            for process in (first, second, third):
                assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    job.wait_empty(groups.PATIENCE_S)


def test_a_program_that_lives_in_a_job_of_shoal_can_limit_its_own(run_inside, job, workload):
    """Its maker goes on seeing it there, and can start more in it."""
    script = """
with Job.default() as default, default.create_child() as inner:
    inner.set_limits(memory="64M")
    with shoal.spawn(workload, ["workload"], flags=SpawnFlags.CLONE_NAMESPACE, job=inner) as process:
        status = process.wait(timeout=60)
    with Job._from_fd(os.open(args[0], os.O_RDONLY)) as same:
        answer([status, default.name == same.name, os.getpid() in same.processes()])
"""
    assert run_inside(groups.path_of(job), script, str(groups.path_of(job))) == [0, True, True]


def test_strangers_are_not_moved_and_keep_limits_away_but_not_jobs(run_inside, group, stranger):
    pid = stranger(group)
    script = """
with Job.default() as default, default.create_child() as job:
    try:
        job.set_limits(pids=5)
    except shoal.NotSupportedError as error:
        text = str(error)
    with shoal.spawn(workload, ["workload"], flags=SpawnFlags.CLONE_NAMESPACE, job=job) as process:
        answer([text, process.wait(timeout=60), groups.group_of("self")])
"""
    text, status, own = run_inside(group, script)
    assert f"process {pid} shares" in text
    assert "Delegate=yes" in text
    assert status == 0
    assert own == group.name
    assert groups.pids_in(group) == [pid]
    assert (group / "cgroup.subtree_control").read_text().split() == []


@needs("user namespaces for ordinary users")
def test_where_the_kernel_takes_no_processes_into_a_new_cgroup_a_job_is_a_pid_namespace(run_inside, group, stranger):
    """So it is below a group that hands on pids or cpu although processes live in it."""
    stranger(group)
    (group / "cgroup.subtree_control").write_text("+pids")
    script = """
with Job.default() as default, default.create_child() as job:
    with shoal.spawn(workload, ["workload", "pause"], flags=SpawnFlags.CLONE_NAMESPACE, job=job) as process:
        known = process.pid in job.processes()
        job.kill()
        answer([known, process.wait(timeout=60)])
"""
    assert run_inside(group, script) == [True, -signal.SIGKILL]
    assert [path.name for path in group.iterdir() if path.is_dir()] == []


def test_a_controller_that_was_not_delegated_is_named(run_inside, delegation, group):
    inner = group / "without"
    inner.mkdir()
    script = """
with Job.default() as default, default.create_child() as job:
    for limits in ({"memory": 1 << 20}, {"swap": 0}, {"pids": 5}, {"cpus": 1}):
        try:
            job.set_limits(**limits)
        except shoal.NotSupportedError as error:
            found.append(str(error))
answer(found)
"""
    found = run_inside(inner, "found = []\n" + script)
    assert len(found) == 4
    for controller, text in zip(("memory", "memory", "pids", "cpu"), found, strict=True):
        assert f"no {controller} controller" in text
        assert "Delegate=yes" in text


def test_what_a_killed_program_left_goes_with_the_job_it_lived_in(run_inside, delegation):
    script = """
default = Job.default()
job = default.create_child("job")
job.set_limits(pids=20)
job.create_child("inner").set_limits(pids=10)
os.kill(os.getpid(), 9)
"""
    assert delegation.is_dir()
    with Job.default() as default, default.create_child() as home:
        path = groups.path_of(home)
        with pytest.raises(AssertionError, match="exit -9"):
            run_inside(path, script)
        left = {entry.name for entry in path.iterdir() if entry.is_dir()}
        assert "job" in left
        assert len(left) == 2  # the job, and where the program lived
        assert [child.name for child in home.children()] == ["job"]
    assert not path.exists()


def test_limits_while_other_threads_start_processes(workload, job):
    """A process is in its job, wherever that is kept at the moment."""
    stop, errors, started = threading.Event(), [], []

    def start(at):
        try:
            while not stop.is_set():
                with spawn(workload, ["workload"], flags=SpawnFlags.CLONE_NAMESPACE, job=at) as process:
                    assert process.wait(timeout=PATIENCE_S) == 0
                started.append(at)
        except BaseException as error:
            errors.append(error)

    with job.create_child() as other:
        threads = [threading.Thread(target=start, args=(at,)) for at in (job, other)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                with other.create_child() as inner:
                    inner.set_limits(pids=5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert errors == []
    assert started


def test_a_job_removed_by_others_after_it_made_room_is_a_bad_state(workload, job):
    with job.create_child() as outer, outer.create_child() as inner:
        inner.set_limits(pids=5)
        path = groups.path_of(outer)
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)
        for at in (outer, inner):
            with pytest.raises(BadStateError):
                spawn(workload, ["workload"], job=at)
            with pytest.raises((BadStateError, NotSupportedError)):
                at.set_limits(pids=5)
        assert outer.processes() == []


def test_a_job_handed_over_has_the_limits_of_its_maker_and_may_lower_them(run_inside, job, group):
    job.set_limits(pids=40)
    with Job._from_fd(os.dup(job.fileno())) as given:
        given.set_limits(pids=10)
    assert (groups.path_of(job) / "pids.max").read_text().strip() == "10"
