"""Every Python snippet in the documentation runs, in order, and prints what the page says it prints.

A page's snippets share one program, like a reader's own session. A ```text block right after a snippet is its exact
output, children included; `...` in it stands for anything. `$ command` lines in ```console blocks run in a shell and are
compared in the same way. `<!-- not run: reason -->` before a block excepts it.
"""

import doctest
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rig.desk import Desk

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?P<except><!-- not run: [^\n]+ -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
END = "\n==== end of snippet ====\n"


@dataclass(frozen=True)
class Snippet:
    line: int
    code: str
    expected: str | None


def snippets(page: Path, kind: str) -> list[Snippet]:
    text = page.read_text()
    blocks = list(BLOCK.finditer(text))
    found = []
    for block, after in zip(blocks, [*blocks[1:], None], strict=False):
        if block["kind"] != kind or block["except"]:
            continue
        is_output = after is not None and after["kind"] == "text" and not text[block.end() : after.start()].strip()
        found.append(Snippet(text.count("\n", 0, block.start("text")), block["text"], after["text"] if after and is_output else None))
    return found


def same(expected: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


def environment(directory: Path) -> dict[str, str]:
    """What a reader's shell has in `directory` after `. .venv/bin/activate`."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PWD": str(directory), "SHOAL_STATE_DIR": str(directory / "state")}


@pytest.fixture
def desk(tmp_path):
    """A directory with a README to work on, so that snippets may write files; and a process manager of its own, ended afterwards."""
    shutil.copy(ROOT / "README.md", tmp_path)
    yield tmp_path
    Desk(tmp_path / "state").end()


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "python")], ids=lambda page: page.name)
@pytest.mark.timeout(120)
def test_the_python_snippets_of_a_page_print_what_it_says(page, desk):
    found = snippets(page, "python")
    program = ["import os as _os, sys as _sys"]
    for snippet in found:
        code = "\n" * snippet.line + snippet.code
        program.append(f"exec(compile({code!r}, {str(page)!r}, 'exec'))")
        program.append(f"_sys.stdout.flush(); _os.write(1, {END!r}.encode())")
    run_page(page, desk, found, program)


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "ipython")], ids=lambda page: page.name)
@pytest.mark.timeout(120)
def test_the_cells_of_a_page_show_what_it_says(page, desk, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(desk / "ipython"))
    found = snippets(page, "ipython")
    program = ["import os, sys", "from IPython.core.interactiveshell import InteractiveShell", "shell = InteractiveShell.instance()"]
    for snippet in found:
        program += [f"shell.run_cell({snippet.code!r})", f"sys.stdout.flush(); os.write(1, {END!r}.encode())"]
    run_page(page, desk, found, program)


def run_page(page: Path, desk: Path, found: list[Snippet], program: list[str]) -> None:
    """Run the snippets of a page and compare what each prints."""
    (desk / ".page.py").write_text("\n".join(program))
    run = subprocess.run(
        [sys.executable, desk / ".page.py"],
        check=False,
        cwd=desk,
        env=environment(desk),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 0, run.stderr
    for snippet, output in zip(found, run.stdout.split(END), strict=False):
        if snippet.expected is not None:
            shown = re.sub(r"^Out\[\d+\]: ", "", output, flags=re.MULTILINE)
            assert same(snippet.expected, shown), f"{page.name}:{snippet.line} printed {output!r}"


@pytest.mark.skipif(not Path(sys.executable).with_name("shoal").exists(), reason="not installed; make test installs it")
@pytest.mark.parametrize("page", [page for page in PAGES if "\n$ " in page.read_text()], ids=lambda page: page.name)
@pytest.mark.timeout(120)
def test_the_commands_of_a_page_print_what_it_says(page, desk):
    for snippet in snippets(page, "console"):
        commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", snippet.code, re.MULTILINE)
        for command, expected in commands:
            run = subprocess.run(
                ["bash", "-c", command],
                check=False,
                cwd=desk,
                env=environment(desk),
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            assert same(expected, run.stdout), f"{page.name}:{snippet.line} {command} printed {run.stdout!r} {run.stderr!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
