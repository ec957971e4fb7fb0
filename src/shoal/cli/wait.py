"""shoal wait: wait until domains have ended, and tell how. Its exit code is that of the first one that did not end with 0."""

from __future__ import annotations

import argparse

from shoal.cli.contact import reached_with
from shoal.cli.deadline import Deadline
from shoal.cli.output import TIMED_OUT, CommandError, Outcome, printable, say
from shoal.cli.wording import as_data, end_of, exit_code

_NOTES = """\
Prints a line for each, in the order in which they were named, as soon as it is known: number, exit code, how it ended. Any number of
people may wait for a domain, before it ends and afterwards.

exit codes      0 when all ended with 0; else that of the first, of those named, that did not: the program's, 128+N for signal N, 137 for
                a kill, 125 where nobody knows; 124 not ended in time.

examples:
  shoal wait 3 && echo fine
  shoal wait --timeout 1m build
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal wait [--timeout T] [--json] ID..."
    parser.epilog = _NOTES
    parser.add_argument("--timeout", metavar="T", help="wait no longer than T for all of them: 30s, 5m; 0 does not wait")
    parser.add_argument("--json", action="store_true", help="print how they ended as JSON")
    parser.add_argument("ids", nargs="+", metavar="ID", help="number or name of a domain")


def run(args: argparse.Namespace) -> Outcome:
    deadline = Deadline("--timeout", args.timeout)
    data, code = [], 0
    with reached_with(args.ids) as (_, domains):
        for domain in domains:
            left_s = deadline.left_s()
            try:
                end = domain.wait(nohang=True) if left_s == 0 else domain.wait(timeout=left_s)
            except TimeoutError:
                end = None
            if end is None:
                raise CommandError(f"domain {domain.id} has not ended within {deadline.span_s:g} s", TIMED_OUT)
            code = code or exit_code(end)
            if args.json:
                data.append(as_data(domain.status()))
            else:
                say(f"{domain.id}\t{exit_code(end)}\t{printable(end_of(end))}")
    return Outcome(data=data, code=code)
