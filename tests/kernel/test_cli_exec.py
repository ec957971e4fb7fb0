"""shoal exec as its users meet it: from a script, and from a terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest
from rig.cli import COMMAND, User, is_raw, processes_with, wait_gone, wait_running
from rig.desk import Desk, own_desk

MARKER = f"88{os.getpid():07d}"
TOOLS = [word for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path) for word in ("--ro", path)]
CTRL_C, CTRL_BACKSLASH = "\x03", "\x1c"


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    """With a domain that sees all, and one in a sandbox with tools."""
    with own_desk() as made:
        made.spawn("--name", "flat", "sleep", "1000")
        made.spawn("--name", "boxed", "--seccomp", "default", *TOOLS, "--", "sleep", "1000")
        yield made


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


either = pytest.mark.parametrize("name", ["flat", "boxed"])


@either
def test_its_input_output_and_exit_code_are_the_commands(desk: Desk, name: str) -> None:
    done = desk.shoal("exec", name, "--", "sh", "-c", "cat; echo err >&2; exit 4", input="typed\n")
    assert (done.returncode, done.stdout, done.stderr) == (4, "typed\n", "err\n")
    assert desk.shoal("exec", name, "true").returncode == 0
    assert desk.shoal("exec", name, "sh", "-c", "kill -TERM $$").returncode == 143
    assert desk.shoal("logs", name).stdout == ""  # none of it is the domain's


@either
def test_options_are_before_the_domain_and_all_behind_it_is_the_commands(desk: Desk, name: str) -> None:
    script = 'echo "$A $B"; pwd; echo "$@"'
    done = desk.shoal("exec", "-e", "A=1", "--env", "B=x y", "--cwd", "/usr", name, "sh", "-c", script, "sh", "-e", "--json", "--")
    assert done.stdout == "1 x y\n/usr\n-e --json --\n"


def test_json_tells_how_it_ended_as_the_last_line_of_stderr(desk: Desk) -> None:
    done = desk.shoal("exec", "--json", "flat", "sh", "-c", "echo err >&2; kill -KILL $$")
    told = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == told["exit_code"] == 137
    assert told["exit"] == {"code": 137, "reason": "signaled", "signal": 9}
    assert told["pid"] > 1


@either
def test_mistakes_are_one_line_and_tell_what_to_do(desk: Desk, name: str) -> None:
    for words, code, what in (
        ((name, "no-such-program"), 127, "no program no-such-program"),
        ((name, "/usr/share"), 126, "cannot execute /usr/share"),
        (("--cwd", "/no/such", name, "true"), 125, "/no/such"),
        (("nobody", "true"), 125, "shoal ps -a"),
        ((name,), 125, "which program"),
        (("-e", "=x", name, "true"), 125, "NAME=VALUE"),
        (("-e", "SHOAL_NO_SUCH_VARIABLE", name, "true"), 125, "SHOAL_NO_SUCH_VARIABLE=VALUE"),
    ):
        done = desk.shoal("exec", *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert len(done.stderr.splitlines()) == 1
        assert what in done.stderr


def test_a_domain_that_has_ended_is_named(desk: Desk) -> None:
    number = desk.spawn("true")
    desk.shoal("wait", number)
    done = desk.shoal("exec", number, "true")
    assert done.returncode == 125
    assert f"domain {number} is not running" in done.stderr


@either
def test_the_end_of_the_domain_is_told(desk: Desk, name: str) -> None:
    options = ["--seccomp", "default", *TOOLS] if name == "boxed" else []
    number = desk.spawn(*options, "--", "sleep", "1000")
    with desk.begin("exec", number, "sh", "-c", "echo ready; exec sleep 1000") as running:
        ready(running)
        desk.shoal("kill", number)
        assert "has ended, and the command with it" in running.communicate(timeout=30)[1]
        assert running.returncode == 137


@either
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_what_it_is_sent_reaches_the_command(desk: Desk, name: str, number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 9' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.01; done"
    with desk.begin("exec", name, "sh", "-c", script) as running:
        ready(running)
        running.send_signal(number)
        assert running.communicate(timeout=30)[0] == "got\n"
        assert running.returncode == 9


@either
def test_a_killed_shoal_takes_the_command_with_it(desk: Desk, name: str) -> None:
    with desk.begin("exec", name, "sh", "-c", f"sleep {MARKER} & echo ready; wait") as running:
        ready(running)
        pids = wait_running(f"sleep\0{MARKER}")
        running.kill()
        running.communicate(timeout=30)
    assert wait_gone(pids)
    assert desk.shoal("exec", name, "true").returncode == 0


@either
def test_it_does_not_notice_that_the_manager_is_killed(desk: Desk, name: str) -> None:
    with desk.begin("exec", name, "sh", "-c", "echo ready; read line; echo $line; exit 8", stdin=subprocess.PIPE) as running:
        ready(running)
        manager = desk.manager_pid()
        os.kill(manager, signal.SIGKILL)
        assert wait_gone([manager])
        assert running.communicate("still here\n", timeout=30) == ("still here\n", "")
        assert running.returncode == 8


# --- at a terminal ------------------------------------------------------------------------------------


def at_terminal(desk: Desk, name: str, script: str) -> User:
    return desk.user("exec", name, "--", "sh", "-c", script, env={"TERM": "vt220"})


@either
def test_it_has_a_private_terminal_which_is_its_controlling_one(desk: Desk, name: str) -> None:
    opened = "/proc/self/fd/1" if name == "flat" else "/dev/stdout"  # what the machine's own /dev/stdout leads to is its affair
    script = f"test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM; echo hello >/dev/tty; echo again >{opened}; read x; echo got $x"
    with at_terminal(desk, name, script) as user:
        for word in ("all", "vt220", "hello", "again"):
            user.expect(word)
        user.type("word\n")
        user.expect("got word")
        assert user.until_end()[0] == 0
        assert user.is_as_found


@either
def test_ctrl_c_interrupts_the_command_and_what_it_has_started(desk: Desk, name: str) -> None:
    with at_terminal(desk, name, f"echo ready; sleep {MARKER}; echo not reached") as user:
        user.expect("ready")
        user.expect_settings(is_raw, "raw")
        pids = wait_running(f"sleep\0{MARKER}")
        user.type(CTRL_C)
        code, seen = user.until_end()
        assert code == 130
        assert "not reached" not in seen
        assert wait_gone(pids)
        assert user.is_as_found


def test_a_closed_window_ends_the_command(desk: Desk) -> None:
    with at_terminal(desk, "boxed", f"echo ready; exec sleep {MARKER}") as user:
        user.expect("ready")
        pids = wait_running(f"sleep\0{MARKER}")
        user.hang_up()
        assert wait_gone(pids)
        user.process.wait(timeout=30)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_shell_inside_has_job_control_and_the_window_its_size(desk: Desk) -> None:
    with desk.user("exec", "boxed", "bash", "--norc", "-i", rows=31, columns=97) as user:
        user.type("stty size; PS1='>>> '\n")
        user.expect("31 97")
        user.type("sleep 1000\n")
        user.expect("sleep 1000")
        wait_running("sleep\x001000", "S")
        user.resize(40, 100)
        user.type(CTRL_C)
        user.type("stty size; exit 3\n")
        user.expect("40 100")
        assert user.until_end()[0] == 3


def test_what_it_leaves_in_the_background_does_not_hold_it_up(desk: Desk) -> None:
    number = desk.spawn("sleep", "1000")
    with at_terminal(desk, number, f"(trap '' HUP; setsid sleep {MARKER}5) & sleep 0.05; echo over") as user:
        user.expect("over")
        assert user.until_end()[0] == 0
    pids = processes_with(f"sleep\0{MARKER}5")
    assert pids  # as part of the domain,
    desk.shoal("kill", number)  # with which it ends
    assert wait_gone(pids)


def test_its_help_and_the_list_of_verbs_name_it() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "exec" in done.stdout
    assert "127 the domain has no PROG" in subprocess.run([*COMMAND, "exec", "--help"], capture_output=True, text=True, check=True).stdout
