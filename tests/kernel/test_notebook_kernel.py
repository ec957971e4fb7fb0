"""%%shoal in a real kernel, spoken to as a notebook does: what is shown while it runs, and what an interrupt leaves."""

from __future__ import annotations

import os
import sys
import time

import pytest
from jupyter_client.manager import KernelManager

PATIENCE_S = 120


class Book:
    """A notebook with a kernel."""

    def __init__(self, client, manager):
        self.client, self.manager = client, manager

    def begin(self, cell):
        """Have a cell executed; what it is known by."""
        return self.client.execute(cell, allow_stdin=False)

    def message(self, of):
        """The next message of a cell that shows something or tells that it is over."""
        end = time.monotonic() + PATIENCE_S
        while True:
            message = self.client.get_iopub_msg(timeout=end - time.monotonic())
            if message["parent_header"].get("msg_id") != of:
                continue
            if message["msg_type"] in ("stream", "error", "display_data", "execute_result"):
                return message
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return message

    def shown_until(self, of, text):
        """What a cell shows, until `text` is in it."""
        shown = ""
        while text not in shown:
            message = self.message(of)
            assert message["msg_type"] == "stream", (shown, message["content"])
            shown += message["content"]["text"]
        return shown

    def rest(self, of):
        """All the messages that are still to come of a cell."""
        messages = []
        while (message := self.message(of))["msg_type"] != "status":
            messages.append(message)
        return messages

    def reply(self, of):
        """The answer to a cell."""
        end = time.monotonic() + PATIENCE_S
        while True:
            reply = self.client.get_shell_msg(timeout=end - time.monotonic())
            if reply["parent_header"].get("msg_id") == of:
                return reply["content"]

    def run(self, cell):
        """The answer, and what was shown as text."""
        of = self.begin(cell)
        messages = self.rest(of)
        text = "".join(_text(message) for message in messages)
        return self.reply(of), text


def _text(message):
    content = message["content"]
    if message["msg_type"] == "stream":
        return content["text"]
    return "\n".join(content["traceback"]) if message["msg_type"] == "error" else content["data"]["text/plain"]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    environ = os.environ | {"HOME": str(home), "IPYTHONDIR": str(home / "ipython"), "JUPYTER_RUNTIME_DIR": str(home / "run")}
    manager = KernelManager(transport="ipc", ip=str(home / "kernel"), connection_file=str(home / "kernel.json"))
    manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel(env=environ, cwd=str(home))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=PATIENCE_S)
    book = Book(client, manager)
    answer, shown = book.run("%load_ext shoal\nimport shoal")
    assert answer["status"] == "ok", shown
    yield book
    client.stop_channels()
    manager.shutdown_kernel(now=False)
    manager.cleanup_resources()


@pytest.fixture
def gate(tmp_path):
    """A pipe with a name, which a cell gets as /gate/pipe."""
    os.mkfifo(tmp_path / "pipe")
    os.chmod(tmp_path / "pipe", 0o666)
    return tmp_path


def test_output_shows_while_the_cell_runs(book, gate):
    of = book.begin(f"%%shoal --ro {gate}:/gate\necho first\nread line < /gate/pipe\necho $line")
    book.shown_until(of, "first\n")
    with open(gate / "pipe", "w") as pipe:  # it could not go on before
        pipe.write("second\n")
    book.shown_until(of, "second\n")
    book.rest(of)
    assert book.reply(of)["status"] == "ok"


def test_output_of_a_python_cell_shows_while_it_runs(book, gate):
    of = book.begin(f"%%shoal --python --ro {gate}:/gate\nprint('first')\nprint(open('/gate/pipe').read())")
    book.shown_until(of, "first\n")
    with open(gate / "pipe", "w") as pipe:
        pipe.write("second\n")
    book.shown_until(of, "second\n")
    book.rest(of)
    assert book.reply(of)["status"] == "ok"


def test_an_interrupt_ends_everything_the_cell_has_started_and_fails_the_cell(book, gate):
    of = book.begin(
        f"%%shoal --rw {gate}:/gate\ntrap '' INT TERM\nexec 3> /gate/pipe\n"
        "(setsid sh -c 'trap \"\" INT; sleep 600' &) \necho started\nsleep 600"
    )
    with open(gate / "pipe", "rb") as alive:  # has an end when nobody has the other end open any more
        book.shown_until(of, "started\n")
        book.manager.interrupt_kernel()
        assert alive.read() == b""
    shown = "".join(map(_text, book.rest(of)))
    answer = book.reply(of)
    assert (answer["status"], answer["ename"]) == ("error", "KeyboardInterrupt")
    assert shown == "KeyboardInterrupt: ended, with everything it had started"
    assert book.run("print(6 * 7)")[1] == "42\n"


def test_how_it_ended_is_shown_below_the_cell(book):
    of = book.begin("%%shoal\nexit 0")
    (message,) = book.rest(of)
    assert message["msg_type"] == "display_data"
    assert message["content"]["data"]["text/plain"].startswith("the cell exited with status 0, ")
    assert message["content"]["data"]["text/html"].startswith("<span ")
    answer, shown = book.run("%%shoal\nkill -SEGV $$")
    assert (answer["status"], answer["ename"]) == ("error", "RunError")
    assert shown.startswith("RunError: the cell was ended by SIGSEGV, ")


def test_what_runs_in_the_background_shows_below_its_own_cell(book, gate):
    of = book.begin(f"%%shoal --bg --out job --ro {gate}:/gate\nread line < /gate/pipe\necho got $line")
    book.rest(of)
    assert book.reply(of)["status"] == "ok"
    assert book.run("job")[1] == "<Background: the cell runs>"
    with open(gate / "pipe", "w") as pipe:
        pipe.write("news\n")
    book.shown_until(of, "got news\n")
    assert book.run("job.result().reason")[1] == "'exited'"


def test_the_loop_that_a_notebook_runs_in_takes_the_other_ways_to_run_something(book):
    cells = {
        "shoal.run(['echo', 'hello'], capture_output=True).stdout": "b'hello\\n'",
        "(await shoal.aio.run(['echo', 'hello'], capture_output=True)).stdout": "b'hello\\n'",
        "with shoal.SandboxExecutor(max_workers=1) as ex: print(ex.submit(pow, 2, 10).result())": "1024\n",
        "async with shoal.AsyncSandboxExecutor(max_workers=1) as ex: print(await ex.run(pow, 2, 10))": "1024\n",
        "from shoal import subprocess\nsubprocess.check_output(['echo', 'hello'], sandbox=shoal.Sandbox())": "b'hello\\n'",
    }
    book.run("import shoal.aio")
    for cell, expected in cells.items():
        answer, shown = book.run(cell)
        assert (answer["status"], shown) == ("ok", expected), cell
