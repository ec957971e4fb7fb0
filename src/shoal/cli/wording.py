"""Wording: domains as people read of them: how they are, since when, by what command; and the exit code that an end has."""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from shoal.cli.output import TIMED_OUT, printable
from shoal.sandbox.errors import SHOAL_FAILED

if TYPE_CHECKING:
    from shoal.manager import DomainStatus, ExitStatus

NOTHING = "-"
_STATES = {"nil": "starting", "running": "running", "stop_pending": "stopping", "stopped": "ended", "cleaned": "ended"}
_KILLED = 137


def state_of(status: DomainStatus) -> str:
    """How a domain is, in one or two words."""
    return _STATES[status.state] if status.exit is None else end_of(status.exit)


def end_of(end: ExitStatus) -> str:
    """How a domain ended: "exited 3", "SIGTERM", or the reason, such as "killed"."""
    if end.reason == "exited":
        return f"exited {end.code}"
    if end.reason == "signaled" and end.signal is not None:
        from shoal.cli.report import signal_name

        return signal_name(end.signal)
    return end.reason


def exit_code(end: ExitStatus) -> int:
    """The exit code of a command that stands for a domain, as `shoal run` has it: 128+N for signal N, 137 for a kill.

    124 for one whose time was up, 125 for one of which nobody knows how it ended.
    """
    if end.reason in ("killed", "oom"):
        return _KILLED
    if end.reason in ("wall_time", "cpu_time"):
        return TIMED_OUT
    return SHOAL_FAILED if end.reason == "lost" else end.code


def colour_of(status: DomainStatus) -> str:
    """The colour of its state, for a terminal."""
    if status.exit is None:
        return "32" if status.state == "running" else "33"
    return "2" if status.exit.reason == "exited" and status.exit.code == 0 else "31"


def command_of(argv: Sequence[str]) -> str:
    """Arguments as they could be typed, on one line."""
    return printable(shlex.join(argv))


def listed(items: Sequence[object]) -> str:
    """Numbers with commas between them."""
    return ",".join(map(str, items)) or NOTHING


def ago(at_s: float | None) -> str:
    """How long ago something was, in the largest unit: "5s", "12m", "3h", "41d"."""
    return NOTHING if not at_s else span(max(0.0, time.time() - at_s))


def span(seconds: float) -> str:
    """A time in its largest unit, cut."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def moment(at_s: float | None, timespec: str = "seconds") -> str:
    """A point in time, of this time zone and with it."""
    if not at_s:
        return NOTHING
    return _moment(int(at_s) if timespec == "seconds" else at_s, timespec)


@functools.lru_cache  # many domains begin in the same second
def _moment(at_s: float, timespec: str) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at_s).astimezone().isoformat(timespec=timespec)


def size_of(size_bytes: int) -> str:
    """A number of bytes, short."""
    value = float(size_bytes)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def as_data(status: DomainStatus) -> dict[str, Any]:
    """A status for --json: the fields of DomainStatus, and the exit code that `shoal wait` has for it."""
    data = {field.name: getattr(status, field.name) for field in fields(status)}  # asdict() takes ten times as long
    data |= {"argv": list(status.argv), "cores": list(status.cores), "pids": list(status.pids)}
    data["exit"] = None if status.exit is None else asdict(status.exit)
    data["exit_code"] = None if status.exit is None else exit_code(status.exit)
    return data
