"""shoal.aio.run(): what shoal.run() does, in event loops of every kind; and without a sandbox."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from rig.features import needs

import shoal
from shoal import Sandbox, aio

SH = Sandbox(read=["/usr"])
pytestmark = [
    pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell"),
    pytest.mark.usefixtures("loops_that_have_run"),
]

BOXES = pytest.mark.parametrize("box", [SH, False], ids=["sandbox", "none"])


def sh(script, box=SH, **more):
    more = {"capture_output": True, "text": True} | more
    return aio.run(["sh", "-c", script], sandbox=box, **more)


# --- the same as shoal.run ----------------------------------------------------------------------------


def test_with_no_sandbox_said_it_is_the_default_one(in_loop, world):
    done = in_loop(lambda: aio.run(["/usr/bin/id", "-u"], capture_output=True, text=True))
    known = shoal.run(["/usr/bin/id", "-u"], capture_output=True, text=True)
    assert isinstance(done, shoal.Result)
    assert (done.args, done.returncode, done.reason, done.stderr) == (known.args, 0, "exited", "")
    assert done.enforced == known.enforced
    assert done.enforced["tree"] is True
    world.assert_unchanged()


@BOXES
def test_input_output_and_text_are_as_with_subprocess(in_loop, box, world):
    async def main():
        done = await aio.run(["cat"], sandbox=box, input="zwei\r\nZeilen\n", capture_output=True, text=True)
        known = subprocess.run(["cat"], input="zwei\r\nZeilen\n", capture_output=True, text=True, check=False)
        assert (done.args, done.returncode, done.stdout, done.stderr) == (known.args, known.returncode, known.stdout, known.stderr)
        assert (await sh("echo out; echo err >&2", box, text=False)).stderr == b"err\n"
        both = await sh("echo out; echo err >&2", box, capture_output=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert both.stdout == "out\nerr\n"
        assert (await sh("cat; echo end", box, stdin=subprocess.DEVNULL)).stdout == "end\n"
        assert (await sh("cat; echo end", box, stdin=subprocess.PIPE)).stdout == "end\n"
        much = os.urandom(3_000_000)
        assert (await aio.run(["cat"], sandbox=box, input=much, capture_output=True)).stdout == much

    in_loop(main)
    world.assert_unchanged()


@BOXES
def test_the_reasons_are_told_apart(in_loop, box):
    async def main():
        assert (await sh("exit 137", box)).reason == "exited"
        killed = await sh("kill -9 $$", box)
        assert (killed.reason, killed.returncode) == ("signaled", -signal.SIGKILL)
        much = await sh("exec cat /dev/zero", box, output_limit="64K", on_output_limit="kill", text=False)
        assert (much.reason, len(much.stdout), much.truncated) == ("output_limit", 65536, True)

    in_loop(main)


@BOXES
def test_check_raises_an_error_that_says_why(in_loop, box):
    async def main():
        with pytest.raises(subprocess.CalledProcessError, match="exited with status 3") as caught:
            await sh("echo partly; exit 3", box, check=True)
        assert isinstance(caught.value, shoal.RunError)
        assert (caught.value.returncode, caught.value.stdout) == (3, "partly\n")

    in_loop(main)


@BOXES
def test_much_output_is_drained_or_spilled_and_costs_no_memory(in_loop, box, tmp_path, world):
    async def main():
        drained = await sh("head -c 5000000 /dev/zero", box, output_limit="1K", text=False)
        assert (len(drained.stdout), drained.truncated, drained.output["stdout"].total_bytes) == (1024, True, 5_000_000)
        spilled = await sh("seq 100000", box, output_limit="1K", on_output_limit="spill", spill_directory=tmp_path)
        facts = spilled.output["stdout"]
        assert facts.complete
        spilled_to = Path(facts.spill_path)
        assert spilled_to.read_text() == "".join(f"{number}\n" for number in range(1, 100001))
        spilled_to.unlink()

    in_loop(main)
    world.assert_unchanged()


def test_output_that_is_no_text_is_an_error_and_leaves_no_file(in_loop, tmp_path):
    async def main():
        script = "head -c 100000 /dev/zero | tr '\\0' '\\377'"
        with pytest.raises(UnicodeDecodeError):
            await sh(script, encoding="utf-8", output_limit="1K", on_output_limit="spill", spill_directory=tmp_path)

    in_loop(main)
    assert list(tmp_path.iterdir()) == []


def test_the_limits_of_the_sandbox_hold(in_loop, world):
    async def main():
        late = await sh("echo partly; sleep 60", SH.replace(wall_time="150ms"))
        assert (late.reason, late.returncode, late.stdout) == ("wall_time", -signal.SIGKILL, "partly\n")
        assert late.enforced["wall_time"] is True
        assert (await sh("ulimit -n", SH.replace(open_files=17))).stdout == "17\n"
        busy = await sh("while :; do :; done", SH.replace(cpu_time=1, wall_time=60, limits="best-effort"))
        assert busy.reason == "cpu_time"

    in_loop(main)
    world.assert_unchanged()


@needs("a cgroup v2 tree in which groups can be made")
def test_limits_for_all_together_hold_and_are_counted(in_loop, world):
    async def main():
        script = "for i in 1 2 3 4; do (while :; do :; done) & done; wait"
        done = await sh(script, SH.replace(cpu_time="500ms", wall_time=60))
        assert (done.reason, done.enforced["cpu_time"]) == ("cpu_time", True)

    in_loop(main)
    world.assert_unchanged()


def test_what_is_left_running_is_ended_waited_for_or_kept(in_loop, tmp_path, world):
    async def main():
        assert (await sh("(setsid sleep 60 &) ; sleep 60 & echo done")).stdout == "done\n"
        waited = await sh("(sleep 0.2; echo later) & echo first", SH.replace(linger="wait"))
        assert waited.stdout == "first\nlater\n"
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        box = SH.replace(write={"/out": tmp_path}, linger="keep")
        assert (await sh("(cat /out/fifo > /out/copy; mv /out/copy /out/done) & echo started", box)).stdout == "started\n"
        async with await anyio.open_file(fifo, "w") as file:
            await file.write("handed over later\n")
        with anyio.fail_after(30):
            while not (tmp_path / "done").exists():  # nothing tells of a rename by a stranger
                await anyio.sleep(0.01)
        assert (tmp_path / "done").read_text() == "handed over later\n"

    in_loop(main)
    world.assert_unchanged()


def test_what_a_program_was_denied_is_told(in_loop):
    done = in_loop(lambda: sh("cat /etc/passwd"))
    assert [str(what) for what in done.denied] == ["file /etc/passwd"]


# --- no sandbox ---------------------------------------------------------------------------------------


def test_without_a_sandbox_a_program_has_what_its_caller_has(in_loop, tmp_path, monkeypatch, world):
    monkeypatch.setenv("TOLD", "by the caller")
    (tmp_path / "secret").write_text("of the caller")
    mask = os.umask(0o027)
    with contextlib.chdir(tmp_path):
        done = in_loop(lambda: sh("echo $TOLD; pwd; cat secret; echo; umask; id -u; readlink /proc/self/ns/net", False))
    os.umask(mask)
    network = os.readlink("/proc/self/ns/net")
    assert done.stdout.splitlines() == ["by the caller", str(tmp_path), "of the caller", "0027", str(os.geteuid()), network]
    assert {name for name, how in done.enforced.items() if how} == {"tier", "tree"}
    assert (done.enforced["tier"], done.denied) == ("none", ())
    world.assert_unchanged()


def test_without_a_sandbox_no_descriptor_comes_along_that_nobody_named(in_loop, pipe):
    os.set_inheritable(pipe.write, True)
    done = in_loop(lambda: sh("ls /proc/self/fd", False))
    assert sorted(map(int, done.stdout.split())) == [0, 1, 2, 3]  # 3 is the directory that is read
    os.set_inheritable(pipe.write, False)


def test_environment_and_directory_can_be_given_where_there_is_no_sandbox(in_loop, tmp_path):
    (tmp_path / "here").write_text("#!/bin/sh\necho from here\n")
    (tmp_path / "here").chmod(0o755)

    async def main():
        env = {"PATH": os.environ["PATH"], "ONLY": "this"}
        done = await sh("echo $ONLY; pwd; env | cut -d= -f1 | sort | tr '\\n' ' '", False, env=env, cwd=tmp_path)
        assert done.stdout.splitlines() == ["this", str(tmp_path), "ONLY PATH PWD "]  # the last is the shell's
        assert (await aio.run(["env"], sandbox=False, env=env, capture_output=True)).stdout.split() == [
            f"PATH={os.environ['PATH']}".encode(),
            b"ONLY=this",
        ]
        assert (await aio.run(["./here"], sandbox=False, cwd=tmp_path, capture_output=True)).stdout == b"from here\n"
        assert (await aio.run(["here"], sandbox=False, env={"PATH": str(tmp_path)}, capture_output=True)).stdout == b"from here\n"

    in_loop(main)


def test_a_script_and_a_changed_program_are_run_as_they_are_now(in_loop, tmp_path):
    script = tmp_path / "script"

    def write(text):
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.chmod(0o755)
        fresh.replace(script)

    async def main():
        outputs = []
        for text in ("#!/bin/sh\necho one $1\n", "#!/bin/sh -e\necho two $1\n", "#!/usr/bin/env sh\necho three $1\n"):
            write(text)
            outputs += [(await aio.run([script, "x"], sandbox=False, capture_output=True, text=True)).stdout for _ in range(3)]
        assert outputs == ["one x\n"] * 3 + ["two x\n"] * 3 + ["three x\n"] * 3

    in_loop(main)


def test_a_program_begins_with_signals_as_they_are_by_default(in_loop):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        done = in_loop(lambda: sh("grep -E 'Sig(Blk|Ign)' /proc/self/status", False))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["0" * 16, "0" * 16]


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"args": "echo hello"}, TypeError, r'args has to be a list of strings.*\["prog", "-v"\]'),
        ({"args": []}, ValueError, "args is empty"),
        ({"sandbox": "strict"}, TypeError, "sandbox has to be a shoal.Sandbox, not 'strict'"),
        ({"sandbox": True}, TypeError, "sandbox has to be a shoal.Sandbox, not True"),
        ({"env": {"A": "b"}}, ValueError, r"env is for sandbox=False; a sandbox has its own: sandbox.replace\(env="),
        ({"cwd": "/"}, ValueError, r"cwd is for sandbox=False"),
        ({"sandbox": False, "cwd": "/no/such/place"}, FileNotFoundError, "cwd '/no/such/place' cannot be entered"),
        ({"sandbox": False, "cwd": "/usr/bin/true"}, shoal.NotDirError, "cwd '/usr/bin/true' cannot be entered"),
        ({"capture_output": True, "stdout": subprocess.PIPE}, ValueError, "cannot be used with capture_output"),
        ({"input": b"", "stdin": subprocess.PIPE}, ValueError, "stdin and input cannot both be used"),
        ({"input": "text"}, TypeError, "text=True is needed"),
        ({"timeout": -1}, ValueError, "cannot be negative|not negative"),
        ({"output_limit": "much"}, ValueError, "'much' is not a size"),
        ({"on_output_limit": "drop", "capture_output": True}, ValueError, "'drop' is not something to do with too much output"),
        ({"args": ["/no/such/program"]}, shoal.NotFoundError, "/no/such/program: not found"),
        ({"args": ["/etc/passwd"]}, shoal.AccessDeniedError, "not executable"),
        ({"args": ["/usr/bin/true", "a\0b"]}, ValueError, "argv.1. holds a zero byte"),
        ({"args": ["/usr/bin/true", "a\0b"], "sandbox": False}, ValueError, "argv.1. holds a zero byte"),
        ({"args": ["/usr/bin/true", "a\ud800"]}, shoal.InvalidArgsError, "argv.1. has '.ud800' in it"),
        ({"args": ["/usr/bin/true", "a\ud800"], "sandbox": False}, shoal.InvalidArgsError, "argv.1. has '.ud800' in it"),
        ({"args": ["/usr/bin/a\ud800"]}, shoal.InvalidArgsError, "the program has '.ud800' in it"),
        ({"args": ["a\ud800"], "sandbox": False}, shoal.InvalidArgsError, "the program has '.ud800' in it"),
        ({"args": ["/usr/bin/tr\0ue"]}, shoal.InvalidArgsError, "the program's name holds a zero byte"),
        ({"sandbox": False, "cwd": "/\ud800"}, shoal.InvalidArgsError, "cwd has '.ud800' in it"),
        ({"sandbox": False, "cwd": "/a\0b"}, ValueError, "cwd .* holds a zero byte"),
        ({"sandbox": False, "env": {"A": "\ud800"}}, shoal.InvalidArgsError, "A.* has '.ud800' in it"),
        ({"stdout": 987}, shoal.BadHandleError, "stdout: descriptor 987 is not open"),
        ({"sandbox": Sandbox(read=["/no/such/place"])}, ValueError, "/no/such/place"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(in_loop, how, error, text, world):
    async def main():
        with pytest.raises(error, match=text):
            await aio.run(**{"args": ["/usr/bin/true"]} | how)

    in_loop(main)
    world.assert_unchanged()


def test_outside_of_a_loop_nothing_is_started(world):
    with pytest.raises(RuntimeError, match="no event loop"):
        aio.run(["/usr/bin/true"]).send(None)
    world.assert_unchanged()


def test_without_anyio_the_error_names_what_to_install():
    script = "import sys; sys.modules['anyio'] = None\ntry:\n    import shoal.aio\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "shoal.aio needs anyio 4.10 or later, which comes with an extra: pip install 'shoal[aio]'\n"


def test_it_is_not_loaded_with_shoal():
    script = "import sys, shoal; shoal.run; print('anyio' in sys.modules, 'asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False False\n"
