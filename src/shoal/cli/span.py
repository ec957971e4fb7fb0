"""shoal span: start another dispatcher of a domain: the same program on another core, with memory and channels that they share."""

from __future__ import annotations

import argparse

from shoal.cli.contact import core_of, reached_with
from shoal.cli.output import Outcome

_NOTES = """\
Returns when it is executed. The domain ends with whichever of its dispatchers ends first; wait, kill, ps and tree are about all of them.

examples:
  shoal span web 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal span ID CORE"
    parser.epilog = _NOTES
    parser.add_argument("id", metavar="ID", help="number or name of a domain")
    parser.add_argument("core", metavar="CORE", help="the processor it runs on")


def run(args: argparse.Namespace) -> Outcome:
    with reached_with([args.id]) as (_, [domain]):
        domain.span(core_of(args.core))
    return Outcome()
