"""shoal completion: the scripts in the shells they are for, with real domains to complete."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rig.cli import COMMAND, User
from rig.desk import Desk, own_desk

from shoal.cli.grammar import commands
from shoal.cli.main import VERBS

CASES = [
    ("shoal l", ["logs"]),
    ("shoal lo", ["logs"]),
    ("shoal kill 1", ["1"]),
    ("shoal kill we", ["web"]),
    ("shoal kill 0 we", ["web"]),
    ("shoal kill -s US", ["USR1", "USR2"]),
    ("shoal kill -s USR1 we", ["web"]),
    ("shoal logs -f -n 5 we", ["web"]),
    ("shoal logs --std", ["--stderr", "--stdout"]),
    ("shoal wait don", ["done"]),
    ("shoal kill don", []),
    ("shoal span we", ["web"]),
    ("shoal span web we", []),
    ("shoal span web 0", ["0"]),
    ("shoal exec -e web we", ["web"]),
    ("shoal tree web we", ["web"]),
    ("shoal manager st", ["start", "status", "stop"]),
    ("shoal manager start st", []),
    ("shoal profile show python pyt", []),
    ("shoal profile show pyt", ["python"]),
    ("shoal run --profile pyt", ["python"]),
    ("shoal run --seccomp st", ["strict"]),
    ("shoal completion z", ["zsh"]),
    ("shoal spawn -d --name x my-own-pro", ["my-own-program"]),
    ("shoal run my-own-pro", ["my-own-program"]),
    ("shoal spawn my-own-program some-fi", ["some-file"]),
    ("shoal exec we", ["web"]),
    ("shoal exec --cwd /tmp we", ["web"]),
    ("shoal exec w", ["web"]),
    ("shoal exec web my-own-pro", ["my-own-program"]),
    ("shoal exec -e A=b web -- my-own-pro", ["my-own-program"]),
    ("shoal exec web my-own-program some-fi", ["some-file"]),
    ("shoal manager start --co", ["--cores"]),
    ("shoal manager spawnd --ad", ["--address"]),
    ("shoal nothing ", []),
]


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    """With two domains that run, of which one has a name, and one that has ended."""
    with own_desk() as made:
        made.spawn("--name", "web", "sleep", "1000")
        made.spawn("--name", "odd name; `x`", "sleep", "1000")
        made.shoal("wait", made.spawn("--name", "done", "true"))
        yield made


@pytest.fixture
def place(desk: Desk, tmp_path: Path) -> dict[str, str]:
    """The environment of a shell there, with a `shoal` that is ours, and a directory to work in."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (tmp_path / "some-file").write_text("")
    for name, line in ("shoal", f'exec {shlex.join(COMMAND)} "$@"'), ("my-own-program", "true"):
        (bin / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin / name).chmod(0o755)
    return desk.env | {"PATH": f"{bin}:{os.environ['PATH']}", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}


def script_for(desk: Desk, shell: str, tmp_path: Path) -> Path:
    done = desk.shoal("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    path = tmp_path / f"completion.{shell}"
    path.write_text(done.stdout)
    return path


def in_bash(script: Path, env: dict[str, str], line: str) -> list[str]:
    """What bash's own machinery gives for a line, and what the function says on stderr."""
    ask = f"""
. {script}
words=({line}); [[ {shlex.quote(line)} == *' ' ]] && words+=('')
COMP_WORDS=("${{words[@]}}") COMP_CWORD=$(( ${{#words[@]}} - 1 )) COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}
compopt() {{ :; }}
_shoal shoal "${{words[COMP_CWORD]}}" "${{words[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-u", "-c", ask], cwd=script.parent, env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return sorted(filter(None, done.stdout.split("\n")))


def in_fish(script: Path, env: dict[str, str], line: str) -> list[str]:
    ask = f"source {script}; complete -C {shlex.quote(line)}"
    done = subprocess.run(["fish", "--no-config", "-c", ask], cwd=script.parent, env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return sorted(word.split("\t")[0] for word in done.stdout.splitlines())


SHELLS: dict[str, Callable[[Path, dict[str, str], str], list[str]]] = {"bash": in_bash, "fish": in_fish}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_verbs_options_domains_and_programs(desk: Desk, place: dict[str, str], tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = script_for(desk, shell, tmp_path)
    found = {line: SHELLS[shell](script, place, line) for line, _ in CASES}
    assert found == dict(CASES)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_somebody_at_bash_presses_tab(desk: Desk, place: dict[str, str], tmp_path: Path) -> None:
    script = script_for(desk, "bash", tmp_path)
    with User("bash", "--norc", "--noprofile", "-i", env=place | {"TERM": "dumb"}, cwd=tmp_path) as user:
        user.expect("$ ")
        user.type(f". {script}\n")
        user.expect("$ ")
        for typed, completed in [
            ("shoal lo\t", "shoal logs "),
            ("shoal kill w\t", "shoal kill web "),
            ("shoal run --seccomp=st\t", "shoal run --seccomp=strict "),
            ("shoal spawn my-own-program some\t", "shoal spawn my-own-program some-file "),
            ("shoal spawn -d my-own-p\t", "shoal spawn -d my-own-program "),
        ]:
            user.type(typed)
            user.expect(completed)
            user.type("\x15")  # ctrl-U: away with it
        user.type("exit\n")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_somebody_at_zsh_presses_tab(desk: Desk, place: dict[str, str], tmp_path: Path) -> None:
    script = script_for(desk, "zsh", tmp_path)
    with User("zsh", "-f", "-i", env=place | {"TERM": "dumb", "PS1": "> "}, cwd=tmp_path) as user:
        user.expect("> ")
        user.type(f"autoload -Uz compinit; compinit -u -D; . {script}; PS1='%''% '\n")
        user.expect("% ")
        for typed, completed in [
            ("shoal lo\t", "shoal logs "),
            ("shoal kill w\t", "shoal kill web "),
            ("shoal kill -s WINC\t", "shoal kill -s WINCH "),
            ("shoal run --seccomp=st\t", "shoal run --seccomp=strict "),
            ("shoal run --profile pyt\t", "shoal run --profile python "),
            ("shoal spawn my-own-program some-f\t", "shoal spawn my-own-program some-file "),
            ("shoal spawn -d my-own-p\t", "shoal spawn -d my-own-program "),
        ]:
            user.type(typed)
            user.expect(completed)
            user.type("\x15")
        user.type("exit\n")


def test_what_changes_is_listed_without_starting_a_manager(desk: Desk, tmp_path: Path) -> None:
    lines = desk.shoal("completion", "--list", "domains").stdout.splitlines()
    assert [line.split("\t") for line in lines] == [["0", "web: sleep 1000"], ["1", "odd name; `x`: sleep 1000"], ["web", "0: sleep 1000"]]
    known = [line.split("\t")[0] for line in desk.shoal("completion", "--list", "known").stdout.splitlines()]
    assert known == ["0", "1", "2", "web", "done"]
    elsewhere = desk.env | {"SHOAL_STATE_DIR": str(tmp_path / "none")}
    done = desk.shoal("completion", "--list", "domains", env=elsewhere)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "none").exists()


def test_every_option_of_every_verb_is_completed(desk: Desk) -> None:
    found = commands()
    assert [command.verb for command in found] == list(VERBS)
    scripts = {shell: desk.shoal("completion", shell).stdout for shell in ("bash", "zsh", "fish")}
    for command in found:
        for option in command.options:
            long = option.flags[-1]
            assert long in scripts["bash"], (command.verb, long)
            assert long in scripts["zsh"], (command.verb, long)
            assert f"-l {long[2:]} " in scripts["fish"], (command.verb, long)


def test_a_shell_has_to_be_named(desk: Desk) -> None:
    for words, said in ([], "shoal: which shell? there are: bash, zsh, fish\n"), (["csh"], "invalid choice: 'csh'"):
        done = desk.shoal("completion", *words)
        assert (done.returncode, done.stdout) == (125, "")
        assert said in done.stderr
