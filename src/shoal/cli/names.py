"""shoal names: what is registered with the manager's name service; to look at, to set, to wait for, and to watch.

Exit code 1 when nothing matches. `watch` prints as it goes, and so by itself.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final, Literal

from shoal.cli.contact import has_history, reached
from shoal.cli.deadline import Deadline
from shoal.cli.output import CommandError, Outcome, printable
from shoal.cli.reader import ReaderWatched, write
from shoal.cli.table import Cell, Column, Screen, render
from shoal.cli.wording import NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.manager import Manager, Record

_NOTES = """\
shoal names list [QUERY]    the names of all records that match, and with -l what is in them
shoal names get QUERY       the first one that matches
shoal names wait QUERY      the same, as soon as there is one
shoal names watch [QUERY]   a line for each that is set or deleted, from now on, until ctrl-C
shoal names set RECORD      set a record: it stays until it is removed, also when the manager ends
shoal names remove QUERY    remove the record of that name, if what else the query says holds

A record is a name with attributes: "web { port: 8080, host: 'a.example' }". A query is a name, _ for any, or r'...' for a regular
expression, and what has to hold: "_ { port > 1024 }". docs/names.md has all of it.

exit codes      0; 1 nothing matches; 124 not in time; 125 the query has a mistake (the message says where), or it was refused

examples:
  shoal names list -l
  shoal names wait --timeout 10s "web { state: up }" && curl localhost:8080
"""
_ANY = "_"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal names list [-l] [QUERY] | get QUERY | wait [--timeout T] QUERY | watch [QUERY] | set RECORD | remove QUERY"
    parser.epilog = _NOTES
    parser.add_argument("-l", "--long", action="store_true", help="list: with attributes")
    parser.add_argument("--timeout", metavar="T", help="wait: no longer than T: 30s, 5m")
    parser.add_argument("--existing", action="store_true", help="watch: begin with those that there are")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--new", action="store_true", help="set: refuse where there is one of that name")
    mode.add_argument("--sequential", action="store_true", help="set: put a number behind the name, never the same twice, and print it")
    parser.add_argument("--shared", action="store_true", help="set: domains may replace and remove it, too")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.add_argument("action", choices=tuple(_ACTIONS), metavar="|".join(_ACTIONS), help=argparse.SUPPRESS)
    parser.add_argument("query", nargs="?", metavar="QUERY", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Outcome:
    if args.query is None:
        if args.action not in ("list", "watch"):
            raise CommandError(f"which {'record' if args.action == 'set' else 'query'}? usage: shoal names {args.action} QUERY")
        args.query = _ANY
    deadline = Deadline("--timeout", args.timeout)
    if args.action == "list" and not has_history():
        return _list([])
    with reached() as manager:
        return _ACTIONS[args.action](manager, args, deadline)


def _get(manager: Manager, args: argparse.Namespace, deadline: Deadline) -> Outcome:
    return _found(manager.names.get(args.query))


def _wait(manager: Manager, args: argparse.Namespace, deadline: Deadline) -> Outcome:
    from shoal.manager import ManagerError

    while True:
        try:
            return _found(manager.names.lookup(args.query, timeout=deadline.left_s()))
        except ManagerError as error:
            if error.code != "LIB_ERR_NAMESERVICE_NOT_BOUND":
                raise
            manager.cores()  # reaches the next manager, or tells why not


def _set(manager: Manager, args: argparse.Namespace, deadline: Deadline) -> Outcome:
    mode: Literal["replace", "new", "sequential"] = "new" if args.new else "sequential" if args.sequential else "replace"
    name = manager.names.register(args.query, mode=mode, persistent=True, shared=args.shared)
    return Outcome(text=name if args.sequential else "", data={"name": name})


def _remove(manager: Manager, args: argparse.Namespace, deadline: Deadline) -> Outcome:
    manager.names.remove(args.query)
    return Outcome(data={"removed": args.query})


def _watch(manager: Manager, args: argparse.Namespace, deadline: Deadline) -> Outcome:
    """Until the reader has gone, or somebody has enough of it."""
    with ReaderWatched(manager, is_needed=True), manager.names.watch(args.query, existing=args.existing) as watch:
        for event in watch:
            record = None if event.record is None else event.record.text
            data = {"event": event.kind, "record": record, "has_value": event.has_value}
            line = json.dumps(data) if args.json else f"{event.kind}\t{printable(record or '')}".rstrip("\t")
            write(line.encode("utf-8", "backslashreplace") + b"\n")
    return Outcome()


def _all(manager: Manager, args: argparse.Namespace, deadline: Deadline) -> Outcome:
    names = manager.names.names(args.query)
    if not args.long:
        return Outcome(text="\n".join(names), data=names)
    return _list([record for record in (_still(manager, name) for name in names) if record is not None])


def _still(manager: Manager, name: str) -> Record | None:
    """The record of this name; None: it has been removed meanwhile."""
    from shoal.manager import ManagerError

    try:
        return manager.names.get(name)
    except ManagerError as error:
        if error.code != "OCT_ERR_NO_RECORD":
            raise
        return None


def _list(records: Sequence[Record]) -> Outcome:
    screen = Screen.of_stdout()
    rows = []
    for record in records:
        rows.append([Cell(record.name), Cell(printable(record.text.removeprefix(record.name).strip())), Cell(_carried(record))])
    data = [_as_data(record) for record in records]
    columns = [Column("NAME", least=8), Column("RECORD", least=12), Column("CARRIES")]
    return Outcome(text=render(columns, rows, screen) if rows else "", data=data)


def _found(record: Record) -> Outcome:
    outcome = Outcome(text=printable(record.text), data=_as_data(record))
    if record.value is not None:
        record.value.close()
    return outcome


def _carried(record: Record) -> str:
    """What descriptor comes with a record, which is closed."""
    if record.value is None:
        return NOTHING
    record.value.close()
    return record.value.kind


def _as_data(record: Record) -> dict[str, Any]:
    return {"name": record.name, "attributes": dict(record.attributes), "carries": None if record.value is None else record.value.kind}


_ACTIONS: Final = {"list": _all, "get": _get, "wait": _wait, "watch": _watch, "set": _set, "remove": _remove}
