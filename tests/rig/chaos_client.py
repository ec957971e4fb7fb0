"""One client of a manager that may die at any moment, as may this process: random requests, each written down before and after.

Run as a program by rig/chaos.py. A line of the journal is a JSON list: the number of the request, what happened to it, and more:
"asks" with what and about what; then "ok" with the answer, "refused" with code and message, "lost" when the connection was lost and it
may or may not have been carried out, or "bug" with what should never come out of a client.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import shoal.manager
from shoal import Sandbox
from shoal.manager import Domain, DomainRights, Manager, ManagerError, wire
from shoal.manager.boxes import to_text
from shoal.manager.connection import ConnectionLost

COUNTED = 40
"""A signal that queues, so that each one sent is one taken."""
AWAITED = signal.SIGUSR1
THREADS = 2
LINES = 60


def plans(pick: random.Random) -> list[str]:
    """The verbs of a program, which begins by saying that it runs, on descriptor 3; what else it reports is in its log."""
    begins = ["to", "3", "argv", "to", "1"]
    writes = ["lines", str(pick.choice((0, 0, 1, LINES)))]
    leaves = ["daemon", "4"] * pick.choice((0, 0, 0, 1, 3))
    ends = pick.choice(
        (
            ["exit", str(pick.choice((0, 1, 9, 77, 255)))],
            ["exit", str(pick.choice((0, 1, 9, 77, 255)))],
            ["kill", str(int(pick.choice((signal.SIGTERM, signal.SIGKILL))))],
            ["pause"],
            ["heed", str(COUNTED)],
            ["await", str(int(AWAITED)), "exit", "5"],
        )
    )
    return [*begins, *writes, *leaves, *ends]


class Journal:
    """Each line is one write, so that a killed writer leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, *words: Any) -> None:
        os.write(self._fd, json.dumps(words).encode() + b"\n")


class Known:
    """The domains that any client knows of, with their capabilities: a file that all append to."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._file = open(path, encoding="utf-8")  # noqa: SIM115  as long as this lives
        self.domains: list[tuple[str, str, str]] = []  # the request that made it, the token, and what it does in the end
        self._lock = threading.Lock()

    def add(self, op: str, token: str, ends: str) -> None:
        self._journal.write(op, token, ends)

    def pick(self, pick: random.Random) -> tuple[str, str, str] | None:
        with self._lock:
            for line in self._file:
                self.domains.append(tuple(json.loads(line)))
        # The newest are where something happens.
        return self.domains[-1 - int(pick.random() ** 3 * len(self.domains))] if self.domains else None


class Client:
    """One thread's share of it."""

    def __init__(self, name: str, seed: str, folder: Path, workload: str, effects: int, hold: int, manager: list[Manager]) -> None:
        self.name, self.pick, self.folder, self.workload = name, random.Random(seed), folder, workload
        self.fds = (effects, hold)
        self.count = 0
        self.journal = Journal(folder / f"journal-{name}")
        self.known = Known(folder / "domains")
        self.manager = manager  # shared with the other threads
        self.own: list[tuple[str, dict[str, Any]]] = []
        self.kinds: list[tuple[int, Callable[[], None]]] = [
            (30, self.spawn),
            (4, self.spawn_again),
            (14, self.wait),
            (14, self.look),
            (14, self.kill),
            (10, self.signal),
            (8, self.logs),
            (3, self.span),
            (6, self.command),
            (3, self.statuses),
            (3, self.narrowed),
            (2, self.revoke),
            (2, self.refused_spawn),
            (1, self.reconnect),
            (1, self.stop),
        ]

    def run(self, until: float) -> None:
        weights = [weight for weight, _ in self.kinds]
        while time.monotonic() < until:
            self.pick.choices(self.kinds, weights)[0][1]()

    def do(self, kind: str, about: Any, act: Callable[[], Any]) -> Any:
        """Carry out a request between two lines of the journal."""
        op = f"{self.name}.{self.count}"
        self.count += 1
        self.journal.write(op, "asks", kind, about, time.monotonic())
        return self.tell(op, act)

    def tell(self, op: str, act: Callable[[], Any]) -> Any:
        try:
            value = act()
        except ConnectionLost as error:
            self.journal.write(op, "lost", error.message)
        except ManagerError as error:
            self.journal.write(op, "refused", error.code, error.message)
        except TimeoutError:
            self.journal.write(op, "timeout")
        except BaseException:
            self.journal.write(op, "bug", traceback.format_exc())
            raise
        else:
            self.journal.write(op, "ok", value)
            return value
        return None

    # --- starting -------------------------------------------------------------------------------

    def spawn(self) -> None:
        boxed = self.pick.random() < 0.25
        op = f"{self.name}.{self.count}"
        request = {"key": f"{self.folder.name}:{op}", "verbs": plans(self.pick), "boxed": boxed, "core": self.pick.choice(CORES)}
        self.own.append((op, request))
        self.send(op, request)

    def spawn_again(self) -> None:
        """What was asked for before, as after a lost answer."""
        if self.own:
            op, request = self.pick.choice(self.own)
            self.do("again", op, lambda: spawn(self.manager[0], self.workload, op, request, self.fds)[0])

    def send(self, op: str, request: dict[str, Any]) -> None:
        def act() -> int:
            domain, token = spawn(self.manager[0], self.workload, op, request, self.fds)
            self.known.add(op, token, request["verbs"][-1])
            return domain

        self.do("spawn", request, act)

    def refused_spawn(self) -> None:
        request = {"key": f"{self.folder.name}:{self.name}.{self.count}", "verbs": [], "boxed": False, "core": self.pick.choice((0, 999))}
        op = f"{self.name}.{self.count}"
        self.do("refused spawn", request, lambda: spawn(self.manager[0], "/no/such/program", op, request, self.fds)[0])

    # --- a domain -------------------------------------------------------------------------------

    def about(self, kind: str, act: Callable[[Domain], Any]) -> Any:
        found = self.known.pick(self.pick)
        if found is None:
            return None
        op, token, _ = found
        return self.do(kind, op, lambda: act(self.manager[0].domain(token)))

    def wait(self) -> None:
        self.about("wait", lambda domain: shown(domain.wait(timeout=self.pick.choice((0.01, 0.2, 1.0)))))

    def look(self) -> None:
        self.about("wait", lambda domain: shown(domain.wait(nohang=True)))

    def kill(self) -> None:
        self.about("kill", lambda domain: domain.kill())

    def signal(self) -> None:
        number = self.pick.choice((COUNTED, COUNTED, int(AWAITED)))
        found = self.known.pick(self.pick)
        if found is not None:
            op, token, _ = found
            self.do("signal", [op, number], lambda: self.manager[0].domain(token).send_signal(number))

    def span(self) -> None:
        """Of a program that does nothing, since it is the same program that begins there."""
        found = self.known.pick(self.pick)
        if found is not None and found[2] == "pause":
            core = self.pick.choice(CORES)
            self.do("span", [found[0], core], lambda: self.manager[0].domain(found[1]).span(core))

    def command(self) -> None:
        def act(domain: Domain) -> Any:
            with domain.exec([self.workload, "exit", "7"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) as command:
                return shown(command.wait(timeout=60))

        self.about("command", act)

    def logs(self) -> None:
        self.about("logs", lambda domain: b"".join(domain.logs()).decode())

    def statuses(self) -> None:
        self.do("statuses", None, lambda: [[status.id, status.state] for status in self.manager[0].statuses()])

    def narrowed(self) -> None:
        """A capability for waiting is none for killing."""

        def act(domain: Domain) -> None:
            self.manager[0].domain(domain.cap.attenuate(DomainRights.WAIT)).kill()

        self.about("forbidden kill", act)

    def revoke(self) -> None:
        """Of a narrower one, which the others do not use."""

        def act(domain: Domain) -> str:
            narrow = domain.cap.attenuate(DomainRights.STATUS)
            self.manager[0].revoke(narrow)
            return narrow.to_token()

        token = self.about("revoke", act)
        if token is not None:
            self.do("revoked status", None, lambda: self.manager[0].domain(token).status().state)

    # --- the manager ----------------------------------------------------------------------------

    def reconnect(self) -> None:
        def act() -> None:
            fresh = shoal.manager.connect()
            old, self.manager[0] = self.manager[0], fresh
            old.close()

        self.do("reconnect", None, act)

    def stop(self) -> None:
        self.do("stop", None, self.manager[0].stop)


CORES = sorted(os.sched_getaffinity(0))


def shown(status: Any) -> Any:
    return None if status is None else [status.code, status.reason, status.signal]


def spawn(manager: Manager, workload: str, op: str, request: dict[str, Any], fds: tuple[int, int]) -> tuple[int, str]:
    """A spawn whose key is known beforehand: the number of the domain, and its capability."""
    folder = os.path.dirname(workload)
    box = to_text(Sandbox(read=[folder]), folder) if request["boxed"] else None

    def make(rid: int) -> wire.Request:
        return wire.SpawnProgram(
            rid,
            key=request["key"],
            core=request["core"],
            path=os.fsencode(workload),
            argv=[os.fsencode(word) for word in (op, *request["verbs"])],
            environ=[b"OP=" + op.encode()],
            cwd=b"/",
            targets=[3, 4],
            kept=[1, 2],
            name=None,
            flags=0,
            sandbox=box,
        )

    domain, token = manager._ask(make, fds)[0][:2]
    return domain, token


def main() -> None:
    name, seed, until, folder, workload, effects, hold = sys.argv[1:8]
    manager = [shoal.manager.connect()]
    clients = [
        Client(f"{name}{chr(97 + n)}", f"{seed}/{n}", Path(folder), workload, int(effects), int(hold), manager) for n in range(THREADS)
    ]
    threads = [threading.Thread(target=client.run, args=(float(until),)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with contextlib.suppress(ManagerError):
        manager[0].close()


if __name__ == "__main__":
    main()
