"""Grammar: the command line as what completes it has to know it, read from the options of the verbs themselves."""

from __future__ import annotations

import argparse
from typing import Literal, NamedTuple

from shoal.cli.main import VERBS, module_of, parser_of

Kind = Literal["", "domains", "known", "signals", "cores", "profiles", "file", "directory", "command", "one of"]
"""What a word can be: of "" nothing is known; the first ones `shoal completion` lists, when it is asked for them."""

_BY_NAME: dict[str, Kind] = {
    "ID": "domains",
    "SIG": "signals",
    "CORE": "cores",
    "DIR": "directory",
    "FILE": "file",
    "SRC[:DEST]": "file",
    "PROG ARGS": "command",
    "FILE-OR-NAME": "profiles",
}
_BY_OPTION: dict[str, Kind] = {"--profile": "profiles", "--core": "cores"}
_ALSO_ENDED = ("logs", "status", "wait")


class Option(NamedTuple):
    """An option.

    Attributes:
        flags: all its spellings. takes: what its value is called; "" has none. repeats: it may be given again.
    """

    flags: tuple[str, ...]
    help: str
    takes: str = ""
    kind: Kind = ""
    choices: tuple[str, ...] = ()
    repeats: bool = False


class Operand(NamedTuple):
    """A word that is no option; `repeats`: or several."""

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    repeats: bool = False


class Command(NamedTuple):
    """A verb. One that is told what to do by its first operand has the options and operands of all that it can do."""

    verb: str
    summary: str
    options: tuple[Option, ...]
    operands: tuple[Operand, ...]

    def operand(self, index: int) -> Operand | None:
        """What the operand with this index, from 0, can be; None: there can be none."""
        if index < len(self.operands):
            return self.operands[index]
        return self.operands[-1] if self.operands and self.operands[-1].repeats else None


def commands() -> list[Command]:
    """All verbs."""
    return [_command(verb, summary, parser_of(verb, module_of(verb))) for verb, summary in VERBS.items()]


def _command(verb: str, summary: str, parser: argparse.ArgumentParser) -> Command:
    options: dict[tuple[str, ...], Option] = {}
    operands: dict[str, Operand] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            operands["action"] = Operand("action", "one of", tuple(action.choices))
            for part in action.choices.values():
                below = _command(verb, summary, part)
                options |= {option.flags: option for option in below.options}
                operands |= {operand.kind: operand for operand in below.operands}
        elif not action.option_strings:
            operands[str(action.dest)] = _operand(action, verb)
        elif action.help != argparse.SUPPRESS:
            option = _option(action)
            options[option.flags] = option
    return Command(verb, summary, tuple(options.values()), tuple(operands.values()))


def _option(action: argparse.Action) -> Option:
    flags = tuple(sorted(action.option_strings, key=len))
    what = " ".join((action.help or "").split())
    if action.nargs == 0:
        return Option(flags, what)
    name = str(action.metavar or action.dest)
    choices = tuple(map(str, action.choices or ()))
    kind: Kind = "one of" if choices else _BY_OPTION.get(flags[-1], _BY_NAME.get(name, ""))
    return Option(flags, what, name, kind, choices, isinstance(action, argparse._AppendAction))


def _operand(action: argparse.Action, verb: str) -> Operand:
    name = str(action.metavar or action.dest)
    choices = tuple(map(str, action.choices or ()))
    kind: Kind = "one of" if choices else _BY_NAME.get(name, "")
    if kind == "domains" and verb in _ALSO_ENDED:
        kind = "known"
    if name == "NAME" and verb == "profile":
        kind = "profiles"
    return Operand(name, kind, choices, action.nargs in ("*", "+", argparse.REMAINDER))
