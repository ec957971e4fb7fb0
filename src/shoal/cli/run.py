"""shoal run: start a program with only what it is handed, and end with everything it started.

Compiles to a Sandbox, so that `--explain` prints all there is. There is no second mechanism here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from shoal.cli.options import add_options, listed
from shoal.cli.output import CommandError, Outcome, hidden, report_failure
from shoal.cli.request import Request, read_request
from shoal.launcher import END_S, user_of
from shoal.sandbox.box import PATH
from shoal.sandbox.landlocked import note_own_user
from shoal.sandbox.launch import Boxed, Order
from shoal.units import parse_duration

if TYPE_CHECKING:  # loaded when a program is really started, and the terminal's code only when there is a terminal
    from shoal.cli.session import Over
    from shoal.cli.terminal import Terminal
    from shoal.handles.job import Job
    from shoal.handles.process import Process
    from shoal.plan import Plan
    from shoal.sandbox.limits import Budget

_NOTES = f"""\
The program gets: itself and its shared libraries, a private /tmp (at most 1 GiB), a minimal /dev, its own /proc, descriptors
0, 1, 2, and what the options hand over. Nothing else: no other file, no network, no process, no variable.

SRC[:DEST]      DEST begins at the last ":/" and is absolute; "\\:" is a colon in a path. Without DEST the file is where it is on
                the host. DESTs may lie inside one another; their order does not matter. With /usr come /bin, /lib, /lib64...
                where the host has them as links into it.
PROG            looked up in your PATH and your files, not in the program's world.
environment     PATH={PATH}
                HOME=/tmp LANG=C.UTF-8 and TERM (yours on a terminal, else dumb). --clone-env hands over yours instead, --env adds to
                either. PWD is the working directory.
working dir     --cwd, else your current directory when the program can see it, else /.
--network host  comes with /etc/resolv.conf, hosts, nsswitch.conf and the CA certificates, read-only, where they exist.
                Without it there is only a loopback device.
--profile NAME  what the options add to: see shoal profile list. What an option says wins; what may be repeated adds.
limits          of memory, processes, processors and processor time hold for all that runs, together, and take cgroup v2: see
                shoal doctor. What cannot be enforced is an error; with --limits best-effort each process is held to what it can be.
--user          as root the program runs as a user that nobody else has. What it writes with --rw belongs to you outside.
                Without root it is always yours.
terminal        where 0, 1 or 2 is a terminal the program gets a private one instead; yours is restored whatever happens.
signals         INT TERM HUP QUIT USR1 USR2 sent to shoal reach the program.
the end         comes when the program exits: what it left running is killed, or waited for, or kept, as --linger says. With
                --timeout, when the time is up.
--json          prints the result as the last line of stderr (stdout is the program's); with --explain, the plan on stdout.
--meta FILE     has the result as isolate(1) writes it, also where nothing could be started.

exit codes      the program's; 128+N when signal N ended it; 124 timed out; 125 shoal itself failed; 126 PROG cannot be executed;
                127 PROG not found; 137 and "reason: oom" on stderr when its memory was used up.

examples:
  shoal run -- sh -c 'echo hello'
  shoal run --ro /usr --ro . -- python3 job.py
  shoal run --profile python --ro . --memory 512M --timeout 30s -- python3 job.py
  shoal run --ro /usr --rw ./out:/out --timeout 30s -- make -C /src DESTDIR=/out
  shoal run --ro /usr --network host -- curl https://example.org
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal run [OPTIONS] [--] PROG [ARGS...]"
    parser.epilog = _NOTES
    add = parser.add_argument
    add("--ro", action="append", default=[], metavar="SRC[:DEST]", help="hand over a file or directory to read")
    add("--rw", action="append", default=[], metavar="SRC[:DEST]", help="hand over a file or directory to read and write")
    add("--tmpfs", action="append", default=[], metavar="DEST[:SIZE]", help="an empty directory in memory (1G)")
    add("--env", "-e", action="append", default=[], metavar="K=V", help="set a variable; K alone takes your value")
    add("--clone-env", action="store_true", help="begin with all of your variables")
    add("--fd", action="append", default=[], metavar="N[=M]", help="hand over your descriptor N, as M")
    add("--cwd", metavar="DIR", help="start in DIR")
    add("--name", help="the process name that ps shows")
    add("--profile", metavar="NAME", help="begin with what a profile hands over and limits")
    add("--timeout", metavar="T", help="kill everything after T: 30s, 5m, 1h30m")
    add("--explain", action="store_true", help="print the plan and start nothing")
    add("--json", action="store_true", help="print the result, or the plan, as JSON")
    add("--meta", metavar="FILE", help="write the result to FILE, as isolate does")
    add_options(parser)
    add("command", nargs=argparse.REMAINDER, metavar="PROG ARGS", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Outcome:
    meta = None
    if args.meta is not None and not args.explain:
        from shoal.cli.report import MetaFile

        meta = MetaFile(args.meta)
    try:
        request = read_request(args)
        if args.explain:
            return _explain(request)
        over = _launch(request)
    except (CommandError, OSError) as error:
        if not args.json and meta is None:
            raise
        from shoal.cli.report import never_started

        code = report_failure(error)
        data = never_started(args.command, error, code, meta)
        return Outcome(data=data, code=code, stream="stdout" if args.explain else "stderr")
    ended = over.ended
    if ended.returncode == 0 and ended.stopped is None and not ended.unkilled and over.spent is None and not args.json and meta is None:
        return Outcome()
    from shoal.cli.report import report  # it costs a little, and there is something to tell

    return report(request, over, as_json=args.json, meta=meta)


def _explain(request: Request) -> Outcome:
    with ExitStack() as stack:
        terminal = _terminal(request)
        if terminal:
            stack.enter_context(terminal)
        text, data = explained(request.boxed, _order(request, terminal))
    return Outcome(text=text, data=data)


def explained(boxed: Boxed, order: Order) -> tuple[str, dict[str, Any]]:
    """What a launch could touch, and its limits, without its secrets: for people, and for programs."""
    box = boxed.box
    plan = without_secrets(boxed.plan(order), box.secrets)
    limits = listed(box)
    text = f"{plan}\ntier         {boxed.tier.described}"
    if limits:
        how = "" if box.limits == "require" else " (best effort)"
        text += f"\nlimits       {', '.join(f'{name} {value}' for name, value in limits.items())}{how}"
    return text, plan.to_dict() | {"limits": limits, "tier": boxed.tier.name}


def without_secrets(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan for a listing: without the values of some variables, and without those values in its arguments."""
    if not names:
        return plan
    from dataclasses import replace

    starts = tuple(os.fsencode(name) + b"=" for name in names)
    values = [os.fsdecode(item.partition(b"=")[2]) for item in plan.environ if item.startswith(starts)]
    environ = tuple(item.partition(b"=")[0] + b"=***" if item.startswith(starts) else item for item in plan.environ)
    return replace(plan, environ=environ, argv=tuple(os.fsencode(hidden(os.fsdecode(word), values)) for word in plan.argv))


def _terminal(request: Request) -> Terminal | None:
    """A private terminal when the program would otherwise get the caller's, by 0, 1, 2 or by --fd."""
    if not any(map(os.isatty, (0, 1, 2, *(local for local, _ in request.descriptors)))):
        return None  # and the terminal's code is not even loaded
    from shoal.cli.terminal import Terminal

    return Terminal.needed()


def _descriptors(request: Request, terminal: Terminal | None) -> dict[int, int]:
    """Ours by the program's number."""
    fds = {slot: terminal.slave if terminal and slot in terminal.slots else slot for slot in (0, 1, 2)}
    return fds | {target: terminal.slave if terminal and terminal.is_callers(local) else local for local, target in request.descriptors}


def _order(request: Request, terminal: Terminal | None) -> Order:
    return Order(
        request.program,
        request.args,
        _descriptors(request, terminal),
        request.host_cwd,
        request.name,
        terminal.slave if terminal else None,
        request.grants,
        request.environ,
    )


def _open_to_all(fds: Iterable[int]) -> None:
    """Let whoever was handed a pipe open it anew, as /dev/stdout: another user could not. Nobody else can reach it by any name."""
    for fd in fds:
        with suppress(OSError):  # not open, which the launch says better
            if os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
                os.fchmod(fd, 0o666)


def _launch(request: Request) -> Over:
    """From the start to the end."""
    from shoal.cli.session import Bounds, Over, Session
    from shoal.cli.signals import Signals

    box = request.box
    wall_s = None if box.wall_time is None else parse_duration(box.wall_time)
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        budget = _budget(request, stack)
        terminal = _terminal(request)
        if terminal:
            stack.enter_context(terminal)
        process = stack.enter_context(_start(request, terminal, budget.job if budget else None))
        try:
            ended = Session(process, signals, terminal, Bounds(request.timeout_s, wall_s, budget, box.linger)).follow()
        except BaseException:
            process.end_cell(END_S)
            raise
        enforced = request.boxed.enforced | (budget.enforced if budget else {})
        note_own_user(enforced, process)
        user = None if not enforced["user"] or process._keeper is None else user_of(process._keeper)
        return Over(ended, process.info(), budget.spent() if budget else None, enforced, process.pid, user)


def _budget(request: Request, stack: ExitStack) -> Budget | None:
    """What holds all that runs to its limits, until `stack` is left. None: there are none.

    Raises:
        SpawnError: a limit, or what is required, cannot be enforced.
    """
    box = request.box
    if not listed(box) and not box.require:
        return None
    from shoal.sandbox.limits import Budget

    budget = Budget.of(box)
    stack.callback(budget.close)
    request.boxed.enforced_with(budget.enforced)  # which insists on what is required
    return budget


def _start(request: Request, terminal: Terminal | None, job: Job | None) -> Process:
    """The program."""
    order = _order(request, terminal)
    if request.boxed.enforced["user"]:
        _open_to_all(order.fds.values())
    return request.boxed.launch(order, job)
