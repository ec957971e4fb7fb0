"""shoal profile, and what runs with the profiles that come with shoal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from rig.cli import COMMAND, ENVIRON, User, shoal

PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """With a folder for the user's own profiles."""
    (tmp_path / "config" / "shoal" / "profiles").mkdir(parents=True)
    return {**ENVIRON, "XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def mine(tmp_path: Path, env: dict[str, str]) -> Path:
    """A profile of the user's own, which builds upon one that comes with shoal."""
    path = tmp_path / "config" / "shoal" / "profiles" / "mine.toml"
    path.write_text('# What I run\ninherits = "untrusted"\nmemory = "1G"\nsecrets = ["TOKEN"]\n[env]\nTOKEN = "hunter2"\n')
    return path


# --- the verb ---------------------------------------------------------------------------------------


def test_all_are_listed_with_what_they_are_for(env: dict[str, str], mine: Path) -> None:
    done = shoal("profile", "list", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert sorted(lines) == ["build", "mine", "node", "python", "service", "untrusted"]
    assert lines["mine"].endswith(f"What I run  ({mine})")
    listed = json.loads(shoal("profile", "list", "--json", env=env).stdout)
    assert {"name": "mine", "path": str(mine), "summary": "What I run"} in listed


def test_show_prints_what_it_comes_down_to(env: dict[str, str], mine: Path) -> None:
    done = shoal("profile", "show", "mine", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert 'memory = "1G"' in lines
    assert 'seccomp = "strict"' in lines  # inherited
    assert 'TOKEN = "***"' in lines
    assert not any(line.startswith(("inherits", "network", "nice")) for line in lines)
    data = json.loads(shoal("profile", "show", "mine", "--json", env=env).stdout)
    assert data["path"] == str(mine)
    assert data["sandbox"]["memory"] == "1G"
    assert "hunter2" not in json.dumps(data)


def test_what_is_shown_can_be_a_profile(env: dict[str, str], mine: Path) -> None:
    mine.with_name("again.toml").write_text(shoal("profile", "show", "python", env=env).stdout)
    assert shoal("profile", "show", "again", env=env).stdout == shoal("profile", "show", "python", env=env).stdout


def test_check_tells_all_mistakes_with_their_places(env: dict[str, str], mine: Path, tmp_path: Path) -> None:
    done = shoal("profile", "check", "mine", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{mine}: no mistakes\n", "")
    bad = tmp_path / "bad.toml"
    bad.write_text("memroy = '1G'\npids = 'x'\n")
    done = shoal("profile", "check", str(bad), env=env)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        f"{bad}:1: memroy is nothing that a profile can say; did you mean 'memory'?",
        f"{bad}:2: pids has to be a whole number; this is text",
    ]
    done = shoal("profile", "check", "--json", "bad.toml", env=env, cwd=tmp_path)
    data = json.loads(done.stdout)
    assert (done.returncode, data["ok"]) == (1, False)
    assert [(item["line"], item["key"]) for item in data["mistakes"]] == [(1, "memroy"), (2, "pids")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "list|show|check"),
        (["frobnicate"], "invalid choice"),
        (["show"], "which profile"),
        (["list", "python"], "unrecognized arguments: python"),
        (["show", "pyhton"], "did you mean 'python'"),
        (["check", "pyhton"], "did you mean 'python'"),
        (["show", "../x"], "cannot be the name"),
    ],
)
def test_a_wrong_word_is_one_line(env: dict[str, str], words: list[str], said: str) -> None:
    done = shoal("profile", *words, env=env)
    assert (done.returncode, done.stdout) == (125, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_says_where_the_users_own_are(env: dict[str, str]) -> None:
    assert f"{env['XDG_CONFIG_HOME']}/shoal/profiles" in shoal("profile", "--help", env=env).stdout
    assert "profile" in shoal("--help", env=env).stdout


def test_a_mistake_in_a_profile_starts_nothing(env: dict[str, str], mine: Path) -> None:
    mine.write_text("memroy = 1")
    done = shoal("run", "--profile", "mine", "true", env=env)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"{mine}:1: memroy" in done.stderr


# --- what runs with them ----------------------------------------------------------------------------


def test_a_python_program_runs_and_has_no_network(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import concurrent.futures, ctypes.util, getpass, multiprocessing, os, socket, sqlite3, ssl, tempfile, time, zoneinfo\n"
        "if __name__ == '__main__':\n"
        "    with concurrent.futures.ProcessPoolExecutor(2) as pool: print(list(pool.map(abs, [-1])))\n"
        "    with tempfile.TemporaryFile() as file: print(file.write(b'x'))\n"
        "    server = socket.create_server(('localhost', 0)); socket.create_connection(server.getsockname()).close()\n"
        "    print(getpass.getuser(), sorted(name for _, name in socket.if_nameindex()))\n"
    )
    for python in dict.fromkeys((PYTHON, sys.executable)):
        done = shoal("run", "--profile", "python", "--ro", ".", "--", python, "job.py", cwd=tmp_path, env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n1\nnobody ['lo']\n", "")


def test_a_virtual_environment_brings_its_modules(env: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "venv"
    library = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    library.mkdir(parents=True)
    (place / "bin").mkdir()
    (place / "bin" / "python").symlink_to(PYTHON)
    (place / "pyvenv.cfg").write_text(f"home = {os.path.dirname(PYTHON)}\n")
    (library / "extra.py").write_text("print('extra')")
    done = shoal("run", "--profile", "python", "venv/bin/python", "-c", "import extra", cwd=tmp_path, env=env)
    assert (done.stdout, done.stderr) == ("extra\n", "")


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_a_javascript_program_runs(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.js").write_text(
        "const {Worker} = require('worker_threads'); const {execSync} = require('child_process');\n"
        "process.stdout.write(execSync('echo from a shell').toString());\n"
        "require('fs').writeFileSync('/tmp/x', 'x');\n"
        "new Worker('console.log(6 * 7)', {eval: true});\n"
    )
    done = shoal("run", "--profile", "node", "--ro", ".", "node", "job.js", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "from a shell\n42\n", "")


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("cc")), reason="needs make and cc")
def test_a_build_makes_files_of_the_callers_in_the_current_directory(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text('#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n')
    (tmp_path / "Makefile").write_text("all: a b\na b: a.c\n\tcc -pipe -o $@ a.c\n")
    done = shoal("run", "--profile", "build", "make", "-j2", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert {(tmp_path / name).stat().st_uid for name in "ab"} == {os.geteuid()}
    done = shoal("run", "--profile", "untrusted", "./a", cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "built\n", "")


def test_a_server_has_the_network_and_names(env: dict[str, str]) -> None:
    code = "import socket; print(sorted(name for _, name in socket.if_nameindex()), socket.gethostbyname('localhost'))"
    done = shoal("run", "--profile", "service", PYTHON, "-c", code, env=env)
    names = sorted(os.listdir("/sys/class/net"))
    assert (done.returncode, done.stdout.split("] ")[0] + "]") == (0, str([name for name in names if name != "bonding_masters"]))
    assert shoal("run", "--profile", "service", "--network", "none", PYTHON, "-c", code, env=env).stdout.startswith("['lo']")


def test_untrusted_code_gets_little(env: dict[str, str]) -> None:
    script = "echo /*; ulimit -n; (head -c 100000000 /dev/zero > /tmp/x) 2>/dev/null; true & echo not reached"
    done = shoal("run", "--profile", "untrusted", "--", "sh", "-c", script, env=env)
    root, files = done.stdout.splitlines()[:2]
    assert not {"/usr", "/etc", "/home", "/bin"} & set(root.split()) - {"/usr", "/bin"}
    assert files == "256"
    assert "not reached" not in done.stdout
    assert done.returncode != 0


def test_options_add_to_a_profile_and_win(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config" / "shoal" / "profiles" / "mine.toml").write_text(
        f'read = ["/usr"]\nopen_files = 50\n[write]\n"/out" = "{tmp_path}"\n[env]\nA = "profile"\nB = "profile"\n'
    )
    script = "ulimit -n; echo $A $B; echo x > /out/made; cat /in/seen"
    (tmp_path / "seen").write_text("seen\n")
    options = ("--profile", "mine", "--ro", f"{tmp_path}:/in", "--env", "B=option")
    done = shoal("run", *options, "--", "sh", "-c", script, env=env)
    assert done.stdout == "50\nprofile option\nseen\n"
    assert (tmp_path / "made").read_text() == "x\n"
    done = shoal("run", *options, "--open-files", "60", "--ro", f"{tmp_path}:/out", "--", "sh", "-c", script, env=env)
    assert done.stdout.startswith("60\n")
    assert "Read-only file system" in done.stderr


def test_at_a_terminal_a_profile_says_what_the_terminal_is_called(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config" / "shoal" / "profiles" / "mine.toml").write_text('env.TERM = "vt52"')
    with User(*COMMAND, "run", "--profile", "mine", "--", "sh", "-c", "echo $TERM.", env=env) as user:
        user.expect("vt52.")
        assert user.until_end()[0] == 0
