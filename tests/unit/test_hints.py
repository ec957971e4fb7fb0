"""When a program ended badly, which grant would have helped."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from shoal.sandbox.grants import View, lay_out, parse_bind, working_directory
from shoal.sandbox.hints import HINTS_MAX, Run, hints_for
from shoal.sandbox.program import find_program

PATH = "/usr/local/bin:/usr/bin:/bin"


def hints(command: list[str], *, cwd: Path | str = "/", ro: tuple[str, ...] = (), code: int = 1, network: bool = False) -> list[str]:
    """The options that would be recommended."""
    program = find_program(command[0], PATH, str(cwd))
    granted = [grant for text in ro for grant in parse_bind(text, writable=False, cwd=str(cwd))]
    view = View(lay_out(granted, program=program.path, network=network))
    found = hints_for(
        Run(
            program=program,
            args=command[1:],
            view=view,
            cwd=working_directory(None, view, str(cwd)),
            host_cwd=str(cwd),
            environ={"PATH": PATH},
            search=PATH,
            network=network,
            exit_code=code,
        )
    )
    return [hint.option for hint in found]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = Path(os.path.realpath(tmp_path)) / "project"
    (root / "data").mkdir(parents=True)
    (root / "job.sh").write_text("#!/bin/sh\nexit 1\n")
    (root / "data" / "in.txt").write_text("x")
    (root / "tool.py").write_text("")
    (root / "strange").write_text("#!/usr/bin/env -S A=1 bash -x\n")
    (root / "strange").chmod(0o755)
    return root


def test_a_script_that_is_not_visible(project: Path) -> None:
    assert hints(["sh", "job.sh"], cwd=project) == [f"--ro {project}/job.sh"]
    assert hints(["sh", str(project / "job.sh")]) == [f"--ro {project}/job.sh"]
    assert hints(["sh", "./data/../job.sh"], cwd=project) == [f"--ro {project}/job.sh"]


def test_nothing_is_said_of_what_is_visible(project: Path) -> None:
    assert hints(["sh", "job.sh"], cwd=project, ro=(".",)) == []
    assert hints(["sh", "job.sh"], cwd=project, ro=("job.sh",)) == []
    assert hints(["sh", "-c", "exit 3"], cwd=project) == []
    assert hints(["false"], cwd=project) == []


def test_a_file_that_is_visible_under_another_name_only(project: Path) -> None:
    assert hints(["cat", "data/in.txt"], cwd=project, ro=(f"{project}/data:/elsewhere",)) == [f"--ro {project}/data/in.txt"]
    assert hints(["cat", "data/in.txt"], cwd=project, ro=(f"{project}/data:/data",)) == []


def test_values_of_options_and_paths_within_words(project: Path) -> None:
    assert hints(["cat", f"--input={project}/data/in.txt"]) == [f"--ro {project}/data/in.txt"]
    assert hints(["cat", f"-I{project}/data"]) == [f"--ro {project}/data"]
    assert hints(["sh", "-c", f"cat <{project}/job.sh >/dev/null"]) == [f"--ro {project}/job.sh"]
    assert hints(["sh", "-c", "cat data/in.txt"], cwd=project) == [f"--ro {project}/data/in.txt"]
    assert hints(["env", "X=1", "sh", f"{project}/job.sh"], code=2) == [f"--ro {project}/job.sh"]


def test_a_file_that_would_be_written(project: Path) -> None:
    assert hints(["cp", "x", f"{project}/data/out.txt"]) == [f"--rw {project}/data"]


def test_a_command_that_a_shell_does_not_find() -> None:
    assert hints(["sh", "-c", "ls /nowhere"], code=127) == ["--ro /usr"]
    assert hints(["sh", "-c", "ls /nowhere"], code=2) == []
    assert hints(["sh", "-c", "no-such-command-anywhere"], ro=("/usr",), code=127) == []


def test_an_interpreter_that_env_does_not_find(project: Path) -> None:
    assert hints(["./strange"], cwd=project, code=127) == ["--ro /usr"]
    assert hints(["./strange"], cwd=project, ro=("/usr",), code=127) == []


def test_a_script_that_only_looks_for_the_program(tmp_path: Path) -> None:
    """With what pyenv and its like put into PATH no grant helps: they need all that their manager needs."""
    (tmp_path / ".pyenv" / "shims").mkdir(parents=True)
    shim = tmp_path / ".pyenv" / "shims" / "python3"
    shim.write_text(f"#!/bin/sh\nexec {sys.executable}\n")
    shim.chmod(0o755)
    run = Run(find_program(str(shim), PATH, "/"), [], View(()), "/", "/", {"PATH": PATH}, PATH, False, 127)
    assert [str(hint) for hint in hints_for(run)] == [
        f"{shim} is a script that looks for the real program; name that one: $(pyenv which python3)"
    ]


def test_a_python_without_its_standard_library() -> None:
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    prefix = str(Path(python).parent.parent)
    wanted = "/usr" if prefix.startswith("/usr") else prefix
    assert hints([python, "-c", "pass"]) == [f"--ro {wanted}"]
    assert hints([python, "-c", "pass"], ro=tuple({prefix, "/usr"})) == []


def test_a_virtual_environment(tmp_path: Path) -> None:
    root = Path(os.path.realpath(tmp_path)) / "venv"
    (root / "bin").mkdir(parents=True)
    (root / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (root / "bin" / "python3").symlink_to(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    assert f"--ro {root}" in hints([str(root / "bin" / "python3"), "-c", "pass"])


def test_a_module_of_the_current_directory(project: Path) -> None:
    assert f"--ro {project}" in hints(["python3", "-m", "tool"], cwd=project, ro=("/usr",))


def test_a_program_that_is_about_its_directory(project: Path) -> None:
    if not shutil.which("make"):
        pytest.skip("needs make")
    assert hints(["make"], cwd=project, code=2) == [f"--rw {project}"]
    assert hints(["make"], cwd=project, ro=(".",), code=2) == []


def test_a_path_that_a_shell_script_names(project: Path) -> None:
    (project / "wants.sh").write_text(f"# see /etc/group\nexec {project}/data/in.txt /no/such/file\n")
    assert hints(["sh", "wants.sh"], cwd=project, ro=("wants.sh",)) == [f"--ro {project}/data/in.txt"]
    assert hints(["sh", "wants.sh"], cwd=project, ro=(".",)) == []


def test_an_address_without_a_network() -> None:
    assert hints(["sh", "https://example.org/x"]) == ["--network host"]
    assert hints(["sh", "https://example.org/x"], network=True) == []


def test_a_link_that_leads_out_of_what_is_granted(project: Path) -> None:
    (project / "link").symlink_to("/etc/passwd")
    assert hints(["cat", "link"], cwd=project, ro=(".",)) == ["--ro /etc/passwd"]


def test_there_are_never_many_and_none_that_another_includes(project: Path) -> None:
    for number in range(20):
        (project / f"f{number}").write_text("")
    assert len(hints(["cat", *(f"f{number}" for number in range(20))], cwd=project)) == HINTS_MAX
    assert hints(["cat", str(project), str(project / "data"), "job.sh"], cwd=project)[0] == f"--ro {project}"


@pytest.mark.parametrize("word", ["", "\0", "/", "//", ".", "..", "-", "--", "=", "--x=", "a" * 300, "/" + "a" * 5000, "\udcff", "-I", "~"])
def test_odd_words_are_survived(project: Path, word: str) -> None:
    hints(["cat", word, f"--o={word}", f"sh -c {word}"], cwd=project, code=127)
