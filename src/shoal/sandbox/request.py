"""Request: what somebody wants to have run, with everything checked that can be told before anything is made."""

from __future__ import annotations

import errno
import locale
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from shoal.arguments import Duration, Size, StrOrBytesPath
from shoal.descriptors import is_for_children, is_open
from shoal.handles.job import Job
from shoal.handles.process import Process
from shoal.handles.reaper import OwnedFd
from shoal.sandbox.box import Sandbox
from shoal.sandbox.launch import Order
from shoal.sandbox.output import Heard, Policy
from shoal.status import Stage, Status, failure
from shoal.units import parse_duration, parse_size

PIPE = subprocess.PIPE
"""A pipe to this program. subprocess's own number."""
STDOUT = subprocess.STDOUT
"""For stderr: where stdout goes. subprocess's own number."""
DEVNULL = subprocess.DEVNULL
"""/dev/null. subprocess's own number."""
OUTPUT_LIMIT = "64M"
"""What is kept in memory of each stream, unless the caller says otherwise."""
_LIMIT_BYTES = parse_size(OUTPUT_LIMIT)
STREAMS = ("stdin", "stdout", "stderr")


class Starter(Protocol):
    """What a program is started in: a box, or none."""

    @property
    def box(self) -> Sandbox:
        """The limits that hold."""

    @property
    def search(self) -> str:
        """Where the program is looked for: directories, as in PATH."""

    def looks_around(self, name: str) -> bool:
        """Whether the caller's working directory makes a difference for a program of that name."""

    def enforced_with(self, others: dict[str, bool | str]) -> dict[str, bool | str]:
        """Each protection, and whether it is in force."""

    def launch(self, order: Order, job: Job | None) -> Process:
        """Start a program."""

    def kill(self, process: Process) -> Sequence[OwnedFd]:
        """Kill it and all that it has started, as far as that can be reached. The pidfds of what is to be waited for besides."""


@dataclass(slots=True, eq=False)  # not frozen: that costs a call for each field at each run
class Request:
    """What is to be run.

    Attributes:
        starter: what it is started in.
        words: the program and its arguments.
        host_cwd: where what has no absolute path is looked for; None: in the caller's working directory.
        data: what it reads on stdin, where `stdin` does not say otherwise.
        stdin, stdout, stderr: as subprocess has them.
        fds: descriptors it gets besides, by their number there; borrowed.
        as_text, encoding, errors: how its output is given back.
        timeout_s: how long it may take. Who has another view of it than the box raises.
        output_limit_bytes, on_output_limit, spill_directory: what becomes of much output.
        heard: told of every piece of output as it comes.
    """

    starter: Starter
    words: list[str]
    host_cwd: str | None = None
    data: bytes | memoryview | None = None
    stdin: Any = None
    stdout: Any = None
    stderr: Any = None
    fds: Mapping[int, int] | None = None
    as_text: bool = False
    encoding: str | None = None
    errors: str | None = None
    timeout_s: float | None = None
    output_limit_bytes: int | None = None
    on_output_limit: Policy = "drain"
    spill_directory: str | os.PathLike[str] | None = None
    heard: Heard | None = None

    @classmethod
    def of(
        cls,
        starter: Starter,
        args: Sequence[StrOrBytesPath],
        *,
        input: bytes | str | None,
        capture_output: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        text: bool,
        encoding: str | None,
        errors: str | None,
        timeout: Duration | None,
        output_limit: Size | None,
        on_output_limit: Literal["drain", "kill", "spill"],
        spill_directory: str | os.PathLike[str] | None,
        host_cwd: str | None = None,
    ) -> Request:
        """The arguments of `run()`, checked.

        Raises:
            TypeError, ValueError: what is wrong, and what to do.
        """
        words = words_of(args)
        if capture_output:
            if stdout is not None or stderr is not None:
                raise ValueError("stdout and stderr cannot be used with capture_output")
            stdout = stderr = PIPE
        if input is not None and stdin is not None:
            raise ValueError("stdin and input cannot both be used")
        as_text = text or encoding is not None or errors is not None
        data = encoded(input, as_text, encoding, errors) if input is not None else b"" if stdin == PIPE else None
        return cls(
            starter,
            words,
            host_cwd,
            data,
            stdin,
            stdout,
            stderr,
            None,
            as_text,
            encoding,
            errors,
            None if timeout is None else parse_duration(timeout),
            _LIMIT_BYTES if output_limit is OUTPUT_LIMIT else None if output_limit is None else parse_size(output_limit),
            on_output_limit,
            spill_directory,
        )

    @property
    def has_pipes(self) -> bool:
        """Whether something is to be moved: what it reads or what it writes."""
        return self.data is not None or PIPE in (self.stdout, self.stderr) or self.on_output_limit != "drain"

    def descriptors(self, ends: Mapping[int, int]) -> dict[int, int]:
        """By the number in the child. What is missing is /dev/null there.

        Args:
            ends: of pipes that were made for it.
        Raises:
            BadHandleError, ValueError: one is not open, or cannot be meant.
        """
        fds: dict[int, int] = {}
        for target, given in enumerate((self.stdin, self.stdout, self.stderr)):
            if target in ends:
                fds[target] = ends[target]
            elif given is None:
                if is_for_children(target):
                    fds[target] = target
            elif given == STDOUT and target == 2:
                if 1 in fds:
                    fds[2] = fds[1]
            elif given in (PIPE, STDOUT):
                raise ValueError(f"{STREAMS[target]} cannot be {given}")
            elif given != DEVNULL:
                fds[target] = _open_number(given, STREAMS[target])
        for target, given in (self.fds or {}).items():
            fds[target] = _open_number(given, f"descriptor {target}")
        return fds


def words_of(args: object) -> list[str]:
    """The program and its arguments. Raises TypeError, ValueError."""
    if isinstance(args, str | bytes | os.PathLike) or not isinstance(args, Sequence):
        raise TypeError('args has to be a list of strings, not one string; for example ["prog", "-v"]')
    if not args:
        raise ValueError("args is empty: which program?")
    return [os.fsdecode(word) for word in args]


def encoded(data: bytes | str, as_text: bool, encoding: str | None, errors: str | None) -> bytes | memoryview:
    """What a program is to read, as bytes. Raises TypeError where it is not what `text` says."""
    if isinstance(data, str):
        if not as_text:
            raise TypeError("input is text, so text=True is needed; or give bytes")
        return data.encode(encoding or locale.getencoding(), errors or "strict")
    if as_text:
        raise TypeError("input has to be text with text=True")
    return memoryview(data)


def _open_number(given: Any, name: str) -> int:
    number: int = given if isinstance(given, int) else given.fileno()
    if not is_open(number):
        raise failure(Status.BAD_HANDLE, Stage.DESCRIPTORS, f"{name}: descriptor {number} is not open", errno.EBADF)
    return number
