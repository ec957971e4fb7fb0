"""shoal spawn: start a program as a domain of the process manager, which keeps it whatever becomes of whoever started it.

Without -d the command stands for the program: its output, its exit code, and what it is sent. With -d it prints the domain's number.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.arguments import StrOrBytesPath
from shoal.cli.contact import core_of, reached
from shoal.cli.options import LIMITS, PROTECTIONS, add_options, assigned, sandbox_of
from shoal.cli.output import CommandError, Outcome, complain
from shoal.cli.processes import own_core
from shoal.cli.request import make_environ
from shoal.cli.wording import as_data, exit_code
from shoal.sandbox.grants import grant_path, parse_bind
from shoal.sandbox.program import Program, current_directory, find_program

if TYPE_CHECKING:
    from shoal.manager import Domain, Manager
    from shoal.sandbox.box import Sandbox

Granted = Sequence[StrOrBytesPath] | Mapping[str, StrOrBytesPath]

_NOTES = """\
The program ends with everything it has started, and lives on when this command, or the manager, is killed. It sees what you do, unless
it is put into a sandbox: by --sandbox, or by any option that says what it gets there. All of these mean what they do for shoal run.

-d              prints the domain's number as soon as the program is executed. Its input is empty, its output is kept: shoal logs.
without -d      its output is this command's, and so is its input, but for a terminal: what wants one is for shoal run. INT TERM HUP QUIT
                USR1 USR2 sent to this command reach the program, ctrl-C and ctrl-Z also what it has started. Nothing is kept.
PROG            looked up in your PATH and your files.
environment     yours; in a sandbox PATH, HOME, LANG and TERM, and yours with --clone-env. --env K=V adds to it. Limits (ulimit) and the
                umask are the manager's.
working dir     --cwd, else yours, in a sandbox if it can be seen there.
--core          the processor it is bound to: 0, 1, ...; else the one that this command happens to run on.
--json          with -d prints number and name; without, how it ended, as the last line of stderr.

exit codes      without -d the program's; 128+N when signal N ended it; 137 when it was killed; 125 shoal itself failed, or nobody knows
                how it ended; 126 PROG cannot be executed; 127 PROG not found.

examples:
  shoal spawn -d --name web -- python3 -m http.server
  shoal spawn -d --profile service --rw ./state:/state --network host --memory 512M -- ./server --data /state
  shoal spawn make -C src
"""
_TOLD = {
    "killed": "was killed",
    "oom": "used up its memory and was killed",
    "wall_time": "had used up its time and was killed",
    "cpu_time": "had used up its processor time and was killed",
    "lost": "is lost: how it ended is not known",
}
"""What is said of ends that a program does not bring about by itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal spawn [-d] [OPTIONS] [--] PROG [ARGS...]"
    parser.epilog = _NOTES
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="print the domain's number and leave it alone")
    add("--core", metavar="N", help="the processor it runs on")
    add("--name", metavar="NAME", help="what it is called by shoal ps; PROG, if nothing else")
    add("--env", "-e", action="append", default=[], metavar="K=V", help="set a variable")
    add("--cwd", metavar="DIR", help="start in DIR")
    add("--sandbox", action="store_true", help="only what it is handed: itself, its libraries, a private /tmp, and what options add")
    add("--profile", metavar="NAME", help="a sandbox that begins with what a profile hands over and limits")
    add("--ro", action="append", default=[], metavar="SRC[:DEST]", help="hand over a file or directory to read")
    add("--rw", action="append", default=[], metavar="SRC[:DEST]", help="hand over a file or directory to read and write")
    add("--clone-env", action="store_true", help="begin with all of your variables")
    add("--json", action="store_true", help="print the answer as JSON")
    add_options(parser)
    add("command", nargs=argparse.REMAINDER, metavar="PROG ARGS", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Outcome:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise CommandError("which program? usage: shoal spawn [-d] [OPTIONS] [--] PROG [ARGS...]")
    program = find_program(command[0], os.environ.get("PATH", os.defpath), current_directory())
    box = _sandbox(args, program)
    if box is not None:
        environ = make_environ(assigned(args.env, "you have"), os.environ if args.clone_env else None, box.env)
        args.cwd = None  # it is the sandbox that has it
    else:
        environ = {**os.environ, **assigned(args.env, "you have")}
        if args.cwd is not None:
            args.cwd = os.path.abspath(args.cwd)
            if not os.path.isdir(args.cwd):
                raise CommandError(f"--cwd {args.cwd}: there is no such directory")
            environ["PWD"] = args.cwd
    name = os.path.basename(command[0]) if args.name is None else args.name
    stdin = None if args.detach or os.isatty(0) else 0
    stdout, stderr = (None, None) if args.detach else (1, 2)
    with reached() as manager:

        def start() -> Domain:
            return manager.spawn_program(
                _core(manager, args.core),
                program.path,
                command,
                environ,
                sandbox=box,
                name=name,
                cwd=args.cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )

        if args.detach:
            from shoal.manager.wording import shown_path

            domain = start()
            return Outcome(text=str(domain.id), data={"id": domain.id, "name": shown_path(name)})
        return _attend(start, as_json=args.json)


def _attend(start: Callable[[], Domain], *, as_json: bool) -> Outcome:
    """Stand for the program until it has ended."""
    from shoal.cli.errand import Errand
    from shoal.cli.signals import Signals

    with Signals() as signals, Errand(start) as errand:
        domain, end = errand.follow(signals)
    if end.reason in _TOLD:
        complain(f"domain {domain.id} {_TOLD[end.reason]}")
    return Outcome(data=as_data(domain.status()) if as_json else None, code=exit_code(end), stream="stderr")


def _sandbox(args: argparse.Namespace, program: Program) -> Sandbox | None:
    """The one that the options ask for, if any of them does."""
    asked = args.sandbox or args.profile or args.ro or args.rw or args.clone_env
    if not (asked or any(getattr(args, option.dest) not in (None, []) for option in (*LIMITS, *PROTECTIONS))):
        return None
    if args.box_core_set is not None:
        raise CommandError("--core-set: a domain is bound to one core, which --core says")
    box = sandbox_of(args, program.executes)
    changes: dict[str, Any] = {"read": _with(box.read, args.ro, writable=False), "write": _with(box.write, args.rw, writable=True)}
    if args.cwd is not None:
        changes["cwd"] = args.cwd
    return box.replace(**changes)


def _with(granted: Granted, more: list[str], *, writable: bool) -> Granted:
    """What a profile grants, and what is asked for besides."""
    if not more:
        return granted
    cwd, option = current_directory(), "--rw" if writable else "--ro"
    if isinstance(granted, Mapping):
        found = dict(granted)
    else:
        named = [grant for path in granted for grant in grant_path(os.fsdecode(path), None, writable=writable, cwd=cwd, option=option)]
        found = {grant.dest: grant.source for grant in named}
    return found | {grant.dest: grant.source for text in more for grant in parse_bind(text, writable=writable, cwd=cwd)}


def _core(manager: Manager, given: str | None) -> int | str:
    """The core that was asked for; else the one we are on, where the system has just found room."""
    if given is not None:
        return core_of(given)
    cores = manager.cores()
    if not cores:
        raise CommandError("no core is served: the manager was told to serve none, and no spawn daemon does; see `shoal manager --help`")
    here = own_core()
    return here if here in cores else cores[0]
