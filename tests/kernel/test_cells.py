"""Cells made ahead: when there are any and how many, what they are no use for, and how little they take of what is scarce.

A launch was warm when its process existed before the call; see rig/cells.py. What cannot be undone in a process (limits, mounts,
how it ends) happens in an interpreter of its own.
"""

import ctypes
import gc
import itertools
import os
import threading
import time

import pytest
from rig.cells import (
    STAYS,
    WORDS,
    children,
    descriptors,
    keepers,
    until,
    waiting,
)
from rig.features import broken, needs
from rig.workload import PATIENCE_S, observe

import shoal
from shoal import CloneFd, SpawnFlags, cells, repeat
from shoal.handles import reaper
from shoal.recipe import Recipe

pytestmark = pytest.mark.usefixtures("as_many_as_ever")


def threads_of_cells():
    return [thread for thread in threading.enumerate() if thread.name == "shoal-cells"]


# --- when there are any --------------------------------------------------------------------------------------------


def test_the_third_launch_in_a_row_asks_for_cells_and_the_ones_after_it_find_their_process_waiting(watched, workload, world):
    words = ["unheard-of", *WORDS[1:]]
    for _ in range(2):
        watched(workload, words).wait(timeout=PATIENCE_S)
        assert not waiting()
        assert not threads_of_cells()
    watched(workload, words).wait(timeout=PATIENCE_S)
    for _ in range(10):
        there = until(waiting, "a cell is made ahead")
        asked = time.time()
        with watched(workload, words) as process:
            assert process.pid in there
            assert process.info().started_at >= asked  # as a program it is new
            assert process.wait(timeout=PATIENCE_S) == 0
    assert watched.warm == [False] * 3 + [True] * 10
    world.assert_unchanged()


def test_programs_that_run_on_do_not_count_as_waiting(watched, workload, pipe, world):
    running = []
    while len(running) < 2 * cells.KEPT:
        running.append(watched(workload, STAYS, actions=[CloneFd(pipe.read, 0)]))
    assert sum(watched.warm) > cells.KEPT
    os.close(pipe.write)
    for process in running:
        assert process.wait(timeout=PATIENCE_S) == 0
        process.close()
    world.assert_unchanged(besides={pipe.write})


def test_launches_that_are_far_between_make_no_cells(watched, workload, monkeypatch):
    monkeypatch.setattr(cells, "SOON_S", 0.0)  # every launch is far from the one before
    for _ in range(20):
        watched(workload, WORDS).wait(timeout=PATIENCE_S)
        assert not threads_of_cells()
    assert not any(watched.warm)
    assert not waiting()


def test_cells_that_nobody_asks_for_any_more_end_and_so_do_the_threads(watched, workload, monkeypatch):
    monkeypatch.setattr(cells, "IDLE_S", 0.1)
    before = children()
    watched.warm_up(workload, WORDS)
    assert threads_of_cells()
    until(lambda: not threads_of_cells(), "the threads end")
    until(lambda: not waiting() and not keepers() - before, "no cell is left")


def test_when_launches_stop_nothing_at_all_is_left_of_cells_without_any_further_call(watched, workload, monkeypatch):
    monkeypatch.setattr(cells, "IDLE_S", 0.1)
    monkeypatch.setattr("rig.cells.PATIENCE_S", 2.0)
    watched(workload, WORDS).wait(timeout=PATIENCE_S)
    until(lambda: reaper.sweep() or not reaper.pending(), "the first cell is reaped")
    cells.limit(cells.KEPT)
    before = children(), descriptors()
    watched.warm_up(workload, WORDS)
    until(lambda: not threads_of_cells(), "the threads end")
    until(lambda: (children(), descriptors()) == before, "no process and no descriptor is left, not even a dead one")


def test_a_launch_of_another_program_by_another_name_or_with_other_targets_takes_no_cell_of_this_one(
    watched, workload, workload_dynamic, pipe
):
    watched.warm_up(workload, WORDS)
    others = [
        {"path": workload, "argv": ["another"]},
        {"path": workload, "argv": WORDS, "actions": [CloneFd(pipe.read, 5)]},
        {"path": workload, "argv": WORDS, "flags": SpawnFlags.CLONE_UTC_CLOCK},
        {"path": workload_dynamic, "argv": WORDS, "flags": SpawnFlags.DEFAULT_LDSVC},
    ]
    for other in others:
        there = waiting()
        with watched(**other) as process:
            assert process.wait(timeout=PATIENCE_S) == 0
        assert not watched.warm[-1]
        assert waiting() == there


def test_launches_in_pairs_are_forgotten_in_the_end(watched, workload, monkeypatch):
    monkeypatch.setattr(repeat, "KEPT", 8)
    monkeypatch.setattr(cells, "SOON_S", 0.05)
    monkeypatch.setattr(cells, "IDLE_S", 0.05)
    monkeypatch.setattr("rig.cells.PATIENCE_S", 2.0)

    def launch_twice(name):
        for _ in range(2):
            watched(workload, [name]).wait(timeout=PATIENCE_S)

    def recipes():
        gc.collect()
        return [found for found in gc.get_objects() if isinstance(found, Recipe)]

    others_have = recipes()  # which keeps their numbers theirs

    def remembered():
        return len({id(recipe) for recipe in recipes()} - {id(recipe) for recipe in others_have})

    for number in range(40):
        launch_twice(f"name-{number}")
    # Forgetting may take another launch, but not one of the same program.
    others = (f"other-{number}" for number in itertools.count())
    until(lambda: launch_twice(next(others)) or remembered() <= 2 * repeat.KEPT, "they are forgotten")


# --- how many ------------------------------------------------------------------------------------------------------


def test_a_negative_number_of_cells_is_a_value_error_and_changes_nothing(watched, workload):
    with pytest.raises(ValueError, match="-1"):
        cells.limit(-1)
    watched.warm_up(workload, WORDS)


def test_with_a_limit_of_none_every_launch_is_cold(watched, workload):
    watched.warm_up(workload, WORDS)
    cells.limit(0)
    assert not waiting()
    assert not threads_of_cells()
    watched.warm.clear()
    for _ in range(20):
        watched(workload, WORDS).wait(timeout=PATIENCE_S)
        assert not waiting()
    assert not any(watched.warm)
    assert not threads_of_cells()


def launch_in_step(workload, *, threads, launches, steps):
    """Launch from many threads; returns the wrong results, and how many cells waited at each step, when nobody was launching."""
    counts, wrong = [], []

    def look_around():
        cells.wait_ready()
        counts.append(len(waiting()))

    barrier = threading.Barrier(threads, action=look_around)

    def work(seed):
        try:
            for number in range(launches):
                status = (seed * 31 + number) % 251
                with shoal.spawn(workload, ["workload", "exit", str(status)]) as process:
                    found = process.wait(timeout=PATIENCE_S)
                if found != status:
                    wrong.append((status, found))
                if number % (launches // steps) == 0:
                    barrier.wait(timeout=PATIENCE_S)
        except BaseException as error:
            wrong.append(error)
            barrier.abort()

    working = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    return wrong, counts


def test_one_kind_of_launch_that_has_all_cells_leaves_some_to_another_kind(watched, workload, world):
    cells.limit(2)
    wrong, counts = launch_in_step(workload, threads=4, launches=60, steps=12)
    assert wrong == []
    assert max(counts) == 2
    with watched.until_warm(workload, ["another", "exit", "0"]) as process:
        process.wait(timeout=PATIENCE_S)
    world.assert_unchanged()


def test_a_limit_of_two_is_never_exceeded(workload, world):
    cells.limit(2)
    wrong, counts = launch_in_step(workload, threads=4, launches=60, steps=12)
    assert wrong == []
    assert max(counts) == 2
    world.assert_unchanged()


def test_eight_threads_get_what_they_asked_for_and_never_more_cells_wait_than_are_kept(workload, world):
    wrong, counts = launch_in_step(workload, threads=8, launches=300, steps=10)
    assert wrong == []
    assert 0 < max(counts) <= cells.KEPT
    world.assert_unchanged()


def test_the_limit_can_be_set_while_others_launch(script):
    text = """
done = threading.Event()
def work():
    while not done.is_set():
        go()
working = [threading.Thread(target=work) for _ in range(4)]
for thread in working:
    thread.start()
until(waiting, "a cell waits")
for number in [16] * 30 + [2, 0]:
    until(waiting, "a cell waits")
    cells.limit(number)
done.set()
for thread in working:
    thread.join()
answer("done")
"""
    assert script(text) == "done"


# --- what does not fit in a message --------------------------------------------------------------------------------


def large_launches(pipe):
    many = [CloneFd(pipe.read, target) for target in range(3, 303)]
    return {
        "arguments": (
            {"argv": ["workload", "argv", "x" * 100_000], "environ": {"WORKLOAD": "argv"}},
            lambda seen: seen.one("argv")[2] == "x" * 100_000,
        ),
        "variables": ({"environ": [f"V{i}=x" for i in range(5000)]}, lambda seen: seen.one("envc") == ["5000"]),
        "one variable": ({"environ": [f"V={'x' * 100_000}"]}, lambda seen: seen.env() == [f"V={'x' * 100_000}"]),
        "descriptors": ({"actions": many}, lambda seen: len(seen.fds()) == 303),
    }


@pytest.mark.parametrize("what", ["arguments", "variables", "one variable", "descriptors"])
def test_a_launch_that_is_too_large_for_a_message_is_a_launch_like_any_other(watched, workload, pipe, what, world):
    how, as_told = large_launches(pipe)[what]
    for _ in range(8):
        seen = observe(watched, workload, **{"argv": ["workload", "env", "fds"]} | how)
        assert seen.returncode == 0
        assert as_told(seen)
    assert not any(watched.warm)
    world.assert_unchanged()


@pytest.mark.parametrize("what", ["arguments", "variables", "one variable"])
def test_a_launch_that_is_too_large_for_a_message_uses_up_no_cell(watched, workload, pipe, what):
    how, _ = large_launches(pipe)[what]
    watched.warm_up(workload, WORDS)
    cells.wait_ready()
    there = waiting()
    for _ in range(3):
        with watched(workload, **{"argv": WORDS} | how) as process:
            assert process.wait(timeout=PATIENCE_S) == 0
    assert waiting() >= there


def test_a_launch_with_more_descriptors_than_a_message_takes_has_no_cells(watched, workload, pipe):
    how, _ = large_launches(pipe)["descriptors"]
    for _ in range(8):
        watched(workload, WORDS, **how).wait(timeout=PATIENCE_S)
    assert not threads_of_cells()


def test_as_many_descriptors_as_one_message_takes_are_handed_over_warm(watched, workload, pipe):
    actions = [CloneFd(pipe.read, target) for target in range(3, 255)]
    found = watched.observe_warm(workload, "fds", actions=actions).fds()  # the report is the 253rd
    assert set(found) == set(range(255))
    assert all(found[target].same_object(pipe.read) for target in range(3, 255))


def test_a_descriptor_that_cannot_be_sent_is_handed_over_all_the_same(watched, workload, world):
    setup = ctypes.create_string_buffer(128)
    ring = ctypes.CDLL(None, use_errno=True).syscall(425, 8, setup)  # io_uring_setup: since Linux 6.7 no message takes these
    if ring < 0:
        pytest.skip("needs io_uring")
    try:
        for _ in range(8):
            found = observe(watched, workload, "fds", actions=[CloneFd(ring, 5)]).fds()
            assert found[5].same_object(ring)
    finally:
        os.close(ring)
    world.assert_unchanged()


# --- few resources -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "most"), [(63, 0), (64, 1), (200, 3), (640, 10)])
def test_cells_take_few_descriptors_where_few_are_allowed(script, limit, most):
    text = """
from shoal.handles import reaper
limit, most = args
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
cells.IDLE_S = 60.0
go()
cells.limit(16)
until(lambda: reaper.sweep() or not reaper.pending(), "all is reaped")
before = descriptors()
for _ in range(40):
    running = [watched.launch(workload, ["workload"]) for _ in range(4)]
    for process in running:
        process.wait(timeout=20)
        process.close()
until(lambda: reaper.sweep() or not reaper.pending(), "all is reaped")
if most:
    until(waiting, "a cell waits")
cells.wait_ready()
found = waiting()
answer([len(found), len(descriptors() - before)])
"""
    count, taken = script(text, limit, most)
    assert count <= most
    assert taken <= 4 * most + 3  # what tells of mounts, and the process that makes cells: itself and its socket


LAST_DESCRIPTORS = """
from shoal.handles import reaper
def launch():
    # An entry made for this launch: what was mounted in a first attempt cannot be mounted in a second.
    actions = [CloneFd(0, 5), shoal.AddNsEntry("/tmp", shoal.Directory.tmpfs("1M"))] if args == ["a file system"] else [CloneFd(0, 5)]
    with watched.launch(workload, ["workload"], actions=actions) as process:
        assert process.wait(timeout=20) == 0
def calm():
    until(lambda: reaper.sweep() or not reaper.pending(), "all is reaped")
def hold_all_but(free):
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(os.dup(0))
    for _ in range(free):
        os.close(held.pop())
    return held
def works(free):
    held = hold_all_but(free)
    try:
        launch()
    except shoal.SpawnError as error:
        assert error.errno == 24, error
        return False
    finally:
        calm()
        for fd in held:
            os.close(fd)
    return True
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
cells.limit(0)
launch()
calm()
needed = next(free for free in range(40) if works(free))
cells.limit(16)
wrong = []
for extra in range(6):
    cells.limit(16)
    calm()
    before = len(descriptors())
    watched.warm_up(workload, WORDS)
    cells.wait_ready()
    calm()
    # What cells have counts as free, since without them it would be.
    held = hold_all_but(max(0, needed + extra - (len(descriptors()) - before)))
    try:
        launch()
    except shoal.SpawnError as error:
        wrong.append(str(error))
    for fd in held:
        os.close(fd)
answer(wrong)
"""


@pytest.mark.parametrize(
    "with_what",
    ["a descriptor", pytest.param("a file system", marks=broken("what was mounted in an attempt that failed is not there for the next"))],
)
def test_a_launch_that_would_find_enough_descriptors_without_cells_finds_them_with_cells(script, with_what):
    assert script("import contextlib\n" + LAST_DESCRIPTORS, with_what) == []


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_launch_that_would_find_enough_namespaces_without_cells_finds_them_with_cells(script):
    text = """
def allow(count):
    with open("/proc/sys/user/max_mnt_namespaces", "w") as file:
        file.write(str(count))
def works():
    # The kernel takes a moment until it counts those of the last cell no more.
    for _ in range(25):
        try:
            with watched.launch(workload, ["another"]) as process:
                return process.wait(timeout=20) == 0
        except shoal.SpawnError as error:
            assert error.errno == 28, error
            time.sleep(0.02)
    return False
cells.limit(0)
assert works()
needed = next(count for count in range(1, 20) if allow(count) or works())
allow(1000)
cells.limit(16)
watched.warm_up(workload, WORDS)
cells.wait_ready()
assert waiting()
allow(needed)
answer(works())
"""
    assert script(text, prefix=("unshare", "--user", "--map-root-user"))
