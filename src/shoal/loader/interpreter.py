"""#! lines: reading one (pure), and following them until a real program is reached.

Called by: spawn. Touches: nothing by itself; it is given a way to load an interpreter and a way to ask the resolver.
`#!resolve NAME` asks the resolver for program and libraries; any other `#!` line names an interpreter in the caller's
world and at most one argument. The two kinds never mix in one spawn.
Source: spec section 4, with 9.2 for zero bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from shoal.status import SpawnError, Stage, Status, failure

RESOLVE = b"#!resolve "
NAME_BYTES = 2048
WINDOW_BYTES = len(RESOLVE) + NAME_BYTES
"""What is looked at of a file: 2,057 bytes of line and the newline."""
MAX_DIRECTIVES = 255

_ORDINARY = rb"(?s)#![ \t]*([^ \t]+)[ \t]*(.*)"


class ResolveDirective(NamedTuple):
    """`#!resolve NAME`; the name untrimmed, possibly empty."""

    name: str


class InterpreterDirective(NamedTuple):
    """`#! INTERPRETER ARGUMENT`; the argument is everything that is left of the line, as one."""

    interpreter: bytes
    argument: bytes | None

    @property
    def args(self) -> tuple[bytes, ...]:
        """What goes in front of the arguments so far."""
        return (self.interpreter,) if self.argument is None else (self.interpreter, self.argument)


Directive = ResolveDirective | InterpreterDirective


def is_directive(head: bytes) -> bool:
    """True when a file that begins with `head` is a script."""
    return head[:2] == b"#!"


def parse_directive(window: bytes, name: str = "the script") -> Directive:
    """Read the #! line at the start of `window`.

    Args:
        window: the first `WINDOW_BYTES` bytes of the file, or the whole file when it is shorter: the rest then counts as zeros.
        name: how messages call the file.
    Raises:
        OutOfRangeError: the line has no end within the window.
        InvalidArgsError: no interpreter after `#!`, or a resolve name that holds a zero byte or is not UTF-8.
    """
    window = window[:WINDOW_BYTES].ljust(WINDOW_BYTES, b"\0")
    end = window.find(b"\n")
    if end < 0:
        end = window.find(b"\0")
    if end < 0:
        raise failure(Status.OUT_OF_RANGE, Stage.DIRECTIVES, f"the first line of {name} is too long: {WINDOW_BYTES - 1} bytes are possible")
    line = window[:end]
    if line.startswith(RESOLVE):
        wanted = line[len(RESOLVE) :]
        if b"\0" in wanted:
            raise failure(Status.INVALID_ARGS, Stage.DIRECTIVES, f"the #!resolve line of {name} holds a zero byte")
        try:
            return ResolveDirective(wanted.decode())
        except UnicodeDecodeError as error:
            raise failure(Status.INVALID_ARGS, Stage.DIRECTIVES, f"the #!resolve line of {name} is not UTF-8") from error
    match = re.match(_ORDINARY, line.partition(b"\0")[0])
    if match is None:
        raise failure(Status.INVALID_ARGS, Stage.DIRECTIVES, f"the #! line of {name} names no interpreter")
    return InterpreterDirective(match[1], match[2] or None)


class HasWindow(Protocol):
    """An executable, seen from here."""

    @property
    def window(self) -> bytes:
        """The first bytes of a script; empty for anything else."""


class Closable(Protocol):
    """A resolver's answer, seen from here."""

    def close(self) -> None:
        """Give up what it owns."""


E = TypeVar("E", bound=HasWindow)
R = TypeVar("R", bound=Closable)


class Followed(NamedTuple, Generic[E, R]):
    """Where the #! lines led."""

    executable: E
    """The program to run: not a script."""
    extra_args: tuple[bytes, ...]
    """I_n, A_n, ..., I_1, A_1: to be put in front of the whole argv."""
    interpreter: bytes | None
    """I_n, the path `executable` was loaded from; None when it is the original one or the resolver's."""
    resolved: R | None
    """The last answer of the resolver. Its libraries replace the caller's: none given means none, even with DEFAULT_LDSVC."""


def follow(executable: E, load: Callable[[bytes], E], resolve: Callable[[str], tuple[E, R]], name: str = "the program") -> Followed[E, R]:
    """Follow the #! lines of `executable` until something that is none.

    Args:
        load: opens an interpreter by its path, in the caller's world.
        resolve: asks the resolver (`resolver.ask`); the executable it gave, and the whole answer.
        name: how messages call the original file.
    Raises:
        IoInvalidError: more than 255 directives.
        NotSupportedError: the two kinds are mixed.
        OutOfRangeError, InvalidArgsError: see `parse_directive`.
        InternalError: an interpreter or a name that does not exist. NOT_FOUND is for the original path alone, because
            shells read it as "try the next directory".
        SpawnError: any other refusal of an interpreter or of the resolver, with its own status.
    Ownership: answers of the resolver that are not returned are closed here.
    """
    extra: tuple[bytes, ...] = ()
    interpreter: bytes | None = None
    resolved: R | None = None
    count = 0
    try:
        while is_directive(executable.window):
            if count == MAX_DIRECTIVES:
                raise failure(Status.IO_INVALID, Stage.DIRECTIVES, f"{name} leads through more than {MAX_DIRECTIVES} #! lines")
            directive = parse_directive(executable.window, name)
            count += 1
            if isinstance(directive, ResolveDirective):
                if interpreter is not None:
                    raise _mixed(name)
                executable, answer = _resolve(resolve, directive.name)
                if resolved is not None:
                    resolved.close()
                resolved, name = answer, f"{directive.name!r} from the resolver"
            else:
                if resolved is not None:
                    raise _mixed(name)
                interpreter = directive.interpreter
                extra = directive.args + extra
                executable = _load(load, interpreter, name)
                name = os.fsdecode(interpreter)
    except BaseException:
        if resolved is not None:
            resolved.close()
        raise
    return Followed(executable, extra, interpreter, resolved)


def _resolve(resolve: Callable[[str], tuple[E, R]], wanted: str) -> tuple[E, R]:
    try:
        return resolve(wanted)
    except SpawnError as error:
        raise _late(error, f"the resolver refuses {wanted!r}") from error


def _load(load: Callable[[bytes], E], interpreter: bytes, name: str) -> E:
    try:
        return load(interpreter)
    except SpawnError as error:
        raise _late(error, f"the interpreter {os.fsdecode(interpreter)} of {name} cannot be loaded") from error


def _mixed(name: str) -> SpawnError:
    return failure(Status.NOT_SUPPORTED, Stage.DIRECTIVES, f"{name}: #!resolve and #! interpreter lines cannot be mixed in one spawn")


def _late(error: SpawnError, what: str) -> SpawnError:
    detail = f"{what}: {error.detail} (status {int(error.status)})"
    if error.status is Status.NOT_FOUND:
        return failure(Status.INTERNAL, Stage.DIRECTIVES, detail)
    return failure(error.status, Stage.DIRECTIVES, detail, error.errno)
