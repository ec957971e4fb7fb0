"""Options: what the line of a magic says, as a sandbox and what is to be run in it. The words are those of `shoal run`."""

from __future__ import annotations

import argparse
import keyword
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Never

from shoal.cli.options import Option, add_options, assigned, changed, value_of
from shoal.sandbox.box import Sandbox
from shoal.sandbox.errors import RequestError
from shoal.sandbox.grants import split_dest
from shoal.sandbox.profiles import load, merged
from shoal.sandbox.request import OUTPUT_LIMIT
from shoal.units import parse_duration, parse_size

SHOWN = "1M"
"""What is shown of each stream. A notebook with more can hardly be opened again."""
_DEFAULT = "python"
"""The profile where none is named: what is installed, to read; the interpreter of the notebook; a /tmp."""
_TIMEOUT = Option("--timeout", "kill everything after T: 30s, 5m", "wall_time", "T")
_NOTES = f"""\
%%shoal [OPTIONS]                   the cell is a script for the shell (bash, or sh where there is none)
%%shoal --python [OPTIONS]          the cell is Python, for the notebook's interpreter, in a process of its own
%%shoal [OPTIONS] PROG [ARGS...]    the cell is what the program reads
%shoal [OPTIONS] PROG [ARGS...]     the program

The options are those of `shoal run`. Without --profile and --box what runs sees what the profile {_DEFAULT!r} hands over: what is
installed, to read, and a private /tmp; not your files, no network, none of your variables.

Output shows while it runs. An interrupt ends everything that was started. What does not end well raises, so that the cells
below do not run.
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a magic was asked for.

    Attributes:
        words: the program and its arguments; empty: the cell is a script.
        is_python: it is one for Python. shell: the shell it is for otherwise; None: the usual one.
        out: the variable that takes the Result. given: the one that has what is read as input.
        quiet: nothing is shown. raises: what did not end well is an exception. explain: nothing is started.
        background: the cell ends at once.
        shown_bytes, kept_bytes: of each stream.
    """

    box: Sandbox
    words: tuple[str, ...]
    is_python: bool
    shell: str | None
    out: str | None
    given: str | None
    quiet: bool
    raises: bool
    explain: bool
    background: bool
    shown_bytes: int
    kept_bytes: int


class Helped(Exception):
    """Help was asked for; has it."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        raise RequestError(message + "; see %shoal --help")

    def exit(self, status: int = 0, message: str | None = None) -> Never:
        raise Helped(self.format_help())

    def print_help(self, file: Any = None) -> None:
        pass  # exit() has it


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("shoal", usage="see below", description=_NOTES, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--python", action="store_true", help="the cell is Python")
    add("--shell", metavar="PROG", help="the shell that the cell is for")
    add("--out", metavar="NAME", help="the variable that takes the result: stdout, stderr, reason, usage...")
    add("--in", metavar="NAME", dest="given", help="the variable that has the input, as text or bytes")
    add("--quiet", "-q", action="store_true", help="show nothing")
    add("--no-raise", action="store_true", help="go on whatever the result is")
    add("--bg", action="store_true", help="run it in the background; with --out, the variable takes a Future with kill()")
    add("--explain", action="store_true", help="show all that it could touch, and start nothing")
    add("--show", metavar="SIZE", default=SHOWN, help=f"how much of each stream is shown ({SHOWN})")
    add("--keep", metavar="SIZE", default=OUTPUT_LIMIT, help=f"how much of each stream is in the result ({OUTPUT_LIMIT})")
    add("--box", metavar="NAME", help="the variable that has the Sandbox to begin with")
    add("--profile", metavar="NAME", help=f"the profile to begin with ({_DEFAULT})")
    add("--ro", action="append", default=[], metavar="SRC[:DEST]", help="hand over a file or directory to read")
    add("--rw", action="append", default=[], metavar="SRC[:DEST]", help="hand over a file or directory to read and write")
    add("--env", "-e", action="append", default=[], metavar="K=V", help="set a variable; K alone takes the notebook's value")
    add("--cwd", metavar="DIR", help="start in DIR")
    add(_TIMEOUT.flag, metavar=_TIMEOUT.metavar, help=_TIMEOUT.help)
    add_options(parser)
    add("command", nargs=argparse.REMAINDER, metavar="PROG ARGS", help=argparse.SUPPRESS)
    return parser


def read_line(line: str, variables: Mapping[str, Any], *, has_cell: bool) -> Ask:
    """What the line of a magic means.

    Args:
        variables: of the notebook.
    Raises:
        Helped: it asks for help.
        ValueError, TypeError: what is wrong with it.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise RequestError(f"{line!r}: {error}") from None
    args = _parser().parse_args(words)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not has_cell and not command:
        raise RequestError("which program? %shoal [OPTIONS] PROG [ARGS...]; for a script begin the cell with %%shoal")
    if args.python + (args.shell is not None) + bool(command) > 1:
        raise RequestError(f"what is to run it: --python, --shell or {command[0] if command else 'a program'}? One of them")
    if args.given is not None and has_cell and command:
        raise RequestError(f"--in {args.given}: the cell is what {command[0]} reads")
    for option in ("out", "given"):
        name = getattr(args, option)
        if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
            raise RequestError(f"--{'in' if option == 'given' else option} {name}: that cannot be the name of a variable")
    if args.given is not None:
        _text_or_bytes(_variable(args.given, "--in", variables), args.given)
    sizes = [_size(f"--{name}", getattr(args, name)) for name in ("show", "keep")]
    return Ask(
        _box(args, variables),
        tuple(command),
        args.python,
        args.shell,
        args.out,
        args.given,
        args.quiet,
        not args.no_raise,
        args.explain,
        args.bg,
        sizes[0],
        sizes[1],
    )


def _variable(name: str, option: str, variables: Mapping[str, Any]) -> Any:
    if name not in variables:
        raise RequestError(f"{option} {name}: there is no variable of that name")
    return variables[name]


def _text_or_bytes(value: object, name: str) -> None:
    if not isinstance(value, str | bytes | bytearray | memoryview):
        raise RequestError(f"--in {name}: what is read has to be text or bytes, not {type(value).__name__}")


def _size(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise RequestError(f"{option}: {error}") from None


def _box(args: argparse.Namespace, variables: Mapping[str, Any]) -> Sandbox:
    if args.box is None:
        box = load(args.profile or _DEFAULT, sys.executable)
        if args.profile is None:  # what it writes shows while it runs
            box = box.replace(env={"PYTHONUNBUFFERED": "1", **box.env})
    elif args.profile is not None:
        raise RequestError("--box and --profile: it can begin with one of them only")
    else:
        box = _variable(args.box, "--box", variables)
        if not isinstance(box, Sandbox):
            raise RequestError(f"--box {args.box}: that is a {type(box).__name__}, and has to be a shoal.Sandbox")
    box = changed(box, args)
    more: dict[str, Any] = {}
    for name, given in (("read", args.ro), ("write", args.rw)):
        if given:
            more[name] = _handed(given)
    if args.env:
        more["env"] = assigned(args.env, "the notebook has")
    if args.timeout is not None:
        limits = [value_of(_TIMEOUT, args.timeout), *([] if args.box_wall_time is None else [args.box_wall_time])]
        more["wall_time"] = min(limits, key=parse_duration)  # what comes first, as with `shoal run`
    if args.cwd is not None:
        more["cwd"] = args.cwd
    return Sandbox(**merged({item.name: getattr(box, item.name) for item in fields(box)}, more)) if more else box


def _handed(texts: list[str]) -> list[str] | dict[str, str]:
    """For `read` and `write` of a Sandbox: a list, or a table where one has another place inside."""
    pairs = [split_dest(text) for text in texts]
    if all(dest is None for _, dest in pairs):
        return [source for source, _ in pairs]
    placed: dict[str, str] = {}
    for source, dest in pairs:
        named = os.path.abspath(source)
        placed |= {dest: source} if dest is not None else {named: source, os.path.realpath(named): source}
    return placed
