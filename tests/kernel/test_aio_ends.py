"""Whatever ends a run early - a cancellation at any moment, a deadline, Ctrl-C, the end of the loop - nothing of it is left."""

import asyncio
import gc
import os
import random
import re
import signal
import subprocess
import threading
import time
import warnings

import anyio
import pytest
from rig.cli import kill_all_with, processes_with, wait_gone, wait_running
from rig.features import needs
from rig.fuse import REACHED_S, mounted
from rig.loops import cancelled_at

import shoal
from shoal import Sandbox, aio, cells
from shoal.handles import reaper
from shoal.launcher import END_S

SH = Sandbox(read=["/usr"])
MARK = f"62.{os.getpid():07d}"
"""How long a program sleeps that is looked for."""
TREE = f"trap '' TERM HUP INT; (setsid sleep {MARK} &); sleep {MARK} & echo ready; sleep {MARK}"
SLACK_S = 8.0

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell"),
    pytest.mark.usefixtures("loops_that_have_run"),
]
BOXES = pytest.mark.parametrize("box", [SH, False], ids=["sandbox", "none"])
NATIVELY = pytest.mark.parametrize("natively", [False, True], ids=["by a scope", "by the task"])


@pytest.fixture(autouse=True)
def no_cells_ahead():
    """They would be among the processes that are looked for."""
    cells.limit(0)
    yield
    cells.limit(cells.KEPT)


def sh(script, box=SH, **more):
    return aio.run(["sh", "-c", script], sandbox=box, **({"capture_output": True, "text": True} | more))


def descriptors():
    return set(os.listdir("/proc/self/fd"))


async def descriptors_of_the_loop():
    """Once it has run something."""
    await aio.run(["/usr/bin/true"], sandbox=False)
    return descriptors()


# --- cancellation -------------------------------------------------------------------------------------


@BOXES
@NATIVELY
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_a_run_that_is_cancelled_wherever_it_waits_leaves_nothing(in_loop, box, natively, count, world):
    """`count`: the number of the wait. A run has about five: for its launch, for its output, for its end."""
    if natively and in_loop.is_trio:
        pytest.skip("trio has scopes only")

    script = "head -c 100000 /dev/zero; sleep 0.01; cat"

    async def main():
        before = await descriptors_of_the_loop()
        waited = await cancelled_at(lambda: sh(script, box, input="x" * 300_000), count, natively=natively)
        assert descriptors() == before
        assert world.new_processes() == set()
        return waited

    assert in_loop(main) or count > 3
    world.assert_unchanged()


@BOXES
@NATIVELY
def test_a_block_that_is_cancelled_wherever_it_waits_leaves_nothing(in_loop, box, natively, world):
    if natively and in_loop.is_trio:
        pytest.skip("trio has scopes only")

    async def work():
        async with aio.open_process(["sh", "-c", f"read a; echo $a; (sleep {MARK} &); read b; echo $b"], sandbox=box, text=True) as process:
            await process.stdin.send("one\n")
            assert await process.stdout.receive() == "one\n"
            with anyio.move_on_after(0.001):
                await process.wait()
            await process.stdin.send("two\n")
            async for line in process.stdout:
                assert line == "two\n"
            await process.wait()

    async def main():
        before, count = await descriptors_of_the_loop(), 0
        while await cancelled_at(work, count, natively=natively):
            assert descriptors() == before, f"cancelled at wait {count}"
            if box:
                assert world.new_processes() == set(), f"cancelled at wait {count}"
            count += 1
        return count

    assert in_loop(main) > 5
    kill_all_with(MARK)  # had no sandbox, and lost its parent
    world.assert_unchanged()


@NATIVELY
def test_a_pipeline_that_is_cancelled_wherever_it_waits_leaves_nothing(in_loop, natively, world):
    if natively and in_loop.is_trio:
        pytest.skip("trio has scopes only")

    async def main():
        before, count = await descriptors_of_the_loop(), 0
        pipeline = aio.command("cat", sandbox=SH) | aio.command("cat", sandbox=False) | aio.command("wc", "-c", sandbox=SH)
        while await cancelled_at(lambda: pipeline.run(input=b"x" * 300_000, capture_output=True), count, natively=natively):
            assert descriptors() == before, f"cancelled at wait {count}"
            assert world.new_processes() == set(), f"cancelled at wait {count}"
            count += 1
        return count

    assert in_loop(main) >= 4
    world.assert_unchanged()


@BOXES
def test_a_cancellation_ends_the_tree_and_waits_until_it_is_gone(in_loop, box, world):
    script = TREE if box else TREE.replace(f"(setsid sleep {MARK} &)", f"(sleep 7{MARK} &)")

    async def main():
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sh, script, box)
                await anyio.to_thread.run_sync(wait_running, MARK)
                scope.cancel()
        assert processes_with(f"\0{MARK}") == []

    in_loop(main)
    kill_all_with(f"7{MARK}")  # had no sandbox, and lost its parent before it could be found
    world.assert_unchanged()


def test_a_second_cancellation_does_not_cut_the_ending_short(world):
    async def main():
        task = asyncio.ensure_future(sh(TREE))
        await anyio.to_thread.run_sync(wait_running, MARK)
        for _ in range(20):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert processes_with(MARK) == []

    asyncio.run(main())
    world.assert_unchanged()


def test_deadlines_of_the_loop_hold(in_loop, world):
    async def main():
        async def until_anyios():
            with anyio.fail_after(0.2):
                await sh(TREE)

        async def until_asyncios():
            async with asyncio.timeout(0.2):
                await sh(TREE)

        with pytest.raises(TimeoutError):
            await until_anyios()
        if not in_loop.is_trio:
            with pytest.raises(TimeoutError):
                await until_asyncios()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sh(TREE), 0.2)
        assert processes_with(MARK) == []

    in_loop(main)
    world.assert_unchanged()


@BOXES
def test_a_timeout_raises_with_the_output_so_far_and_the_tree_is_dead(in_loop, box, world):
    script = TREE.replace("ready", "partly") if box else f"echo partly; sleep {MARK} & sleep {MARK}"

    async def main():
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            await sh(script, box, timeout=0.3)
        assert (caught.value.output, caught.value.timeout) == ("partly\n", 0.3)
        assert processes_with(MARK) == []

    in_loop(main)
    world.assert_unchanged()


def test_an_error_in_one_task_ends_the_programs_of_the_others(in_loop, world):
    async def main():
        async def fail():
            await anyio.to_thread.run_sync(wait_running, MARK)
            raise KeyError("one of them")

        async def inner():
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(sh, TREE)
                async with aio.open_process(["sh", "-c", TREE], sandbox=SH) as process, anyio.create_task_group() as deeper:
                    deeper.start_soon(process.wait)
                    deeper.start_soon(sh, TREE)

        async def outer():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inner)
                tasks.start_soon(fail)

        with pytest.raises(ExceptionGroup) as caught:
            await outer()
        assert caught.group_contains(KeyError, match="one of them")
        assert processes_with(MARK) == []

    in_loop(main)
    world.assert_unchanged()


# --- a launch that takes long -------------------------------------------------------------------------


@pytest.fixture
def slow_launches(monkeypatch):
    """Launches that wait for a word before they begin. Real ones do that where the program lies on a file server that sleeps."""
    from shoal.sandbox.running import Running

    allowed, begun = threading.Event(), threading.Semaphore(0)
    begin = Running.begin

    def slow(self):
        begun.release()
        assert allowed.wait(60)
        begin(self)

    monkeypatch.setattr(Running, "begin", slow)
    yield allowed, begun
    allowed.set()


def test_a_launch_that_hangs_does_not_hold_up_who_is_cancelled(in_loop, slow_launches, monkeypatch, world):
    """It is abandoned; should it succeed after all, its thread ends what it has started."""
    allowed, begun = slow_launches
    monkeypatch.setattr("shoal.aio.launching.END_S", 0.1)

    async def main():
        for work in (lambda: sh(TREE), hold):  # the latter has streams, whose ends the thread still needs
            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(work)
                    await anyio.to_thread.run_sync(begun.acquire)
                    tasks.cancel_scope.cancel()

    async def hold():
        async with aio.open_process(["sh", "-c", TREE], sandbox=SH):
            pass

    in_loop(main)
    allowed.set()
    monkeypatch.undo()
    anyio.run(lambda: aio.run(["/usr/bin/true"]))  # by the same threads
    world.assert_unchanged()


def test_a_launch_that_has_not_begun_is_not_made_when_it_is_cancelled(in_loop, slow_launches, world):
    """All threads are busy, and nothing gets stuck: what waits in the queue is forgotten at once."""
    allowed, begun = slow_launches

    async def main():
        async with anyio.create_task_group() as tasks:
            for _ in range(aio.launching.MOST):
                tasks.start_soon(lambda: aio.run(["/usr/bin/true"]))
            for _ in range(aio.launching.MOST):
                await anyio.to_thread.run_sync(begun.acquire)
            began = time.monotonic()
            with anyio.move_on_after(0.01):
                await sh(TREE)
            assert time.monotonic() - began < END_S
            allowed.set()
        assert not begun.acquire(blocking=False)

    in_loop(main)
    world.assert_unchanged()


def test_launches_that_hang_do_not_hold_up_the_others(in_loop, slow_launches, monkeypatch, world):
    allowed, begun = slow_launches
    monkeypatch.setattr("shoal.aio.launching.STUCK_S", 0.05)

    async def main():
        async with anyio.create_task_group() as tasks:
            for _ in range(aio.launching.MOST + 2):
                tasks.start_soon(lambda: aio.run(["/usr/bin/true"]))
                with anyio.fail_after(30):
                    await anyio.sleep(0.06)
                    await anyio.to_thread.run_sync(begun.acquire)
            allowed.set()

    in_loop(main)
    world.assert_unchanged()


@BOXES
def test_launches_that_are_cancelled_at_any_moment_leave_nothing(in_loop, box, world):
    """A thread launches it, and it ends by itself or runs on, whenever that happens to be."""

    async def main():
        ended, moments = [], random.Random(3)

        async def one(script, after):
            with anyio.move_on_after(after):
                ended.append((await aio.run(["sh", "-c", script], sandbox=box)).returncode)

        for _ in range(20):
            async with anyio.create_task_group() as tasks:
                for script in ("exit 3", f"sleep {MARK}"):
                    for _ in range(6):
                        tasks.start_soon(one, script, moments.random() * 0.02)
            assert processes_with(MARK) == []
        assert set(ended) <= {3}
        assert (await aio.run(["sh", "-c", "exit 4"], sandbox=box)).returncode == 4

    in_loop(main)
    world.assert_unchanged()


# --- Ctrl-C -------------------------------------------------------------------------------------------

INTERRUPTED = """
import asyncio, gc, os, random, signal, threading, time
import anyio, trio
from shoal import Sandbox, aio, cells
from shoal.handles import reaper

cells.limit(0)
loop, rounds = args
box = Sandbox(read=["/usr"])
script = ["sh", "-c", "trap '' TERM HUP INT; (sleep 60 &); echo ready; sleep 60"]

async def run():
    await aio.run(script, sandbox=box, capture_output=True)

async def block():
    async with aio.open_process(script, sandbox=box) as process:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.wait)
            await process.stdout.receive()

async def pipe():
    await (aio.command(*script, sandbox=box) | aio.command(*script, sandbox=box)).run(capture_output=True)

def left():
    gc.collect()
    reaper.sweep()
    found = set()
    for thread in os.listdir("/proc/self/task"):
        found |= set(open(f"/proc/self/task/{thread}/children").read().split())
    return found

for main in (run, block, pipe):  # what is opened once and kept
    async def briefly():
        with anyio.move_on_after(0.05):
            await main()
    asyncio.run(briefly()) if loop == "asyncio" else trio.run(briefly)
gc.collect()
descriptors, ended, bad = set(os.listdir("/proc/self/fd")), 0, []
random.seed(1)
for number in range(rounds):
    main = (run, block, pipe)[number % 3]
    delay = random.random() * 0.012
    interrupt = threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGINT)))
    try:
        interrupt.start()
        try:
            asyncio.run(main()) if loop == "asyncio" else trio.run(main)
        finally:
            interrupt.join()
    except KeyboardInterrupt:
        ended += 1
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        ended += 1
    deadline = time.monotonic() + 10
    # What was cancelled before a thread came to launch it is dropped when one comes.
    while ((now := left()) or (more := set(os.listdir("/proc/self/fd")) - descriptors)) and time.monotonic() < deadline:
        time.sleep(0.01)
    if now or more:
        bad.append([number, main.__name__, delay, sorted(now), sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in more)])
        descriptors |= more
answer([ended, bad])
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_ctrl_c_at_any_moment_leaves_nothing(run_python, loop):
    rounds = 90
    assert run_python(INTERRUPTED, loop, rounds, patience_s=250) == [rounds, []]


# --- the end of the loop ------------------------------------------------------------------------------


def test_programs_that_a_loop_leaves_running_end_with_it(in_loop, world):
    """asyncio.run() and trio cancel what still runs."""

    async def main():
        process = await aio.create_subprocess_exec("sh", "-c", TREE, sandbox=SH, stdout=aio.PIPE)
        assert await process.stdout.readline() == b"ready\n"
        process = await aio.create_subprocess_exec("sleep", MARK)
        assert processes_with(MARK)

    in_loop(main)
    assert processes_with(MARK) == []
    gc.collect()
    world.assert_unchanged()


def test_a_loop_that_is_closed_over_a_running_program_leaves_nothing(world):
    async def start():
        await aio.create_subprocess_exec("sh", "-c", TREE, sandbox=SH)

    async def run():
        await sh(TREE)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    task = loop.create_task(run())
    loop.run_until_complete(loop.run_in_executor(None, wait_running, MARK))
    loop.run_until_complete(loop.shutdown_default_executor())
    with warnings.catch_warnings(action="ignore"):  # of asyncio's, about tasks that nobody has waited for
        loop.set_exception_handler(lambda loop, context: None)
        loop.close()
        del task, loop
        deadline = time.monotonic() + 30
        while processes_with(MARK) and time.monotonic() < deadline:  # a launch may have been on its way when it was closed
            gc.collect()
            time.sleep(0.01)
    assert processes_with(MARK) == []
    world.assert_unchanged()


def test_an_interpreter_that_exits_takes_its_sandboxes_along(run_python):
    script = """
import os, anyio
from rig.cells import children
from shoal import Sandbox, aio
script, box = ["sh", "-c", "echo ready; sleep 60"], Sandbox(read=["/usr"])
ready, tell = os.pipe()
async def main():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: aio.run(script, sandbox=box, stdout=tell))
        async with aio.open_process(script, sandbox=box) as process:
            await process.stdout.receive()
            await anyio.wait_readable(ready)
            answer(sorted(children()))
            os._exit(0)
anyio.run(main)
"""
    pids = run_python(script)
    assert len(pids) >= 4  # two programs, each with the first process of its cell
    assert wait_gone(pids)


# --- what cannot be killed ----------------------------------------------------------------------------


@pytest.mark.root
@needs("file systems in user space (/dev/fuse)")
class TestWhatSleepsWhereNoSignalReaches:
    @pytest.fixture
    def stuck(self, tmp_path):
        (tmp_path / "stuck").mkdir()
        with mounted(tmp_path / "stuck") as found:
            yield found

    @pytest.fixture
    def box(self, stuck):
        return Sandbox(read={"/usr": "/usr", "/data": stuck.folder})

    def test_a_limit_of_time_is_kept_and_the_result_says_what_is_left(self, in_loop, stuck, box, world):
        async def main():
            began = time.monotonic()
            done = await aio.run(["cat", "/data/stuck"], sandbox=box.replace(wall_time=REACHED_S))
            assert time.monotonic() - began < REACHED_S + 2 * END_S + SLACK_S
            assert (done.reason, done.returncode) == ("wall_time", -signal.SIGKILL)
            assert re.search(rf"process {done.unkilled[0]} \(cat\) sleeps uninterruptibly in the kernel", done.message)
            return done.unkilled

        left = in_loop(main)
        stuck.let_go()
        assert wait_gone(left)
        world.assert_unchanged()

    def test_the_loop_goes_on_meanwhile(self, in_loop, stuck, box, world):
        async def main():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: aio.run(["cat", "/data/stuck"], sandbox=box.replace(wall_time=REACHED_S)))
                with anyio.fail_after(END_S):
                    for _ in range(5):
                        assert (await aio.run(["/usr/bin/true"])).returncode == 0

        in_loop(main)
        stuck.let_go()
        world.assert_unchanged()

    def test_neither_a_cancellation_nor_the_end_of_a_block_waits_for_ever(self, in_loop, stuck, box, world):
        async def main():
            began = time.monotonic()
            with anyio.move_on_after(REACHED_S):
                await aio.run(["cat", "/data/stuck"], sandbox=box)
            async with aio.open_process(["cat", "/data/./stuck"], sandbox=box) as process:
                await anyio.to_thread.run_sync(stuck.wait_for, "/data/./stuck")
            assert time.monotonic() - began < REACHED_S + 4 * END_S + SLACK_S
            assert (process.reason, len(process.unkilled)) == ("killed", 1)

        in_loop(main)
        stuck.let_go()
        assert wait_gone([*processes_with("/data/stuck"), *processes_with("/data/./stuck")])
        world.assert_unchanged()
        assert not reaper.pending()


def test_the_result_of_a_run_that_is_cancelled_when_it_is_over_is_not_lost(in_loop, tmp_path):
    """A file that has been spilled to is either told of or removed."""

    async def main():
        for count in range(12):
            results = []

            async def work(results=results):
                script = "seq 100000; exit 3"
                results.append(await sh(script, output_limit="1K", on_output_limit="spill", spill_directory=tmp_path))

            await cancelled_at(work, count)
            told = {facts.spill_path for result in results for facts in result.output.values() if facts.spill_path}
            assert {str(path) for path in tmp_path.iterdir()} == told
            for path in told:
                os.unlink(path)

    in_loop(main)
    assert shoal.run(["/usr/bin/true"]).returncode == 0
