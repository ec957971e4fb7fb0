"""How a call ended, when not with a result. Whatever comes from inside is text here: no class of the other side is ever rebuilt.

An exception that was raised inside is a RemoteError. Where it was one of Python's own, or derived from one, it is that as well, so that
`except ValueError` works as it would without a sandbox; which ones is listed here, and classes for them are made here.
"""

from __future__ import annotations

import builtins
import unicodedata
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from shoal.status import ShoalError

if TYPE_CHECKING:
    from shoal.sandbox.result import RunUsage

Reason: TypeAlias = Literal[
    "returned",
    "raised",
    "bad_result",
    "exited",
    "signaled",
    "oom",
    "wall_time",
    "cpu_time",
    "output_limit",
    "killed",
    "setup_failed",
]
"""Why a call ended. Those that a `Result` has, too, mean the same."""

REBUILT = frozenset(
    {
        "ArithmeticError",
        "AssertionError",
        "AttributeError",
        "BlockingIOError",
        "BrokenPipeError",
        "BufferError",
        "ChildProcessError",
        "ConnectionAbortedError",
        "ConnectionError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "EOFError",
        "FileExistsError",
        "FileNotFoundError",
        "FloatingPointError",
        "ImportError",
        "IndentationError",
        "IndexError",
        "InterruptedError",
        "IsADirectoryError",
        "KeyError",
        "LookupError",
        "MemoryError",
        "ModuleNotFoundError",
        "NameError",
        "NotADirectoryError",
        "NotImplementedError",
        "OSError",
        "OverflowError",
        "PermissionError",
        "ProcessLookupError",
        "RecursionError",
        "ReferenceError",
        "RuntimeError",
        "SyntaxError",
        "TabError",
        "TypeError",
        "UnboundLocalError",
        "UnicodeError",
        "ValueError",
        "ZeroDivisionError",
    }
)
"""Python's own exceptions that a RemoteError may be as well. Not those that mean something to who waits for a result (TimeoutError,
KeyboardInterrupt, SystemExit, CancelledError), nor those that end an iteration."""


class CallError(ShoalError):
    """A call gave no result.

    Attributes:
        reason: why.
        usage: what it used, as far as it began.
        stdout, stderr: what it wrote, as far as it was kept.
    """

    reason: Reason = "killed"
    usage: RunUsage | None = None
    stdout: str = ""
    stderr: str = ""

    def __init__(self, text: str, reason: Reason | None = None) -> None:
        super().__init__(text)
        if reason is not None:
            self.reason = reason

    def __reduce__(self) -> Any:
        return type(self), (str(self),), self.__dict__


class CallEndedError(CallError):
    """It ended before it gave a result: it exited, was killed, had too little memory, or wrote too much."""


class CallTimeoutError(CallError, TimeoutError):
    """It took longer than it was given."""

    reason: Reason = "wall_time"


class BadResultError(CallError):
    """It gave something that is no result: of a type that cannot come back, too large, too deep, or made up."""

    reason: Reason = "bad_result"


class BrokenSandboxError(CallError, BrokenExecutor):
    """There is no sandbox for it: none can be made, or the interpreter that they are made from has ended again and again."""

    reason: Reason = "setup_failed"


class PreloadError(BrokenSandboxError):
    """A module that was to be loaded before the first call could not be, or leaves something behind that calls must not share."""


class RemoteError(CallError):
    """The function raised an exception. What is known of it is text.

    `str()` is what it says for itself, after the name of its class where that is not one of Python's own. The traceback from inside is
    shown below this one's.

    Attributes:
        type_name: its class, with the module unless that is builtins or __main__.
        text: what it says for itself.
        traceback_text: where it was raised, as Python would have shown it.
        args: what it was raised with, where that could come back.
    """

    reason: Reason = "raised"

    def __init__(self, type_name: str, text: str, traceback_text: str = "", arguments: Sequence[object] | None = None) -> None:
        super().__init__(text)
        self.type_name, self.text, self.traceback_text = type_name, text, traceback_text
        if arguments is not None:
            self.args = tuple(arguments)
        if isinstance(self, OSError) and len(self.args) > 1 and isinstance(self.args[0], int) and isinstance(self.args[1], str):
            self.errno, self.strerror = self.args[:2]
        if traceback_text:
            from shoal.executor.source_lines import with_source_lines

            self.add_note("Inside the sandbox:\n" + harmless(with_source_lines(traceback_text.rstrip("\n"))))

    def __str__(self) -> str:
        own = self.type_name in REBUILT
        shown = harmless(self.text)
        return shown if own else f"{harmless(self.type_name)}: {shown}" if shown else harmless(self.type_name)

    def __repr__(self) -> str:
        return f"<RemoteError {harmless(self.type_name)}: {harmless(self.text)[:200]!r}>"

    def __reduce__(self) -> Any:
        bases = [base.__name__ for base in type(self).__mro__ if base.__name__ in REBUILT][:1]
        state = {key: value for key, value in self.__dict__.items() if key != "__notes__"}
        return remote_error, (self.type_name, self.text, self.traceback_text, bases, self.args), state


def remote_error(
    type_name: str, text: str, traceback_text: str, bases: Sequence[str], arguments: Sequence[object] | None = None
) -> RemoteError:
    """The exception for one that was raised inside.

    Args:
        bases: names of its classes that are Python's own, nearest first.
    """
    base = next((name for name in bases if name in REBUILT), None)
    kind = RemoteError if base is None else _also(base)
    return kind(type_name, text, traceback_text, arguments)


@cache
def _also(name: str) -> type[RemoteError]:
    return type(f"Remote{name}", (RemoteError, getattr(builtins, name)), {"__module__": __name__, "__doc__": f"A {name}, raised inside."})


_KEPT = frozenset("\n\t")


def harmless(text: str) -> str:
    """Text from inside, so that a terminal shows it and does nothing else: control characters and the like are spelled out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in _KEPT or unicodedata.category(c)[0] != "C" else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
