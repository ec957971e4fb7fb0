"""Tree: what a program in the caller's world has started, found and ended without anything that the program could notice.

Each child gets a mark that its descendants inherit: a number of its own as its soft limit of file locks. That limit means nothing
since Linux 2.4.25, survives fork, exec, new sessions, new parents and set-user-ID programs, and can be read by everybody. So what
belongs to a tree is: the child; what has a parent in the tree; what has the child's mark; and what has a mark that was made by
something in the tree.

Members are stopped as they are found, since nothing stopped forks; then all are killed, and waited for; and all of it again until a
look at every process finds none. Each is held by its pidfd before it is believed to be one, so no recycled pid is hit.

`kill_descendants()` is for who may not wait, and may have thousands of trees: it goes from parents to their children only, without marks,
and never looks at a process that is not in the tree.

What escapes `Tree`: a process that has changed the limit and has lost its parent; one that we may not signal; and one that keeps
forking and ending faster than /proc can be read. Who has to be sure uses a sandbox. Ways that were rejected: a control group, which changes
what the program and the service manager see and which most users may not make; PR_SET_CHILD_SUBREAPER, which hands the caller, or
the child, children that it does not know; a variable in the environment, which is seen.

Source: getrlimit(2), fork(2), proc(5), proc_pid_task(5) (`children`), pidfd_open(2). The mark does what the cookie in the environment
does in Jenkins.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from shoal.handles.children import children
from shoal.handles.deadline import Deadline, is_ready
from shoal.handles.reaper import OwnedFd

END_S = 2.0
"""How long killing a tree may take; what has not ended by then sleeps where no signal reaches it, or forks faster than it is found."""
PASSES = 100
"""So often `kill_descendants()` looks, whatever a program does to be faster."""
QUIET_PASSES = 2
"""After so many that found nothing new there is nothing new: a fork that had begun when its process was told to stop is over by then."""
_LIMIT = b"Max file locks"
_LOCKS = 10  # RLIMIT_LOCKS, which the resource module does not name
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TEXT_BYTES = 4096


class Left(NamedTuple):
    """A process of a tree that could not be ended, and why."""

    pid: int
    name: str
    why: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name}) {self.why}"


class _Look(NamedTuple):
    """What /proc tells of a process."""

    name: str
    parent: int
    started: int
    """In clock ticks since boot. With the pid it is one process for ever."""


class _Marks:
    """Marks that nobody else makes: who makes them, and which one it is."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new maker; also the child of a fork is one."""
        self._lock = threading.RLock()
        self._maker = 0
        self._made = 0

    def make(self) -> int:
        with self._lock:
            if not self._maker:
                me = _look(os.getpid())
                self._maker = maker_of(os.getpid(), me.started) if me else secrets.randbits(31) | 1
            self._made += 1
            return self._maker << 32 | self._made & 0xFFFFFFFF


def maker_of(pid: int, started: int) -> int:
    """31 bits that tell a process from others: the upper half of the marks it makes."""
    return (((started << 22) ^ pid) * 0x9E3779B97F4A7C15 % (1 << 64)) >> 33 or 1


_marks = _Marks()
os.register_at_fork(after_in_child=_marks.begin)
make_mark = _marks.make


def mark_process(pid: int, mark: int) -> None:
    """Mark a child that runs already: what it has started by now has no mark."""
    import resource  # hardly ever needed

    with suppress(OSError, ValueError):
        resource.prlimit(pid, _LOCKS, (mark, resource.prlimit(pid, _LOCKS)[1]))


def marking(mark: int, function: Callable[[], Any]) -> Callable[[], Any]:
    """A preexec_fn that marks the child before it does what `function` does."""
    import resource

    def marked() -> Any:
        with suppress(OSError, ValueError):
            resource.setrlimit(_LOCKS, (mark, resource.getrlimit(_LOCKS)[1]))
        return function()

    return marked


def now() -> float:
    """The clock that start times are told by, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Tree:
    """A child and its descendants.

    Args:
        mark: what the child was given to hand down.
        since: `now()`, before it was started.
    """

    __slots__ = ("_mark", "_pid", "_since")

    def __init__(self, pid: int, mark: int, since: float) -> None:
        self._pid = pid
        self._mark = mark
        self._since = since

    def end(self, root: OwnedFd | None, timeout: float = END_S) -> tuple[Left, ...]:
        """Kill all of it, and wait until it is gone, the child itself aside: that is the caller's to reap.

        Args:
            root: the child's pidfd; None: it has been reaped.
        Returns:
            What has not ended: we may not signal it, or it has not ended in time.
        Raises:
            OSError: there is no /proc, or not for us; only the child itself was killed.
        """
        return _Hunt(self._pid, root, self._mark, int(self._since * _TICKS_PER_S) - 1).end(Deadline(timeout))


def kill_descendants(pid: int, root: OwnedFd) -> list[OwnedFd]:
    """Kill a child of this process, and what descends from it as far as parents lead there. Returns at once.

    Args:
        pid: of the child, which has not been reaped, so that the number is its own. root: its pidfd.
    Returns:
        The pidfds of the descendants, to wait for their end. They are nobody's business here: their parents or init reap them.
    """
    return _Hunt(pid, root, None, 0).kill_below(pid)


class _Hunt:
    """One pass at a tree.

    Args:
        mark: what its members have; None: only their parents tell.
    """

    def __init__(self, pid: int, root: OwnedFd | None, mark: int | None, since: int) -> None:
        self._since = since
        self._mark = mark
        self._makers: set[int] = set()
        self._members: dict[int, OwnedFd] = {}
        self._looks: dict[int, _Look] = {}
        self._refused: dict[tuple[int, int], Left] = {}
        if root is not None:
            self._stop(pid, root, _look(pid))

    def end(self, deadline: Deadline) -> tuple[Left, ...]:
        try:
            while self._find() or self._kill(deadline):
                if deadline.remaining_ms() == 0:
                    break
        finally:  # also what an exception has left stopped
            self._kill(Deadline(0))
        late = [
            Left(pid, self._looks[pid].name, "was killed and has not ended")
            for pid, member in self._members.items()
            if pid in self._looks and not is_ready(member.fd, select.POLLIN)
        ]
        return (*late, *self._refused.values())

    def kill_below(self, root: int) -> list[OwnedFd]:
        """Kill what is found below the members, and them. The pidfds of all but `root`."""
        quiet = 0
        try:
            for _ in range(PASSES):
                quiet = 0 if self._find_below() else quiet + 1
                if quiet == QUIET_PASSES:
                    break
        finally:
            self._signal_all()
        return [member for pid, member in self._members.items() if pid != root]

    def _find_below(self) -> bool:
        """Stop the children of members; whether there was any that is new."""
        found = False
        for parent in tuple(self._members):
            for child in children(parent) - self._members.keys():
                found |= self._look_at(child)
        return found

    def _find(self) -> bool:
        """Stop what is found to be a member; whether there was any."""
        found = False
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in self._members:
                found |= self._look_at(int(name))
        return found

    def _look_at(self, pid: int) -> bool:
        look = _look(pid)
        if look is None or look.started < self._since or (pid, look.started) in self._refused:
            return False
        if not self._is_below(look) and not self._is_marked(pid):
            return False
        try:
            pidfd = OwnedFd(os.pidfd_open(pid))
        except OSError:  # it has ended; or there is no descriptor left, which the next look may find
            return False
        again = _look(pid)
        # The same process as before, so what was seen was its own; but the parent may have ended since.
        if again is None or again.started != look.started or not (self._is_below(again) or self._is_marked(pid)):
            return False
        return not is_ready(pidfd.fd, select.POLLIN) and self._stop(pid, pidfd, again)

    def _is_below(self, look: _Look) -> bool:
        """Has it a parent in the tree that is there? Asked after the look: what has ended is nobody's parent any more."""
        parent = self._members.get(look.parent)
        return parent is not None and not is_ready(parent.fd, select.POLLIN)

    def _is_marked(self, pid: int) -> bool:
        mark = None if self._mark is None else _mark_of(pid)
        return mark is not None and (mark == self._mark or mark >> 32 in self._makers)

    def _stop(self, pid: int, pidfd: OwnedFd, look: _Look | None) -> bool:
        if look is None:
            look = _Look("", 0, 0)
        try:
            signal.pidfd_send_signal(pidfd.fd, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        except PermissionError:
            self._refused[pid, look.started] = Left(pid, look.name, "belongs to another user")
            return False
        self._members[pid] = pidfd
        self._looks[pid] = look
        if look.started:
            self._makers.add(maker_of(pid, look.started))
        return True

    def _kill(self, deadline: Deadline) -> bool:
        """Kill the members and wait for their end; whether there was anything to be killed."""
        alive = [member for member in self._members.values() if not is_ready(member.fd, select.POLLIN)]
        self._signal_all()
        for member in alive:
            deadline.wait_ready(member.fd, select.POLLIN)
        return bool(alive)

    def _signal_all(self) -> None:
        for member in self._members.values():
            with suppress(OSError):  # it has ended
                signal.pidfd_send_signal(member.fd, signal.SIGKILL)


def _look(pid: int) -> _Look | None:
    text = _read(f"/proc/{pid}/stat")
    before, _, after = text.rpartition(b")")
    fields = after.split(None, 20)
    if len(fields) < 20:
        return None
    return _Look(before.partition(b"(")[2].decode(sys.getfilesystemencoding(), "replace"), int(fields[1]), int(fields[19]))


def _mark_of(pid: int) -> int | None:
    text = _read(f"/proc/{pid}/limits")
    at = text.find(_LIMIT)
    value = text[at + len(_LIMIT) :].split(None, 1)[0] if at >= 0 else b""
    return int(value) if value.isdigit() else None


def _read(path: str) -> bytes:
    """A file of /proc; nothing where there is none, or not for us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _TEXT_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)
