"""Endings: nothing outlives its run, however it tries, and nothing grows without end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attempts import AT_FDCWD, PATIENCE_S
from rig.cells import until
from rig.workload import Report

import shoal
from shoal import AccessDeniedError, NotSupportedError

SOON_S = 0.3
WALL = 0x40000000  # also what ends without a signal


class Line:
    """A pipe that everything which a program starts holds as its output: it is at its end when none of them lives."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()
        self._seen = b""

    def close_ours(self):
        os.close(self.write_end)
        self.write_end = -1

    def next(self):
        while b"\n" not in self._seen:
            assert select.select([self.read_end], [], [], PATIENCE_S)[0]
            data = os.read(self.read_end, 65536)
            assert data, f"it ended after {self._seen!r}"
            self._seen += data
        line, self._seen = self._seen.split(b"\n", 1)
        return Report(line).lines[0]

    @property
    def has_more(self):
        """Whether something was written that has not been read."""
        return bool(self._events() & select.POLLIN)

    @property
    def is_over(self):
        """Whether nobody is left who could write."""
        return bool(self._events() & select.POLLHUP)

    def _events(self):
        poll = select.poll()
        poll.register(self.read_end, select.POLLIN)
        return sum(events for _, events in poll.poll(0))

    def wait_over(self):
        deadline = time.monotonic() + PATIENCE_S
        while self.is_over is False:
            assert select.select([self.read_end], [], [], max(0.0, deadline - time.monotonic()))[0], "somebody still lives"
            if not self.is_over:
                self._seen += os.read(self.read_end, 65536)


@pytest.fixture
def line():
    made = Line()
    yield made
    os.close(made.read_end)
    if made.write_end >= 0:
        os.close(made.write_end)


def test_what_leaves_its_session_and_hears_no_signal_ends_with_its_program(outside, inside, line):
    """Two forks, two sessions, every signal ignored and blocked."""
    assert outside.run("linger", "exit", stdout=line.write_end).returncode == 0
    assert inside.run("linger", "exit", stdout=line.write_end).reason == "exited"
    line.close_ours()
    word, pid = line.next()
    assert (word, line.is_over) == ("lingering", False), "the attack was not shown to work"
    os.kill(int(pid), signal.SIGKILL)
    assert line.next()[0] == "lingering"
    line.wait_over()


def test_nothing_is_left_at_the_moment_a_run_is_over(inside, line):
    for how in ({}, {"wall_time": SOON_S}):
        alone = Line()
        with contextlib.closing(os.fdopen(alone.read_end, closefd=True)):
            verb = "stay" if how else "exit"
            result = inside.but(**how).run("linger", verb, stdout=alone.write_end)
            assert result.reason == ("wall_time" if how else "exited")
            alone.close_ours()
            assert alone.next()[0] == "lingering"
            assert alone.is_over


def ignored(pid):
    """The mask of the signals that a process ignores."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn:"))


@pytest.mark.parametrize("limit", ["wall_time", "timeout"])
def test_a_program_that_ignores_every_signal_ends_when_its_time_is_over(outside, inside, limit):
    with subprocess.Popen([outside.program, "linger", "stay"], stdout=subprocess.PIPE, process_group=0) as deaf:
        word, lingering = deaf.stdout.readline().split()
        assert word == b"lingering"
        until(lambda: ignored(deaf.pid) >> signal.SIGXCPU - 1 & 1, "it ignores what it is sent")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
            deaf.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            deaf.wait(SOON_S)
        os.kill(int(lingering), signal.SIGKILL)
        os.killpg(deaf.pid, signal.SIGKILL)
    began = time.monotonic()
    if limit == "wall_time":
        assert inside.but(wall_time=SOON_S).run("linger", "stay").reason == "wall_time"
    else:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            shoal.run([inside.program, "linger", "stay"], sandbox=inside.sandbox, timeout=SOON_S, capture_output=True)
        assert caught.value.output.startswith(b"lingering")
    assert time.monotonic() - began < PATIENCE_S / 4


def test_a_run_that_takes_too_long_ends_with_all_it_has_started(outside, inside, line):
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([outside.program, "linger", "stay"], stdout=line.write_end, timeout=SOON_S, check=False)
    line.close_ours()
    pid = int(line.next()[1])
    assert not line.is_over, "the attack was not shown to work"
    os.kill(pid, signal.SIGKILL)
    line.wait_over()
    result = inside.but(wall_time=SOON_S).run("linger", "stay")
    assert (result.reason, result.returncode, result.stdout[:9]) == ("wall_time", -signal.SIGKILL, b"lingering")


def test_a_child_that_holds_the_output_does_not_hold_the_caller(outside, inside):
    with subprocess.Popen([outside.program, "linger", "exit"], stdout=subprocess.PIPE) as process:
        assert process.wait(PATIENCE_S) == 0
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            process.communicate(timeout=SOON_S)
        os.kill(int(caught.value.output.split()[1]), signal.SIGKILL)
    result = inside.run("linger", "exit")
    assert (result.reason, result.returncode) == ("exited", 0)
    assert result.stdout.startswith(b"lingering ")


KILLED = """
from attempts import Ground
box, fd = args
Ground(workload, box).run("linger", "stay", stdout=fd)
"""


@pytest.mark.parametrize("confined", [False, True], ids=["outside", "inside"])
def test_what_a_killed_caller_has_started_ends_with_it(attacks, inside, line, confined):
    script = f"import sys; sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}\n"
    script += f"workload, args = {attacks!r}, ({inside.box if confined else None!r}, {line.write_end})\n" + KILLED
    with subprocess.Popen([sys.executable, "-c", script], pass_fds=[line.write_end], process_group=0) as caller:
        line.close_ours()
        pid = int(line.next()[1])
        caller.kill()
    if not confined:
        assert not line.is_over, "the attack was not shown to work"
        os.kill(pid, signal.SIGKILL)
        os.killpg(caller.pid, signal.SIGKILL)
    line.wait_over()


PARENT = """
import time
from attempts import Ground
from rig.cells import children

own = os.fork()  # one that has ended, whose status is ours alone
if own == 0:
    os._exit(7)
os.waitid(os.P_PID, own, os.WEXITED | os.WNOWAIT)
began, errnos = time.monotonic(), []
for linger in ("kill", "wait"):
    ground = Ground(workload, args[0] | {"linger": linger})
    for signal in (0, 17):
        for how in ("exit", "stay"):
            _, *found = ground.attack("brother", signal, how).lines[0]
            errnos.append(0 if found[0] == "ok" else int(found[0]))
took = time.monotonic() - began
deadline = time.monotonic() + 5
while children() != {own} and time.monotonic() < deadline:
    shoal.run([workload, "ids"], sandbox=ground.sandbox)  # each launch takes care of those that have ended
    shoal.cells.drain()
answer([errnos, took, len(children() - {own}), os.waitstatus_to_exitcode(os.waitpid(own, 0)[1])])
"""


@pytest.mark.parametrize("filtered", ["default", "off"])
@pytest.mark.cell
def test_a_program_leaves_its_caller_no_children(outside, inside, run_attacks, filtered):
    """The program is a child of its caller, so that a brother of the program is one, too. A cell does not end before all of them are
    reaped, which is done in its end, and those of the caller's own making are left alone."""
    _, word, brother = outside.attack("brother", 0, "exit").lines[0]
    assert (word, os.waitpid(int(brother), WALL)) == ("ok", (int(brother), 0))
    errnos, took, left, status = run_attacks("import shoal\n" + PARENT, {**inside.box, "seccomp": filtered})
    assert errnos == [errno.EPERM if filtered == "default" else 0] * 8
    assert (left, status) == (0, 7)
    assert took < PATIENCE_S / 4


# --- bombs ------

MANY = 150


def test_processes_that_make_processes_end_with_their_time_and_leave_nothing(outside, inside, line):
    with subprocess.Popen([outside.program, "bomb", str(MANY)], stdout=line.write_end, process_group=0) as bomb:
        line.close_ours()
        assert line.next() == ["bomb", str(MANY)]
        bomb.kill()
        bomb.wait()
        assert not line.is_over, "the attack was not shown to work"
        os.killpg(bomb.pid, signal.SIGKILL)
        line.wait_over()
    wall_s, is_shown = 0.5, False
    while not is_shown:
        own = Line()
        result = inside.but(wall_time=wall_s).run("bomb", MANY, stdout=own.write_end)
        own.close_ours()
        with os.fdopen(own.read_end):
            assert (result.reason, result.returncode) == ("wall_time", -signal.SIGKILL)
            is_shown = own.has_more
            assert not is_shown or own.next() == ["bomb", str(MANY)]
            assert own.is_over
        wall_s *= 2  # too short for so many, on a slow machine
        assert wall_s < PATIENCE_S


def test_who_is_another_process_at_every_look_ends_with_its_run(outside, inside, line):
    """What kills one process after the other never meets it; what kills all at once has to let no fork through."""
    theirs, ours = os.pipe()
    try:
        with subprocess.Popen([outside.program, "chain", "4"], stdin=theirs, stdout=line.write_end, process_group=0) as chain:
            line.close_ours()
            assert line.next() == ["chain"]
            os.killpg(chain.pid, signal.SIGKILL)
        assert not line.is_over, "the attack was not shown to work"
    finally:
        os.close(ours)
        os.close(theirs)
    line.wait_over()
    theirs, ours = os.pipe()  # which ends those that a failed test leaves
    try:
        wall_s, ended = 0.1, 0
        while ended < 5:
            own = Line()
            with os.fdopen(own.read_end):
                result = inside.but(wall_time=wall_s).run("chain", 4, stdin=theirs, stdout=own.write_end)
                own.close_ours()
                assert result.reason == "wall_time"
                if own.has_more:
                    assert own.next() == ["chain"]
                    ended += 1
                else:  # too short to begin, on a slow machine
                    wall_s *= 2
                    assert wall_s < PATIENCE_S
                assert own.is_over
    finally:
        os.close(ours)
        os.close(theirs)


def refusal_or_result(ground, *words, **how):
    """The result of a run with a limit, or the refusal to start it where the kernel cannot enforce that."""
    try:
        return ground.but(**how).run(*words)
    except (NotSupportedError, AccessDeniedError) as error:
        return error


def test_processes_are_limited_in_number_or_not_started(inside):
    found = refusal_or_result(inside, "bomb", MANY, pids=20, wall_time=1.0)
    if isinstance(found, OSError):
        assert "pids: " in str(found)
        assert 'limits="best-effort"' in str(found)
        assert inside.but(pids=20, limits="best-effort").enforced["pids"] is False
    else:
        assert found.enforced["pids"] is True
        assert f"fork {errno.EAGAIN}".encode() in found.stdout
        assert b"bomb" not in found.stdout


def test_memory_is_limited_or_the_program_is_not_started(outside, inside):
    assert outside.attack("memory", 256 << 20).one("memory") == [str(256 << 20)]
    found = refusal_or_result(inside, "memory", 256 << 20, memory="32M")
    if isinstance(found, OSError):
        assert "memory: " in str(found)
        assert 'limits="best-effort"' in str(found)
        assert inside.but(memory="32M", limits="best-effort").enforced["memory"] is False
    else:
        assert (found.reason, found.enforced["memory"], found.stdout) == ("oom", True, b"")


def size_of(ground, path):
    """Bytes that fit into a file system, and files, by statfs."""
    data = ground.calls(("statfs", path, bytes(120)))[0].data
    _, block, blocks, _, _, files, _ = struct.unpack_from("=qqQQQQQ", data)
    return block * blocks, files


@pytest.mark.cell
def test_what_a_program_may_write_into_memory_has_an_end(outside, inside, folder):
    assert outside.attack("fill", folder / "file", 64 << 20).one("fill") == [str(64 << 20), "0"]
    (folder / "file").unlink()
    assert inside.but(tmp="8M").attack("fill", "/tmp/file", 64 << 20).one("fill") == [str(8 << 20), str(errno.ENOSPC)]
    assert inside.attack("fill", "/dev/shm/file", 256 << 20).one("fill") == [str(64 << 20), str(errno.ENOSPC)]
    assert size_of(inside, "/tmp")[0] == 1 << 30
    for place in ("/", "/dev", "/proc"):
        assert inside.errno("openat", AT_FDCWD, f"{place}/new", os.O_WRONLY | os.O_CREAT, 0o600) in (
            errno.EROFS,
            errno.EACCES,
            errno.ENOENT,
        )
    with_file = inside.but(file_size="1M").run("fill", "/tmp/file", 64 << 20)
    assert with_file.returncode == -signal.SIGXFSZ


@pytest.mark.cell
def test_what_a_program_may_keep_in_memory_as_empty_files_has_an_end(inside):
    """Each takes about a KiB of the kernel's memory, and none of the file system's."""
    made, error = map(int, inside.but(tmp="1M").attack("many-files", "/tmp", 20_000).one("made"))
    assert (error, made < 5_000) == (errno.ENOSPC, True)
