"""shoal run: start a program with only what it is handed, and end with everything it started.

Compiles to flags and actions of the public API, so that `--explain` prints all there is. There is no second mechanism here.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import shoal
from shoal.cli.output import TIMED_OUT, CommandError, Outcome, complain, hint, report_failure
from shoal.handles.directory import DEVICES
from shoal.sandbox.grants import Grant, Kind, View, lay_out, parse_bind, parse_tmpfs, working_directory
from shoal.sandbox.program import Program, find_program

if TYPE_CHECKING:  # loaded when a program is really started, and the terminal's code only when there is a terminal
    from shoal.cli.session import Ended
    from shoal.cli.terminal import Terminal

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

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
terminal        where 0, 1 or 2 is a terminal the program gets a private one instead; yours is restored whatever happens.
signals         INT TERM HUP QUIT USR1 USR2 sent to shoal reach the program.
the end         comes when the program exits: what it left running is killed. With --timeout, when the time is up.
--json          prints the result as the last line of stderr (stdout is the program's); with --explain, the plan on stdout.

exit codes      the program's; 128+N when signal N ended it; 124 timed out; 125 shoal itself failed; 126 PROG cannot be executed;
                127 PROG not found.

examples:
  shoal run -- sh -c 'echo hello'
  shoal run --ro /usr --ro . -- python3 job.py
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
    add("--network", choices=("none", "host"), default="none", help="hand over the host's network (none)")
    add("--timeout", metavar="T", help="kill everything after T: 30s, 5m, 1h30m")
    add("--explain", action="store_true", help="print the plan and start nothing")
    add("--json", action="store_true", help="print the result, or the plan, as JSON")
    add("command", nargs=argparse.REMAINDER, metavar="PROG ARGS", help=argparse.SUPPRESS)


class Request(NamedTuple):
    """One `shoal run`, checked and worked out; nothing is open yet."""

    program: Program
    args: Sequence[str]
    grants: tuple[Grant, ...]
    view: View
    environ: Mapping[str, str]
    cwd: str
    host_cwd: str
    descriptors: Sequence[tuple[int, int]]
    name: str | None
    network: bool
    timeout_s: float | None


def run(args: argparse.Namespace) -> Outcome:
    try:
        request = read_request(args)
        return _explain(request) if args.explain else _launch(request)
    except (CommandError, OSError) as error:
        if not args.json:
            raise
        code = report_failure(error)
        return Outcome(data=_failure_data(error, code), code=code, stream="stdout" if args.explain else "stderr")


# --- the request ------------------------------------------------------------------------------------


def read_request(args: argparse.Namespace) -> Request:
    """What the options mean.

    Raises:
        CommandError: one of them cannot be meant.
    """
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise CommandError("which program? usage: shoal run [OPTIONS] [--] PROG [ARGS...]")
    try:
        host_cwd = os.getcwd()
    except FileNotFoundError:
        host_cwd = "/"
    program = find_program(command[0], os.environ.get("PATH", PATH), host_cwd)
    asked = [grant for text in args.ro for grant in parse_bind(text, writable=False, cwd=host_cwd)]
    asked += [grant for text in args.rw for grant in parse_bind(text, writable=True, cwd=host_cwd)]
    asked += [parse_tmpfs(text) for text in args.tmpfs]
    network = args.network == "host"
    grants = lay_out(asked, program=program.path, network=network)
    view = View(grants)
    environ = make_environ(args.env, os.environ if args.clone_env else None)
    cwd = working_directory(args.cwd or environ.get("PWD"), view, host_cwd)
    environ["PWD"] = cwd
    return Request(
        program=program,
        args=command[1:],
        grants=grants,
        view=view,
        environ=environ,
        cwd=cwd,
        host_cwd=host_cwd,
        descriptors=[parse_fd(text) for text in args.fd],
        name=args.name,
        network=network,
        timeout_s=_timeout(args.timeout),
    )


def make_environ(assignments: Sequence[str], cloned: Mapping[str, str] | None) -> dict[str, str]:
    """The program's variables, except for PWD unless it is assigned here."""
    if cloned is None:
        term = os.environ.get("TERM", "dumb") if any(map(os.isatty, (0, 1, 2))) else "dumb"
        environ = {"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "TERM": term}
    else:
        ours = ("SHOAL_STARTUP", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "PWD", "OLDPWD")
        environ = {key: value for key, value in cloned.items() if key not in ours}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not key:
            raise CommandError(f"--env {text}: write NAME=VALUE, or NAME for your own value")
        if equals:
            environ[key] = value
        elif key in os.environ:
            environ[key] = os.environ[key]
    return environ


def parse_fd(text: str) -> tuple[int, int]:
    """The caller's and the program's number in `N[=M]`."""
    local, equals, target = text.partition("=")
    if not local.isdecimal() or (equals and not target.isdecimal()):
        raise CommandError(f"--fd {text}: write N, or N=M to hand over your descriptor N as M")
    return int(local), int(target if equals else local)


def _timeout(text: str | None) -> float | None:
    if text is None:
        return None
    from shoal.units import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise CommandError(f"--timeout: {error}") from None
    if seconds == 0:
        raise CommandError("--timeout 0: a program needs some time; leave the option out for no limit")
    return seconds


# --- flags and actions ------------------------------------------------------------------------------


def make_actions(request: Request, terminal: Terminal | None, stack: ExitStack) -> list[shoal.Action]:
    """The actions of one spawn. What they hold is closed by `stack`, unless the spawn has consumed it by then."""
    actions: list[shoal.Action] = []
    for grant in request.grants:
        if grant.kind is Kind.DEVICES and request.view.host_path(os.path.dirname(grant.dest)) is not None:
            # Device nodes are placed one by one: not in the host's own /dev, which `--ro /` has brought along.
            actions.append(shoal.AddNsEntry(grant.dest, stack.enter_context(shoal.Directory.tmpfs("64K")), nested=True))
        actions.append(shoal.AddNsEntry(grant.dest, stack.enter_context(_handle(grant)), nested=True))
    if request.network:
        actions.append(shoal.AddNsEntry("/svc/net", stack.enter_context(shoal.NetNs.host())))
    given = {target for _, target in request.descriptors}
    for local, target in request.descriptors:
        actions.append(shoal.CloneFd(terminal.slave if terminal and terminal.is_callers(local) else local, target))
    if terminal:
        actions += [shoal.CloneFd(terminal.slave, slot) for slot in terminal.slots if slot not in given]
    if request.name is not None:
        actions.append(shoal.SetName(request.name))
    return actions


def _handle(grant: Grant) -> shoal.Handle:
    if grant.kind is Kind.TMPFS:
        return shoal.Directory.tmpfs(grant.size, mode=0o1777 if grant.dest == "/tmp" else 0o755)
    if grant.kind is Kind.PROC:
        return shoal.Directory.proc()
    if grant.kind is Kind.DEVICES:
        return shoal.Directory.devices((*DEVICES, "pts"))
    if os.path.isdir(grant.source):
        return shoal.Directory.open(grant.source, writable=grant.writable)
    return shoal.Directory.file(grant.source, writable=grant.writable)


_FLAGS = shoal.SpawnFlags.DEFAULT_LDSVC | shoal.SpawnFlags.CLONE_STDIO


def _argv(request: Request) -> list[str]:
    return [request.program.argv0, *request.args]


def _explain(request: Request) -> Outcome:
    with ExitStack() as stack:
        terminal = _terminal(request)
        if terminal:
            stack.enter_context(terminal)
        plan = shoal.explain(
            request.program.path,
            _argv(request),
            flags=_FLAGS,
            environ=request.environ,
            actions=make_actions(request, terminal, stack),
            controlling_terminal=terminal.slave if terminal else None,
            die_with_caller=True,
        )
        return Outcome(text=str(plan), data=plan.to_dict())


def _terminal(request: Request) -> Terminal | None:
    """A private terminal when the program would otherwise get the caller's, by 0, 1, 2 or by --fd."""
    if not any(map(os.isatty, (0, 1, 2, *(local for local, _ in request.descriptors)))):
        return None  # and the terminal's code is not even loaded
    from shoal.cli.terminal import Terminal

    return Terminal.needed()


# --- the run ----------------------------------------------------------------------------------------


def _launch(request: Request) -> Outcome:
    from shoal.cli.session import Session
    from shoal.cli.signals import Signals

    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        terminal = _terminal(request)
        if terminal:
            stack.enter_context(terminal)
        process = stack.enter_context(
            shoal.spawn(
                request.program.path,
                _argv(request),
                flags=_FLAGS,
                environ=request.environ,
                actions=make_actions(request, terminal, stack),
                controlling_terminal=terminal.slave if terminal else None,
                die_with_caller=True,
            )
        )
        ended = Session(process, signals, terminal, request.timeout_s).follow()
        info = process.info()
    return _report(request, ended, info)


def _report(request: Request, ended: Ended, info: shoal.ProcessInfo) -> Outcome:
    """Say what there is to say about the end; the terminal is the caller's again."""
    advice: list[str] = []
    if ended.timed_out:
        code = TIMED_OUT
        told = f"{request.program.name}: timed out after {request.timeout_s:g} s; it was killed with everything it started"
        complain(told, patience_s=2.0)
    elif ended.returncode < 0:
        code = 128 - ended.returncode
    else:
        code = ended.returncode
        if code:
            advice = _advice(request, code)
    for line in advice:
        hint(line)
    usage = info.usage
    data = {
        "exit_code": code,
        "returncode": ended.returncode,
        "reason": "wall_time" if ended.timed_out else "exited" if ended.returncode >= 0 else "signaled",
        "signal": signal_name(-ended.returncode) if ended.returncode < 0 else None,
        "wall_s": round(ended.wall_s, 6),
        "usage": {"user_s": usage.user_s, "system_s": usage.system_s, "max_memory_bytes": usage.max_memory_bytes} if usage else None,
        "hints": advice,
        "error": None,
    }
    return Outcome(data=data, code=code, stream="stderr")


def _advice(request: Request, code: int) -> list[str]:
    from shoal.cli.hints import Run, hints_for

    ended = Run(
        program=request.program,
        args=request.args,
        view=request.view,
        cwd=request.cwd,
        host_cwd=request.host_cwd,
        environ=request.environ,
        search=os.environ.get("PATH", PATH),
        network=request.network,
        exit_code=code,
    )
    return [str(hint) for hint in hints_for(ended)]


def signal_name(number: int) -> str:
    """SIGTERM for 15; real-time signals have no name of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _failure_data(error: CommandError | OSError, code: int) -> dict[str, object]:
    known = error if isinstance(error, shoal.SpawnError) else None
    return {
        "exit_code": code,
        "returncode": None,
        "reason": "setup_failed",
        "signal": None,
        "wall_s": None,
        "usage": None,
        "hints": list(getattr(error, "hints", ())),
        "error": {
            "message": error.message if isinstance(error, CommandError) else str(error),
            "status": known.status.name if known else None,
            "stage": known.stage.value if known else None,
        },
    }
