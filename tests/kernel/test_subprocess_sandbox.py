"""shoal.subprocess with `sandbox=`: a program gets what its Sandbox says; what has no place there is refused."""

import fcntl
import gc
import os
import signal
import subprocess as standard
import threading
import time

import pytest
from rig.features import needs

import shoal
from shoal import Sandbox, cells, subprocess
from shoal.subprocess import watch

BOX = Sandbox(read=["/usr"])
pytestmark = pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell")
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture(scope="module", autouse=True)
def what_is_opened_once_and_kept():
    for _ in range(2):
        shoal.run(["/usr/bin/true"])
    shoal.run(["/usr/bin/true"], sandbox=BOX.replace(cpu_time=60, limits="best-effort"))
    cells.drain()


def end_of_watch():
    """Wait until the thread that an earlier test has started has ended."""
    for thread in threading.enumerate():
        if thread.name == "shoal-subprocess":
            thread.join()


@pytest.fixture(autouse=True)
def nothing_is_watched():
    end_of_watch()


def sh(script, box=BOX, **more):
    return subprocess.run(["sh", "-c", script], sandbox=box, **{"capture_output": True, "text": True} | more)


def test_a_result_says_what_run_of_shoal_says(world):
    done = sh("cat; echo out; echo err >&2; exit 3", input="in\n")
    assert isinstance(done, shoal.Result)
    assert (done.returncode, done.stdout, done.stderr, done.reason) == (3, "in\nout\n", "err\n", "exited")
    assert done.args == ["sh", "-c", "cat; echo out; echo err >&2; exit 3"]
    assert done.usage.wall_s > 0
    assert dict(done.enforced) == dict(shoal.run(["true"], sandbox=BOX).enforced)
    world.assert_unchanged()


def test_every_call_takes_a_sandbox():
    hidden = ["sh", "-c", "test ! -e /etc/passwd && test ! -e /root"]
    assert subprocess.run(hidden, sandbox=BOX).returncode == 0
    assert subprocess.call(hidden, sandbox=BOX) == 0
    assert subprocess.check_call(hidden, sandbox=BOX) == 0
    assert subprocess.check_output(["echo", "so"], sandbox=BOX) == b"so\n"
    with subprocess.Popen(hidden, sandbox=BOX) as process:
        assert process.wait() == 0
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.check_call(["false"], sandbox=BOX)


def test_a_shell_command_text_and_pipes_work_as_outside():
    assert subprocess.check_output("read a; echo $a $a", shell=True, sandbox=BOX, input="x\n", text=True) == "x x\n"
    with subprocess.Popen(["cat"], sandbox=BOX, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for word in ("one\n", "two\n"):
            process.stdin.write(word)
            assert process.stdout.readline() == word
    assert process.returncode == 0
    assert sh("echo out; echo err >&2", capture_output=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout == "out\nerr\n"
    assert sh("cat", stdin=subprocess.DEVNULL).stdout == ""


def test_the_given_environment_is_all_that_it_has():
    box = BOX.replace(env={"OF_THE_BOX": "1"})
    assert "OF_THE_BOX=1" in sh("env", box).stdout
    path = os.environ["PATH"]
    for _ in range(4):  # also by what was worked out before, and in a cell made ahead
        given = {"PATH": path, b"MINE": b"\xff"} if _ % 2 else {"PATH": path, "MINE": str(_)}
        found = subprocess.check_output(["env", "-0"], sandbox=box, env=given).split(b"\0")
        assert {item for item in found if item} == {os.fsencode(k) + b"=" + os.fsencode(v) for k, v in given.items()}
        assert "OF_THE_BOX=1" in sh("env", box).stdout


def test_the_given_environment_tells_where_programs_are(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "mine").symlink_to("/usr/bin/true")
    assert subprocess.call(["mine"], sandbox=BOX, env={"PATH": str(tmp_path)}) == 0
    with pytest.raises(FileNotFoundError) as error:
        subprocess.call(["true"], sandbox=BOX, env={"PATH": str(tmp_path)})
    assert error.value.filename == "true"


def test_a_working_directory_is_one_that_the_program_sees(tmp_path):
    assert sh("pwd", cwd="/usr/bin").stdout == "/usr/bin\n"
    assert sh("pwd", cwd="/tmp").stdout == "/tmp\n"
    with pytest.raises(FileNotFoundError) as error:
        sh("pwd", cwd=tmp_path)  # which is on the host, but not in the box
    assert error.value.filename == tmp_path
    assert sh("pwd", BOX.replace(read=["/usr", str(tmp_path)]), cwd=tmp_path).stdout == f"{tmp_path}\n"


def test_descriptors_go_in_by_pass_fds_and_by_no_other_way(pipe):
    low, high = (fcntl.fcntl(pipe.write, fcntl.F_DUPFD_CLOEXEC, lowest) for lowest in (500, 900))
    try:
        command = ["bash", "-c", f"echo handed over >&{high}; ls /proc/self/fd"]
        done = subprocess.run(command, sandbox=BOX, pass_fds=[high], capture_output=True, text=True)
        assert os.read(pipe.read, 100) == b"handed over\n"
        assert set(done.stdout.split()) - {"3"} == {"0", "1", "2", str(high)}  # ls reads the directory by 3
    finally:
        os.close(low)
        os.close(high)


def test_a_profile_goes_by_its_name():
    assert sh("test ! -e /etc/passwd", "untrusted").reason == "exited"
    with pytest.raises(ValueError, match="no-such-profile"):
        sh("true", "no-such-profile")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preexec_fn": print}, "preexec_fn"),
        ({"close_fds": False}, "pass_fds"),
        ({"user": 1000}, "Sandbox"),
        ({"group": 1000}, "Sandbox"),
        ({"extra_groups": []}, "extra_groups"),
        ({"umask": 0o77}, "022"),
        ({"restore_signals": False}, "restore_signals"),
        ({"process_group": 1}, "session"),
        ({"pass_fds": [2000]}, "1023"),
        ({"env": {"A": "\0"}}, "null byte"),
        ({"env": {"A=B": "1"}}, "variable name"),
        ({"startupinfo": 1}, "Windows"),
    ],
    ids=str,
)
def test_what_has_no_place_in_a_sandbox_is_refused(arguments, words, world):
    for how in ({}, PIPES):
        with pytest.raises(ValueError, match=words):
            subprocess.Popen(["true"], sandbox=BOX, **how, **arguments)
    world.assert_unchanged()


def test_what_is_so_in_a_sandbox_may_be_asked_for():
    assert sh("true", start_new_session=True, process_group=0, close_fds=True, restore_signals=True, pipesize=4096).returncode == 0


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["no-such-program"], FileNotFoundError),
        (["/no/such/program"], FileNotFoundError),
        (["/etc/passwd"], PermissionError),
        (["true", "a\0b"], ValueError),
        (["tr\0ue"], ValueError),
        (["true", 1], TypeError),
        ([], IndexError),
    ],
    ids=str,
)
def test_a_command_that_cannot_be_is_told_as_the_standard_module_tells_it(command, error, world):
    with pytest.raises(error):
        subprocess.Popen(command, sandbox=BOX, **PIPES)
    with pytest.raises(error):
        standard.Popen(command, **PIPES)
    world.assert_unchanged()


def test_a_sandbox_that_is_none_is_a_type_error():
    with pytest.raises(TypeError, match=r"shoal\.Sandbox or the name of a profile, not dict"):
        subprocess.run(["true"], sandbox={})


def test_check_says_why():
    with pytest.raises(subprocess.CalledProcessError) as error:
        sh("exit 3", check=True)
    assert isinstance(error.value, shoal.RunError)
    assert error.value.returncode == 3
    with pytest.raises(shoal.RunError, match="wall time") as error:
        sh("sleep 987", BOX.replace(wall_time=0.2), check=True)
    assert error.value.reason == "wall_time"


def test_a_timeout_ends_everything_in_it(world):
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as late:
        sh("echo so far; setsid -f sleep 987; (sleep 987 &); sleep 987", timeout=0.7)
    assert time.monotonic() - began < 30
    assert late.value.stdout == b"so far\n"
    assert world.new_processes() == set()
    del late
    world.assert_unchanged()


@pytest.mark.parametrize("script", ["sleep 987 & echo done", "setsid -f sleep 987; echo done", "(sleep 987 &) ; echo done"])
def test_what_a_program_leaves_running_ends_with_it_while_its_output_is_read(script, world):
    with subprocess.Popen(["sh", "-c", script], sandbox=BOX, stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == b"done\n"  # ends only when nobody holds the pipe any more
    assert (process.returncode, process.reason) == (0, "exited")
    world.assert_unchanged()


def test_what_lingers_is_waited_for_or_kept_if_the_box_says_so(pipe):
    os.set_inheritable(pipe.write, True)
    script = f"(sleep 0.3; echo late >&{pipe.write}) & exit 5"
    with subprocess.Popen(["bash", "-c", script], sandbox=BOX.replace(linger="wait"), pass_fds=[pipe.write]) as process:
        assert process.wait(timeout=60) == 5
        os.set_blocking(pipe.read, False)
        assert os.read(pipe.read, 100) == b"late\n"
        os.set_blocking(pipe.read, True)
    with subprocess.Popen(
        ["bash", "-c", f"sleep 987 & echo now >&{pipe.write}"], sandbox=BOX.replace(linger="keep"), pass_fds=[pipe.write]
    ) as process:
        assert process.wait(timeout=60) == 0
        assert os.read(pipe.read, 100) == b"now\n"
        os.close(pipe.write)
        os.set_blocking(pipe.read, False)
        with pytest.raises(BlockingIOError):
            os.read(pipe.read, 1)  # it lives, and holds the pipe
        os.set_blocking(pipe.read, True)
        process.kill(tree=True)
        assert os.read(pipe.read, 1) == b""


@pytest.mark.parametrize("long", ["30d", 1e300])
def test_a_limit_longer_than_one_wait_of_the_kernel_keeps_no_other_from_being_held_to_its_own(long):
    with (
        subprocess.Popen(["sleep", "987"], sandbox=BOX.replace(wall_time=long), stdout=subprocess.PIPE) as patient,
        subprocess.Popen(["sleep", "987"], sandbox=BOX.replace(wall_time=0.3), stdout=subprocess.PIPE) as brief,
    ):
        assert brief.stdout.read() == b""  # nobody else than the thread that watches ends it
        assert patient.poll() is None
        patient.kill()
    assert (patient.reason, brief.reason) == ("signaled", "wall_time")


def test_a_limit_of_time_holds_while_the_caller_does_something_else(world):
    with subprocess.Popen(["sh", "-c", "sleep 987 & sleep 987"], sandbox=BOX.replace(wall_time=0.3), stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == b""
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert process.reason == "wall_time"
    assert 0.3 <= process.usage.wall_s < 30
    assert process.enforced["wall_time"] is True
    world.assert_unchanged()


@pytest.mark.parametrize("linger", ["kill", "wait"])
def test_a_limit_of_time_holds_for_what_lingers(linger, world):
    box = BOX.replace(wall_time=0.4, linger=linger)
    began = time.monotonic()
    with subprocess.Popen(["sh", "-c", "sleep 987 & true"], sandbox=box, stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == b""
        process.wait(timeout=60)
    assert time.monotonic() - began < 30
    world.assert_unchanged()


@needs("a cgroup v2 tree in which groups can be made")
def test_a_limit_of_processor_time_holds_for_all_together(world):
    box = BOX.replace(cpu_time=0.3)
    try:
        done = sh("for i in 1 2; do (while :; do :; done) & done; wait", box, timeout=60)
    except shoal.NotSupportedError as error:
        pytest.skip(f"needs what counts processor time: {error}")
    assert done.reason == "cpu_time"
    world.assert_unchanged()


def test_a_kill_ends_the_program_and_what_lingers_with_it(world):
    for end in (lambda p: p.kill(), lambda p: p.kill(tree=True), lambda p: p.send_signal(signal.SIGKILL)):
        with subprocess.Popen(["sh", "-c", "sleep 987 & echo up; wait"], sandbox=BOX, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"up\n"
            end(process)
            assert process.stdout.read() == b""
            assert process.wait(timeout=60) == -signal.SIGKILL
            assert process.reason in ("killed", "signaled")
            end(process)
    world.assert_unchanged()


def test_a_program_that_nobody_waits_for_is_seen_to(world):
    read, write = os.pipe()
    started = [subprocess.Popen(["sh", "-c", "sleep 987 & echo $$"], sandbox=BOX.replace(wall_time=60), stdout=write)]
    os.close(write)
    with pytest.warns(ResourceWarning):
        started.clear()
    gc.collect()
    assert os.read(read, 100)
    assert os.read(read, 100) == b""  # what it left running ended with it
    os.close(read)
    subprocess.run(["true"])  # as the standard module does it, a later start collects what was dropped
    world.assert_unchanged()


def test_the_thread_that_watches_ends_when_there_is_nothing_to_watch():
    for _ in range(2):
        sh("true")
        assert watch._watch._wake >= 0
        end_of_watch()
        assert watch._watch._wake == -1


def test_many_at_once_end_each_for_its_own_reason(world):
    boxes = {"exited": BOX.replace(wall_time=60), "wall_time": BOX.replace(wall_time=0.5)}
    running = []
    for number in range(30):
        reason = ("exited", "wall_time")[number % 2]
        script = f"exit {number}" if reason == "exited" else "sleep 987"
        running.append((reason, number, subprocess.Popen(["sh", "-c", script], sandbox=boxes[reason])))
    for reason, number, process in running:
        with process:
            assert process.wait(timeout=60) == (number if reason == "exited" else -signal.SIGKILL)
            assert process.reason == reason
    del running, process
    world.assert_unchanged()


def test_a_fork_of_the_caller_has_a_watch_of_its_own(run_python):
    script = """
from shoal import Sandbox, subprocess
box = Sandbox(read=["/usr"], wall_time=0.3)
mine = subprocess.Popen(["sleep", "987"], sandbox=box, stdout=subprocess.PIPE)
pid = os.fork()
if pid == 0:
    ok = False
    try:
        theirs = subprocess.Popen(["sleep", "987"], sandbox=box, stdout=subprocess.PIPE)
        ok = theirs.stdout.read() == b"" and theirs.wait() == -9
    finally:
        os._exit(0 if ok else 1)
status = os.waitpid(pid, 0)[1]
mine.stdout.read()
answer([status, mine.wait(), mine.reason])
mine.stdout.close()
"""
    assert run_python(script) == [0, -signal.SIGKILL, "wall_time"]


def test_an_interpreter_that_ends_takes_its_sandboxes_along(run_python):
    script = """
import atexit
from shoal import Sandbox, subprocess
box = Sandbox(read=["/usr"], wall_time=60)
process = subprocess.Popen(["sleep", "987"], sandbox=box)  # which holds the pipe that this script is read by
atexit.register(lambda: subprocess.run(["true"], sandbox=box))
process.returncode = 0  # so that nobody is warned
answer(1)
"""
    assert run_python(script) == 1
