"""What a command answers: an Outcome, or a CommandError; and how either reaches the user.

stdout carries answers, stderr carries one line per problem. Text that came from elsewhere (a file name, a program's
argument) may hold escape sequences, so everything printed on stderr is made printable first.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from shoal.sandbox.errors import NOT_EXECUTABLE, NOT_FOUND, SHOAL_FAILED, RequestError
from shoal.status import SpawnError, Stage, Status, on_one_line

TIMED_OUT = 124
"""Exit code that is shoal's own, as timeout(1) has it. See sandbox/errors.py for the others; everything else is the program's."""


class Outcome(NamedTuple):
    """The answer of a verb. main.py prints `data` as JSON when --json was given, else `text`."""

    text: str = ""
    data: object = None
    code: int = 0
    stream: Literal["stdout", "stderr"] = "stdout"
    """Where `data` goes: the program of `shoal run` owns stdout."""


CommandError = RequestError
"""A verb cannot do what it was asked; `code` is the exit code, `hints` are printed after the message."""


_secrets: list[str] = []
_SHORT: Final = 200
SHORTEST_SECRET = 4
"""A shorter one would be found in the middle of anything; where it is the value of a variable it is hidden all the same."""


def never_show(values: Iterable[str]) -> None:
    """From now on *** is written in place of these values, whatever they are part of."""
    _secrets.extend(_hideable(values))


def _hideable(values: Iterable[str]) -> list[str]:
    return [value for value in values if len(value) >= SHORTEST_SECRET]


def hidden(text: str, besides: Iterable[str] = ()) -> str:
    """`text` without what is never to be shown, and without the values `besides`."""
    for secret in sorted([*_secrets, *_hideable(besides)], key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _without_secrets(data: object) -> object:
    if isinstance(data, str):
        return hidden(data)
    if isinstance(data, Mapping):
        return {key: _without_secrets(value) for key, value in data.items()}
    return [_without_secrets(item) for item in data] if isinstance(data, list | tuple) else data


def printable(text: str) -> str:
    """`text` on one line, with control characters and undecodable bytes spelled out, and without secrets."""
    return on_one_line(hidden(text))


def complain(message: str, patience_s: float | None = None) -> None:
    """One line on stderr. Never raises: there may be no stderr any more.

    Args:
        patience_s: how long to wait for a terminal that takes no output; None is for ever, as any program does.
    """
    write_to(2, f"shoal: {printable(message)}\n", patience_s)


def hint(message: str) -> None:
    """One line on stderr that says what would help."""
    complain(f"hint: {message}")


def write_to(fd: int, text: str, patience_s: float | None = None) -> None:
    """All of `text` to a descriptor, past Python's buffers; what cannot be written is dropped."""
    data = text.encode("utf-8", "backslashreplace")
    piece = len(data)
    poller = None
    if patience_s is not None and os.isatty(fd):
        piece = 16  # a terminal that says it is ready takes this much without making us wait
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
    try:
        while data:
            if poller and patience_s is not None and not poller.poll(patience_s * 1000):
                return
            data = data[os.write(fd, data[:piece]) :]
    except OSError:
        pass


def present(outcome: Outcome, as_json: bool) -> None:
    """Print an Outcome."""
    if as_json and outcome.data is not None:
        import json  # here because a plain `shoal run` never needs it, and it takes 3 ms

        line = json.dumps(_without_secrets(outcome.data) if _secrets else outcome.data, ensure_ascii=True, default=str)
        if outcome.stream == "stderr":
            # The program may have left stderr in the middle of a line; the result has to be a line of its own.
            write_to(2, f"\n{line}\n")
            return
        say(line)
    elif outcome.text:
        say(hidden(outcome.text.removesuffix("\n")))


def say(text: str) -> None:
    """A line of an answer on stdout, now: for verbs that know one part of it before the others.

    Past Python's buffer, which would be written once more on the way out; what the encoding lacks is spelled out.

    Raises:
        BrokenPipeError: nobody reads. CommandError: it cannot be written; has it where it is short, such as the number of a new domain.
    """
    from shoal.cli.reader import write  # only who answers pays for it

    encoding = "utf-8" if sys.stdout is None else sys.stdout.encoding  # None when 1 was closed
    try:
        write((text + "\n").encode(encoding, "backslashreplace"))
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"the answer is {text}, and" if len(text) <= _SHORT and "\n" not in text else "the answer"
        raise CommandError(f"{what} cannot be written to stdout: {error.strerror}") from None


def report_failure(error: Exception) -> int:
    """Say on stderr what went wrong; the exit code that belongs to it."""
    if isinstance(error, CommandError):
        complain(error.message)
        for line in error.hints:
            hint(line)
        return error.code
    if isinstance(error, SpawnError):
        complain(_as_options(str(error)))
        return _spawn_exit_code(error)
    if isinstance(error, OSError):
        complain(str(error))
        return SHOAL_FAILED
    complain(f"internal error: {type(error).__name__}: {error} (SHOAL_DEBUG=1 shows where)")
    return SHOAL_FAILED


def _as_options(text: str) -> str:
    """Advice for Python programs, as options."""
    for python, option in (
        ('say limits="best-effort"', "add --limits best-effort"),
        ("seccomp='off'", "--seccomp off"),
        ('user="caller"', "--user caller"),
    ):
        text = text.replace(python, option)
    return text


def _spawn_exit_code(error: SpawnError) -> int:
    """127 when the program is not there, 126 when it is but cannot be executed, 125 for everything else."""
    if error.stage is Stage.LOAD and error.status is Status.NOT_FOUND:
        return NOT_FOUND
    about_the_program = error.stage in (Stage.LOAD, Stage.DIRECTIVES, Stage.LOADER, Stage.EXEC)
    return NOT_EXECUTABLE if about_the_program else SHOAL_FAILED
