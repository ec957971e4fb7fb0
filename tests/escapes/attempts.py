"""Attempts: the same attack, once in the open and once in a sandbox.

A `Ground` is where an attack is made. `calls()` makes system calls in a row and tells what became of each; `attack()` runs a verb of
attacks.c; `held()` does either and then waits, so that others can meet it while it lives. All three are the same outside and inside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import select
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rig.workload import Report

import shoal
from shoal.probe import landlock_abi
from shoal.sandbox.box import Sandbox
from shoal.sandbox.launch import Boxed
from shoal.sandbox.result import Result
from shoal.sandbox.run import run
from shoal.sandbox.tier import Tier

SOURCE = Path(__file__).parent / "attacks.c"
PATIENCE_S = 60.0
SECRET = b"top-secret"
"""What the attack "target" keeps in its memory."""
"""Only a broken run ever waits this long."""

AT_FDCWD = -100
LANDLOCK = "landlock"
MANY = os.environ.get("SHOAL_TEST_MANY") == "1"
"""Ten times as many rounds of what is a matter of chance."""


def build(folder: Path, *options: str) -> str:
    """Compile attacks.c into `folder` and return its path."""
    target = folder / "attacks"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-result"]
    subprocess.run(["gcc", "-O1", "-std=gnu11", *warnings, str(SOURCE), "-o", str(target), *(options or ["-static"])], check=True)
    target.chmod(0o755)
    return str(target)


class Given(NamedTuple):
    """As an argument of a call: what an earlier one gave. The first is 1."""

    call: int


class Outcome(NamedTuple):
    """What became of one call. `errno` is 0 when it was made; `data` is the first buffer it was given, as it is afterwards."""

    name: str
    errno: int
    value: int
    data: bytes = b""


Argument = int | str | bytes | Path | Given
Step = tuple[Any, ...]


def _words(steps: tuple[Step, ...]) -> list[str]:
    found: list[str] = ["call"]
    for number, step in enumerate(steps):
        found += ([","] if number else []) + [str(step[0])]
        for item in step[1:]:
            if isinstance(item, Given):
                found.append(f"r{item.call}")
            elif isinstance(item, int):
                found.append(str(item))
            elif isinstance(item, bytes):
                found.append(f"x:{item.hex()}" if any(item) else f"o:{len(item)}")
            else:
                found.append(f"s:{item}")
    return found


def _outcome(line: list[str], step: Step = ()) -> Outcome:
    name, *rest = line
    size = next((len(item) for item in step if isinstance(item, bytes)), 0)
    made = rest[0] == "ok"
    buffers = rest[2 if made else 1 :]
    return Outcome(
        name, 0 if made else int(rest[0]), int(rest[1]) if made else -1, os.fsencode(buffers[0] if buffers else "").ljust(size, b"\0")
    )


@dataclass(frozen=True)
class Ground:
    """Where an attack is made.

    Attributes:
        program: attacks.c, compiled.
        box: what the sandbox is made with; None: outside. LANDLOCK in it: made as where no namespace can be had, with as much of
            Landlock as a kernel of this ABI knows.
    """

    program: str
    box: Mapping[str, Any] | None = None

    @functools.cached_property
    def sandbox(self) -> Sandbox:
        box = dict(self.box or {})
        abi = box.pop(LANDLOCK, None)
        made = Sandbox(**box)
        if abi is not None:
            Boxed.of(made).tier = Tier("landlock", min(abi, landlock_abi()), "the test says so", "ask the test")
        return made

    @property
    def abi(self) -> int | None:
        """Of Landlock, where that is the first wall."""
        abi = (self.box or {}).get(LANDLOCK)
        return None if abi is None else min(abi, landlock_abi())

    @property
    def has_own_user(self) -> bool:
        """Whether the program is somebody else than the caller."""
        return (self.box or {}).get("user") == "dynamic"

    @functools.cached_property
    def enforced(self) -> Mapping[str, bool | str]:
        """What a result says of the sandbox."""
        done = self.run("ids")
        assert isinstance(done, Result)
        return done.enforced

    @property
    def is_scoped(self) -> bool:
        """Whether the second wall also stands before abstract sockets and signals, as it does from ABI 6 on."""
        wall = self.enforced["landlock"]
        return bool(wall) and int(str(wall).rpartition(" ")[2]) >= 6

    def but(self, **changes: Any) -> Ground:
        """The same with other attributes of the sandbox."""
        return dataclasses.replace(self, box={**(self.box or {}), **changes})

    def running(self, program: str | Path) -> Ground:
        """The same with the attacks in another file."""
        return dataclasses.replace(self, program=str(program))

    def run(self, *words: object, **how: Any) -> Result | subprocess.CompletedProcess[bytes]:
        """Run a verb to its end."""
        command = [self.program, *(str(word) for word in words)]
        if "stdin" not in how:
            how["stdin"] = subprocess.DEVNULL
        if "stdout" not in how:
            how["capture_output"] = True
        if self.box is None:
            return subprocess.run(command, timeout=PATIENCE_S, check=False, **how)
        return run(command, sandbox=self.sandbox, timeout=PATIENCE_S, **how)

    def attack(self, *words: object, **how: Any) -> Report:
        """What a verb reported."""
        done = self.run(*words, **how)
        assert not done.stderr, done.stderr
        return Report(done.stdout, done.returncode)

    def calls(self, *steps: Step, **how: Any) -> list[Outcome]:
        """Make system calls, and tell what became of them. A step is a name (or number) and arguments: numbers, strings, bytes for a
        buffer that the kernel may change, or `Given`."""
        report = self.attack(*_words(steps), **how)
        assert report.returncode == 0, (report.returncode, report.lines)
        assert len(report.lines) == len(steps), report.lines
        return [_outcome(line, step) for line, step in zip(report.lines, steps, strict=True)]

    def errnos(self, *steps: Step, **how: Any) -> list[int]:
        """The errno of each call; 0 where it was made."""
        return [outcome.errno for outcome in self.calls(*steps, **how)]

    def errno(self, *step: Any, **how: Any) -> int:
        """The errno of one call; 0 when it was made."""
        return self.errnos(step, **how)[0]

    @contextlib.contextmanager
    def held(self, *steps: Step, verb: tuple[object, ...] = (), expect: int | None = None, **how: Any) -> Iterator[Held]:
        """Make calls (or run a verb that waits for the end of its input) and stay until the block ends.

        Args:
            expect: so many lines are waited for; None: one for each step.
        """
        words = list(verb) or [*_words(steps), ",", "read", "0", "x:00", "1"]
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        held = Held(ours_in, ours_out)

        def follow() -> None:
            try:
                held.result = self.run(*words, stdin=theirs_in, stdout=theirs_out, **how)
            except BaseException as error:
                held.error = error
            finally:
                os.close(theirs_in)
                os.close(theirs_out)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            for _ in range(len(steps) if expect is None else expect):
                held.line()
            yield held
        finally:
            held.let_go()
            thread.join(PATIENCE_S)
            held.close()
        assert not thread.is_alive()
        if held.error is not None:
            raise held.error


def spawned(program: str, *steps: Step) -> list[Outcome]:
    """As `Ground.calls()`, in a cell of `shoal.spawn`, which has neither a filter nor a second wall."""
    ours, theirs = os.pipe()
    with shoal.spawn(program, [program, *_words(steps)], actions=[shoal.TransferFd(theirs, 1)]) as process, open(ours, "rb") as output:
        lines = Report(output.read()).lines
        assert process.wait(PATIENCE_S) == 0
    assert len(lines) == len(steps), lines
    return [_outcome(line, step) for line, step in zip(lines, steps, strict=True)]


@dataclass
class Held:
    """A program that has done something and waits."""

    _input: int
    _output: int
    lines: list[list[str]] = field(default_factory=list)
    result: Result | subprocess.CompletedProcess[bytes] | None = None
    error: BaseException | None = None
    _pending: bytes = b""

    def line(self) -> list[str]:
        """The next line it writes."""
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._pending:
            assert select.select([self._input], [], [], max(0.0, deadline - time.monotonic()))[0], f"silent after {self.lines}"
            data = os.read(self._input, 65536)
            assert data, f"ended after {self.lines}: {self.error or self.result}"
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        self.lines += Report(line).lines
        return self.lines[-1]

    @property
    def outcomes(self) -> list[Outcome]:
        """Of the calls so far."""
        return [_outcome(line) for line in self.lines]

    def let_go(self) -> None:
        """The end of its input."""
        if self._output >= 0:
            os.close(self._output)
            self._output = -1

    def close(self) -> None:
        os.close(self._input)
