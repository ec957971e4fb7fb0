"""The service: what a manager does for its clients, whatever they reach it by. For the loop's thread.

Every request is either carried out once or not at all: one that starts something has a key, which is remembered with the domain
before its first instruction, so that the same request sent again finds what the first has made.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from shoal.manager import wire
from shoal.manager.domains import LOST_STATUS, Domain, Ended, ExitStatus, State, ended_by
from shoal.manager.errors import ManagerError
from shoal.manager.layout import Layout, boot_identity
from shoal.manager.ledger import ASSIGNED, ENDED, ENDING, FREE, RUNNING, Slot
from shoal.manager.logs import names, state_of
from shoal.manager.spawnd import Kept, LocalSpawnd
from shoal.manager.store import Row, Store
from shoal.manager.watching import Watcher

HISTORY_MOST: Final = 10_000
"""How many domains that have ended are remembered; the oldest goes first."""
HISTORY_ROWS: Final = 1000
HISTORY_BYTES: Final = 1 << 20
"""How many of them are told in one answer, and how long their arguments may be in all."""
KILL_S: Final = 10.0
"""How long a kill may take before the one who asked is told that it does not work."""
SOON_S: Final = 5.0
"""How long a new manager waits for the inits of its domains before it listens; the others are found while it does."""
AUDIT_MOST: Final = 100_000
"""Entries kept of the audit log."""
_FLAGS_KNOWN: Final = 0b11  # NEW_DOMAIN and OMP


class Authority(Protocol):
    """What makes and checks capabilities."""

    def mint(self, domain: int) -> str: ...

    def check(self, token: str, right: str) -> int:
        """The domain that a token is for.

        Raises:
            ManagerError: it is not one of ours, has expired or was revoked, or lacks the right.
        """
        ...

    def revoke(self, domain: int) -> None: ...


class Caller(Protocol):
    """A client, as the service sees it.

    Attributes:
        who: for the audit log. manages: it has shown the manager capability.
    """

    who: str
    manages: bool

    def answer(self, rid: int, value: Any = None, fds: Sequence[int] = ()) -> None: ...

    def refuse(self, rid: int, error: ManagerError) -> None: ...


class Service:
    """One manager. `close()` leaves every domain running."""

    def __init__(self, loop: asyncio.AbstractEventLoop, layout: Layout, store: Store, authority: Authority) -> None:
        self._loop = loop
        self._layout = layout
        self._store = store
        self._authority = authority
        self._boot = boot_identity()
        self._watcher = Watcher(loop)
        self._spawnd = LocalSpawnd(loop, layout, self._ended)
        self._domains: dict[int, Domain] = {}
        self._kept: dict[int, Kept] = {}
        self._next = store.last_id() + 1
        self._requests: dict[str, asyncio.Future[Domain]] = {}
        self._endings: list[int] = []
        self._unwritten: dict[int, Ended] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[Caller, dict[int, Domain]] = {}
        self.stopped: asyncio.Future[None] = loop.create_future()

    # --- beginning and end ----------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Find again what an earlier manager has left."""
        slots = self._spawnd.ledger.all()
        alive = self._store.alive()
        rows = {each.slot: each for each in alive if each.boot == self._boot}
        for each in alive:
            if each.boot != self._boot:
                self._lost(each, "the machine was started anew")
        found: list[tuple[int, Slot, Row | None]] = []
        for number, slot in enumerate(slots):
            row = rows.pop(number) if number in rows else None
            if row is not None and (slot.id, slot.key) != (row.id, row.key):
                self._store.drop(row.id)  # it never began: nobody was told of it
                row = None
            if slot.state == FREE or self._boot != self._ledger_boot():
                self._spawnd.ledger.give_back(number) if slot.state != FREE else self._spawnd.ledger.offer(number)
            else:
                found.append((number, slot, row))
        for each in rows.values():  # beyond the ledger's end
            self._store.drop(each.id)
        self._store.remember("boot", self._boot)
        for one in found:
            self._begin(self._adopt_one(*one))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SOON_S)
        self._next = max(self._next, self._store.last_id() + 1, *(slot.id + 1 for slot in slots), 0)

    def _ledger_boot(self) -> str:
        return self._store.fact("boot") or self._boot

    async def _adopt_one(self, number: int, slot: Slot, row: Row | None) -> None:
        known = self._domains[slot.id] = self._remembered(row, number, slot)
        known.state = State.RUNNING if slot.state in (RUNNING, ENDING, ENDED) else State.NIL
        kept = None if slot.state == ENDED else await self._spawnd.adopt(number, slot)
        slot = self._spawnd.ledger.read(number)  # it may have ended meanwhile
        if kept is None and slot.state == ASSIGNED:
            self._spawnd.ledger.give_back(number)
            del self._domains[slot.id]
            known.not_started(ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"domain {slot.id} was not started"))
            if row is not None:
                self._store.drop(row.id)
            return
        if row is None:
            self._store.add(slot.id, slot.key, None, number, self._boot, known.name, "?", b"\0".join(known.argv), {})
        if kept is None:
            self._ended(slot.id)
        else:
            self._kept[slot.id] = kept
            if known.state is State.STOP_PENDING:  # somebody asked for it meanwhile
                kept.kill()

    def _remembered(self, row: Row | None, number: int, slot: Slot) -> Domain:
        if row is None:  # the database was lost
            argv = _command_line(slot.pid)
            name = os.path.basename(os.fsdecode(argv[0])) if argv else "?"
            return Domain(slot.id, slot.key, number, name, argv, {"?": slot.pid}, slot.started_ns / 1e9)
        core: int | str = int(row.core) if row.core.isdigit() else row.core
        return Domain(row.id, row.key, number, row.name, row.argv.split(b"\0") if row.argv else [], {core: slot.pid}, slot.started_ns / 1e9)

    def _lost(self, row: Row, why: str) -> None:
        ended = Ended(ExitStatus(LOST_STATUS, "lost", None), time.time())
        self._store.end([(row.id, ended.to_dict() | {"why": why})])

    def close(self) -> None:
        """Leave every domain alone, for the next manager."""
        for task in tuple(self._tasks):
            task.cancel()
        for kept in self._kept.values():
            kept.link.close()
        self._watcher.close()
        self._spawnd.close()
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
        for fd in fds:
            os.close(fd)
        try:
            _HANDLERS[type(request)](self, caller, request)
        except ManagerError as error:
            self._refused(caller, request, error)
            caller.refuse(request.rid, error)

    def left(self, caller: Caller) -> None:
        """A client has gone: nobody waits there any more."""
        for rid, domain in self._waiting.pop(caller, {}).items():
            domain.forget((caller, rid))

    def _begin(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refused(self, caller: Caller, request: wire.Request, error: ManagerError) -> None:
        if error.code in _AUDITED:
            self._audit(caller, request, error)

    def _audit(self, caller: Caller, request: wire.Request, error: ManagerError | None, domain: int | None = None) -> None:
        try:
            self._store.audit(time.time(), caller.who, type(request).__name__.lower(), domain, None if error is None else str(error))
        except ManagerError:
            pass  # a full disk keeps nobody from what still works

    # --- spawning ---------------------------------------------------------------------------------

    async def _spawn(self, caller: Caller, request: wire.SpawnProgram, fds: list[int]) -> None:
        try:
            domain = await self._spawned(request, fds)
        except ManagerError as error:
            caller.refuse(request.rid, error)
        except Exception as error:  # a defect of ours costs this request, not the manager
            caller.refuse(request.rid, ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"{type(error).__name__}: {error}"))
        else:
            self._audit(caller, request, None, domain.id)
            caller.answer(request.rid, [domain.id, self._authority.mint(domain.id)])
        finally:
            for fd in fds:
                os.close(fd)

    async def _spawned(self, request: wire.SpawnProgram, fds: Sequence[int]) -> Domain:
        if request.flags & ~_FLAGS_KNOWN:
            raise ManagerError("SPAWN_ERR_GET_CMDLINE_ARGS", f"flags {request.flags:#x}: bits beyond NEW_DOMAIN and OMP mean nothing")
        under_way = self._requests.get(request.key)
        if under_way is not None:
            return await asyncio.shield(under_way)
        before = self._store.by_request(request.key)
        if before is not None:
            return self._find(before)
        future = self._requests[request.key] = self._loop.create_future()
        try:
            domain = await self._start(request, fds)
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # whether anybody else waits or not
            raise
        else:
            future.set_result(domain)
            return domain
        finally:
            del self._requests[request.key]

    async def _start(self, request: wire.SpawnProgram, fds: Sequence[int]) -> Domain:
        seat = self._spawnd.new_seat(self._next)
        self._next += 1
        name = request.name if request.name is not None else os.path.basename(os.fsdecode(request.path))
        cwd = os.fsdecode(request.cwd)
        domain = Domain(seat.id, seat.key, seat.slot, name, request.argv, {}, time.time(), cwd)
        about = {"cwd": cwd, "path": os.fsdecode(request.path), "started_s": domain.started_s}
        try:
            argv = b"\0".join(request.argv)
            self._store.add(seat.id, seat.key, request.key, seat.slot, self._boot, name, str(request.core), argv, about)
        except ManagerError:
            self._spawnd.ledger.give_back(seat.slot)
            raise
        self._domains[seat.id] = domain
        try:
            kept = await self._spawnd.start(seat, request, fds)
        except BaseException as error:
            del self._domains[seat.id]
            self._spawnd.ledger.give_back(seat.slot)
            self._store.drop(seat.id)
            domain.not_started(ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"domain {seat.id} was not started: {error}"))
            raise
        self._kept[seat.id] = kept
        domain.running(request.core, kept.pid)
        if domain.state is State.STOP_PENDING:
            kept.kill()
        return domain

    # --- the end of domains -----------------------------------------------------------------------

    def _ended(self, id: int) -> None:
        """The init of a domain has ended. Those of one turn of the loop are written together."""
        if not self._endings:
            self._loop.call_soon(self._note_endings)
        self._endings.append(id)

    def _note_endings(self) -> None:
        endings, self._endings = self._endings, []
        done: list[Domain] = []
        for id in endings:
            self._kept.pop(id, None)
            domain = self._domains.get(id)
            if domain is None or domain.ended is not None:
                continue
            slot = self._spawnd.ledger.read(domain.slot)
            whole = slot.state == ENDED and slot.key == domain.key
            ended = ended_by(slot) if whole else Ended(ExitStatus(LOST_STATUS, "lost", None), time.time())
            self._unwritten[id] = ended
            domain.has_ended(ended)
            done.append(domain)
        self._write_endings()

    def _write_endings(self) -> None:
        """Into the database; only then their slots are free. What cannot be written now stays in the ledger, and is tried again."""
        if not self._unwritten:
            return
        try:
            self._store.end((id, ended.to_dict()) for id, ended in self._unwritten.items())
            self._store.forget(HISTORY_MOST)
        except ManagerError:
            self._loop.call_later(1.0, self._write_endings)
            return
        for id in self._unwritten:
            domain = self._domains.pop(id)
            domain.state = State.CLEANED
            self._spawnd.ledger.give_back(domain.slot)
        self._unwritten.clear()

    # --- finding ----------------------------------------------------------------------------------

    def _find(self, id: int) -> Domain:
        domain = self._domains.get(id)
        if domain is not None:
            return domain
        row = self._store.find(id)
        if row is None or row.ended is None:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_TABLE_FIND", f"there is no domain {id}")
        return _from_history(row)

    def _allowed(self, caller: Caller, which: str | int, right: str) -> Domain:
        """The domain a request is about.

        Raises:
            ManagerError: there is none, or the caller may not.
        """
        if isinstance(which, str):
            return self._find(self._authority.check(which, right))
        if not caller.manages:
            what = f"domain {which} by its number: that takes the manager capability; show the domain's own"
            raise ManagerError("PROC_MGMT_ERR_NOT_MONITOR", what)
        return self._find(which)

    # --- each request -----------------------------------------------------------------------------

    def _wait(self, caller: Caller, request: wire.Wait) -> None:
        domain = self._allowed(caller, request.domain, "wait")
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
        domain = self._allowed(caller, request.domain, "kill")
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
        domain = self._allowed(caller, request.domain, "signal")
        if not 1 <= request.number <= 64:
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_CAP_HASH", f"signal {request.number}: there are 1 to 64")
        domain.check_running()
        kept = self._kept.get(domain.id)
        if kept is None:
            raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"domain {domain.id} is being found again; try again")
        kept.send_signal(request.number)
        self._audit(caller, request, None, domain.id)
        caller.answer(request.rid)

    def _status(self, caller: Caller, request: wire.Status) -> None:
        caller.answer(request.rid, status_of(self._allowed(caller, request.domain, "status")))

    def _list(self, caller: Caller, request: wire.List) -> None:
        if not caller.manages:
            raise ManagerError("PROC_MGMT_ERR_NOT_MONITOR", "the list of all domains takes the manager capability")
        caller.answer(request.rid, [status_of(domain) for domain in self._domains.values()])

    def _history(self, caller: Caller, request: wire.History) -> None:
        if not caller.manages:
            raise ManagerError("PROC_MGMT_ERR_NOT_MONITOR", "the list of all domains takes the manager capability")
        found: list[dict[str, Any]] = []
        room = HISTORY_BYTES
        for row in self._store.ended(self._next if request.before is None else request.before, HISTORY_ROWS):
            room -= len(row.argv) + len(row.name)
            if found and room < 0:
                break
            found.append(status_of(_from_history(row)))
        caller.answer(request.rid, found)

    def _cores(self, caller: Caller, request: wire.Cores) -> None:
        caller.answer(request.rid, list(self._spawnd.cores))

    def _mint(self, caller: Caller, request: wire.Mint) -> None:
        domain = self._allowed(caller, request.domain, "")
        caller.answer(request.rid, self._authority.mint(domain.id))

    def _revoke(self, caller: Caller, request: wire.Revoke) -> None:
        domain = self._allowed(caller, request.domain, "")
        self._store.revoke(domain.id, time.time())
        self._authority.revoke(domain.id)
        self._audit(caller, request, None, domain.id)
        caller.answer(request.rid)

    def _logs(self, caller: Caller, request: wire.Logs) -> None:
        domain = self._allowed(caller, request.domain, "logs")
        who = (caller, request.rid)

        def look(outcome: object = None) -> None:
            if who not in domain.waiters and outcome is None:
                return  # it has been answered, or nobody waits any more
            if domain.ended is None and request.seen == state_of(self._layout.logs, domain.id):
                self._watcher.once(os.path.join(self._layout.logs, names(domain.id)[1]), look)
                return
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
        except ManagerError:
            domain.forget(who)
            raise

    def _answer_log(self, caller: Caller, rid: int, domain: Domain) -> None:
        fds = []
        state = state_of(self._layout.logs, domain.id)
        for name in names(domain.id):
            try:
                fds.append(os.open(os.path.join(self._layout.logs, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            except FileNotFoundError:
                continue
        try:
            caller.answer(rid, [domain.ended is not None, state], fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _cancel(self, caller: Caller, request: wire.Cancel) -> None:
        domain = self._waiting.get(caller, {}).pop(request.other, None)
        if domain is not None:
            domain.forget((caller, request.other))
        caller.answer(request.rid)

    def _stop(self, caller: Caller, request: wire.Stop) -> None:
        if not caller.manages:
            raise ManagerError("PROC_MGMT_ERR_NOT_MONITOR", "to stop the manager takes the manager capability")
        caller.answer(request.rid)
        self._audit(caller, request, None)
        self.stop()

    def _audited(self, caller: Caller, request: wire.Audit) -> None:
        if not caller.manages:
            raise ManagerError("PROC_MGMT_ERR_NOT_MONITOR", "the audit log takes the manager capability")
        caller.answer(request.rid, self._store.audited(request.count))


_AUDITED: Final = frozenset(("PROC_MGMT_ERR_DOMAIN_CAP_HASH", "PROC_MGMT_ERR_NOT_MONITOR"))
_HANDLERS: Final[dict[type, Callable[[Service, Caller, Any], None]]] = {
    wire.Wait: Service._wait,
    wire.Kill: Service._kill,
    wire.Signal: Service._signal,
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


def _exit(ended: Ended) -> list[Any]:
    return [ended.exit.code, ended.exit.reason, ended.exit.signal]


def _nothing(ended: Ended) -> None:
    return None


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
    import json

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
