"""shoal exec: run a command in a domain, beside its program: in the same sandbox, as the same user, under the same limits.

The command stands for what it runs: its input and output, its exit code, and what it is sent. What it runs ends with it.
"""

from __future__ import annotations

import argparse
import functools
import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from shoal.cli.contact import reached_with
from shoal.cli.options import assigned
from shoal.cli.output import CommandError, Outcome, complain
from shoal.cli.relay import Relay
from shoal.cli.signals import Signals
from shoal.cli.wording import exit_code

if TYPE_CHECKING:  # the terminal's code is loaded only where there is one
    from shoal.cli.terminal import Terminal
    from shoal.manager import Command, Domain, ExitStatus

_NOTES = """\
It gets what the domain's program has, and no more: its files, its network, its user, its filters, its limits and its core. It counts as
part of the domain: what ends the domain ends it. Its own end ends nothing else, and it writes to you, not to the domain's log.

PROG            looked up in the domain's files, in the PATH it has there. A sandbox has only what it was handed, so perhaps no shell; the
                domain's own program is found by its name in any case.
environment     what the domain began with, and --env; on a terminal with your TERM.
working dir     --cwd, as the domain sees it; else where the domain began.
terminal        where 0, 1 or 2 is a terminal the command gets a private one instead; yours is restored whatever happens.
signals         INT TERM HUP QUIT USR1 USR2 sent to shoal reach the command; ctrl-C and ctrl-Z also what it has started.
the end         when shoal exec ends, however it does, so does the command with its process group. It goes on when the manager is killed.
                What it has left in the background lives on, as part of the domain.
--json          prints how it ended as the last line of stderr.

exit codes      the command's; 128+N when signal N ended it; 137 also when the domain ended; 125 shoal itself failed, or nobody knows how
                it ended; 126 PROG cannot be executed; 127 the domain has no PROG.

examples:
  shoal exec web -- ls -l /state
  shoal exec -e DEBUG=1 --cwd /state web -- sh
"""
_GIVE_UP = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal exec [OPTIONS] ID [--] PROG [ARGS...]"
    parser.epilog = _NOTES
    add = parser.add_argument
    add("--env", "-e", action="append", default=[], metavar="K=V", help="set a variable; K alone takes your value")
    add("--cwd", metavar="DIR", help="start in DIR, as the domain sees it")
    add("--json", action="store_true", help="print how it ended as JSON")
    add("id", metavar="ID", help="number or name of a domain")
    add("command", nargs=argparse.REMAINDER, metavar="PROG ARGS", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Outcome:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise CommandError("which program? usage: shoal exec [OPTIONS] ID [--] PROG [ARGS...]")
    variables: dict[str, str | None] = {**assigned(args.env, "you have")}
    with reached_with([args.id]) as (_, [domain]), ExitStack() as stack:
        terminal = _terminal()
        if terminal:
            stack.enter_context(terminal)
            variables.setdefault("TERM", os.environ.get("TERM", "dumb"))
        fds = [terminal.slave if terminal and fd in terminal.slots else fd for fd in (0, 1, 2)]
        _open_to(domain, fds)
        start = functools.partial(
            domain.exec, command, env=variables, cwd=args.cwd, stdin=fds[0], stdout=fds[1], stderr=fds[2], terminal=terminal is not None
        )
        signals = stack.enter_context(Signals())
        running, meanwhile = _started(start, signals)
        stack.enter_context(running)
        relay = Relay(signals, terminal, lambda number, group: running.send_signal(number, to_group=group), hangs_up_group=True)
        for number in meanwhile:
            relay.on_signal(number)
        end = _follow(running, relay)
    if end.reason == "killed":
        complain(f"domain {domain.id} has ended, and the command with it")
    elif end.reason == "lost":
        complain(f"domain {domain.id} is lost, and how the command ended is not known")
    data = {"pid": running.pid, "exit": asdict(end), "exit_code": exit_code(end)}
    return Outcome(data=data if args.json else None, code=exit_code(end), stream="stderr")


def _terminal() -> Terminal | None:
    if not any(map(os.isatty, (0, 1, 2))):
        return None
    from shoal.cli.terminal import Terminal

    return Terminal.needed()


def _open_to(domain: Domain, fds: list[int]) -> None:
    """Let the domain's user open a pipe or the private terminal anew, as /dev/stdout. Nobody else can reach a pipe by any name."""
    with suppress(OSError, IndexError):
        user = os.stat(f"/proc/{domain.status().pids[0]}").st_uid
        if user == os.geteuid():
            return
        for fd in fds:
            if os.isatty(fd):
                os.fchown(fd, user, -1)
            elif os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                os.fchmod(fd, 0o666)


def _started(start: Callable[[], Command], signals: Signals) -> tuple[Command, list[int]]:
    """Start it in a thread of its own, and what we were sent meanwhile: who waits for the manager cannot wait for signals as well.

    Raises:
        ManagerError: it was not started; why. CommandError: somebody insisted on leaving before it was.
    """
    outcome: list[Command | BaseException] = []

    def attempt() -> None:
        try:
            outcome.append(start())
        except BaseException as error:
            outcome.append(error)
        os.close(over)

    told, over = os.pipe()
    thread = threading.Thread(target=attempt, name="shoal-exec", daemon=True)
    thread.start()
    held: list[int] = []
    poller = select.poll()
    poller.register(signals.fileno(), select.POLLIN)
    poller.register(told, select.POLLIN)
    while not outcome:
        if told in dict(poller.poll()):
            thread.join()
        held += signals.take()
        insisting = [number for number in held if number in _GIVE_UP]
        if not outcome and len(insisting) > 1:
            raise CommandError(
                "the manager has not answered yet; what it may start all the same ends with this command", 128 + insisting[0]
            )
    os.close(told)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0], held


def _follow(command: Command, relay: Relay) -> ExitStatus:
    """Serve signals and the terminal until the command has ended, and what it wrote to the terminal is written."""
    signals, terminal = relay.signals, relay.terminal
    if terminal:
        terminal.claim()
    while (end := command.poll()) is None:
        ready = relay.poll(command.fileno())
        for number in signals.take():
            relay.on_signal(number)
        relay.serve(ready)
    if terminal:
        terminal.finish()
        terminal.read_rest()  # whatever the command has left in the background may have it still
        if end.signal is not None:
            terminal.undo_modes()
        while not terminal.is_drained and not _GIVE_UP.intersection(signals.take()):
            terminal.serve(relay.poll(-1))
    return end
