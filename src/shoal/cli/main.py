"""The `shoal` command: dispatch, output and exit codes.

A verb is a module with `add_arguments(parser)` and `run(args) -> Outcome`. It is imported when it is asked for, and only
then: `shoal run` must add little to the time the program itself takes.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

from shoal.cli.output import CommandError, Outcome, present, report_failure


class Verb(Protocol):
    """What a verb's module has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, args: argparse.Namespace) -> Outcome: ...


VERBS = {
    "run": "start a program with only what it is handed",
    "profile": "list, show and check profiles: sandboxes with a name",
    "doctor": "what this machine allows, what is missing, and the command that fixes it",
    "spawn": "start a program that the process manager keeps, whatever becomes of whoever started it",
    "ps": "the domains that run, and those that have ended",
    "tree": "domains with their processes",
    "status": "all that is known of a domain",
    "logs": "what a domain has written",
    "wait": "wait until domains have ended, and tell how",
    "kill": "end domains with everything in them, or send them a signal",
    "exec": "run a command in a domain, beside its program",
    "span": "start another dispatcher of a domain, on another core",
    "caps": "everything that a domain can touch",
    "names": "what is registered with the name service: list, get, wait, watch, set, remove",
    "audit": "who did what with which domain, and what was refused",
    "manager": "start, stop and ask the process manager; a systemd unit for it",
    "completion": "what makes bash, zsh or fish complete the command line",
}

_USAGE = "shoal VERB [OPTIONS]   (shoal VERB --help says more)"
_OVERVIEW = """\
usage: {usage}

Processes that start with nothing.

{verbs}

options:
  --version  print the version and exit
  --help     print this and exit
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Plain help that knows its width beforehand: argparse would import shutil, and with it three compressors, to find it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=118)


class _Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line and the exit code for "shoal itself failed"."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=False)

    def print_help(self, file: object = None) -> None:
        """As any other answer: argparse would not tell where it cannot be written."""
        present(Outcome(text=self.format_help()), as_json=False)

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (try '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _fill_standard_descriptors()
    try:
        return _dispatch(words)
    except BrokenPipeError:  # whoever read our stdout has gone
        return 141
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # argparse, after --help
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        if os.environ.get("SHOAL_DEBUG") == "1":
            raise
        return report_failure(error)


def _dispatch(words: list[str]) -> int:
    if not words:
        raise CommandError(f"which verb? usage: {_USAGE}")
    verb = words[0]
    if verb in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:<12}{summary}" for name, summary in VERBS.items())
        present(Outcome(text=_OVERVIEW.format(usage=_USAGE, verbs=lines)), as_json=False)
        return 0
    if verb in ("-V", "--version"):
        present(Outcome(text=f"shoal {_version()}"), as_json=False)
        return 0
    if verb not in VERBS:
        raise CommandError(f"no verb {verb!r}; there are: {', '.join(VERBS)}")
    module = module_of(verb)
    args = _parse(parser_of(verb, module), words[1:])
    gc.freeze()  # what is loaded stays; what the verb makes is looked after, since some run for weeks
    gc.enable()
    outcome = module.run(args)
    present(outcome, as_json=getattr(args, "json", False))
    return outcome.code


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Options may stand between operands, except where what follows an operand belongs to that."""
    belongs = (argparse.REMAINDER, argparse.PARSER)
    parse = parser.parse_args if any(action.nargs in belongs for action in parser._actions) else parser.parse_intermixed_args
    return parse(words)


def module_of(verb: str) -> Verb:
    """The module of a verb, loaded now."""
    module: Verb = importlib.import_module(f"shoal.cli.{verb}")
    return module


def parser_of(verb: str, module: Verb) -> argparse.ArgumentParser:
    """What knows the options of a verb."""
    parser = _Parser(f"shoal {verb}", VERBS[verb][0].upper() + VERBS[verb][1:] + ".")
    module.add_arguments(parser)
    return parser


def _fill_standard_descriptors() -> None:
    """Put /dev/null where 0, 1 or 2 is closed: what we open next would land there and reach the program as its input or output."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("shoal")
    except PackageNotFoundError:
        return "(not installed)"
