"""The reaper: what was let go before it had ended, and is cleaned up once it has.

Three kinds of things end here: a `Process` that was dropped without being waited for, the first process of a cell
(a `Keeper`) whose program has ended, and the cgroup of a job that was closed while something still ran in it. Each is
registered with a descriptor that tells when its time has come. `sweep()` settles those that are ready and never
blocks; it is called at each spawn and each wait, and when the interpreter exits. There is no thread and no SIGCHLD
handler, so a host program may have its own.

Why an epoll set: a sweep then costs one system call however many things are still alive. A few are looked at one by one.
Why a queue before the set: things are also registered by `__del__`, which may run in the middle of anything, a sweep in
the same thread included. Appending to a deque needs no lock; whoever sweeps next takes it from there.

Source: pidfd_open(2), epoll(7), cgroups(7).
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import functools
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from shoal import _native
from shoal.handles.children import children
from shoal.handles.deadline import Deadline, Wait, Waits, is_ready, wait_here
from shoal.handles.forks import held_over_forks

Ended = tuple[int, int, int, float, float, int]
"""How a process ended, as `_native.wait()` tells it."""
FEW = 4
"""So many are looked at one by one."""
OVERDUE_S = 0.05
"""A cell whose program was collected so long ago may be waiting for somebody to reap what its program made our child."""
TRACER_MS = 1
_WALL = 0x40000000  # also those that end without a signal: waitid(2)
_NS_GET_PID_FROM_PIDNS = 0x8004B706  # ioctl_nsfs(2), Linux 6.11


class Pending(Protocol):
    """Something to be settled once its descriptor shows one of `events`."""

    @property
    def events(self) -> int:
        """What to wait for, as in poll(2)."""

    def fileno(self) -> int:
        """The descriptor to watch; it stays open and the same until `release()`."""

    def settle(self) -> bool:
        """Clean up if the time has come, without blocking. True when nothing is left to do; may be called again."""

    def release(self) -> None:
        """Give up the descriptor and nothing more."""


class Keeper:
    """The first process of a cell. When it dies the kernel kills everything in the cell.

    It is our child and ends by itself after the last process of its cell, so somebody has to reap it.

    Ownership: takes over `pidfd`; it is closed once the process is reaped, or when the keeper is collected.
    Source: pid_namespaces(7).
    """

    __slots__ = ("__weakref__", "_alone_since", "_children", "_control", "_namespace", "_pidfd", "_reaped", "pid")

    def __init__(self, pidfd: int, pid: int) -> None:
        self._pidfd: OwnedFd | None = OwnedFd(pidfd)
        self._control: OwnedFd | None = None
        self._children: OwnedFd | None = None
        self._reaped = False
        self._alone_since: float | None = None
        self._namespace = 0 if _namespaces_tell() else _pid_namespace(pid)
        self.pid = pid

    def left_alone(self) -> None:
        """Its program has been collected: from now on nobody waits for anything in its cell but the cell's end."""
        self._alone_since = time.monotonic()

    @property
    def is_overdue(self) -> bool:
        """Whether the cell should have ended by now."""
        return self._alone_since is not None and self._pidfd is not None and time.monotonic() - self._alone_since >= OVERDUE_S

    def is_first_in(self, namespace: int) -> bool:
        """Whether it is the first process of a pid namespace, given as a descriptor.

        Newer kernels tell. With older ones it was noted when the cell was new: once it ends, only root may look.
        """
        pidfd = self._pidfd
        if pidfd is None or not self.pid:
            return False
        try:
            is_first = fcntl.ioctl(namespace, _NS_GET_PID_FROM_PIDNS, 1) == self.pid
        except OSError as error:
            if error.errno != errno.ENOTTY:
                return False
            is_first = (self._namespace or _pid_namespace(self.pid)) == os.fstat(namespace).st_ino
        signal.pidfd_send_signal(pidfd.fd, 0)  # not reaped yet, so the pid is still its own
        return is_first

    @property
    def events(self) -> int:
        return select.POLLIN

    @property
    def control(self) -> int:
        """A descriptor that lives as long as the cell: when it closes, as when this process dies, the cell ends. -1: none.

        Ownership: the keeper takes over what is assigned.
        """
        control = self._control
        return -1 if control is None else control.fd

    @control.setter
    def control(self, fd: int) -> None:
        self._control = OwnedFd(fd)

    @property
    def pidfd(self) -> OwnedFd | None:
        """The pidfd, which stays open as long as somebody has this; None once the process is gone and reaped."""
        return self._pidfd

    def fileno(self) -> int:
        """The pidfd, or -1 once the process is gone and reaped."""
        pidfd = self._pidfd
        return -1 if pidfd is None else pidfd.fd

    def look_ahead(self) -> None:
        """Open what `has_children()` looks at: the first look takes longer than the later ones."""
        with suppress(OSError):
            path = f"/proc/{self.pid}/task/{self.pid}/children"
            self._children = OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def has_children(self) -> bool:
        """Whether something besides the program may live in the cell.

        What outlives its parent becomes a child of the cell's first process, and so does what was started by those. Once the
        program has ended and there is no such child, nobody is there who could make another. True where the kernel does not
        tell. Source: proc_pid_task(5).
        """
        if self._pidfd is None:
            return False
        if self._children is None:
            self.look_ahead()
        listed = self._children
        try:
            return listed is None or bool(os.pread(listed.fd, 1, 0))
        except ProcessLookupError:
            return False
        except OSError:
            return True

    def program_end(self) -> Ended | None:
        """How the program ended, where it is not our child but the keeper's. None: it is ours."""
        return None

    def kill(self) -> None:
        """Kill the whole cell. Returns at once; fine when it is gone already."""
        if (pidfd := self._pidfd) is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd.fd, signal.SIGKILL)

    def wait(self, timeout: float | str | None = None) -> None:
        """Wait until the cell is gone, and reap its first process.

        Raises:
            TimeoutError: it still lives after `timeout`.
        """
        if not wait_here(self.ending(timeout)):
            raise TimeoutError(f"the cell kept by process {self.pid} is still alive after {timeout} s")

    def ending(self, timeout: float | str | None = None) -> Waits[bool]:
        """The waits of `wait()`; whether the cell is gone."""
        deadline = Deadline(timeout)
        if (pidfd := self._pidfd) is not None:
            while not (yield Wait(pidfd.fd, deadline.at_most(OVERDUE_S))):
                reap_brothers((self,))
                if deadline.remaining_ms() == 0:
                    return False
            while not self.settle():
                yield tracers_turn()
            sweep()
        return True

    def settle(self) -> bool:
        """Reap it if it has ended. True once there is nothing left to reap. Never blocks."""
        pidfd = self._pidfd
        if not self._reaped and pidfd is not None:
            self._reaped = reap(pidfd.fd)
        return self._reaped or pidfd is None

    def release(self) -> None:
        """Close the descriptors; the cell can no longer be killed through this object."""
        self._pidfd = self._control = self._children = None

    def __repr__(self) -> str:
        return f"<shoal.Keeper of the cell with first process {self.pid}>"


@functools.cache
def _namespaces_tell() -> bool:
    """Whether a pid namespace says which process is its first: ioctl_ns(2), Linux 6.11."""
    try:
        namespace = OwnedFd(os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC))
        fcntl.ioctl(namespace.fd, _NS_GET_PID_FROM_PIDNS, 1)
    except OSError as error:
        return error.errno != errno.ENOTTY
    return True


def _pid_namespace(pid: int) -> int:
    """The inode of a process's pid namespace; 0: we may not look, or it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


def reap_brothers(keepers: Iterable[Pending]) -> None:
    """Reap what ended in cells that should have, and is our child though we have not made it.

    A program is our child, so what it makes with CLONE_PARENT is, too (clone(2)), and a cell is not gone before all of it is reaped.
    Its program has been by then, and nothing else of ours is ever in its pid namespace.
    """
    overdue = [keeper for keeper in keepers if isinstance(keeper, Keeper) and keeper.is_overdue]
    for pid in children() if overdue else ():
        if any(keeper.pid == pid for keeper in overdue):
            continue
        with suppress(OSError):
            brother = OwnedFd(os.pidfd_open(pid))
            namespace = OwnedFd(os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC))
            signal.pidfd_send_signal(brother.fd, 0)  # still there, so it was this one we have looked at
            if is_ready(brother.fd, select.POLLIN) and any(keeper.is_first_in(namespace.fd) for keeper in overdue):
                _native.wait(brother.fd, os.WEXITED | os.WNOHANG | _WALL)


class OwnedFd:
    """A descriptor that is closed when the last reference to this object goes.

    Whoever works on the descriptor in one thread holds a reference, so that a close in another thread cannot make
    the number mean something else meanwhile.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        # Both are looked up late and may be gone when the interpreter is shutting down; the kernel closes it then.
        if getattr(self, "fd", -1) >= 0 and os is not None and _closing is not None:
            self.close()

    def close(self) -> None:
        """Close it now. In a process that another thread forks at this moment it is closed, too, or still in this object."""
        with _closing:
            fd, self.fd = self.fd, -1  # whoever still sees this object shall not take the number for its own
            if fd >= 0:
                os.close(fd)


_closing = held_over_forks()
"""Or a process forked by another thread while a descriptor is being closed would have it, and nothing that closes it."""


def reap(pidfd: int) -> bool:
    """Reap a child if it has ended. True when it is gone, or is not ours to reap. Never blocks."""
    if not is_ready(pidfd, select.POLLIN):
        return False
    try:
        return _native.wait(pidfd, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def tracers_turn() -> Wait:
    """A millisecond: a child that has ended but is still its tracer's, and nothing tells when that lets go."""
    return Wait(-1, Deadline(TRACER_MS / 1000))


def pause_for_tracer() -> None:
    """The same, asleep."""
    select.poll().poll(TRACER_MS)


class _Registry:
    """What is registered: first queued, then in the epoll set, until it is settled."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.queue: deque[Pending] = deque()
        self.watched: dict[int, Pending] = {}
        self._epoll: select.epoll | None = None
        self._looked_at = 0.0
        self._sweeping = threading.Lock()

    @property
    def is_at_work(self) -> bool:
        """Whether a sweep would find something to do, if only to close the epoll set."""
        return bool(self.queue) or self._epoll is not None

    def sweep(self) -> None:
        # Another thread is at it, or this one is, further up the stack: either will take what is queued, or the next call.
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            if len(self.queue) <= FEW and self._epoll is None:
                self._settle_few()
            else:
                self._take_in()
                self._settle_ready()
            now = time.monotonic()
            if now - self._looked_at > OVERDUE_S:
                self._looked_at = now
                reap_brothers([*self.queue, *self.watched.values()])
        finally:
            self._sweeping.release()

    def forget(self) -> None:
        """After os.fork(): the children are the parent's, and so is the epoll set, of which we only hold a copy."""
        entries = [*self.queue, *self.watched.values()]
        if self._epoll is not None:
            self._epoll.close()
        self._reset()
        for entry in entries:
            entry.release()

    def _settle_few(self) -> None:
        """Look at what is queued one by one: cheaper than making a set for it."""
        for _ in range(len(self.queue)):
            entry = self.queue.popleft()
            fd = entry.fileno()
            if fd >= 0 and not (is_ready(fd, entry.events) and entry.settle()):
                self.queue.append(entry)
            else:
                entry.release()

    def _take_in(self) -> None:
        """Move what is queued into the epoll set."""
        while self.queue:
            entry = self.queue[0]
            fd = entry.fileno()
            if fd >= 0:
                try:
                    if self._epoll is None:
                        self._epoll = select.epoll()
                    self._epoll.register(fd, entry.events)
                except FileExistsError:
                    pass  # handed over twice
                except OSError:
                    return  # nothing left to make it with; it stays queued and the next sweep tries again
                self.watched[fd] = entry
            self.queue.popleft()

    def _settle_ready(self) -> None:
        """Settle what is ready, and drop the epoll set when nothing is left."""
        if self._epoll is None:
            return
        for fd, _ in self._epoll.poll(0):
            entry = self.watched.get(fd)
            if entry is not None and entry.settle():
                # Out of the set before the descriptor is closed: a child of a fork may hold a copy of it, which would
                # keep it in the set under a number that soon means something else.
                self._epoll.unregister(fd)
                del self.watched[fd]
                entry.release()
        if not self.watched:
            self._epoll.close()
            self._epoll = None


_registry = _Registry()


def register(entry: Pending) -> None:
    """Hand over something that has ended or will; settled now if it can be, else by a later sweep. Never blocks, safe anywhere."""
    if entry.settle():
        entry.release()
    else:
        _registry.queue.append(entry)
        if pending() > FEW:  # else whoever launches or waits next will do
            sweep()


def watch(entry: Pending) -> None:
    """As `register()`, but first looked at when its descriptor shows an event."""
    _registry.queue.append(entry)
    sweep()


def sweep() -> None:
    """Settle what has ended meanwhile. Never blocks; next to nothing when nothing is registered."""
    if _registry.is_at_work:
        _registry.sweep()


def pending() -> int:
    """How many things are registered and not settled yet."""
    return len(_registry.queue) + len(_registry.watched)


os.register_at_fork(after_in_child=_registry.forget)
atexit.register(sweep)
