"""Pipelines: what goes through them, how each stage ends, and what is told of it."""

import os
import signal
import subprocess

import anyio
import pytest
from rig.cli import processes_with

import shoal
from shoal import Sandbox, aio, cells

SH = Sandbox(read=["/usr"])
MARK = f"63.{os.getpid():07d}"
pytestmark = [
    pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell"),
    pytest.mark.usefixtures("loops_that_have_run"),
]


def sh(script, box=SH, **more):
    return aio.command("sh", "-c", script, sandbox=box, **more)


def test_each_stage_reads_what_the_one_before_writes_in_a_sandbox_of_its_own(in_loop, tmp_path, world):
    (tmp_path / "names").write_text("b\na\nb\nc\n")

    async def main():
        reader = aio.command("cat", "/data/names", sandbox=Sandbox(read={"/data": tmp_path}))
        pipeline = reader | aio.command("sort", "-u") | aio.command("wc", "-l", sandbox=False)
        done = await pipeline.run(capture_output=True, text=True)
        assert (done.stdout.strip(), done.stderr, done.returncode, done.reason, done.failed) == ("3", "", 0, "exited", None)
        assert [result.args[0] for result in done.results] == ["cat", "sort", "wc"]
        assert [result.enforced["tier"] == "none" for result in done.results] == [False, False, True]
        assert [result.stdout for result in done.results[:2]] == [None, None]
        hidden = aio.command("cat", "/data/names") | aio.command("cat")  # only the first was handed the file
        assert (await hidden.run(capture_output=True)).returncode != 0
        return pipeline

    pipeline = in_loop(main)
    assert str(pipeline) == "cat /data/names | sort -u | wc -l"
    world.assert_unchanged()


def test_pipelines_are_put_together_from_commands_and_pipelines():
    a, b, c, d = (aio.command(name) for name in "abcd")
    assert str(a | b | c | d) == str((a | b) | (c | d)) == str(a | (b | (c | d))) == "a | b | c | d"
    with pytest.raises(TypeError, match="unsupported operand"):
        a | "sort"
    with pytest.raises(TypeError, match="unsupported operand"):
        (a | b) | ["sort"]


@pytest.mark.parametrize("stages", [2, 5])
def test_much_goes_through(in_loop, stages, world):
    data = os.urandom(2_000_000)

    async def main():
        pipeline = aio.command("cat", sandbox=False) | aio.command("cat", sandbox=SH)
        for _ in range(stages - 2):
            pipeline = pipeline | aio.command("cat")
        assert (await pipeline.run(input=data, capture_output=True)).stdout == data

    in_loop(main)
    world.assert_unchanged()


def test_a_writer_whose_reader_has_enough_is_ended_and_has_not_failed(in_loop, world):
    async def main():
        done = await (sh("exec yes") | aio.command("cat") | aio.command("head", "-n", "2")).run(capture_output=True, text=True, check=True)
        assert (done.stdout, done.returncode, done.reason, done.failed) == ("y\ny\n", 0, "exited", None)
        assert [result.returncode for result in done.results] == [-signal.SIGPIPE, -signal.SIGPIPE, 0]
        assert done.results[0].reason == "signaled"
        by_a_shell = await (sh("yes; exit $?") | aio.command("head", "-n", "1")).run(capture_output=True, check=True)
        assert by_a_shell.results[0].returncode == 128 + signal.SIGPIPE
        last = await (sh("true") | sh("kill -PIPE $$")).run()
        assert (last.returncode, last.failed) == (-signal.SIGPIPE, last.results[1])

    in_loop(main)
    world.assert_unchanged()


def test_the_return_code_is_that_of_the_last_stage_that_failed(in_loop):
    async def main():
        done = await (sh("exit 3") | sh("cat >&2; echo not this >&2; exit 4") | sh("cat")).run(capture_output=True, text=True)
        assert (done.returncode, done.failed.args[-1], done.reason) == (4, "cat >&2; echo not this >&2; exit 4", "exited")
        assert [result.returncode for result in done.results] == [3, 4, 0]
        known = subprocess.run(["bash", "-c", "set -o pipefail; (exit 3) | (exit 4) | true"], check=False)
        assert known.returncode == done.returncode
        with pytest.raises(shoal.RunError, match="exited with status 4"):
            await (sh("exit 3") | sh("exit 4") | sh("cat")).run(check=True)

    in_loop(main)


def test_what_the_stages_say_is_kept_apart_and_can_go_into_the_pipe(in_loop):
    async def main():
        done = await (sh("echo a >&2") | sh("cat; echo b >&2", stderr=aio.DEVNULL) | sh("echo c >&2")).run(capture_output=True, text=True)
        assert [result.stderr for result in done.results] == ["a\n", None, "c\n"]
        assert done.stderr == "a\nc\n"
        merged = await (sh("echo out; echo err >&2", stderr=aio.STDOUT) | aio.command("sort")).run(capture_output=True, text=True)
        assert (merged.stdout, merged.stderr) == ("err\nout\n", "")
        assert (await (sh("echo a") | sh("cat")).run(stdout=aio.DEVNULL)).stderr is None

    in_loop(main)


def test_limits_hold_for_each_stage_and_for_what_is_captured(in_loop, world):
    async def main():
        slow = aio.command("sleep", "60", sandbox=SH.replace(wall_time=0.1))
        done = await (slow | aio.command("wc", "-c")).run(capture_output=True, text=True)
        assert ([result.reason for result in done.results], done.stdout) == (["wall_time", "exited"], "0\n")
        assert done.reason == "wall_time"
        flood = await (sh("exec cat /dev/zero") | aio.command("cat")).run(capture_output=True, output_limit="64K", on_output_limit="kill")
        assert [result.reason for result in flood.results] == ["signaled", "output_limit"]
        assert (len(flood.stdout), flood.truncated, flood.reason) == (65536, True, "output_limit")

    in_loop(main)
    world.assert_unchanged()


def test_a_timeout_ends_all_stages(in_loop, world):
    async def main():
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            await (aio.command("sleep", MARK) | sh(f"echo partly; sleep {MARK}")).run(timeout=0.3, capture_output=True, text=True)
        assert (caught.value.output, caught.value.cmd) == ("partly\n", f"sleep {MARK} | sh -c 'echo partly; sleep {MARK}'")
        assert processes_with(MARK) == []

    in_loop(main)
    world.assert_unchanged()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_stage_that_cannot_be_started_ends_those_that_were(in_loop, place, world):
    async def main():
        stages = [aio.command("sleep", MARK) for _ in range(3)]
        stages[place] = aio.command("/no/such/program")
        with pytest.raises(FileNotFoundError, match="/no/such/program"):
            await (stages[0] | stages[1] | stages[2]).run(capture_output=True)
        assert processes_with(MARK) == []

    in_loop(main)
    world.assert_unchanged()


def test_pipelines_run_side_by_side(in_loop, world):
    async def main():
        outputs = []

        async def one(number):
            done = await (sh(f"seq {number}") | aio.command("cat", sandbox=False) | aio.command("tail", "-n", "1", sandbox=False)).run(
                capture_output=True, text=True
            )
            outputs.append(int(done.stdout))

        async with anyio.create_task_group() as tasks:
            for number in range(1, 21):
                tasks.start_soon(one, number)
        assert sorted(outputs) == list(range(1, 21))

    in_loop(main)
    cells.drain()
    world.assert_unchanged()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (aio.command, ValueError, "args is empty"),
        (lambda: aio.command(["sort", "-u"]), TypeError, r"separate arguments: command\(\*\['sort', '-u'\]\)"),
        (lambda: aio.command("sort", sandbox="no"), TypeError, "has to be a shoal.Sandbox"),
        (lambda: aio.command("sort", env={}), ValueError, "env is for sandbox=False"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_when_it_is_made(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_what_cannot_be_meant_of_a_pipeline_is_refused(in_loop, world):
    async def main():
        pipeline = aio.command("cat") | aio.command("cat")
        for how, error in (
            ({"input": "text"}, TypeError),
            ({"input": b"", "stdin": aio.PIPE}, ValueError),
            ({"capture_output": True, "stderr": aio.PIPE}, ValueError),
            ({"stdout": 987}, shoal.BadHandleError),
            ({"stdin": aio.STDOUT}, ValueError),
        ):
            with pytest.raises(error):
                await pipeline.run(**how)

    in_loop(main)
    world.assert_unchanged()
