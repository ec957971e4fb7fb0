"""Cells made ahead: that they are, that nobody can tell, and that nothing of them stays.

A launch was warm when its process existed before the call; see rig/cells.py. What cannot be undone in a process (limits, mounts,
how it ends) happens in an interpreter of its own.
"""

import ctypes
import errno
import gc
import itertools
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rig.cells import (
    ENOUGH,
    Watched,
    adopting,
    await_end_of_adopted,
    children,
    descriptors,
    differences,
    keepers,
    look,
    namespaces,
    until,
    waiting,
)
from rig.features import has, needs
from rig.workload import PATIENCE_S, observe

import shoal
from shoal import CloneFd, SpawnError, SpawnFlags, cells, repeat
from shoal.handles import reaper
from shoal.lowering import Waiting

WORDS = ["workload"]
STAYS = ["workload", "drain", "0"]
PATH = os.pathsep.join(entry for entry in sys.path if entry)

PRELUDE = """
import ctypes, faulthandler, gc, resource, shutil, signal, socket, subprocess, threading, time
import shoal
from shoal import CloneFd, cells
from rig.cells import *
from rig.workload import observe
faulthandler.dump_traceback_later(20, exit=True)  # a script that hangs is a failure of the test
libc = ctypes.CDLL(None, use_errno=True)
watched = Watched(shoal.spawn)
WORDS = ["workload"]
def go(*words, **how):
    with watched.launch(workload, ["workload", *words], **how) as process:
        return process.wait(timeout=20)
"""


SHORT_PATIENCE = "faulthandler.dump_traceback_later(8, exit=True)\n"


def broken(why, *, always=True):
    """Fails at present: always, or only where two things happen at the same moment."""
    return pytest.mark.xfail(reason=why, strict=always)


@pytest.fixture
def watched(cell):
    return Watched(cell)


@pytest.fixture(autouse=True)
def _as_many_as_ever():
    yield
    cells.limit(cells.KEPT)


@pytest.fixture
def script(run_python):
    """Run a script in an interpreter of its own, with all that is needed to launch and to watch. `first` runs before shoal is there."""
    return lambda text, *args, first="", **how: run_python(first + PRELUDE + text, *args, **how)


def own_mounts():
    """A command in front that gives a program mounts of its own."""
    if has("root"):
        return ("unshare", "--mount", "--propagation", "private")
    return ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")


def threads_of_cells():
    return [thread for thread in threading.enumerate() if thread.name == "shoal-cells"]


def look_cold(watched, path, **how):
    cells.limit(0)
    found = look(watched, path, **how)
    assert not watched.warm[-1]
    cells.limit(cells.KEPT)
    return found


def look_warm(watched, path, **how):
    for _ in range(ENOUGH):
        found = look(watched, path, **how)
        if watched.warm[-1]:
            return found
    raise AssertionError(f"none of {ENOUGH} launches was warm")


# --- when there are any --------------------------------------------------------------------------------------------


def test_the_third_launch_in_a_row_asks_for_cells_and_the_ones_after_it_find_their_process_waiting(watched, workload, world):
    for _ in range(2):
        watched(workload, WORDS).wait(timeout=PATIENCE_S)
        assert not waiting()
        assert not threads_of_cells()
    watched(workload, WORDS).wait(timeout=PATIENCE_S)
    for _ in range(10):
        there = until(waiting, "a cell is made ahead")
        asked = time.time()
        with watched(workload, WORDS) as process:
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

    def remembered():
        gc.collect()
        return sum(isinstance(found, Waiting) for found in gc.get_objects())

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
    text = (
        SHORT_PATIENCE
        + """
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
    )
    assert script(text) == "done"


# --- nobody can tell -----------------------------------------------------------------------------------------------

REPORTED = (
    *("argv", "env", "fds", "cwd", "umask", "signals", "ids", "caps", "pids", "comm", "hostname", "nofile", "ifaces", "fork", "thread"),
    *("list", "/", "create", "/x", "read", "0", "stat", "/proc", "mount", "/", "sethostname", "mine"),
)
ALL_SHARED = SpawnFlags.CLONE_STDIO | SpawnFlags.CLONE_ENVIRON | SpawnFlags.CLONE_UTC_CLOCK | SpawnFlags.CLONE_JOB
LAUNCHES = {
    "nothing": {},
    "standard descriptors": {"flags": SpawnFlags.CLONE_STDIO},
    "the environment": {"flags": SpawnFlags.CLONE_ENVIRON},
    "the clock": {"flags": SpawnFlags.CLONE_UTC_CLOCK},
    "the job": {"flags": SpawnFlags.CLONE_JOB},
    "all of them": {"flags": ALL_SHARED},
    "an environment of its own": {"environ": {"A": "1", "PWD": "/", "B": "x y\n\udcff"}},
    "a working directory that is not there": {"environ": {"PWD": "/not/there"}},
}


@pytest.mark.parametrize("how", LAUNCHES.values(), ids=LAUNCHES)
def test_what_a_program_sees_and_what_is_seen_of_it_is_the_same_cold_and_warm(watched, workload, how, world):
    assert differences(look_cold(watched, workload, **how), look_warm(watched, workload, **how)) == {}
    cells.limit(0)
    cold = observe(watched, workload, *REPORTED, out=9, **how)
    cells.limit(cells.KEPT)
    warm = watched.observe_warm(workload, *REPORTED, out=9, **how)
    assert without_the_report(warm) == without_the_report(cold)
    assert cold.one("caps") == ["0", "0", "0", "0", "1"]
    world.assert_unchanged()


def without_the_report(report):
    return report.returncode, [line for line in report.lines if line[:2] != ["fd", "9"]]


def test_a_dynamic_program_with_its_libraries_is_the_same_cold_and_warm(watched, workload_dynamic, world):
    how = {"flags": SpawnFlags.DEFAULT_LDSVC, "environ": {"PWD": "/lib"}}
    cold, warm = look_cold(watched, workload_dynamic, **how), look_warm(watched, workload_dynamic, **how)
    assert len(cold["mounts"]) > 2  # the root, a loader and a library
    assert differences(cold, warm) == {}
    world.assert_unchanged()


def test_all_five_sets_of_capabilities_are_empty_in_a_warm_launch_and_the_loopback_is_up(watched, workload):
    found = look_warm(watched, workload)
    assert {found[f"status Cap{kind}"].strip("0") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {""}
    assert found["status NoNewPrivs"] == "1"
    assert watched.observe_warm(workload, "ifaces").all("iface") == [["lo", "up"]]


def test_descriptors_change_places_in_a_warm_launch_as_in_a_cold_one(watched, workload, make_pipe):
    a, b, c = make_pipe(), make_pipe(), make_pipe()
    # A swap, a cycle through the standard ones, one source at many numbers, and the numbers on which a waiting process has its own.
    pairs = [(a.read, b.read), (b.read, a.read), (a.write, 0), (0, 1), (1, a.write), (c.read, 2), (c.read, 3), (c.write, 4), (c.read, 1023)]
    actions = [CloneFd(local, target) for local, target in pairs]
    for _ in range(2):
        found = watched.observe_warm(workload, "fds", actions=actions, out=500).fds()
        assert set(found) == {target for _, target in pairs} | {500}
        for local, target in pairs:
            assert found[target].same_object(local), (local, target)
            assert not found[target].cloexec


def test_each_warm_launch_gets_the_descriptors_arguments_and_environment_of_its_own_call(watched, workload, make_pipe):
    watched.warm_up(workload, ["workload", "write", "5", "x"], actions=[CloneFd(2, 5)])
    watched.warm.clear()
    for number in range(10):
        pipe = make_pipe()
        words, environ = ["write", 5, f"hello-{number}", "env"], {"NUMBER": str(number), f"N{number}": ""}
        report = observe(watched, workload, *words, environ=environ, actions=[CloneFd(pipe.write, 5)], out=7)
        assert os.read(pipe.read, 100) == f"hello-{number}".encode()
        assert report.env() == [f"NUMBER={number}", f"N{number}="]
        os.close(pipe.read)
        os.close(pipe.write)
    assert any(watched.warm)


def test_no_two_launches_share_a_namespace_or_a_file_system(watched, workload, pipe, world):
    running = [watched(workload, STAYS, actions=[CloneFd(pipe.read, 0)]) for _ in range(12)]
    assert sum(watched.warm) >= 6
    ours = namespaces("self")
    for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup") + (() if has("root") else ("user",)):
        found = [namespaces(process.pid)[kind] for process in running]
        assert len({*found, ours[kind]}) == len(running) + 1, kind
    roots = [Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()[0].split()[2] for process in running]
    assert len(set(roots)) == len(running)
    os.close(pipe.write)
    for process in running:
        assert process.wait(timeout=PATIENCE_S) == 0
        process.close()
    world.assert_unchanged(besides={pipe.write})


def test_a_signal_sent_to_a_warm_program_right_after_its_launch_finds_the_program(watched, workload):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1):
        with watched.until_warm(workload, ["workload", "pause"]) as process:
            process.send_signal(number)
            assert process.wait(timeout=PATIENCE_S) == -number


def test_a_warm_cell_with_something_left_in_it_lives_on_until_that_ends(watched, workload, pipe, world):
    actions = [CloneFd(pipe.read, 5)]
    with watched.until_warm(workload, ["workload", "daemon", "5", "exit", "4"], actions=actions) as process:
        assert process.wait(timeout=PATIENCE_S) == 4
        cells.drain()
        assert world.new_processes()
        process.kill_cell()
    world.assert_unchanged()


def test_a_program_that_wants_to_end_with_its_parent_lives_as_long_as_the_parent(watched, tmp_path):
    program = compiled(
        tmp_path / "faithful",
        "#include <sys/prctl.h>\n#include <signal.h>\n#include <unistd.h>\n"
        "int main(void) { prctl(PR_SET_PDEATHSIG, SIGTERM); char c; while (read(0, &c, 1) == 1) write(1, &c, 1); return 0; }",
    )
    (ours, give), (told, tell) = os.pipe(), os.pipe()
    try:
        with watched.until_warm(program, ["faithful"], actions=[CloneFd(ours, 0), CloneFd(tell, 1)]) as process:
            os.write(give, b"?")
            assert os.read(told, 1) == b"?"  # it has said by now what it wants
            cells.drain()  # the threads end now, as they do later by themselves
            until(lambda: len(os.listdir("/proc/self/task")) == threading.active_count(), "the kernel has ended them")
            os.close(give)
            assert process.wait(timeout=PATIENCE_S) == 0
    finally:
        for fd in (ours, told, tell):
            os.close(fd)


# --- what changes between the making and the launch ----------------------------------------------------------------


def compiled(target, text, *options, static=True):
    source = target.with_suffix(".c")
    source.write_text(text)
    subprocess.run(["gcc", "-Os", *(["-static"] if static else []), str(source), *options, "-o", str(target)], check=True)
    return str(target)


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """Two static programs that write one word each, "old" and "new", and two libraries that know one."""
    folder = tmp_path_factory.mktemp("words")
    for word in ("old", "new"):
        compiled(folder / word, f'#include <unistd.h>\nint main(void) {{ return write(1, "{word}\\n", 4) != 4; }}')
        compiled(folder / f"libword-{word}.so", f'const char *word(void) {{ return "{word}\\n"; }}', "-shared", "-fPIC", static=False)
    return folder


@pytest.fixture
def program(words, tmp_path):
    return shutil.copy(words / "old", tmp_path / "program")


def said(launch, program, **how):
    return observe(launch, program, argv=["program"], **how).lines[0][0]


def test_a_program_renamed_over_is_the_one_that_runs_next(watched, words, program, tmp_path):
    assert watched.observe_warm(program, argv=["program"]).lines == [["old"]]
    until(waiting, "a cell waits")
    os.rename(shutil.copy(words / "new", tmp_path / "other"), program)
    assert [said(watched, program) for _ in range(8)] == ["new"] * 8
    assert watched.observe_warm(program, argv=["program"]).lines == [["new"]]


def test_waiting_cells_do_not_keep_a_program_from_being_written_and_what_was_written_runs(watched, words, program):
    assert watched.observe_warm(program, argv=["program"]).lines == [["old"]]
    until(waiting, "a cell waits")
    Path(program).write_bytes((words / "new").read_bytes())
    assert [said(watched, program) for _ in range(8)] == ["new"] * 8


def test_a_library_renamed_over_is_the_one_that_is_loaded_next(watched, words, tmp_path):
    library = shutil.copy(words / "libword-old.so", tmp_path / "libword.so")
    text = "#include <unistd.h>\nconst char *word(void);\nint main(void) { return write(1, word(), 4) != 4; }"
    program = compiled(tmp_path / "program", text, library, "-Wl,-rpath,$ORIGIN", static=False)
    how = {"flags": SpawnFlags.DEFAULT_LDSVC}
    assert watched.observe_warm(program, argv=["program"], **how).lines == [["old"]]
    until(waiting, "a cell waits")
    os.rename(shutil.copy(words / "libword-new.so", tmp_path / "other"), library)
    assert [said(watched, program, **how) for _ in range(8)] == ["new"] * 8
    assert watched.observe_warm(program, argv=["program"], **how).lines == [["new"]]


def remove(path):
    path.unlink()


def forbid(path):
    path.chmod(0o644)


def garble(path):
    path.write_bytes(b"no program at all")


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_script_without_interpreter(path):
    path.write_text("#!/not/there\n")


@pytest.mark.parametrize("harm", [remove, forbid, garble, replace_by_folder, replace_by_script_without_interpreter])
def test_a_launch_that_cannot_work_any_more_fails_as_if_there_were_no_cells(watched, program, harm, world):
    watched.warm_up(program, ["program"])
    harm(Path(program))
    after_warm = failure_of(watched, program)
    cells.limit(0)
    assert after_warm == failure_of(watched, program)
    world.assert_unchanged()


def failure_of(launch, program):
    with pytest.raises(SpawnError) as caught:
        launch(program, ["program"])
    error = caught.value
    return type(error), error.status, error.stage, error.errno, str(error)


def test_a_folder_on_the_way_that_is_closed_to_us_is_closed_at_the_next_launch(watched, words, tmp_path):
    if has("root"):
        pytest.skip("needs an ordinary user: root may enter every folder")
    folder = tmp_path / "way"
    folder.mkdir()
    program = shutil.copy(words / "old", folder / "program")
    watched.warm_up(program, ["program"])
    folder.chmod(0)
    try:
        after_warm = failure_of(watched, program)
        cells.limit(0)
        assert after_warm == failure_of(watched, program)
    finally:
        folder.chmod(0o755)


CHANGES = {
    "the limit on open files": "resource.setrlimit(resource.RLIMIT_NOFILE, (1100, 1500))",
    "the limit on file sizes": "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 31))",
    "nice": "os.nice(3)",
    "the scheduling policy": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "the timer slack": "libc.prctl(29, 123456, 0, 0, 0)",
    "the personality": "libc.personality(0x0040000)",
    "the priority of input and output": "assert libc.syscall({'x86_64': 251, 'aarch64': 30}[os.uname().machine], 1, 0, 3 << 13) == 0",
}
NOT_FOLLOWED = {
    "what a core dump holds": "open('/proc/self/coredump_filter', 'w').write('0x7f')",
    "huge pages": "libc.prctl(41, 1, 0, 0, 0)",
}
FOLLOW = """
before = look(watched, workload)
while not watched.warm[-1]:
    look(watched, workload)
until(waiting, "a cell waits")
exec(args[0])
seen = [look(watched, workload) for _ in range(6)]
cells.limit(0)
cold = look(watched, workload)
answer([list(differences(before, cold)), [found for found in (differences(cold, one) for one in seen) if found]])
"""


@pytest.mark.parametrize(
    "change",
    [pytest.param(code, id=name) for name, code in CHANGES.items()]
    + [pytest.param("os.setgroups([7, 8])", id="groups", marks=pytest.mark.root)]
    + [pytest.param(code, id=name, marks=broken("a cell made ahead keeps what its maker had")) for name, code in NOT_FOLLOWED.items()],
)
def test_what_this_process_changes_about_itself_holds_for_the_next_launch(script, change):
    changed, seen = script(FOLLOW, change)
    assert changed, "the change makes no difference to a program"
    assert seen == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_process_confined_to_one_processor_launches_there(script):
    changed, seen = script(FOLLOW, "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})")
    assert "status Cpus_allowed" in changed
    assert seen == []


def test_launches_become_warm_again_after_a_change(script):
    text = """
watched.warm_up(workload, WORDS)
os.nice(3)
watched.warm_up(workload, WORDS)
answer("warm again")
"""
    assert script(text) == "warm again"


def test_two_threads_that_differ_each_get_programs_like_themselves(script):
    text = """
def work(nice, seen):
    os.nice(nice)
    for _ in range(40):
        with shoal.spawn(workload, ["workload", "drain", "0"], actions=[CloneFd(read_end, 0)]) as process:
            seen.add(os.getpriority(os.PRIO_PROCESS, process.pid) - nice)
            process.kill()
            process.wait(timeout=20)
read_end, write_end = os.pipe()
found = [set(), set()]
working = [threading.Thread(target=work, args=(nice, seen)) for nice, seen in zip((1, 4), found)]
for thread in working:
    thread.start()
for thread in working:
    thread.join()
answer([sorted(seen) for seen in found] + [os.getpriority(os.PRIO_PROCESS, 0)])
"""
    one, two, usual = script(text)
    assert one == two == [usual]


def test_the_callers_file_mode_mask_makes_no_difference(script, workload_dynamic):
    text = """
def report():
    return observe(watched, args[0], "stat", "/", "stat", "/lib", "umask", flags=shoal.SpawnFlags.DEFAULT_LDSVC, argv=None)
def modes(found):
    return [found.one("stat", path)[1:3] for path in ("/", "/lib")], found.one("umask")
usual = modes(report())
seen = []
for mask in (0o077, 0o777):
    os.umask(mask)
    try:
        seen += [modes(report()) for _ in range(8)]
    except shoal.SpawnError as error:
        seen.append(str(error))
answer([found for found in seen if found != usual])
"""
    assert script(text, workload_dynamic) == []


REMOUNT = """
folder = args[0]
def mount(*words):
    subprocess.run(["mount", *words], check=True)
def outcome():
    try:
        with watched(program, WORDS) as process:
            return process.wait(timeout=20)
    except shoal.SpawnError as error:
        return [error.status.name, error.errno]
mount("-t", "tmpfs", "none", folder)
program = shutil.copy(workload, folder + "/program")
"""


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_file_system_that_may_not_be_executed_from_any_more_is_followed_at_once(script, tmp_path):
    text = """
watched.warm_up(program, WORDS)
mount("-o", "remount,bind,noexec", folder)
seen = [outcome() for _ in range(3)]
mount("-o", "remount,bind,exec", folder)
watched.warm_up(program, WORDS)
answer(seen)
"""
    assert script(REMOUNT + text, str(tmp_path), prefix=own_mounts()) == [["ACCESS_DENIED", errno.EACCES]] * 3


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_what_is_mounted_on_a_program_or_on_a_library_of_it_is_what_runs_next(script, words, tmp_path):
    text = """
def said(path, **how):
    return observe(watched, path, argv=["program"], **how).lines[0][0]
found = []
static, library = folder + "/static", folder + "/libword.so"
shutil.copy(args[1] + "/old", static)
shutil.copy(args[1] + "/libword-old.so", library)
with open(folder + "/main.c", "w") as file:
    file.write("#include <unistd.h>\\nconst char *word(void);int main(void) { return write(1, word(), 4) != 4; }")
subprocess.run(["gcc", folder + "/main.c", library, "-Wl,-rpath,$ORIGIN", "-o", folder + "/dynamic"], check=True)
for path, on, new, how in (
    (static, static, "new", {}), (folder + "/dynamic", library, "libword-new.so", {"flags": shoal.SpawnFlags.DEFAULT_LDSVC})
):
    cells.drain()
    found.append(watched.observe_warm(path, argv=["program"], **how).lines[0][0])
    until(waiting, "a cell waits")
    mount("--bind", args[1] + "/" + new, on)
    found += [said(path, **how) for _ in range(3)]
    subprocess.run(["umount", "--lazy", on], check=True)  # cells that are being made may have it open
    found += [said(path, **how) for _ in range(3)]
answer(found)
"""
    found = script(REMOUNT + text, str(tmp_path), str(words), prefix=own_mounts())
    assert found == (["old"] + ["new"] * 3 + ["old"] * 3) * 2


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
@broken("cells are being made from it in the background, which keeps it busy", always=False)
def test_a_file_system_can_be_unmounted_as_soon_as_the_last_program_from_it_has_ended(script, tmp_path):
    text = """
busy = 0
for _ in range(40):
    mount("--bind", folder, folder)
    assert [outcome() for _ in range(3)] == [0] * 3
    if libc.umount2(folder.encode(), 0) != 0:
        busy += 1
        libc.umount2(folder.encode(), 2)
answer(busy)
"""
    # Without a pause before each launch: what is in the making is the point here.
    assert script(REMOUNT.replace("watched(program", "watched.launch(program") + text, str(tmp_path), prefix=own_mounts()) == 0


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_program_that_goes_to_a_mount_namespace_of_its_own_still_sees_its_mounts_change(script, tmp_path):
    text = """
cells.IDLE_S = 0.1
watched.warm_up(workload, WORDS)
assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
until(lambda: threading.active_count() == 1, "the threads that live elsewhere end")
watched.warm_up(program, WORDS)
mount("-o", "remount,bind,noexec", folder)
answer([outcome() for _ in range(3)])
"""
    assert script(REMOUNT + text, str(tmp_path), prefix=own_mounts()) == [["ACCESS_DENIED", errno.EACCES]] * 3


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_moment_without_descriptors_does_not_make_cells_blind_to_mounts(script, tmp_path):
    text = """
from shoal.handles import reaper
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
outcome(), outcome()
until(lambda: reaper.sweep() or not reaper.pending(), "all is reaped")
held = []
with contextlib.suppress(OSError):
    while True:
        held.append(os.dup(0))
with contextlib.suppress(shoal.SpawnError):
    shoal.spawn(program, WORDS)
for fd in held:
    os.close(fd)
watched.warm_up(program, WORDS)
mount("-o", "remount,bind,noexec", folder)
answer([outcome() for _ in range(3)])
"""
    assert script("import contextlib\n" + REMOUNT + text, str(tmp_path), prefix=own_mounts()) == [["ACCESS_DENIED", errno.EACCES]] * 3


@pytest.mark.root
@pytest.mark.parametrize("ending", ["at the end", "when idle", "by the limit"])
def test_cells_of_a_process_that_gives_up_root_end_quietly(tmp_path, workload, ending):
    text = """
cells.IDLE_S = 0.1
watched.warm_up(workload, WORDS)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
if args == ["when idle"]:
    until(lambda: threading.active_count() == 1, "the threads end")
elif args == ["by the limit"]:
    cells.limit(0)
"""
    assert ended(text, workload, ending) == (0, "", [])


# --- a waiting process is killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", [waiting, keepers])
def test_a_waiting_cell_killed_by_somebody_else_makes_no_launch_fail(watched, workload, victims, world):
    for _ in range(5):
        watched.warm_up(workload, WORDS)
        cells.wait_ready()
        dying = [os.pidfd_open(pid) for pid in waiting()]
        for pid in victims():
            os.kill(pid, signal.SIGKILL)
        for pidfd in dying:  # a program that is launched while its cell dies would die, too
            assert select.select([pidfd], [], [], PATIENCE_S)[0]
            os.close(pidfd)
        for status in (3, 4, 5):
            with watched(workload, ["workload", "exit", str(status)]) as process:
                assert process.wait(timeout=PATIENCE_S) == status
    world.assert_unchanged()


def test_cells_killed_in_the_middle_of_launches_make_none_of_them_fail(watched, workload, world):
    rng, done, killed = random.Random(1), threading.Event(), []

    def kill_some():
        while not done.is_set():
            for pid in rng.sample(there := sorted(waiting() | keepers()), min(2, len(there))):
                # Only what waits: a program that runs may be killed too, but then its launch has worked.
                try:
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if words == b"workload\0w\0":
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                except OSError:
                    pass

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        codes = []
        for number in range(120):
            with watched(workload, ["workload", "exit", str(number)]) as process:
                codes.append((process.wait(timeout=PATIENCE_S), number))
    finally:
        done.set()
        killer.join()
    # The victim may have become the program between the look and the kill.
    assert all(code in (number, -signal.SIGKILL) for code, number in codes)
    assert sum(code == number for code, number in codes) > 60
    assert killed
    world.assert_unchanged()


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
    assert taken <= 4 * most + 2  # what tells of mounts, and the program launched last


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


# --- forks ---------------------------------------------------------------------------------------------------------

FORKED = """
def in_child(action):
    \"\"\"What `action` gives in a fork of this process.\"\"\"
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(6)
            os.close(read_end)
            os.write(write_end, json.dumps(action()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    with open(read_end) as file:
        found = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(found)
"""


def test_a_fork_has_none_of_the_cells_and_launches_on_its_own_and_the_owner_keeps_its_cells(script):
    text = """
go()
before = descriptors()
watched.warm_up(workload, WORDS)
cells.wait_ready()
there = waiting()
found = in_child(lambda: [len(descriptors() - before), count_sockets_to_cells()])
warm_in_child = in_child(lambda: watched.warm_up(workload, WORDS) or watched.warm[-1])
kept = waiting() == there
with watched(workload, WORDS) as process:
    process.wait(timeout=20)
answer([*found, warm_in_child, kept, watched.warm[-1]])
"""
    extra, sockets, warm_in_child, kept, warm_in_owner = script(FORKED + text)
    assert extra <= 1  # the pipe it answers on
    assert sockets == 0
    assert warm_in_child
    assert kept
    assert warm_in_owner


WHILE_THREADS_LAUNCH = """
done, codes = threading.Event(), []
def work():
    while not done.is_set():
        codes.append(go("exit", "7"))
working = [threading.Thread(target=work) for _ in range(3)]
for thread in working:
    thread.start()
until(waiting, "a cell waits")
try:
    found = [in_child(lambda: eval(args[1])) for _ in range(args[0])]
finally:
    done.set()
    for thread in working:
        thread.join()
answer([found, set(codes) == {7}])
"""


def test_forks_while_threads_launch_can_launch_on_their_own_and_the_threads_go_on(script):
    found, right = script(FORKED + WHILE_THREADS_LAUNCH, 40, "[go('exit', '9') for _ in range(2)]")
    assert found == [[9] * 2] * 40
    assert right


def test_forks_that_live_on_do_not_hold_up_what_was_being_made_when_they_began(script):
    text = """
hold, let_go = os.pipe()
launched, done = [], threading.Event()
def work():
    while not done.is_set():
        # Of a program that ends by itself the end would be seen, too.
        with watched.launch(workload, ["workload", "drain", "0"], actions=[CloneFd(hold, 0)]) as process:
            process.kill()
            launched.append(process.wait(timeout=20))
working = [threading.Thread(target=work) for _ in range(3)]
for thread in working:
    thread.start()
until(waiting, "a cell waits")
forks = []
for _ in range(60):
    forks.append(os.fork())
    if forks[-1] == 0:
        os.close(let_go)
        os.read(hold, 1)
        os._exit(0)
enough = len(launched) + 150
until(lambda: len(launched) >= enough, "the threads launch on")
done.set()
for thread in working:
    thread.join()
os.close(let_go)
answer([set(launched) == {-9}, [os.waitpid(pid, 0)[1] for pid in forks] == [0] * 60])
"""
    assert script(text) == [True, True]


@broken("between taking a cell and noting that it is taken there is a moment", always=False)
def test_forks_while_threads_launch_have_no_descriptor_that_leads_to_a_cell(script):
    found, _ = script(FORKED + WHILE_THREADS_LAUNCH, 60, "count_sockets_to_cells()")
    assert found == [0] * 60


def test_a_pool_of_forked_workers_launches_beside_its_owner(script):
    text = """
import multiprocessing
watched.warm_up(workload, WORDS)
def launch_some(number):
    return [go("exit", str(number)) for _ in range(5)]
with multiprocessing.get_context("fork").Pool(3) as pool:
    result = pool.map_async(launch_some, range(12))
    own = [go("exit", "77") for _ in range(20)]
    found = result.get(timeout=20)
    pool.close()
    pool.join()
answer([found == [[number] * 5 for number in range(12)], own == [77] * 20])
"""
    assert script(text) == [True, True]


@broken("a fork waits for a lock that the launch it interrupts may hold", always=False)
def test_a_signal_handler_may_fork_in_the_middle_of_a_launch(script):
    text = """
import random
forks = []
def fork(*_):
    forks.append(in_child(lambda: "forked"))
    if len(forks) < args[0]:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.002))
signal.signal(signal.SIGALRM, fork)
go(), go()
signal.setitimer(signal.ITIMER_REAL, 0.001)
while len(forks) < args[0]:
    go()
answer(set(forks) == {"forked"})
"""
    assert script(SHORT_PATIENCE + FORKED + text, 150)


def test_a_fork_finds_no_thread_of_cells(script):
    # What is registered first is called last before a fork: that is where Python itself counts.
    text = """
faulthandler.cancel_dump_traceback_later()  # a thread as well
watched.warm_up(workload, WORDS)
os.fork() or os._exit(0)
os.wait()
answer(counts)
"""
    count = "counts = []\nos.register_at_fork(before=lambda: counts.append(len(os.listdir('/proc/self/task'))))\n"
    assert script(text, first=count) == [1]


# --- signals -------------------------------------------------------------------------------------------------------


def test_a_program_that_waits_for_a_signal_itself_gets_it_although_there_are_threads(script):
    text = """
watched.warm_up(workload, WORDS)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
answer(signal.sigwait({signal.SIGTERM}))
"""
    assert script(text) == signal.SIGTERM


def test_cells_come_and_go_where_the_end_of_children_is_ignored(script):
    text = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(30):
    watched.launch(workload, WORDS).close()
until(waiting, "a cell waits")
cells.drain()
answer(sorted(waiting()))
"""
    assert script(text) == []


# --- the owner ends ------------------------------------------------------------------------------------------------


def ended(text, workload, *args, patience_s=PATIENCE_S):
    """Run a script to its end: its return code, what it said on its standard error, and what it left behind."""
    before = children()
    preamble = f"import json, os, sys\nworkload, args = sys.argv[1], sys.argv[2:]\n{PRELUDE}"
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", preamble + text, workload, *args]
    with adopting():
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience_s, env=os.environ | {"PYTHONPATH": PATH}, check=False
        )
        left = await_end_of_adopted(before, patience_s)
    return done.returncode, done.stderr, left


ENDINGS = {
    "the end of the script": ("", 0),
    "sys.exit()": ("sys.exit(3)", 3),
    "os._exit()": ("os._exit(4)", 4),
    "a signal": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "another program in its place": ("os.execv('/bin/true', ['true'])", 0),
}


@pytest.mark.parametrize(("ending", "code"), ENDINGS.values(), ids=ENDINGS)
def test_an_owner_that_ends_while_cells_wait_says_nothing_and_leaves_nothing(workload, ending, code):
    text = """
watched.warm_up(workload, WORDS)
cells.wait_ready()
assert waiting()
"""
    assert ended(text + ending, workload) == (code, "", [])


def test_an_owner_with_many_threads_that_ends_says_nothing_and_leaves_nothing(workload):
    text = """
leave = threading.Event()
def work():
    while not leave.is_set():
        go()
    sys.exit(5)  # ends the thread, and nothing else
for _ in range(8):
    threading.Thread(target=work).start()
until(waiting, "a cell waits")
leave.set()
sys.exit(3)
"""
    assert ended(text, workload) == (3, "", [])


@broken("a daemon thread in the middle of a launch when the interpreter ends may take it along", always=False)
def test_an_owner_whose_daemon_threads_still_launch_ends_at_once(workload):
    text = """
def work():
    while True:
        go()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
until(waiting, "a cell waits")
"""
    for _ in range(6):
        assert ended(text, workload, patience_s=5.0) == (0, "", [])


def test_an_owner_that_is_killed_in_the_middle_of_everything_leaves_no_process(workload):
    rng, caught_waiting = random.Random(7), 0
    text = (
        f"import os, sys\nworkload = sys.argv[1]\n{PRELUDE}"
        + """
def work():
    while True:
        go()
        os.write(1, b"x")
for _ in range(3):
    threading.Thread(target=work).start()
"""
    )
    before = children()
    with adopting():
        for _ in range(8):
            command = [sys.executable, "-c", text, workload]
            owner = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": PATH})
            with owner:
                for _ in range(rng.randrange(1, 60)):
                    assert owner.stdout.read(1) == b"x"
                time.sleep(rng.uniform(0, 0.002))  # any moment of a launch, not only its end
                caught_waiting += bool(waiting(owner.pid))
                owner.kill()
            assert await_end_of_adopted(before) == []
    assert caught_waiting
