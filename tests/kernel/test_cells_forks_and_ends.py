"""Cells made ahead when processes come and go around them: they are killed, their owner forks, gets signals, or ends."""

import contextlib
import itertools
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rig.cells import (
    PATH,
    PRELUDE,
    SHORT_PATIENCE,
    WORDS,
    adopting,
    await_end_of_adopted,
    children,
    keepers,
    makers,
    waiting,
)
from rig.features import broken
from rig.workload import PATIENCE_S

from shoal import cells

pytestmark = pytest.mark.usefixtures("as_many_as_ever")


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
                    if words.rstrip(b"\0") == b"workload\0w":
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


def test_what_makes_cells_may_be_killed_at_any_moment(watched, workload, world):
    rng, done, killed = random.Random(2), threading.Event(), []

    def kill_them():
        while not done.wait(rng.uniform(0.0, 0.01)):
            for pid in makers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill_them)
    killer.start()
    try:
        last = time.monotonic() + PATIENCE_S
        for number in itertools.count():  # after some that came to nothing there are none for a while
            with watched(workload, ["workload", "exit", str(number % 200)]) as process:
                assert process.wait(timeout=PATIENCE_S) == number % 200
            if number >= 200 and len(set(killed)) > 5:
                break
            assert time.monotonic() < last
    finally:
        done.set()
        killer.join()
    world.assert_unchanged()  # also of the cells in the making, of which nobody could be told any more


def test_who_kills_what_makes_cells_or_gives_up_all_cells_kills_no_program(watched, workload, world):
    for end in (lambda: [os.kill(pid, signal.SIGKILL) for pid in makers()], cells.drain):
        running = []
        for _ in range(4):  # the last of them has asked for another cell a moment ago
            running.append(watched.until_warm(workload, ["workload", "pause"]))
        end()
        cells.drain()
        for process in running:
            with process:
                assert process.poll() is None
                process.kill()
                process.wait(timeout=PATIENCE_S)
    world.assert_unchanged()


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


def test_a_signal_handler_may_launch_in_the_middle_of_a_launch(script):
    text = """
import random
codes = []
def launch(*_):
    codes.append(go("exit", "8"))
    if len(codes) < args[0]:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.002))
signal.signal(signal.SIGALRM, launch)
go(), go()
signal.setitimer(signal.ITIMER_REAL, 0.001)
while len(codes) < args[0]:
    assert go("exit", "7") == 7
answer(set(codes) == {8})
"""
    assert script(text, 400)


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
signal.pause()  # Python 3.12 starts no thread any more once the main one has ended, and so makes no cells
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
