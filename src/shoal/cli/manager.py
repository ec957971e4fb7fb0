"""shoal manager: start the process manager, stop it, ask how it is; print a systemd unit for it, and be it.

Nobody has to: whatever needs the manager starts it, and domains live on without it. Exit code 3 when `status` finds none.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import socket
import struct
import sys
import time
from typing import Final

from shoal.cli.contact import has_history, layout, reached, refusals
from shoal.cli.output import CommandError, Outcome, printable
from shoal.cli.table import Screen
from shoal.sandbox.errors import SHOAL_FAILED

NOT_RUNNING: Final = 3
"""Exit code of `status`, as systemctl(1) has it."""
_STOP_S: Final = 30.0
_LONGEST_CORE: Final = 4
_CREDENTIALS: Final = struct.Struct("=iII")
_NOT_STARTED: Final = re.compile(r"""["'\\\x00-\x1f\x7f]""")
"""What no path of a program in a unit may have: string_is_safe() of systemd, which looks after quoting is undone."""
_ESCAPED: Final = re.compile(r"[\x00-\x1f\x7f\udc80-\udcff]")
"""What a unit has as bytes in hexadecimal: what would end a line, or is not UTF-8."""
_NOTES = """\
shoal manager start     start it where it does not run; whatever needs it does that by itself
shoal manager stop      end it, and return when it has ended; the domains run on, and the next manager finds them again
shoal manager status    whether it runs, where it keeps what, and how many domains there are
shoal manager unit      print a systemd user unit, for a manager that is there from login on
shoal manager run       be the manager, until SIGTERM; for the unit
shoal manager spawnd    be the spawn daemon of the cores in --cores, until SIGTERM: what is started there has its limits and its cgroup,
                        and runs on when it ends

Its state is in $SHOAL_STATE_DIR, else in $XDG_STATE_HOME/shoal (~/.local/state/shoal). Another directory is another manager.

exit codes      0; 3 when `status` finds none; 125 when it cannot be started, stopped or reached.
"""
_UNIT = """\
# A process manager of the user's own. To use it:
#
#   mkdir -p ~/.config/systemd/user
#   shoal manager unit > ~/.config/systemd/user/shoal.service
#   shoal manager stop
#   systemctl --user daemon-reload
#   systemctl --user enable --now shoal.service
#   loginctl enable-linger          # so that domains outlive the last login

[Unit]
Description=Process manager of shoal

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{environment}# Domains are no part of the manager's life: stopping it, or a program that runs out of memory, ends nothing else.
KillMode=process
OOMPolicy=continue
Restart=on-failure
TasksMax=infinity
Delegate=yes

[Install]
WantedBy=default.target
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal manager start | stop | status | unit | run | spawnd [--cores LIST] [--address PATH] [--json]"
    parser.epilog = _NOTES
    parser.add_argument("action", choices=tuple(_ACTIONS), metavar="start|stop|status|unit|run|spawnd", help=argparse.SUPPRESS)
    cores = "of start, run: those the manager serves itself, 0,2-3 or none, from now on; at first all. Of spawnd: its own"
    parser.add_argument("--cores", metavar="LIST", help=cores)
    parser.add_argument("--address", metavar="PATH", help="of spawnd: where it listens; otherwise beside the manager's socket")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> Outcome:
    for given, actions in ((args.cores, ("start", "run", "spawnd")), (args.address, ("spawnd",))):
        if given is not None and args.action not in actions:
            raise CommandError(f"shoal manager {args.action} takes no {'--cores' if given is args.cores else '--address'}")
    with refusals():
        return _ACTIONS[args.action](args)


def cores_of(text: str) -> list[int]:
    """The cores that a list means, such as "0,2-3"; "none": none.

    Raises:
        CommandError: it is no list of cores.
    """
    cores: set[int] = set()
    for part in [] if text == "none" else text.split(","):
        first, _, last = part.partition("-")
        last = last if "-" in part else first
        if not all(word.isdecimal() and len(word) <= _LONGEST_CORE for word in (first, last)) or int(last) < int(first):
            raise CommandError(f"--cores {text}: write numbers and ranges of them, such as 0,2-3, or none")
        cores.update(range(int(first), int(last) + 1))
    return sorted(cores)


def _start(args: argparse.Namespace) -> Outcome:
    cores = None if args.cores is None else cores_of(args.cores)
    pid = _pid()
    if pid is not None and cores is not None:
        raise CommandError(f"the manager runs already, with pid {pid}; stop it first: the cores it serves are said when it is started")
    if pid is not None:
        return Outcome(text=f"The manager runs already, with pid {pid}.", data={"running": True, "pid": pid, "started": False})
    if cores is not None:
        from shoal.manager.daemon import START_S, start

        start(layout(), time.monotonic() + START_S, cores)
    with reached():
        pid = _pid()
    return Outcome(text=f"The manager runs, with pid {pid}.", data={"running": True, "pid": pid, "started": True})


def _stop(args: argparse.Namespace) -> Outcome:
    pid = _pid()
    if pid is None:
        return Outcome(text="No manager runs.", data={"running": False, "stopped": False})
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        pidfd = -1  # it is in another pid namespace: its answer has to do
    try:
        with reached(starts=False) as manager:
            running = sum(status.exit is None for status in manager.statuses())
            manager.stop()
        if pidfd >= 0 and not select.select([pidfd], [], [], _STOP_S)[0]:
            raise CommandError(f"the manager, with pid {pid}, was told to end {_STOP_S:g} s ago and has not")
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    left = {0: "", 1: " One domain runs on."}.get(running, f" {running} domains run on.")
    return Outcome(text=f"The manager has ended.{left}", data={"running": False, "stopped": True, "domains": running})


def _status(args: argparse.Namespace) -> Outcome:
    where = layout()
    pid = _pid()
    rows = [("manager", "does not run" if pid is None else f"runs with pid {pid}")]
    data: dict[str, object] = {"running": pid is not None, "pid": pid}
    if pid is not None:
        with reached(starts=False) as manager:
            running = sum(status.exit is None for status in manager.statuses())
            cores = manager.cores()
        rows += [("domains", str(running)), ("cores", " ".join(map(str, cores)))]
        data |= {"domains": running, "cores": cores}
    elif has_history():
        rows.append(("domains", "what ran goes on; `shoal ps` starts a manager that finds it"))
    rows += [("state", where.state), ("socket", where.socket), ("log", where.own_log)]
    data |= {"state": where.state, "socket": where.socket, "log": where.own_log}
    code = 0 if pid is not None else NOT_RUNNING
    if Screen.of_stdout().width is None:
        return Outcome("\n".join(f"{name}\t{printable(value)}" for name, value in rows), data, code)
    return Outcome("\n".join(f"{name:<7}  {printable(value)}" for name, value in rows), data, code)


def _unit(args: argparse.Namespace) -> Outcome:
    program, *words = _own_command()
    if _NOT_STARTED.search(program):
        what = f"{program}: systemd starts no program with a quote, a backslash or a control character in its path"
        raise CommandError(f"{what}; install shoal in another place, or call it by a link without them")
    # The path is taken as it is, but variables are replaced in the same word as argv[0], unless a colon comes first.
    command = " ".join(map(_quoted, [f":{program}" if "$" in program else program, *words, "manager", "run"]))
    state = os.environ.get("SHOAL_STATE_DIR")
    setting = f"SHOAL_STATE_DIR={os.path.abspath(state)}" if state else ""
    try:
        setting.encode()
    except UnicodeEncodeError:
        raise CommandError(f"{setting}: systemd takes no variable that is not UTF-8; name another directory, or a link to it") from None
    return Outcome(text=_UNIT.format(command=command, environment=f"Environment={_quoted(setting)}\n" if setting else ""))


def _run(args: argparse.Namespace) -> Outcome:
    import asyncio

    from shoal.manager import daemon

    cores = None if args.cores is None else cores_of(args.cores)
    return Outcome(code=SHOAL_FAILED if asyncio.run(daemon.run(layout(), cores=cores)) else 0)


def _spawnd(args: argparse.Namespace) -> Outcome:
    import asyncio

    from shoal.manager import spawnd

    cores = cores_of(args.cores or "none")
    if not cores:
        raise CommandError("which cores? usage: shoal manager spawnd --cores LIST, such as 1 or 2-3")
    return Outcome(code=SHOAL_FAILED if asyncio.run(spawnd.run(layout(), cores, args.address)) else 0)


_ACTIONS: Final = {"start": _start, "stop": _stop, "status": _status, "unit": _unit, "run": _run, "spawnd": _spawnd}


def _pid() -> int | None:
    """Which process listens where the manager does; None where none does."""
    from shoal.manager import ManagerError
    from shoal.manager.daemon import dial

    try:
        with dial(layout(), None, starts=False) as sock:
            pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            return int(pid)
    except ManagerError as error:
        if error.code != "LIB_ERR_NAMESERVICE_NOT_BOUND" or error.__cause__ is not None:
            raise
        return None  # and nothing in the way


def _own_command() -> list[str]:
    """How this command is started, by absolute paths."""
    name = sys.argv[0]
    found = shutil.which(name) if os.path.basename(name) == "shoal" else None
    return [os.path.abspath(found)] if found else [sys.executable, "-m", "shoal"]


def _quoted(word: str) -> str:
    """A word of a unit's command line or environment: systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers"."""
    quoted = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    quoted = _ESCAPED.sub(lambda found: f"\\x{os.fsencode(found[0])[0]:02x}", quoted)
    return f'"{quoted}"' if any(c in quoted for c in " '\"\\;") else quoted
