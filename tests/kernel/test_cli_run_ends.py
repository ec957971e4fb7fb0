"""shoal run, from a script: how the run ends, for the program, for what it leaves, and for whoever started it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rig.cli import COMMAND, ENVIRON, processes_with, shoal, wait_gone, wait_running

pytestmark = pytest.mark.skipif(not shutil.which("sh"), reason="needs sh")

MARKER = f"79{os.getpid():07d}"


def sh(script: str, *options: str, **how: object) -> subprocess.CompletedProcess[str]:
    return shoal("run", *options, "--", "sh", "-c", script, **how)


def started(script: str, *options: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "run", *options, "--", "sh", "-c", script]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRON, text=True)


def test_a_run_ends_with_its_program_and_leaves_nothing() -> None:
    done = shoal("run", "--ro", "/usr", "--", "sh", "-c", f"setsid sh -c 'sleep {MARKER}1 & sleep {MARKER}2' & sleep 0.2; exit 3")
    assert done.returncode == 3
    assert wait_gone(processes_with(MARKER))


def test_a_timeout_kills_everything_whatever_it_did_to_hide() -> None:
    script = f"setsid sh -c 'trap \"\" TERM HUP INT; (setsid sleep {MARKER}3 &) ; sleep {MARKER}4' & trap '' TERM; sleep {MARKER}5"
    began = time.monotonic()
    done = shoal("run", "--ro", "/usr", "--timeout", "700ms", "--", "sh", "-c", script)
    assert 0.7 <= time.monotonic() - began < 15
    assert done.returncode == 124
    assert "timed out after 0.7 s" in done.stderr
    assert processes_with(MARKER) == []


def test_a_timeout_that_is_not_reached_changes_nothing() -> None:
    assert sh("exit 4", "--timeout", "1h").returncode == 4


@pytest.mark.parametrize("options", [("--wall-time", "300ms"), ("--wall-time", "300ms", "--timeout", "1h"), ("--profile", "brief")])
def test_a_limit_of_time_is_like_a_timeout(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "shoal" / "profiles").mkdir(parents=True)
    (tmp_path / "shoal" / "profiles" / "brief.toml").write_text('wall_time = "300ms"')
    done = sh(f"sleep {MARKER}5 & sleep {MARKER}5", "--ro", "/usr", *options, env=ENVIRON | {"XDG_CONFIG_HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (124, "shoal: sh: timed out after 0.3 s; it was killed with everything it started\n")
    assert processes_with(MARKER) == []


def test_a_program_that_takes_too_much_processor_time_is_said_to() -> None:
    done = sh("while :; do :; done", "--cpu-time", "300ms", "--limits", "best-effort", "--json")
    told, *_, last = done.stderr.splitlines()
    assert done.returncode == 124
    assert told == "shoal: sh: used up its processor time of 0.3 s; it was killed with everything it started; reason: cpu_time"
    assert json.loads(last)["reason"] == "cpu_time"


def test_what_a_program_leaves_running_can_be_waited_for() -> None:
    done = sh(
        "(while [ ! -e /tmp/go ]; do :; done; echo late) & (sleep 0.3; : > /tmp/go) & echo early; exit 4",
        "--ro",
        "/usr",
        "--linger",
        "wait",
    )
    assert (done.returncode, done.stdout) == (4, "early\nlate\n")
    began = time.monotonic()
    done = sh(f"sleep {MARKER}9 & exit 4", "--ro", "/usr", "--linger", "wait", "--timeout", "500ms")
    assert done.returncode == 124
    assert time.monotonic() - began < 15
    assert processes_with(f"sleep\0{MARKER}9") == []


def test_waiting_for_what_is_left_can_be_given_up() -> None:
    with started(f"sleep {MARKER}9 & echo ready; exit 4", "--ro", "/usr", "--linger", "wait") as process:
        assert process.stdout
        process.stdout.readline()
        wait_running(f"sleep\0{MARKER}9")
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout=30)
        finally:
            process.kill()
        assert code in (4, 143)  # 143: the program itself had not ended yet, and got it
    assert wait_gone(processes_with(f"sleep\0{MARKER}9"))


@pytest.mark.parametrize(
    ("number", "on_signal", "code"),
    [
        (signal.SIGTERM, "'exit 4'", 4),
        (signal.SIGTERM, "'echo on'", 5),  # asked to end, it does a while later
        (signal.SIGINT, "-", 130),
        (signal.SIGHUP, "-", 129),
    ],
)
def test_a_program_told_to_end_is_not_followed_by_waiting_for_what_it_left(number: signal.Signals, on_signal: str, code: int) -> None:
    """Else the one signal a supervisor sends would be used up by the program, and the end never come."""
    script = f"trap {on_signal} {number.name[3:]}; setsid sleep {MARKER}9 & echo ready; read x; exit 5"
    with started(script, "--ro", "/usr", "--linger", "wait") as process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()
        wait_running(f"sleep\0{MARKER}9")
        process.send_signal(number)
        if code == 5:
            assert process.stdout.readline() == "on\n"
            process.stdin.close()
        try:
            assert process.wait(timeout=30) == code
        finally:
            process.kill()
    assert wait_gone(processes_with(f"sleep\0{MARKER}9"))


def test_a_signal_the_program_lives_on_with_does_not_give_up_waiting() -> None:
    watch = "while kill -0 $$; do :; done 2>/dev/null; echo gone"  # a zombie is still there: says so once it has been reaped
    script = f"trap 'echo on' HUP; sleep {MARKER}9 & ({watch}) & echo ready; read x; exit 4"
    with started(script, "--ro", "/usr", "--linger", "wait") as process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()
        left = wait_running(f"sleep\0{MARKER}9")
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "on\n"
        process.stdin.close()
        assert process.stdout.readline() == "gone\n"
        try:
            assert process.poll() is None
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            assert process.wait(timeout=30) == 4
        finally:
            process.kill()


def test_what_a_program_leaves_running_can_be_kept() -> None:
    done = sh(f"sleep {MARKER}9 >/dev/null 2>&1 & exit 4", "--ro", "/usr", "--linger", "keep")
    assert done.returncode == 4
    kept = wait_running(f"sleep\0{MARKER}9")
    for pid in kept:
        os.kill(pid, signal.SIGKILL)
    assert wait_gone(kept)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_reach_the_program(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo ready; while :; do read x; done"
    with started(script) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"got {name}\n"
        assert process.wait(timeout=30) == 9


def test_a_signal_that_ends_the_program_shows_in_the_exit_code() -> None:
    with started("echo ready; read x") as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143


def test_an_interrupt_reaches_the_whole_group_as_a_key_would() -> None:
    with started(f"echo ready; sleep {MARKER}6; echo not reached", "--ro", "/usr") as process:
        assert process.stdout
        process.stdout.readline()
        wait_running(f"sleep\0{MARKER}6")
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
        assert process.wait(timeout=30) == 130


def test_a_killed_shoal_takes_its_program_with_it() -> None:
    with started(f"setsid sleep {MARKER}7 & echo ready; sleep {MARKER}8", "--ro", "/usr") as process:
        assert process.stdout
        process.stdout.readline()
        left = [*wait_running(f"sleep\0{MARKER}7"), *wait_running(f"sleep\0{MARKER}8")]
        process.kill()
        process.wait()
        assert wait_gone(left)


def test_an_ignored_hangup_stays_ignored() -> None:
    command = ["sh", "-c", f"trap '' HUP; exec {' '.join(COMMAND)} run -- sh -c 'echo ready; read x; echo $x'"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRON, text=True) as process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.stdin.write("on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "on\n"
