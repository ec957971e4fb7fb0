"""Commands: what `Domain.exec()` gives. A process of a domain that is not its program, held by a line to the domain's own init.

The line (struct line_told and struct line_ask in src/native/domain.h) goes from here to the init, and the manager is not in between: it
may be killed, and another take its place, and the command is signalled and its end told as before. Its other side is that a command
does not outlive the process that wanted it: the end of the line, however that comes about, ends the command.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from shoal.arguments import Duration
from shoal.handles.deadline import Deadline
from shoal.manager import wire
from shoal.manager.domains import LOST_STATUS, ExitStatus
from shoal.manager.errors import ManagerError
from shoal.manager.stdio import streams_of
from shoal.manager.wording import as_bytes
from shoal.units import parse_duration

_TOLD: Final = struct.Struct("=IiiiI")
_ASK: Final = struct.Struct("=iI")
_BEGUN, _ENDED, _UNBEGUN = 1, 2, 3
_EXITED: Final = 1  # CLD_EXITED of waitid(2)
_LOOK_MS: Final = 10

Ask = Callable[[Callable[[int], wire.Request], list[int]], tuple[Any, list[int]]]


class Command:
    """A command that runs in a domain, or has ended there. For any number of threads.

    Attributes:
        pid: of its process, as seen from outside of the domain.

    Ownership: it is its command's life: `close()`, the end of a `with` block, the end of this process and the loss of the last reference
    end a command that still runs, with its process group. What it has put into sessions of their own lives on as part of the domain.
    """

    def __init__(self, line: socket.socket, pid: int) -> None:
        self._line, self.pid = line, pid
        self._lock = threading.Lock()
        self._waiting = 0
        self._is_closed = False
        self._end: ExitStatus | None = None
        self._never_began = False

    def __repr__(self) -> str:
        return f"<shoal.manager.Command {self.pid} {'running' if self._end is None else self._end}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._line.fileno() >= 0:
            if self._end is None:
                warnings.warn(f"{self!r} was not waited for, and is ended now: use it in a `with` block", ResourceWarning, stacklevel=2)
            self._line.close()

    def fileno(self) -> int:
        """Readable once there is an end for `wait()` to give: for poll(2) and event loops. -1 when it is closed."""
        return self._line.fileno()

    def wait(self, timeout: Duration | None = None) -> ExitStatus:
        """Wait for its end. Any number may wait, each gets the same.

        Args:
            timeout: seconds, or text such as "1m30s".
        Returns:
            How it ended. Reason "killed": with its domain. "lost": the domain's init was killed, so that nobody knows.
        Raises:
            TimeoutError: it has not ended in time, and runs on.
            ManagerError: the manager was killed before it could become its program: it never began.
        """
        patience_s = None if timeout is None else parse_duration(timeout)
        deadline = Deadline(patience_s)
        while (end := self.poll()) is None:
            with self._lock:
                if self._is_closed:
                    raise ValueError("this command is closed, and was ended by that")
                self._waiting += 1
            try:
                in_time = deadline.wait_ready(self._line.fileno(), select.POLLIN)
            finally:
                with self._lock:
                    self._waiting -= 1
                    self._close_line()
            if not in_time:
                raise TimeoutError(f"the command has not ended within {patience_s:g} s")
        return end

    def poll(self) -> ExitStatus | None:
        """How it ended; None while it runs.

        Raises:
            ManagerError: as `wait()`.
        """
        self._hear()
        if self._never_began:
            what = "the command has not begun: what was to start it was killed meanwhile; try again"
            raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", what)
        return self._end

    def _hear(self) -> None:
        with self._lock:
            while self._end is None and not self._is_closed:
                try:
                    told = self._line.recv(_TOLD.size, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError:
                    told = b""
                self._take(told)

    def _take(self, told: bytes) -> None:
        if len(told) != _TOLD.size:
            self._end = ExitStatus(LOST_STATUS, "lost", None)
            return
        kind, _, code, status, with_domain = _TOLD.unpack(told)
        if kind == _BEGUN:
            return
        self._never_began = kind == _UNBEGUN
        if code == _EXITED:
            self._end = ExitStatus(status, "exited", None)
        elif with_domain and status == signal.SIGKILL:
            self._end = ExitStatus(int(signal.SIGKILL), "killed", int(signal.SIGKILL))  # as that of the domain
        else:
            self._end = ExitStatus(128 + status, "signaled", status)

    def send_signal(self, number: int, *, to_group: bool = False) -> None:
        """Signal it. One that has ended is not, and nothing else is in its place.

        Args:
            to_group: also what it has started, as a keyboard does: its process group.
        """
        if not 1 <= number <= 64:
            raise ValueError(f"signal {number}: there are 1 to 64")
        try:
            self._line.send(_ASK.pack(number, to_group), socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it has ended, and its line with it

    def kill(self) -> None:
        """End it and its process group with SIGKILL. Its end is for `wait()`."""
        self.send_signal(signal.SIGKILL, to_group=True)

    def close(self) -> None:
        """Let go of it. One that still runs is ended; with `wait()` before, it ends by itself."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._line.shutdown(socket.SHUT_RDWR)  # which wakes whoever waits, and is the end of the line
                self._close_line()

    def _close_line(self) -> None:
        if self._is_closed and not self._waiting:
            self._line.close()


def execute(
    ask: Ask,
    domain: str,
    argv: Sequence[str | bytes | os.PathLike[str]],
    env: Mapping[str, str | None] | None,
    cwd: str | os.PathLike[str] | None,
    stdio: tuple[Any, Any, Any],
    *,
    terminal: bool,
) -> Command:
    """Have a command started: `Domain.exec()`.

    Args:
        ask: sends a request, and once more over another connection where one is lost. domain: its capability.
    """
    if isinstance(argv, str | bytes):
        raise TypeError('argv must be a sequence of strings, not one string; for example ["sh", "-c", "..."]')
    words = [as_bytes(word, f"argv[{index}]") for index, word in enumerate(argv)]
    if env is not None and not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping of names to values, not {type(env).__name__}")
    variables = {
        as_bytes(name, "a variable's name"): None if value is None else as_bytes(value, name) for name, value in (env or {}).items()
    }
    directory = None if cwd is None else as_bytes(cwd, "cwd")
    given, targets, _ = streams_of(stdio, left_out="own")
    line = _Line()
    try:

        def request(rid: int) -> wire.Request:
            fds[0] = line.renewed()
            return wire.Exec(rid, domain, words, variables, directory, targets, terminal)

        fds = [-1, *given]
        try:
            pid = ask(request, fds)[0]
        except _Begun as begun:  # which nobody was left to say
            pid = begun.pid
        command = Command(line.taken(), pid)
        command._hear()  # that it has begun, so that there is nothing to be read but its end
        return command
    finally:
        line.close()


class _Begun(Exception):
    """What was asked for has been carried out, although no answer came."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


class _Line:
    """The line of a command that is about to be started. A manager may be killed at any point of that."""

    def __init__(self) -> None:
        self._near: socket.socket | None = None
        self._far: socket.socket | None = None

    def renewed(self) -> int:
        """The end to be sent.

        Raises:
            _Begun: one was sent before, and has reached the init of the domain.
        """
        if self._near is not None and self._far is not None:
            # The manager is gone, so that nobody has the other end but an init, which tells at once that there is a process, if there is.
            self._far.close()
            told = self._near.recv(_TOLD.size)
            if len(told) == _TOLD.size:
                self._check_unbegun(_TOLD.unpack(told)[1])
            self._near.close()
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return self._far.fileno()

    def _check_unbegun(self, pid: int) -> None:
        """
        Raises:
            _Begun: the process has become the command. Else it has ended, since nobody was left to tell it what to become.
        """
        from shoal.manager.adoption import has_executed  # which loads what else only a manager needs

        assert self._near is not None
        told = select.poll()
        told.register(self._near, select.POLLIN)
        while not told.poll(_LOOK_MS):  # of an execve(2) nothing tells
            if has_executed(pid) or not os.path.exists(f"/proc/{pid}"):
                raise _Begun(pid)
        answer = self._near.recv(_TOLD.size, socket.MSG_PEEK)
        if len(answer) != _TOLD.size or _TOLD.unpack(answer)[0] != _UNBEGUN:
            raise _Begun(pid)

    def taken(self) -> socket.socket:
        """Our end, which is the caller's from now on."""
        assert self._near is not None
        near, self._near = self._near, None
        return near

    def close(self) -> None:
        for end in (self._near, self._far):
            if end is not None:
                end.close()
