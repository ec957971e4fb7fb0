"""shoal ps: the domains that run; with -a, also those that have ended, as far as they are remembered."""

from __future__ import annotations

import argparse
import gc
from typing import TYPE_CHECKING

from shoal.cli.contact import has_history, reached
from shoal.cli.output import Outcome, printable
from shoal.cli.table import Cell, Column, Screen, render
from shoal.cli.wording import ago, as_data, colour_of, command_of, listed, moment, state_of

if TYPE_CHECKING:
    from shoal.manager import DomainStatus

_NOTES = """\
On a terminal the table is cut to its width. In a pipe it is whole, has tabs between its columns, and tells times in full.

STATE      starting, running, stopping; exited N, the signal, killed, oom, wall_time, cpu_time; lost: its init was killed, or the machine
           was started anew
CORE, PID  of each of its dispatchers
AGE        since it was started; in a pipe STARTED
ENDED      how long ago it ended, with -a

examples:
  shoal ps
  shoal ps -a --json | jq '.[] | select(.exit_code > 0)'
  shoal wait $(shoal ps -q)
"""
_NONE = "No domain runs. `shoal ps -a` lists what has ended, `shoal spawn -d PROGRAM` starts one."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal ps [-a] [-q] [--json]"
    parser.epilog = _NOTES
    parser.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the numbers, one a line")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> Outcome:
    gc.disable()  # a process that ends soon, and makes a lot of which nothing is garbage
    found = statuses(ended=args.all) if has_history() else []
    if args.quiet:
        return Outcome(text="\n".join(str(status.id) for status in found), data=[status.id for status in found])
    if args.json:
        return Outcome(data=[as_data(status) for status in found])
    screen = Screen.of_stdout()
    if not found and screen.width is not None:
        text = "No domain is known." if args.all else _NONE
    else:
        text = table(found, screen, ended=args.all)
    return Outcome(text=text)


def statuses(*, ended: bool) -> list[DomainStatus]:
    """Those that run, by their numbers.

    Args:
        ended: also those that do not any more.
    """
    with reached() as manager:
        # In this order: one that ends between the two questions is in both answers rather than in none.
        found = {status.id: status for status in manager.statuses()}
        if ended:
            found |= {status.id: status for status in manager.history()}
    return [found[id] for id in sorted(found) if ended or found[id].exit is None]


def table(found: list[DomainStatus], screen: Screen, *, ended: bool) -> str:
    """Domains, one a line."""
    is_whole = screen.width is None
    columns = [
        Column("ID", is_number=not is_whole),
        Column("NAME", least=8),
        Column("STATE"),
        Column("CORE"),
        Column("PID"),
        Column("STARTED" if is_whole else "AGE"),
        Column("ENDED"),
        Column("COMMAND", least=12),
    ]
    rows = [
        [
            Cell(str(status.id)),
            Cell(printable(status.name)),
            Cell(state_of(status), colour_of(status)),
            Cell(listed(status.cores)),
            Cell(listed(status.pids)),
            Cell(moment(status.started_s) if is_whole else ago(status.started_s)),
            Cell(moment(status.ended_s) if is_whole else ago(status.ended_s)),
            Cell(command_of(status.argv)),
        ]
        for status in found
    ]
    if not ended and not is_whole:
        del columns[6]
        for row in rows:
            del row[6]
    return render(columns, rows, screen)
