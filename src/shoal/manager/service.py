"""The service: what a manager does for its clients, whatever they reach it by. For the loop's thread.

Every request is either carried out once or not at all: one that starts something has a key, which is remembered with the domain
before its first instruction, so that the same request sent again finds what the first has made.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final, Protocol

import msgspec

from shoal.manager import wire
from shoal.manager.adoption import Found, is_settled, never_began, sort_out
from shoal.manager.authority import Authority
from shoal.manager.bounds import Bounds
from shoal.manager.boxes import from_text
from shoal.manager.dispatchers import Shared, environment_of
from shoal.manager.domains import LOST_STATUS, Domain, Ended, ExitStatus, State, ended_by
from shoal.manager.errors import ManagerError
from shoal.manager.handing import capability, channel, lowest_free, manager, memory
from shoal.manager.inspecting import capabilities_of, described, described_later, granted_in_cell
from shoal.manager.kept import Kept
from shoal.manager.launching import Launcher
from shoal.manager.layout import Layout, boot_identity, out_of
from shoal.manager.ledger import ENDED, ENDING, RUNNING, SLOTS_MOST, Slot
from shoal.manager.logs import names, numbers, open_log, remove_log, state_of
from shoal.manager.naming import Client, Naming
from shoal.manager.rights import DomainRights, ManagerRights, shown
from shoal.manager.spawnds import LOCAL
from shoal.manager.store import Row, Store
from shoal.manager.watching import Watcher

HISTORY_MOST: Final = 10_000
"""How many domains that have ended are remembered; the oldest goes first."""
HISTORY_ROWS: Final = 1000
MANY_BYTES: Final = 2 << 20
"""How much is told of many domains in one answer."""
STATUS_BYTES: Final = 200
"""What the status of a domain takes besides its name and its arguments, at most."""
ARGUMENTS_SHOWN: Final = 4096
"""How many bytes of its arguments are told of each of many."""
AUDIT_AT_ONCE: Final = 10_000
NUMBER_MOST: Final = (1 << 63) - 1
"""How many of them are told in one answer, and how long their arguments may be in all."""
KILL_S: Final = 10.0
"""How long a kill may take before the one who asked is told that it does not work."""
SOON_S: Final = 5.0
"""How long a new manager waits for the inits of its domains before it listens; the others are found while it does. And how long one
that is to end waits for what it has begun."""
LOST_S: Final = 1.0
"""How long a new manager looks for a domain of which the ledger says nothing any more."""
RETRY_S: Final = 1.0
"""How long what could not be written is left alone."""
OWN_CORES, SPAWNDS = "own_cores", "spawnds"
"""Facts: which cores the manager serves itself, and the addresses of the spawn daemons of others."""
_FLAGS_KNOWN: Final = 0b11  # NEW_DOMAIN and OMP


class Caller(Client, Protocol):
    """A client, as the service sees it.

    Attributes:
        who: for the audit log. rights: those of the manager capability that it has shown.
    """

    who: str
    rights: ManagerRights

    def answer(self, rid: int, value: Any = None, fds: Sequence[int] = ()) -> None: ...

    def refuse(self, rid: int, error: ManagerError) -> None: ...


class Service:
    """One manager. `close()` leaves every domain running."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, layout: Layout, store: Store, authority: Authority, cores: Iterable[int] | None = None
    ) -> None:
        """
        Args:
            cores: those that it is the spawn daemon of itself, and every later manager of the same state; None: as before.
        Raises:
            ManagerError: it may not run on one of them.
        """
        self._loop = loop
        self._layout = layout
        self._store = store
        self._authority = authority
        self._boot = boot_identity()
        self._watcher = Watcher(loop)
        self._naming = Naming(store)
        self._launcher = Launcher(loop, layout, own_cores(store, cores), authority.own, self._core_changed, self._ended)
        self._spawnds = self._launcher.spawnds
        self._domains: dict[int, Domain] = {}
        self._kept: dict[int, Kept] = {}
        self._next = store.last_id() + 1
        self._requests: dict[str, asyncio.Future[Domain]] = {}
        self._adopting: dict[int, asyncio.Task[None]] = {}
        self._endings: list[int] = []
        self._unwritten: dict[int, Ended] = {}
        self._again: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tokens: dict[int, str] = {}
        self._bounds: dict[int, Bounds] = {}
        self._shared: dict[int, Shared] = {}
        self.connect: Callable[[socket.socket, str], None] = lambda sock, who: sock.close()
        """Serves the other end of a socket, for who that is."""
        self._waiting: dict[Caller, dict[int, Domain]] = {}
        self._is_closed = False
        self.stopped: asyncio.Future[None] = loop.create_future()

    # --- beginning and end ----------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Find again what an earlier manager has left."""
        ledger = self._launcher.ledger
        last = self._loop.time() + SOON_S
        while not ledger.is_settled() and self._loop.time() < last:
            await asyncio.sleep(0.01)
        rows = self._store.alive()
        whole = ledger.count
        ledger.reach(max((row.slot + 1 for row in rows if row.slot < SLOTS_MOST), default=0))
        slots = ledger.all()
        left = sort_out(slots, rows, self._store.has_end, self._boot, self._store.fact("boot") or self._boot, whole)
        for row in left.unbegun:
            self._written(self._store.drop, row.id)
        for number in left.done:
            ledger.give_back(number)
        for number in left.free:
            ledger.offer(number)
        if self._store.fact("boot") != self._boot:
            self._written(self._store.remember, "boot", self._boot)
        for one in left.found:
            self._adopting[one.slot.id] = task = self._begin(self._adopt_one(one))
            task.add_done_callback(functools.partial(lambda id, _: self._adopting.pop(id, None), one.slot.id))
        self._announce()
        self._begin(self._rebind())
        await asyncio.wait(self._tasks, timeout=SOON_S)
        logged = numbers(self._layout.logs)
        if not self._store.is_new:  # else they may be what the user has kept, of domains that nobody knows any more
            for id in logged - self._store.ids() - self._domains.keys():
                remove_log(self._layout.logs, id)
        self._next = 1 + max(self._next - 1, self._store.last_id(), *logged, *(one.slot.id for one in left.found))

    def _announce(self) -> None:
        """The well-known names of the spec."""
        for core in self._spawnds.cores:
            self._announce_core(core)
        self._naming.announce(f"proc_mgmt {{ pid: {os.getpid()} }}")

    def _announce_core(self, core: int) -> None:
        cores, pid = self._spawnds.cores, self._spawnds.pid_of(core)
        if core in cores:
            self._naming.announce(f"spawn.{core} {{ core: {core}, node: '{LOCAL}', pid: {pid or os.getpid()} }}")
            self._naming.announce(f"proc_mgmt.{core}.ready {{ iref: 0 }}")
        else:
            self._naming.withdraw(f"proc_mgmt.{core}.ready")
            self._naming.withdraw(f"spawn.{core}")
        if set(cores) >= os.sched_getaffinity(0):
            self._naming.announce("all_spawnds_up { iref: 0 }")
        else:
            self._naming.withdraw("all_spawnds_up")

    def _core_changed(self, core: int) -> None:
        self._written(self._store.remember, SPAWNDS, json.dumps(self._spawnds.addresses()))
        self._announce_core(core)

    async def _rebind(self) -> None:
        """To the spawn daemons that an earlier manager had."""
        known = json.loads(self._store.fact(SPAWNDS) or "{}")
        for error in await self._spawnds.add_known({int(core): address for core, address in known.items()}):
            print(f"shoal manager: {error}", file=sys.stderr)

    def _written(self, write: Callable[..., object], *words: object) -> None:
        """Write down what can be found out again: on a full disk that is left for later."""
        try:
            write(*words)
        except ManagerError as error:
            print(f"shoal manager: {error}", file=sys.stderr)

    async def _adopt_one(self, one: Found) -> None:
        number, slot, row = one.number, one.slot, one.row
        id, ledger = slot.id, self._launcher.ledger
        known = self._domains[id] = self._remembered(row, number, slot)
        known.state = State.RUNNING if slot.state in (RUNNING, ENDING, ENDED) else State.NIL
        bounds = Bounds.remembered(self._loop, known.bounds, lambda cause: self._end(id, cause))
        if bounds is not None:
            self._bounds[id] = bounds
        kept = None
        if slot.state != ENDED:
            patience_s = LOST_S if one.was_lost and one.this_boot else 0.0
            kept = await self._launcher.adopt(number, slot, this_boot=one.this_boot, patience_s=patience_s)
        while kept is not None and kept.link.lives and not is_settled(ledger.read(number)):
            await asyncio.sleep(0.01)  # that who was about to tell it what to become has gone, ends it
        slot = ledger.read(number)
        if never_began(slot) and not one.was_lost:
            self._never_began(known, row)
            return
        if row is None:
            self._written(self._store.add, id, slot.key, None, number, self._boot, known.name, "?", b"\0".join(known.argv), known.about())
        if kept is None or id not in self._domains:
            self._adopting.pop(id, None)  # there is no more to be found out
            self._ended(id)
            return
        self._kept[id] = kept
        known.is_found(slot.pid)
        for pid in list(known.pids.values())[1:]:
            kept.keep(pid)
        kept.drop()  # the rest of what an earlier manager was about to start, and did not write down
        if bounds is not None:
            bounds.start()
        if known.state is State.STOP_PENDING:  # somebody asked for it meanwhile
            kept.kill()

    def _never_began(self, domain: Domain, row: Row | None) -> None:
        """Whoever asked for it was not answered, and will ask again."""
        self._domains.pop(domain.id, None)
        if (bounds := self._bounds.pop(domain.id, None)) is not None:
            bounds.finish(_never())
        if row is not None:
            self._written(self._store.drop, row.id)
        self._launcher.ledger.give_back(domain.slot)
        domain.not_started(ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"domain {domain.id} was not started"))

    def _remembered(self, row: Row | None, number: int, slot: Slot) -> Domain:
        if row is None:  # the database was lost
            argv = _command_line(slot.pid)
            name = shown_bytes(os.path.basename(argv[0])) if argv else "?"
            return Domain(slot.id, slot.key, number, name, argv, {"?": slot.pid}, slot.started_ns / 1e9)
        about = json.loads(row.about)
        core: int | str = int(row.core) if row.core.isdigit() else row.core
        return Domain(
            id=row.id,
            key=row.key,
            slot=number,
            name=row.name,
            argv=row.argv.split(b"\0") if row.argv else [],
            pids={core: slot.pid} | dict(about.get("dispatchers", ())),
            started_s=about.get("started_s", slot.started_ns / 1e9),
            path=about.get("path", ""),
            cwd=about.get("cwd", "/"),
            sandbox=about.get("sandbox"),
            bounds=about.get("bounds", {}),
            descriptors=about.get("descriptors", []),
        )

    async def settle(self) -> None:
        """Wait until what was begun is done: a spawn that is under way is carried out and written down."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SOON_S)

    def close(self) -> None:
        """Leave every domain alone, for the next manager."""
        self._is_closed = True
        for task in tuple(self._tasks):
            task.cancel()
        for kept in self._kept.values():
            kept.link.close()
        for bounds in self._bounds.values():
            bounds.close()
        for shared in self._shared.values():
            shared.close()
        self._watcher.close()
        self._launcher.close()
        self.stop()

    def stop(self) -> None:
        """Have the manager ended."""
        if not self.stopped.done():
            self.stopped.set_result(None)

    # --- requests ---------------------------------------------------------------------------------

    def handle(self, caller: Caller, request: wire.Request, fds: list[int]) -> None:
        """Carry out a request. Takes over the descriptors."""
        if isinstance(request, wire.SpawnProgram):
            self._begin(self._spawn(caller, request, fds))
            return
        try:
            if isinstance(request, wire.NameRequest):
                self._naming.handle(caller, request, fds)
                return
            for fd in fds:
                os.close(fd)
            if isinstance(request, wire.Span):
                self._begin(self._span(caller, request))
                return
            if isinstance(request, wire.AddSpawnd):
                self._need(caller, ManagerRights.ADD_SPAWND, "a spawn daemon")
                self._begin(self._add_spawnd(caller, request))
                return
            handler = _HANDLERS.get(type(request))
            if handler is None:
                raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"this manager does not know {type(request).__name__.lower()} yet")
            handler(self, caller, request)
        except ManagerError as error:
            self._refused(caller, request, error)
            caller.refuse(request.rid, error)
        except OSError as error:
            caller.refuse(request.rid, out_of(error, f"the manager cannot carry out {type(request).__name__.lower()}"))
        except Exception as error:  # a defect of ours costs this request, not the manager
            caller.refuse(request.rid, _defect(error))

    def rights_of(self, caller: Caller, hello: wire.Hello) -> ManagerRights:
        """What a client may do by the manager capability that it shows.

        Raises:
            ManagerError: it is not good.
        """
        assert hello.token is not None
        try:
            return self._authority.rights_of(hello.token)
        except ManagerError as error:
            self._refused(caller, hello, error)
            raise

    def left(self, caller: Caller) -> None:
        """A client has gone: nobody waits there any more."""
        self._naming.left(caller)
        for rid, domain in self._waiting.pop(caller, {}).items():
            domain.forget((caller, rid))
            self._watcher.forget((caller, rid))

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _refused(self, caller: Caller, request: wire.Request, error: ManagerError) -> None:
        if error.code in _AUDITED:
            self._audit(caller, request, error)

    def _audit(self, caller: Caller, request: wire.Request, error: ManagerError | None, domain: int | None = None) -> None:
        try:
            self._store.audit(time.time(), caller.who, type(request).__name__.lower(), domain, None if error is None else str(error))
        except (ManagerError, UnicodeError):
            pass  # a full disk keeps nobody from what still works

    async def _add_spawnd(self, caller: Caller, request: wire.AddSpawnd) -> None:
        try:
            await self._spawnds.add(request.core, request.address, again=request.again)
        except ManagerError as error:
            caller.refuse(request.rid, error)
        except Exception as error:
            caller.refuse(request.rid, _defect(error))
        else:
            self._audit(caller, request, None)
            caller.answer(request.rid)

    # --- spawning ---------------------------------------------------------------------------------

    async def _spawn(self, caller: Caller, request: wire.SpawnProgram, fds: list[int]) -> None:
        try:
            domain = await self._spawned(request, fds)
        except ManagerError as error:
            caller.refuse(request.rid, error)
        except OSError as error:
            caller.refuse(request.rid, out_of(error, "the domain could not be started", "SPAWN_ERR_RUN"))
        except Exception as error:
            caller.refuse(request.rid, _defect(error))
        else:
            self._audit(caller, request, None, domain.id)
            caller.answer(request.rid, [domain.id, self._token_of(domain.id)])
        finally:
            for fd in fds:
                os.close(fd)

    async def _spawned(self, request: wire.SpawnProgram, fds: Sequence[int]) -> Domain:
        if request.flags & ~_FLAGS_KNOWN:
            raise ManagerError("SPAWN_ERR_GET_CMDLINE_ARGS", f"flags {request.flags:#x}: bits beyond NEW_DOMAIN and OMP mean nothing")
        under_way = self._requests.get(request.key)
        if under_way is not None:
            return await asyncio.shield(under_way)
        future = self._requests[request.key] = self._loop.create_future()
        try:
            domain = await self._carried_out(request.key) or await self._start(request, fds)
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # whether anybody else waits or not
            raise
        else:
            future.set_result(domain)
            return domain
        finally:
            del self._requests[request.key]

    async def _carried_out(self, key: str) -> Domain | None:
        """The domain that a request made which was sent before."""
        before = self._store.by_request(key)
        if before is not None and (adopting := self._adopting.get(before)) is not None:
            await asyncio.wait((adopting,))  # then it is known whether it began
            before = self._store.by_request(key)
        return None if before is None else self._find(before)

    async def _start(self, request: wire.SpawnProgram, fds: Sequence[int]) -> Domain:
        request = _checked(request, fds)
        seat = self._launcher.new_seat(self._next)
        self._next += 1
        name = request.name if request.name is not None else shown_bytes(os.path.basename(request.path))
        bounds = None
        try:
            domain = Domain(
                id=seat.id,
                key=seat.key,
                slot=seat.slot,
                name=name,
                argv=request.argv,
                pids={},
                started_s=time.time(),
                path=os.fsdecode(request.path),
                cwd=os.fsdecode(request.cwd),
                sandbox=request.sandbox,
                descriptors=described(request, fds),
            )
            if request.sandbox is not None:
                bounds = Bounds.of(self._loop, from_text(request.sandbox), lambda cause: self._end(seat.id, cause))
                domain.bounds = {} if bounds is None else bounds.about()
            argv = b"\0".join(request.argv)
            plan = self._launcher.plan(request)
            granted = None if plan is None else granted_in_cell(plan, request)
            if request.own:
                domain.descriptors += described_later(self._own_handles(request)[1])
            self._store.add(seat.id, seat.key, request.key, seat.slot, self._boot, name, str(request.core), argv, domain.about(), granted)
        except BaseException:
            self._launcher.ledger.give_back(seat.slot)
            if bounds is not None:
                bounds.finish(_never())
            raise
        self._domains[seat.id] = domain
        self._loop.call_soon(self._premint, seat.id)  # while it starts
        try:
            with ExitStack() as stack:
                if request.own:
                    request, fds = self._with_own(request, fds, seat.id, stack)
                kept = await self._launcher.start(seat, request, fds, bounds)
        except BaseException as error:
            del self._domains[seat.id]
            self._tokens.pop(seat.id, None)
            if bounds is not None:
                bounds.finish(_never())
            self._launcher.ledger.give_back(seat.slot)
            self._written(self._store.drop, seat.id)
            domain.not_started(ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"domain {seat.id} was not started: {error}"))
            raise
        self._kept[seat.id] = kept
        if bounds is not None:
            self._bounds[seat.id] = bounds
            bounds.start()
        domain.running(request.core, kept.pid)
        if domain.state is State.STOP_PENDING:
            kept.kill()
        return domain

    def _with_own(
        self, request: wire.SpawnProgram, fds: Sequence[int], id: int, stack: ExitStack
    ) -> tuple[wire.SpawnProgram, tuple[int, ...]]:
        """The same with the capability for the domain itself, and a connection to us."""
        targets, given = self._own_handles(request)
        vmo = stack.enter_context(self._authority.own_of_domain(id).to_vmo())
        near, far = socket.socketpair()
        stack.callback(far.close)
        self.connect(near, f"domain {id}")
        request = msgspec.structs.replace(request, given=[*request.given, *given], targets=[*request.targets, *targets])
        return request, (*fds, vmo.fileno(), far.fileno())

    @staticmethod
    def _own_handles(request: wire.SpawnProgram) -> tuple[list[int], list[wire.Given]]:
        """The numbers of the two, and what the program is told of them."""
        first = lowest_free((*request.targets, *request.kept))
        second = lowest_free((*request.targets, *request.kept, first))
        return [first, second], [capability(first, request.core), manager(second)]

    # --- spanning -----------------------------------------------------------------------------------

    async def _span(self, caller: Caller, request: wire.Span) -> None:
        try:
            domain = self._allowed(caller, request.domain, DomainRights.SPAN)
            pid = await self._spanned(domain, request.core, again=request.again)
            self._audit(caller, request, None, domain.id)
            if request.here is None:
                caller.answer(request.rid, pid)
                return
            shared = self._shared[domain.id]
            with shared.fetch(request.here, request.core) as end:
                caller.answer(request.rid, pid, (shared.memory(domain.name), end.fileno()))
        except ManagerError as error:
            self._refused(caller, request, error)
            caller.refuse(request.rid, error)
        except Exception as error:
            caller.refuse(request.rid, _defect(error))

    async def _spanned(self, domain: Domain, core: int | str, *, again: bool) -> int:
        if again and domain.pids.get(core) and domain.state is State.RUNNING:
            return domain.pids[core]
        domain.check_span(core)
        self._spawnds.number(core)
        if domain.sandbox is not None:
            raise ManagerError("SPAWN_ERR_SPAN", f"domain {domain.id} is in a sandbox, which has room for one dispatcher")
        kept = self._kept.get(domain.id)
        if kept is None and (adopting := self._adopting.get(domain.id)) is not None:
            await asyncio.wait((adopting,))
            domain.check_span(core)
            kept = self._kept.get(domain.id)
        if kept is None:
            raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"domain {domain.id} cannot be reached: its init listens to nobody")
        others = list(domain.pids)
        first = domain.pids[others[0]]
        shared = self._shared.setdefault(domain.id, Shared())
        domain.pids[core] = 0  # taken
        try:
            for other in others:
                shared.connect(core, other)
            with ExitStack() as stack:
                ends = [stack.enter_context(shared.fetch(core, other)) for other in others]
                numbers = list(range(3, 4 + len(ends)))
                given = [memory(numbers[0]), *(channel(numbers[1 + index], index, other) for index, other in enumerate(others))]
                fds = (shared.memory(domain.name), *(end.fileno() for end in ends))
                request = wire.SpawnProgram(
                    rid=0,
                    key="",
                    core=core,
                    path=os.fsencode(domain.path),
                    argv=domain.argv,
                    environ=environment_of(first),
                    cwd=os.fsencode(domain.cwd),
                    targets=numbers,
                    kept=[1, 2],
                    name=None,
                    flags=0,
                    given=given,
                )
                request, fds = self._with_own(request, fds, domain.id, stack)
                described_now = described(request, fds)
                pid = domain.pids[core] = await self._launcher.add_dispatcher(kept, request, fds)
            try:
                domain.check_running()
                domain.descriptors += [item for item in described_now if item["ino"]]
                self._store.change(domain.id, domain.about())
            except BaseException:
                kept.drop(pid)
                raise
            kept.keep(pid)  # which the next manager does, where this one is killed before
        except BaseException:
            domain.pids.pop(core, None)
            shared.drop(core)
            raise
        return domain.pids[core]

    def _channel(self, caller: Caller, request: wire.Channel) -> None:
        domain = self._allowed(caller, request.domain, DomainRights.SPAN)
        shared = self._shared.get(domain.id)
        if shared is None:
            raise ManagerError("LIB_ERR_NO_SPANNED_DISP", f"domain {domain.id} has one dispatcher only")
        with shared.fetch(request.here, request.there) as end:
            caller.answer(request.rid, None, (end.fileno(),))

    def _capabilities(self, caller: Caller, request: wire.Capabilities) -> None:
        domain = self._allowed(caller, request.domain, DomainRights.CAPABILITIES, ManagerRights.LIST)
        if domain.ended is not None:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", f"domain {domain.id} has ended, and can touch nothing any more")
        domain.check_running()
        slot, granted = self._launcher.ledger.read(domain.slot), self._store.granted(domain.id)
        self._begin(self._inspected(caller, request, domain, slot, granted))

    async def _inspected(self, caller: Caller, request: wire.Capabilities, domain: Domain, slot: Slot, granted: bytes | None) -> None:
        try:
            found = await asyncio.to_thread(capabilities_of, domain, slot, granted)
            caller.answer(request.rid, json.dumps(found.to_dict()))
        except ManagerError as error:
            caller.refuse(request.rid, error)
        except Exception as error:
            caller.refuse(request.rid, _defect(error))

    def _memory(self, caller: Caller, request: wire.Memory) -> None:
        domain = self._allowed(caller, request.domain, DomainRights.SPAN)
        domain.check_running()
        shared = self._shared.setdefault(domain.id, Shared())
        caller.answer(request.rid, None, (shared.memory(domain.name),))

    def _end(self, id: int, cause: int) -> None:
        """Its time is up."""
        kept = self._kept.get(id)
        if kept is not None:
            kept.kill(cause)

    def _premint(self, id: int) -> None:
        if id in self._domains:
            self._tokens[id] = self._authority.mint(id)

    def _token_of(self, id: int) -> str:
        return self._tokens.pop(id, None) or self._authority.mint(id)

    # --- the end of domains -----------------------------------------------------------------------

    def _ended(self, id: int) -> None:
        """The init of a domain has ended. Those of one turn of the loop are written together."""
        if not self._endings:
            self._loop.call_soon(self._note_endings)
        self._endings.append(id)

    def _note_endings(self) -> None:
        if self._is_closed:
            return  # the next manager finds them in the ledger
        endings, self._endings = self._endings, []
        done: list[Domain] = []
        for id in endings:
            self._kept.pop(id, None)
            domain = self._domains.get(id)
            if domain is None or domain.ended is not None:
                continue
            slot = self._launcher.ledger.read(domain.slot)
            if id in self._adopting and never_began(slot):
                continue  # as its adoption finds out
            whole = slot.state == ENDED and slot.key == domain.key
            ended = ended_by(slot) if whole else Ended(ExitStatus(LOST_STATUS, "lost", None), time.time())
            if (shared := self._shared.pop(id, None)) is not None:
                shared.close()
            bounds = self._bounds.pop(id, None)
            if bounds is not None:
                ended = bounds.finish(ended)
            self._unwritten[id] = ended
            domain.has_ended(ended)
            done.append(domain)
        self._write_endings()

    def _write_endings(self) -> None:
        """Into the database; only then their slots are free. What cannot be written now stays in the ledger, and is tried again."""
        if not self._unwritten or self._is_closed:
            return
        try:
            self._store.end((id, ended.to_dict()) for id, ended in self._unwritten.items())
            forgotten = self._store.forget(HISTORY_MOST)
        except ManagerError:
            if self._again is None:
                self._again = self._loop.call_later(RETRY_S, self._write_endings_again)
            return
        for id in forgotten:
            remove_log(self._layout.logs, id)
            self._authority.forget(id)
        for id in self._unwritten:
            domain = self._domains.pop(id)
            domain.state = State.CLEANED
            self._launcher.ledger.give_back(domain.slot)
        self._unwritten.clear()

    def _write_endings_again(self) -> None:
        self._again = None
        self._write_endings()

    # --- finding ----------------------------------------------------------------------------------

    def _find(self, id: int) -> Domain:
        domain = self._domains.get(id)
        if domain is not None:
            return domain
        row = self._store.find(id) if 0 <= id <= NUMBER_MOST else None
        if row is None or row.ended is None:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"there is no domain {id}")
        return _from_history(row)

    def _allowed(self, caller: Caller, which: str | int, right: DomainRights, instead: ManagerRights = ManagerRights.ACT) -> Domain:
        """The domain a request is about.

        Raises:
            ManagerError: there is none, or the caller may not.
        """
        if isinstance(which, str):
            return self._find(self._authority.check(which, right))
        self._need(caller, instead, f"domain {which} by its number")
        return self._find(which)

    def _need(self, caller: Caller, right: ManagerRights, what: str) -> None:
        """
        Raises:
            ManagerError: it has not shown a manager capability with that right.
        """
        if not caller.rights & right:
            raise ManagerError("PROC_MGMT_ERR_NOT_MONITOR", f"{what}: that takes a manager capability with the right: {shown(right)}")

    # --- each request -----------------------------------------------------------------------------

    def _wait(self, caller: Caller, request: wire.Wait) -> None:
        domain = self._allowed(caller, request.domain, DomainRights.WAIT)
        if request.nohang and domain.ended is None:
            raise ManagerError("SPAWN_ERR_DOMAIN_RUNNING", f"domain {domain.id} has not ended")
        self._await(caller, request.rid, domain)
        domain.wait((caller, request.rid), self._answering(caller, request.rid, _exit))

    def _await(self, caller: Caller, rid: int, domain: Domain) -> None:
        """Note that a client waits there, so that it can be forgotten when it goes."""
        if domain.ended is None:
            self._waiting.setdefault(caller, {})[rid] = domain

    def _answering(self, caller: Caller, rid: int, value: Callable[[Ended], Any]) -> Callable[[Ended | ManagerError], None]:
        def tell(outcome: Ended | ManagerError) -> None:
            self._waiting.get(caller, {}).pop(rid, None)
            if isinstance(outcome, ManagerError):
                caller.refuse(rid, outcome)
            else:
                caller.answer(rid, value(outcome))

        return tell

    def _kill(self, caller: Caller, request: wire.Kill) -> None:
        domain = self._allowed(caller, request.domain, DomainRights.KILL)
        if request.again and domain.ended is not None and domain.ended.exit.reason == "killed":
            caller.answer(request.rid)
            return
        who = (caller, request.rid)
        first = domain.stop(who, self._answering(caller, request.rid, _nothing))
        self._await(caller, request.rid, domain)
        self._audit(caller, request, None, domain.id)
        kept = self._kept.get(domain.id)
        if first and kept is not None:
            kept.kill()
        self._loop.call_later(KILL_S, self._give_up_kill, domain, who, caller, request.rid)

    def _give_up_kill(self, domain: Domain, who: object, caller: Caller, rid: int) -> None:
        if domain.stoppers.pop(who, None) is not None:
            what = f"domain {domain.id} was killed {KILL_S:g} s ago and is still there: the kernel does not let go of it"
            caller.refuse(rid, ManagerError("PROC_MGMT_ERR_KILL", what))

    def _signal(self, caller: Caller, request: wire.Signal) -> None:
        domain = self._allowed(caller, request.domain, DomainRights.SIGNAL)
        if not 1 <= request.number <= 64:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_CAP_HASH", f"signal {request.number}: there are 1 to 64")
        if not 0 <= request.key < 1 << 63:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_CAP_HASH", f"the key of a signal has 63 bits, and is not {request.key}")
        domain.check_running()
        kept = self._kept.get(domain.id)
        if kept is None:
            self._begin(self._when_found(caller, request, domain))
            return
        kept.send_signal(request.number, key=request.key)
        self._audit(caller, request, None, domain.id)
        caller.answer(request.rid)

    async def _when_found(self, caller: Caller, request: wire.Request, domain: Domain) -> None:
        """Carry out a request as soon as the domain's init has been found again."""
        adopting = self._adopting.get(domain.id)
        if adopting is None:
            what = f"domain {domain.id} cannot be reached: its init listens to nobody"
            caller.refuse(request.rid, ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", what))
            return
        await asyncio.wait((adopting,))
        self.handle(caller, request, [])

    def _status(self, caller: Caller, request: wire.Status) -> None:
        caller.answer(request.rid, status_of(self._allowed(caller, request.domain, DomainRights.STATUS, ManagerRights.LIST)))

    def _list(self, caller: Caller, request: wire.List) -> None:
        self._need(caller, ManagerRights.LIST, "the list of all domains")
        ids = sorted(self._domains)
        first = 0 if request.after is None else bisect.bisect_right(ids, request.after)
        self._answer_many(caller, request.rid, (self._domains[id] for id in ids[first:]))

    def _answer_many(self, caller: Caller, rid: int, domains: Iterable[Domain]) -> None:
        """As many as there is room for, and one at least."""
        found: list[dict[str, Any]] = []
        room = MANY_BYTES
        for domain in domains:
            told = status_of(domain) | {"argv": _shortened(domain.argv)}
            room -= STATUS_BYTES + len(domain.name) + sum(map(len, told["argv"]))
            if found and room < 0:
                break
            found.append(told)
        caller.answer(rid, found)

    def _history(self, caller: Caller, request: wire.History) -> None:
        self._need(caller, ManagerRights.LIST, "the list of all domains")
        before = self._next if request.before is None else min(max(request.before, 0), NUMBER_MOST)
        self._answer_many(caller, request.rid, map(_from_history, self._store.ended(before, HISTORY_ROWS)))

    def _cores(self, caller: Caller, request: wire.Cores) -> None:
        caller.answer(request.rid, self._spawnds.cores)

    def _mint(self, caller: Caller, request: wire.Mint) -> None:
        self._need(caller, ManagerRights.REVOKE, "a new capability for a domain")
        caller.answer(request.rid, self._authority.mint(self._find(request.domain).id))

    def _revoke(self, caller: Caller, request: wire.Revoke) -> None:
        self._need(caller, ManagerRights.REVOKE, "revoking")
        if isinstance(request.domain, str):
            id = self._authority.revoke_one(request.domain)
        else:
            id = self._find(request.domain).id
            self._authority.revoke(id)
        self._audit(caller, request, None, id)
        caller.answer(request.rid)

    def _logs(self, caller: Caller, request: wire.Logs) -> None:
        domain = self._allowed(caller, request.domain, DomainRights.LOGS)
        who = (caller, request.rid)

        def look(outcome: object = None) -> None:
            if who not in domain.waiters and outcome is None:
                return  # it has been answered, or nobody waits any more
            if domain.ended is None and request.seen == state_of(self._layout.logs, domain.id):
                self._watcher.once(os.path.join(self._layout.logs, names(domain.id)[1]), who, look)
                if request.seen == state_of(self._layout.logs, domain.id):  # still, now that it is watched
                    return
            self._watcher.forget(who)
            domain.waiters.pop(who, None)
            self._waiting.get(caller, {}).pop(request.rid, None)
            self._answer_log(caller, request.rid, domain)

        if domain.ended is not None or request.seen is None:
            self._answer_log(caller, request.rid, domain)
            return
        self._await(caller, request.rid, domain)
        domain.waiters[who] = look
        try:
            look()
        except BaseException:
            domain.forget(who)
            raise

    def _answer_log(self, caller: Caller, rid: int, domain: Domain) -> None:
        try:
            state, fds = open_log(self._layout.logs, domain.id)
        except OSError as error:
            caller.refuse(rid, out_of(error, "the log cannot be opened"))
            return
        try:
            caller.answer(rid, [domain.ended is not None, state], fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _cancel(self, caller: Caller, request: wire.Cancel) -> None:
        domain = self._waiting.get(caller, {}).pop(request.other, None)
        if domain is not None:
            domain.forget((caller, request.other))
            self._watcher.forget((caller, request.other))
        caller.answer(request.rid)

    def _stop(self, caller: Caller, request: wire.Stop) -> None:
        self._need(caller, ManagerRights.ACT, "stopping the manager")
        caller.answer(request.rid)
        self._audit(caller, request, None)
        self.stop()

    def _audited(self, caller: Caller, request: wire.Audit) -> None:
        self._need(caller, ManagerRights.LIST, "the audit log")
        caller.answer(request.rid, self._store.audited(min(max(request.count, 0), AUDIT_AT_ONCE)))


_AUDITED: Final = frozenset(("PROC_MGMT_ERR_DOMAIN_CAP_HASH", "PROC_MGMT_ERR_NOT_MONITOR"))
_HANDLERS: Final[dict[type, Callable[[Service, Caller, Any], None]]] = {
    wire.Wait: Service._wait,
    wire.Kill: Service._kill,
    wire.Signal: Service._signal,
    wire.Channel: Service._channel,
    wire.Memory: Service._memory,
    wire.Capabilities: Service._capabilities,
    wire.Status: Service._status,
    wire.List: Service._list,
    wire.History: Service._history,
    wire.Cores: Service._cores,
    wire.Mint: Service._mint,
    wire.Revoke: Service._revoke,
    wire.Logs: Service._logs,
    wire.Cancel: Service._cancel,
    wire.Stop: Service._stop,
    wire.Audit: Service._audited,
}


def _checked(request: wire.SpawnProgram, fds: Sequence[int]) -> wire.SpawnProgram:
    """
    Raises:
        ManagerError: descriptors and what is said of them do not fit.
    """
    targets = [*request.targets, *request.kept]
    if len(fds) != len(request.targets) or len(set(targets)) != len(targets) or not all(0 <= target < 1024 for target in targets):
        raise ManagerError("SPAWN_ERR_SETUP_FDCAP", f"{len(fds)} descriptors came for the numbers {targets}: each once, 0 to 1023")
    if any(number not in (1, 2) for number in request.kept):
        raise ManagerError("SPAWN_ERR_SETUP_FDCAP", "only 1 and 2 can be kept in the log")
    if any(item.target not in request.targets for item in request.given):
        raise ManagerError("SPAWN_ERR_SETUP_ARGCN", "a handle came without its descriptor")
    return msgspec.structs.replace(request, startup=None)


def own_cores(store: Store, given: Iterable[int] | None) -> list[int]:
    """The cores that a manager is itself the spawn daemon of: those given, which are remembered; or remembered ones; or all it may run on.

    Raises:
        ManagerError: it may not run on one that was given.
    """
    allowed = os.sched_getaffinity(0)
    if given is not None:
        cores = sorted(set(given))
        if not allowed.issuperset(cores):
            which = ", ".join(str(core) for core in cores if core not in allowed)
            what = f"the manager cannot serve core {which}: it may run on {', '.join(map(str, sorted(allowed)))}"
            raise ManagerError("PROC_MGMT_ERR_INVALID_SPAWND", what)
        store.remember(OWN_CORES, json.dumps(cores))
        return cores
    remembered = store.fact(OWN_CORES)
    return sorted(allowed if remembered is None else allowed.intersection(json.loads(remembered)))


def _never() -> Ended:
    """The end of what has not begun."""
    return Ended(ExitStatus(LOST_STATUS, "lost", None), time.time())


def _exit(ended: Ended) -> list[Any]:
    return [ended.exit.code, ended.exit.reason, ended.exit.signal]


def _nothing(ended: Ended) -> None:
    return None


def _defect(error: Exception) -> ManagerError:
    traceback.print_exception(error)
    return ManagerError(
        "PROC_MGMT_ERR_SPAWND_REQUEST", f"a defect of the manager, of which its log tells more: {type(error).__name__}: {error}"
    )


def shown_bytes(name: bytes) -> str:
    """For people, and for what takes nothing but characters."""
    return name.decode("utf-8", "backslashreplace")


def _shortened(argv: list[bytes]) -> list[bytes]:
    """As much as people look at."""
    room, shown = ARGUMENTS_SHOWN, list[bytes]()
    for word in argv:
        if len(word) > room:
            return [*shown, word[:room] + b"..."]
        shown.append(word)
        room -= len(word) + 1
    return shown


def status_of(domain: Domain) -> dict[str, Any]:
    """What ps shows of a domain."""
    return {
        "id": domain.id,
        "name": domain.name,
        "state": domain.state.value,
        "argv": domain.argv,
        "cores": list(domain.pids),
        "pids": list(domain.pids.values()),
        "started_s": domain.started_s,
        "ended": None if domain.ended is None else domain.ended.to_dict(),
    }


def _from_history(row: Row) -> Domain:
    argv = row.argv.split(b"\0") if row.argv else []
    started_s = json.loads(row.about).get("started_s", 0.0)
    domain = Domain(row.id, row.key, row.slot, row.name, argv, {}, started_s, state=State.CLEANED)
    if row.ended is not None:
        told = json.loads(row.ended)
        told.pop("why", None)
        domain.ended = Ended.from_dict(told)
    return domain


def _command_line(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")[:-1]
    except OSError:
        return []
