"""Many programs at once: no thread and no signal handler for each, no descriptor left; and the threads that launch."""

import contextlib
import os
import resource
import signal
import subprocess
import threading

import anyio
import pytest
from rig.features import needs

import shoal
from shoal import Sandbox, aio, cells
from shoal.aio import launching
from shoal.handles import reaper

SH = Sandbox(read=["/usr"])
MANY = 2000
pytestmark = [
    pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell"),
    pytest.mark.usefixtures("loops_that_have_run"),
]


@pytest.fixture
def many_descriptors():
    """One for each program, and a few more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * MANY:
        pytest.skip(f"needs {3 * MANY} descriptors (RLIMIT_NOFILE)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def gate():
    """Programs read a line from it, so that they end when somebody closes it."""
    reader, writer = os.pipe()
    ends = {"reader": reader, "writer": writer}
    yield ends
    for fd in ends.values():
        with contextlib.suppress(OSError):
            os.close(fd)


def threads():
    return len(os.listdir("/proc/self/task"))


def own_threads():
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("shoal")}


@pytest.mark.slow
def test_two_thousand_programs_at_once_take_no_threads_and_no_handlers(in_loop, many_descriptors, gate, workload, world):
    """All of them run before the first may end."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    most = []

    async def main():
        before, done = threads(), []

        async def one():
            done.append((await aio.run(["/usr/bin/head", "-c", "1"], sandbox=False, stdin=gate["reader"])).returncode)

        with anyio.fail_after(240):
            async with anyio.create_task_group() as tasks:
                for _ in range(MANY):
                    tasks.start_soon(one)
                while len(world.new_processes()) < MANY:  # nothing tells how many have been started
                    most.append(threads() - before)
                    await anyio.sleep(0.05)
                assert done == []
                os.close(gate["writer"])
        assert done == [0] * MANY

    in_loop(main)
    assert max(most) <= launching.MOST
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    world.assert_unchanged(besides=[gate["writer"]])


@pytest.mark.slow
def test_hundreds_of_sandboxes_at_once_each_with_its_streams(in_loop, many_descriptors, world):
    async def main():
        ready = []

        async def one(number):
            async with aio.open_process(["sh", "-c", f"echo {number}; read x; exit 7"], sandbox=SH, text=True) as process:
                ready.append(int(await process.stdout.receive()))
                await everybody.wait()
                await process.stdin.send("go on\n")
                assert await process.wait() == 7

        everybody = anyio.Event()
        with anyio.fail_after(240):
            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(one, number)
                while len(ready) < 200:
                    await anyio.sleep(0.01)
                everybody.set()
        assert sorted(ready) == list(range(200))

    in_loop(main)
    world.assert_unchanged()


def test_one_after_the_other_nothing_grows(in_loop, world):
    async def main():
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(lambda: aio.run(["/usr/bin/true"], sandbox=False))
        cells.drain()
        before, own, descriptors = threads(), own_threads(), len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            assert (await aio.run(["/usr/bin/true"], sandbox=False, capture_output=True)).returncode == 0
            async with aio.open_process(["/usr/bin/true"], sandbox=False) as process:
                await process.wait()
            assert len(os.listdir("/proc/self/fd")) == descriptors
        assert own_threads() == own
        assert threads() <= before  # fewer where one that trio had left idle has ended meanwhile

    in_loop(main)
    assert not reaper.pending()
    world.assert_unchanged()


def test_when_descriptors_run_out_it_is_an_error_and_the_next_run_works(run_python):
    script = """
import os, resource, anyio
from shoal import Sandbox, aio, cells
from shoal.handles import reaper
cells.limit(0)

async def descriptors():
    while reaper.pending():  # a cell that has just ended, or came to nothing
        reaper.sweep()
        await anyio.sleep(0.001)
    return len(os.listdir("/proc/self/fd"))

async def main():
    box = Sandbox()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    for each in (False, box):
        await aio.run([workload, "exit", "0"], sandbox=each, capture_output=True)
        async with aio.open_process([workload, "exit", "0"], sandbox=each) as process:
            await process.wait()
    count, errors, codes = await descriptors(), set(), []
    for room in range(0, 24):
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + room, 4096))
        for each in (False, box):
            for how in ("run", "open"):
                try:
                    if how == "run":
                        codes.append((await aio.run([workload, "exit", "0"], sandbox=each, capture_output=True)).returncode)
                    else:
                        async with aio.open_process([workload, "exit", "0"], sandbox=each) as process:
                            codes.append(await process.wait())
                except OSError as error:
                    errors.add(type(error).__name__ + " " + str(error.errno))
                resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
                assert await descriptors() == count, (room, how, each)
                resource.setrlimit(resource.RLIMIT_NOFILE, (count + room, 4096))
    return [sorted(errors), sorted(set(codes)), len(codes) > 0]

answer([anyio.run(main, backend=name) for name in ("asyncio", "trio")])
"""
    for errors, codes, some in run_python(script):
        assert errors == ["NoResourcesError 24"]
        assert (codes, some) == ([0], True)


# --- the threads that launch --------------------------------------------------------------------------


def test_there_are_few_threads_and_they_are_not_for_signals(run_python):
    script = """
import pathlib, threading, anyio
from shoal import aio

async def main():
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(lambda: aio.run([workload, "exit", "0"], sandbox=False))

for name in ("asyncio", "trio"):
    anyio.run(main, backend=name)
blocked = []
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        status = pathlib.Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        blocked.append([thread.name, next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))])
answer(blocked)
"""
    found = run_python(script)
    assert {name for name, _ in found} == {"shoal-aio"}
    assert 1 <= len(found) <= launching.MOST
    for _, mask in found:
        assert all(int(mask, 16) >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD))


@pytest.mark.parametrize("box", [False, SH], ids=["none", "sandbox"])
def test_a_program_gets_what_the_thread_of_its_loop_has_got_meanwhile(run_python, box):
    """The threads that launch were made before; where the loop's thread has something else by now, it launches itself."""
    script = """
import os, anyio
from shoal import Sandbox, aio
box = Sandbox(read=["/usr"]) if args[0] else False
asked = ["sh", "-c", "nice; grep -c processor /dev/null; sed -n 's/^Cpus_allowed_list:.//p' /proc/self/status"]

async def main():
    async def look():
        return (await aio.run(asked, sandbox=box, capture_output=True, text=True)).stdout.split()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(look)
    before = await look()
    first = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {first})
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    return [before, await look(), first]

answer(anyio.run(main))
"""
    before, after, first = run_python(script, bool(box))
    assert before[0] == str(os.getpriority(os.PRIO_PROCESS, 0))
    assert (after[0], after[2]) == ("19", str(first))


@pytest.mark.root
@needs("root")
def test_a_program_is_in_the_network_that_its_loop_has_entered(run_python):
    script = """
import ctypes, os, anyio
from shoal import aio

async def main():
    async def look():
        return (await aio.run(["readlink", "/proc/self/ns/net"], sandbox=False, capture_output=True, text=True)).stdout.strip()
    before = await look()
    assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
    return [before, await look(), os.readlink("/proc/thread-self/ns/net")]

answer(anyio.run(main))
"""
    before, after, own = run_python(script)
    assert before != after == own


def test_what_all_threads_have_changed_together_needs_no_launch_in_the_loop(in_loop):
    """Here the limit on open files, which is the process's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    launchers = []
    make = launching.Call.make

    def noted(self):
        launchers.append(threading.current_thread().name)
        make(self)

    async def main():
        await aio.run(["/usr/bin/true"], sandbox=False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        done = await aio.run(["sh", "-c", "ulimit -n"], sandbox=False, capture_output=True, text=True)
        assert int(done.stdout) == soft - 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching.Call, "make", noted)
        try:
            in_loop(main)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(launchers) == {"shoal-aio"}


def test_a_program_that_dies_with_its_parent_outlives_the_loop_that_started_it(run_python):
    """PR_SET_PDEATHSIG is about the thread that made it. Those of a loop end with it or when they are idle; these do not."""
    script = """
import os, signal, time, anyio
import shoal
from shoal import aio
setup = "import ctypes, os; ctypes.CDLL(None).prctl(1, 9); os.write(1, b'set'); os.read(0, 1)"

async def main():
    reader, writer = os.pipe()
    told, tell = os.pipe()
    box = False
    process = await aio.create_subprocess_exec(os.sys.executable, "-c", setup, stdin=reader, stdout=tell)
    os.read(told, 3)
    pidfd = os.pidfd_open(process.pid)
    for _ in range(50):  # other launches, by other threads
        await aio.run([workload, "exit", "0"], sandbox=False)
    signal.pidfd_send_signal(pidfd, 0)
    os.write(writer, b"x")
    return await process.wait()

answer(anyio.run(main))
"""
    assert run_python(script) == 0


def test_loops_in_several_threads_run_programs_side_by_side(in_loop, world):
    results = []

    async def main():
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(one)

    async def one():
        results.append((await aio.run(["/usr/bin/true"])).returncode)

    loops = [threading.Thread(target=in_loop, args=(main,)) for _ in range(4)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
    assert results == [0] * 40
    world.assert_unchanged()


def test_a_fork_of_the_host_program_begins_with_threads_of_its_own(in_loop, world):
    async def main():
        await aio.run(["/usr/bin/true"], sandbox=False)

    in_loop(main)
    cells.drain()
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            in_loop(main)
            code = 0
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    in_loop(main)
    world.assert_unchanged()


def test_it_can_be_used_beside_the_blocking_call(in_loop, world):
    async def main():
        blocking = await anyio.to_thread.run_sync(lambda: shoal.run(["/usr/bin/id", "-u"], capture_output=True))
        own = await aio.run(["/usr/bin/id", "-u"], capture_output=True)
        plain = await anyio.to_thread.run_sync(lambda: subprocess.run(["/usr/bin/true"], check=True))
        assert (blocking.returncode, own.returncode, plain.returncode) == (0, 0, 0)

    in_loop(main)
    world.assert_unchanged()
