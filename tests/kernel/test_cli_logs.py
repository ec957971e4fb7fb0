"""shoal logs: what domains have written, to a person, to a pipe, and to whom it may not be told any more."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
from rig.cli import COMMAND, PATIENCE_S, wait_running
from rig.desk import Desk, own_desk

MARKER = f"85{os.getpid():07d}"
CTRL_C = "\x03"


@pytest.fixture
def desk() -> Iterator[Desk]:
    with own_desk() as made:
        yield made


def ended(desk: Desk, script: str) -> str:
    number = desk.sh(script)
    desk.shoal("wait", number)
    return number


def test_both_streams_come_out_together_and_each_alone(desk: Desk) -> None:
    number = ended(desk, "echo out; echo err >&2")
    done = desk.shoal("logs", number)
    assert (done.returncode, done.stderr, sorted(done.stdout.split())) == (0, "", ["err", "out"])
    assert desk.shoal("logs", "--stdout", number).stdout == "out\n"
    assert desk.shoal("logs", "--stderr", number).stdout == "err\n"
    done = desk.shoal("logs", "--stdout", "--stderr", number)
    assert (done.returncode, done.stdout) == (125, "")


def test_a_pipe_gets_every_byte(desk: Desk) -> None:
    number = ended(desk, 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %o $i)"; i=$((i+1)); done; head -c 3000000 /dev/zero')
    assert desk.shoal("logs", number, text=False).stdout == bytes(range(256)) + bytes(3_000_000)


def test_the_last_lines_can_be_had(desk: Desk) -> None:
    number = ended(desk, "seq 1 2000; printf open")
    for count, expected in [("3", "1999\n2000\nopen"), ("1", "open"), ("0", ""), ("2001", None), ("99999", None)]:
        shown = desk.shoal("logs", "-n", count, number).stdout
        assert shown == (expected if expected is not None else "".join(f"{line}\n" for line in range(1, 2001)) + "open")
    for word in ("-3", "many", "9" * 30):
        done = desk.shoal("logs", f"--lines={word}", number)
        assert (done.returncode, done.stderr) == (125, f"shoal: --lines {word}: not a whole number\n")


def test_each_line_can_have_its_time(desk: Desk) -> None:
    number = ended(desk, "printf 'one\\ntwo '; echo err >&2; echo more; printf open")
    lines = desk.shoal("logs", "-t", number).stdout.splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d "
    assert all(re.match(stamp, line) for line in lines)
    assert "err" in [re.sub(stamp, "", line) for line in lines]
    only = [re.sub(stamp, "", line) for line in desk.shoal("logs", "-t", "--stdout", number).stdout.split("\n")]
    assert only == ["one", "two more", "open", ""]


def test_json_has_a_line_for_each_line(desk: Desk) -> None:
    number = ended(desk, "printf 'one\\ntwo '; echo err >&2; printf 'more\\n\\377\\n'; printf open")
    told = [json.loads(line) for line in desk.shoal("logs", "--json", number).stdout.splitlines()]
    out = [each.get("text", each.get("base64")) for each in told if each["stream"] == "stdout"]
    assert out == ["one", "two more", "/w==", "open"]
    assert [each["text"] for each in told if each["stream"] == "stderr"] == ["err"]
    assert all(each["at_s"] > 1_700_000_000 for each in told)


def test_nothing_is_kept_of_what_went_elsewhere_and_an_unknown_domain_is_an_error(desk: Desk) -> None:
    assert desk.shoal("spawn", "echo", "seen").stdout == "seen\n"
    assert desk.shoal("logs", "echo").stdout == ""
    done = desk.shoal("logs", "7")
    assert (done.returncode, done.stderr) == (125, "shoal: there is no domain 7; `shoal ps -a` lists those that are known\n")


# --- following ------------------------------------------------------------------------------------------


def test_following_ends_with_the_domain(desk: Desk) -> None:
    number = desk.sh("echo ready; read x < /dev/null; sleep 0.1; echo over")
    done = desk.shoal("logs", "-f", number)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\nover\n", "")
    assert desk.shoal("logs", "-f", number).stdout == "ready\nover\n"


def test_following_begins_with_the_last_lines(desk: Desk) -> None:
    number = desk.sh("seq 1 100; trap 'echo over; exit' USR1; echo ready; sleep 1000 & wait")
    with desk.begin("logs", "-f", number) as first:
        assert first.stdout is not None
        while first.stdout.readline() != "ready\n":
            pass
        with desk.begin("logs", "-f", "-n", "2", number) as process:
            assert process.stdout is not None
            assert [process.stdout.readline(), process.stdout.readline()] == ["100\n", "ready\n"]
            desk.shoal("kill", "-s", "USR1", number)
            assert process.communicate(timeout=PATIENCE_S) == ("over\n", "")
            assert process.returncode == 0


def test_ctrl_c_ends_the_following_and_not_the_domain(desk: Desk) -> None:
    number = desk.sh("echo ready; sleep 1000")
    with desk.user("logs", "-f", number) as user:
        user.expect("ready")
        user.type(CTRL_C)
        code, seen = user.until_end()
    assert code == 130
    assert "Traceback" not in seen
    assert desk.shoal("ps", "-q").stdout == f"{number}\n"


def test_following_goes_on_when_the_manager_is_killed(desk: Desk) -> None:
    number = desk.sh("trap 'echo over; exit 3' USR1; echo ready; sleep 1000 & wait")
    with desk.begin("logs", "-f", number) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(desk.manager_pid(), signal.SIGKILL)
        assert desk.shoal("kill", "-s", "USR1", number).returncode == 0
        assert process.communicate(timeout=PATIENCE_S) == ("over\n", "")
    assert process.returncode == 0


def test_the_end_of_the_reader_ends_the_following_of_a_quiet_domain(desk: Desk) -> None:
    desk.sh(f"echo one; echo two; sleep {MARKER}", "--name", "quiet")
    wait_running(f"sleep\0{MARKER}", "S")
    line = f"{' '.join(COMMAND)} logs -f quiet | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=desk.env, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr) == ("one\n141\n", "")
    assert desk.shoal("ps", "-q").stdout == "0\n"


def test_a_slow_reader_loses_nothing(desk: Desk) -> None:
    number = ended(desk, "head -c 2000000 /dev/zero | tr '\\0' x")
    read, write = os.pipe()
    os.set_blocking(write, False)  # as some parents leave it
    with desk.begin("logs", number, stdout=write) as process, open(read, "rb") as file:
        os.close(write)
        assert file.read() == b"x" * 2_000_000
        assert process.wait(timeout=PATIENCE_S) == 0


# --- at a terminal --------------------------------------------------------------------------------------


def test_a_terminal_is_shown_colours_and_no_other_control(desk: Desk) -> None:
    nasty = r"printf '\033[1;31mred\033[0m \033]0;title\007 \033[2J \033[6n \033c \302\2332J \033' ; printf '[32mgreen\033[0m\n'"
    number = ended(desk, nasty)
    with desk.user("logs", number, columns=200) as user:
        code, seen = user.until_end()
    assert code == 0
    expected = "\x1b[1;31mred\x1b[0m \\x1b]0;title\\x07 \\x1b[2J \\x1b[6n \\x1bc \\xc2\\x9b2J \x1b[32mgreen\x1b[0m\r\n"
    assert seen == expected
    with desk.user("logs", "--raw", number, columns=200) as user:
        assert "\x1b]0;title\x07" in user.until_end()[1]
    assert "\x1b]0;title\x07" in desk.shoal("logs", number).stdout
