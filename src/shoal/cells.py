"""Warm cells: cells made ahead of their use by threads in the background, so that a launch into one is a message and an answer.

What a cell fixes is there already - namespaces, world of files, no privileges - and a process waits in it to be told its
arguments, environment and descriptors, and becomes the program by exec. Each cell is used once. None is made before the same
launch was seen twice within a moment, none is kept when launches stop, and there are never more than a few: a program
that starts one child a minute has none.

A cell made ahead must not differ from one made now. So it is thrown away when the mounts of this process have changed since, and
not used by a thread that has other limits, ids, capabilities, processors or filters than the one that made it. What is left
is in docs/design.md.

Whatever happens to the owner, nothing stays: a waiting process ends with its socket, and its cell with it. Before a fork the
threads pause, so that the child inherits nothing half-made; it begins without any.
"""

from __future__ import annotations

import array
import atexit
import os
import resource
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal import _native
from shoal.handles import reaper
from shoal.handles.deadline import Deadline
from shoal.handles.keeper import Strings
from shoal.handles.process import Process
from shoal.launcher import WaitingProcess, prepare
from shoal.lowering import Waiting
from shoal.status import SpawnError

KEPT = 16
"""The most cells that wait at any time."""
IDLE_S = 2.0
"""Cells for a launch that was not seen for so long are given up."""
SOON_S = 2.0
"""A launch seen again within this time will be seen once more."""
FDS_FOR_ONE = 64
"""A cell that waits takes four or five descriptors: no more of them than one for so many that the limit allows."""
FDS_MOST, STRINGS_MOST, BYTES_MOST = 253, 4096, 65000
"""What a message can hold: src/native/request.h."""
QUIET_S = 0.003
"""How long the making of cells waits for the end of a program that has just been launched."""
PATIENCE_S = 0.1
"""How long a launch waits for a cell that is being made; it would make one itself in less."""


@dataclass(slots=True)
class _Cell:
    process: WaitingProcess
    inherited: bytes


@dataclass(slots=True, eq=False)
class _Shelf:
    """The cells for one kind of launch.

    Attributes:
        wanted: how many should be ready or in the making.
        quiet_for: the program launched last, which is not to be disturbed.
        awaited: launches that wait for one in the making.
    """

    recipe: Waiting
    wanted: int
    seen: float
    ready: deque[_Cell] = field(default_factory=deque)
    making: int = 0
    awaited: int = 0
    quiet_for: reaper.OwnedFd | None = None


class _Pool:
    def __init__(self) -> None:
        self.most = KEPT
        self._lock = threading.RLock()  # a signal handler may fork while its thread is in here
        self._begin()

    def _begin(self) -> None:
        self._work = threading.Condition(self._lock)  # for the threads: something to make, to give up, or to end
        self._done = threading.Condition(self._lock)  # for all others: a cell was made, or could not be
        self._shelves: dict[Waiting, _Shelf] = {}
        self._threads: set[threading.Thread] = set()
        self._making = 0
        self._paused = 0
        self._epoch = 0
        self._generation = 0  # threads of an earlier one end
        self._taken: set[WaitingProcess] = set()
        self._mounts_of = -1
        self._mounts: select.poll | None = None
        self._mounts_fd: reaper.OwnedFd | None = None

    def take(self, recipe: Waiting) -> WaitingProcess | None:
        """A cell for `recipe`, or None where making one takes less time than waiting. Asks for more to be made."""
        with self._lock:
            shelf = self._shelves.get(recipe)
            if shelf is None:
                self._forget_old()
                if self.most > 0:
                    self._shelves[recipe] = _Shelf(recipe, 0, time.monotonic())
                return None
            unwanted = self._all_ready() if self._mounts_changed() else []
            now = time.monotonic()
            soon, shelf.seen = now - shelf.seen < SOON_S, now
            own = _native.inherited()
            found, others = self._pick(shelf, own)
            unwanted += others
            if others:
                self._end_threads()  # they differ from this one as their cells do
            if soon:
                # One more than needed so far, until a launch finds one ready.
                shelf.wanted = min(shelf.wanted + (not found), self.most)
                if found is None:
                    self._ask()
            if found is None and not self._paused and shelf.making > shelf.awaited:
                shelf.awaited += 1
                try:
                    self._done.wait_for(lambda: shelf.ready or shelf.making < shelf.awaited, PATIENCE_S)
                finally:
                    shelf.awaited -= 1
                found, others = self._pick(shelf, own)
                unwanted += others
            if found is not None:
                self._taken.add(found.process)
        for cell in unwanted:
            cell.process.give_up()
        return None if found is None else found.process

    def done_with(self, process: WaitingProcess) -> None:
        """It has become the program, or nothing."""
        with self._lock:
            self._taken.discard(process)

    def refill(self, recipe: Waiting | None, launched: Process | None) -> None:
        """Make what is wanted: while `launched` runs only where little is left, since most programs are over soon."""
        with self._lock:
            shelf = None if recipe is None else self._shelves.get(recipe)
            if shelf is not None:
                shelf.quiet_for = None if launched is None or 2 * len(shelf.ready) < shelf.wanted else launched.pidfd
            self._ask()

    def wait_ready(self) -> int:
        with self._lock:
            while self._making:
                self._done.wait()
            return sum(len(shelf.ready) for shelf in self._shelves.values())

    def drain(self) -> bool:
        """Give up every cell, wait until none is in the making, and end the threads. Whether there was any."""
        with self._lock:
            self._paused += 1
            try:
                while self._making:
                    self._done.wait()
                cells = self._all_ready()
                self._shelves.clear()
                threads = self._end_threads()
            finally:
                self._paused -= 1
            self._mounts = self._mounts_fd = None
        for thread in threads:
            thread.join()
        for cell in cells:
            cell.process.end()
        return bool(cells or threads)

    def before_fork(self) -> None:
        with self._lock:
            self._paused += 1
            threads = self._end_threads()
            while self._making:
                self._done.wait()
        for thread in threads:
            thread.join()
        self._lock.acquire()

    def after_fork(self) -> None:
        self._paused -= 1
        self._ask()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        for shelf in self._shelves.values():
            for cell in shelf.ready:
                cell.process.forget()
        for process in self._taken:
            process.forget()
        self._lock = threading.RLock()
        self._begin()

    def _end_threads(self) -> tuple[threading.Thread, ...]:
        """Tell them to end; those that are needed begin anew."""
        self._generation += 1
        threads = tuple(self._threads)
        self._threads.clear()
        self._work.notify_all()
        return threads

    def _forget_old(self) -> None:
        now = time.monotonic()
        for shelf in tuple(self._shelves.values()):
            if not shelf.ready and not shelf.making and now - shelf.seen > SOON_S:
                del self._shelves[shelf.recipe]

    def _pick(self, shelf: _Shelf, own: bytes) -> tuple[_Cell | None, list[_Cell]]:
        """A cell that is like one made by this thread, and those that are not."""
        others: list[_Cell] = []
        while shelf.ready:
            cell = shelf.ready.popleft()
            if cell.inherited == own:
                return cell, others
            others.append(cell)
        return None, others

    def _all_ready(self) -> list[_Cell]:
        self._epoch += 1  # what is in the making is not wanted either
        cells = [cell for shelf in self._shelves.values() for cell in shelf.ready]
        for shelf in self._shelves.values():
            shelf.ready.clear()
        return cells

    def _mounts_changed(self) -> bool:
        """Whether anything was mounted or unmounted here since the last time. proc_pid_mounts(5) tells by POLLPRI."""
        try:
            here = os.stat("/proc/thread-self/ns/mnt").st_ino
            if self._mounts is None or here != self._mounts_of:
                self._mounts = None
                self._mounts_fd = reaper.OwnedFd(os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
                self._mounts_of = here
                self._mounts = select.poll()
                self._mounts.register(self._mounts_fd.fd, select.POLLPRI)
                return True  # what happened before is not known
        except OSError:
            return True
        return bool(self._mounts.poll(0))

    def _next(self) -> _Shelf | None:
        if self._paused:
            return None
        kept = sum(len(shelf.ready) + shelf.making for shelf in self._shelves.values())
        if kept >= min(self.most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FDS_FOR_ONE):
            return None
        return next((shelf for shelf in self._shelves.values() if len(shelf.ready) + shelf.making < shelf.wanted), None)

    def _ask(self) -> None:
        if self._next() is None:
            return
        if len(self._threads) < len(os.sched_getaffinity(0)):
            thread = threading.Thread(target=self._run, args=(self._generation,), name="shoal-cells", daemon=True)
            # Signals are for the threads of the program.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter ends
                return
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._threads.add(thread)
        self._work.notify()

    def _run(self, generation: int) -> None:
        """A thread's life: make what is asked for; give up what nobody asks for any more, and then end."""
        me = threading.current_thread()
        while True:
            with self._lock:
                if generation != self._generation:
                    return
                shelf = self._next()
                while shelf is None:
                    idle = self._give_up_idle()
                    if idle or not self._shelves:
                        break
                    self._work.wait(IDLE_S)
                    if generation != self._generation:
                        return
                    shelf = self._next()
                if shelf is None and not idle:
                    self._threads.discard(me)
                    if not self._shelves:
                        self._mounts = self._mounts_fd = None
                    return
                if shelf is not None:
                    epoch, quiet_for = self._epoch, shelf.quiet_for
                    shelf.making += 1
                    self._making += 1
            if shelf is None:
                for cell in idle:
                    cell.process.end()
                continue
            if quiet_for is not None:
                Deadline(QUIET_S).wait_ready(quiet_for.fd, select.POLLIN)
            made = _made_by_nobody(shelf.recipe)
            with self._lock:
                shelf.making -= 1
                self._making -= 1
                if made is None:
                    shelf.wanted = 0  # the launch itself will say what is wrong
                elif epoch == self._epoch:
                    shelf.ready.append(made)
                    made = None
                self._done.notify_all()
            if made is not None:
                made.process.give_up()

    def _give_up_idle(self) -> list[_Cell]:
        now = time.monotonic()
        cells: list[_Cell] = []
        for shelf in tuple(self._shelves.values()):
            if now - shelf.seen >= IDLE_S and not shelf.making:
                cells += shelf.ready
                del self._shelves[shelf.recipe]
        return cells


def _made_by_nobody(recipe: Waiting) -> _Cell | None:
    """A cell made by a thread that has ended: a child asked to die with the thread that made it (PR_SET_PDEATHSIG) shall not."""
    made: list[_Cell | None] = []
    maker = threading.Thread(target=lambda: made.append(_make(recipe)), name="shoal-cell", daemon=True)
    try:
        maker.start()
    except RuntimeError:
        return None
    maker.join()
    return made[0] if made else None


def _make(recipe: Waiting) -> _Cell | None:
    before = _native.inherited()
    try:
        process = prepare(recipe)
    except (SpawnError, OSError):
        return None
    return _Cell(process, before)


def launch_warm(recipe: Waiting, fds: Sequence[int], argv: Strings, environ: Strings, *, refilled: bool = True) -> Process | None:
    """Launch into a cell made ahead. None where there is none, or it did not work out: to be done the cold way then.

    Args:
        fds: the descriptors to hand over, as many as `recipe.sources`; borrowed.
        refilled: see to it that another is made; else the caller calls `refill()` when the program has ended.
    """
    if len(fds) > FDS_MOST or argv[1] + environ[1] > STRINGS_MOST or len(argv[0]) + len(environ[0]) + len(recipe.finish) > BYTES_MOST:
        return None
    waiting = _pool.take(recipe)
    if waiting is None:
        return None
    try:
        process = waiting.become(recipe.finish, array.array("i", fds).tobytes(), argv, environ)
    finally:
        _pool.done_with(waiting)
    if refilled:
        _pool.refill(recipe, process)  # only now: the making of another would compete with this one
    return process


def refill() -> None:
    """Make the cells that are wanted by now."""
    _pool.refill(None, None)


def limit(cells: int) -> None:
    """At most so many cells wait at any time; 0: every cell is made when it is needed.

    Raises:
        ValueError: negative.
    """
    if cells < 0:
        raise ValueError(f"a number of cells cannot be negative: {cells}")
    _pool.most = cells
    _pool.drain()


def wait_ready() -> int:
    """Wait until none is in the making. How many wait for their launch."""
    return _pool.wait_ready()


def drain() -> bool:
    """Give up all cells made ahead, and wait until they are gone. Whether there were any.

    To be called before a thread confines itself in a way that children inherit and nobody can see (Landlock).
    """
    return _pool.drain()


_pool = _Pool()
os.register_at_fork(before=_pool.before_fork, after_in_parent=_pool.after_fork, after_in_child=_pool.after_fork_in_child)
atexit.register(drain)
