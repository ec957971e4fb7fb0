"""Chaos: clients at work while everything around them is killed, and a model of what must be true afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shoal.manager
from rig import managed
from rig.chaos_client import AWAITED, CORES, COUNTED, spawn
from shoal.manager import Manager, ManagerError
from shoal.manager.ledger import ENDED

SETTLE_S = 60.0
"""How long what was begun may take to be done. Only a defect ever waits this long."""
CLIENTS = 3
NEITHER_DONE_NOR_REFUSED = ("lost", "timeout", "asks")


COMMAND_ENDS = ([7, "exited", None], [9, "killed", 9], [255, "lost", None])
"""Of a command that exits with 7: as it does, with its domain, with the init of that."""


@dataclass
class Request:
    """What one client asked for, and what came of it."""

    op: str
    kind: str
    about: Any
    at: float
    outcome: str = "asks"  # killed before there was any
    values: list[Any] = field(default_factory=list)

    @property
    def may_be_done(self) -> bool:
        return self.outcome == "ok" or self.outcome in NEITHER_DONE_NOR_REFUSED

    @property
    def value(self) -> Any:
        return self.values[0] if self.outcome == "ok" and self.values else None


class Chaos:
    """One run.

    Args:
        state: the state directory, named by $SHOAL_STATE_DIR as well. folder: for the journals.
    """

    def __init__(self, seed: str, state: Path, folder: Path, workload: str) -> None:
        self.seed, self.state, self.folder, self.workload = seed, state, folder, workload
        self.pick = random.Random(seed)
        self.effects = os.open(folder / "effects", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.hold, self._held = os.pipe2(os.O_CLOEXEC)
        self.inits_killed: set[int] = set()
        self.abandoned: set[int] = set()
        """Domains whose init was killed when its nursery was gone, so that nobody ends what they have left behind."""
        self.killed: Counter[str] = Counter()
        self._clients: dict[int, subprocess.Popen[bytes]] = {}
        self._started = 0
        self._spawnd: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        self.end_spawnd()
        for client in self._clients.values():
            client.kill()
            client.wait()
        for fd in (self.effects, self.hold, self._held):
            os.close(fd)

    # --- at work ----------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        if len(CORES) > 1:  # the last of them is served by a spawn daemon of its own
            shoal.manager.embedded(str(self.state), cores=CORES[:-1]).close()
            self._start_spawnd()
        until = time.monotonic() + seconds
        targets = [
            (2.0, self.kill_spawnd),
            (1.2, self.kill_manager),
            (1.5, self.kill_init),
            (2.5, self.kill_nursery),
            (2.0, self.kill_client),
        ]
        due = [(time.monotonic() + 1 + self.pick.expovariate(1 / mean), mean, act) for mean, act in targets]
        for _ in range(CLIENTS):
            self._start_client(until)
        while (now := time.monotonic()) < until:
            due.sort(key=lambda each: each[0])
            at, mean, act = due[0]
            if at > now:
                time.sleep(min(at, until) - now)  # the moment is drawn, there is nothing to wait for
                continue
            act(until)
            due[0] = (time.monotonic() + self.pick.expovariate(1 / mean), mean, act)
        for client in self._clients.values():
            self._await(client)
        self._clients.clear()

    def _await(self, client: subprocess.Popen[bytes]) -> None:
        try:
            client.wait(timeout=SETTLE_S)
        except subprocess.TimeoutExpired:
            client.send_signal(signal.SIGABRT)  # and so says where it hangs
            manager = managed.manager_pid(self.state)
            if manager is not None:
                managed.kill(manager, signal.SIGABRT)
                managed.wait_gone(manager)
            client.wait()
            said = (self.folder / "clients.log").read_text() + (self.state / "manager.log").read_text()
            open_requests = [each for each in self.requests().values() if each.outcome == "asks"]
            raise AssertionError(f"a client hangs in {open_requests[-6:]}:\n{said}") from None

    def _start_client(self, until: float) -> None:
        self._started += 1
        name = f"c{self._started}"
        words = [name, f"{self.seed}/{name}", str(until), str(self.folder), self.workload, str(self.effects), str(self.hold)]
        with open(self.folder / "clients.log", "ab") as log:
            client = subprocess.Popen(
                [sys.executable, "-m", "rig.chaos_client", *words],
                env=os.environ | {"PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
                pass_fds=(self.effects, self.hold),
                stderr=log,
            )
        self._clients[client.pid] = client

    def _start_spawnd(self) -> None:
        words = [str(self.state), str(self.state / "run"), str(self.state / "run" / "spawnd"), str(CORES[-1])]
        with open(self.folder / "spawnds.log", "ab") as log:
            self._spawnd = subprocess.Popen([sys.executable, "-m", "shoal.manager.spawnd", *words], stderr=log)

    def end_spawnd(self) -> None:
        if self._spawnd is not None:
            self._spawnd.kill()
            self._spawnd.wait()
            (self.state / "run" / "spawnd").unlink(missing_ok=True)

    def kill_spawnd(self, until: float) -> None:
        """And start another one in its place."""
        if self._spawnd is not None:
            self._spawnd.kill()
            self.killed["spawnd" if self._spawnd.wait() < 0 else "spawnd that found no manager"] += 1
            self._start_spawnd()

    def await_spawnd(self, manager: Manager) -> None:
        """Until all cores are served."""
        deadline = time.monotonic() + SETTLE_S
        while self._spawnd is not None and CORES[-1] not in manager.cores():
            assert time.monotonic() < deadline
            if self._spawnd.poll() is not None:  # its manager was killed when it told it
                self._start_spawnd()
            with contextlib.suppress(TimeoutError):
                manager.names.lookup(f"proc_mgmt.{CORES[-1]}.ready", timeout=1)

    def kill_manager(self, until: float) -> None:
        pid = managed.manager_pid(self.state)
        if pid is not None and managed.kill(pid):
            self.killed["manager"] += 1

    def kill_nursery(self, until: float) -> None:
        found = managed.processes(self.state, managed.NURSERY)
        if found and managed.kill(self.pick.choice(found)):
            self.killed["nursery"] += 1

    def kill_init(self, until: float) -> None:
        """Of a domain, or one that waits for its domain."""
        found = managed.processes(self.state, managed.DOMAIN)
        if not found:
            return
        pid = self.pick.choice(found)
        started = managed.start_time(pid)
        with managed.held(pid) as pidfd:
            if pidfd is None:
                return
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)  # what it has written is final then
            while managed.state_of(pid) not in ("T", "Z", None):
                os.sched_yield()
            whose = [slot.id for slot in managed.slots(self.state).values() if (slot.init_pid, slot.init_start) == (pid, started)]
            ended = [slot for slot in managed.slots(self.state).values() if slot.id in whose and slot.state == ENDED]
            self.inits_killed.update(whose if not ended else ())
            if managed.parent_of(pid) not in managed.processes(self.state, managed.NURSERY):
                self.abandoned.update(whose)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                self.killed["init" if whose else "waiting init"] += 1

    def kill_client(self, until: float) -> None:
        pid = self.pick.choice(list(self._clients))
        client = self._clients.pop(pid)
        client.kill()
        client.wait()
        self.killed["client"] += 1
        self._start_client(until)

    # --- what came of it ----------------------------------------------------------------------------

    def requests(self) -> dict[str, Request]:
        """In the order in which they were begun."""
        found: dict[str, Request] = {}
        for path in self.folder.glob("journal-*"):
            for line in path.read_text().splitlines():
                op, what, *rest = json.loads(line)
                if what == "asks":
                    found[op] = Request(op, rest[0], rest[1], rest[2])
                else:
                    found[op].outcome, found[op].values = what, rest
        return dict(sorted(found.items(), key=lambda item: item[1].at))

    def begun(self) -> Counter[str]:
        """How often the program of each request began."""
        lines = (self.folder / "effects").read_bytes().splitlines()
        return Counter(line.split()[1].decode() for line in lines if line.startswith(b"argv "))


class Model:
    """What must be true, compared with what is. `wrong` says in sentences where they differ."""

    def __init__(self, chaos: Chaos, manager: Manager) -> None:
        self.chaos, self.manager = chaos, manager
        self.requests = chaos.requests()
        self.wrong: list[str] = []
        self.domains: dict[str, int] = {}
        self.by_op: dict[str, list[Request]] = defaultdict(list)
        for request in self.requests.values():
            about = request.about[0] if request.kind in ("signal", "span") else request.about
            if isinstance(about, str):
                self.by_op[about].append(request)

    def compare(self) -> list[str]:
        self._check_outcomes()
        self.chaos.await_spawnd(self.manager)
        self._find_domains()
        self._check_the_list()
        for op, id in self.domains.items():
            self._check_domain(op, id)
        return self.wrong

    def say(self, what: str) -> None:
        self.wrong.append(what)

    # --- each answer on its own -----------------------------------------------------------------------

    def _check_outcomes(self) -> None:
        for request in self.requests.values():
            if request.outcome == "bug":
                self.say(f"{request.op} ({request.kind}): {request.values[0]}")
            elif request.outcome == "refused" and not self._may_be_refused(request):
                self.say(f"{request.op} ({request.kind} {request.about}) was refused: {request.values}")
            elif request.outcome == "ok" and request.kind in ("refused spawn", "forbidden kill", "revoked status"):
                self.say(f"{request.op} ({request.kind} {request.about}) was carried out: {request.values}")
            elif request.outcome == "ok" and request.kind == "command" and request.value not in COMMAND_ENDS:
                self.say(f"{request.op} (a command of {request.about}) ended as {request.value}")

    def _may_be_refused(self, request: Request) -> bool:
        code, message = request.values
        if request.kind in ("spawn", "again", "span", "refused spawn") and (
            (code == "PROC_MGMT_ERR_INVALID_SPAWND" and f"core {CORES[-1]} has no spawn daemon" in message)
            or (code == "PROC_MGMT_ERR_SPAWND_REQUEST" and message.startswith("the spawn daemon at"))
        ):
            return len(CORES) > 1
        if message == "this Manager is closed":  # by another thread of the client, which has connected anew
            return True
        if request.kind == "refused spawn":
            return code in ("SPAWN_ERR_LOAD", "PROC_MGMT_ERR_INVALID_SPAWND")
        if request.kind in ("forbidden kill", "revoked status"):
            return code == "PROC_MGMT_ERR_DOMAIN_CAP_HASH"
        if request.kind in ("wait",):
            return False
        if request.kind in ("kill", "signal"):
            return code == "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING" or "is being found again" in message
        if request.kind == "span":
            if code in ("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", "PROC_MGMT_ERR_ALREADY_SPANNED", "SPAWN_ERR_SPAN"):
                return True
            return bool(self.chaos.killed["init"]) and "init was killed meanwhile" in message
        if request.kind == "command":
            if code in ("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", "SPAWN_ERR_SPAN"):
                return True
            return "has not begun" in message or (bool(self.chaos.killed["init"]) and "init was killed meanwhile" in message)
        if request.kind in ("spawn", "again"):
            return "init was killed meanwhile" in message and bool(self.chaos.killed["init"] + self.chaos.killed["waiting init"])
        return False

    # --- domains ------------------------------------------------------------------------------------

    def _find_domains(self) -> None:
        """The domain of each spawn. One of which nobody knows whether it was carried out is asked for again, by its key."""
        begun = self.chaos.begun()
        for op, request in self.requests.items():
            if request.kind != "spawn" or (
                request.outcome == "refused" and op not in {r.about for r in self.by_op[op] if r.kind == "again"}
            ):
                if request.kind == "spawn" and begun[op]:
                    self.say(f"{op} was refused, and its program began {begun[op]} times: {request.values}")
                continue
            try:
                id, _ = spawn(self.manager, self.chaos.workload, op, request.about, (self.chaos.effects, self.chaos.hold))
            except ManagerError as error:
                self.say(f"{op} ({request.outcome} {request.values}), asked for again, was refused: {error}")
                continue
            self.domains[op] = id
            for told in (request, *(each for each in self.by_op[op] if each.kind == "again")):
                if told.outcome == "ok" and told.value != id:
                    self.say(f"{op} is domain {id} now and was {told.value}")
        begun = self.chaos.begun()
        if len(set(self.domains.values())) != len(self.domains):
            self.say(f"one domain for two requests: {self.domains}")
        deadline = time.monotonic() + SETTLE_S
        while (
            any(not begun[op] and not self._may_not_have_begun(op, id) for op, id in self.domains.items()) and time.monotonic() < deadline
        ):
            time.sleep(0.05)  # a program that was executed just now has still to say so
            begun = self.chaos.begun()
        for op, id in self.domains.items():
            if begun[op] != 1 and not (begun[op] == 0 and self._may_not_have_begun(op, id)):
                self.say(f"the program of {op}, domain {id}, began {begun[op]} times; {self._history(op)}")

    def _may_not_have_begun(self, op: str, id: int) -> bool:
        """It may have been executed, and ended before it could say so."""
        return id in self.chaos.inits_killed or any(each.kind in ("kill", "signal") and each.may_be_done for each in self.by_op[op])

    def _check_the_list(self) -> None:
        for status in self.manager.statuses():
            if status.id not in self.domains.values():
                self.say(f"domain {status.id} is nobody's: {status}")

    def _check_domain(self, op: str, id: int) -> None:
        expected = self._expected(op, id)
        domain = self.manager.domain(id)
        try:
            ended = domain.wait(timeout=SETTLE_S) if None not in expected else domain.wait(nohang=True)
        except TimeoutError:
            self.say(f"domain {id} of {op} has not ended; {self._history(op)}; {self.manager.status(id)}")
            return
        found = None if ended is None else (ended.code, ended.reason, ended.signal)
        if found not in expected:
            self.say(f"domain {id} of {op} ended as {found}, not as {expected}; {self._history(op)}")
        for each in self.by_op[op]:
            if each.kind == "wait" and each.value is not None and tuple(each.value) != found:
                self.say(f"domain {id} of {op} ended as {found}, and {each.op} was told {each.value}")
        if found is None:
            self._check_dispatchers(op, id)
        self._check_log(op, id, found)

    def _check_dispatchers(self, op: str, id: int) -> None:
        """Those that it is said to have are there, and no others."""
        status = self.manager.status(id)
        first = self.requests[op].about["core"]
        spans = [each for each in self.by_op[op] if each.kind == "span"]
        surely = {first, *(each.about[1] for each in spans if each.outcome == "ok")}
        maybe = surely | {each.about[1] for each in spans if each.may_be_done}
        if not surely <= set(status.cores) <= maybe:
            self.say(f"domain {id} of {op} has dispatchers on {status.cores}, not on {surely} to {maybe}; {self._history(op)}")
        init = managed.init_of(self.chaos.state, id)
        of_program = [pid for pid in managed.running(self.chaos.workload) if managed.parent_of(pid) == init and told(pid)[:1] == [op]]
        alive = sorted(pid for pid in of_program if "daemon" not in told(pid) or pid in status.pids)
        if alive != sorted(status.pids):
            self.say(f"domain {id} of {op} has dispatchers {status.pids}, and its processes are {alive}; {self._history(op)}")

    def _expected(self, op: str, id: int) -> set[tuple[Any, ...] | None]:
        """How it may have ended."""
        verbs = self.requests[op].about["verbs"]
        plan = " ".join(verbs)
        found: set[tuple[Any, ...] | None] = set()
        if ending := re.search(r"(?<!await )\bexit (\d+)$", plan):
            found.add((int(ending[1]), "exited", None))
        elif ending := re.search(r"\bkill (\d+)$", plan):
            found.add((128 + int(ending[1]), "signaled", int(ending[1])))
        asked = [each for each in self.by_op[op] if each.may_be_done]
        signals = {each.about[1] for each in asked if each.kind == "signal"}
        found |= {(128 + number, "signaled", number) for number in signals}
        if "await" in verbs:
            found = ({(5, "exited", None)} if AWAITED in signals else set()) | {each for each in found if each != (5, "exited", None)}
        was_killed = any(each.kind == "kill" for each in asked)
        if was_killed:
            found.add((9, "killed", 9))
        if id in self.chaos.inits_killed:
            found.add((255, "lost", None))
        runs_for_ever = verbs[-1] in ("pause", str(COUNTED)) or "await" in verbs
        surely_ended = any(each.kind == "kill" and each.outcome == "ok" for each in asked)
        if runs_for_ever and not surely_ended and id not in self.chaos.inits_killed:
            found.add(None)
        return found

    def _check_log(self, op: str, id: int, found: tuple[Any, ...] | None) -> None:
        verbs = self.requests[op].about["verbs"]
        domain = self.manager.domain(id)
        heeds = verbs[-1] == str(COUNTED)
        signals = [each for each in self.by_op[op] if each.kind == "signal" and each.about[1] == COUNTED]
        surely = sum(each.outcome == "ok" for each in signals)
        deadline = time.monotonic() + SETTLE_S
        while True:
            text = {stream: b"".join(domain.logs(stream=stream)).decode() for stream in ("stdout", "stderr")}
            heeded = text["stdout"].count(f"heed {COUNTED} ok")
            if found is not None or not heeds or heeded >= surely or time.monotonic() > deadline:
                break
            time.sleep(0.05)  # the program was signalled just now
        if heeds and (heeded > sum(each.may_be_done for each in signals) or (found is None and heeded < surely)):
            self.say(f"domain {id} of {op} was signalled {surely} times for sure and took {heeded}; {self._history(op)}")
        if any(each.kind == "span" and each.may_be_done for each in self.by_op[op]):
            return  # another one may have written the same
        count = int(verbs[verbs.index("lines") + 1])
        whole = found is not None and found[1] in ("exited",)
        for stream, offset in (("stdout", 0), ("stderr", 1)):
            numbers = [int(line.split()[1]) for line in text[stream].splitlines() if line.startswith("line ")]
            wanted = list(range(offset, count, 2))
            if numbers != (wanted if whole else wanted[: len(numbers)]):
                self.say(f"the {stream} of domain {id} of {op}, which ended as {found}, has lines {numbers} of {count}")

    def _history(self, op: str) -> str:
        told = [
            f"{each.op} {each.kind} {each.outcome} {each.values}" for each in (self.requests[op], *self.by_op[op]) if each.kind != "logs"
        ]
        killed = " its init was killed;" if self.domains.get(op) in self.chaos.inits_killed else ""
        return f"{self.requests[op].about};{killed} {told}"


@contextlib.contextmanager
def chaos(seed: str, state: Path, folder: Path, workload: str) -> Iterator[Chaos]:
    made = Chaos(seed, state, folder, workload)
    try:
        yield made
    finally:
        made.close()


def leftovers(state: Path, workload: str, model: Model) -> list[str]:
    """What should not be there once every domain has ended and the manager was stopped."""
    abandoned = {op for op, id in model.domains.items() if id in model.chaos.abandoned}
    found = [
        f"process {pid} still runs the program {told(pid)}"
        for pid in managed.running(workload)
        if not told(pid) or told(pid)[0] not in abandoned
    ]
    for name in (managed.DOMAIN, managed.NURSERY):
        found += [f"{name} {pid} is left" for pid in managed.processes(state, name) if managed.state_of(pid) != "Z"]
    found += [f"slot {number} is not free: {slot}" for number, slot in managed.slots(state).items()]
    found += [f"{path} is left" for path in (state / "run").iterdir()]
    known = {
        "lock",
        "manager.db",
        "manager.db-wal",
        "manager.db-shm",
        "ledger",
        "logs",
        "run",
        "manager.cap",
        "manager.log",
        "root.key",
        "starting",
    }
    found += [f"{path} is left" for path in state.iterdir() if path.name not in known]
    return found


def told(pid: int) -> list[str]:
    """Its arguments."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    return []


def forget_everything(manager: Manager) -> None:
    """End all domains."""
    for status in manager.statuses():
        with contextlib.suppress(ManagerError):
            manager.domain(status.id).kill()


def connect() -> Manager:
    return shoal.manager.connect(timeout="60s")
