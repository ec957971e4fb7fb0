"""open_process(): streams, limits, and the end of the block, in event loops of every kind."""

import contextlib
import os
import signal
import time

import anyio
import pytest
from rig.cli import processes_with, wait_gone, wait_running

import shoal
from shoal import Sandbox, aio
from shoal.aio.streams import LINE_BYTES

SH = Sandbox(read=["/usr"])
pytestmark = [
    pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell"),
    pytest.mark.usefixtures("loops_that_have_run"),
]
MARK = f"61.{os.getpid():07d}"
"""How long a program sleeps that is looked for."""
BOXES = pytest.mark.parametrize("box", [SH, False], ids=["sandbox", "none"])


def sh(script, box=SH, **more):
    return aio.open_process(["sh", "-c", script], sandbox=box, **more)


# --- streams ------------------------------------------------------------------------------------------


@BOXES
def test_bytes_go_in_and_lines_come_out(in_loop, box, world):
    async def main():
        async with sh("while read line; do echo got $line; echo said $line >&2; done; exit 5", box) as process:
            assert isinstance(process, anyio.abc.Process)
            assert isinstance(process.stdin, anyio.abc.ByteSendStream)
            assert isinstance(process.stdout, anyio.abc.ByteReceiveStream)
            assert (process.returncode, process.reason, process.usage) == (None, None, None)
            for word in (b"one", b"two"):
                await process.stdin.send(word + b"\n")
                assert await process.stdout.receive_line() == b"got " + word + b"\n"
            await process.stdin.send(b"three\nfour\n")
            await process.stdin.aclose()
            assert [line async for line in process.stdout] == [b"got three\n", b"got four\n"]
            assert b"".join([line async for line in process.stderr]).count(b"said") == 4
            assert await process.wait() == 5
            assert (process.returncode, process.reason) == (5, "exited")
            assert process.usage.wall_s > 0
            with pytest.raises(anyio.EndOfStream):
                await process.stdout.receive()
        assert process.enforced["tree"] is True if box else process.enforced["tier"] == "none"

    in_loop(main)
    world.assert_unchanged()


@BOXES
def test_text_is_put_together_across_the_borders_of_what_was_read(in_loop, box):
    """Each of the bytes arrives alone, so that characters and line ends are cut in every place."""
    text = "ä€𝄞\r\nnext\rlast"
    script = "; ".join(f"printf '\\{byte:o}'; read x" for byte in text.encode())

    async def main():
        async with sh(script, box, text=True, encoding="utf-8") as process:
            received = ""
            for _ in text.encode():
                await process.stdin.send("\n")
            async for line in process.stdout:
                received += line
            assert received == "ä€𝄞\nnext\nlast"
        async with sh(script, box, text=True, encoding="utf-8") as process:
            for _ in text.encode():
                await process.stdin.send("\n")
            assert [line async for line in process.stdout] == ["ä€𝄞\n", "next\n", "last"]

    in_loop(main)


def test_text_that_is_none_is_an_error(in_loop):
    async def main():
        async with sh("printf 'a\\377b'", text=True, encoding="utf-8") as process:
            with pytest.raises(UnicodeDecodeError):
                await process.stdout.receive()
        async with sh("printf 'a\\377'; printf '\\303'", text=True, encoding="utf-8", errors="replace") as process:
            assert [line async for line in process.stdout] == ["a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"]
        async with sh("cat", text=True, encoding="ascii") as process:
            with pytest.raises(UnicodeEncodeError):
                await process.stdin.send("ä")

    in_loop(main)


@BOXES
def test_a_line_that_never_ends_comes_in_pieces(in_loop, box):
    async def main():
        for text in (False, True):
            async with sh("head -c 2500000 /dev/zero | tr '\\0' x; echo; echo end", box, text=text) as process:
                lines = [line async for line in process.stdout]
                assert [len(line) for line in lines] == [LINE_BYTES, LINE_BYTES, 2_500_001 - 2 * LINE_BYTES, 4]

    in_loop(main)


def test_many_lines_are_read_in_time_that_grows_with_their_number_only(in_loop):
    async def main():
        for text in (False, True):
            async with sh("seq 300000", text=text) as process:
                count = 0
                async for _ in process.stdout:
                    count += 1
                assert count == 300_000

    in_loop(main)


def test_lines_and_other_reading_can_be_mixed(in_loop):
    async def main():
        async with sh("printf 'one\\ntwo\\nthree'") as process:
            assert await process.stdout.receive_line() == b"one\n"
            assert await process.stdout.receive(2) == b"tw"
            assert await process.stdout.receive_line() == b"o\n"
            assert await process.stdout.receive() == b"three"
            assert await process.stdout.receive_line() == b""

    in_loop(main)


def test_more_than_a_pipe_holds_goes_through_in_both_directions(in_loop):
    data = os.urandom(1_000_000)

    async def main():
        async with aio.open_process(["cat"], sandbox=SH) as process:
            received = bytearray()

            async def feed():
                await process.stdin.send(data)
                await process.stdin.aclose()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed)
                while True:
                    try:
                        received += await process.stdout.receive()
                    except anyio.EndOfStream:
                        break
            assert received == data
            assert await process.wait() == 0

    in_loop(main)


def test_streams_are_only_where_they_were_asked_for(in_loop, tmp_path):
    async def main():
        with open(tmp_path / "out", "w+b") as file:
            async with sh("echo out; echo err >&2", stdin=aio.DEVNULL, stdout=file, stderr=aio.STDOUT) as process:
                assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
                await process.wait()
            file.seek(0)
            assert file.read() == b"out\nerr\n"
        async with sh("echo out; echo err >&2", stdin=None, stderr=aio.STDOUT) as process:
            assert [line async for line in process.stdout] == [b"out\n", b"err\n"]

    in_loop(main)


@BOXES
def test_descriptors_can_be_handed_over_besides(in_loop, box, pipe):
    async def main():
        async with aio.open_process(["bash", "-c", f"echo by the pipe >&{pipe.write}"], sandbox=box, pass_fds=[pipe.write]) as process:
            assert await process.wait() == 0
        assert os.read(pipe.read, 100) == b"by the pipe\n"

    in_loop(main)


@BOXES
def test_a_program_that_does_not_read_is_an_error_for_who_writes(in_loop, box):
    async def main():
        async with sh("exec <&-; echo closed; sleep 60", box) as process:
            assert await process.stdout.receive() == b"closed\n"
            with pytest.raises(anyio.BrokenResourceError):
                await process.stdin.send(b"x")
        async with sh("echo there; read x", box) as process:
            assert await process.stdout.receive() == b"there\n"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(process.stdin.send, b"a line\n")
            await process.wait()
            with pytest.raises(anyio.BrokenResourceError):
                await process.stdin.send(b"x" * 1_000_000)

    in_loop(main)


def test_a_host_program_that_sigpipe_would_end_is_not_ended(run_python):
    script = """
import signal, anyio
from shoal import aio
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
async def main():
    async with aio.open_process([workload, "exit", "0"]) as process:
        await process.wait()
        try:
            await process.stdin.send(b"x")
        except anyio.BrokenResourceError:
            return "broken"
answer([anyio.run(main, backend=name) for name in ("asyncio", "trio")])
"""
    assert run_python(script) == ["broken", "broken"]


def test_two_tasks_cannot_read_or_write_one_stream_at_once(in_loop):
    async def main():
        async with sh("sleep 60") as process, anyio.create_task_group() as tasks:
            tasks.start_soon(process.stdout.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await process.stdout.receive()
            tasks.cancel_scope.cancel()

    in_loop(main)


def test_who_waits_for_a_stream_that_is_closed_is_told(in_loop):
    async def main():
        told = []

        async def read(stream):
            try:
                await stream.receive()
            except anyio.ClosedResourceError:
                told.append("closed")

        async def write(stream):
            try:
                await stream.send(b"x" * 10_000_000)
            except anyio.ClosedResourceError:
                told.append("closed")

        async with sh("sleep 60") as process:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, process.stdout)
                tasks.start_soon(write, process.stdin)
                await anyio.wait_all_tasks_blocked()
                await process.stdout.aclose()
                await process.stdin.aclose()
            assert told == ["closed", "closed"]
            for use in (process.stdout.receive(), process.stdin.send(b"x")):
                with pytest.raises(anyio.ClosedResourceError):
                    await use

    in_loop(main)


# --- the end of the program ---------------------------------------------------------------------------


@BOXES
def test_streams_end_with_the_program_whoever_still_holds_them(in_loop, box, tmp_path, world):
    """What a program leaves behind, here with its own session and both pipes, does not keep a reader waiting."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    keeps = SH.replace(linger="keep", read={"/usr": "/usr", "/gate": gate}) if box else False
    place = "/gate" if box else gate

    async def main():
        async with sh(f"(setsid sh -c 'read x < {place}' &); printf 'all of it'", keeps) as process:
            with anyio.fail_after(30):
                assert [line async for line in process.stdout] == [b"all of it"]
                assert [line async for line in process.stderr] == []
                assert await process.wait() == 0
        async with await anyio.open_file(gate, "w") as file:
            await file.write("end\n")

    in_loop(main)
    world.assert_unchanged()


def test_what_a_program_leaves_running_is_ended_with_it(in_loop, world):
    async def main():
        async with sh(f"(setsid sleep {MARK} &); sleep {MARK} & echo done") as process:
            with anyio.fail_after(30):
                assert [line async for line in process.stdout] == [b"done\n"]
                assert await process.wait() == 0
            assert processes_with(MARK) == []

    in_loop(main)
    world.assert_unchanged()


def test_any_number_of_tasks_may_wait(in_loop):
    async def main():
        async with aio.open_process(["cat"], sandbox=SH) as process:
            codes = []

            async def wait():
                codes.append(await process.wait())

            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(wait)
                with anyio.move_on_after(0.01):
                    await process.wait()
                await process.stdin.aclose()
            assert codes == [0] * 10
            assert await process.wait() == 0

    in_loop(main)


@BOXES
def test_signals_reach_the_program_and_kill_reaches_all_of_it(in_loop, box, world):
    async def main():
        async with sh("trap 'echo told; exit 7' USR1; echo ready; while :; do sleep 0.01; done", box) as process:
            assert await process.stdout.receive() == b"ready\n"
            process.send_signal(signal.SIGUSR1)
            assert await process.stdout.receive() == b"told\n"
            assert (await process.wait(), process.reason) == (7, "exited")
            with pytest.raises(ProcessLookupError):
                process.send_signal(signal.SIGUSR1)
            process.terminate()
            process.kill()
        async with sh("echo ready; exec sleep 60", box) as process:
            await process.stdout.receive()
            process.terminate()
            assert (await process.wait(), process.reason) == (-signal.SIGTERM, "signaled")
        async with sh(f"trap '' TERM; sleep {MARK} & echo ready; wait", box) as process:
            await process.stdout.receive()
            assert processes_with(MARK)
            process.kill()
            assert (await process.wait(), process.reason) == (-signal.SIGKILL, "killed")
            assert processes_with(MARK) == []

    in_loop(main)
    world.assert_unchanged()


def test_time_limits_hold_while_nobody_looks(in_loop, world):
    async def main():
        async with sh("sleep 60", SH.replace(wall_time=0.1)) as process:
            assert (await process.wait(), process.reason) == (-signal.SIGKILL, "wall_time")
        async with sh("cat /dev/zero", SH.replace(wall_time=0.1)) as process:  # a flood that nobody reads
            assert (await process.wait(), process.reason) == (-signal.SIGKILL, "wall_time")
        async with sh("while :; do :; done", SH.replace(cpu_time=1, wall_time=60, limits="best-effort")) as process:
            await process.wait()
            assert process.reason == "cpu_time"

    in_loop(main)
    world.assert_unchanged()


# --- the end of the block -----------------------------------------------------------------------------


@BOXES
@pytest.mark.parametrize("how", ["at its end", "by an error"])
def test_leaving_the_block_ends_all_of_it_and_waits(in_loop, box, how, world):
    async def main():
        found = None
        with contextlib.ExitStack() as expected:
            if how == "by an error":
                expected.enter_context(pytest.raises(KeyError, match="in the block"))
            script = f"trap '' TERM HUP INT; sleep {MARK} & (sleep {MARK} & sleep {MARK}) & echo ready; cat /dev/zero"
            async with sh(script, box) as found:
                await found.stdout.receive_line()
                wait_running(MARK)
                if how == "by an error":
                    raise KeyError("in the block")
        assert processes_with(MARK) == []
        assert (found.returncode, found.reason) == (-signal.SIGKILL, "killed")
        with pytest.raises(anyio.ClosedResourceError):
            await found.stdout.receive()

    in_loop(main)
    world.assert_unchanged()


def test_what_has_left_its_session_and_its_parent_is_ended_in_a_sandbox(in_loop, world):
    script = "setsid sh -c '(trap \"\" TERM; sleep 60) & sleep 60 & exit' ; echo ready; sleep 60"

    async def main():
        async with sh(script) as process:
            await process.stdout.receive()

    in_loop(main)
    world.assert_unchanged()


def test_a_tree_that_keeps_forking_is_ended_without_a_sandbox(in_loop, world):
    """The shell starts processes all the time, deep down; each is stopped before it could start another."""
    grow = "grow() { (n=$((n+1)); [ $n -lt 4 ] && grow; while :; do true | true; done) & }"
    script = f": {MARK}; n=0; {grow}; grow; grow; echo ready; wait"

    async def main():
        async with sh(script, False) as process:
            await process.stdout.receive()
            assert len(processes_with(MARK)) >= 3
        assert processes_with(MARK) == []

    for _ in range(5):
        in_loop(main)
    world.assert_unchanged()


def test_an_open_process_is_for_one_block(in_loop, world):
    async def main():
        opening = aio.open_process(["/usr/bin/true"])
        async with opening as process:
            await process.wait()
        with pytest.raises(RuntimeError, match="for one block"):
            async with opening:
                pass
        with pytest.raises(TypeError, match="async with open_process"):
            await aio.open_process(["/usr/bin/true"])

    in_loop(main)
    world.assert_unchanged()


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"args": "ls -l"}, TypeError, "list of strings"),
        ({"args": ["/no/such"]}, FileNotFoundError, "/no/such: not found"),
        ({"stdin": aio.STDOUT}, ValueError, "stdin cannot be STDOUT"),
        ({"stdout": aio.STDOUT}, ValueError, "stdout cannot be STDOUT"),
        ({"encoding": "no such"}, LookupError, "no such"),
        ({"sandbox": "no"}, TypeError, "has to be a shoal.Sandbox"),
        ({"env": {}}, ValueError, "env is for sandbox=False"),
        ({"pass_fds": [987]}, shoal.BadHandleError, "descriptor 987 is not open"),
        ({"stderr": 987}, shoal.BadHandleError, "stderr: descriptor 987 is not open"),
        ({"start_new_session": True}, ValueError, "start_new_session is for sandbox=False"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(in_loop, how, error, text, world):
    async def main():
        with pytest.raises(error, match=text):
            async with aio.open_process(**{"args": ["/usr/bin/true"]} | how):
                pass

    in_loop(main)
    world.assert_unchanged()


def test_a_new_session_can_be_had_without_a_sandbox(in_loop):
    async def main():
        sessions = []
        for new in (False, True):
            async with sh("cut -d' ' -f6 /proc/self/stat", False, start_new_session=new) as process:
                sessions.append((int(await process.stdout.receive()), process.pid))
        return sessions

    (same, _), (own, pid) = in_loop(main)
    assert same == os.getsid(0)
    assert own == pid


def test_a_process_tells_what_it_is(in_loop):
    async def main():
        async with sh("sleep 60") as process:
            assert repr(process) == f"<shoal.aio.Process 'sh' pid {process.pid} running>"
            assert process.args == ["sh", "-c", "sleep 60"]
            pid = process.pid
            os.kill(pid, 0)
        assert repr(process) == f"<shoal.aio.Process 'sh' pid {pid} returned -9, killed>"
        assert wait_gone([pid])

    began = time.monotonic()
    in_loop(main)
    assert time.monotonic() - began < 30
