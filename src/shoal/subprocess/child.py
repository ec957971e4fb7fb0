"""Child: a program in the caller's world that Popen has started, held by its pidfd.

The status is collected without a lock: every thread that sees the end reads it with WNOWAIT, which leaves it in place and gives
everybody the same answer, stores it, and only then reaps. An exception of a signal handler between any two steps loses nothing.
`poll()` runs when the interpreter ends, too, when the names of a module may be gone: what it needs it has as defaults.

Source: pidfd_open(2), waitid(2), pidfd_send_signal(2).
"""

from __future__ import annotations

import os
import select
import signal as signals
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from shoal import _native
from shoal.handles.deadline import Deadline
from shoal.handles.pidfd import reaped_status, zombie_status
from shoal.handles.reaper import Ended, OwnedFd, pause_for_tracer
from shoal.handles.tree import Left, Tree

if TYPE_CHECKING:
    from shoal.sandbox.result import Reason, RunUsage

_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
_REAP = os.WEXITED | os.WNOHANG
_AWAIT = os.WEXITED | os.WNOWAIT


class PidfdLost(OSError):
    """Somebody has closed all descriptors, ours included. Whatever has the number now is not touched."""


class Child:
    """A child process.

    Attributes:
        returncode: as `subprocess` has it; None until the end was seen.
        spent: processor time as user and as system in seconds, and the most memory resident in KiB; None when it is not known.
        ended_at: on the clock of time.monotonic(), when the end was seen.

    Ownership: takes over `pidfd`, which is closed once the child is reaped.
    """

    enforced: Mapping[str, bool | str] = MappingProxyType({})
    __slots__ = ("_mark", "_pidfd", "_since", "ended_at", "pid", "returncode", "spent", "started_at")

    def __init__(self, pid: int, pidfd: int, mark: int, since: float) -> None:
        self._pidfd: OwnedFd | None = OwnedFd(pidfd)
        self._mark, self._since = mark, since
        self.pid = pid
        self.returncode: int | None = None
        self.spent: tuple[float, float, int] | None = None
        self.started_at = time.monotonic()
        self.ended_at = 0.0

    def poll(
        self,
        _wait: Callable[[int, int], Ended | None] = _native.wait,
        _look: int = _LOOK,
        _lost: type[Exception] = ChildProcessError,
    ) -> int | None:
        """The return code if it has ended, else None. Never blocks.

        Raises:
            PidfdLost: the process has to be waited for by its pid.
        """
        pidfd = self._pidfd
        if pidfd is None:
            return self.returncode
        try:
            found = _wait(pidfd.fd, _look)
        except _lost:
            if self.returncode is None:  # else it is another thread that has just reaped it
                self.returncode = _told_otherwise(pidfd.fd)
            self._pidfd = None
        except OSError:
            self._lose(pidfd)
        else:
            if found is not None:
                self._collect(pidfd, found)
        return self.returncode

    def _collect(
        self,
        pidfd: OwnedFd,
        found: Ended,
        _wait: Callable[[int, int], Ended | None] = _native.wait,
        _clock: Callable[[], float] = time.monotonic,
        _exited: int = os.CLD_EXITED,
        _reap: int = _REAP,
        _lost: type[Exception] = ChildProcessError,
    ) -> None:
        """Take note of its end, and reap it."""
        if found[0] != self.pid:
            self._lose(pidfd)
        self.ended_at = _clock()
        self.spent = found[3:]
        self.returncode = found[2] if found[1] == _exited else -found[2]
        try:
            _wait(pidfd.fd, _reap)
        except _lost:
            pass
        self._pidfd = None  # closed, unless another thread is still waiting with it

    def wait(self, timeout: float | None) -> int | None:
        """The return code once it has ended; None when it still runs after `timeout` seconds.

        Raises:
            PidfdLost: as `poll()`.
        """
        pidfd = self._pidfd
        if timeout is None:
            if pidfd is not None:
                try:
                    found = _native.wait(pidfd.fd, _AWAIT)
                except OSError:
                    return self.poll()  # to which the same is said
                if found is not None:
                    self._collect(pidfd, found)
            return self.returncode
        returncode = self.poll()
        if returncode is None and pidfd is not None:
            deadline = Deadline(float(timeout))  # any kind of number
            while deadline.wait_ready(pidfd.fd, select.POLLIN):
                returncode = self.poll()
                if returncode is not None or deadline.remaining_ms() == 0:
                    break
                pause_for_tracer()
        return returncode

    def _lose(self, pidfd: OwnedFd) -> NoReturn:
        pidfd.fd = -1  # somebody else's by now, and not to be closed
        self._pidfd = None
        raise PidfdLost

    def send_signal(self, signal: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        pidfd = self._pidfd
        if pidfd is not None:
            try:
                signals.pidfd_send_signal(pidfd.fd, signal)
            except ProcessLookupError:
                pass

    def end_tree(self) -> tuple[Left, ...]:
        """Kill it and what it has started, also after its own end. Returns what could not be ended; see `Tree.end()`."""
        return Tree(self.pid, self._mark, self._since).end(self._pidfd)

    @property
    def reason(self) -> Reason:
        """Why it ended."""
        return "exited" if (self.returncode or 0) >= 0 else "signaled"

    @property
    def usage(self) -> RunUsage | None:
        """What it used, and what it has waited for."""
        from shoal.sandbox.result import RunUsage

        if self.spent is None:
            return None
        user_s, system_s, max_rss_kib = self.spent
        return RunUsage(self.ended_at - self.started_at, user_s, system_s, max_rss_kib * 1024)

    def result(self, args: object, stdout: object, stderr: object) -> None:
        """Nothing: there is more to be told of a program in a sandbox only."""


def _told_otherwise(pidfd: int) -> int:
    """The return code of a child whose status somebody else has taken, or that is none of ours. 0 when it cannot be learnt."""
    status = zombie_status(pidfd)
    if status is None:
        status = reaped_status(pidfd)
    return 0 if status is None else os.waitstatus_to_exitcode(status)
