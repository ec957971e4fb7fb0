"""Any map from descriptors to descriptors arrives exactly as asked, whatever the numbers on either side. Source: spec 3.7."""

import contextlib
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rig.launchers import make_launcher
from rig.workload import is_open, observe

from shoal import AlreadyExistsError, CloneFd, OutOfRangeError, TransferFd

REPORT = 1  # the number the report has in the child
numbers = st.one_of(st.integers(0, 40), st.integers(200, 260), st.sampled_from([255, 256, 511, 512, 1021, 1022, 1023])).filter(
    lambda fd: fd != REPORT
)
maps = st.lists(st.tuples(st.integers(0, 7), numbers, st.booleans()), max_size=12, unique_by=lambda entry: entry[1])


@contextlib.contextmanager
def eight_objects(at):
    """Eight different objects under the descriptor numbers from `at` upwards, where free; closed afterwards."""
    made = []
    try:
        for offset in range(8):
            fd = os.memfd_create(f"object {offset}", os.MFD_CLOEXEC)
            os.write(fd, str(offset).encode())
            wanted = at + offset
            if not is_open(wanted):
                os.dup2(fd, wanted, inheritable=False)
                os.close(fd)
                fd = wanted
            made.append((fd, os.fstat(fd).st_ino))
        yield [fd for fd, _ in made]
    finally:
        for fd, inode in made:
            if is_open(fd) and os.fstat(fd).st_ino == inode:
                os.close(fd)


@pytest.mark.parametrize("world_of_child", ["direct", "cell"])
@settings(max_examples=60)
@given(entries=maps, at=st.sampled_from([20, 200, 1000]))
@example(entries=[(0, 21, False), (1, 20, False)], at=20)
@example(entries=[(n, 20 + (n + 1) % 8, False) for n in range(8)], at=20)
@example(entries=[(n, 1000 + (n + 3) % 8, True) for n in range(8)], at=1000)
@example(entries=[(0, 0, False), (0, 2, False), (0, 3, False), (0, 1023, True)], at=200)
def test_every_map_arrives_exactly(workload, world_of_child, entries, at):
    launch = make_launcher(world_of_child)
    with eight_objects(at) as objects:
        inodes = [os.fstat(fd).st_ino for fd in objects]
        last_use = {which: index for index, (which, _, _) in enumerate(entries)}
        actions = []
        transferred = set()
        for index, (which, target, transfer) in enumerate(entries):
            if transfer and last_use[which] == index:  # a fd that was handed over cannot be used again
                actions.append(TransferFd(objects[which], target))
                transferred.add(objects[which])
            else:
                actions.append(CloneFd(objects[which], target))
        found = observe(launch, workload, "fds", actions=actions, out=REPORT).fds()
        expected = {target: inodes[which] for which, target, _ in entries}
        assert {fd: at_child.ino for fd, at_child in found.items() if fd in expected} == expected
        assert set(found) == set(expected) | {0, 1, 2}
        assert all(found[fd].is_null for fd in {0, 2} - set(expected))
        assert {fd for fd, inode in zip(objects, inodes, strict=True) if not is_open(fd) or os.fstat(fd).st_ino != inode} == transferred


@settings(max_examples=60)
@given(targets=st.lists(st.integers(-3, 8) | st.integers(1020, 1030), min_size=1, max_size=6))
def test_the_first_bad_target_of_a_list_is_the_one_that_is_reported(workload, targets):
    launch = make_launcher("direct")
    seen = set()
    bad = None
    for index, target in enumerate(targets):
        if not 0 <= target <= 1023:
            bad = index, OutOfRangeError
        elif target in seen:
            bad = index, AlreadyExistsError
        if bad:
            break
        seen.add(target)
    actions = [CloneFd(0, target) for target in targets]
    if bad is None:
        with launch(workload, ["workload", "exit", "0"], actions=actions) as process:
            assert process.wait(timeout=30) == 0
    else:
        with pytest.raises(bad[1], match=f"action {bad[0]}\\b"):
            launch(workload, ["workload"], actions=actions)
