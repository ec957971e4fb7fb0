"""Given: what a client gives a domain at its start, checked and packed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from shoal.actions import Action, AddHandle, CloneFd
from shoal.manager import wire
from shoal.manager.boxes import to_text
from shoal.manager.errors import ManagerError
from shoal.manager.handing import lowest_free
from shoal.manager.stdio import open_number, streams_of
from shoal.manager.wording import as_bytes, shown_path
from shoal.sandbox.box import Sandbox
from shoal.sandbox.errors import RequestError
from shoal.sandbox.program import current_directory, find_program

_NOT_PASSED_ON = frozenset((b"SHOAL_STARTUP", b"LISTEN_FDS", b"LISTEN_FDNAMES", b"LISTEN_PID"))
"""What tells this process of its own descriptors."""


@dataclass(slots=True, eq=False)
class Given:
    """The same for each time that its start is asked for.

    Attributes:
        fds: to be sent; borrowed. targets: their numbers in the program.
        kept: the numbers of what is kept in the log.
        handles: what the program is told of handles among them.
    """

    path: bytes
    argv: list[bytes]
    variables: list[bytes] | None
    cwd: bytes
    box: str | None
    fds: list[int]
    targets: list[int]
    kept: list[int]
    handles: list[wire.Given]

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        argv: Sequence[str],
        envp: Mapping[str, str] | None,
        actions: Sequence[Action],
        sandbox: Sandbox | None,
        cwd: str | os.PathLike[str] | None,
        stdio: tuple[Any, Any, Any],
    ) -> Self:
        """
        Args: as of `Manager.spawn_program()`.
        Raises:
            TypeError, ValueError: what was given cannot be meant.
            ManagerError: there is no such program, or it cannot start there.
        """
        if isinstance(argv, str | bytes):
            raise TypeError('argv must be a sequence of strings, not one string; for example ["prog", "-v"]')
        words = [as_bytes(word, f"argv[{index}]") for index, word in enumerate(argv)]
        if sandbox is not None and not isinstance(sandbox, Sandbox):
            raise TypeError(f"sandbox must be a shoal.Sandbox or None, not {type(sandbox).__name__}")
        variables = None
        if envp is not None:
            if not isinstance(envp, Mapping):
                raise TypeError(f"envp must be a mapping of names to values, not {type(envp).__name__}")
            variables = [_assignment(key, value) for key, value in envp.items()]
        elif sandbox is None:
            variables = [key + b"=" + value for key, value in os.environb.items() if key not in _NOT_PASSED_ON]
        found = _find(os.fspath(path))
        fds, targets, kept = streams_of(stdio, left_out="kept")
        handles = _handed_over(actions, fds, targets, kept)
        directory = current_directory() if cwd is None else _directory(cwd, checked=sandbox is None)
        box = None if sandbox is None else to_text(sandbox, directory)
        return cls(os.fsencode(found), words, variables, os.fsencode(directory), box, fds, targets, kept, handles)

    def request(self, rid: int, key: str, core: int | str, *, name: str | None, flags: int, own: bool) -> wire.SpawnProgram:
        """To be sent with the descriptors."""
        what = (self.path, self.argv, self.variables, self.cwd, self.targets, self.kept)
        if isinstance(name, str):
            name = shown_path(name)
        return wire.SpawnProgram(rid, key, core, *what, name, flags, self.box, self.handles, own)


def _find(path: str) -> str:
    try:
        return find_program(path, os.environ.get("PATH", "/usr/bin:/bin"), current_directory()).path
    except RequestError as error:
        raise ManagerError("SPAWN_ERR_LOAD", error.message) from None


def _directory(cwd: str | os.PathLike[str], *, checked: bool) -> str:
    """Where it is to start. What was asked for has to be there; where the caller only happens to be, the program need not."""
    path = os.path.abspath(os.fsdecode(as_bytes(cwd, "cwd")))
    if checked:
        try:
            os.stat(os.path.join(path, "."))  # which takes what entering it takes
        except OSError as error:
            what = f"{shown_path(path)}: the working directory cannot be entered: {error.strerror}"
            raise ManagerError("SPAWN_ERR_SETUP_ENV", what) from None
    return path


def _assignment(name: object, value: object) -> bytes:
    data = as_bytes(name, "a variable's name") + b"=" + as_bytes(value, f"the value of {name}")
    if b"=" in as_bytes(name, "a variable's name"):
        raise ValueError(f"the variable's name {name!r} holds =")
    return data


def _handed_over(actions: Sequence[Action], fds: list[int], targets: list[int], kept: list[int]) -> list[wire.Given]:
    """Adds the descriptors of actions to those to be sent. What the child is told of handles among them."""
    for action in actions:
        if isinstance(action, CloneFd):
            if action.target_fd in kept:
                kept.remove(action.target_fd)
            if action.target_fd in targets:
                raise ValueError(f"descriptor {action.target_fd} is given twice: inherited, and as a standard stream")
            targets.append(action.target_fd)
            fds.append(open_number(action.local_fd, f"descriptor {action.target_fd} of inherit"))
    given = []
    for action in actions:
        if isinstance(action, AddHandle):
            target = lowest_free((*targets, *kept))
            targets.append(target)
            fds.append(action.handle.fileno())
            given.append(wire.Given(action.id, action.handle.kind, int(action.handle.rights), action.name, target))
    return given
