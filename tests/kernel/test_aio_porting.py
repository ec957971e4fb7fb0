"""create_subprocess_exec() and create_subprocess_shell(): side by side with asyncio's own, and on trio as well."""

import asyncio
import contextlib
import gc
import os
import signal

import anyio
import pytest
from rig.cli import processes_with

import shoal
from shoal import Sandbox, aio

SH = Sandbox(read=["/usr"])
MARK = f"64.{os.getpid():07d}"
pytestmark = [
    pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell"),
    pytest.mark.usefixtures("loops_that_have_run"),
]
PIPES = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}


@pytest.fixture(params=[pytest.param("asyncio's own", marks=pytest.mark.filterwarnings("ignore")), "none", "sandbox"])
def calls(request, anyio_backend):
    """What has the two calls: asyncio itself, which is the reference, and shoal.aio without a sandbox and with one."""
    if request.param == "asyncio's own":
        if anyio_backend != ("asyncio", {}):
            pytest.skip("the reference is asyncio on its own loop")
        yield asyncio
        gc.collect()  # what it warns of is not for the next test
        return
    box = False if request.param == "none" else SH

    class Calls:
        @staticmethod
        def create_subprocess_exec(*args, **how):
            return aio.create_subprocess_exec(*args, sandbox=box, **how)

        @staticmethod
        def create_subprocess_shell(*args, **how):
            return aio.create_subprocess_shell(*args, sandbox=box, **how)

    yield Calls


def test_communicate_writes_reads_and_waits(in_loop, calls, world):
    data = os.urandom(500_000)

    async def main():
        process = await calls.create_subprocess_exec("sh", "-c", "cat; echo err >&2; exit 3", **PIPES)
        assert process.returncode is None
        assert await process.communicate(data) == (data, b"err\n")
        assert process.returncode == 3
        process = await calls.create_subprocess_exec("sh", "-c", "echo out; echo err >&2", stdout=PIPES["stdout"], stderr=aio.STDOUT)
        assert (process.stdin, process.stderr) == (None, None)
        assert await process.communicate() == (b"out\nerr\n", None)
        process = await calls.create_subprocess_exec("true", **PIPES)
        assert await process.communicate(data) == (b"", b"")
        assert await process.wait() == 0

    in_loop(main)
    world.assert_unchanged()


def test_a_conversation_line_by_line(in_loop, calls):
    async def main():
        process = await calls.create_subprocess_shell("while read x; do echo $((x + 1)); done", **PIPES)
        for number in (1, 41):
            process.stdin.write(f"{number}\n".encode())
            await process.stdin.drain()
            assert int(await process.stdout.readline()) == number + 1
        process.stdin.writelines([b"9\n", b"10"])
        process.stdin.write(b"0\n")
        assert process.stdin.can_write_eof()
        assert not process.stdin.is_closing()
        process.stdin.write_eof()
        assert [line async for line in process.stdout] == [b"10\n", b"101\n"]
        assert process.stdout.at_eof()
        assert await process.stdout.readline() == b""
        assert await process.wait() == 0

    in_loop(main)


def test_the_ways_to_read(in_loop, calls):
    async def main():
        process = await calls.create_subprocess_shell("printf 'abcdef;gh\\nrest'; exec 2>&-", **PIPES)
        assert await process.stdout.readexactly(2) == b"ab"
        assert await process.stdout.readuntil(b"f;") == b"cdef;"
        assert await process.stdout.read(1) == b"g"
        assert await process.stdout.read(0) == b""
        assert await process.stdout.readline() == b"h\n"
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await process.stdout.readexactly(10)
        assert (caught.value.partial, caught.value.expected) == (b"rest", 10)
        assert await process.stdout.read() == b""
        with pytest.raises(asyncio.IncompleteReadError):
            await process.stdout.readuntil()
        with pytest.raises(ValueError, match="less than zero"):
            await process.stdout.readexactly(-1)
        with pytest.raises(ValueError, match="at least one-byte"):
            await process.stdout.readuntil(b"")
        await process.wait()

    in_loop(main)


def test_a_line_that_is_too_long_is_an_error_and_the_next_can_be_read(in_loop, calls):
    async def main():
        process = await calls.create_subprocess_shell("printf '%0500d\\nnext\\n' 0; exec cat", limit=100, **PIPES)
        with pytest.raises(ValueError, match="chunk is longer than limit"):
            await process.stdout.readline()
        assert await process.stdout.readline() == b"next\n"
        process.stdin.write(b"x" * 500)
        await process.stdin.drain()
        with pytest.raises(asyncio.LimitOverrunError):
            await process.stdout.readuntil(b";")
        process.stdin.close()
        await process.stdin.wait_closed()
        assert await process.stdout.read() == b"x" * 500
        await process.wait()

    in_loop(main)


def test_what_is_written_before_it_is_read_is_not_lost(in_loop, calls):
    """write() does not wait; what does not fit into the pipe is written in the background, also after close()."""
    data = os.urandom(2_000_000)

    async def main():
        process = await calls.create_subprocess_exec("sh", "-c", "sleep 0.05; cat", **PIPES)
        for at in range(0, len(data), 100_000):
            process.stdin.write(data[at : at + 100_000])
        process.stdin.close()
        assert process.stdin.is_closing()
        assert await process.stdout.read() == data
        assert await process.wait() == 0

    in_loop(main)


def test_as_much_as_asyncio_buffers_can_be_written_before_anybody_reads(in_loop):
    async def main():
        process = await aio.create_subprocess_exec("head", "-c", "180000", "/dev/zero", stdout=aio.PIPE)
        with anyio.fail_after(30):
            assert await process.wait() == 0
        assert len(await process.stdout.read()) == 180_000

    in_loop(main)


def test_writing_to_what_does_not_read_is_told_by_drain(in_loop, calls):
    async def main():
        process = await calls.create_subprocess_shell("exec <&-; echo closed; exec sleep 60", **PIPES)
        assert await process.stdout.readline() == b"closed\n"

        async def write_on():
            for _ in range(100):
                process.stdin.write(b"x" * 1000)
                await process.stdin.drain()
                await anyio.sleep(0)

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await write_on()
        process.kill()
        await process.wait()

    in_loop(main)


def test_signals_and_return_codes(in_loop, calls):
    async def main():
        for name, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
            process = await calls.create_subprocess_exec("sleep", MARK)
            assert isinstance(process.pid, int)
            getattr(process, name)()
            assert await process.wait() == process.returncode == -number
        process = await calls.create_subprocess_shell("trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done", **PIPES)
        await process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        assert await process.wait() == 9
        with pytest.raises(ProcessLookupError):
            process.send_signal(signal.SIGUSR1)

    in_loop(main)


def test_a_program_that_is_not_there_is_the_same_error(in_loop, calls, world):
    async def main():
        with pytest.raises(FileNotFoundError):
            await calls.create_subprocess_exec("/no/such/program", **PIPES)
        with pytest.raises(PermissionError):
            await calls.create_subprocess_exec("/etc/passwd", **PIPES)

    in_loop(main)
    world.assert_unchanged()


def test_a_wait_that_is_cancelled_leaves_the_program_alone(in_loop, calls, world):
    async def main():
        process = await calls.create_subprocess_exec("sleep", "60", **PIPES)
        for work in (process.wait, process.stdout.read, process.communicate):
            with anyio.move_on_after(0.05) as scope:
                await work()
            assert scope.cancelled_caught
            assert process.returncode is None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        assert await process.wait() == -signal.SIGKILL

    in_loop(main)
    world.assert_unchanged()


def test_environment_and_directory_are_those_that_were_given(in_loop, tmp_path, anyio_backend):
    async def main():
        for create in (aio.create_subprocess_shell, asyncio.create_subprocess_shell):
            if create is asyncio.create_subprocess_shell and in_loop.is_trio:
                continue
            how = {"env": {"PATH": os.environ["PATH"], "ONLY": "this"}, "cwd": tmp_path, "start_new_session": True}
            process = await create("echo $ONLY; pwd; cut -d' ' -f6 /proc/self/stat; echo $$", stdout=aio.PIPE, **how)
            only, place, session, pid = (await process.communicate())[0].split()
            assert (only, place, session) == (b"this", os.fsencode(tmp_path), pid)

    in_loop(main)


def test_pipes_that_others_hold_are_read_to_their_end_without_a_sandbox(in_loop, calls):
    """As in asyncio, where the end of output is the end of the pipe. In a sandbox nobody is left to hold it."""

    async def main():
        process = await calls.create_subprocess_shell("(sleep 0.1; echo late) & echo first", stdout=aio.PIPE)
        assert await process.wait() == 0
        return await process.stdout.read()

    late = b"" if getattr(calls, "__name__", "") == "Calls" and calls.create_subprocess_exec.__closure__[0].cell_contents else b"late\n"
    assert in_loop(main) == b"first\n" + late


def test_kill_ends_the_whole_tree_and_the_reason_is_told(in_loop, world):
    async def main():
        for box in (SH, False):
            process = await aio.create_subprocess_shell(f"sleep {MARK} & echo ready; sleep {MARK}", stdout=aio.PIPE, sandbox=box)
            await process.stdout.readline()
            process.kill()
            assert await process.wait() == -signal.SIGKILL
            assert processes_with(MARK) == []
            assert (process.reason, process.enforced["tier"] == "none") == ("killed", box is False)
        process = await aio.create_subprocess_exec("sleep", "60", sandbox=SH.replace(wall_time=0.1))
        await process.wait()
        assert process.reason == "wall_time"

    in_loop(main)
    world.assert_unchanged()


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"preexec_fn": print}, TypeError, "preexec_fn=.*not possible here: nothing of the caller's runs in the child"),
        ({"umask": 0o77}, TypeError, "umask"),
        ({"close_fds": False}, TypeError, "close_fds=False is not possible here; it is always True"),
        ({"universal_newlines": True}, TypeError, "universal_newlines=True is not possible"),
        ({"colour": "blue"}, TypeError, "there is no argument 'colour'"),
        ({"stdin": aio.STDOUT}, ValueError, "stdin cannot be STDOUT"),
        ({"sandbox": SH, "env": {}}, ValueError, "env is for sandbox=False"),
        ({"stdout": 987}, shoal.BadHandleError, "987"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(in_loop, how, error, text, world):
    async def main():
        with pytest.raises(error, match=text):
            await aio.create_subprocess_exec("true", **how)

    in_loop(main)
    world.assert_unchanged()


def test_what_is_so_anyway_may_be_said(in_loop):
    async def main():
        process = await aio.create_subprocess_exec("true", close_fds=True, shell=False, text=None, bufsize=0, encoding=None)
        assert await process.wait() == 0
        with pytest.raises(ValueError, match="stdin is no PIPE"):
            await process.communicate(b"x")
        with pytest.raises(ValueError, match="line for the shell"):
            await aio.create_subprocess_shell(["echo", "hello"])

    in_loop(main)
