"""shoal status: all that is known of one domain, whether it runs or has ended."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from shoal.cli.contact import reached_with
from shoal.cli.output import Outcome, printable
from shoal.cli.processes import Processes
from shoal.cli.table import Screen, cut
from shoal.cli.wording import ago, as_data, colour_of, command_of, exit_code, listed, moment, size_of, span, state_of

if TYPE_CHECKING:
    from shoal.manager import DomainStatus

_NOTES = """\
Processor time and memory are those of what runs now, or of all that ran when it has ended. The exit code of the command is 0 also for a
domain that has ended badly: `shoal wait` has the domain's.

examples:
  shoal status web
  shoal status 3 --json | jq .pids[0]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal status [--json] ID"
    parser.epilog = _NOTES
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("id", metavar="ID", help="number or name of a domain")


def run(args: argparse.Namespace) -> Outcome:
    with reached_with([args.id]) as (_, [domain]):
        status = domain.status()
    usage = _usage_now(status) if status.exit is None else _usage(status)
    screen = Screen.of_stdout()
    rows = _rows(status, usage, screen)
    if screen.width is None:
        text = "\n".join(f"{name}\t{value}" for name, value in rows)
    else:
        width = max(len(name) for name, _ in rows)
        text = "\n".join(cut(f"{name:<{width}}  {value}", screen.width) for name, value in rows)
        if screen.has_colour:
            state = state_of(status)
            text = text.replace(f"  {state}", f"  \x1b[{colour_of(status)}m{state}\x1b[0m", 1)
    return Outcome(text=text, data=as_data(status) | {"usage": usage})


def _usage(status: DomainStatus) -> dict[str, Any]:
    return {"cpu_s": round(status.user_s + status.system_s, 6), "memory_bytes": status.max_memory_bytes, "processes": 0}


def _usage_now(status: DomainStatus) -> dict[str, Any] | None:
    processes = Processes.now()
    found = processes.all_below(processes.of_domain(status.pids))
    if not found:
        return None
    return {
        "cpu_s": round(sum(process.ticks for process in found) / os.sysconf("SC_CLK_TCK"), 6),
        "memory_bytes": sum(process.resident_pages for process in found) * os.sysconf("SC_PAGE_SIZE"),
        "processes": len(found),
    }


def _rows(status: DomainStatus, usage: dict[str, Any] | None, screen: Screen) -> list[tuple[str, str]]:
    rows = [("domain", str(status.id)), ("name", printable(status.name)), ("state", state_of(status))]
    rows.append(("command", command_of(status.argv)))
    if status.exit is None:
        rows += [("core", listed(status.cores)), ("pid", listed(status.pids))]
    rows.append(("started", _when(status.started_s, screen)))
    if status.exit is not None:
        rows.append(("ended", _when(status.ended_s, screen)))
        if status.started_s and status.ended_s:
            rows.append(("ran for", span(max(0.0, status.ended_s - status.started_s))))
        rows.append(("exit code", str(exit_code(status.exit))))
    if usage is not None:
        at_most = "" if status.exit is None else " at most"
        rows += [("cpu", f"{usage['cpu_s']:.2f} s"), ("memory", size_of(usage["memory_bytes"]) + at_most)]
        if status.exit is None:
            rows.append(("processes", str(usage["processes"])))
    return rows


def _when(at_s: float | None, screen: Screen) -> str:
    return moment(at_s) + (f" ({ago(at_s)} ago)" if at_s and screen.width is not None else "")
