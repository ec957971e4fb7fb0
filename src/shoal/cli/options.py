"""Options: what `shoal run` is told about the sandbox, as one table of options and attributes of Sandbox.

What an option says wins over the profile; an option that may be repeated adds to the profile's list.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from shoal.cli.output import CommandError
from shoal.sandbox.box import Sandbox


class Option(NamedTuple):
    """One option and the attribute it is about.

    Attributes:
        read: the attribute's value from the word on the command line; raises ValueError.
        adds: it may be repeated.
    """

    flag: str
    help: str
    field: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    read: Callable[[str], Any] = str
    adds: bool = False

    @property
    def dest(self) -> str:
        """Where argparse puts it."""
        return "box_" + self.field


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _tmp(text: str) -> bool | str:
    return text if text != "none" else False


def parse_core_set(text: str) -> tuple[int, ...]:
    """The processors in "0,2-3".

    Raises:
        ValueError: it is no such list.
    """
    cores: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and not int(first) <= int(last) < 8192):
            raise ValueError(f"{text!r} is no list of processors; write for example 0,2-3")
        cores += range(int(first), int(last) + 1) if dash else [int(first)]
    return tuple(cores)


_SECCOMP, _LIMITS, _USER, _LINGER = (
    ("default", "strict", "off"),
    ("require", "best-effort"),
    ("dynamic", "caller"),
    ("kill", "wait", "keep"),
)

LIMITS = (
    Option("--memory", "memory, for all that runs: 512M", "memory", "SIZE"),
    Option("--swap", "swap besides the memory (0)", "swap", "SIZE"),
    Option("--pids", "processes and threads", "pids", "N", read=_whole_number),
    Option("--cpus", "processors' worth of time: 1.5", "cpus", "N", read=_number),
    Option("--cpu-time", "processor time in all: 10s", "cpu_time", "T"),
    Option("--wall-time", "time in all, like --timeout", "wall_time", "T"),
    Option("--open-files", "descriptors of each process", "open_files", "N", read=_whole_number),
    Option("--file-size", "size of each file written", "file_size", "SIZE"),
    Option("--core-set", "the processors to run on: 0,2-3", "core_set", "LIST", read=parse_core_set),
    Option("--nice", "the nice value, -20 to 19", "nice", "N", read=_whole_number),
    Option("--tmp", "what /tmp can hold (1G); none: no /tmp", "tmp", "SIZE", read=_tmp),
    Option(
        "--limits", "what happens where one cannot be enforced: nothing is started, or it is left out (require)", "limits", None, _LIMITS
    ),
)
PROTECTIONS = (
    Option("--network", "hand over the host's network (none)", "network", None, ("none", "host")),
    Option("--seccomp", "which system calls may be made (default)", "seccomp", None, _SECCOMP),
    Option("--user", "as root: a user of its own, or yours (dynamic)", "user", None, _USER),
    Option("--device", "hand over /dev/NAME", "devices", "NAME", adds=True),
    Option("--linger", "what becomes of what the program leaves running (kill)", "linger", None, _LINGER),
    Option("--require", "start nothing where this is not enforced: seccomp, memory...", "require", "PROTECTION", adds=True),
    Option("--secret", "never show the value of this variable", "secrets", "NAME", adds=True),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Make `parser` know the table."""
    for title, options in (("limits", LIMITS), ("protections", PROTECTIONS)):
        group = parser.add_argument_group(title)
        for option in options:
            how: dict[str, Any] = {"dest": option.dest, "help": option.help}
            how |= {"choices": option.choices} if option.choices else {"metavar": option.metavar}
            how |= {"action": "append", "default": []} if option.adds else {}
            group.add_argument(option.flag, **how)


def sandbox_of(args: argparse.Namespace, executable: str) -> Sandbox:
    """The profile, changed by the options.

    Args:
        executable: what will run, for the profile.
    Raises:
        CommandError: an option or the profile has a mistake; names it.
    """
    if args.profile is None:
        box = Sandbox()
    else:
        from shoal.sandbox.profiles import load

        box = load(args.profile, executable)
    return changed(box, args)


def changed(box: Sandbox, args: argparse.Namespace) -> Sandbox:
    """A sandbox, changed by the options.

    Raises:
        CommandError: an option has a mistake; names it.
    """
    changes: dict[str, Any] = {}
    for option in (*LIMITS, *PROTECTIONS):
        given = getattr(args, option.dest)
        if given is None or given == []:
            continue
        value = value_of(option, given)
        changes[option.field] = (*getattr(box, option.field), *value) if option.adds else value
    return box.replace(**changes) if changes else box


def value_of(option: Option, given: Any) -> Any:
    """The attribute's value from what was given for the option: a word, or words where it may be repeated.

    Raises:
        CommandError: it has a mistake; names the option.
    """
    value: Any
    try:
        value = tuple(option.read(word) for word in given) if option.adds else option.read(given)
        Sandbox(**{option.field: value})  # alone, so that a mistake is this option's
    except (TypeError, ValueError) as error:
        what = str(error)
        told = option.flag + what.removeprefix(option.field) if what.startswith(option.field) else f"{option.flag}: {what}"
        raise CommandError(told) from None
    return value


def listed(box: Sandbox) -> dict[str, object]:
    """The limits that a box has besides those of each process, which its plan shows."""
    names = ("memory", "swap", "pids", "cpus", "io", "cpu_time", "wall_time")
    found = {name: getattr(box, name) for name in names if getattr(box, name) not in (None, {})}
    return found if box.memory is not None else {name: value for name, value in found.items() if name != "swap"}


def assigned(texts: Iterable[str], owner: str | None = None) -> dict[str, str]:
    """The variables of `--env NAME=VALUE`, and of `--env NAME` for the caller's own.

    Args:
        owner: whose the latter is and has to be, as the beginning of a sentence; None: it may be missing, as with `docker run`.
    Raises:
        CommandError: there is no such variable, or no name.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise CommandError(f"--env {text}: write NAME=VALUE, or NAME for your own value")
        own = value if equals else os.environ.get(name)
        if own is not None:
            found[name] = own
        elif owner is not None:
            raise CommandError(f"--env {name}: {owner} no variable of that name; write {name}=VALUE")
    return found
