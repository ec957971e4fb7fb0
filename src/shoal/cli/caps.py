"""shoal caps: everything that a running domain can touch, as it was granted and as the kernel has it, with what differs."""

from __future__ import annotations

import argparse
import sys

from shoal.cli.contact import reached_with
from shoal.cli.output import Outcome
from shoal.cli.table import Screen

_NOTES = """\
What differs from what was granted is marked, worst first. --dot is a picture for Graphviz.

examples:
  shoal caps web
  shoal caps web --dot | dot -Tsvg > web.svg
  shoal caps web --json | jq '.differences'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal caps [--json | --dot] ID"
    parser.epilog = _NOTES
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print it as JSON")
    how.add_argument("--dot", action="store_true", help="print a picture, in the language of Graphviz")
    parser.add_argument("id", metavar="ID", help="number or name of a domain")


def run(args: argparse.Namespace) -> Outcome:
    with reached_with([args.id]) as (_, [domain]):
        found = domain.capabilities()
    if args.dot:
        return Outcome(text=found.to_dot())
    plain = sys.stdout is not None and sys.stdout.encoding.lower().replace("-", "") != "utf8"
    return Outcome(text=found.to_tree(colour=Screen.of_stdout().has_colour, ascii_only=plain), data=found.to_dict())
