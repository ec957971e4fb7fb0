"""Executing: commands, which run in a domain beside its program, under all that holds for that, and whose end is not the domain's.

The manager starts one and has no more to do with it: its client and the domain's init have a line of their own. So nothing here is
remembered, and the next manager need not know of it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Final

from shoal.lowering import ENTERING
from shoal.manager import flat, orders, wire
from shoal.manager.callers import Caller
from shoal.manager.dispatchers import environment_of
from shoal.manager.domains import Domain
from shoal.manager.errors import ManagerError
from shoal.manager.kept import Kept
from shoal.manager.launching import JOIN_S, not_in_cell
from shoal.manager.layout import out_of
from shoal.manager.ledger import COMMANDS
from shoal.manager.link import Outcome, send_plan
from shoal.manager.rights import DomainRights
from shoal.manager.spawnds import number_of
from shoal.manager.table import Table
from shoal.manager.wording import shown_bytes
from shoal.packing import Packed, count_strings
from shoal.recipe import make_command, make_joining
from shoal.sandbox.launch import Cooked
from shoal.status import SpawnError, Stage

PLACES_MOST: Final = 256
"""Directories of a PATH that are looked into: the domain, which nobody need trust, may have changed it."""
_PATH_SHOWN: Final = 1000
_NO_DIRECTORY: Final = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
"""What the way into a cell ends with where it is the directory that cannot be entered: all else there has been entered before."""
_DEFAULT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STANDARD: Final[tuple[list[int], ...]] = ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2], [])


class Executing:
    """For the loop's thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def execute(self, caller: Caller, request: wire.Exec, fds: list[int]) -> None:
        """Carry out a request. Takes over the descriptors."""
        try:
            with self._table.answering(caller, request, "the command could not be started", "SPAWN_ERR_RUN"):
                domain = self._table.allowed(caller, request.domain, DomainRights.SPAN)
                pid = await self._begun(domain, request, fds)
                self._table.audit(caller, request, None, domain.id)
                caller.answer(request.rid, pid)
        finally:
            for fd in fds:
                os.close(fd)

    async def _begun(self, domain: Domain, request: wire.Exec, fds: Sequence[int]) -> int:
        _check(request, fds)
        kept = await self._table.reached(domain)
        if not self._table.launcher.ledger.read(domain.slot).can & COMMANDS:
            what = f"domain {domain.id} was started by an older version of shoal, whose init knows no commands; start it anew"
            raise ManagerError("SPAWN_ERR_SPAN", what)
        core, first = next(iter(domain.pids.items()))
        environ = _environment(first, request)
        line, given = fds[0], fds[1:]
        terminal = next(index for index, fd in enumerate(given) if os.isatty(fd)) if request.terminal else None
        try:
            if domain.sandbox is None:
                plan = flat.command(
                    request.targets,
                    _places(request.argv[0], environ),
                    os.fsencode(domain.cwd) if request.cwd is None else os.path.join(os.fsencode(domain.cwd), request.cwd),
                    None if number_of(core) < 0 else number_of(core),
                    terminal=terminal,
                )
                return await self._start(kept, plan, request, environ, line, given)
            cooked = self._cooked(domain, core, request)
            plan = make_command(
                cooked.plan,
                request.targets,
                _places(request.argv[0], environ),
                terminal=terminal,
                own=_is_own(request.argv[0], domain, cooked),
            )
            return await self._start(kept, plan, request, environ, line, given, cooked)
        except SpawnError as error:
            raise _refusal(error, domain, request, environ) from error

    def _cooked(self, domain: Domain, core: int | str, request: wire.Exec) -> Cooked:
        """How the domain's cell was made."""
        like = wire.SpawnProgram(
            0, "", core, os.fsencode(domain.path), domain.argv, [], os.fsencode(domain.cwd), request.targets, [], None, 0, domain.sandbox
        )
        return self._table.launcher.cooked(like, number_of(core))

    async def _start(
        self,
        kept: Kept,
        plan: Packed,
        request: wire.Exec,
        environ: Sequence[bytes],
        line: int,
        given: Sequence[int],
        cooked: Cooked | None = None,
    ) -> int:
        """Its pid. On failure the line tells that it has not begun."""
        near: socket.socket | None = None
        if cooked is None:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with far:
                started = kept.link.ask(orders.COMMAND, fds=(line, far.fileno()))
        else:
            file = os.memfd_create("shoal-recipe", os.MFD_CLOEXEC)
            try:
                cwd = None if request.cwd is None else os.path.join(cooked.plan.cwd or b"/", request.cwd)
                os.write(file, make_joining(cooked.plan, cwd))
                started = kept.link.ask(orders.COMMAND, 1, fds=(line, file))
            finally:
                os.close(file)
        outcome = None
        try:
            told = await started
            if told.kind != orders.STARTED:
                raise _not_started(kept, told.error, request, in_cell=cooked is not None)
            if near is None:
                if not told.fds:
                    raise not_in_cell(kept.seat, errno.EMFILE, joins=True)
                near = socket.socket(fileno=told.fds[0])
            outcome = Outcome(kept.link.loop, near)
            send_plan(near, plan.filled(()), count_strings(request.argv), count_strings(environ), given)
            async with asyncio.timeout(None if cooked is None else JOIN_S):  # what lives in the cell may stop who enters
                await outcome.executed(plan.labels, shown_bytes(request.argv[0]))
            return told.pid
        except TimeoutError:
            raise not_in_cell(kept.seat, errno.ETIMEDOUT, joins=True) from None
        finally:
            if outcome is not None:
                outcome.close()
            elif near is not None:
                near.close()


def _check(request: wire.Exec, fds: Sequence[int]) -> None:
    """
    Raises:
        ManagerError: the request cannot be meant.
    """
    if not request.argv or not request.argv[0]:
        raise ManagerError("SPAWN_ERR_GET_CMDLINE_ARGS", "which program? argv is empty, or its first word is")
    if request.targets not in _STANDARD or len(fds) != 1 + len(request.targets):
        what = f"{len(fds)} descriptors came for a line and the numbers {request.targets}: each once, and none but 0, 1 and 2 in this order"
        raise ManagerError("SPAWN_ERR_SETUP_FDCAP", what)
    if request.terminal and not any(map(os.isatty, fds[1:])):
        raise ManagerError("SPAWN_ERR_SETUP_FDCAP", "there is to be a controlling terminal, and none of stdin, stdout and stderr is one")
    strings = [*request.argv, *request.variables, *(value for value in request.variables.values() if value is not None), request.cwd or b""]
    if any(b"\0" in word for word in strings) or any(not name or b"=" in name for name in request.variables):
        raise ManagerError("SPAWN_ERR_GET_CMDLINE_ARGS", "a word holds a zero byte, or the name of a variable is empty or holds =")
    for target, fd in zip(request.targets, fds[1:], strict=True):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise ManagerError(
                "SPAWN_ERR_SETUP_FDCAP", f"descriptor {target} is a directory, from which a command would get out of its domain"
            )


def _environment(pid: int, request: wire.Exec) -> list[bytes]:
    """What the domain began with, and what is changed of it."""
    found: dict[bytes, bytes] = {}
    for item in environment_of(pid):
        name, equals, value = item.partition(b"=")
        if name and equals:
            found[name] = value
    if request.cwd is not None:
        found.pop(b"PWD", None)
        if request.cwd.startswith(b"/"):
            found[b"PWD"] = request.cwd
    for name, changed in request.variables.items():
        found.pop(name, None)
        if changed is not None:
            found[name] = changed
    return [name + b"=" + value for name, value in found.items()]


def _places(name: bytes, environ: Sequence[bytes]) -> list[bytes]:
    """Where the program may be, as the domain sees it: as execvp(3) has it."""
    if b"/" in name:
        return [name]
    path = next((item[5:] for item in environ if item.startswith(b"PATH=")), _DEFAULT_PATH)
    return [os.path.join(directory or b".", name) for directory in path.split(b":")[:PLACES_MOST]]


def _is_own(name: bytes, domain: Domain, cooked: Cooked) -> bool:
    """Whether it is the domain's own program that is meant, which is there even where no path leads to it."""
    return name in (os.fsencode(domain.path), os.path.basename(os.fsencode(domain.path))) and cooked.plan.program.interpreter_for is None


def _not_started(kept: Kept, error: int, request: wire.Exec, *, in_cell: bool) -> ManagerError:
    if error == errno.ENOSPC:
        return ManagerError("SPAWN_ERR_SPAN", f"domain {kept.seat.id} runs as many commands as it may: 64; end some")
    if error == errno.EXDEV:
        what = "it is in a sandbox, and the manager has lost the database that says in which; start it anew"
        return ManagerError("SPAWN_ERR_SPAN", f"domain {kept.seat.id} takes no command: {what}")
    if in_cell and request.cwd is not None and error in _NO_DIRECTORY:
        return _no_directory(kept.seat.id, request.cwd, error)
    if in_cell or error == errno.EINVAL:
        return not_in_cell(kept.seat, error, joins=True)
    return out_of(OSError(error, ""), "no process could be made", "SPAWN_ERR_RUN")


def _no_directory(id: int, cwd: bytes, error: int) -> ManagerError:
    return ManagerError("SPAWN_ERR_SETUP_ENV", f"{shown_bytes(cwd)}: a command of domain {id} cannot start there: {os.strerror(error)}")


def _refusal(error: SpawnError, domain: Domain, request: wire.Exec, environ: Sequence[bytes]) -> ManagerError:
    """Why the command was not executed."""
    name = shown_bytes(request.argv[0])
    if error.errno == errno.E2BIG:
        return ManagerError("SPAWN_ERR_ARGSPG_OVERFLOW", error.detail)
    if error.stage is Stage.EXEC and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ManagerError("SPAWN_ERR_FIND_MODULE", f"domain {domain.id} has no program {name}: {_where(request, domain, environ)}")
    if error.stage is Stage.EXEC:
        return ManagerError("SPAWN_ERR_LOAD", f"domain {domain.id} cannot execute {name}: {os.strerror(error.errno or errno.EACCES)}")
    if ENTERING in error.detail:
        return _no_directory(domain.id, request.cwd or os.fsencode(domain.cwd), error.errno or errno.ENOENT)
    return ManagerError("SPAWN_ERR_RUN", error.detail)


def _where(request: wire.Exec, domain: Domain, environ: Sequence[bytes]) -> str:
    if b"/" in request.argv[0]:
        what = "there is no such file, or the interpreter that it names is missing"
    else:
        path = next((item[5:] for item in environ if item.startswith(b"PATH=")), _DEFAULT_PATH)
        what = f"it is in no directory of PATH={shown_bytes(path[:_PATH_SHOWN])}, or the interpreter that it names is missing"
    if domain.sandbox is None:
        return what
    return (
        f"{what}; its sandbox has what it was handed (`shoal caps {domain.id}`), so start it with that (--ro, read=) or run its own program"
    )
