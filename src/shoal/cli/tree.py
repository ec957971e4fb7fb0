"""shoal tree: domains with their processes, as /proc shows them now."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shoal.cli.contact import has_history, reached, reached_with
from shoal.cli.output import Outcome, printable
from shoal.cli.processes import Processes
from shoal.cli.table import Screen, cut
from shoal.cli.wording import colour_of, command_of, listed, state_of

if TYPE_CHECKING:
    from shoal.cli.processes import Process
    from shoal.manager import DomainStatus

_NOTES = """\
Each domain is followed by its programs and by what they have started, with their numbers and arguments; what is left of a program that
has ended hangs from the domain itself. Letters tell what is special: Z ended, and nobody has looked yet; T stopped; D cannot be
interrupted. What the manager itself has to run for a domain is not shown.

examples:
  shoal tree
  shoal tree web 7
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal tree [--json] [ID...]"
    parser.epilog = _NOTES
    parser.add_argument("--json", action="store_true", help="print the trees as JSON")
    parser.add_argument("ids", nargs="*", metavar="ID", help="number or name of a domain; all that run")


def run(args: argparse.Namespace) -> Outcome:
    found = _statuses(args.ids)
    processes = Processes.now() if any(status.pids for status in found) else Processes({})
    screen = Screen.of_stdout()
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    for status in found:
        roots = processes.of_domain(status.pids)
        lines += _drawn(status, roots, processes, screen)
        below = [_as_data(process, processes) for process in processes.all_below(roots)]
        data.append({"id": status.id, "name": status.name, "state": state_of(status), "processes": below})
    if not lines and screen.width is not None:
        lines = ["No domain runs."]
    return Outcome(text="\n".join(lines), data=data)


def _statuses(words: list[str]) -> list[DomainStatus]:
    if words:
        with reached_with(words) as (_, domains):
            return [domain.status() for domain in domains]
    if not has_history():
        return []
    with reached() as manager:
        return [status for status in manager.statuses() if status.exit is None]


def _drawn(status: DomainStatus, roots: list[Process], processes: Processes, screen: Screen) -> Iterator[str]:
    colour = f"\x1b[{colour_of(status)}m" if screen.has_colour else ""
    state = state_of(status)
    place = f"  core {listed(status.cores)}" if status.cores else ""
    head = f"{status.id} {printable(status.name)}  {state}{place}"
    if screen.width is not None:
        head = cut(head, screen.width)
    yield head.replace(f"  {state}", f"  {colour}{state}\x1b[0m", 1) if colour else head
    if status.pids and not roots:
        yield "└─ its processes cannot be seen from here"
    for i, root in enumerate(roots):
        yield from _branch(root, "", i == len(roots) - 1, processes, screen)


def _branch(process: Process, indent: str, is_last: bool, processes: Processes, screen: Screen) -> Iterator[str]:
    """A process and what it has started. By a stack of its own: a tree may be deeper than Python calls."""
    stack = [(process, indent, is_last)]
    while stack:
        process, indent, is_last = stack.pop()
        letter = f" {process.state}" if process.state in "ZTtD" else ""
        line = f"{indent}{'└─' if is_last else '├─'} {process.pid}{letter} {_command(process, processes)}"
        yield line if screen.width is None else cut(line, screen.width)
        below = processes.children_of(process.pid)
        deeper = indent + ("   " if is_last else "│  ")
        stack += [(child, deeper, i == len(below) - 1) for i, child in reversed(list(enumerate(below)))]


def _command(process: Process, processes: Processes) -> str:
    argv = processes.arguments_of(process)
    return command_of(argv) if argv else f"[{printable(process.name)}]"


def _as_data(process: Process, processes: Processes) -> dict[str, Any]:
    argv = processes.arguments_of(process)
    return {"pid": process.pid, "ppid": process.parent, "state": process.state, "name": process.name, "argv": argv}
