"""shoal doctor: what this machine allows, what is missing, and the command that fixes it. Exit code 0 when programs can be started."""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Callable

import shoal
from shoal.cli.output import Outcome, printable
from shoal.cli.table import Screen
from shoal.handles.delegation import outlook
from shoal.handles.hierarchy import DELEGATE, Home, NoHome, availability, find_home, v1_controllers
from shoal.probe import Feature, features
from shoal.sandbox.program import why_not_executable
from shoal.sandbox.tier import tier

_SANDBOX = "sandbox"
_OF_CELLS = ("user namespaces", "mount calls", "empty world")
_CONTROLLERS = ("memory", "pids", "cpu")
_TRIVIAL = ("/usr/bin/true", "/bin/true", "/run/current-system/sw/bin/true")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> Outcome:
    findings = [*features(), *_jobs(), *_trials()]
    if any(finding.name == _SANDBOX and finding.available for finding in findings):
        # Where sandboxes do without, nobody has to have it: what takes a cell says so.
        findings = [finding._replace(essential=False) if finding.name in _OF_CELLS else finding for finding in findings]
    works = all(finding.available for finding in findings if finding.essential)
    data = {"works": works, "features": [finding._asdict() for finding in findings]}
    return Outcome(text=_table(findings, works), data=data, code=0 if works else 1)


def _jobs() -> list[Feature]:
    """Whether a job can be a cgroup, and which limits there are."""
    available, detail, fix = availability()
    jobs = Feature("jobs", available, False, detail, fix)
    home = find_home()
    if isinstance(home, NoHome):
        return [jobs]
    can_get, where_from, way = outlook()
    scope = Feature("limit groups", can_get, False, where_from, way)
    return [jobs, scope, _controllers(home)]


def _controllers(home: Home) -> Feature:
    """Which limits there are in the cgroup of this process. In a scope of its own there may be more."""
    try:
        with open(os.path.join(home.path, "cgroup.controllers"), encoding="ascii", errors="replace") as file:
            controllers = file.read().split()
    except OSError as error:
        return Feature("limits", False, False, f"{error.filename}: {error.strerror}")
    missing = [name for name in _CONTROLLERS if name not in controllers]
    if not missing:
        return Feature("limits", True, False, f"controllers: {' '.join(controllers)}")
    taken = {name: where for name, where in v1_controllers().items() if name in missing}
    where = f"cgroup v1 holds {' '.join(sorted(taken))}" if taken else f"not offered in {home.path}"
    advice = "boot with systemd.unified_cgroup_hierarchy=1" if taken else f"start under: {DELEGATE}"
    return Feature("limits", False, False, f"no controller for {' '.join(missing)}: {where}", advice)


def _trials() -> list[Feature]:
    """The proof: a program started in the caller's world and one in an empty world."""
    program = next((path for path in _TRIVIAL if why_not_executable(path) is None), None)
    if program is None:
        return [Feature("spawn", False, True, f"not tried: there is no {_TRIVIAL[0]}", "install coreutils")]
    namespace, loader = shoal.SpawnFlags.CLONE_NAMESPACE, shoal.SpawnFlags.DEFAULT_LDSVC
    return [
        _trial("spawn", "a program runs in this world", lambda: shoal.spawn(program, ["true"], flags=namespace | loader)),
        _trial("empty world", "a program runs with nothing but its libraries", lambda: shoal.spawn(program, ["true"], flags=loader)),
        _sandbox(program),
    ]


def _sandbox(program: str) -> Feature:
    """The proof for `shoal run`, and what it is made of."""
    try:
        made_of = tier()
        code = shoal.run([program], timeout="30s").returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        return Feature(_SANDBOX, False, True, str(error), "see what is missing above")
    return Feature(_SANDBOX, code == 0, True, made_of.described if code == 0 else f"the trial program returned {code}")


def _trial(name: str, success: str, start: Callable[[], shoal.Process]) -> Feature:
    try:
        with start() as process:
            code = process.wait("30s")
    except (OSError, TimeoutError) as error:
        return Feature(name, False, True, str(error), "see what is missing above")
    return Feature(name, code == 0, True, success if code == 0 else f"the trial program returned {code}")


def _table(findings: list[Feature], works: bool) -> str:
    """Aligned plain text: what, whether, and why; below what is missing, how to get it."""
    colour = Screen.of_stdout().has_colour
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        state = "ok" if finding.available else "MISSING" if finding.essential else "missing" if finding.fix else "no"
        shown = f"{state:<7}"
        if colour:
            shown = f"\x1b[{'32' if finding.available else '31' if finding.essential else '33'}m{shown}\x1b[0m"
        lines.append(f"{finding.name:<{width}}  {shown}  {printable(finding.detail)}".rstrip())
        if not finding.available and finding.fix:
            lines.append(f"{'':<{width}}           fix: {printable(finding.fix)}")
    lines.append("")
    lines.append("shoal can start programs here." if works else "shoal cannot start programs here: something essential is missing.")
    return "\n".join(lines)
