"""shoal audit: who did what with which domain, and what was refused."""

from __future__ import annotations

import argparse

from shoal.cli.contact import has_history, reached
from shoal.cli.output import CommandError, Outcome, printable
from shoal.cli.table import Cell, Column, Screen, render
from shoal.cli.wording import NOTHING, moment

_NOTES = """\
What changes something is noted when it was done, and a use of a capability that does not allow it when it was refused.

examples:
  shoal audit -n 20
  shoal audit --json | jq '.[] | select(.refused)'
"""
_ACTS = {"spawnprogram": "spawn", "addspawnd": "add spawnd"}
"""Requests that have another name on the command line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal audit [-n N] [--json]"
    parser.epilog = _NOTES
    parser.add_argument("-n", "--lines", metavar="N", default="100", help="the newest N entries (100)")
    parser.add_argument("--json", action="store_true", help="print the entries as JSON")


def run(args: argparse.Namespace) -> Outcome:
    if not args.lines.isdecimal() or len(args.lines) > 9:
        raise CommandError(f"--lines {args.lines}: not a whole number")
    entries = []
    if has_history():
        with reached() as manager:
            entries = manager.audit(int(args.lines))
    screen = Screen.of_stdout()
    is_whole = screen.width is None
    columns = [Column("TIME"), Column("WHO", least=9), Column("DID"), Column("DOMAIN", is_number=not is_whole), Column("REFUSED", least=12)]
    rows = []
    for at_s, who, did, domain, refused in entries:
        rows.append(
            [
                Cell(moment(at_s, "milliseconds") if is_whole else moment(at_s)[: len("2026-01-31T23:59:59")].replace("T", " ")),
                Cell(printable(who)),
                Cell(printable(_ACTS.get(did, did))),
                Cell(NOTHING if domain is None else str(domain)),
                Cell(NOTHING if refused is None else printable(refused), "" if refused is None else "31"),
            ]
        )
    data = [{"at_s": at_s, "who": who, "did": did, "domain": domain, "refused": refused} for at_s, who, did, domain, refused in entries]
    return Outcome(text=render(columns, rows, screen), data=data)
