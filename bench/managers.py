"""A manager for the time of a question: a daemon with directories of its own, as a user has them, and nothing left of it afterwards.

The state is on the disk, and the sockets where systemd has them: in memory, if there is a place for that.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from timing import CaseFailed

from shoal.manager import ManagerError, connect
from shoal.manager.layout import Layout
from shoal.manager.ledger import FREE, Ledger

VARIABLES = ("SHOAL_STATE_DIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
KILLERS = 8


class Daemon:
    """Starts when somebody connects; $XDG_STATE_HOME and $XDG_RUNTIME_DIR say where."""

    def __enter__(self) -> Self:
        self._before = {name: os.environ.get(name) for name in VARIABLES}
        in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._state = tempfile.mkdtemp(prefix="shoal-bench-state-")
        self._run = tempfile.mkdtemp(prefix="shoal-bench-run-", dir=in_memory)
        os.environ.pop("SHOAL_STATE_DIR", None)
        os.environ["XDG_STATE_HOME"], os.environ["XDG_RUNTIME_DIR"] = self._state, self._run
        self._layout = Layout.of()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._end()
        finally:
            for name, value in self._before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            shutil.rmtree(self._state)
            shutil.rmtree(self._run)

    def pid(self) -> int:
        """Of the one that runs."""
        return int(Path(self._layout.lock).read_text())

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid()}/fd"))

    def inits(self) -> list[int]:
        """Of its domains."""
        ledger = Ledger(self._layout.ledger)
        try:
            return [slot.init_pid for slot in ledger.all() if slot.state != FREE]
        finally:
            ledger.close()

    def kill(self) -> None:
        """kill -9; returns when it has gone."""
        pid = self.pid()
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [])
        finally:
            os.close(pidfd)

    def _end(self) -> None:
        with connect() as manager:
            left = manager.domains()

            def work(first: int) -> None:
                for id in left[first::KILLERS]:
                    try:
                        manager.domain(id).kill()
                    except ManagerError:
                        pass  # it has ended

            killers = [threading.Thread(target=work, args=(first,)) for first in range(KILLERS)]
            for killer in killers:
                killer.start()
            for killer in killers:
                killer.join()
            pidfd = os.pidfd_open(self.pid())
            try:
                manager.stop()
                select.select([pidfd], [], [], 30)
            finally:
                os.close(pidfd)


def command(*words: str) -> None:
    """The command line, whose output is read and thrown away."""
    told = subprocess.run([sys.executable, "-m", "shoal", *words], stdout=subprocess.PIPE, check=False)
    if told.returncode != 0 or not told.stdout:
        raise CaseFailed(f"shoal {' '.join(words)} ended with {told.returncode}")


def private_kib(pid: int) -> float:
    """Memory that a process shares with nobody."""
    fields = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    return float(sum(int(words[1]) for words in fields if words[0] in ("Private_Clean:", "Private_Dirty:")))
