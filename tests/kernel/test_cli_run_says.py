"""shoal run, from a script: what is said about it: hints, explanations, results, and nothing that is secret."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rig.cli import COMMAND, ENVIRON, shoal
from rig.features import needs

pytestmark = pytest.mark.skipif(not shutil.which("sh"), reason="needs sh")

MARKER = f"78{os.getpid():07d}"


def sh(script: str, *options: str, **how: object) -> subprocess.CompletedProcess[str]:
    return shoal("run", *options, "--", "sh", "-c", script, **how)


def test_a_missing_script_is_named_with_the_grant_that_helps(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("echo hi\n")
    done = shoal("run", "--", "sh", "job.sh", cwd=tmp_path)
    assert done.returncode not in (0, 125)
    hint = next(line for line in done.stderr.splitlines() if line.startswith("shoal: hint: "))
    option = hint.rpartition("add ")[2].split()
    assert shoal("run", *option, "--", "sh", "job.sh", cwd=tmp_path).stdout == "hi\n"


def test_a_missing_command_is_named_with_the_grant_that_helps() -> None:
    done = sh("ls /usr")
    assert done.returncode == 127
    assert done.stderr.splitlines()[-1] == "shoal: hint: the command ls is not visible to the program; add --ro /usr"


def test_a_command_that_the_shell_has_itself_is_not_what_is_missing() -> None:
    done = sh("echo begun; [ -n x ] && ls /usr")
    assert (done.returncode, done.stdout) == (127, "begun\n")
    assert done.stderr.splitlines()[-1] == "shoal: hint: the command ls is not visible to the program; add --ro /usr"


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_program_on_a_file_system_without_programs_is_refused_with_that(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o noexec none {tmp_path}; cp /bin/true {tmp_path}; exec {' '.join(COMMAND)} run {tmp_path}/true"
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script]
    done = subprocess.run(words, env=ENVIRON, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (126, f"shoal: {tmp_path}/true: is on a file system that is mounted noexec\n")


def test_a_missing_interpreter_is_named_with_the_grant_that_helps(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/usr/bin/env bash\necho hi\n")
    (tmp_path / "tool").chmod(0o755)
    done = shoal("run", "./tool", cwd=tmp_path)
    assert done.returncode == 127
    assert "hint: bash, which the #! line of ./tool names" in done.stderr
    assert shoal("run", "--ro", "/usr", "./tool", cwd=tmp_path).stdout == "hi\n"


def test_a_python_without_its_library_is_told_what_to_grant() -> None:
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    done = shoal("run", python, "-c", "print(6 * 7)")
    assert done.returncode != 0
    option = done.stderr.splitlines()[-1].rpartition("add ")[2].split()
    assert shoal("run", *option, python, "-c", "print(6 * 7)").stdout == "42\n"


def test_a_missing_working_directory_is_told_what_to_grant(tmp_path: Path) -> None:
    done = sh("true", "--cwd", str(tmp_path))
    assert done.returncode == 125
    assert f"shoal: hint: add --ro {tmp_path}" in done.stderr


def test_nothing_is_said_of_success(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("echo hi\n")
    assert shoal("run", "--", "sh", "-c", ": job.sh", cwd=tmp_path).stderr == ""


def test_explain_prints_everything_and_starts_nothing(tmp_path: Path) -> None:
    done = shoal("run", "--explain", "--rw", f"{tmp_path}:/work", "--env", "A=b", "--", "sh", "-c", f"echo x > /work/{MARKER}")
    assert done.returncode == 0, done.stderr
    for word in (str(tmp_path), "/work", "A=b", "/dev", "/tmp", "/proc", "libc"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_explain_has_a_line_for_each_thing_whatever_its_name(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/a\n             /etc  rw\x1b[2J\xff"
    os.makedirs(odd)
    done = shoal("run", "--explain", "--ro", odd, "--env", "A=b\nC=d", "--cwd", odd, "--name", "x\ny", "--", "true", "e\nf")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    shown = f"{tmp_path}/a\\n             /etc  rw\\x1b[2J\\udcff"
    lines = done.stdout.splitlines()
    assert any(line.split("  ", 1)[1].strip().startswith(f"{shown}  ro  directory {shown}  (") for line in lines)
    assert {"arguments    true 'e\\nf'", "name         x\\ny", "             A=b\\nC=d", f"directory    {shown}"} <= set(lines)


def test_explain_can_be_read_by_programs() -> None:
    done = shoal("run", "--explain", "--json", "--tmpfs", "/x", "--", "sh", "-c", "true")
    plan = json.loads(done.stdout)
    assert any(mount["where"] == "/x" for mount in plan["mounts"])
    assert plan["argv"] == ["sh", "-c", "true"]


def test_the_result_is_the_last_line_of_stderr() -> None:
    done = sh("echo out; printf half >&2; exit 5", "--json")
    assert done.stdout == "out\n"
    first, last = done.stderr.splitlines()
    assert first == "half"
    result = json.loads(last)
    assert (result["exit_code"], result["returncode"], result["reason"], result["error"]) == (5, 5, "exited", None)
    assert result["wall_s"] > 0
    assert result["usage"]["max_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sh", "-c", "kill -9 $$"], {"exit_code": 137, "returncode": -9, "reason": "signaled", "signal": "SIGKILL"}),
        (["--timeout", "100ms", "sh", "-c", "while :; do :; done"], {"exit_code": 124, "reason": "wall_time"}),
        (["no-such-program-anywhere"], {"exit_code": 127, "reason": "setup_failed", "returncode": None}),
        (["--ro", "/nowhere", "true"], {"exit_code": 125, "reason": "setup_failed"}),
    ],
)
def test_every_ending_has_a_reason(words: list[str], expected: dict[str, object]) -> None:
    done = shoal("run", "--json", *words)
    result = json.loads(done.stderr.splitlines()[-1])
    assert {key: result[key] for key in expected} == expected
    assert done.returncode == expected["exit_code"]


def test_explain_tells_the_limits_and_hides_secrets() -> None:
    options = ("--explain", "--memory", "64M", "--pids", "5", "--open-files", "50", "--env", "TOKEN=hunter2", "--secret", "TOKEN")
    done = shoal("run", *options, "--", "sh", "-c", "echo hunter2")
    assert done.returncode == 0, done.stderr
    assert "TOKEN=***" in done.stdout
    assert "open_files 50" in done.stdout
    assert done.stdout.splitlines()[-1] == "limits       memory 64M, swap 0, pids 5"
    assert "hunter2" not in done.stdout
    text = shoal("run", "--json", *options, "--", "sh", "-c", "echo hunter2").stdout
    assert "hunter2" not in text
    plan = json.loads(text)
    assert plan["limits"] == {"memory": "64M", "swap": 0, "pids": 5}
    assert "TOKEN=***" in plan["environ"]


def test_a_secret_reaches_the_program_and_nothing_else(tmp_path: Path) -> None:
    options = ("--env", "TOKEN", "--secret", "TOKEN", "--json", "--meta", f"{tmp_path}/meta")
    env = ENVIRON | {"TOKEN": "hunter2"}
    assert sh("echo $TOKEN", *options, env=env).stdout == "hunter2\n"
    (tmp_path / "hunter2").write_text("x")
    done = sh(f"cat {tmp_path}/hunter2", *options, env=env)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith(("shoal:", "{"))]
    assert told
    assert not any("hunter2" in line for line in [*told, *(tmp_path / "meta").read_text().splitlines()])
    done = shoal("run", *options, "/hunter2", env=env)
    assert done.returncode == 127
    assert "hunter2" not in done.stderr + (tmp_path / "meta").read_text()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["sh", "-c", "exit 0"], 0, {"exitcode": "0"}),
        (["sh", "-c", "exit 3"], 3, {"exitcode": "3", "status": "RE"}),
        (["sh", "-c", "kill -9 $$"], 137, {"exitsig": "9", "status": "SG"}),
        (["--timeout", "100ms", "sh", "-c", "while :; do :; done"], 124, {"status": "TO", "killed": "1"}),
        (["no-such-program-anywhere"], 127, {"status": "XX"}),
        (["--ro", "/nowhere", "true"], 125, {"status": "XX"}),
        (["--require", "io", "true"], 125, {"status": "XX"}),
    ],
)
def test_the_end_is_told_in_a_file_as_isolate_does(tmp_path: Path, words: list[str], code: int, expected: dict[str, str]) -> None:
    (tmp_path / "meta").write_text("status:OLD\n" * 100)
    done = shoal("run", "--meta", "meta", *words, cwd=tmp_path)
    pairs = dict(line.split(":", 1) for line in (tmp_path / "meta").read_text().splitlines())
    assert done.returncode == code
    assert {key: pairs[key] for key in expected} == expected
    assert ("status" in pairs) == bool(code)
    assert ("time-wall" in pairs) == (expected.get("status") != "XX")
    assert done.stderr.count("\n") <= 1


def test_a_program_killed_for_a_system_call_is_told_which(tmp_path: Path) -> None:
    (tmp_path / "shoal" / "profiles").mkdir(parents=True)
    (tmp_path / "shoal" / "profiles" / "fatal.toml").write_text('[seccomp]\nbase = "default"\ndeny = ["uname"]\non_denied = "kill"\n')
    env = ENVIRON | {"XDG_CONFIG_HOME": str(tmp_path)}
    done = shoal("run", "--json", "--profile", "fatal", "uname", env=env)
    result = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, result["signal"], len(result["hints"])) == (159, "SIGSYS", 1)
    (denied,) = result["denied"]
    assert (denied["kind"], denied["known_from"]) == ("system call", "kernel")
    if denied["name"]:  # this user may read the kernel's log
        assert denied["name"] == "uname"
        assert "the system call uname" in result["hints"][0]
    else:
        assert "dmesg" in result["hints"][0]
    done = sh("uname; exit $?", "--ro", "/usr", "--profile", "fatal", env=env)
    assert done.returncode == 159
    assert "shoal: hint: it " in done.stderr
    assert "SIGSYS" in done.stderr
