"""%shoal and %%shoal in an IPython: what runs, what it may touch, what is shown, and how it ends."""

from __future__ import annotations

import atexit
import builtins
import importlib
import os
import re
import sys
import threading

import pytest
from IPython.core.interactiveshell import InteractiveShell
from rig.features import needs
from rig.world import World
from traitlets.config import Config

import shoal
from shoal.notebook.background import Background

PATIENCE_S = 60


class Notebook:
    """An IPython with the magics, and what it shows."""

    def __init__(self, capsys):
        config = Config()
        config.HistoryManager.enabled = False
        self.shell = InteractiveShell(config=config)
        self.variables = self.shell.user_ns
        self._capsys = capsys
        assert self.run("%load_ext shoal")[0].success

    def run(self, cell):
        result = self.shell.run_cell(cell)
        shown = self._capsys.readouterr()
        return result, shown.out, shown.err

    def good(self, cell):
        result, out, err = self.run(cell)
        assert result.success, (out, err)
        return out, err

    def bad(self, cell):
        result, out, err = self.run(cell)
        assert not result.success, (out, err)
        return result.error_in_exec, out + err


@pytest.fixture
def notebook(capsys):
    book = Notebook(capsys)
    yield book
    book.shell.atexit_operations()
    atexit.unregister(book.shell.atexit_operations)  # it cannot be done twice


def test_a_cell_is_a_script_for_the_shell(notebook):
    out, err = notebook.good("%%shoal\nfor n in 1 2; do echo line $n; done\necho oops >&2; ls -d /home\n:")
    assert out.startswith("line 1\nline 2\n")
    assert err.startswith("oops\n")
    assert "/home" in err  # not even the names
    assert out.splitlines()[-1].startswith("the cell exited with status 0, ")


def test_a_cell_of_python_is_run_by_the_interpreter_of_the_notebook_and_has_its_packages(notebook):
    cell = "import sys, numpy, os\nprint(sys.executable, numpy.arange(3).sum(), os.getppid(), sorted(vars()))"
    out, _ = notebook.good("%%shoal --python\n" + cell)
    words = out.split(maxsplit=3)
    assert words[:3] == [sys.executable, "3", "0"]  # whoever made it is out of sight
    assert "'begin'" not in words[3]


def test_a_traceback_of_a_python_cell_shows_its_lines_and_nothing_else(notebook):
    error, shown = notebook.bad("%%shoal --python\ndef f():\n    return 1 / 0\nf()")
    assert 'File "<cell>", line 3, in <module>\n    f()\n' in shown
    assert 'File "<cell>", line 2, in f\n    return 1 / 0\n' in shown
    assert "<string>" not in shown
    assert "magic.py" not in shown
    assert "RunError: the cell exited with status 1" in shown
    assert isinstance(error, shoal.RunError)


def test_a_cell_for_a_program_is_what_it_reads(notebook):
    assert notebook.good("%%shoal tr a-z A-Z\nloud\n")[0].startswith("LOUD\n")
    assert notebook.good("%shoal echo 'one word'")[0].startswith("one word\n")


def test_the_result_can_be_kept(notebook):
    notebook.good("%%shoal --out done --quiet\necho out; echo err >&2")
    done = notebook.variables["done"]
    assert (done.stdout, done.stderr, done.returncode, done.reason) == ("out\n", "err\n", 0, "exited")


def test_what_is_quiet_shows_nothing(notebook):
    assert notebook.good("%%shoal --quiet\necho out; echo err >&2") == ("", "")


def test_a_result_is_kept_even_when_the_cell_fails(notebook):
    notebook.bad("%%shoal --out done\necho before; exit 3")
    assert (notebook.variables["done"].stdout, notebook.variables["done"].returncode) == ("before\n", 3)


def test_what_does_not_end_well_fails_the_cell_with_its_reason(notebook):
    _, shown = notebook.bad("%%shoal --wall-time 100ms\nsleep 600")
    assert shown.startswith("RunError: the cell was ended by its wall time limit (wall_time), ")
    assert len(shown.splitlines()) == 1
    out, _ = notebook.good("%%shoal --no-raise --timeout 100ms\nsleep 600")
    assert out.startswith("the cell was ended by its wall time limit (wall_time), ")


def test_of_two_limits_of_time_the_one_that_comes_first_counts(notebook):
    for options in ("--timeout 100ms --wall-time 1h", "--wall-time 100ms --timeout 1h"):
        out, _ = notebook.good(f"%%shoal --no-raise {options}\nsleep 600")
        assert out.startswith("the cell was ended by its wall time limit (wall_time), ")


def test_what_was_denied_is_told(notebook, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s")
    _, shown = notebook.bad(f"%%shoal\ncat {secret}")
    assert f"denied: file {secret}" in shown


def test_files_variables_and_limits_are_handed_over_by_the_options_of_shoal_run(notebook, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("seen\n")
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("MINE", "taken along")
    notebook.good(
        f"%%shoal --ro {tmp_path}/in.txt:/data/in --rw {tmp_path}/out:/out -e MINE -e A=b --open-files 50 --cwd /out\n"
        "cat /data/in; echo $MINE $A; ulimit -n; pwd; echo written > file"
    )
    assert (tmp_path / "out" / "file").read_text() == "written\n"
    out, _ = notebook.good(
        f"%%shoal --ro {tmp_path}/in.txt:/data/in -e MINE -e A=b --open-files 50 --cwd /data\ncat in; echo $MINE $A; ulimit -n; pwd"
    )
    assert out.splitlines()[:4] == ["seen", "taken along b", "50", "/data"]


def test_there_is_no_network_unless_it_is_handed_over(notebook):
    assert notebook.good("%%shoal\ncat /proc/net/dev | wc -l")[0].splitlines()[0] == "3"  # two lines of heading, and lo
    assert int(notebook.good("%%shoal --network host\ncat /proc/net/dev | wc -l")[0].splitlines()[0]) >= 3


def test_a_sandbox_and_what_is_read_may_be_variables(notebook):
    notebook.variables["box"] = shoal.Sandbox(read=["/usr"], env={"WHO": "box"})
    notebook.variables["text"] = "given\n"
    out, _ = notebook.good("%%shoal --box box --in text\necho $WHO; cat")
    assert out.splitlines()[:2] == ["box", "given"]


def test_more_than_is_shown_is_counted_and_kept(notebook):
    out, _ = notebook.good("%%shoal --show 10 --keep 20 --out done\nyes | head -c 100000")
    assert out.startswith("y\n" * 5 + "the cell exited")
    assert "97.6 KiB more not shown" in out
    done = notebook.variables["done"]
    assert (len(done.stdout), done.output["stdout"].total_bytes, done.truncated) == (20, 100000, True)


def test_a_character_in_two_pieces_is_one_character(notebook):
    out, _ = notebook.good(r"%%shoal" + "\n" + r"printf '\303'; sleep 0.05; printf '\244 \377\n'")
    assert out.startswith("ä �\n")


MISTAKES = {
    "%shoal --timeout banana true": "--timeout: 'banana' is not a duration",
    "%shoal --timeout 0 true": "--timeout is 0: a program needs some time",
    "%shoal --wall-time banana true": "--wall-time: 'banana' is not a duration",
    "%shoal": "which program? %shoal [OPTIONS] PROG [ARGS...]; for a script begin the cell with %%shoal",
    "%shoal --memroy 1G true": "unrecognized arguments: --memroy; see %shoal --help",
    "%shoal --memory lots true": "--memory: 'lots' is not a size",
    "%shoal --profile pyton true": "there is no profile 'pyton'; did you mean 'python'?",
    "%shoal --box nothing true": "--box nothing: there is no variable of that name",
    "%shoal --box notebook_number true": "--box notebook_number: that is a int, and has to be a shoal.Sandbox",
    "%shoal --box b --profile python true": "--box and --profile: it can begin with one of them only",
    "%shoal --out 1x true": "--out 1x: that cannot be the name of a variable",
    "%shoal --out class true": "--out class: that cannot be the name of a variable",
    "%shoal --in nothing cat": "--in nothing: there is no variable of that name",
    "%shoal --in notebook_number cat": "--in notebook_number: what is read has to be text or bytes, not int",
    "%shoal 'open": "No closing quotation",
    "%shoal -e NOT_THERE_AT_ALL true": "--env NOT_THERE_AT_ALL: the notebook has no variable of that name",
    "%%shoal --python cat\nx": "what is to run it: --python, --shell or cat? One of them",
    "%%shoal --in notebook_number cat\nx": "--in notebook_number: the cell is what cat reads",
    "%%shoal\n" + ":" * (128 << 10): "a script of more than 131071 bytes cannot be handed over as a cell",
}


@pytest.mark.parametrize("cell", MISTAKES, ids=lambda cell: cell[:40])
def test_a_mistake_is_told_in_one_line_and_starts_nothing(notebook, cell):
    notebook.variables["notebook_number"] = 7
    _, shown = notebook.bad(cell)
    assert shown.startswith("UsageError: ")
    assert MISTAKES[cell] in shown
    assert len(shown.splitlines()) == 1


def test_a_program_that_is_not_there_is_told_in_one_line(notebook):
    error, shown = notebook.bad("%shoal not-there-at-all")
    assert isinstance(error, shoal.NotFoundError)
    assert shown.startswith("NotFoundError: not-there-at-all: not found in PATH")
    assert len(shown.splitlines()) == 1


def test_what_it_could_touch_is_listed_and_nothing_started(notebook, tmp_path):
    out, _ = notebook.good(f"%%shoal --explain --rw {tmp_path}:/out\ntouch /out/made")
    assert f"/out  rw  directory {tmp_path}" in out
    descriptors = re.findall(r"^(?:descriptors)? +(\d) +(/dev/null|pipe)\b", out, re.MULTILINE)
    assert descriptors == [("0", "/dev/null"), ("1", "pipe"), ("2", "pipe")]
    assert re.search("^tier ", out, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_a_listing_has_no_secrets(notebook, monkeypatch):
    monkeypatch.setenv("TOKEN", "hunter2")
    out, _ = notebook.good("%shoal --explain --env TOKEN --secret TOKEN echo is-hunter2-known")
    assert "TOKEN=***" in out
    assert "is-***-known" in out
    assert "hunter2" not in out


def test_help_tells_the_options(notebook):
    out, _ = notebook.good("%shoal --help")
    assert "%%shoal --python [OPTIONS]" in out
    assert "--memory SIZE" in out


def test_what_runs_in_the_background_is_told_of_and_can_be_ended(notebook, tmp_path):
    os.mkfifo(tmp_path / "alive")
    os.chmod(tmp_path / "alive", 0o666)
    notebook.good(f"%%shoal --bg --out job --rw {tmp_path}:/gate\nexec 3> /gate/alive\nsetsid sleep 600 & sleep 600")
    job = notebook.variables["job"]
    assert isinstance(job, Background)
    with open(tmp_path / "alive", "rb") as alive:  # opens when it does, and has an end when nobody has it open any more
        assert repr(job) == "<Background: the cell runs>"
        job.kill()
        assert alive.read() == b""
    assert job.result(PATIENCE_S).reason == "killed"
    assert repr(job).startswith("<Background: the cell was ended by its caller (killed), ")
    job.kill()


def test_what_runs_in_the_background_gives_its_result(notebook):
    notebook.good("%%shoal --bg --out job\necho hello; exit 4")
    done = notebook.variables["job"].result(PATIENCE_S)
    assert (done.stdout, done.returncode) == ("hello\n", 4)
    error, _ = notebook.bad("%shoal --bg --out job not-there-at-all")
    assert isinstance(error, shoal.NotFoundError)


def test_an_interpreter_that_ends_ends_what_runs_in_the_background(run_python, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "alive")
    os.chmod(tmp_path / "alive", 0o666)
    text = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("%load_ext shoal")
shell.run_cell("%%shoal --bg --rw {tmp_path}:/gate\\nexec 3> /gate/alive\\nsetsid sleep 600 & sleep 600")
open("{tmp_path}/alive", "rb").close()
answer(True)
"""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    run_python(text)
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert os.read(reader, 1) == b""  # nobody has it open for writing
    finally:
        os.close(reader)


def test_a_fork_that_ends_leaves_what_runs_in_the_background_to_its_parent(run_python, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    os.chmod(tmp_path / "pipe", 0o666)
    text = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("%load_ext shoal")
shell.run_cell("%%shoal --bg --out job --ro {tmp_path}:/gate\\nread line < /gate/pipe; echo got $line")
child = os.fork()
if child == 0:
    sys.exit(0)  # with all that is done at the end of an interpreter
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
with open("{tmp_path}/pipe", "w") as pipe:
    pipe.write("news\\n")
answer(shell.user_ns["job"].result(60).stdout)
"""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    assert run_python(text) == "got news\n"


def test_nothing_is_left_of_a_cell(notebook):
    cells = ["%%shoal\nsetsid sleep 600 &\necho x", "%%shoal --python\nprint(1)", "%%shoal --no-raise\nfalse", "%shoal --bg --out job true"]
    for cell in cells:
        notebook.good(cell)
    notebook.variables["job"].end()
    world, threads = World(), threading.active_count()
    for cell in cells:
        notebook.good(cell)
    notebook.variables["job"].end()
    world.assert_unchanged()
    assert threading.active_count() == threads


def test_the_extension_can_be_unloaded(notebook):
    notebook.good("%unload_ext shoal")
    error, shown = notebook.bad("%shoal true")
    assert "not found" in shown
    assert error is not None


def test_where_there_is_no_ipython_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "IPython":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == "IPython" or name == "shoal.notebook.magic"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'shoal\[notebook\]'"):
        importlib.import_module("shoal").load_ipython_extension(None)


@needs("root")
def test_as_root_a_cell_runs_as_nobody_else(notebook):
    assert int(notebook.good("%%shoal\nid -u")[0].splitlines()[0]) > 100_000
