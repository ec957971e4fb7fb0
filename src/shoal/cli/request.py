"""Request: one `shoal run`, checked and worked out. Nothing is open yet."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from shoal.cli.options import assigned, sandbox_of
from shoal.cli.output import CommandError, never_show
from shoal.sandbox.box import ENVIRONMENT, PATH, Sandbox
from shoal.sandbox.grants import Grant, View, parse_bind, parse_tmpfs, working_directory
from shoal.sandbox.launch import Boxed
from shoal.sandbox.program import Program, current_directory, find_program
from shoal.sandbox.tier import tier

_DEVICES = ("pts",)
"""What a program at a terminal may want besides the usual devices: terminals of its own."""
_NOT_CLONED = ("SHOAL_STARTUP", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "PWD", "OLDPWD")


class Request(NamedTuple):
    """What the options mean.

    Attributes:
        grants, environ: all that the program sees: the profile's, and what was asked for besides.
        descriptors: the caller's number and the program's.
    """

    program: Program
    args: Sequence[str]
    boxed: Boxed
    grants: tuple[Grant, ...]
    environ: Mapping[str, str]
    cwd: str
    host_cwd: str
    descriptors: Sequence[tuple[int, int]]
    name: str | None
    timeout_s: float | None

    @property
    def box(self) -> Sandbox:
        """The sandbox it runs in."""
        return self.boxed.box


def read_request(args: argparse.Namespace) -> Request:
    """What the options mean.

    Raises:
        CommandError: one of them cannot be meant.
    """
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise CommandError("which program? usage: shoal run [OPTIONS] [--] PROG [ARGS...]")
    host_cwd = current_directory()
    given = assigned(args.env)
    never_show(_values(args.box_secrets, given))  # before anything can go wrong
    program = find_program(command[0], os.environ.get("PATH", PATH), host_cwd)
    box = sandbox_of(args, program.executes)
    never_show(_values(box.secrets, {**box.env, **given}))
    environ = make_environ(given, os.environ if args.clone_env else None, box.env)
    _check_secrets(args, {*environ, *given})
    asked = [grant for text in args.ro for grant in parse_bind(text, writable=False, cwd=host_cwd)]
    asked += [grant for text in args.rw for grant in parse_bind(text, writable=True, cwd=host_cwd)]
    asked += [parse_tmpfs(text) for text in args.tmpfs]
    grants = Boxed(box).grants(program, host_cwd, asked)
    cwd = working_directory(args.cwd or environ.get("PWD") or box.cwd, View(grants), host_cwd)
    environ["PWD"] = cwd
    devices = _DEVICES if tier().is_cell else ()
    boxed = Boxed(box.replace(cwd=cwd, devices=tuple(dict.fromkeys((*box.devices, *devices)))))
    try:
        boxed.enforced  # noqa: B018 - which tells, now, of a limit that this process could not keep itself
    except ValueError as error:
        raise CommandError(str(error)) from None
    return Request(
        program=program,
        args=command[1:],
        boxed=boxed,
        grants=grants,
        environ=environ,
        cwd=cwd,
        host_cwd=host_cwd,
        descriptors=_descriptors(args.fd),
        name=args.name,
        timeout_s=_timeout(args.timeout),
    )


def make_environ(given: Mapping[str, str], cloned: Mapping[str, str] | None, boxed: Mapping[str, str]) -> dict[str, str]:
    """The program's variables, except for PWD unless it is given here.

    Args:
        cloned: what to begin with instead of the fixed values.
        boxed: the profile's.
    """
    if cloned is None:
        term = os.environ.get("TERM", "dumb") if any(map(os.isatty, (0, 1, 2))) else "dumb"
        environ = {**ENVIRONMENT, "TERM": term}
    else:
        environ = {key: value for key, value in cloned.items() if key not in _NOT_CLONED}
    return {**environ, **boxed, **given}


def _values(names: Iterable[str], given: Mapping[str, str]) -> list[str]:
    """What variables of these names hold, for the program or for us."""
    return [value for name in names for value in (given.get(name), os.environ.get(name)) if value]


def _check_secrets(args: argparse.Namespace, given: Collection[str]) -> None:
    """A misspelt --secret would be a secret that is shown."""
    for name in args.box_secrets:
        if name in given or name in os.environ or args.clone_env:
            continue
        from difflib import get_close_matches

        close = get_close_matches(name, given, n=1)
        raise CommandError(
            f"--secret {name}: the program gets no variable of that name" + (f"; did you mean {close[0]!r}?" if close else "")
        )


def parse_fd(text: str) -> tuple[int, int]:
    """The caller's and the program's number in `N[=M]`."""
    local, equals, target = text.partition("=")
    if not local.isdecimal() or (equals and not target.isdecimal()):
        raise CommandError(f"--fd {text}: write N, or N=M to hand over your descriptor N as M")
    return int(local), int(target if equals else local)


def _descriptors(words: Sequence[str]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for text in words:
        local, target = parse_fd(text)
        if any(target == other for _, other in found):
            raise CommandError(f"--fd {text}: the program's descriptor {target} is given twice")
        found.append((local, target))
    return found


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
