"""Descriptors: clone, transfer, swaps and cycles, collisions, and the order of the checks. Source: spec 1.5, 3.4, 3.7."""

import fcntl
import os
import socket

import pytest
from rig.launchers import every_launcher
from rig.workload import identity, is_open, observe

from shoal import (
    PA_HND,
    AddHandle,
    AlreadyExistsError,
    CloneFd,
    File,
    HandleType,
    InvalidArgsError,
    OutOfRangeError,
    SpawnFlags,
    Stage,
    Status,
    TransferFd,
    UnavailableError,
)

USE_FOR_STDIO = 0x8000


@every_launcher
def test_a_cloned_fd_is_the_same_object_and_stays_with_the_caller(launch, workload, pipe, world):
    os.write(pipe.write, b"hello")
    report = observe(launch, workload, "fds", "write", 6, "back", actions=[CloneFd(pipe.read, 5), CloneFd(pipe.write, 6)])
    found = report.fds()
    assert found[5].same_object(pipe.read)
    assert found[6].same_object(pipe.write)
    assert found[5].flags & os.O_ACCMODE == os.O_RDONLY
    assert os.read(pipe.read, 100) == b"helloback"
    world.assert_unchanged()


@every_launcher
def test_a_transferred_fd_is_gone_from_the_caller_and_works_in_the_child(launch, workload, pipe, world):
    before = identity(pipe.write)
    report = observe(launch, workload, "write", 5, "text", actions=[TransferFd(pipe.write, 5)])
    assert report.ok("write", "5")
    assert identity(pipe.write) != before
    assert os.read(pipe.read, 100) == b"text"
    assert os.read(pipe.read, 100) == b""  # the child had the last writing end
    world.assert_unchanged(besides={pipe.write})


@every_launcher
def test_no_granted_descriptor_carries_the_close_on_exec_mark_and_the_callers_mark_is_kept(launch, workload, pipe):
    assert fcntl.fcntl(pipe.read, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    report = observe(launch, workload, "fds", actions=[CloneFd(pipe.read, 5), CloneFd(pipe.read, pipe.read)])
    assert not any(at.cloexec for at in report.fds().values())
    assert fcntl.fcntl(pipe.read, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@every_launcher
def test_only_the_named_descriptors_reach_the_child(launch, workload, make_pipe):
    pipes = [make_pipe() for _ in range(20)]
    for pipe in pipes:
        os.set_inheritable(pipe.read, True)
    report = observe(launch, workload, "fds", actions=[CloneFd(pipes[3].read, 500)])
    assert set(report.fds()) == {0, 1, 2, 500}


@every_launcher
def test_two_descriptors_can_be_swapped(launch, workload, make_pipe):
    a, b = make_pipe(), make_pipe()
    found = observe(launch, workload, "fds", actions=[CloneFd(a.read, b.read), CloneFd(b.read, a.read)]).fds()
    assert found[b.read].same_object(a.read)
    assert found[a.read].same_object(b.read)


@every_launcher
def test_descriptors_can_move_round_a_cycle_that_includes_the_standard_ones(launch, workload, make_pipe):
    pipes = [make_pipe() for _ in range(5)]
    numbers = [pipe.read for pipe in pipes]
    shifted = numbers[1:] + numbers[:1]
    actions = [CloneFd(local, target) for local, target in zip(numbers, shifted, strict=True)]
    found = observe(launch, workload, "fds", actions=[*actions, CloneFd(2, 0), CloneFd(numbers[0], 2)]).fds()
    for local, target in zip(numbers, shifted, strict=True):
        assert found[target].same_object(local)
    assert found[0].same_object(2)
    assert found[2].same_object(numbers[0])


@every_launcher
def test_one_descriptor_can_be_cloned_to_many_numbers(launch, workload, pipe):
    found = observe(launch, workload, "fds", actions=[CloneFd(pipe.read, target) for target in range(3, 60)]).fds()
    assert all(found[target].same_object(pipe.read) for target in range(3, 60))


@every_launcher
@pytest.mark.parametrize("target", [0, 2, 3, 255, 256, 1022, 1023])
def test_every_number_up_to_1023_can_be_a_target(launch, workload, pipe, target):
    found = observe(launch, workload, "fds", actions=[CloneFd(pipe.read, target)]).fds()
    assert found[target].same_object(pipe.read)


@every_launcher
@pytest.mark.parametrize("target", [-1, -2, 1024, 2000, 0x7FFF, 1024 | USE_FOR_STDIO, 0x10000, 2**31, 2**64, -(2**63)])
def test_a_target_outside_0_to_1023_is_out_of_range(launch, workload, pipe, target, world):
    with pytest.raises(OutOfRangeError) as caught:
        launch(workload, ["workload"], actions=[CloneFd(pipe.read, target)])
    assert caught.value.status is Status.OUT_OF_RANGE
    assert caught.value.stage is Stage.DESCRIPTORS
    assert "action 0" in str(caught.value)
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize(("first", "second"), [(CloneFd, CloneFd), (CloneFd, TransferFd), (TransferFd, CloneFd), (TransferFd, TransferFd)])
def test_a_target_taken_by_an_earlier_action_already_exists(launch, workload, make_pipe, first, second, world):
    a, b = make_pipe(), make_pipe()
    world.reset()
    with pytest.raises(AlreadyExistsError, match="action 1") as caught:
        launch(workload, ["workload"], actions=[first(a.read, 7), second(b.read, 7)])
    assert caught.value.status is Status.ALREADY_EXISTS
    gone = {fd for kind, fd in ((first, a.read), (second, b.read)) if kind is TransferFd}
    assert all(is_open(fd) == (fd not in gone) for fd in (a.read, b.read))
    world.assert_unchanged(besides=gone)


@every_launcher
def test_the_stdio_bit_does_not_make_a_target_another_target(launch, workload, pipe):
    with pytest.raises(AlreadyExistsError, match="action 1"):
        launch(workload, ["workload"], actions=[CloneFd(pipe.read, 7), CloneFd(pipe.read, 7 | USE_FOR_STDIO)])


@every_launcher
def test_a_descriptor_action_and_a_startup_descriptor_collide(launch, workload, make_pipe, world):
    a, b = make_pipe(), make_pipe()
    world.reset()
    with pytest.raises(AlreadyExistsError, match="action 1"):
        launch(workload, ["workload"], actions=[CloneFd(a.read, 8), AddHandle(PA_HND(HandleType.FD, 8), File.from_fd(b.read))])
    assert not is_open(b.read)
    world.assert_unchanged(besides={b.read})


@every_launcher
@pytest.mark.parametrize("kind", [CloneFd, TransferFd])
def test_a_local_fd_that_is_not_open_is_an_invalid_argument(launch, workload, closed_fd, kind, world):
    with pytest.raises(InvalidArgsError, match=f"action 0.*{closed_fd}|{closed_fd}.*action 0") as caught:
        launch(workload, ["workload"], actions=[kind(closed_fd, 5)])
    assert caught.value.status is Status.INVALID_ARGS
    assert caught.value.stage is Stage.DESCRIPTORS
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("kind", [CloneFd, TransferFd])
@pytest.mark.parametrize("number", [-1, -100, 2**31 - 1, 2**31, 2**64])
def test_a_local_fd_that_can_be_none_is_an_invalid_argument(launch, workload, kind, number, world):
    with pytest.raises(InvalidArgsError, match="action 0"):
        launch(workload, ["workload"], actions=[kind(number, 5)])
    world.assert_unchanged()


@every_launcher
def test_a_bad_target_is_reported_even_if_the_local_fd_is_bad_too(launch, workload, closed_fd, pipe):
    with pytest.raises(OutOfRangeError, match="action 0"):
        launch(workload, ["workload"], actions=[CloneFd(closed_fd, 1024)])
    with pytest.raises(AlreadyExistsError, match="action 1"):
        launch(workload, ["workload"], actions=[CloneFd(pipe.read, 5), CloneFd(closed_fd, 5)])


@every_launcher
def test_the_first_failing_action_of_the_list_decides(launch, workload, closed_fd, pipe):
    with pytest.raises(InvalidArgsError, match="action 0"):
        launch(workload, ["workload"], actions=[CloneFd(closed_fd, 5), CloneFd(pipe.read, 1024)])
    with pytest.raises(OutOfRangeError, match="action 0"):
        launch(workload, ["workload"], actions=[CloneFd(pipe.read, 1024), CloneFd(closed_fd, 5)])


@every_launcher
def test_transferring_an_object_that_is_also_open_under_another_number_is_unavailable(launch, workload, pipe, world):
    other = os.dup(pipe.read)
    world.reset()
    try:
        with pytest.raises(UnavailableError, match="action 0") as caught:
            launch(workload, ["workload"], actions=[TransferFd(pipe.read, 5)])
        assert caught.value.status is Status.UNAVAILABLE
        assert not is_open(pipe.read)
        assert is_open(other)
        world.assert_unchanged(besides={pipe.read})
    finally:
        os.close(other)


@every_launcher
def test_the_same_file_opened_twice_is_not_a_shared_object(launch, workload):
    one, two = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
    zero = identity(one)
    try:
        assert observe(launch, workload, "exit", 0, actions=[TransferFd(one, 5)]).returncode == 0
        assert identity(one) != zero
    finally:
        os.close(two)


@every_launcher
def test_cloning_and_then_transferring_the_same_fd_works(launch, workload, pipe):
    before = identity(pipe.write)
    found = observe(launch, workload, "fds", "write", 6, "x", actions=[CloneFd(pipe.write, 5), TransferFd(pipe.write, 6)]).fds()
    assert (found[5].dev, found[5].ino) == (found[6].dev, found[6].ino)
    assert found[5].kind == "pipe"
    assert identity(pipe.write) != before
    assert os.read(pipe.read, 10) == b"x"


@every_launcher
@pytest.mark.parametrize("kind", [CloneFd, TransferFd])
def test_using_a_fd_after_its_transfer_is_an_invalid_argument(launch, workload, pipe, kind, world):
    with pytest.raises(InvalidArgsError, match="action 1"):
        launch(workload, ["workload"], actions=[TransferFd(pipe.read, 5), kind(pipe.read, 6)])
    assert not is_open(pipe.read)
    world.assert_unchanged(besides={pipe.read})


@every_launcher
def test_anything_with_fileno_can_be_a_local_fd(launch, workload):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        report = observe(launch, workload, "write", 5, "hi", actions=[CloneFd(theirs, 5)])
        assert report.ok("write", "5")
        assert ours.recv(10) == b"hi"
        assert theirs.fileno() >= 0


@every_launcher
def test_the_stdio_bit_fills_each_standard_descriptor_that_nothing_else_filled(launch, workload, make_pipe):
    spare, taken = make_pipe(), make_pipe()
    actions = [CloneFd(spare.read, 5 | USE_FOR_STDIO), CloneFd(taken.read, 1)]
    found = observe(launch, workload, "fds", actions=actions, out=9).fds()
    assert set(found) == {0, 1, 2, 5, 9}
    assert found[1].same_object(taken.read)
    assert all(found[fd].same_object(spare.read) for fd in (0, 2, 5))


@every_launcher
def test_cloned_stdio_comes_before_the_stdio_bit(launch, workload, pipe):
    found = observe(launch, workload, "fds", flags=SpawnFlags.CLONE_STDIO, actions=[CloneFd(pipe.read, 5 | USE_FOR_STDIO)], out=9).fds()
    assert all(found[fd].same_object(fd) for fd in (1, 2))
    assert found[5].same_object(pipe.read)


@every_launcher
def test_the_stdio_bit_works_for_a_transfer_and_for_a_startup_descriptor(launch, workload, make_pipe):
    a, b = make_pipe(), make_pipe()
    seen = os.fstat(a.read), os.fstat(b.read)
    found = observe(launch, workload, "fds", actions=[TransferFd(a.read, 6 | USE_FOR_STDIO)], out=9).fds()
    assert (found[0].ino, found[2].ino, found[6].ino) == (seen[0].st_ino,) * 3
    handle = AddHandle(PA_HND(HandleType.FD, 7 | USE_FOR_STDIO), File.from_fd(b.read))
    found = observe(launch, workload, "fds", actions=[handle], out=9).fds()
    assert (found[0].ino, found[2].ino, found[7].ino) == (seen[1].st_ino,) * 3


@pytest.mark.parametrize("world_of_child", ["direct", "cell"])
def test_a_target_above_the_soft_limit_is_refused_clearly(run_python, world_of_child):
    script = """
import resource, shoal
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
flags = shoal.SpawnFlags.CLONE_NAMESPACE if args[0] == "direct" else shoal.SpawnFlags(0)
r, w = os.pipe()
try:
    shoal.spawn(workload, ["workload"], flags=flags, actions=[shoal.CloneFd(r, 63), shoal.CloneFd(r, 64)])
except shoal.SpawnError as error:
    answer([error.status.name, str(error)])
"""
    status, text = run_python(script, world_of_child)
    assert status == "OUT_OF_RANGE"
    assert "action 1" in text
    assert "64" in text


@pytest.mark.parametrize("world_of_child", ["direct", "cell"])
def test_a_program_gets_the_callers_descriptor_limit_unchanged(run_python, world_of_child):
    script = """
import resource
from rig.launchers import make_launcher
from rig.workload import observe
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 5000))
answer(observe(make_launcher(args[0]), workload, "nofile").one("nofile"))
"""
    assert run_python(script, world_of_child) == ["300", "5000"]
