"""What a result tells of the system call or the file that a program ended for, and that it tells nothing it does not know."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rig.cli import shoal as command
from rig.features import needs

import shoal
from shoal import Denied, Sandbox, Seccomp

pytestmark = pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell")

USR = Sandbox(read=["/usr"])
KILLS = USR.replace(seccomp=Seccomp(deny=["mkdir", "mkdirat"], on_denied="kill"))


def sh(script: str, box: Sandbox = USR, **more: Any) -> shoal.Result:
    return shoal.run(["sh", "-c", script], sandbox=box, **({"capture_output": True, "text": True} | more))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the caller's that nobody hands over, and which is where it works."""
    (tmp_path / "data.txt").write_text("42\n")
    (tmp_path / "with space").write_text("42\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- system calls -----------------------------------------------------------------------------------


@needs("a log of the kernel that this user may read")
@pytest.mark.parametrize("times", [1, 3])
def test_the_system_call_that_a_program_was_killed_for_is_named(times: int) -> None:
    for _ in range(times):  # the later ones in cells made ahead
        done = shoal.run(["mkdir", "/tmp/x"], sandbox=KILLS)
        assert (done.returncode, done.reason) == (-signal.SIGSYS, "signaled")
        assert done.denied == (Denied("system call", done.denied[0].name, "kernel"),)
        assert done.denied[0].name in ("mkdir", "mkdirat")


@pytest.mark.root
@needs("a log of the kernel that this user may read")
def test_a_call_that_killed_something_further_down_is_named() -> None:
    done = sh("mkdir /tmp/x; exit $?", KILLS)
    assert (done.returncode, done.reason) == (128 + signal.SIGSYS, "exited")
    assert [denied.kind for denied in done.denied] == ["system call"]
    assert done.denied[0].name.startswith("mkdir")
    assert "denied: system call mkdir" in str(shoal.RunError(done))


def test_where_the_kernel_does_not_tell_which_call_it_was_nothing_is_made_up() -> None:
    done = sh("kill -SYS $$")
    assert done.denied == (Denied("system call", "", "kernel"),)
    assert "dmesg" in str(done.denied[0])
    assert sh("exit 159").denied == ()
    assert sh("kill -SYS $$", USR.replace(seccomp="off")).denied == ()


def test_the_calls_of_an_earlier_run_are_not_this_ones() -> None:
    shoal.run(["mkdir", "/tmp/x"], sandbox=KILLS)
    assert sh("kill -SYS $$").denied == (Denied("system call", "", "kernel"),)


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "missed"),
    [
        ("cat {0}/data.txt", "{0}/data.txt"),
        ("cat data.txt", "{0}/data.txt"),
        ("cat < {0}/data.txt", "{0}/data.txt"),
        ("cat '{0}/with space'", "{0}/with space"),
        ("ls -d {0}", "{0}"),
        ("cat /tmp/none {0}/none {0}/data.txt", "{0}/data.txt"),
    ],
)
def test_the_file_that_a_program_says_it_missed_is_named(project: Path, script: str, missed: str) -> None:
    done = sh(script.format(project))
    assert done.returncode != 0
    assert done.denied == (Denied("file", missed.format(project), "stderr"),)
    assert str(done.denied[0]) == f"file {missed.format(project)}"


def test_what_stderr_says_is_heard_where_it_goes_to_stdout(project: Path) -> None:
    done = sh(f"cat {project}/data.txt", capture_output=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert [denied.name for denied in done.denied] == [f"{project}/data.txt"]


def test_python_says_it_in_its_own_words(project: Path) -> None:
    reads = sorted({sys.base_prefix, sys.prefix, "/usr"})
    code = f"open({str(project / 'data.txt')!r})"
    done = shoal.run([sys.executable, "-c", code], sandbox=Sandbox(read=reads), capture_output=True)
    assert done.denied == (Denied("file", f"{project}/data.txt", "stderr"),)


def test_a_command_that_is_not_there_is_named_by_where_the_host_has_it() -> None:
    done = sh("uname", Sandbox())
    assert done.returncode == 127
    assert [(denied.kind, os.path.basename(denied.name)) for denied in done.denied] == [("file", "uname")]
    assert os.access(done.denied[0].name, os.X_OK)


def test_a_shared_library_that_is_not_there_is_named_by_where_the_host_has_it(project: Path) -> None:
    tool = "/usr/bin/ls"
    linker = [path for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1") if os.path.exists(path)]
    done = sh(tool, Sandbox(read=[tool, *linker]))
    if "error while loading shared libraries" not in done.stderr:
        pytest.skip(f"needs a {tool} with a library that sh does without")
    assert [denied.known_from for denied in done.denied] == ["stderr"]
    assert os.path.exists(done.denied[0].name)
    assert os.path.basename(done.denied[0].name) in done.stderr


def test_without_its_stderr_the_words_it_was_given_have_to_do(project: Path) -> None:
    done = shoal.run(["cat", "data.txt", "/tmp/none"], sandbox=USR, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert done.denied == (Denied("file", f"{project}/data.txt", "arguments"),)


@pytest.mark.parametrize(
    "script",
    [
        "exit 3",
        "cat /no/such/file/anywhere",  # nor on the host
        "no-such-command-anywhere",
        "echo 'data.txt is fine' >&2; exit 1",
        "cat {0}/data.txt; exit 0",  # it ended well
        "echo {0}/data.txt: No such file or directory >&2; kill -9 $$",  # and of a signal
    ],
)
def test_what_is_not_known_is_not_told(project: Path, script: str) -> None:
    assert sh(script.format(project)).denied == ()


def test_what_it_was_handed_is_not_denied(project: Path) -> None:
    done = sh("echo $PWD/data.txt: No such file or directory >&2; exit 1", USR.replace(read=["/usr", project]))
    assert f"{project}/data.txt" in done.stderr
    assert done.denied == ()


def test_a_run_that_a_limit_has_ended_was_denied_nothing(project: Path) -> None:
    done = sh(f"cat {project}/data.txt; sleep 60", USR.replace(wall_time=0.3))
    assert (done.reason, done.denied) == ("wall_time", ())


@pytest.mark.parametrize(
    "script",
    [
        r"printf '/\033[31m\377x: No such file or directory\n'",
        "head -c 3000000 /dev/zero | tr '\\0' a; echo ': not found'",
        "yes '/: not found' | head -c 1000000",
        "yes \"'\" | head -c 1000000; echo ': not found'",
        "printf 'a\\0b: not found'",
    ],
)
def test_a_hostile_stderr_costs_little_and_is_only_listened_to(script: str) -> None:
    began = time.process_time()
    done = sh(f"{{ {script}; }} >&2; exit 1", text=False)
    assert (done.returncode, done.denied) == (1, ())
    assert time.process_time() - began < 2


# --- the command ------------------------------------------------------------------------------------


def test_the_command_tells_the_same(project: Path) -> None:
    done = command("run", "--json", "--ro", "/usr", "cat", "data.txt", cwd=project)
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["denied"] == [{"kind": "file", "name": f"{project}/data.txt", "known_from": "arguments"}]
    assert f"--ro {project}/data.txt" in told["hints"][0]


def test_a_run_that_ends_well_does_not_even_load_what_would_tell(run_python: Any) -> None:
    script = """
import shoal
box = shoal.Sandbox(read=["/usr"])
shoal.run(["true"], sandbox=box)
before = sorted(name for name in sys.modules if name in ("shoal.sandbox.denied", "shoal.sandbox.hints", "shoal.sandbox.refused"))
shoal.run(["false"], sandbox=box)
answer([before, "shoal.sandbox.denied" in sys.modules])
"""
    assert run_python(script) == [[], True]
