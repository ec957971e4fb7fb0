"""shoal run at a terminal: a private one for the program, and the user's own never broken."""

from __future__ import annotations

import os
import shutil
import signal
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig.cli import COMMAND, ENVIRON, User, child_of, is_raw, processes_with, wait_gone, wait_running

pytestmark = pytest.mark.skipif(not all(map(shutil.which, ("sh", "stty", "bash"))), reason="needs sh, bash and stty")

MARKER = f"87{os.getpid():07d}"
SHOAL = " ".join(COMMAND)
CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = "\x03", "\x04", "\x1a", "\x1c"


def at_terminal(script: str, *options: str, rows: int = 24, columns: int = 80) -> User:
    """Somebody who typed `shoal run --ro /usr OPTIONS -- sh -c SCRIPT`."""
    return User(*COMMAND, "run", "--ro", "/usr", *options, "--", "sh", "-c", script, rows=rows, columns=columns)


@pytest.fixture
def shell() -> Iterator[User]:
    """Somebody in an interactive shell with job control."""
    with User("bash", "--norc", "--noprofile", "--noediting", "-i") as user:
        user.expect("$ ")
        user.settings = termios.tcgetattr(user.master)
        yield user


# --- the private terminal ---------------------------------------------------------------------------


def test_the_program_has_a_terminal_that_is_not_the_users() -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && stat -L -c %t:%T-%i /proc/self/fd/0 /dev/stdout /proc/self/fd/2; stat -c %t /dev/tty"
    with at_terminal(script) as user:
        ours = os.stat(user.name)
        code, seen = user.until_end()
        *three, controlling = seen.split()
        assert code == 0
        assert len(set(three)) == 1
        assert three[0].partition("-")[0] != f"{os.major(ours.st_rdev):x}:{os.minor(ours.st_rdev):x}"
        assert controlling == "5"
        assert user.is_as_found


def test_dev_tty_is_the_private_terminal() -> None:
    with at_terminal("exec </dev/null >/dev/null 2>&1; echo hello > /dev/tty; read x < /dev/tty; echo got $x > /dev/tty") as user:
        user.expect("hello")
        user.type("word\n")
        user.expect("got word")
        assert user.until_end()[0] == 0


@pytest.mark.parametrize("options", [[], ["--ro", "/"], ["--device", "pts"]], ids=" ".join)
def test_its_terminal_has_a_name_by_which_it_can_be_opened(options: list[str]) -> None:
    with at_terminal('tty && name=$(tty) && exec <&- && read x <"$name" && echo got $x', *options) as user:
        user.expect("/dev/console")
        user.type("word\n")
        user.expect("got word")
        assert user.until_end()[0] == 0


def test_keys_are_echoed_and_edited_once() -> None:
    with at_terminal("echo ready; read x; echo [$x]") as user:
        user.expect("ready")
        user.type("abd\x7fc\n")
        _, seen = user.until_end()
        assert seen.replace("\b \b", "<") == "\r\nabd<c\r\n[abc]\r\n"


def test_the_end_of_input_ends_cat() -> None:
    with at_terminal("echo ready; cat; echo over") as user:
        user.expect("ready\r\n")
        user.type("x\n")
        user.expect("x\r\nx\r\n")
        user.type(CTRL_D)
        assert user.until_end() == (0, "over\r\n")


def test_the_size_is_the_users_at_first_and_after_a_change() -> None:
    with at_terminal("stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done", rows=33, columns=101) as user:
        user.expect("33 101\r\nready")
        user.resize(44, 55)
        user.expect("44 55")
        assert user.until_end()[0] == 0


def test_a_lot_of_output_arrives_whole_after_the_program_has_ended() -> None:
    with at_terminal("i=0; while [ $i -lt 3000 ]; do echo line $i of a lot of output that has to arrive; i=$((i+1)); done") as user:
        time.sleep(0.5)  # nobody reads: what the terminals hold is full when the program is at its end, or waiting for us
        _, seen = user.until_end()
        assert seen.splitlines() == [f"line {i} of a lot of output that has to arrive" for i in range(3000)]


def test_a_lot_of_input_arrives_whole() -> None:
    with at_terminal("stty -echo -icanon; echo ready; head -c 200000 | cksum") as user:
        user.expect("ready\r\n")
        for _ in range(200):
            user.type("0123456789" * 100)
        code, seen = user.until_end()
        assert (code, seen.split()[1]) == (0, "200000")


def test_nothing_can_be_typed_into_the_users_terminal() -> None:
    """TIOCSTI on every descriptor and on the controlling terminal, before and after leaving the session."""
    attack = """
import fcntl, os, termios
print("ready", flush=True)
fds = [int(name) for name in os.listdir("/proc/self/fd")]
for path in ("/dev/tty", "/dev/console", "/dev/ptmx", *("/dev/pts/" + name for name in os.listdir("/dev/pts"))):
    try: fds.append(os.open(path, os.O_RDWR))
    except OSError: pass
for again in range(2):
    for fd in fds:
        for byte in b"reboot\\n":
            try: fcntl.ioctl(fd, termios.TIOCSTI, bytes([byte]))
            except OSError: pass
    if again == 0 and os.fork(): os.wait(); os._exit(0)
    if again == 0: os.setsid()
"""
    with User("sh", "-c", f"{SHOAL} run --ro /usr -- /usr/bin/python3 -c '{attack}'; read x; echo typed:$x") as user:
        user.expect("ready")
        user.expect_settings(lambda settings: settings == user.settings, "as it was")
        user.type("mine\n")
        user.expect("typed:mine")


def test_a_terminal_handed_over_by_number_is_the_private_one() -> None:
    script = f"exec 7<>$(tty); {SHOAL} run --ro /usr --fd 7 -- sh -c 'stat -L -c %t:%T /proc/self/fd/7 /proc/self/fd/0'"
    with User("sh", "-c", script) as user:
        code, seen = user.until_end()
        assert code == 0
        assert len(set(seen.split())) == 1


# --- keys that are signals --------------------------------------------------------------------------


def test_ctrl_c_interrupts_the_program() -> None:
    with at_terminal(f"sleep {MARKER}0; echo not reached") as user:
        wait_running(f"sleep\0{MARKER}0")
        user.type(CTRL_C)
        code, seen = user.until_end()
        assert code == 130
        assert "not reached" not in seen
        assert user.is_as_found


def test_ctrl_backslash_quits_the_program() -> None:
    with at_terminal("trap 'echo quit; exit 5' QUIT; echo ready; while :; do sleep 0.05; done") as user:
        user.expect("ready")
        user.type(CTRL_BACKSLASH)
        user.expect("quit")
        assert user.until_end()[0] == 5


def test_a_shell_inside_has_job_control() -> None:
    with User(*COMMAND, "run", "--ro", "/usr", "--env", "PS1=in> ", "--", "bash", "--norc", "--noediting", "-i") as user:
        user.expect("in> ")
        user.type(f"sleep {MARKER}1\n")
        user.expect(f"sleep {MARKER}1\r\n")
        wait_running(f"sleep\0{MARKER}1")
        user.type(CTRL_Z)
        user.expect("Stopped")
        user.expect("in> ")
        user.type("jobs; echo still $((1 + 1))\n")
        user.expect("still 2\r\n")
        user.type("fg\n")
        wait_running(f"sleep\0{MARKER}1", state="S")
        user.type(CTRL_C)
        user.expect("in> ")
        user.type("exit 6\n")
        assert user.until_end()[0] == 6
        assert user.is_as_found
        assert processes_with(f"{MARKER}1") == []


def test_nobody_complains_that_there_is_no_job_control() -> None:
    with User(*COMMAND, "run", "--env", "PS1=$ ", "--", "sh", "-i") as user:
        user.expect("$ ")
        assert "job control" not in user.seen
        user.type("exit 0\n")
        code, seen = user.until_end()
        assert code == 0
        assert "job control" not in seen


# --- never left broken ------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_the_terminal_is_restored_when_shoal_is_sent_a_signal(number: signal.Signals, code: int) -> None:
    with at_terminal("echo ready; exec sleep 1000") as user:
        user.expect("ready")
        user.expect_settings(is_raw, "raw")
        user.process.send_signal(number)
        assert user.until_end()[0] == code
        assert user.is_as_found


def test_the_terminal_is_restored_after_a_timeout_and_leaves_the_alternate_screen() -> None:
    with at_terminal("printf '\\033[?1049h\\033[?25l'; echo ready; exec sleep 1000", "--timeout", "1s") as user:
        user.expect("ready")
        code, seen = user.until_end()
        assert code == 124
        assert "\x1b[?1049l\x1b[?25h" in seen
        assert seen.rstrip().endswith("killed with everything it started")
        assert user.is_as_found


def test_a_timeout_is_kept_when_nobody_reads_the_terminal() -> None:
    with at_terminal("while :; do echo output; done", "--timeout", "500ms") as user:
        assert user.process.wait(timeout=20) == 124
        assert user.is_as_found


def test_the_terminal_is_restored_when_the_program_changed_its_own() -> None:
    with at_terminal("stty raw -echo; exit 3") as user:
        assert user.until_end()[0] == 3
        assert user.is_as_found


@pytest.mark.parametrize("words", [["no-such-program-anywhere"], ["--fd", "900", "true"], ["--explain", "true"]])
def test_the_terminal_is_restored_when_nothing_was_started(words: list[str]) -> None:
    with User(*COMMAND, "run", *words) as user:
        user.until_end()
        assert user.is_as_found


def test_a_window_that_is_closed_ends_the_program() -> None:
    with at_terminal(f"echo ready; exec sleep {MARKER}2") as user:
        user.expect("ready")
        left = processes_with(f"sleep\0{MARKER}2")
        user.hang_up()
        user.process.wait(timeout=30)
        assert wait_gone(left)


def test_a_killed_shoal_takes_the_program_with_it() -> None:
    with at_terminal(f"echo ready; exec sleep {MARKER}3") as user:
        user.expect("ready")
        user.process.kill()
        user.process.wait()
        assert wait_gone(processes_with(f"sleep\0{MARKER}3"))


# --- in the shell's job control ---------------------------------------------------------------------


def test_being_stopped_restores_the_terminal_and_being_continued_takes_it_again(shell: User) -> None:
    shell.type(f"{SHOAL} run -- sh -c 'echo ready; while read x; do echo [$x]; done'\n")
    shell.expect("\nready")
    shell.expect_settings(is_raw, "raw")
    os.kill(child_of(shell.process.pid, "shoal"), signal.SIGTSTP)
    shell.expect("Stopped")
    shell.expect("$ ")
    shell.expect_settings(lambda settings: settings == shell.settings, "as it was")
    shell.resize(11, 22)
    shell.type("fg\n")
    shell.expect_settings(is_raw, "raw")
    shell.type("word\n")
    shell.expect("[word]")
    shell.type(CTRL_D)
    shell.expect("$ ")
    shell.expect_settings(lambda settings: settings == shell.settings, "as it was")


def test_a_program_that_stops_itself_gives_the_shell_back(shell: User) -> None:
    shell.type(f"{SHOAL} run -- sh -c 'echo ready; kill -STOP $$; echo resumed'\n")
    shell.expect("\nready")
    shell.expect("Stopped")
    shell.expect("$ ")
    shell.type("fg\n")
    shell.expect("\nresumed")
    shell.expect("$ ")


def test_in_the_background_the_terminal_is_the_shells(shell: User) -> None:
    shell.type(f"{SHOAL} run -- sh -c 'echo started; read x; echo got $x' &\n")
    shell.expect("$ started")
    shell.type("echo shell $((1 + 1))\n")
    shell.expect("shell 2\r\n")
    assert not is_raw(termios.tcgetattr(shell.master))
    shell.type("fg\n")
    shell.expect_settings(is_raw, "raw")
    shell.type("word\n")
    shell.expect("got word")
    shell.expect("$ ")
    shell.expect_settings(lambda settings: settings == shell.settings, "as it was")


# --- a terminal shared with a pipeline --------------------------------------------------------------


def test_in_a_pipeline_the_terminal_is_left_alone(shell: User) -> None:
    """A pager at the other end sets it up for itself: whatever we did to it would be in its way."""
    shell.type(f"{SHOAL} run -- sh -c 'echo one; echo two; read x; echo [$x]' | cat\n")
    shell.expect("one\r\ntwo\r\n")
    assert termios.tcgetattr(shell.master) == shell.settings
    shell.type("abd\x7fc\n")
    assert shell.expect("[abc]").count("abd") == 1  # echoed once
    shell.expect("$ ")
    assert shell.is_as_found


def test_in_a_pipeline_ctrl_c_reaches_the_program(shell: User) -> None:
    shell.type(f"{SHOAL} run --ro /usr -- sh -c 'echo ready >&2; sleep {MARKER}4; echo not reached' | cat\n")
    shell.expect("\nready")
    left = wait_running(f"sleep\0{MARKER}4")
    shell.type(CTRL_C)
    assert wait_gone(left)
    assert "not reached" not in shell.expect("$ ")


def test_in_a_pipeline_ctrl_d_is_the_end_of_input(shell: User) -> None:
    shell.type(f"{SHOAL} run -- sh -c 'echo ready >&2; while read x; do echo [$x]; done; echo over' | cat\n")
    shell.expect("\nready")
    shell.type("a\n")
    shell.expect("[a]")
    shell.type(CTRL_D)
    shell.expect("over")


def test_in_a_pipeline_a_password_is_not_echoed(shell: User) -> None:
    script = "stty -echo </dev/tty; printf password: >&2; read x; stty echo </dev/tty; echo [$x]; echo visible >&2; read y; echo [$y]"
    shell.type(f"{SHOAL} run --ro /usr -- sh -c '{script}' | cat\n")
    shell.expect("\npassword:")
    shell.expect_settings(lambda settings: not settings[3] & termios.ECHO, "silent")
    shell.type("hidden\n")
    seen = shell.expect("[hidden]")  # from cat, so it may come before or after what the program says on its terminal
    seen += "" if "visible\r" in seen else shell.expect("visible")
    assert seen.count("hidden") == 1
    shell.expect_settings(lambda settings: settings == shell.settings, "as it was")
    shell.type("shown\n")
    assert shell.expect("[shown]").count("shown") == 2
    shell.expect("$ ")
    assert shell.is_as_found


def test_a_pager_at_the_end_of_a_pipeline_gets_its_keys(shell: User) -> None:
    """It puts the terminal in its own mode; what is typed then is not for the program before it."""
    pager = 'import sys, termios, tty; t = open("/dev/tty"); tty.setcbreak(t); print("pager", flush=True); print("key", t.read(1))'
    shell.type(f"{SHOAL} run --ro /usr -- sh -c 'exec sleep {MARKER}5' | python3 -c '{pager}'\n")
    shell.expect("\npager")
    time.sleep(0.3)  # long enough for a reader that should not be there
    shell.type("q")
    shell.expect("key q")
    shell.type(CTRL_C)


def test_a_program_that_reads_keys_from_dev_tty_gets_them() -> None:
    """`something | shoal run -- pager`: input is a pipe, keys come from the terminal, unechoed and one by one."""
    reader = 'import tty; t = open("/dev/tty"); tty.setcbreak(t); print("ready", flush=True); print("key", t.read(1), input())'
    with User("sh", "-c", f"echo data | {SHOAL} run --ro /usr -- /usr/bin/python3 -c '{reader}'") as user:
        user.expect("ready")
        user.expect_settings(lambda settings: not settings[3] & termios.ICANON, "unbuffered")
        user.type("k")
        user.expect("key k data")
        assert user.until_end()[0] == 0
        assert user.is_as_found


def test_output_to_a_file_leaves_input_to_the_program(tmp_path: Path) -> None:
    with User("sh", "-c", f"{SHOAL} run -- sh -c 'echo ready >&2; read x; echo got $x' > {tmp_path}/out") as user:
        user.expect("ready")
        user.type("word\n")
        assert user.until_end()[0] == 0
    assert (tmp_path / "out").read_text() == "got word\n"


def test_without_any_terminal_there_is_none() -> None:
    with User("sh", "-c", f"{SHOAL} run -- sh -c '(: < /dev/tty) 2>/dev/null || echo none' < /dev/null 2>&1 | cat", env=ENVIRON) as user:
        user.expect("none")
