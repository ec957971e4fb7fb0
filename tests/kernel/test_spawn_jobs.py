"""Jobs and spawn: where the process lives, which rights that takes, the NEW_PROCESS policy, and kill. Source: spec 3.1, 6.2, 6.3."""

import os
import select
import signal
import time
from pathlib import Path

import pytest
from rig.launchers import every_launcher
from rig.workload import PATIENCE_S, Reporting, observe

from shoal import AccessDeniedError, BadHandleError, CloneFd, Job, Rights, SpawnFlags, Stage, Status, Vmo, WrongTypeError
from shoal.status import BadStateError


@pytest.fixture
def job():
    with Job.default().create_child() as child:
        yield child
        child.kill()
        child.wait_empty(timeout=PATIENCE_S)


@every_launcher
def test_a_process_lives_in_the_job_it_was_started_in_from_its_first_instruction(launch, workload, job, pipe):
    with launch(workload, ["workload", "drain", "0"], job=job, actions=[CloneFd(pipe.read, 0)]) as process:
        assert process.pid in job.processes()
        os.close(pipe.write)
        process.wait(timeout=PATIENCE_S)
    job.wait_empty(timeout=PATIENCE_S)
    assert job.processes() == []


@every_launcher
@pytest.mark.parametrize("missing", [Rights.MANAGE_PROCESS, Rights.DUPLICATE, Rights.TRANSFER])
@pytest.mark.parametrize("flags", [SpawnFlags(0), SpawnFlags.CLONE_JOB])
def test_a_job_handle_that_lacks_a_right_is_denied_and_stays_open(launch, workload, job, missing, flags, world):
    with job.duplicate(job.rights & ~missing) as narrow:
        with pytest.raises(AccessDeniedError) as caught:
            launch(workload, ["workload"], job=narrow, flags=flags)
        assert caught.value.status is Status.ACCESS_DENIED
        assert caught.value.stage is Stage.JOB
        assert not narrow.closed
    world.assert_unchanged()


@every_launcher
def test_the_three_rights_spawn_needs_are_enough(launch, workload, job):
    with job.duplicate(Rights.MANAGE_PROCESS | Rights.DUPLICATE | Rights.TRANSFER) as narrow:
        assert observe(launch, workload, "exit", 3, job=narrow).returncode == 3


@every_launcher
def test_the_process_handle_has_its_default_rights_whatever_the_jobs_were(launch, workload, job):
    with (
        job.duplicate(Rights.MANAGE_PROCESS | Rights.DUPLICATE | Rights.TRANSFER) as narrow,
        launch(workload, ["workload"], job=narrow) as process,
    ):
        assert process.rights == Rights.DEFAULT_PROCESS
        process.wait(timeout=PATIENCE_S)


@every_launcher
def test_a_closed_job_is_a_bad_handle(launch, workload, world):
    job = Job.default()
    job.close()
    with pytest.raises(BadHandleError) as caught:
        launch(workload, ["workload"], job=job)
    assert caught.value.status is Status.BAD_HANDLE
    world.assert_unchanged()


@every_launcher
def test_a_handle_that_is_no_job_is_the_wrong_type_and_not_consumed(launch, workload, world):
    with Vmo.from_bytes(b"") as vmo:
        with pytest.raises(WrongTypeError) as caught:
            launch(workload, ["workload"], job=vmo)
        assert caught.value.status is Status.WRONG_TYPE
        assert not vmo.closed
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("flags", [SpawnFlags(0), SpawnFlags.CLONE_JOB])
def test_a_killed_job_takes_no_new_process(launch, workload, flags, world):
    with Job.default().create_child() as job:
        job.kill()
        with pytest.raises(BadStateError) as caught:
            launch(workload, ["workload"], job=job, flags=flags)
        assert caught.value.status is Status.BAD_STATE
        assert caught.value.stage is Stage.JOB
        job.wait_empty(timeout=PATIENCE_S)
    world.assert_unchanged()


@every_launcher
def test_a_child_of_a_killed_job_takes_no_new_process_either(launch, workload, world):
    with Job.default().create_child() as job, job.create_child() as inner:
        job.kill()
        with pytest.raises(BadStateError):
            launch(workload, ["workload"], job=inner)
    world.assert_unchanged()


@every_launcher
def test_kill_leaves_nothing_alive_whatever_forks_meanwhile(launch, workload, job):
    """Every process of the bomb holds the report; its end is the end of the last of them."""
    with Reporting() as reporting:
        with launch(workload, ["workload", "bomb", "300"], job=job, actions=[reporting.action()]) as process:
            reporting.started()
            assert reporting.line() == ["bomb", "300", "ok", "0"]
            job.kill()
            assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL
        assert reporting.rest() == b""
    job.wait_empty(timeout=PATIENCE_S)
    assert job.processes() == []


@every_launcher
def test_kill_reaches_a_daemon_that_left_its_session_and_its_parent(launch, workload, job, pipe):
    with Reporting() as reporting:
        with launch(workload, ["workload", "daemon", "5"], job=job, actions=[CloneFd(pipe.read, 5), reporting.action()]) as process:
            reporting.started()
            assert reporting.line()[0] == "daemon"
            assert process.wait(timeout=PATIENCE_S) == 0
        assert not select.select([reporting.read_end], [], [], 0)[0]  # it runs on although its maker has ended
        job.kill()
        assert reporting.rest() == b""


@every_launcher
def test_kill_reaches_the_processes_of_child_jobs(launch, workload, job, pipe):
    with job.create_child() as inner, launch(workload, ["workload", "pause"], job=inner) as process:
        job.kill()
        assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL


def launched_without_first_thread(launch, workload, job, pipe):
    """A process whose first thread has ended, which shows as a zombie, and which another thread ends with 7 when the pipe is closed."""
    process = launch(workload, ["workload", "leave-to-thread", "0"], job=job, actions=[CloneFd(pipe.read, 0)])
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


@every_launcher
def test_a_process_whose_first_thread_has_ended_is_still_in_its_job(launch, workload, job, pipe):
    with launched_without_first_thread(launch, workload, job, pipe) as process:
        assert process.pid in job.processes()
        assert process.info().usage.max_memory_bytes > 0
        with pytest.raises(TimeoutError):
            job.wait_empty(timeout=0)
        os.close(pipe.write)
        assert process.wait(timeout=PATIENCE_S) == 7
    job.wait_empty(timeout=PATIENCE_S)


@every_launcher
def test_a_process_whose_first_thread_has_ended_lives_on_in_a_job_that_nobody_holds(launch, workload, pipe):
    job = Job.default().create_child()
    with launched_without_first_thread(launch, workload, job, pipe) as process:
        job.close()
        Job.default().create_child().close()  # which looks at what others have left
        assert process.poll() is None
        os.close(pipe.write)
        assert process.wait(timeout=PATIENCE_S) == 7


@every_launcher
def test_a_job_is_not_ended_by_the_end_of_its_last_process(launch, workload, job):
    for status in (1, 2, 3):
        assert observe(launch, workload, "exit", status, job=job).returncode == status


@every_launcher
def test_a_job_that_denies_new_processes_can_be_spawned_into(launch, workload, job):
    job.set_policy({"new_process": "deny"})
    assert observe(launch, workload, "exit", 5, job=job).returncode == 5


@every_launcher
def test_nothing_in_a_job_that_denies_new_processes_can_make_one_but_threads_are_none(launch, workload, job):
    job.set_policy({"new_process": "deny"})
    report = observe(launch, workload, "fork", "thread", "fork", job=job)
    assert all(words[0] != "ok" for words in report.all("fork"))
    assert report.ok("thread")
    assert report.returncode == 0


@every_launcher
def test_a_policy_of_the_parent_holds_in_jobs_made_below_it(launch, workload, job):
    job.set_policy({"new_process": "deny"})
    with job.create_child() as inner:
        assert not observe(launch, workload, "fork", job=inner).ok("fork")


@every_launcher
def test_without_a_policy_a_program_may_fork(launch, workload, job):
    assert observe(launch, workload, "fork", job=job).ok("fork")


@every_launcher
def test_spawn_without_a_job_uses_the_default_job(launch, workload, pipe):
    with launch(workload, ["workload", "drain", "0"], actions=[CloneFd(pipe.read, 0)]) as process:
        mine, theirs = (_unified_line(pid) for pid in ("self", process.pid))
        assert theirs == mine
        os.close(pipe.write)
        process.wait(timeout=PATIENCE_S)


def _unified_line(pid):
    return [line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")]
