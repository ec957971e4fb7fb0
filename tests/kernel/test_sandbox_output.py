"""Pump: real programs, real pipes. What is kept and counted, when a run ends, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig.features import needs
from rig.workload import is_open
from rig.world import World

from shoal.handles.deadline import Deadline
from shoal.sandbox.errors import RequestError
from shoal.sandbox.output import Captured, Policy, Pump, Why
from shoal.status import AccessDeniedError, BadHandleError, NotDirError, NotFoundError

PATIENCE_S = 60.0
"""Only a broken run ever waits this long."""

MIB = 1 << 20
BOTH = "import os, sys\nfor _ in range(64):\n    os.write(1, b'o' * 65536); os.write(2, b'e' * 65536)\n"


@contextlib.contextmanager
def running(pump: Pump, *command: str) -> Iterator[tuple[int, Callable[[], None]]]:
    """A program on the pump's pipes: its pidfd, and what ends everything it has started."""
    ends: dict[int, int] = {number: pump.ends.get(number, subprocess.DEVNULL) for number in range(3)}
    process = subprocess.Popen(command, stdin=ends[0], stdout=ends[1], stderr=ends[2], start_new_session=True)
    pidfd = os.pidfd_open(process.pid)

    def end_all() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    try:
        yield pidfd, end_all
    finally:
        end_all()
        process.wait()
        os.close(pidfd)


def capture(*command: str, **how: Any) -> tuple[Why, Mapping[str, Captured]]:
    """A whole run, as shoal.run() does it with linger="kill"."""
    how = {"stdout": True, "stderr": True} | how
    with Pump(**how) as pump, running(pump, *command) as (pidfd, end_all):
        why = pump.run(pidfd, Deadline(PATIENCE_S))
        end_all()
        return why, pump.finish()


@pytest.fixture
def make_fifo(tmp_path: Path) -> Callable[[], Path]:
    """Makes places where a shell script and a test wait for each other: opening one waits for the other side."""
    names = itertools.count()

    def make() -> Path:
        path = tmp_path / f"fifo-{next(names)}"
        os.mkfifo(path)
        return path

    return make


def python(*command: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-E", "-c", *command)


def facts(captured: Captured) -> tuple[int, int]:
    assert len(captured.data) == captured.facts.kept_bytes
    return captured.facts.total_bytes, captured.facts.kept_bytes


# --- what is captured -------------------------------------------------------------------------------


def test_both_streams_are_captured_byte_for_byte(world: World) -> None:
    why, captured = capture(*python("import os; os.write(1, b'a\\0\\xff\\r\\n' * 3); os.write(2, b'no line end')"))
    assert why is Why.ENDED
    assert captured["stdout"].data == b"a\0\xff\r\n" * 3
    assert captured["stderr"].data == b"no line end"
    assert not captured["stdout"].facts.truncated
    assert captured["stdout"].facts.complete
    world.assert_unchanged()


def test_a_stream_that_is_not_captured_is_not_there() -> None:
    _, captured = capture("sh", "-c", "echo out; echo err >&2", stderr=False)
    assert {name: stream.data for name, stream in captured.items()} == {"stdout": b"out\n"}


def test_a_program_that_says_nothing_has_said_nothing() -> None:
    _, captured = capture("true")
    assert captured["stdout"].data == b""
    assert captured["stdout"].facts.complete


def test_both_streams_at_full_speed_deadlock_nobody() -> None:
    _, captured = capture(*python(BOTH))
    assert captured["stdout"].data == b"o" * (4 * MIB)
    assert captured["stderr"].data == b"e" * (4 * MIB)


def test_one_line_of_many_mebibytes_is_one_piece() -> None:
    _, captured = capture("head", "-c", str(20 * MIB), "/dev/zero")
    assert captured["stdout"].data == bytes(20 * MIB)


@pytest.mark.parametrize("limit", [0, 1, 4096, 65536, 65537, 3 * MIB])
@pytest.mark.parametrize("policy", ["drain", "kill", "spill"])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_limit_keeps_its_bytes_and_not_one_more(limit: int, policy: Policy, beyond: int, tmp_path: Path) -> None:
    size = max(0, limit + beyond)
    why, captured = capture("head", "-c", str(size), "/dev/zero", limit_bytes=limit, policy=policy, spill_directory=tmp_path)
    stream = captured["stdout"]
    assert facts(stream) == (size, min(size, limit))
    assert stream.facts.truncated == (size > limit)
    assert why is (Why.LIMIT if policy == "kill" and size > limit else Why.ENDED)
    spilled = [path.stat().st_size for path in tmp_path.iterdir()]
    assert spilled == ([size] if policy == "spill" and size > limit else [])
    assert stream.facts.complete == (size <= limit or policy == "spill")


def test_each_stream_has_a_limit_of_its_own() -> None:
    _, captured = capture("sh", "-c", "head -c 1000 /dev/zero; head -c 10 /dev/zero >&2", limit_bytes=100)
    assert facts(captured["stdout"]) == (1000, 100)
    assert facts(captured["stderr"]) == (10, 10)


@settings(max_examples=150)
@given(
    pieces=st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=3000), st.booleans()), max_size=15),
    limit=st.none() | st.integers(0, 6000),
    policy=st.sampled_from(["drain", "kill", "spill"]),
    spill_limit=st.none() | st.integers(0, 8000),
)
def test_whatever_is_written_however_it_is_cut_the_counts_are_true(
    pieces: list[tuple[str, bytes, bool]], limit: int | None, policy: Policy, spill_limit: int | None, tmp_path: Path
) -> None:
    written = {"stdout": b"", "stderr": b""}
    with contextlib.ExitStack() as stack:
        pump = stack.enter_context(
            Pump(stdout=True, stderr=True, limit_bytes=limit, policy=policy, spill_directory=tmp_path, spill_limit_bytes=spill_limit)
        )
        ends = {"stdout": os.dup(pump.ends[1]), "stderr": os.dup(pump.ends[2])}
        for fd in ends.values():
            stack.callback(os.close, fd)
        reader, writer = os.pipe()  # never readable, until the end
        stack.callback(os.close, reader)
        for name, piece, now in pieces:
            os.write(ends[name], piece)
            written[name] += piece
            if now:
                over = limit is not None and any(len(data) > limit for data in written.values())
                assert pump.run(reader, Deadline(0)) is (Why.LIMIT if policy == "kill" and over else Why.DEADLINE)
        os.close(writer)
        over = limit is not None and any(len(data) > limit for data in written.values())
        assert pump.run(reader, Deadline(PATIENCE_S)) is (Why.LIMIT if policy == "kill" and over else Why.ENDED)
        captured = pump.finish()
    for name, data in written.items():
        found = captured[name]
        assert found.data == data[:limit]
        assert facts(found) == (len(data), len(data[:limit]))
        if policy == "spill" and found.facts.truncated:
            assert found.facts.spill_path is not None
            spilled = Path(found.facts.spill_path).read_bytes()
            assert spilled == data[:spill_limit]
            assert found.facts.spilled_bytes == len(spilled)
            assert (found.facts.spill_error is None) == (spilled == data) == found.facts.complete
        else:
            assert found.facts.spill_path is None
    named = [stream.facts.spill_path for stream in captured.values() if stream.facts.spill_path]
    assert sorted(map(str, tmp_path.iterdir())) == sorted(named)
    for path in named:
        os.unlink(path)


@settings(max_examples=25)
@given(sizes=st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(1, 300_000)), max_size=12), limit=st.integers(0, MIB))
def test_whatever_sizes_a_program_writes_in_the_counts_are_true(sizes: list[tuple[int, int]], limit: int) -> None:
    script = (
        "import sys\nfor word in sys.argv[1:]:\n    fd, size, fill = map(int, word.split(':'))\n"
        "    open(fd, 'wb', 0, closefd=False).write(bytes([fill]) * size)\n"
    )
    # A raw write to a blocking pipe takes everything at once.
    words = [f"{fd}:{size}:{index + 1}" for index, (fd, size) in enumerate(sizes)]
    _, captured = capture(*python(script), *words, limit_bytes=limit)
    for number, name in ((1, "stdout"), (2, "stderr")):
        data = b"".join(bytes([index + 1]) * size for index, (fd, size) in enumerate(sizes) if fd == number)
        assert captured[name].data == data[:limit]
        assert captured[name].facts.total_bytes == len(data)


# --- what it costs ----------------------------------------------------------------------------------

_MEASURE = """
import subprocess
from shoal.handles.deadline import Deadline
from shoal.sandbox.output import Pump
command, how = args
def most_kib():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
def run(command, **how):
    with Pump(stdout=True, **how) as pump:
        process = subprocess.Popen(command, stdout=pump.ends[1])
        pidfd = os.pidfd_open(process.pid)
        pump.run(pidfd, Deadline(110))
        process.wait()
        os.close(pidfd)
        return pump.finish()['stdout'].facts
run(['true'])
before = most_kib()
found = run(command, **how)
answer([found.total_bytes, found.kept_bytes, most_kib() - before])
"""


def test_two_gibibytes_cost_no_more_than_what_is_kept(run_python: Callable[..., Any]) -> None:
    total, kept, grown_kib = run_python(_MEASURE, ["head", "-c", str(2 << 30), "/dev/zero"], {"limit_bytes": 2 * MIB})
    assert (total, kept) == (2 << 30, 2 * MIB)
    assert grown_kib < 8 << 10


def test_what_is_spilled_costs_no_memory(run_python: Callable[..., Any], tmp_path: Path) -> None:
    how = {"limit_bytes": MIB, "policy": "spill", "spill_directory": str(tmp_path)}
    total, kept, grown_kib = run_python(_MEASURE, ["head", "-c", str(256 * MIB), "/dev/zero"], how)
    assert (total, kept) == (256 * MIB, MIB)
    assert grown_kib < 6 << 10
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 256 * MIB
    path.unlink()


def test_output_that_comes_in_drops_costs_bytes_not_objects(run_python: Callable[..., Any]) -> None:
    total, kept, grown_kib = run_python(_MEASURE, ["dd", "if=/dev/zero", "bs=2", f"count={MIB // 2}", "status=none"], {})
    assert (total, kept) == (MIB, MIB)
    assert grown_kib < 6 << 10


def test_a_pipe_grows_once_much_has_come_through_it() -> None:
    for size, factor in ((MIB // 2, 1), (2 * MIB, 4)):
        with Pump(stdout=True, limit_bytes=0) as pump:
            end = os.dup(pump.ends[1])
            room = fcntl.fcntl(end, fcntl.F_GETPIPE_SZ)
            with running(pump, "head", "-c", str(size), "/dev/zero") as (pidfd, _):
                assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.ENDED
            assert fcntl.fcntl(end, fcntl.F_GETPIPE_SZ) == factor * room
            os.close(end)


# --- when a run ends --------------------------------------------------------------------------------


def test_a_grandchild_that_keeps_the_pipe_does_not_keep_the_run() -> None:
    started = time.monotonic()
    why, captured = capture("sh", "-c", "sleep 1000 & echo done")
    assert why is Why.ENDED
    assert captured["stdout"].data == b"done\n"
    assert time.monotonic() - started < PATIENCE_S / 2


def test_a_grandchild_that_never_stops_writing_does_not_keep_the_run() -> None:
    why, captured = capture("sh", "-c", "yes & yes >&2 & exit 0", limit_bytes=10)
    assert why is Why.ENDED
    assert captured["stdout"].facts.kept_bytes <= 10


def test_after_the_end_no_more_is_read_than_was_there_at_the_end() -> None:
    for _ in range(30):
        with Pump(stdout=True, limit_bytes=10) as pump:
            room = fcntl.fcntl(pump.ends[1], fcntl.F_GETPIPE_SZ)
            with running(pump, "sh", "-c", "for _ in 1 2 3 4; do cat /dev/zero & done") as (pidfd, end_all):
                assert Deadline(PATIENCE_S).wait_ready(pidfd, select.POLLIN)
                assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.ENDED
                end_all()
                # One read because the pipe was ready, one of what it had then, and one for finish().
                assert pump.finish()["stdout"].facts.total_bytes <= 3 * room


def test_all_that_the_program_wrote_is_there_even_if_it_ended_before_we_looked() -> None:
    with Pump(stdout=True) as pump, running(pump, "head", "-c", "60000", "/dev/zero") as (pidfd, _):
        assert Deadline(PATIENCE_S).wait_ready(pidfd, select.POLLIN)
        assert pump.run(pidfd, Deadline(0)) is Why.ENDED
        assert facts(pump.finish()["stdout"]) == (60000, 60000)


def test_after_the_program_has_ended_one_can_wait_for_the_pipes(make_fifo: Callable[[], Path], world: World) -> None:
    gate = make_fifo()
    with Pump(stdout=True) as pump, running(pump, "sh", "-c", f"(read line <{gate}; echo late) & echo early") as (pidfd, _):
        assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.ENDED
        busy = time.process_time()
        assert pump.run(None, Deadline(0.3)) is Why.DEADLINE
        assert time.process_time() - busy < 0.1, "it was spinning"
        gate.write_text("go\n")
        assert pump.run(None, Deadline(PATIENCE_S)) is Why.ENDED
        assert pump.finish()["stdout"].data == b"early\nlate\n"
    world.assert_unchanged()


def test_finish_has_what_was_written_between_the_end_of_the_program_and_the_end_of_the_rest(make_fifo: Callable[[], Path]) -> None:
    gate, done = make_fifo(), make_fifo()
    script = f"(read line <{gate}; echo late; echo done >{done}; exec sleep 1000) & echo early"
    with Pump(stdout=True) as pump, running(pump, "sh", "-c", script) as (pidfd, end_all):
        assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.ENDED
        gate.write_text("go\n")
        assert done.read_text() == "done\n"
        end_all()
        captured = pump.finish()
        assert captured["stdout"].data == b"early\nlate\n"
        assert pump.finish() is captured


def test_a_program_that_closes_its_output_runs_on(make_fifo: Callable[[], Path]) -> None:
    gate = make_fifo()
    script = f"echo out; exec >&- 2>&-; read line <{gate}"
    with Pump(stdout=True, stderr=True) as pump, running(pump, "sh", "-c", script) as (pidfd, _):
        assert pump.run(None, Deadline(PATIENCE_S)) is Why.ENDED  # the pipes are closed
        busy = time.process_time()
        assert pump.run(pidfd, Deadline(0.3)) is Why.DEADLINE
        assert time.process_time() - busy < 0.1, "it was spinning"
        gate.write_text("go\n")
        assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.ENDED
        assert pump.finish()["stdout"].data == b"out\n"


def test_a_deadline_gives_what_came_before_it(make_fifo: Callable[[], Path]) -> None:
    done = make_fifo()
    script = f"printf partial; echo done >{done}; exec sleep 1000"
    with Pump(stdout=True) as pump, running(pump, "sh", "-c", script) as (pidfd, end_all):
        assert done.read_text() == "done\n"
        assert pump.run(pidfd, Deadline(0)) is Why.DEADLINE
        end_all()
        assert pump.finish()["stdout"].data == b"partial"


def test_a_deadline_comes_although_there_is_always_something_to_read() -> None:
    with Pump(stdout=True, limit_bytes=10) as pump, running(pump, "yes") as (pidfd, _):
        assert pump.run(pidfd, Deadline(0.2)) is Why.DEADLINE
        assert pump.run(pidfd, Deadline(0.2)) is Why.DEADLINE
        found = pump.finish()["stdout"].facts
        assert found.kept_bytes == 10
        assert found.total_bytes > MIB


def test_kill_stops_a_program_that_would_write_for_ever() -> None:
    why, captured = capture("yes", limit_bytes=1000, policy="kill")
    assert why is Why.LIMIT
    assert captured["stdout"].data == b"y\n" * 500


def test_too_much_is_too_much_even_if_the_program_ended_first() -> None:
    with Pump(stdout=True, limit_bytes=3, policy="kill") as pump, running(pump, "echo", "four") as (pidfd, _):
        assert Deadline(PATIENCE_S).wait_ready(pidfd, select.POLLIN)
        assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.LIMIT
        assert pump.is_over


def test_with_nothing_to_capture_there_is_nothing_to_wait_for_but_the_program() -> None:
    with Pump() as pump, running(pump, "true") as (pidfd, _):
        assert not pump.ends
        assert pump.run(None, Deadline(PATIENCE_S)) is Why.ENDED
        assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.ENDED
        assert pump.finish() == {}


# --- stdin ------------------------------------------------------------------------------------------


def test_a_hundred_megabytes_go_in_and_come_out(world: World) -> None:
    block = os.urandom(MIB)
    _, captured = capture("cat", data=block * 100, limit_bytes=MIB + 5)
    assert captured["stdout"].data == block + block[:5]
    assert captured["stdout"].facts.total_bytes == 100 * MIB
    del captured
    world.assert_unchanged()


def test_a_program_that_does_not_read_a_hundred_megabytes_is_not_waited_for(world: World) -> None:
    why, captured = capture("true", data=bytes(100 * MIB))
    assert why is Why.ENDED
    assert captured["stdout"].data == b""
    world.assert_unchanged()


def test_a_program_that_reads_a_little_is_fine() -> None:
    _, captured = capture("head", "-c", "5", data=b"hello" + bytes(10 * MIB))
    assert captured["stdout"].data == b"hello"


def test_a_program_that_closes_its_stdin_and_runs_on_is_waited_for_without_spinning() -> None:
    with Pump(data=bytes(10 * MIB), stdout=True) as pump, running(pump, "sh", "-c", "exec <&-; sleep 1000") as (pidfd, _):
        busy = time.process_time()
        assert pump.run(pidfd, Deadline(0.3)) is Why.DEADLINE
        assert time.process_time() - busy < 0.1, "it was spinning"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 262145])
def test_every_length_of_input_arrives_with_its_end(size: int) -> None:
    data = os.urandom(size)
    for how in (data, bytearray(data), memoryview(data)):
        _, captured = capture("cat", data=how)
        assert captured["stdout"].data == data


def test_a_bytearray_can_be_resized_again_afterwards() -> None:
    data = bytearray(MIB)
    with Pump(data=data) as pump, running(pump, "true") as (pidfd, _):
        assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.ENDED
        with pytest.raises(BufferError):
            data.clear()
        pump.finish()
        data.clear()


def test_text_is_no_input(world: World) -> None:
    with pytest.raises(TypeError):
        Pump(data="text")  # type: ignore[arg-type]
    world.assert_unchanged()


def test_a_host_that_restored_sigpipe_survives_a_program_that_does_not_read(run_python: Callable[..., Any]) -> None:
    script = (
        "import signal, subprocess\nfrom shoal.handles.deadline import Deadline\nfrom shoal.sandbox.output import Pump\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "for command in (['true'], ['sh', '-c', 'exec <&-; sleep 0.1']) * 5:\n"
        "    with Pump(data=bytes(1 << 20)) as pump:\n"
        "        process = subprocess.Popen(command, stdin=pump.ends[0])\n"
        "        pidfd = os.pidfd_open(process.pid)\n"
        "        pump.run(pidfd, Deadline(60))\n"
        "        process.wait(); os.close(pidfd)\n"
        "answer('alive')\n"
    )
    assert run_python(script) == "alive"


def test_a_program_may_ask_whether_its_stdin_is_a_pipe() -> None:
    _, captured = capture(*python("import os, stat; print(stat.S_ISFIFO(os.fstat(0).st_mode))"), data=b"x")
    assert captured["stdout"].data == b"True\n"


@pytest.mark.root
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_program_of_another_user_can_open_its_streams_by_name() -> None:
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    script = "cat /proc/self/fd/0 >/proc/self/fd/1 && echo err >/proc/self/fd/2"
    _, captured = capture(*user, "sh", "-c", script, data=b"in")
    assert (captured["stdout"].data, captured["stderr"].data) == (b"in", b"err\n")


# --- spilling ---------------------------------------------------------------------------------------


def test_a_spill_file_has_the_stream_from_its_first_byte_for_its_owner_only(tmp_path: Path) -> None:
    _, captured = capture("seq", "1000000", limit_bytes=100, policy="spill", spill_directory=tmp_path)
    stream = captured["stdout"]
    assert stream.facts.spill_path is not None
    path = Path(stream.facts.spill_path)
    expected = "".join(f"{number}\n" for number in range(1, 1000001)).encode()
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(expected).digest()
    assert stream.data == expected[:100]
    assert (stream.facts.spilled_bytes, stream.facts.spill_error) == (len(expected), None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.parent == tmp_path


def test_without_a_directory_files_go_where_temporary_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    _, captured = capture("echo", "hello", limit_bytes=1, policy="spill")
    assert os.path.dirname(captured["stdout"].facts.spill_path or "") == str(tmp_path)


def test_a_run_that_is_given_up_leaves_no_file(tmp_path: Path, world: World) -> None:
    pump = Pump(stdout=True, limit_bytes=1, policy="spill", spill_directory=tmp_path)
    with contextlib.suppress(KeyboardInterrupt), pump, running(pump, "yes") as (pidfd, _):
        assert pump.run(pidfd, Deadline(0.05)) is Why.DEADLINE
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    world.assert_unchanged()


def test_a_spill_directory_that_is_not_there_is_told_before_anything_is_opened(tmp_path: Path, world: World) -> None:
    with pytest.raises(NotFoundError, match="'/nowhere/at/all'"):
        Pump(data=b"x", stdout=True, policy="spill", spill_directory="/nowhere/at/all")
    (tmp_path / "file").touch()
    with pytest.raises(NotDirError, match="file"):
        Pump(stdout=True, policy="spill", spill_directory=tmp_path / "file")
    world.assert_unchanged()


@needs("an ordinary user")
def test_a_spill_directory_that_may_not_be_written_to_is_told_before_anything_is_opened(world: World) -> None:
    with pytest.raises(AccessDeniedError, match="'/usr'"):
        Pump(stdout=True, policy="spill", spill_directory="/usr")
    world.assert_unchanged()


def test_a_spill_directory_that_goes_away_meanwhile_is_a_fact_not_an_exception(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with Pump(stdout=True, limit_bytes=1, policy="spill", spill_directory=folder) as pump:
        folder.rmdir()
        with running(pump, "echo", "hello") as (pidfd, _):
            assert pump.run(pidfd, Deadline(PATIENCE_S)) is Why.ENDED
            stream = pump.finish()["stdout"]
    assert (stream.data, stream.facts.total_bytes) == (b"h", 6)
    assert (stream.facts.spill_path, stream.facts.spill_error) == (None, "No such file or directory")
    assert not stream.facts.complete


@needs("unshare and setpriv (Debian package util-linux)")
@needs("user namespaces for ordinary users")
def test_a_full_disk_turns_spilling_into_draining(run_python: Callable[..., Any], tmp_path: Path) -> None:
    script = (
        "import subprocess\nfrom shoal.handles.deadline import Deadline\nfrom shoal.sandbox.output import Pump\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1M', 'none', args[0]], check=True)\n"
        "with Pump(stdout=True, limit_bytes=10, policy='spill', spill_directory=args[0]) as pump:\n"
        "    process = subprocess.Popen(['head', '-c', '5000000', '/dev/zero'], stdout=pump.ends[1])\n"
        "    pidfd = os.pidfd_open(process.pid)\n"
        "    pump.run(pidfd, Deadline(60))\n"
        "    status = process.wait(); os.close(pidfd)\n"
        "    facts = pump.finish()['stdout'].facts\n"
        "answer([status, facts.total_bytes, facts.kept_bytes, facts.spilled_bytes, os.stat(facts.spill_path).st_size, facts.spill_error])\n"
    )
    status, total, kept, spilled, length, error = run_python(
        script, str(tmp_path), prefix=("unshare", "--user", "--map-root-user", "--mount")
    )
    assert (status, total, kept) == (0, 5000000, 10)
    assert 0 < spilled == length <= MIB
    assert error == "No space left on device"


# --- what can go wrong ------------------------------------------------------------------------------


def test_a_policy_that_there_is_not_and_a_negative_limit_are_refused(world: World) -> None:
    with pytest.raises(RequestError, match="'keep' is not something to do"):
        Pump(policy="keep")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="negative"):
        Pump(limit_bytes=-1)
    with pytest.raises(RequestError, match="negative"):
        Pump(spill_limit_bytes=-1)
    world.assert_unchanged()


def test_signals_in_the_middle_lose_no_byte() -> None:
    seen = []
    previous = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        _, captured = capture("cat", data=bytes(32 * MIB), limit_bytes=10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert captured["stdout"].facts.total_bytes == 32 * MIB
    assert seen


@pytest.mark.parametrize("command", [("yes",), ("sleep", "1000")])
def test_an_interruption_leaves_no_descriptor_open(command: tuple[str, ...], tmp_path: Path, world: World) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            capture(*command, data=bytes(MIB), limit_bytes=10, policy="spill", spill_directory=tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not list(tmp_path.iterdir())
    world.assert_unchanged()


def test_a_pidfd_that_was_closed_is_an_error_not_a_loop(closed_fd: int, world: World) -> None:
    with Pump(stdout=True) as pump, pytest.raises(BadHandleError, match=f"descriptor {closed_fd} "):
        pump.run(closed_fd, Deadline(PATIENCE_S))
    world.assert_unchanged()


def test_a_pipe_that_somebody_else_closed_is_an_error_and_the_others_are_closed_all_the_same(world: World) -> None:
    before = {int(name) for name in os.listdir("/proc/self/fd") if is_open(int(name))}
    with Pump(data=bytes(MIB), stdout=True, stderr=True) as pump, running(pump, "sleep", "1000") as (pidfd, _):
        theirs = {*pump.ends.values(), pidfd}
        ours = sorted({int(name) for name in os.listdir("/proc/self/fd") if is_open(int(name))} - before - theirs)
        os.close(ours[-1])
        with pytest.raises(BadHandleError, match=f"descriptor {ours[-1]} "):
            pump.run(pidfd, Deadline(PATIENCE_S))
    world.assert_unchanged()


def test_without_descriptors_to_be_had_nothing_stays_open(run_python: Callable[..., Any]) -> None:
    script = (
        "import resource\nfrom shoal.sandbox.output import Pump\nfrom shoal import NoResourcesError\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "taken = []\n"
        "try:\n    while True: taken.append(os.dup(0))\n"
        "except OSError:\n    pass\n"
        "for _ in range(4): os.close(taken.pop())\n"  # one less than the three pipes take
        "before = sorted(os.listdir('/proc/self/fd'))\n"
        "try:\n    Pump(data=b'x', stdout=True, stderr=True)\n"
        "except NoResourcesError as error:\n    text = str(error)\n"
        "after = sorted(os.listdir('/proc/self/fd'))\n"
        "answer([text, before == after])\n"
    )
    text, same = run_python(script)
    assert "cannot make a pipe" in text
    assert same


def test_closing_twice_is_fine_and_finishing_after_closing_gives_what_there_was(world: World) -> None:
    with Pump(stdout=True) as pump, running(pump, "echo", "hello") as (pidfd, _):
        pump.run(pidfd, Deadline(PATIENCE_S))
        pump.close()
        pump.close()
        assert pump.finish()["stdout"].data == b"hello\n"
    world.assert_unchanged()
