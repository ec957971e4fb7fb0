"""Who owns what afterwards: every way to fail, times every action that consumes, before and after the failing one. Source: spec 2.2.

The table of 2.2 is one rule with no exception: what TransferFd, AddNsEntry and AddHandle were given is gone, however early
the call failed; CloneFd's descriptor and the job stay.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from rig.launchers import every_launcher
from rig.workload import is_open

import shoal
from shoal import (
    PA_HND,
    AddHandle,
    AddNsEntry,
    CloneDir,
    CloneFd,
    Directory,
    File,
    HandleType,
    Job,
    NetNs,
    Rights,
    SpawnFlags,
    Stage,
    Status,
    TransferFd,
    UtcClock,
    Vmo,
)

USER2 = PA_HND(HandleType.USER2)


@dataclass
class Call:
    """The arguments of one spawn, and the job made for it if there is one."""

    path: Any
    argv: list[Any] = field(default_factory=lambda: ["workload"])
    flags: int = 0
    environ: Any = None
    action: Any = None
    job: Any = None


def closed_vmo():
    vmo = Vmo.from_bytes(b"")
    vmo.close()
    return vmo


def made(path, content, mode=0o755):
    path.write_bytes(content)
    path.chmod(mode)
    return path


def killed_job():
    job = Job.default().create_child()
    job.kill()
    return job


def narrow_job(missing):
    with Job.default() as job:
        return job.duplicate(job.rights & ~missing)


def closed_job():
    job = Job.default()
    job.close()
    return job


FAILURES = {
    # name: (call made from (workload, dynamic workload, folder), status, stage)
    "missing file": (lambda w, d, t: Call(t / "missing"), Status.NOT_FOUND, Stage.LOAD),
    "directory as program": (lambda w, d, t: Call(t), Status.NOT_SUPPORTED, Stage.LOAD),
    "no execute permission": (lambda w, d, t: Call(made(t / "plain", b"x", 0o644)), Status.ACCESS_DENIED, Stage.LOAD),
    "path with NUL": (lambda w, d, t: Call("/\0"), Status.INVALID_ARGS, Stage.LOAD),
    "bad CloneDir": (lambda w, d, t: Call(w, action=CloneDir("relative")), Status.INVALID_ARGS, Stage.ARGUMENTS),
    "no name": (lambda w, d, t: Call(w, argv=[]), Status.INVALID_ARGS, Stage.ARGUMENTS),
    "two clocks": (
        lambda w, d, t: Call(w, flags=SpawnFlags.CLONE_UTC_CLOCK, action=AddHandle(PA_HND(HandleType.CLOCK_UTC), UtcClock.create())),
        Status.INVALID_ARGS,
        Stage.ARGUMENTS,
    ),
    "missing interpreter": (lambda w, d, t: Call(made(t / "s", b"#!/nowhere\n")), Status.INTERNAL, Stage.DIRECTIVES),
    "empty program": (lambda w, d, t: Call(made(t / "e", b"")), Status.OUT_OF_RANGE, None),
    "target out of range": (lambda w, d, t: Call(w, action=CloneFd(0, 1024)), Status.OUT_OF_RANGE, Stage.DESCRIPTORS),
    "local not open": (lambda w, d, t: Call(w, action=CloneFd(-1, 9)), Status.INVALID_ARGS, Stage.DESCRIPTORS),
    "closed handle": (lambda w, d, t: Call(w, action=AddHandle(USER2, closed_vmo())), Status.BAD_HANDLE, Stage.HANDLES),
    "reserved id": (lambda w, d, t: Call(w, action=AddHandle(1, Vmo.from_bytes(b""))), Status.INVALID_ARGS, Stage.HANDLES),
    "bad prefix": (lambda w, d, t: Call(w, action=AddNsEntry("relative", Directory.open(t))), Status.INVALID_ARGS, Stage.NAMESPACE),
    "wrong entry": (lambda w, d, t: Call(w, action=AddNsEntry("/x", Vmo.from_bytes(b""))), Status.WRONG_TYPE, Stage.NAMESPACE),
    "closed job": (lambda w, d, t: Call(w, job=closed_job()), Status.BAD_HANDLE, Stage.JOB),
    "killed job": (lambda w, d, t: Call(w, job=killed_job()), Status.BAD_STATE, Stage.JOB),
    "job without right": (lambda w, d, t: Call(w, job=narrow_job(Rights.MANAGE_PROCESS)), Status.ACCESS_DENIED, Stage.JOB),
    "argument with NUL": (lambda w, d, t: Call(w, argv=["a\0b"]), Status.INVALID_ARGS, Stage.ARGUMENTS),
    "environment with NUL": (lambda w, d, t: Call(w, environ=["a\0b"]), Status.INVALID_ARGS, Stage.ARGUMENTS),
    "no loader": (lambda w, d, t: Call(d), Status.INVALID_ARGS, Stage.LOADER),
    "foreign ELF": (lambda w, d, t: Call(made(t / "f", b"\x7fELF" + bytes(100))), Status.INTERNAL, None),
    "too long for exec": (lambda w, d, t: Call(w, argv=["x" * (1 << 20)]), Status.OUT_OF_RANGE, Stage.EXEC),
}

CONSUMING = {
    "TransferFd": lambda folder: TransferFd(os.open("/dev/zero", os.O_RDONLY), 700),
    "AddNsEntry of a directory": lambda folder: AddNsEntry(os.fspath(folder), Directory.open(folder)),
    "AddNsEntry of a tmpfs": lambda folder: AddNsEntry(os.fspath(folder), Directory.tmpfs("1M")),
    "AddNsEntry of a network": lambda folder: AddNsEntry("/svc/net", NetNs.host()),
    "AddHandle of a VMO": lambda folder: AddHandle(PA_HND(HandleType.USER0), Vmo.from_bytes(b"")),
    "AddHandle of a descriptor": lambda folder: AddHandle(PA_HND(HandleType.FD, 701), File.from_fd(os.open("/dev/zero", os.O_RDONLY))),
    "AddHandle of a job": lambda folder: AddHandle(PA_HND(HandleType.JOB_DEFAULT), Job.default()),
}


ZERO = os.stat("/dev/zero").st_ino


def consumed(action):
    if isinstance(action, TransferFd):  # the number may be another object's already
        return not is_open(action.local_fd) or os.fstat(action.local_fd).st_ino != ZERO
    return action.handle.closed


@every_launcher
@pytest.mark.parametrize("after", [False, True], ids=["before the failing action", "after the failing action"])
@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_fails_all_that_was_handed_over_is_consumed(launch, workload, workload_dynamic, tmp_path, failure, after, world):
    make, status, stage = FAILURES[failure]
    for name, consuming in CONSUMING.items():
        if "network" in name and not launch.own_world:
            continue  # a mistake of its own: a child in the caller's world has the caller's network
        call, action = make(workload, workload_dynamic, tmp_path), consuming(tmp_path)
        actions = [item for item in ((call.action, action) if after else (action, call.action)) if item is not None]
        with pytest.raises(shoal.SpawnError) as caught:
            launch(call.path, call.argv, flags=call.flags, environ=call.environ, actions=actions, job=call.job)
        assert caught.value.status is status, f"{name}: {caught.value}"
        assert stage in (None, caught.value.stage), f"{name}: {caught.value}"
        assert consumed(action), name
        if isinstance(call.action, AddHandle | AddNsEntry):
            assert call.action.handle.closed, name
        if call.job is not None:
            call.job.close()
        del call, caught
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("name", CONSUMING)
def test_on_success_all_that_was_handed_over_is_in_the_child_only(launch, workload, tmp_path, name, world):
    if "network" in name and not launch.own_world:
        pytest.skip("a child in the caller's world has the caller's network")
    action = CONSUMING[name](tmp_path)
    with launch(workload, ["workload", "exit", "0"], actions=[action]) as process:
        assert consumed(action)
        assert process.wait(timeout=30) == 0
    world.assert_unchanged()


@every_launcher
def test_a_cloned_fd_and_the_job_stay_with_the_caller_on_success_and_on_failure(launch, workload, pipe, tmp_path, world):
    with Job.default() as job:
        for path in (workload, tmp_path / "missing"):
            try:
                with launch(path, ["workload"], actions=[CloneFd(pipe.read, 5)], job=job) as process:
                    process.wait(timeout=30)
            except shoal.NotFoundError:
                pass
            assert is_open(pipe.read)
            assert not job.closed
    world.assert_unchanged()


@every_launcher
def test_a_whole_list_is_consumed_whichever_of_its_actions_fails(launch, workload, tmp_path, world):
    for bad_at in range(5):
        actions = [
            CONSUMING[name](tmp_path) for name in ("TransferFd", "AddNsEntry of a directory", "AddHandle of a VMO", "AddHandle of a job")
        ]
        consuming = list(actions)
        actions.insert(bad_at, CloneFd(-1, 9))
        with pytest.raises(shoal.InvalidArgsError, match=f"action {bad_at}"):
            launch(workload, ["workload"], actions=actions)
        assert all(consumed(action) for action in consuming)
    world.assert_unchanged()


@every_launcher
def test_the_same_fd_transferred_twice_is_closed_once(launch, workload, make_pipe, world):
    """The number may already be somebody else's when the second action's turn comes; it must not be closed again."""
    victim = make_pipe()
    world.reset()
    with pytest.raises(shoal.InvalidArgsError, match="action 1"):
        launch(workload, ["workload"], actions=[TransferFd(victim.read, 5), TransferFd(victim.read, 6)])
    world.assert_unchanged(besides={victim.read})


def test_explain_consumes_nothing_and_starts_nothing(workload, pipe, tmp_path, world):
    handle = Directory.open(tmp_path)
    world.reset()
    plan = shoal.explain(workload, ["workload"], actions=[TransferFd(pipe.read, 5), AddNsEntry("/data", handle)])
    assert "/data" in str(plan)
    assert not handle.closed
    world.assert_unchanged()
    handle.close()
