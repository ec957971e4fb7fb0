"""shoal run, from a script: what the program gets, and what is enforced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rig.cli import COMMAND, ENVIRON, User, processes_with, shoal
from rig.features import needs

pytestmark = pytest.mark.skipif(not shutil.which("sh"), reason="needs sh")

MARKER = f"86{os.getpid():07d}"


def sh(script: str, *options: str, **how: object) -> subprocess.CompletedProcess[str]:
    return shoal("run", *options, "--", "sh", "-c", script, **how)


def started(script: str, *options: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "run", *options, "--", "sh", "-c", script]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRON, text=True)


# --- exit codes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--wall-time", "--timeout"])
def test_a_limit_of_a_month_is_longer_than_one_wait_of_the_kernel(option: str) -> None:
    done = sh("echo done", option, "30d")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill $$", 143), ("kill -KILL $$", 137)])
def test_the_exit_code_is_the_programs(script: str, code: int) -> None:
    done = sh(script)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-program-anywhere"], 127, "not found in PATH"),
        (["/nowhere/at/all"], 127, "not found"),
        (["./plain"], 126, "not executable"),
        (["."], 126, "is a directory"),
        (["./fifo"], 126, "not a regular file"),
        (["./dangling"], 126, "does not exist"),
        (["./garbage"], 126, "garbage"),
        (["./orphan"], 126, "/no/such/interpreter"),
        ([], 125, "which program"),
        (["--ro", "/nowhere/at/all", "true"], 125, "No such file"),
        (["--nonsense", "true"], 125, "unrecognized"),
        (["--timeout", "soon", "true"], 125, "not a duration"),
        (["--fd", "x", "true"], 125, "--fd x"),
        (["--fd", "900", "true"], 125, "900"),
        (["--cwd", "/nowhere", "true"], 125, "/nowhere"),
        (["--env", "=x", "true"], 125, "NAME=VALUE"),
        (["--ro", "/usr", "--rw", "/usr", "true"], 125, "granted twice"),
        (["--tmpfs", "relative", "true"], 125, "absolute"),
        (["--fd", "1=7", "--fd", "2=7", "true"], 125, "given twice"),
        (["--memory", "lots", "true"], 125, "--memory: 'lots' is not a size"),
        (["--core-set", "x", "true"], 125, "--core-set: 'x' is no list of processors"),
        (["--open-files", "1073741824", "true"], 125, "open_files: 1073741824 is more than this process itself may have"),
        (["--profile", "pyhton", "true"], 125, "did you mean 'python'"),
        (["--profile", "../x", "true"], 125, "cannot be the name"),
        (["--device", "no-such-device", "true"], 125, "/dev/no-such-device"),
        (["--require", "io", "true"], 125, "io is required, but it was not asked for"),
        (["--require", "user", "--user", "caller", "true"], 125, "user is required"),
        (["--secret", "TOKN", "--env", "TOKEN=x", "true"], 125, "did you mean 'TOKEN'"),
        (["--meta", "/nowhere/at/all", "true"], 125, "--meta /nowhere/at/all: No such file"),
    ],
)
def test_a_failure_is_one_line_and_the_right_code(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    (tmp_path / "plain").write_text("text")
    (tmp_path / "garbage").write_bytes(b"\x7fELFgarbage")
    (tmp_path / "garbage").chmod(0o755)
    (tmp_path / "orphan").write_text("#!/no/such/interpreter\n")
    (tmp_path / "orphan").chmod(0o755)
    (tmp_path / "dangling").symlink_to("gone")
    os.mkfifo(tmp_path / "fifo", 0o755)
    done = shoal("run", *words, cwd=tmp_path)
    assert done.returncode == code
    assert done.stdout == ""
    assert said in done.stderr
    first, *rest = done.stderr.splitlines()
    assert first.startswith("shoal: ")
    assert all(line.startswith("shoal: hint: ") for line in rest)


def test_an_error_shows_a_hostile_name_harmlessly() -> None:
    done = shoal("run", "x\x1b[31m\ny")
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_debugging_shows_where_it_went_wrong() -> None:
    assert "Traceback" in shoal("run", "--ro", "/nowhere", "true", env=ENVIRON | {"SHOAL_DEBUG": "1"}).stderr


def test_help_and_version_are_there() -> None:
    assert shoal("--version").stdout.startswith("shoal ")
    assert "doctor" in shoal("--help").stdout
    text = shoal("run", "--help").stdout
    options = "ro rw tmpfs env clone-env fd cwd name network timeout explain json profile memory swap pids cpus cpu-time wall-time"
    options += " open-files file-size core-set nice tmp seccomp limits require linger device user secret meta"
    for word in ["SRC[:DEST]", *(f"--{option}" for option in options.split(" "))]:
        assert word in text
    assert shoal().returncode == 125
    assert shoal("frobnicate").returncode == 125


# --- what the program gets --------------------------------------------------------------------------


def test_the_world_is_empty_but_for_the_program() -> None:
    done = sh("echo /*; echo /etc/* /home/*; [ -w /tmp ] && [ -e /dev/null ] && [ -e /proc/self/stat ] && echo fine; echo /proc/[0-9]*")
    assert done.returncode == 0, done.stderr
    root, other, fine, pids = done.stdout.splitlines()
    assert {"/dev", "/proc", "/tmp"} <= set(root.split()) <= {"/dev", "/proc", "/tmp", "/usr", "/bin", "/lib", "/lib64", "/sbin", "/svc"}
    assert other == "/etc/* /home/*"
    assert fine == "fine"
    assert len(pids.split()) <= 4


def test_the_environment_has_fixed_values() -> None:
    done = sh("export -p", env=ENVIRON | {"SECRET": "x", "HOME": "/root", "LANG": "C", "TERM": "xterm"})
    lines = set(done.stdout.splitlines())
    assert {"export HOME='/tmp'", "export LANG='C.UTF-8'", "export TERM='dumb'", "export PWD='/'"} <= lines
    assert not any("SECRET" in line or "PYTHONPATH" in line for line in lines)


def test_variables_can_be_set_taken_along_and_cloned() -> None:
    outer = ENVIRON | {"MINE": "1", "OTHER": "2"}
    script = 'echo "$MINE/$OTHER/$NEW/$HOME"'
    assert sh(script, "--env", "MINE", "-e", "NEW=a=b", "--env", "UNSET_ANYWHERE", env=outer).stdout == "1//a=b//tmp\n"
    assert sh(script, "--clone-env", "--env", "OTHER=3", env=outer | {"HOME": "/h"}).stdout == "1/3///h\n"


def test_files_are_readable_or_writable_as_granted(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("hello")
    (tmp_path / "out").mkdir()
    (tmp_path / "single").write_text("old")
    done = sh(
        "read x < /in/in; echo $x; echo new > /out/made; echo new > /s; { echo bad > /in/in; } 2>/dev/null || echo refused",
        *("--ro", f"{tmp_path}:/in", "--rw", f"{tmp_path}/out:/out", "--rw", f"{tmp_path}/single:/s"),
    )
    assert done.stdout == "hello\nrefused\n"
    assert (tmp_path / "out" / "made").read_text() == "new\n"
    assert (tmp_path / "single").read_text() == "new\n"
    assert (tmp_path / "in").read_text() == "hello"


def test_grants_may_lie_inside_one_another_in_any_order(tmp_path: Path) -> None:
    for name in ("a/inner", "b", "c"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b" / "f").write_text("b")
    done = sh("cd /t/inner && echo *", "--tmpfs", "/t/inner/deep", "--ro", f"{tmp_path}/a:/t", cwd=tmp_path)
    assert done.returncode == 125  # there is no `deep` in the host's directory, and none is made there
    assert not (tmp_path / "a" / "inner" / "deep").exists()
    done = sh("cd /t/inner && echo *", "--rw", f"{tmp_path}/b:/t/inner", "--ro", f"{tmp_path}/a:/t", cwd=tmp_path)
    assert done.stdout == "f\n"


@pytest.mark.parametrize("option", ["--ro", "--rw"])
def test_the_whole_root_can_be_granted(option: str) -> None:
    devices = sorted(os.listdir("/dev"))
    words = (option, "/", *(("--user", "caller") if option == "--rw" else ()))  # /proc and /sys cannot be lent to another user
    done = sh("ls -d /root /etc/passwd /tmp/* /dev/null /dev/kmsg 2>/dev/null; ls /proc | grep -c '^[0-9]'", *words)
    assert done.stdout.splitlines()[:-1] == [path for path in ("/dev/null", "/etc/passwd", "/root") if os.path.exists(path)]
    assert int(done.stdout.split()[-1]) < 8
    assert sorted(os.listdir("/dev")) == devices


def test_a_tmpfs_has_the_size_asked_for() -> None:
    done = sh("head -c 2000000 /dev/zero > /small/x; stat -c %s /small/x", "--ro", "/usr", "--tmpfs", "/small:1M")
    assert done.stdout == "1048576\n"


def test_a_relative_script_works_when_it_or_its_directory_is_granted(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("echo from $PWD\n")
    for grant in (".", "job.sh", str(tmp_path)):
        done = shoal("run", "--ro", grant, "--", "sh", "job.sh", cwd=tmp_path)
        assert (done.stdout, done.stderr) == (f"from {os.path.realpath(tmp_path)}\n", "")


def test_a_script_can_be_the_program(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text('#!/bin/sh\necho "$0 $1"\n')
    (tmp_path / "tool").chmod(0o755)
    real = os.path.realpath(tmp_path / "tool")
    assert shoal("run", "./tool", "x", cwd=tmp_path).stdout == f"{real} x\n"
    assert shoal("run", "tool", "x", env=ENVIRON | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}).stdout.endswith("/tool x\n")


def test_the_working_directory_can_be_chosen(tmp_path: Path) -> None:
    assert sh("pwd -P", "--cwd", "/tmp").stdout == "/tmp\n"
    assert sh("pwd -P", "--tmpfs", "/a/b", "--cwd", "/a").stdout == "/a\n"
    assert sh("pwd -P", "--ro", str(tmp_path), "--cwd", str(tmp_path)).stdout == f"{os.path.realpath(tmp_path)}\n"


def test_words_after_the_program_are_the_programs() -> None:
    assert shoal("run", "sh", "-c", 'echo "$@"', "x", "--ro", "--", "-h").stdout == "--ro -- -h\n"
    assert shoal("run", "--", "sh", "-c", 'echo "$@"', "x", "--", "y").stdout == "-- y\n"


def test_descriptors_are_handed_over_by_number(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w+", encoding="utf-8") as file:
        fd = file.fileno()
        inner = "echo seven >&7; echo nine >&9"
        outer = f"exec 7>&1; {' '.join(COMMAND)} run --fd 7 --fd {fd}=9 -- sh -c '{inner}'"
        done = subprocess.run(["sh", "-c", outer], pass_fds=[fd], env=ENVIRON, capture_output=True, text=True, check=False)
        assert done.stdout == "seven\n", done.stderr
        file.seek(0)
        assert file.read() == "nine\n"


def test_no_other_descriptor_reaches_the_program(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w", encoding="utf-8") as file:
        done = sh("echo /proc/self/fd/*", pass_fds=[file.fileno()])
    assert set(done.stdout.split()) <= {f"/proc/self/fd/{fd}" for fd in (0, 1, 2, 3)}  # 3 is the directory being read


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_standard_descriptor_is_dev_null_inside(closed: str, tmp_path: Path) -> None:
    numbers = [int(word[0]) for word in closed.split()]
    checks = " ".join(f"[ /proc/self/fd/{number} -ef /dev/null ] || exit 9;" for number in numbers)
    outer = f"{' '.join(COMMAND)} run --rw {tmp_path} -- sh -c '{checks} echo fine > {tmp_path}/f' {closed}"
    done = subprocess.run(["sh", "-c", outer], env=ENVIRON, stdin=subprocess.PIPE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "f").read_text() == "fine\n"


@pytest.mark.parametrize("option", ["--ro", "--rw"])
@pytest.mark.parametrize("source", [".", "etc", "..", ".:/x"])
def test_in_a_directory_that_has_been_removed_no_relative_path_means_anything(option: str, source: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    line = f"rmdir {here}; {' '.join(COMMAND)} run {option} {source} -- ls /; {' '.join(COMMAND)} run --ro / -- sh -c 'pwd; exit 3'"
    done = subprocess.run(["sh", "-c", line], cwd=here, env=ENVIRON, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"shoal: {option} {source}: {source.removesuffix(':/x')}: No such file or directory")
    assert (done.returncode, done.stdout) == (3, "/\n")


def test_the_name_is_shown_by_ps() -> None:
    assert sh("read x < /proc/self/comm; echo $x", "--name", "renamed").stdout == "renamed\n"


def test_the_network_is_there_only_when_asked_for() -> None:
    ours = sorted(os.listdir("/sys/class/net"))
    script = "while IFS=: read name rest; do case $rest in *[0-9]*) echo $name;; esac; done < /proc/self/net/dev"
    assert sh(script).stdout.split() == ["lo"]
    assert sorted(sh(script, "--network", "host").stdout.split()) == ours
    listed = sh("echo /etc/*", "--network", "host").stdout.split()
    assert ("/etc/hosts" in listed) == os.path.exists("/etc/hosts")


def test_large_streams_pass_untouched() -> None:
    script = f"head -c 300000000 /dev/zero | {' '.join(COMMAND)} run -- cat | wc -c"
    began = time.monotonic()
    done = subprocess.run(["sh", "-c", script], env=ENVIRON, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "300000000"
    assert time.monotonic() - began < 20  # a pipe that was copied by us would take longer than one handed over


# --- whom it runs as --------------------------------------------------------------------------------


@needs("root")
def test_roots_program_is_a_user_that_nobody_else_is() -> None:
    first, second = (int(sh("id -u", "--ro", "/usr").stdout) for _ in range(2))
    assert min(first, second) > 1 << 16
    assert first != second
    assert sh("id -u", "--ro", "/usr", "--user", "caller").stdout == "0\n"


def test_what_only_the_caller_may_read_can_be_handed_over(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    for name in ("d/in", "alone"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o600)
    done = sh("cat /d/in /alone; : > /d/in", "--ro", "/usr", "--ro", f"{tmp_path}/d:/d", "--ro", f"{tmp_path}/alone:/alone")
    assert done.stdout == "d/inalone"
    assert done.returncode != 0
    assert (tmp_path / "d" / "in").read_text() == "d/in"


def test_a_program_that_only_the_caller_may_execute_can_be_executed(tmp_path: Path) -> None:
    shutil.copy(os.path.realpath(shutil.which("true") or "/bin/true"), tmp_path / "mine")
    (tmp_path / "mine").chmod(0o700)
    assert shoal("run", "./mine", cwd=tmp_path).returncode == 0
    assert shoal("run", "--ro", ".", "--cwd", "/", str(tmp_path / "mine"), cwd=tmp_path).returncode == 0


def test_what_it_writes_belongs_to_the_caller(tmp_path: Path) -> None:
    done = sh("umask 077; mkdir /out/d; echo x > /out/d/f; test -O /out/d/f", "--ro", "/usr", "--rw", f"{tmp_path}:/out")
    assert (done.returncode, done.stderr) == (0, "")
    assert {(tmp_path / name).stat().st_uid for name in ("d", "d/f")} == {os.geteuid()}


def test_a_directory_in_memory_can_be_written() -> None:
    assert sh("echo x > /a/b/c; cat /a/b/c", "--ro", "/usr", "--tmpfs", "/a/b").stdout == "x\n"


@needs("root")
@pytest.mark.parametrize("options", [(), ("--user", "dynamic"), ("--require", "user"), ("--limits", "best-effort")])
def test_where_files_cannot_be_lent_nothing_is_started_and_the_way_is_told(options: tuple[str, ...]) -> None:
    """/proc and /sys, which / brings along, cannot show their files as another user's."""
    done = sh("id -u", "--rw", "/", *options)
    assert (done.returncode, done.stdout) == (125, "")
    assert "directory / " in done.stderr
    assert "--user caller" in done.stderr
    done = sh("id -u; grep CapEff /proc/self/status", "--rw", "/", "--user", "caller")
    assert (done.stdout.split(), done.stderr) == (["0", "CapEff:", "0" * 16], "")


def test_a_pipe_can_be_opened_anew() -> None:
    done = sh("cat < /dev/stdin > /dev/stdout; echo err > /dev/stderr", "--ro", "/usr", input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "err\n")


def test_the_private_terminal_can_be_opened_anew() -> None:
    with User(
        *COMMAND, "run", "--", "sh", "-c", "echo one > /dev/stderr; echo two > /proc/self/fd/1; read x < /dev/stdin; echo $x"
    ) as user:
        user.expect("two")
        user.type("three\n")
        user.expect("three\r\nthree")
        assert user.until_end()[0] == 0


# --- what is enforced -------------------------------------------------------------------------------


def test_limits_of_each_process_hold() -> None:
    core = min(os.sched_getaffinity(0))
    options = ("--open-files", "50", "--nice", "7", "--core-set", str(core), "--tmp", "1M", "--cpu-time", "100")
    done = sh(
        "ulimit -n; ulimit -t; nice; grep Cpus_allowed_list /proc/self/status; head -c 2000000 /dev/zero > /tmp/x; stat -c %s /tmp/x",
        *("--ro", "/usr", "--limits", "best-effort", *options),
    )
    assert done.stdout.split() == ["50", "100", "7", "Cpus_allowed_list:", str(core), "1048576"]


def test_a_file_grows_no_longer_than_it_may(tmp_path: Path) -> None:
    done = sh("head -c 100000 /dev/zero > /out/f; exit 3", "--ro", "/usr", "--rw", f"{tmp_path}:/out", "--file-size", "64K")
    assert done.returncode == 3
    assert (tmp_path / "f").stat().st_size == 1 << 16


def test_a_tmp_can_be_left_out() -> None:
    assert sh("echo /tmp*", "--tmp", "none").stdout == "/tmp*\n"


@pytest.mark.parametrize(("mode", "shown"), [("default", "2"), ("strict", "2"), ("off", "0")])
def test_the_filter_can_be_chosen(mode: str, shown: str) -> None:
    done = shoal("run", "--ro", "/usr", "--seccomp", mode, "grep", "Seccomp:", "/proc/self/status")
    assert done.stdout.split() == ["Seccomp:", shown], done.stderr


def test_with_the_strict_filter_nothing_else_is_started() -> None:
    assert sh("true & echo made", "--seccomp", "strict").returncode != 0
    assert sh("true & echo made", "--seccomp", "default").stdout == "made\n"


def test_a_device_is_there_only_when_asked_for() -> None:
    name = next((name for name in ("kmsg", "fuse", "net/tun", "kvm") if os.path.exists(f"/dev/{name}")), None)
    if name is None:
        pytest.skip("needs a device besides the usual ones")
    script = f"test -e /dev/{name} && echo there"
    assert sh(script).stdout == ""
    assert sh(script, "--device", name).stdout == "there\n"


def test_a_limit_that_cannot_be_enforced_is_an_error_unless_less_will_do() -> None:
    done = sh("echo ran", "--pids", "50")
    if done.returncode == 0:
        pytest.skip("this machine can limit processes")
    assert (done.returncode, done.stdout) == (125, "")
    assert "shoal: pids: " in done.stderr
    assert "add --limits best-effort" in done.stderr
    assert sh("echo ran", "--pids", "50", "--limits", "best-effort").stdout == "ran\n"
    done = sh("echo ran", "--pids", "50", "--limits", "best-effort", "--require", "pids")
    assert (done.returncode, done.stdout) == (125, "")
    assert "pids is required, but it is not in force" in done.stderr


def test_a_required_protection_is_checked_and_the_rest_is_told() -> None:
    done = sh("true", "--json", "--require", "seccomp", "--require", "namespaces", "--open-files", "50")
    enforced = json.loads(done.stderr.splitlines()[-1])["enforced"]
    assert enforced["seccomp"] == "default"
    assert enforced["open_files"] == "each process"
    assert enforced["namespaces"] is True
    assert enforced["network"] is True
    assert json.loads(sh("true", "--json", "--network", "host").stderr.splitlines()[-1])["enforced"]["network"] is False


# --- who may run it ---------------------------------------------------------------------------------


@needs("root")
@needs("user namespaces for ordinary users")
def test_an_ordinary_user_gets_the_same(tmp_path: Path) -> None:
    who: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/", "env": ENVIRON, "capture_output": True}
    who["text"] = True

    def can_run(python: str) -> bool:
        try:
            same = f"import sys, shoal.cli.run; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
            return subprocess.run([python, "-c", same], check=False, **who).returncode == 0
        except OSError:
            return False

    python = next(filter(can_run, (sys.executable, "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("needs an interpreter and a shoal that other users can read")
    command = [python, "-m", "shoal", "run"]
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    script = f"echo x > {tmp_path}/made; exit 6"
    done = subprocess.run([*command, "--rw", str(tmp_path), "--", "sh", "-c", script], check=False, **who)
    assert (done.returncode, done.stdout, done.stderr) == (6, "", "")
    assert (tmp_path / "made").stat().st_uid == 65534
    script = f"setsid sleep {MARKER}9 & sleep {MARKER}9"
    done = subprocess.run([*command, "--ro", "/usr", "--timeout", "500ms", "--", "sh", "-c", script], check=False, **who)
    assert done.returncode == 124, done.stderr
    assert processes_with(MARKER) == []


def test_starting_up_is_quick() -> None:
    """What shoal adds to the interpreter: measured here only for gross mistakes, a slow machine gets five times the goal of 60 ms."""

    def best(*command: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(command, env=ENVIRON, check=True, capture_output=True)
            times.append(time.perf_counter() - began)
        return min(times)

    assert best(*COMMAND, "run", "true") - best(sys.executable, "-c", "pass") < 0.3
