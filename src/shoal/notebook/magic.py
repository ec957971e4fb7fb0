"""Magic: `%shoal` and `%%shoal`.

A cell blocks the kernel as any other does, and waits without an event loop, so it works in Jupyter's, which runs already. An interrupt is
a KeyboardInterrupt in the middle of the wait, and ends the program with all it has started before it goes on.

Source: IPython's %%script, whose --out, --bg and whose use of a cell as input these are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from IPython.core.error import UsageError
from IPython.display import display

from shoal.cli.run import explained
from shoal.notebook.background import Background
from shoal.notebook.options import Ask, Helped, read_line
from shoal.notebook.screen import Ended, Screen, sentence
from shoal.notebook.script import Script
from shoal.sandbox.errors import RequestError
from shoal.sandbox.launch import Boxed
from shoal.sandbox.request import DEVNULL, PIPE, Request
from shoal.sandbox.result import Result, RunError
from shoal.sandbox.run import carry_out
from shoal.sandbox.running import Running
from shoal.status import ShoalError


class Magic:
    """The magics of one IPython.

    Args:
        shell: it; its variables are read and set.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def shoal(self, line: str, cell: str | None = None) -> None:
        """Run a cell or a program in a sandbox. `%shoal --help` tells all the options.

        %%shoal [OPTIONS]                   the cell is a script for the shell
        %%shoal --python [OPTIONS]          the cell is Python
        %%shoal [OPTIONS] PROG [ARGS...]    the cell is what the program reads
        %shoal [OPTIONS] PROG [ARGS...]     the program

        Raises:
            RunError: it did not end well, and --no-raise was not given.
        """
        try:
            self._act(*self._read(line, cell))
        except Helped as helped:
            print(helped)
        except BaseException as error:
            _shorten(error)
            raise

    def _read(self, line: str, cell: str | None) -> tuple[Ask, Script]:
        variables = self._shell.user_ns
        try:
            ask = read_line(line, variables, has_cell=cell is not None)
            return ask, Script.of(ask, cell, None if ask.given is None else _encoded(variables[ask.given]))
        except (ValueError, TypeError) as error:
            raise UsageError(_with_hints(error)) from None

    def _act(self, ask: Ask, script: Script) -> None:
        boxed, screen = Boxed.of(ask.box), Screen(0 if ask.quiet else ask.shown_bytes)
        request = _request(boxed, ask, script, screen)
        if ask.explain:
            with Running(request) as running:
                print(explained(boxed, running.prepare())[0])
            return
        if ask.background:
            self._set(ask.out, Background(request, screen, script))
            return
        try:
            result = carry_out(request)
        finally:
            screen.close()
        self._set(ask.out, result)
        hidden = 0 if ask.quiet else screen.hidden_bytes
        if ask.raises:
            try:
                result.check_returncode()
            except RunError as error:
                error.add_note(sentence(script.name, result, hidden))
                raise
        if not ask.quiet:
            display(Ended(script.name, result, hidden))  # type: ignore[no-untyped-call]

    def _set(self, name: str | None, value: Result | Background) -> None:
        if name is not None:
            self._shell.push({name: value})


def _request(boxed: Boxed, ask: Ask, script: Script, screen: Screen) -> Request:
    request = Request.of(
        boxed,
        script.words,
        input=script.data,
        capture_output=False,
        stdin=None if script.data is not None else DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        text=False,
        encoding=None,
        errors=None,
        timeout=None,
        output_limit=ask.kept_bytes,
        on_output_limit="drain",
        spill_directory=None,
    )
    return replace(request, fds=script.fds, as_text=True, encoding="utf-8", errors="replace", heard=screen.show)


def _encoded(given: Any) -> bytes:
    return given.encode() if isinstance(given, str) else bytes(given)


def _with_hints(error: Exception) -> str:
    hints = error.hints if isinstance(error, RequestError) else ()
    return "\n".join([str(error), *hints])


def _shorten(error: BaseException) -> None:
    """What this raises has its reason in what it says. A traceback through shoal's own lines would hide that."""
    if isinstance(error, KeyboardInterrupt):
        lines = ["KeyboardInterrupt: ended, with everything it had started"]
    elif isinstance(error, RunError):
        lines = ["RunError: " + "\n".join(error.__notes__)]
    elif isinstance(error, ShoalError | RequestError):
        lines = [f"{type(error).__name__}: {_with_hints(error)}"]
    else:
        return
    error._render_traceback_ = lambda: lines  # type: ignore[union-attr]
