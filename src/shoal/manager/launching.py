"""Launching: how domains are started in inits that spawn daemons have made, and found again when they were started by an earlier manager.

Nothing here is more than can be lost: what is true of a domain is in the ledger, written by the domain's own init.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from shoal.handles.keeper import Strings
from shoal.handles.made import empty_mounts
from shoal.manager import flat, orders
from shoal.manager.bounds import Bounds
from shoal.manager.boxes import cook, known_box, on_core, order_for
from shoal.manager.errors import ManagerError
from shoal.manager.handing import startup_variable
from shoal.manager.kept import Kept, Seat
from shoal.manager.layout import Layout, out_of
from shoal.manager.ledger import CAUSE_UNBEGUN, Ledger, Slot
from shoal.manager.link import Link, Outcome, send_plan
from shoal.manager.nurseries import Nurseries
from shoal.manager.reaching import Reaching
from shoal.manager.room import Room
from shoal.manager.spawnds import Spawnds
from shoal.manager.wire import SpawnProgram
from shoal.packing import count_strings
from shoal.plan import Plan
from shoal.recipe import make_joining
from shoal.sandbox.launch import Cooked
from shoal.status import SpawnError

FILES_SPARE: Final = 64
"""Descriptors that are left for connections, logs, and what a launch needs for a moment."""
JOIN_S: Final = 10.0
"""How long another process may take to become the program in a cell in which something runs already."""
LOG_BYTES: Final = 16 << 20
"""How much of a domain's output is kept in each of its two files."""


class Launcher:
    """Starts domains and finds them again. For the loop's thread.

    Args:
        own: the cores that the manager is itself the spawn daemon of.
        token: the manager capability, for other spawn daemons. on_change: called when another core is served, or is not any more.
        on_end: called with a domain's number when its init has ended.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        layout: Layout,
        own: Iterable[int],
        token: Callable[[], str],
        on_change: Callable[[int], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_end = on_end
        self.ledger = Ledger(layout.ledger)
        self._run = os.open(layout.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._logs = os.open(layout.logs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fds = (self.ledger.fileno(), self._run, self._logs)
        self.spawnds = Spawnds(loop, own, Nurseries(loop, *fds), token, fds, on_change)
        self._highest = 0
        self._room = Room()
        self._reaching = Reaching(loop, self._run)

    def close(self) -> None:
        """Leave every domain alone."""
        self.spawnds.close()
        self._reaching.close()
        self.ledger.close()
        os.close(self._run)
        os.close(self._logs)

    # --- starting -----------------------------------------------------------------------------------

    def new_seat(self, id: int) -> Seat:
        """A place for a domain.

        Raises:
            ManagerError: the disk is full, or there are so many files or processes that it would hinder those that are there.
        """
        self._check_room()
        self._room.check()
        return Seat(id, self.ledger.take(), secrets.randbits(63))

    def _check_room(self) -> None:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # Numbers are given from the lowest, with few gaps: they are counted only where the last one that stayed was high.
        if self._highest >= most - 4 * FILES_SPARE and len(os.listdir("/proc/self/fd")) >= most - FILES_SPARE:
            what = f"no room for another domain: the manager may have {most} files open (RLIMIT_NOFILE), one for each domain"
            advice = "end some, or start it anew where `ulimit -Hn` is higher"
            raise ManagerError("SPAWN_ERR_DOMAIN_ALLOCATE", f"{what}; {advice}")

    async def start(self, seat: Seat, request: SpawnProgram, fds: Sequence[int], bounds: Bounds | None) -> Kept:
        """Start a domain; on failure nothing of it is left but its seat.

        Args:
            fds: what the request speaks of; borrowed.
            bounds: what it is bound by.
        Raises:
            ManagerError: it was not started.
        """
        core = self.spawnds.number(request.core)
        cooked = None if request.sandbox is None else self.cooked(request, core)
        init = await self.spawnds.take_init(core, makes_cell=cooked is not None)
        self._highest = init.socket.fileno()
        gone: asyncio.Future[None] = self._loop.create_future()
        has_begun = False

        def over() -> None:
            gone.set_result(None)
            if has_begun:
                self._on_end(seat.id)  # now: whoever waits for the future is told two turns of the loop later

        link = Link(self._loop, init.socket, over)
        pipes: list[int] = []
        try:
            if bounds is not None:
                bounds.take(init.pid)
            for _ in request.kept:
                pipes += os.pipe2(os.O_CLOEXEC)
            given = (*fds, *pipes[1::2])
            request = _told_of_handles(request, fds)
            which, outputs = sum(request.kept), tuple(pipes[::2])
            if cooked is None:
                pid = await self._start_flat(seat, link, request, core, given, which, outputs)
            else:
                pid = await self._start_in_cell(seat, link, request, cooked, given, which, outputs)
        except BaseException as error:
            link.order(orders.END, CAUSE_UNBEGUN)
            await gone
            raise as_manager_error(error, request) from error
        finally:
            _close(pipes)
        has_begun = True
        if gone.done():
            self._loop.call_soon(self._on_end, seat.id)  # once it is known that it had begun
        return Kept(seat, link, pid)

    def plan(self, request: SpawnProgram) -> Plan | None:
        """What a request with a sandbox asks for; None: it has none, and sees what we do.

        Raises:
            ManagerError: the sandbox is not possible here, or not for this program.
        """
        return None if request.sandbox is None else self.cooked(request, self.spawnds.number(request.core)).plan

    async def _start_flat(
        self, seat: Seat, link: Link, request: SpawnProgram, core: int, fds: Sequence[int], which: int, outputs: tuple[int, ...]
    ) -> int:
        plan = flat.plan(request.path, request.cwd, core, (*request.targets, *request.kept))
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outcome = Outcome(self._loop, near)
        try:
            with far:
                given = (far.fileno(), *outputs)
                started = link.ask(orders.LAUNCH, which, seat.slot, core=core, c=seat.id, d=seat.key, e=LOG_BYTES, fds=given)
            send_plan(near, plan.filled(()), count_strings(request.argv), _with_startup(count_strings(request.environ or ()), request), fds)
            told = await started
            if told.kind != orders.STARTED:
                if which & orders.TENTATIVE and told.error == errno.EINVAL:
                    raise ManagerError("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", f"domain {seat.id} is ending")
                raise out_of(OSError(told.error, ""), "no process could be made", "SPAWN_ERR_RUN")
            try:
                await outcome.executed(plan.labels, os.fsdecode(request.path))
            except BaseException:
                link.order(orders.KEEP, 0, told.pid)
                raise
        finally:
            outcome.close()
        return told.pid

    def cooked(self, request: SpawnProgram, core: int) -> Cooked:
        """What it takes to make a cell for a request with a sandbox, or to enter the one that was made for it.

        Raises:
            ManagerError: the sandbox is not possible here, or not for this program.
        """
        assert request.sandbox is not None
        box = known_box(on_core(request.sandbox, core))
        environ = None
        if request.environ is not None:
            environ = dict(os.fsdecode(item).split("=", 1) for item in request.environ)
        # What comes there is sent later; something that is open here stands for it.
        numbers = dict.fromkeys((*request.targets, *request.kept), self.ledger.fileno())
        return cook(box, order_for(os.fsdecode(request.path), request.argv, environ, os.fsdecode(request.cwd), numbers))

    async def _start_in_cell(
        self, seat: Seat, link: Link, request: SpawnProgram, cooked: Cooked, fds: Sequence[int], which: int, outputs: tuple[int, ...]
    ) -> int:
        recipe, joins = cooked.recipe, bool(which & orders.TENTATIVE)
        file = os.memfd_create("shoal-recipe", os.MFD_CLOEXEC)
        try:
            os.write(file, make_joining(cooked.plan) if joins else recipe.file)
            empty = empty_mounts() if recipe.begins_empty and not joins else -1
            given = (file, empty) if empty >= 0 else (file,)
            which |= orders.EMPTY if empty >= 0 else 0
            started = link.ask(orders.CELL, which, seat.slot, c=seat.id, d=seat.key, e=LOG_BYTES, fds=(*given, *outputs))
        finally:
            os.close(file)
        told = await started
        if told.kind != orders.STARTED or not told.fds:
            raise not_in_cell(seat, told.error, joins=joins)
        talk = socket.socket(fileno=told.fds[0])
        outcome = Outcome(self._loop, talk)
        try:
            by_number = dict(zip((*request.targets, *request.kept), fds, strict=True))
            send_plan(
                talk, recipe.finish, cooked.argv, _with_startup(cooked.environ, request), [by_number[number] for number in cooked.targets]
            )
            async with asyncio.timeout(JOIN_S if joins else None):  # what lives in the cell may stop who enters
                await outcome.executed((), os.fsdecode(request.path))
        except BaseException as error:
            if joins:
                link.order(orders.KEEP, 0, told.pid)
            if isinstance(error, TimeoutError):
                raise not_in_cell(seat, errno.ETIMEDOUT, joins=True) from None
            raise
        finally:
            outcome.close()
        return told.pid

    async def add_dispatcher(self, kept: Kept, request: SpawnProgram, fds: Sequence[int]) -> int:
        """Start another process of a domain, which is no dispatcher before it is kept. Its pid; on failure nothing of it is left, and the
        domain goes on.

        Raises:
            ManagerError: it was not started.
        """
        core = self.spawnds.number(request.core)
        pipes: list[int] = []
        try:
            for _ in request.kept:
                pipes += os.pipe2(os.O_CLOEXEC)
            which, outputs, given = sum(request.kept) | orders.TENTATIVE, tuple(pipes[::2]), (*fds, *pipes[1::2])
            told = _told_of_handles(request, fds)
            if request.sandbox is None:
                return await self._start_flat(kept.seat, kept.link, told, core, given, which, outputs)
            return await self._start_in_cell(kept.seat, kept.link, told, self.cooked(told, core), given, which, outputs)
        except (SpawnError, OSError) as error:
            raise as_manager_error(error, request) from error
        finally:
            _close(pipes)

    # --- finding again --------------------------------------------------------------------------------

    async def adopt(self, number: int, slot: Slot, *, this_boot: bool = True, patience_s: float = 0.0) -> Kept | None:
        """The link to the domain in a slot, whose former manager is gone. None when its init is gone as well.

        Args:
            this_boot: the number of the init's process means something.
            patience_s: how long to look for one whose process is not known.
        """
        sock = await self._reaching.to(number, slot if this_boot else None, patience_s)
        return None if sock is None else await self._adopted(number, slot, sock)

    def unlink_socket(self, number: int) -> None:
        """What an init that was killed has left of its socket."""
        self._reaching.unlink(number)

    async def _adopted(self, number: int, slot: Slot, sock: socket.socket) -> Kept | None:
        gone: asyncio.Future[None] = self._loop.create_future()
        link = Link(self._loop, sock, lambda: gone.set_result(None))
        try:
            told = await link.answer()
        except ManagerError:
            return None
        if (told.id, told.key) != (slot.id, slot.key):
            link.close()
            return None
        gone.add_done_callback(lambda _: self._on_end(slot.id))
        return Kept(Seat(slot.id, number, slot.key), link, slot.pid)


def as_manager_error(error: BaseException, request: SpawnProgram) -> BaseException:
    """What stopped a launch, by the code the seed has for it."""
    if not isinstance(error, SpawnError | OSError):
        return error
    if isinstance(error, SpawnError) and error.errno == errno.E2BIG:
        return ManagerError("SPAWN_ERR_ARGSPG_OVERFLOW", error.detail)
    if isinstance(error, SpawnError) and error.stage.name == "EXEC":
        if flat.foreign_machine(request.path):
            path = os.fsdecode(request.path)
            return ManagerError("SPAWN_ERR_LOAD", f"{path} is for another kind of processor than core {request.core}")
        return ManagerError("SPAWN_ERR_LOAD", error.detail)
    if isinstance(error, SpawnError) and flat.ENTERING in error.detail:
        return ManagerError("SPAWN_ERR_SETUP_ENV", f"{os.fsdecode(request.cwd)}: the working directory cannot be entered: {error.detail}")
    return ManagerError("SPAWN_ERR_RUN", error.detail) if isinstance(error, SpawnError) else out_of(error, "no process", "SPAWN_ERR_RUN")


def not_in_cell(seat: Seat, error: int, *, joins: bool) -> ManagerError:
    """Why a cell was not made, or not entered."""
    if not joins:
        return ManagerError("SPAWN_ERR_SETUP_CSPACE", f"no cell could be made: {os.strerror(error)}")
    if error == errno.EINVAL:
        return ManagerError("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", f"domain {seat.id} is ending")
    if error == errno.EOPNOTSUPP:
        what = "what its program was executed from cannot be had again: its init may not look into the cell (pidfd_getfd(2), ptrace(2))"
        return ManagerError("SPAWN_ERR_SPAN", f"domain {seat.id} is in a sandbox, and {what}")
    return ManagerError("SPAWN_ERR_SPAN", f"the cell of domain {seat.id} takes no other process: {os.strerror(error)}")


def _told_of_handles(request: SpawnProgram, fds: Sequence[int]) -> SpawnProgram:
    """The same, with what tells the program of the handles among its descriptors."""
    variable = startup_variable(request.given, dict(zip(request.targets, fds, strict=True)))
    if variable is None:
        return request
    return msgspec.structs.replace(request, startup=variable)


def _with_startup(environ: Strings, request: SpawnProgram) -> Strings:
    if request.startup is None:
        return environ
    return environ[0] + request.startup + b"\0", environ[1] + 1


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()
