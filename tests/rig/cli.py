"""The `shoal` command as its users meet it: from a script, and from a terminal with a person at it.

`shoal()` runs it to its end with pipes; `User` types at a real pseudo-terminal and reads what appears there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE_S = 30.0
"""Only a broken run ever waits this long."""

COMMAND = (sys.executable, "-m", "shoal")
ENVIRON = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "PS1": "$ ", "HISTFILE": "/dev/null"}


def shoal(*words: str | os.PathLike[str], **how: Any) -> subprocess.CompletedProcess[str]:
    """`shoal WORDS`, to its end."""
    how = {"capture_output": True, "text": True, "timeout": 120, "env": ENVIRON, "stdin": subprocess.DEVNULL} | how
    if how.get("input") is not None:
        del how["stdin"]
    return subprocess.run([*COMMAND, *words], check=False, **how)


def processes_with(marker: str) -> list[int]:
    """Every process that has `marker` among its words."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if marker.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found


def wait_running(marker: str, state: str = "") -> list[int]:
    """Wait for a process that has `marker` among its words: a shell tells of no event when its child has executed something.

    `state` is what proc_pid_stat(5) calls state: S sleeping, T stopped.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not (found := [pid for pid in processes_with(marker) if not state or _state(pid) == state]):
        assert time.monotonic() < deadline, f"nothing with {marker!r} was started"
        time.sleep(0.01)
    return found


def kill_all_with(marker: str) -> None:
    """SIGKILL to every process that has `marker` among its words, until a look finds none: one that forks may do so behind a look."""
    while found := processes_with(marker):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert wait_gone(found)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_gone(pids: Sequence[int]) -> bool:
    """Wait until none of the processes is left (a zombie counts as left); False when one stays."""
    deadline = time.monotonic() + PATIENCE_S
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
        finally:
            os.close(pidfd)
    return True


class User:
    """Somebody at a terminal of their own, with a command running there as the leader of its session."""

    def __init__(self, *command: str | os.PathLike[str], rows: int = 24, columns: int = 80, **how: Any) -> None:
        self.master, self.slave = os.openpty()  # ours stays open, so that a moment without any reader is no end
        self.name = os.ttyname(self.slave)
        self.seen = ""
        self.resize(rows, columns)
        self.settings = termios.tcgetattr(self.master)
        # A session's leader that has no terminal gets the first one it opens as its controlling one.
        leader = ["sh", "-c", 'exec "$@" < "$0" > "$0" 2>&1', self.name, *command]
        self.process = subprocess.Popen(leader, start_new_session=True, **({"env": ENVIRON} | how))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        self.process.wait(timeout=PATIENCE_S)
        self.hang_up()

    def hang_up(self) -> None:
        """Close the window."""
        for fd in {self.master, self.slave} - {-1}:
            os.close(fd)
        self.master = self.slave = -1

    def resize(self, rows: int, columns: int) -> None:
        """Change the window's size; the kernel tells the foreground group."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def expect(self, text: str) -> str:
        """Wait until `text` appears; everything up to and including it, which is then no longer looked at."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{text!r} did not appear; there was {self.seen!r}")
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def expect_settings(self, check: Any, what: str) -> None:
        """Wait until the terminal's settings satisfy `check`."""
        deadline = time.monotonic() + PATIENCE_S
        while not check(termios.tcgetattr(self.master)):
            if time.monotonic() > deadline:
                raise AssertionError(f"the terminal never became {what}: {termios.tcgetattr(self.master)}")
            self._read(0.02)  # no event tells of a change of settings

    def until_end(self) -> tuple[int, str]:
        """Wait for the command to end: its return code, and what was not looked at yet."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running; there was {self.seen!r}"
            self._read(0.05)
        while self._read(0.0):
            pass
        seen, self.seen = self.seen, ""
        return self.process.returncode, seen

    @property
    def is_as_found(self) -> bool:
        """True when the terminal has the settings it had at first."""
        return termios.tcgetattr(self.master) == self.settings

    def _read(self, left_s: float) -> bool:
        if not select.select([self.master], [], [], left_s)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # nobody holds the other side any more
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


def is_raw(settings: list[Any]) -> bool:
    """True when keys reach the reader as they are pressed, and unechoed."""
    return not settings[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def child_of(pid: int, name: str = "") -> int:
    """The one child of `pid` whose command line contains `name`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = [int(child) for child in children if name.encode() in Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")]
        if found:
            return found[0]
        time.sleep(0.01)  # /proc tells of no event
    raise AssertionError(f"process {pid} has no child {name!r}")
