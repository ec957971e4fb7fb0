"""CopyProcess: one copy of the zygote seen from its owner: its descriptors, what came from it, how it ended.

Everything that comes from it may be made up by whom nobody trusts. So nothing is ever waited for, each read is bounded, and no
descriptor is accepted: a plain read leaves what was sent along to the kernel, which closes it.
"""

from __future__ import annotations

import enum
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
from contextlib import suppress
from typing import Any, Final

from shoal import _native
from shoal.executor import wire
from shoal.executor.call import Call
from shoal.executor.reactor import Timer
from shoal.executor.wire import Kind
from shoal.handles import reaper
from shoal.handles.deadline import is_ready
from shoal.handles.process import Usage
from shoal.handles.reaper import Keeper, OwnedFd
from shoal.sandbox.limits import Budget

READ_BYTES: Final = 256 << 10
"""How much is read at once, at most."""
_LATE_BYTES: Final = 1 << 20
"""How much is read of a stream whose writer has ended, at most: a pipe holds no more."""


_REPORTS_AT_ONCE, _REPORTS_EACH_S = 1000, 100
"""How often a call may tell how far it is. What `inside` sends is a fifth of that at most."""


Verdict = tuple[Kind, bytes] | str
"""Why a call is over: the frame it gave, or the word for who has ended it."""

_buffer = threading.local()
"""What is read into: engines have a thread each, and may submit in others."""


def _room() -> memoryview:
    found: memoryview | None = getattr(_buffer, "view", None)
    if found is None:
        found = _buffer.view = memoryview(bytearray(READ_BYTES))
    return found


class State(enum.Enum):
    """How far it has come."""

    ASKED = "asked"
    MAKING = "making"
    READY = "ready"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"
    """It has been reaped; pid 1 of its cell not yet."""


class Stream:
    """What it writes to one of its outputs, of which so much is kept."""

    __slots__ = ("_kept", "fd", "limit", "total")

    def __init__(self, fd: OwnedFd) -> None:
        self.fd: OwnedFd | None = fd
        self.limit = 0
        self.total = 0
        self._kept = bytearray()

    def read(self) -> bool:
        """Take what is there, at most so much at once. False: there will be no more."""
        if self.fd is None:
            return False
        room, buffer = self.limit - len(self._kept), _room()
        try:
            if room > 0:
                size = os.readv(self.fd.fd, [buffer])
                self._kept += buffer[: min(size, room)]
            else:
                size = os.splice(self.fd.fd, _null(), _LATE_BYTES)  # counted, and not looked at
        except BlockingIOError:
            return True
        except OSError:
            size = 0
        self.total += size
        return size > 0

    def read_rest(self) -> None:
        """Take what is there now, after its end. Something else may still write to it."""
        if self.fd is None:
            return
        (left,) = struct.unpack("i", fcntl.ioctl(self.fd.fd, termios.FIONREAD, b"\0\0\0\0"))
        begun = self.total
        while self.total - begun < left and self.read():
            pass

    @property
    def text(self) -> str:
        """As text, whatever it is. Half a character at the end was cut by us."""
        return bytes(self._kept).decode("utf-8", "backslashreplace" if self.total <= self.limit else "ignore")


_null_fd: OwnedFd | None = None


def _null() -> int:
    global _null_fd
    if _null_fd is None:
        _null_fd = OwnedFd(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    return _null_fd.fd


class CopyProcess:
    """One copy, from the moment it is asked for.

    Attributes:
        theirs: its ends of socket and pipes, until it has them.
        call: what it is for or runs; None: whatever comes next.
        verdict: why its call is over, once that is decided.
        problem: more about the verdict, in words.
        ended: as `_native.wait` tells it.
        received_bytes: by its socket, in all.
        timers: what is to be done about it at some moment.
    """

    def __init__(self, budget: Budget | None, call: Call[Any] | None) -> None:
        """Make what it will talk by. OSError: there are no descriptors left."""
        near, far = socket.socketpair()
        out, errors = os.pipe2(os.O_CLOEXEC), (-1, -1)
        try:
            errors = os.pipe2(os.O_CLOEXEC)
        except OSError:
            near.close()
            far.close()
            for fd in out:
                os.close(fd)
            raise
        self.stdout, self.stderr = Stream(OwnedFd(out[0])), Stream(OwnedFd(errors[0]))
        self.theirs: tuple[OwnedFd, ...] = (OwnedFd(far.detach()), OwnedFd(out[1]), OwnedFd(errors[1]))
        near.setblocking(False)
        for fd in (out[0], errors[0]):
            os.set_blocking(fd, False)
        self.talk: socket.socket | None = near
        self.keeper: Keeper | None = None
        self.pid = 0
        self.pidfd: OwnedFd | None = None
        self.budget = budget
        self.call = call
        self.state = State.ASKED
        self.verdict: Verdict | None = None
        self.problem = ""
        self.started_at = self.over_at = 0.0
        self.ended: tuple[int, int, int, float, float, int] | None = None
        self.timers: list[Timer] = []
        self._received = bytearray()
        self.received_bytes = 0
        self._reports = 0

    def greet(self) -> None:
        """Let it know that it is known."""
        if self.talk is not None:
            with suppress(OSError):
                self.talk.send(wire.KNOWN)

    def begin(self, call: Call[Any]) -> None:
        """Tell it what to run.

        Raises:
            OSError: there is no memory for a large call, or no descriptor.
        """
        assert self.talk is not None
        payload, limits = call.payload, call.limits.rlimits
        in_memory = len(payload) > wire.INLINE_BYTES
        head = wire.ORDER.pack(len(payload), len(limits), call.limits.result_bytes, in_memory)
        if in_memory:
            file = _sealed(payload)
            socket.send_fds(self.talk, [head[:1]], [file.fd])
            self.talk.sendall(head[1:] + limits)
        else:
            self.talk.sendall(head + limits + payload)
        self.stdout.limit = self.stderr.limit = call.limits.output_bytes
        self.call, self.state = call, State.RUNNING

    def receive(self) -> bool:
        """Take what it sent, at most so much at once. False: there will be no more."""
        if self.talk is None:
            return False
        buffer = _room()
        try:
            size = self.talk.recv_into(buffer)
        except BlockingIOError:
            return True
        except OSError:
            size = 0
        self._received += buffer[:size]
        self.received_bytes += size
        return size > 0

    def take_report(self) -> tuple[int, int, int] | None:
        """How its ops went: stage, index, errno; None as long as it has not told."""
        if len(self._received) < wire.REPORT.size:
            return None
        found = wire.REPORT.unpack_from(self._received)
        del self._received[: wire.REPORT.size]
        return found

    def frames(self) -> tuple[Verdict | None, bytes | None]:
        """What it has told: the frame that its call ends with, or why there can be none; and the last progress before that.

        Of progress only the last counts, so that nobody is kept busy by what tells too much of it.
        """
        progress = None
        at = 0
        data = self._received
        most = self.call.limits.result_bytes if self.call is not None else 0
        answer: Verdict | None = None
        while answer is None and len(data) - at >= wire.HEAD.size:
            size, number = wire.HEAD.unpack_from(data, at)
            limit = _longest(number, most)
            if limit is None:
                answer = f"it sent a frame of a kind that there is not ({number})"
            elif size > limit:
                answer = f"it sent a frame of {size} bytes, where {limit} is the most"
            elif len(data) - at - wire.HEAD.size < size:
                break
            else:
                begin = at + wire.HEAD.size
                with memoryview(data) as view:
                    content = bytes(view[begin : begin + size])
                at = begin + size
                if number == Kind.PROGRESS:
                    progress = content
                    self._reports += 1
                    if self._reports > _REPORTS_AT_ONCE + _REPORTS_EACH_S * (time.monotonic() - self.started_at):
                        answer = "it told how far it is too often"
                else:
                    answer = Kind(number), content
        del data[:at]
        return answer, progress

    @property
    def is_half_way(self) -> bool:
        """Whether it has begun a frame and not ended it."""
        return bool(self._received)

    def kill(self) -> None:
        """Kill it and everything in its cell. Returns at once."""
        if self.keeper is not None:
            self.keeper.kill()
        if self.pidfd is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self.pidfd.fd, signal.SIGKILL)

    def reap(self) -> bool:
        """Take its status if it has ended. False: it has not."""
        if self.pidfd is None:
            return True
        try:
            self.ended = _native.wait(self.pidfd.fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return True  # somebody else has taken it
        return self.ended is not None

    @property
    def talk_fd(self) -> int:
        """Its socket's descriptor, or -1."""
        return -1 if self.talk is None else self.talk.fileno()

    @property
    def pids(self) -> tuple[int, ...]:
        """Its own, and that of the first process of its cell, as far as there are such."""
        keeper = () if self.keeper is None else (self.keeper.pid,)
        return (self.pid, *keeper) if self.pid else keeper

    @property
    def has_ended(self) -> bool:
        """Whether its process is over, reaped or not."""
        return self.pidfd is None or is_ready(self.pidfd.fd, select.POLLIN)

    @property
    def returncode(self) -> int | None:
        """Exit status, or negative signal."""
        if self.ended is None:
            return None
        _, code, number, *_ = self.ended
        return number if code == os.CLD_EXITED else -number

    @property
    def usage(self) -> Usage:
        if self.ended is None:
            return Usage(0.0, 0.0, 0)
        return Usage(self.ended[3], self.ended[4], self.ended[5] * 1024)

    def _close_talk(self) -> None:
        if self.talk is not None:
            self.talk.close()
            self.talk = None
        self._received = bytearray()

    def settle(self) -> None:
        """Its process is over: give up all but what tells of the rest of its cell."""
        self._close_talk()
        self.verdict = None
        self.stdout.fd = self.stderr.fd = None
        self.state = State.ENDED
        if self.ended is not None:
            self.pidfd = None
        if self.keeper is not None:
            self.keeper.left_alone()

    def let_go(self) -> None:
        """Close all; what is left of its processes is the reaper's."""
        self._close_talk()
        self.theirs = ()
        self.stdout.fd = self.stderr.fd = None
        if self.pidfd is not None and self.ended is None and self.pid:
            child = Keeper(_moved(self.pidfd), self.pid)
            child.kill()
            reaper.register(child)
        self.pidfd = None
        if self.keeper is not None:
            self.keeper.kill()
            self.keeper.left_alone()
            reaper.register(self.keeper)
            self.keeper = None
        if self.budget is not None:
            budget, self.budget = self.budget, None
            budget.close()

    def forget(self) -> None:
        """After os.fork() in the child: it is the parent's."""
        self._close_talk()
        self.theirs = ()
        self.stdout.fd = self.stderr.fd = self.pidfd = None
        if self.keeper is not None:
            self.keeper.release()
            self.keeper = None


_OTHERS = {
    Kind.RAISED: wire.RAISED_BYTES,
    Kind.UNREAD: wire.RAISED_BYTES,
    Kind.UNFIT: 4 * wire.TEXT_CHARACTERS + 16,
    Kind.PROGRESS: wire.PROGRESS_BYTES,
}


def _longest(number: int, result_bytes: int) -> int | None:
    return result_bytes if number == Kind.RESULT else _OTHERS.get(number)  # type: ignore[call-overload]


def _sealed(payload: bytes) -> OwnedFd:
    """The payload as a memory file that nobody can change any more."""
    file = OwnedFd(os.memfd_create("shoal-call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    view = memoryview(payload)
    while view:
        view = view[os.write(file.fd, view) :]
    os.lseek(file.fd, 0, os.SEEK_SET)
    fcntl.fcntl(file.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return file


def _moved(fd: OwnedFd) -> int:
    number, fd.fd = fd.fd, -1
    return number
