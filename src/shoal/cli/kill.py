"""shoal kill: end domains with everything in them, and return when nothing of them is left; or send a signal."""

from __future__ import annotations

import argparse
import signal
from types import TracebackType
from typing import TYPE_CHECKING

from shoal.cli.contact import as_command_error, domain_of, has_history, reached
from shoal.cli.deadline import Deadline
from shoal.cli.output import CommandError, Outcome, report_failure
from shoal.sandbox.errors import SHOAL_FAILED

if TYPE_CHECKING:
    from shoal.manager import Domain, Manager

_NOTES = """\
Without options a domain is killed: its programs, and all that they have started, however deep. With -s its programs get a signal, and
what it means is theirs to say; KILL is the same as no -s. With --grace they get TERM, and what is there after that time is killed.

exit codes      0 when it was done to all; 125 when it was not to one of them, such as one that has ended already: stderr says which.

examples:
  shoal kill 3
  shoal kill -s HUP web
  shoal kill --grace 10s --all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal kill [-s SIG | --grace T] ID... | --all"
    parser.epilog = _NOTES
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-s", "--signal", metavar="SIG", help="send this signal instead: HUP, SIGUSR1, 10")
    how.add_argument("--grace", metavar="T", help="send TERM first, and kill what is still there after T: 10s")
    parser.add_argument("-a", "--all", action="store_true", help="all that run")
    parser.add_argument("ids", nargs="*", metavar="ID", help="number or name of a domain")


def run(args: argparse.Namespace) -> Outcome:
    if bool(args.ids) == args.all:
        raise CommandError("name domains or say --all, not both" if args.ids else "which domain? name one or several, or say --all")
    number = signal.SIGKILL if args.signal is None else signal_number(args.signal)
    Deadline("--grace", args.grace)  # a mistake is told before anything is done
    if not has_history():
        if args.all:
            return Outcome()
        raise CommandError(f"there is no domain {args.ids[0]}: nothing has been started here")
    with reached() as manager:
        attempt = _Attempt(forgives_the_dead=args.all)
        domains = _all(manager) if args.all else _meant(manager, args.ids, attempt)
        if args.grace is not None:
            _end_gently(domains, args.grace, attempt)
        else:
            for domain in domains:
                with attempt:
                    domain.kill() if number == signal.SIGKILL else domain.send_signal(number)
    return Outcome(code=SHOAL_FAILED if attempt.failed else 0)


def signal_number(word: str) -> int:
    """The number of a signal: by name, with or without SIG, or as it is.

    Raises:
        CommandError: there is no such signal.
    """
    if word.isdecimal() and 1 <= int(word) <= signal.NSIG - 1:
        return int(word)
    name = word.upper()
    found = getattr(signal.Signals, name if name.startswith("SIG") else f"SIG{name}", None)
    if not isinstance(found, signal.Signals):
        raise CommandError(f"--signal {word}: there is no such signal; for example TERM, HUP, USR1, 10")
    return found


def _all(manager: Manager) -> list[Domain]:
    return [manager.domain(status.id) for status in manager.statuses() if status.exit is None]


def _meant(manager: Manager, words: list[str], attempt: _Attempt) -> list[Domain]:
    found: dict[int, Domain] = {}
    for word in words:
        with attempt:
            domain = domain_of(manager, word)
            found[domain.id] = domain
    return list(found.values())


def _end_gently(domains: list[Domain], grace: str, attempt: _Attempt) -> None:
    """Ask all to end, and kill those that are still there after the time they are given together."""
    for domain in domains:
        with attempt:
            domain.send_signal(signal.SIGTERM)
    deadline = Deadline("--grace", grace)
    for domain in domains:
        with attempt:
            try:
                domain.wait(timeout=deadline.left_s())
            except TimeoutError:
                domain.kill()


class _Attempt:
    """What is done to one domain, and keeps nobody from the next where it fails: stderr is told.

    Args:
        forgives_the_dead: nobody minds that one has ended already.
    """

    def __init__(self, *, forgives_the_dead: bool) -> None:
        self._forgives_the_dead = forgives_the_dead
        self.failed = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        from shoal.manager import ManagerError

        if not isinstance(error, ManagerError | CommandError):
            return False
        if isinstance(error, ManagerError):
            if self._forgives_the_dead and error.code == "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING":
                return True
            error = as_command_error(error)
        report_failure(error)
        self.failed = True
        return True
