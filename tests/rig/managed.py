"""What a manager's state directory has on this machine: its processes, its files, its ledger. For tests; reads only, and kills by name."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal.manager
from shoal.manager import ledger
from shoal.manager.ledger import Slot

DOMAIN, NURSERY = "shoal-domain", "shoal-nursery"
_LEDGER_FD = 6  # of a nursery and of an init: src/native/domain.h


def manager_pid(state: Path) -> int | None:
    """The daemon that has the directory, if one lives."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((state / "lock").read_text())
        if os.fsencode(state) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return pid
    return None


def processes(state: Path, name: str) -> list[int]:
    """Inits, or nurseries, of any manager the directory has had."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if (
                entry.isdigit()
                and Path(f"/proc/{entry}/comm").read_text().strip() == name
                and os.readlink(f"/proc/{entry}/fd/{_LEDGER_FD}") == str(state / "ledger")
            ):
                found.append(int(entry))
    # An init is called as its nursery is until it has its own name.
    return [pid for pid in found if name != NURSERY or parent_of(pid) not in found]


def running(path: str) -> list[int]:
    """Processes that execute the file at `path`, whatever they call themselves."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.path.samefile(f"/proc/{entry}/exe", path):
                found.append(int(entry))
    return found


def slots(state: Path) -> dict[int, Slot]:
    """What is in the ledger, without what nobody has."""
    data = (state / "ledger").read_bytes()
    whole = data[: len(data) // ledger.SIZE * ledger.SIZE]
    found = (Slot(*fields) for fields in ledger._SLOT.iter_unpack(whole))
    return {number: slot for number, slot in enumerate(found) if slot.state != ledger.FREE}


def start_time(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return None


def parent_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def state_of(pid: int) -> str | None:
    """The letter of proc_pid_stat(5); None: there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return None


@contextlib.contextmanager
def held(pid: int) -> Iterator[int | None]:
    """A pidfd, or None when the process is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def kill(pid: int, number: int = signal.SIGKILL, *, started: int | None = None) -> bool:
    """Whether it was there. started: what `start_time()` has to say of it, lest it be another one by now."""
    with held(pid) as pidfd:
        if pidfd is None or (started is not None and start_time(pid) != started):
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
            return True
        return False


def wait_gone(pid: int, patience_s: float = 30.0) -> None:
    """
    Raises:
        TimeoutError: it is still there.
    """
    with held(pid) as pidfd:
        if pidfd is not None and not select.select([pidfd], [], [], patience_s)[0]:
            raise TimeoutError(f"process {pid} is still there: {Path(f'/proc/{pid}/stat').read_text()}")


@contextlib.contextmanager
def state_directory(set_env: Callable[[str, str], None]) -> Iterator[Path]:
    """A state directory of its own, named by $SHOAL_STATE_DIR; what is left in it of domains is ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="shoal-manager-") as directory:
        set_env("SHOAL_STATE_DIR", directory)
        state = Path(directory).resolve()
        try:
            yield state
        finally:
            end_all(state)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same for a test. A module that wants it says `state = managed.state`."""
    with state_directory(monkeypatch.setenv) as directory:
        yield directory


@pytest.fixture
def manager(state: Path) -> Iterator[shoal.manager.Manager]:
    """A client of the daemon of that directory."""
    with shoal.manager.connect() as made:
        yield made


def end_all(state: Path) -> None:
    """End the manager, all domains, and all nurseries, whatever state they are in."""
    daemon = manager_pid(state)
    if daemon is not None:
        kill(daemon)
        wait_gone(daemon)
    for name in (DOMAIN, NURSERY):
        for pid in processes(state, name):
            kill(pid)
            wait_gone(pid)


def init_of(state: Path, domain: int) -> int:
    """The process that is a living domain's init."""
    return next(slot.init_pid for slot in slots(state).values() if slot.id == domain)


def wait_until(what: Callable[[], Any], patience_s: float = 30.0) -> Any:
    """Of what nothing tells. Gives what `what` gave."""
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError("it is still not so")
        time.sleep(0.005)
    return found


def stop(pid: int) -> None:
    """Stop a process, and return when it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) in ("T", "Z", None))


def replace(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrite a file in place."""
    with open(path, "r+b") as file:
        data = change(file.read())
        file.seek(0)
        file.write(data)
        file.truncate()
