"""The workload: tests/workload.c compiled once per session, and what it reports.

`observe()` starts it through a launcher with a pipe for its report and returns once the whole of it has been read and
the program has ended. Tests that talk to a program while it runs use `Reporting` directly.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from shoal import Action, CloneFd, Process, SpawnFlags

SOURCE = Path(__file__).parent.parent / "workload.c"
PATIENCE_S = 30.0
"""How long a program may take to say something. Only a broken run ever waits this long."""

NOTHING = SpawnFlags(0)
Launch = Callable[..., Process]


def build_workload(folder: Path, *, static: bool) -> str:
    """Compile the workload into `folder` and return its path."""
    target = folder / ("workload" if static else "workload-dynamic")
    options = ["-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"] + (["-static"] if static else [])
    subprocess.run(["gcc", *options, str(SOURCE), "-o", str(target)], check=True)
    target.chmod(0o755)
    return str(target)


@dataclass(frozen=True)
class ChildFd:
    """One descriptor as the program itself sees it."""

    kind: str
    dev: int
    ino: int
    rdev: int
    flags: int
    cloexec: bool

    @property
    def is_null(self) -> bool:
        return self.kind == "char" and self.rdev == os.makedev(1, 3)

    def same_object(self, fd: int) -> bool:
        """True when `fd` of this process refers to the same inode."""
        st = os.fstat(fd)
        return (self.dev, self.ino) == (st.st_dev, st.st_ino)


class Report:
    """The lines a workload wrote, each a list of words; any byte outside ASCII is a surrogate, as in os.fsdecode."""

    def __init__(self, data: bytes, returncode: int | None = None) -> None:
        self.returncode = returncode
        self.lines = [[os.fsdecode(unquote_to_bytes(word)) for word in line.split(b" ")] for line in data.splitlines()]

    def all(self, *start: str) -> list[list[str]]:
        """The rest of every line that begins with these words."""
        return [line[len(start) :] for line in self.lines if tuple(line[: len(start)]) == start]

    def one(self, *start: str) -> list[str]:
        """The rest of the only line that begins with these words."""
        found = self.all(*start)
        assert len(found) == 1, f"{len(found)} lines begin with {start}: {self.lines}"
        return found[0]

    def ok(self, *start: str) -> bool:
        """Whether that verb succeeded there."""
        return self.one(*start)[0] == "ok"

    def errno(self, *start: str) -> int:
        """The errno with which that verb failed; 0 when it succeeded."""
        first = self.one(*start)[0]
        return 0 if first == "ok" else int(first)

    def fds(self) -> dict[int, ChildFd]:
        """What `fds` found, without the descriptor that carries the report."""
        found = {}
        for number, kind, dev, ino, rdev, flags, cloexec in self.all("fd"):
            found[int(number)] = ChildFd(kind, int(dev), int(ino), int(rdev), int(flags), cloexec != "0")
        return found

    def env(self) -> list[str]:
        """The environment strings, in order."""
        return [words[0] for words in self.all("env")]

    def variables(self) -> dict[str, str]:
        """The environment as a mapping."""
        return dict(entry.split("=", 1) for entry in self.env())


def _above_stdio(fd: int) -> int:
    """The same object under a number that is not a standard one; tests close those."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


class Reporting:
    """A pipe on which a workload reports; `out` is the number it has in the program."""

    def __init__(self, out: int = 1) -> None:
        self.out = out
        self.read_end, self._write_end = (_above_stdio(fd) for fd in os.pipe())
        self._pending = b""

    def action(self) -> Action:
        """Hands the write end over (as a clone: `started()` closes ours)."""
        return CloneFd(self._write_end, self.out)

    def started(self) -> None:
        """Close our write end, so that the end of the program is the end of the report."""
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1

    def line(self, timeout_s: float = PATIENCE_S) -> list[str]:
        """The next line. Raises EOFError when the program has closed its report, TimeoutError when it stays silent."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            data = self._more(deadline)
            if not data:
                raise EOFError(f"the program closed its report; left over: {self._pending!r}")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return Report(line).lines[0]

    def rest(self, timeout_s: float = PATIENCE_S) -> bytes:
        """Everything up to the end. Comes back when every process that holds the report has closed it."""
        deadline = time.monotonic() + timeout_s
        while data := self._more(deadline):
            self._pending += data
        data, self._pending = self._pending, b""
        return data

    def _more(self, deadline: float) -> bytes:
        if not select.select([self.read_end], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"the program said nothing more; so far: {self._pending!r}")
        return os.read(self.read_end, 1 << 16)

    def close(self) -> None:
        self.started()
        os.close(self.read_end)

    def __enter__(self) -> Reporting:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def observe(
    launch: Launch,
    program: Any,
    *verbs: str | bytes | int,
    flags: SpawnFlags = NOTHING,
    environ: Mapping[str, str] | Sequence[str | bytes] | None = None,
    actions: Iterable[Action] = (),
    argv: Sequence[str | bytes] | None = None,
    out: int = 1,
    **more: Any,
) -> Report:
    """Run `program` with these verbs to its end and return what it reported.

    The report's own action comes last in the list, so indexes in messages are those of `actions`.
    """
    words: list[str | bytes] = [verb if isinstance(verb, str | bytes) else str(verb) for verb in verbs]
    if out != 1:
        words = ["to", str(out), *words]
    with Reporting(out) as reporting:
        arguments = ["workload", *words] if argv is None else argv
        with launch(program, arguments, flags=flags, environ=environ, actions=[*actions, reporting.action()], **more) as process:
            reporting.started()
            data = reporting.rest()
            return Report(data, process.wait(timeout=PATIENCE_S))


def identity(fd: int) -> tuple[int, int] | None:
    """What `fd` refers to, or None when it is closed: a number that became free may be another object's a moment later."""
    try:
        st = os.fstat(fd)
    except OSError:
        return None
    return st.st_dev, st.st_ino


def is_open(fd: int) -> bool:
    """Whether `fd` is a descriptor of this process."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True
