"""The order of evaluation: of two mistakes in one call, the one that is found first decides. Source: spec 2.1.

FAULTS lists mistakes in the order of the steps; every pair is tried. A pair that would need the same argument twice is left out.
"""

import itertools
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from rig.launchers import every_launcher
from rig.workload import is_open

import shoal
from shoal import PA_HND, AddHandle, AddNsEntry, CloneDir, CloneFd, Directory, HandleType, Job, Rights, SpawnFlags, Status, TransferFd, Vmo


@dataclass
class Fault:
    """One mistake: the step of 2.1 that finds it, the status it has, and what it changes in a call."""

    step: int
    status: Status
    change: Any
    slots: set[str] = field(default_factory=set)


def closed(handle):
    handle.close()
    return handle


def file_with(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def killed_job():
    job = Job.default().create_child()
    job.kill()
    return job


def narrow_job():
    with Job.default() as job:
        return job.duplicate(job.rights & ~Rights.MANAGE_PROCESS)


FAULTS = {
    "missing file": Fault(1, Status.NOT_FOUND, lambda t: {"path": t / "missing"}, {"path"}),
    "malformed CloneDir": Fault(6, Status.INVALID_ARGS, lambda t: {"actions": [CloneDir("/x/")]}),
    "no name": Fault(7, Status.INVALID_ARGS, lambda t: {"argv": []}, {"argv"}),
    "missing interpreter": Fault(10, Status.INTERNAL, lambda t: {"path": file_with(t, "s", b"#!/nowhere\n")}, {"path"}),
    "line too long": Fault(10, Status.OUT_OF_RANGE, lambda t: {"path": file_with(t, "l", b"#!" + b"x" * 3000)}, {"path"}),
    "bad target fd": Fault(14, Status.OUT_OF_RANGE, lambda t: {"actions": [CloneFd(0, 1024)]}, {"fd"}),
    "bad local fd": Fault(14, Status.INVALID_ARGS, lambda t: {"actions": [CloneFd(-1, 9)]}, {"fd"}),
    "closed handle": Fault(
        17, Status.BAD_HANDLE, lambda t: {"actions": [AddHandle(PA_HND(HandleType.USER0), closed(Vmo.from_bytes(b"")))]}, {"handle"}
    ),
    "closed directory": Fault(17, Status.BAD_HANDLE, lambda t: {"actions": [AddNsEntry("/x", closed(Directory.open(t)))]}, {"handle"}),
    "job without right": Fault(18, Status.ACCESS_DENIED, lambda t: {"job": narrow_job()}, {"job"}),
    "killed job": Fault(19, Status.BAD_STATE, lambda t: {"job": killed_job()}, {"job"}),
    "reserved id": Fault(20, Status.INVALID_ARGS, lambda t: {"actions": [AddHandle(1, Vmo.from_bytes(b""))]}),
    "not a program": Fault(21, Status.INTERNAL, lambda t: {"path": file_with(t, "p", b"\x7fELF" + bytes(100))}, {"path"}),
}

PAIRS = [
    (first, second)
    for first, second in itertools.combinations(FAULTS, 2)
    if FAULTS[first].step < FAULTS[second].step
    and not FAULTS[first].slots & FAULTS[second].slots
    # Two mistakes with the same status tell nothing apart.
    and FAULTS[first].status is not FAULTS[second].status
]


@every_launcher
@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_the_mistake_found_first_decides_wherever_it_stands(launch, workload, tmp_path, earlier, later, world):
    for in_this_order in ((earlier, later), (later, earlier)):
        call = {"path": workload, "argv": ["workload"], "actions": []}
        for name in in_this_order:
            change = FAULTS[name].change(tmp_path)
            call["actions"] = call["actions"] + change.pop("actions", [])
            call |= change
        with pytest.raises(shoal.SpawnError) as caught:
            launch(call["path"], call["argv"], actions=call["actions"], job=call.get("job"))
        assert caught.value.status is FAULTS[earlier].status, str(caught.value)
        if "job" in call:
            call["job"].close()
    world.assert_unchanged()


@every_launcher
def test_a_missing_file_beats_a_bad_argument_and_is_remembered_through_the_whole_list(launch, tmp_path, pipe, world):
    with pytest.raises(shoal.NotFoundError, match="missing"):
        launch(tmp_path / "missing", [], actions=[CloneDir(""), CloneFd(-1, 5000), TransferFd(pipe.read, 5)])
    assert not is_open(pipe.read)
    world.assert_unchanged(besides={pipe.read})


@every_launcher
def test_a_bad_argument_at_the_end_of_the_list_beats_a_bad_fd_at_its_beginning(launch, workload):
    with pytest.raises(shoal.InvalidArgsError, match="action 2"):
        launch(workload, ["workload"], actions=[CloneFd(0, 1024), CloneFd(0, -5), CloneDir("relative")])


@every_launcher
def test_fd_numbers_are_not_looked_at_while_shapes_are(launch, workload):
    with pytest.raises(shoal.InvalidArgsError) as caught:
        launch(workload, [], actions=[CloneFd(0, 1024)])
    assert "action 0" not in str(caught.value)


@every_launcher
def test_job_checks_of_clone_job_come_before_the_descriptors(launch, workload, world):
    with Job.default() as whole:
        job = whole.duplicate(whole.rights & ~Rights.DUPLICATE)
    with job, pytest.raises(shoal.AccessDeniedError):
        launch(workload, ["workload"], flags=SpawnFlags.CLONE_JOB, actions=[CloneFd(0, 1024)], job=job)
    world.assert_unchanged()


@every_launcher
def test_without_clone_job_the_descriptors_come_first(launch, workload):
    with Job.default() as whole:
        job = whole.duplicate(whole.rights & ~Rights.DUPLICATE)
    with job, pytest.raises(shoal.OutOfRangeError):
        launch(workload, ["workload"], actions=[CloneFd(0, 1024)], job=job)


@every_launcher
@pytest.mark.parametrize("call", [{"argv": ["nul\0"]}, {"environ": ["nul\0"]}])
def test_a_bad_fd_beats_a_string_with_nul(launch, workload, call):
    with pytest.raises(shoal.OutOfRangeError):
        launch(workload, call.get("argv", ["workload"]), environ=call.get("environ"), actions=[CloneFd(0, 1024)])


@every_launcher
def test_a_bad_fd_beats_a_missing_loader(launch, workload_dynamic):
    with pytest.raises(shoal.OutOfRangeError):
        launch(workload_dynamic, ["workload"], actions=[CloneFd(0, 1024)])


@every_launcher
def test_an_earlier_transfer_stands_when_a_later_action_fails(launch, workload, pipe, closed_fd, world):
    with pytest.raises(shoal.InvalidArgsError, match="action 1"):
        launch(workload, ["workload", "exit", "0"], actions=[TransferFd(pipe.read, 0), CloneFd(closed_fd, 5)])
    assert not is_open(pipe.read)
    world.assert_unchanged(besides={pipe.read})


@every_launcher
def test_nothing_runs_unless_everything_succeeded(launch, workload, pipe, closed_fd, world):
    with pytest.raises(shoal.InvalidArgsError):
        launch(workload, ["workload", "write", "5", "I ran"], actions=[TransferFd(pipe.write, 5), CloneFd(closed_fd, 6)])
    assert os.read(pipe.read, 100) == b""
    world.assert_unchanged(besides={pipe.write})
