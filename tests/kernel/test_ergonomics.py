"""What people see: tracebacks from inside, printed forms, records, a bar on a terminal, and a Sandbox wherever a command is taken."""

from __future__ import annotations

import asyncio
import inspect
import io
import linecache
import logging
import os
import subprocess as standard
import sys
import traceback

import pytest
from rich.console import Console
from rich.traceback import Traceback

import shoal
from shoal import Sandbox, SandboxExecutor, aio, subprocess
from shoal.executor import RemoteError
from shoal.executor.errors import remote_error

PATIENCE_S = 60
BOX = Sandbox(env={"TOKEN": "hunter2"}, secrets=["TOKEN"])


def divide(number):
    return 1 / number  # the line that is shown


@pytest.fixture(scope="module")
def one():
    with SandboxExecutor(max_workers=1, warm=1) as executor:
        yield executor


# --- tracebacks -----------------------------------------------------------------------------------------------------------------------


def shown_by_python(error):
    return "".join(traceback.format_exception(error))


def shown_by_rich(error):
    text = io.StringIO()
    Console(file=text, width=120).print(Traceback.from_exception(type(error), error, error.__traceback__))
    return text.getvalue()


@pytest.mark.parametrize("shown_by", [shown_by_python, shown_by_rich])
def test_a_traceback_from_inside_has_the_lines_of_the_program(one, shown_by):
    with pytest.raises(ZeroDivisionError) as caught:
        one.submit(divide, 0).result(PATIENCE_S)
    shown = shown_by(caught.value)
    assert "Inside the sandbox:" in shown
    assert f'  File "{__file__}", line {inspect.getsourcelines(divide)[1] + 1}, in divide\n' in shown
    assert "    return 1 / number  # the line that is shown\n" in shown
    assert shown.rstrip().endswith("ZeroDivisionError: division by zero")


def test_a_traceback_from_inside_has_the_causes_and_the_groups(one):
    def fail():
        try:
            divide(0)
        except ZeroDivisionError as error:
            raise ExceptionGroup("many", [LookupError("first"), OSError(2, "second")]) from error

    with pytest.raises(RemoteError) as caught:
        one.submit(fail).result(PATIENCE_S)
    shown = shown_by_python(caught.value)
    assert "return 1 / number  # the line that is shown" in shown
    assert "The above exception was the direct cause of the following exception" in shown
    assert "LookupError: first" in shown
    assert "[Errno 2] second" in shown


def test_a_traceback_from_inside_has_the_lines_of_a_notebook(one, monkeypatch):
    source = "def cell_function():\n    raise ValueError('from a cell')\n"
    monkeypatch.setitem(linecache.cache, "/tmp/ipykernel_1/1.py", (len(source), None, source.splitlines(True), "/tmp/ipykernel_1/1.py"))
    space = {"__name__": "__main__"}
    exec(compile(source, "/tmp/ipykernel_1/1.py", "exec"), space)
    with pytest.raises(ValueError, match="from a cell") as caught:
        one.submit(space["cell_function"]).result(PATIENCE_S)
    assert "    raise ValueError('from a cell')\n" in shown_by_python(caught.value)


def test_a_made_up_traceback_has_no_file_opened_that_is_no_code_of_ours(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    made_up = f'Traceback (most recent call last):\n  File "{secret}", line 1, in f\n  File "/etc/passwd", line 1\nValueError: x\n'
    shown = shown_by_python(remote_error("ValueError", "x", made_up, ["ValueError"]))
    assert "hunter2" not in shown
    assert "root:" not in shown
    assert f'  File "{secret}", line 1, in f\n' in shown


def test_lines_that_came_along_are_shown_once(one):
    with pytest.raises(ZeroDivisionError) as caught:
        one.run_code("def f():\n    return 1 / 0\nf()")
    assert caught.value.__notes__[0].count("return 1 / 0") == 1


# --- printed forms --------------------------------------------------------------------------------------------------------------------


def test_everything_says_what_it_is(one):
    async def found():
        async with aio.open_process(["cat"], sandbox=BOX, text=True) as process:
            yield process
            yield process.stdin
            yield process.stdout
        yield process
        yield process.stdin
        yield aio.open_process(["cat"], sandbox=BOX)
        yield aio.command("true", sandbox=BOX) | aio.command("cat", sandbox=BOX)

    async def reprs():
        return [repr(each) async for each in found()]

    running, stdin, stdout, over, closed, opening, pipeline = asyncio.run(reprs())
    assert running.startswith("<shoal.aio.Process 'cat' pid ")
    assert running.endswith(" running>")
    assert stdin.startswith("<shoal.aio.TextSender fd ")
    assert stdout.startswith("<shoal.aio.TextReceiver fd ")
    assert over.endswith("returned -9, killed>")
    assert closed == "<shoal.aio.TextSender closed>"
    assert opening == "<open_process(['cat']), to be entered with async with>"
    assert "'true'" in pipeline
    assert "'cat'" in pipeline
    assert repr(one.with_limits(timeout=2, open_files=32, result="1M")).endswith(
        "sandboxes ready, a call has open_files=32, timeout=2, result=1048576>"
    )
    call = one.submit(divide, 1)
    call.result(PATIENCE_S)
    assert repr(call).startswith("<Call ")
    assert "of divide(): returned after " in repr(call)
    with subprocess.Popen(["sleep", "600"], sandbox=BOX) as process:
        assert repr(process) == "<Popen: returncode: None args: ['sleep', '600']>"
        process.kill()
    assert repr(BOX) == "Sandbox(env={'TOKEN': '***'}, secrets=['TOKEN'])"


# --- records --------------------------------------------------------------------------------------------------------------------------


def test_runs_are_told_to_logging_without_a_secret(caplog):
    caplog.set_level(logging.DEBUG, logger="shoal")
    shoal.run(["sh", "-c", "exit 3", "word-hunter2"], sandbox=BOX)
    asyncio.run(aio.run(["sh", "-c", "exit 4", "word-hunter2"], sandbox=BOX))
    subprocess.run(["sh", "-c", "exit 5", "word-hunter2"], sandbox=BOX)
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("shoal.")]
    assert [(name, text.split(" ", 2)[2]) for name, _, text in told] == [
        ("shoal.run", "(sh) begins"),
        ("shoal.run", "(sh) returned 3: exited"),
        ("shoal.run", "(sh) begins"),
        ("shoal.run", "(sh) returned 4: exited"),
        ("shoal.subprocess", "(sh) begins"),
        ("shoal.subprocess", "(sh) returned 5: exited"),
    ]
    assert {level for _, level, _ in told} == {"DEBUG"}
    assert "hunter2" not in caplog.text


def test_calls_are_told_to_logging_without_an_argument(one, caplog):
    caplog.set_level(logging.DEBUG, logger="shoal.executor")
    one.submit(str.upper, "word-hunter2").result(PATIENCE_S)
    assert "str.upper(): returned" in caplog.text or "upper(): returned" in caplog.text
    assert "hunter2" not in caplog.text


def test_logging_is_not_imported_for_who_does_not_use_it(run_python):
    assert run_python('import shoal\nshoal.run(["true"])\nanswer("logging" in sys.modules)') is False


# --- a bar ----------------------------------------------------------------------------------------------------------------------------

_MAP = """
import time, shoal
with shoal.SandboxExecutor(max_workers=1, warm=1) as ex:
    def work(n):
        import time
        time.sleep(0.35)
        return n
    assert list(ex.map(work, range(3))) == [0, 1, 2]
"""


def drawn(columns):
    """What a map of a second draws on a terminal of so many columns; None: on a pipe."""
    if columns is None:
        return standard.run([sys.executable, "-c", _MAP], stderr=standard.PIPE, text=True, check=True, timeout=PATIENCE_S).stderr
    master, slave = os.openpty()
    try:
        standard.run(["stty", "cols", str(columns)], stdin=slave, check=True)
        with standard.Popen([sys.executable, "-c", _MAP], stderr=slave) as process:
            os.close(slave)
            text = b""
            try:
                while piece := os.read(master, 4096):
                    text += piece
            except OSError:
                pass  # EIO: nobody has it open any more
        assert process.returncode == 0
    finally:
        os.close(master)
    return text.decode()


def test_a_map_draws_a_bar_on_a_terminal_and_nothing_elsewhere():
    assert drawn(None) == ""
    text = drawn(80)
    assert "work [" in text
    assert "3/3" in text
    assert text.endswith("\r\n")
    assert all(len(line) < 40 for line in drawn(40).replace("\x1b[K", "").replace("\r\n", "\r").split("\r"))


# --- a Sandbox wherever a command is taken --------------------------------------------------------------------------------------------

_TAKERS = {
    "run": lambda: shoal.run(["sh", "-c", "echo $TOKEN"], sandbox=BOX, capture_output=True, text=True).stdout,
    "subprocess.run": lambda: subprocess.run(["sh", "-c", "echo $TOKEN"], sandbox=BOX, capture_output=True, text=True).stdout,
    "subprocess.check_output": lambda: subprocess.check_output("echo $TOKEN", shell=True, text=True, sandbox=BOX),
    "subprocess.getoutput": lambda: subprocess.getoutput("echo $TOKEN", sandbox=BOX) + "\n",
    "subprocess.getstatusoutput": lambda: subprocess.getstatusoutput("echo $TOKEN; exit 3", sandbox=BOX)[1] + "\n",
    "subprocess.Popen": lambda: subprocess.Popen(["sh", "-c", "echo $TOKEN"], stdout=-1, text=True, sandbox=BOX).communicate()[0],
    "aio.run": lambda: asyncio.run(aio.run(["sh", "-c", "echo $TOKEN"], sandbox=BOX, capture_output=True, text=True)).stdout,
    "aio.command": lambda: (
        asyncio.run((aio.command("sh", "-c", "echo $TOKEN", sandbox=BOX) | aio.command("cat")).run(capture_output=True, text=True)).stdout
    ),
}


@pytest.mark.parametrize("name", _TAKERS)
def test_a_sandbox_is_taken_wherever_a_command_is(name):
    assert _TAKERS[name]() == "hunter2\n"
