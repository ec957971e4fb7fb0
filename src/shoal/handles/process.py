"""Process: a program that was started, held by its pidfd.

A pidfd means one process for ever, so nothing here can hit a recycled pid. Any number of threads may wait, through any
number of duplicates; the status is taken from the kernel once and kept for all of them.

How the status is collected, without a lock: every thread that sees the process ended reads the status with WNOWAIT,
which leaves it in place and gives everybody the same answer, stores it, and only then reaps. Whoever finds it reaped
already finds it stored too. A KeyboardInterrupt between any two steps loses nothing.

Source: pidfd_open(2), waitid(2), pidfd_send_signal(2); spec 6.4.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal as signals
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

from shoal import _native
from shoal.handles import reaper
from shoal.handles.base import Handle, Rights
from shoal.handles.deadline import Deadline, Wait, Waits, is_ready, wait_here
from shoal.handles.pidfd import is_open, pid_of, read_stat, reaped_status, zombie_status
from shoal.handles.reaper import Ended, Keeper, OwnedFd
from shoal.status import Stage, Status, failure, failure_from_errno

NAME_BYTES = 31
_LEAVE_IN_PLACE = os.WEXITED | os.WNOWAIT


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used so far, or in all.

    Attributes:
        user_s, system_s: processor time in seconds.
        max_memory_bytes: the most memory resident at once. For an ended process this is the kernel's `ru_maxrss`, which is
            never below what its maker had resident: until exec a child runs on its maker's memory. For a job it is 0 where
            the kernel keeps no figure (no memory controller).
    """

    user_s: float
    system_s: float
    max_memory_bytes: int


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A picture of a process.

    Attributes:
        state: "running", "stopped" (by a signal or a tracer) or "exited".
        returncode: the exit status, or the negative signal; None before the end, and when it could not be learnt.
        reason: None before the end; "exited", "signaled", or "lost" when somebody else took the status.
        started_at: seconds since 1970.
        usage: None when it cannot be learnt: the status is lost, or there is no /proc to look at.
    """

    state: Literal["running", "stopped", "exited"]
    returncode: int | None
    reason: str | None
    started_at: float
    usage: Usage | None


class _Ending(NamedTuple):
    """How a process ended."""

    returncode: int | None
    reason: str
    usage: Usage | None


class _State:
    """What all duplicates of a Process share."""

    __slots__ = ("ending", "keeper", "keeper_given", "name", "owned", "pid", "reaped", "started_at")

    def __init__(self, pid: int, name: str, started_at: float, *, owned: bool, keeper: Keeper | None = None) -> None:
        self.pid = pid
        self.name = name
        self.started_at = started_at
        self.owned = owned
        """Is it our child, so that reaping it is our business?"""
        self.keeper = keeper
        self.keeper_given: list[Keeper] = [] if keeper is None else [keeper]
        """Emptied, atomically, by whoever gives the keeper to the reaper."""
        self.ending: _Ending | None = None
        self.reaped = not owned

    def note(self, found: Ended | None) -> None:
        """Keep the status that the kernel told and still keeps itself."""
        if found is not None:
            self.ending = _ending(found)

    def collect(self, pidfd: int) -> bool:
        """Take note of the end if it has come, and reap. True once it has come and is noted. Never blocks."""
        if self.ending is None:
            try:
                found = _native.wait(pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                # Not our child, or reaped: perhaps by another thread right now, which has then stored what it saw.
                if not is_ready(pidfd, select.POLLIN):
                    return False
                if self.ending is None:
                    told = None if self.keeper is None else self.keeper.program_end()
                    self.ending = _foreign_ending(pidfd) if told is None else _ending(told)
                self.reaped = True
            else:
                if found is None:  # it runs; or it has ended, but a tracer is looking at it and comes first
                    return False
                self.ending = _ending(found)
        if not self.reaped:
            with suppress(ChildProcessError):
                _native.wait(pidfd, os.WEXITED | os.WNOHANG)
            self.reaped = True
        self._give_up_keeper()
        return True

    def _give_up_keeper(self) -> None:
        try:
            keeper = self.keeper_given.pop()
        except IndexError:
            return
        keeper.left_alone()
        reaper.register(keeper)


class _Dropped:
    """A process nobody holds any more; the reaper keeps it until it has ended."""

    __slots__ = ("_pidfd", "_state")

    def __init__(self, pidfd: OwnedFd, state: _State) -> None:
        self._pidfd: OwnedFd | None = pidfd
        self._state = state

    @property
    def events(self) -> int:
        return select.POLLIN

    def fileno(self) -> int:
        pidfd = self._pidfd
        return -1 if pidfd is None else pidfd.fd

    def settle(self) -> bool:
        pidfd = self._pidfd
        return pidfd is None or self._state.collect(pidfd.fd)

    def release(self) -> None:
        self._pidfd = None


class Process(Handle):
    """A program that was started. `fileno()` is its pidfd, which becomes readable when it ends.

    Return codes are those of `subprocess`: the exit status, or the negative number of the signal. Closing the handle, or
    dropping it, leaves the program alone; its exit is then reaped in the background, without a thread.

    A handle to a process that is not a child of this one (it was handed over) can wait and signal as well. Its return
    code can be told where the kernel (6.15 and later) or /proc tells it; otherwise the status counts as lost.
    """

    kind: ClassVar[str] = "process"
    default_rights: ClassVar[Rights] = Rights.DEFAULT_PROCESS

    _pidfd: OwnedFd | None
    _state: _State

    @classmethod
    def _started(cls, pidfd: int, pid: int, name: str, keeper: Keeper | None = None) -> Self:
        """The handle to a child just started. Takes over `pidfd`.

        Args:
            name: cut to 31 bytes.
            keeper: the first process of its cell; given to the reaper once the child has been collected.
        """
        if len(encoded := os.fsencode(name)) > NAME_BYTES:
            name = os.fsdecode(encoded[:NAME_BYTES])
        return cls._with_state(pidfd, None, _State(pid, name, time.time(), owned=True, keeper=keeper))

    def _begin(self) -> None:
        """It was there before, and becomes the program now."""
        self._state.started_at = time.time()

    def _forget(self) -> None:
        """After os.fork() in the child: the process is the parent's child, and its reaping the parent's business."""
        self._state.owned, self._state.reaped = False, True
        self._state.keeper_given.clear()
        if self._state.keeper is not None:
            self._state.keeper.release()
        self.close()

    @classmethod
    def _from_fd(cls, fd: int, rights: Rights | None = None, name: str | None = None) -> Self:
        """The handle to the process a pidfd stands for; it is waited for, never reaped.

        Raises:
            BadHandleError: `fd` is not open.
            WrongTypeError: it is not a pidfd.
        Ownership: takes over `fd`; on an error it stays with the caller.
        """
        try:
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)  # the kernel takes /proc/PID for a pidfd in places
            signals.pidfd_send_signal(fd, 0)
        except (ProcessLookupError, PermissionError):
            is_directory = False
        except OSError as error:
            closed = error.errno == errno.EBADF and not is_open(fd)
            status, what = (Status.BAD_HANDLE, "not open") if closed else (Status.WRONG_TYPE, "not a pidfd")
            raise failure(status, Stage.HANDLE, f"descriptor {fd} is {what}") from error
        if is_directory:
            raise failure(Status.WRONG_TYPE, Stage.HANDLE, f"descriptor {fd} is a directory, not a pidfd")
        pid = pid_of(fd)
        found = read_stat(fd, pid)
        if name is None:
            name = "" if found is None else found.name
        started_at = time.time() if found is None else found.started_at
        return cls._with_state(fd, rights, _State(pid, name, started_at, owned=False))

    @classmethod
    def _own(cls, fd: int, rights: Rights | None = None) -> Self:
        return cls._from_fd(fd, rights)

    @classmethod
    def _with_state(cls, fd: int, rights: Rights | None, state: _State) -> Self:
        self = super()._own(fd, rights)
        self._pidfd = OwnedFd(fd)
        self._state = state
        return self

    @property
    def pid(self) -> int:
        """The process id as this process sees it; 0 when it lives where we cannot see it."""
        return self._state.pid

    @property
    def name(self) -> str:
        """The name it was started with, at most 31 bytes. Remains after the end."""
        return self._state.name

    @property
    def usage(self) -> Usage | None:
        """What it used in all; None until the end was seen by `poll()` or `wait()`, and when it cannot be learnt."""
        ending = self._state.ending
        return None if ending is None else ending.usage

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative signal; None until the end was seen by `poll()` or `wait()`."""
        ending = self._state.ending
        return None if ending is None else ending.returncode

    def poll(self) -> int | None:
        """The return code if the process has ended, else None. Never blocks.

        Raises:
            AccessDeniedError: no `Rights.WAIT`.
            BadStateError: it has ended and somebody else took its status (`info().reason` is "lost").
        """
        pidfd = self._require(Rights.WAIT, "poll()")
        ended = self._state.collect(pidfd.fd)
        reaper.sweep()
        return self._code() if ended else None

    def wait(self, timeout: float | str | None = None) -> int:
        """Wait for the end and give the return code. Any number of threads may wait at once.

        A `close()` in another thread does not disturb a wait that has begun.

        Args:
            timeout: seconds, or text such as "1m30s".
        Raises:
            TimeoutError: it still runs after `timeout`.
            AccessDeniedError: no `Rights.WAIT`.
            BadStateError: it has ended and its status is lost: the program set SIGCHLD to be ignored (before Linux
                6.15), or another part of it waits for any child, or it is not ours and the kernel does not tell.
        Source: zx_object_wait_one(); spec 6.4.
        """
        pidfd = self._require(Rights.WAIT, "wait()")
        state = self._state
        if not (state.reaped and state.ending is not None):
            if timeout is None and state.owned and state.ending is None:
                # The kernel does the waiting; leaving the status in place makes this safe beside other waiters.
                try:
                    state.note(_native.wait(pidfd.fd, _LEAVE_IN_PLACE))
                except ChildProcessError:
                    pass  # another waiter was quicker, and has noted it
            if not wait_here(_collecting(state, pidfd, Deadline(timeout))):
                raise TimeoutError(f"process {state.pid} ({state.name}) still runs after {timeout} s")
        reaper.sweep()
        return self._code()

    def waiting(self) -> Waits[int]:
        """The waits of `wait()`, for who has other things to do meanwhile. Gives the return code."""
        pidfd = self._require(Rights.WAIT, "wait()")
        yield from _collecting(self._state, pidfd, Deadline(None))
        return self._code()

    def send_signal(self, signal: int) -> None:
        """Send a signal; needs `Rights.SIGNAL`.

        Raises:
            ProcessLookupError: the process has ended.
            AccessDeniedError: a right is missing, or the kernel forbids it.
            InvalidArgsError: there is no such signal.
        """
        pidfd = self._require(Rights.SIGNAL, "send_signal()")
        if self._state.ending is not None or is_ready(pidfd.fd, select.POLLIN):
            raise ProcessLookupError(errno.ESRCH, f"process {self._state.pid} ({self._state.name}) has ended")
        self._send(pidfd, signal)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM). Needs `Rights.DESTROY`. Fine when it has ended already."""
        self._send_if_alive(self._require(Rights.DESTROY, "terminate()"), signals.SIGTERM)

    def kill(self) -> None:
        """Kill it (SIGKILL). Needs `Rights.DESTROY`. Fine when it has ended already.

        Only this process: what it started itself lives on, unless it was the last of its cell. See `Job.kill()`.
        """
        self._send_if_alive(self._require(Rights.DESTROY, "kill()"), signals.SIGKILL)

    def kill_cell(self) -> None:
        """Kill it and everything that lives in its cell, whatever session or parent that has by now. Needs `Rights.DESTROY`.

        The kernel ends a pid namespace as a whole, so nothing escapes, also after the program itself has ended. A process
        in the caller's world has no cell: only itself is killed; see `Job.kill()` for a tree there.
        """
        pidfd = self._require(Rights.DESTROY, "kill_cell()")
        if self._keeper is not None:
            self._keeper.kill()
        self._send_if_alive(pidfd, signals.SIGKILL)

    @property
    def pidfd(self) -> OwnedFd | None:
        """The pidfd, which stays open as long as somebody has this; None once the handle is closed."""
        return self._pidfd

    def look_ahead(self) -> None:
        """Prepare for `left_something()`, while there is nothing better to do."""
        if self._keeper is not None:
            self._keeper.look_ahead()

    def left_something(self) -> bool:
        """Whether something may still live in its cell after it has ended."""
        return self._keeper is not None and self._keeper.has_children()

    def cell_end(self) -> OwnedFd | None:
        """A descriptor that becomes readable when everything in the cell has ended; None: it has, or there is no cell.

        Not before the program has been reaped, by `wait()` or `poll()`.
        """
        keeper = self._keeper
        return None if keeper is None else keeper.pidfd

    def end_cell(self, timeout: float) -> bool:
        """`kill_cell()`, and wait until it is gone. Needs `Rights.DESTROY` and `Rights.WAIT`.

        Returns:
            Whether it is. What sleeps in the kernel where no signal reaches it (state D) is left to the reaper.
        Args:
            timeout: seconds, for the program and for the rest of the cell each.
        """
        return wait_here(self.ending(timeout))

    def ending(self, timeout: float) -> Waits[bool]:
        """The waits of `end_cell()`. Killed is everything at once, before the first."""
        self.kill_cell()
        pidfd = self._require(Rights.WAIT, "wait()")
        # First: the cell is not gone as long as its program has not been reaped.
        if not (yield from _collecting(self._state, pidfd, Deadline(timeout))):
            return False
        reaper.sweep()
        self._code()
        return self._keeper is None or (yield from self._keeper.ending(timeout))

    def info(self) -> ProcessInfo:
        """A picture of the process as it is now. Needs `Rights.INSPECT`. Takes no status away from a waiter."""
        pidfd = self._require(Rights.INSPECT, "info()")
        state = self._state
        found = None if state.collect(pidfd.fd) else read_stat(pidfd.fd, state.pid)
        if found is None and state.collect(pidfd.fd) and state.ending is not None:
            return ProcessInfo("exited", state.ending.returncode, state.ending.reason, state.started_at, state.ending.usage)
        if found is None:
            return ProcessInfo("running", None, None, state.started_at, None)
        usage = Usage(found.user_s, found.system_s, found.max_memory_bytes)
        return ProcessInfo("stopped" if found.stopped else "running", None, None, state.started_at, usage)

    def consume(self) -> int:
        """Move a pidfd out; the handle is closed afterwards. -1 when it already was.

        Raises:
            NoResourcesError: no descriptor is left; the handle is closed all the same.
        """
        with self._lock:
            pidfd = self._pidfd
            try:
                # A copy: another thread may still be waiting on ours, and an exit must be reaped here all the same.
                return -1 if pidfd is None else fcntl.fcntl(pidfd.fd, fcntl.F_DUPFD_CLOEXEC, 3)
            except OSError as error:
                raise failure_from_errno(error.errno or 0, Stage.HANDLE, "cannot hand over this process handle") from error
            finally:
                self._fd, self._pidfd = -1, None
                if pidfd is not None:
                    self._let_go(pidfd)

    def close(self) -> None:
        """Give up the pidfd. The program runs on, and is reaped when it ends. Closing twice is fine."""
        with self._lock:
            pidfd, self._pidfd, self._fd = self._pidfd, None, -1
        if pidfd is not None:
            self._let_go(pidfd)

    def __repr__(self) -> str:
        ending = self._state.ending
        what = "running" if ending is None else "status lost" if ending.returncode is None else f"returned {ending.returncode}"
        return f"<shoal.Process {self._state.name!r} pid {self._state.pid} {'closed' if self.closed else what}>"

    @property
    def _keeper(self) -> Keeper | None:
        """The first process of its cell; stays available after the end, to kill what is left of the cell."""
        return self._state.keeper

    def _require(self, rights: Rights, operation: str) -> OwnedFd:
        self.require(rights, operation)
        pidfd = self._pidfd
        if pidfd is None:
            raise self._closed_error()
        return pidfd

    def _wrap_duplicate(self, fd: int, rights: Rights) -> Self:
        return self._with_state(fd, rights, self._state)

    def _let_go(self, pidfd: OwnedFd) -> None:
        state = self._state
        if (state.owned and not state.reaped) and not sys.is_finalizing():
            reaper.register(_Dropped(pidfd, state))

    def _code(self) -> int:
        ending = self._state.ending
        if ending is None or ending.returncode is None:
            raise failure(
                Status.BAD_STATE,
                Stage.HANDLE,
                f"process {self._state.pid} ({self._state.name}) has ended, but its status is lost: somebody else waited for it, "
                "SIGCHLD is ignored, or it is no child of this process",
                errno.ECHILD,
            )
        return ending.returncode

    def _send(self, pidfd: OwnedFd, signal: int) -> None:
        try:
            signals.pidfd_send_signal(pidfd.fd, signal)
        except ProcessLookupError:
            raise
        except OSError as error:
            what = f"cannot send signal {signal} to process {self._state.pid} ({self._state.name})"
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, what) from error

    def _send_if_alive(self, pidfd: OwnedFd, signal: int) -> None:
        if self._state.ending is None:
            with suppress(ProcessLookupError):
                self._send(pidfd, signal)


def _collecting(state: _State, pidfd: OwnedFd, deadline: Deadline) -> Waits[bool]:
    """Whether it has ended and been collected before the deadline."""
    while not state.collect(pidfd.fd):
        if not (yield Wait(pidfd.fd, deadline)):
            return False
        if not state.collect(pidfd.fd):
            yield reaper.tracers_turn()
    return True


def _ending(found: Ended) -> _Ending:
    _, code, status, user_s, system_s, max_rss_kib = found
    usage = Usage(user_s, system_s, max_rss_kib * 1024)
    if code == os.CLD_EXITED:
        return _Ending(status, "exited", usage)
    return _Ending(-status, "signaled", usage)


def _ending_from_wait_status(status: int) -> _Ending:
    if os.WIFSIGNALED(status):
        return _Ending(-os.WTERMSIG(status), "signaled", None)
    return _Ending(os.WEXITSTATUS(status), "exited", None)


def _foreign_ending(pidfd: int) -> _Ending:
    """How a process ended that we cannot wait for, as far as the kernel tells."""
    # In this order: a zombie that is reaped between the two looks is found by the second.
    status = zombie_status(pidfd)
    if status is None:
        status = reaped_status(pidfd)
    return _Ending(None, "lost", None) if status is None else _ending_from_wait_status(status)
