"""shoal completion: a script that makes a shell complete the command line of shoal: verbs, options, domains, profiles, signals.

The script asks this verb for what changes, such as the domains that run. No manager is started for that.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from shoal.cli.contact import has_history, reached
from shoal.cli.output import CommandError, Outcome, printable
from shoal.cli.wording import command_of

if TYPE_CHECKING:
    from shoal.manager import DomainStatus

_NOTES = """\
bash   shoal completion bash > ~/.local/share/bash-completion/completions/shoal      or, without bash-completion, in ~/.bashrc:
       . <(shoal completion bash)
zsh    shoal completion zsh > DIR/_shoal, where DIR is in $fpath before compinit runs; or in ~/.zshrc, after compinit:
       . <(shoal completion zsh)
fish   shoal completion fish > ~/.config/fish/completions/shoal.fish
"""
_SHELLS = ("bash", "zsh", "fish")
_ENDED_MOST = 50
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.@+-]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal completion bash | zsh | fish"
    parser.epilog = _NOTES
    parser.add_argument("--list", choices=tuple(_LISTS), metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument("shell", nargs="?", choices=_SHELLS, metavar="bash|zsh|fish", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Outcome:
    if args.list is not None:
        return Outcome(text="\n".join(f"{word}\t{printable(what)}" for word, what in _LISTS[args.list]()))
    if args.shell is None:
        raise CommandError(f"which shell? there are: {', '.join(_SHELLS)}")
    from shoal.cli.grammar import commands
    from shoal.cli.shells import SCRIPTS

    return Outcome(text=SCRIPTS[args.shell](commands()))


# --- what the scripts ask for -----------------------------------------------------------------------


def _domains() -> Iterator[tuple[str, str]]:
    """Those that run, by their numbers, and by their names where those say which."""
    yield from _words(_statuses(ended=False))


def _known() -> Iterator[tuple[str, str]]:
    """Also the newest of those that have ended."""
    yield from _words(_statuses(ended=True))


def _statuses(*, ended: bool) -> list[DomainStatus]:
    """Nothing where no manager runs: one is not started for a key that was pressed."""
    if not has_history():
        return []
    with reached(starts=False) as manager:
        found = [status for status in manager.statuses() if status.exit is None]
        return found + (list(islice(manager.history(), _ENDED_MOST)) if ended else [])


def _words(found: list[DomainStatus]) -> Iterator[tuple[str, str]]:
    for status in found:
        yield str(status.id), f"{status.name}: {command_of(status.argv)}"
    running = Counter(status.name for status in found if status.exit is None)
    named: set[str] = set()
    for status in found:  # a name is of the one that runs by it, or else of the last one that did
        if _PLAIN.fullmatch(status.name) and running[status.name] <= 1 and status.name not in named:
            named.add(status.name)
            yield status.name, f"{status.id}: {command_of(status.argv)}"


def _signals() -> Iterator[tuple[str, str]]:
    for each in signal.Signals:
        yield each.name.removeprefix("SIG"), str(each.value)


def _cores() -> Iterator[tuple[str, str]]:
    for number in sorted(os.sched_getaffinity(0)):
        yield str(number), "processor"


def _profiles() -> Iterator[tuple[str, str]]:
    from shoal.sandbox import profiles

    for name in profiles.names():
        yield name, "profile"


_LISTS: Final[dict[str, Callable[[], Iterator[tuple[str, str]]]]] = {
    "domains": _domains,
    "known": _known,
    "signals": _signals,
    "cores": _cores,
    "profiles": _profiles,
}
