"""Warm cells: cells made ahead of their use, so that a launch into one is a message and an answer.

What a cell fixes is there already - namespaces, world of files, no privileges - and a process waits in it to be told its
arguments, environment and descriptors, and becomes the program by exec. Each cell is used once. They are made by a process of
ours, one for each kind of launch (`factory`). There is none before the same launch was seen twice within a moment, none when
launches stop, and there are never more than a few cells: a program that starts one child a minute has none.

A cell made ahead must not differ from one made now. So all are thrown away when the mounts of this process have changed since, and
when a thread asks that has other limits, ids, capabilities, processors or filters than the one for which they are made. What is
left is in docs/design.md.

Whatever happens to the owner, nothing stays: a factory and a waiting process end with their sockets, and a cell with what waits in
it. A thread gives up what is not needed any more; before a fork it pauses, and the child begins without any.
"""

from __future__ import annotations

import atexit
import functools
import os
import resource
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal import _native
from shoal.factory import Factory, WaitingProcess, start_factory
from shoal.handles import reaper
from shoal.handles.keeper import Strings
from shoal.handles.process import Process
from shoal.recipe import Recipe

KEPT = 16
"""The most cells that wait at any time."""
IDLE_S = 2.0
"""Cells for a launch that was not seen for so long are given up."""
SOON_S = 2.0
"""A launch seen again within this time will be seen once more."""
HOPELESS, HOPELESS_S = 3, 1.0
"""After so many cells in a row that came to nothing there are none for so long: the launch itself will say what is wrong."""
FDS_FOR_ONE = 64
"""A cell that waits takes four or five descriptors: no more of them than one for so many that the limit allows."""
FDS_MOST, STRINGS_MOST, BYTES_MOST = 253, 4096, 65000
"""What a message can hold: src/native/request.h."""
PATIENCE_S = 0.1
"""How long a launch waits for a cell that is being made; it would make one itself in less."""
LEAVING_S = 0.1
"""How long a thread that has ended may take to be gone."""


@dataclass(slots=True, eq=False)
class _Shelf:
    """The cells for one kind of launch.

    Attributes:
        wanted: how many should be ready or in the making.
        factory: who makes them; inherited: what a cell takes over from the thread it was started for.
        awaited: launches that wait for one in the making.
        failures: cells that came to nothing, in a row; hopeless_until: when to try again.
    """

    recipe: Recipe
    seen: float
    wanted: int = 0
    ready: deque[WaitingProcess] = field(default_factory=deque)
    factory: Factory | None = None
    inherited: bytes = b""
    starting: bool = False
    awaited: int = 0
    failures: int = 0
    hopeless_until: float = 0.0

    @property
    def making(self) -> int:
        return 0 if self.factory is None else self.factory.making

    @property
    def kept(self) -> int:
        return len(self.ready) + self.making

    def next(self) -> WaitingProcess | None:
        """A cell that somebody has made, without waiting."""
        if self.ready:
            return self.ready.popleft()
        return None if self.factory is None else self.factory.receive()


class _Pool:
    def __init__(self) -> None:
        self.most = KEPT
        self._lock = threading.RLock()  # a signal handler may fork while its thread is in here
        self._begin()

    def _begin(self) -> None:
        self._work = threading.Condition(self._lock)  # for the thread: something to give up, or to end
        self._done = threading.Condition(self._lock)  # for all others: a factory was started, or could not be
        self._shelves: dict[Recipe, _Shelf] = {}
        self._unwanted: list[Factory | WaitingProcess] = []
        self._threads: set[threading.Thread] = set()  # that have not ended yet, or were not joined
        self._tidying = False  # one of them gives up what is not wanted
        self._paused = 0
        self._generation = 0  # threads of an earlier one end
        self._taken: set[WaitingProcess] = set()
        self._mounts_of = b""
        self._mounts: select.poll | None = None
        self._mounts_fd: reaper.OwnedFd | None = None

    @property
    def is_used(self) -> bool:
        """Whether any launch is known for which there could be cells."""
        return bool(self._shelves)

    def take(self, recipe: Recipe) -> WaitingProcess | None:
        """A cell for `recipe`, or None where making one takes less time than waiting. Asks for more to be made."""
        with self._lock:
            shelf = self._shelves.get(recipe)
            if shelf is None:
                self._forget_old()
                if self.most > 0:
                    self._shelves[recipe] = _Shelf(recipe, time.monotonic())
                return None
            own = _native.inherited()
            if self._mounts_changed(own):
                for other in self._shelves.values():
                    self._retire(other)
                    other.failures, other.hopeless_until = 0, 0.0
            now = time.monotonic()
            soon, shelf.seen = now - shelf.seen < SOON_S, now
            if shelf.factory is not None and shelf.inherited != own:
                self._retire(shelf)
            found = shelf.next()
            if soon and now >= shelf.hopeless_until:
                # One more than needed so far, until a launch finds one ready.
                shelf.wanted = min(shelf.wanted + (found is None), self.most)
                if found is None:
                    self._ask(shelf)
            if found is None and shelf.making > shelf.awaited:
                shelf.awaited += 1
                try:
                    found = self._wait(shelf)
                finally:
                    shelf.awaited -= 1
            if shelf.factory is not None and shelf.factory.failed:
                self._note_failure(shelf)
                self._retire(shelf)
            if found is not None:
                self._taken.add(found)
            return found

    def done_with(self, process: WaitingProcess, recipe: Recipe, *, failed: bool) -> None:
        """It has become the program, or nothing."""
        with self._lock:
            self._taken.discard(process)
            if (shelf := self._shelves.get(recipe)) is None:
                return
            if failed:
                self._note_failure(shelf)
            else:
                shelf.failures = 0

    def refill(self, recipe: Recipe, launched: Process | None) -> None:
        """Make what is wanted: a moment later while `launched` runs, since most programs are over soon."""
        with self._lock:
            if (shelf := self._shelves.get(recipe)) is not None:
                self._ask(shelf, None if launched is None else launched.pidfd)

    def fetch(self) -> None:
        """Receive what the next launch will take."""
        with self._lock:
            for shelf in self._shelves.values():
                if not shelf.ready and (cell := shelf.next()) is not None:
                    shelf.ready.append(cell)

    def wait_ready(self) -> int:
        with self._lock:
            while any(shelf.starting for shelf in self._shelves.values()):
                self._done.wait()
            for shelf in self._shelves.values():
                while shelf.factory is not None and (cell := shelf.factory.receive(wait=True)) is not None:
                    shelf.ready.append(cell)
            return sum(len(shelf.ready) for shelf in self._shelves.values())

    def drain(self) -> bool:
        """Give up every cell and every factory, wait until they are gone, and end the threads. Whether there was any."""
        with self._lock:
            self._paused += 1
            try:
                threads = self._end_threads()
                for shelf in self._shelves.values():
                    self._retire(shelf)
                self._shelves.clear()
            finally:
                self._paused -= 1
            self._mounts = self._mounts_fd = None
        for thread in threads:
            thread.join()
        with self._lock:
            unwanted, self._unwanted = self._unwanted, []
        self._dispose(unwanted)
        return bool(unwanted)

    def before_fork(self) -> None:
        interrupts = self._is_in_here()
        with self._lock:
            self._paused += 1
            threads = self._end_threads()
        if not interrupts:  # else they may be waiting for what this thread does when the handler returns
            for thread in threads:
                _see_off(thread)
        self._lock.acquire()

    def _is_in_here(self) -> bool:
        """Whether this thread has the lock already: then this is a signal handler that interrupts what it does with it."""
        try:
            self._work.notify(0)
        except RuntimeError:
            return False
        return True

    def after_fork(self) -> None:
        self._paused -= 1
        if self._shelves or self._unwanted:
            self._need_thread()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        for shelf in self._shelves.values():
            for cell in shelf.ready:
                cell.forget()
            if shelf.factory is not None:
                shelf.factory.forget()
        for unwanted in self._unwanted:
            unwanted.forget()
        for process in self._taken:
            process.forget()
        self._lock = threading.RLock()
        self._begin()

    def _wait(self, shelf: _Shelf) -> WaitingProcess | None:
        """Wait for one in the making. Gives up the lock meanwhile."""
        last = time.monotonic() + PATIENCE_S
        lock = self._lock  # the same in the end: a child of a fork meanwhile has another
        while (factory := shelf.factory) is not None and factory.making and not factory.failed and not self._paused:
            try:
                # A copy: another thread may close it while this one waits.
                socket = reaper.OwnedFd(os.dup(factory.fileno()))
            except OSError:
                return None  # no more descriptors, of which the launch will say what it has to
            lock.release()
            try:
                poll = select.poll()
                poll.register(socket.fd, select.POLLIN)
                answered = poll.poll(max(0.0, last - time.monotonic()) * 1000)
            finally:
                lock.acquire()
            if shelf.factory is not factory:
                return None  # by now they are made for another thread's launches
            if (found := shelf.next()) is not None or not answered:
                return found
        return None

    def _ask(self, shelf: _Shelf, quiet_for: reaper.OwnedFd | None = None) -> None:
        """See to it that what is wanted is made."""
        need = shelf.wanted - shelf.kept
        if self._paused or need <= 0 or shelf.starting:
            return
        most = min(self.most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FDS_FOR_ONE)
        room = most - sum(other.kept for other in self._shelves.values())
        if room <= 0 and shelf.kept == 0 and most > 0:
            room += self._make_room()
        if (need := min(need, room)) <= 0:
            return
        if shelf.factory is not None:
            shelf.factory.ask(need, -1 if quiet_for is None else quiet_for.fd)
        else:
            shelf.starting = self._start_thread(lambda: self._start(shelf), "shoal-factory")
            self._need_thread()

    def _make_room(self) -> int:
        """Give up a cell of those for the launch that has the most of them, where it has several. How many."""
        richest = max(self._shelves.values(), key=lambda shelf: shelf.kept)
        if richest.kept < 2:
            return 0
        richest.wanted = richest.kept - 1
        if (cell := richest.next()) is None:
            return 0  # it is being made, and then not replaced
        self._unwanted.append(cell)
        self._need_thread()
        self._work.notify_all()
        return 1

    def _start(self, shelf: _Shelf) -> None:
        """In a thread that ends then: a child asked to die with the thread that made it (PR_SET_PDEATHSIG) shall not, so no thread
        of the program's may have made it."""
        inherited = _native.inherited()
        factory = start_factory(shelf.recipe)
        with self._lock:
            shelf.starting = False
            if factory is None:
                self._note_failure(shelf)
            elif self._shelves.get(shelf.recipe) is not shelf:
                self._unwanted.append(factory)
                self._work.notify_all()
            else:
                shelf.factory, shelf.inherited = factory, inherited
                self._ask(shelf)
            self._done.notify_all()

    def _note_failure(self, shelf: _Shelf) -> None:
        shelf.failures += 1
        if shelf.failures >= HOPELESS:
            shelf.wanted, shelf.failures, shelf.hopeless_until = 0, 0, time.monotonic() + HOPELESS_S
            self._retire(shelf)

    def _retire(self, shelf: _Shelf) -> None:
        """What was made for it, and who makes it, is not to be used any more."""
        self._unwanted += shelf.ready
        shelf.ready.clear()
        if shelf.factory is not None:
            self._unwanted.append(shelf.factory)
            shelf.factory = None
        if self._unwanted:
            self._need_thread()
            self._work.notify_all()

    def _forget_old(self) -> None:
        now = time.monotonic()
        for shelf in tuple(self._shelves.values()):
            if not shelf.ready and shelf.factory is None and not shelf.starting and now - shelf.seen > SOON_S:
                del self._shelves[shelf.recipe]

    def _mounts_changed(self, own: bytes) -> bool:
        """Whether anything was mounted or unmounted here since the last time. proc_pid_mounts(5) tells by POLLPRI.

        Args:
            own: what this thread's children inherit, which is not the same in any two mount namespaces.
        """
        try:
            if self._mounts is None or own != self._mounts_of:
                self._mounts = None
                self._mounts_fd = reaper.OwnedFd(os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
                self._mounts_of = own
                self._mounts = select.poll()
                self._mounts.register(self._mounts_fd.fd, select.POLLPRI)
                return True  # what happened before is not known
        except OSError:
            return True
        try:
            return bool(self._mounts.poll(0))
        except RuntimeError:
            return True  # the launch of a signal handler, which interrupts this very look

    def _end_threads(self) -> tuple[threading.Thread, ...]:
        """Tell them to end; the one that is needed begins anew."""
        self._generation += 1
        threads = tuple(self._threads)
        self._threads.clear()
        self._tidying = False
        self._work.notify_all()
        return threads

    def _need_thread(self) -> None:
        if not self._paused and not self._tidying:
            generation = self._generation
            self._tidying = self._start_thread(lambda: self._tidy(generation), "shoal-cells")

    def _start_thread(self, target: Callable[[], None], name: str) -> bool:
        thread = threading.Thread(target=target, name=name, daemon=True)
        # Signals are for the threads of the program.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._threads = {known for known in self._threads if known.is_alive()} | {thread}
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._threads.discard(thread)
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return True

    def _tidy(self, generation: int) -> None:
        """The thread's life: give up what is not wanted or was not asked for any more, until nothing is left."""
        while True:
            with self._lock:
                if generation != self._generation:
                    return
                self._retire_idle()
                unwanted, self._unwanted = self._unwanted, []
                if not unwanted:
                    if not self._shelves:
                        self._tidying = False
                        self._mounts = self._mounts_fd = None
                        return
                    self._work.wait(IDLE_S)
            self._dispose(unwanted)

    def _dispose(self, unwanted: Sequence[Factory | WaitingProcess]) -> None:
        """End all of them, and wait until they are gone."""
        cells = [item for item in unwanted if isinstance(item, WaitingProcess)]
        for item in unwanted:
            if isinstance(item, Factory):
                cells += item.end(functools.partial(self._received, cells))
        for cell in cells:
            cell.end()

    def _received(self, unwanted: Sequence[WaitingProcess]) -> set[int]:
        with self._lock:
            return {pid for cell in (*unwanted, *self._taken) for pid in cell.pids}

    def _retire_idle(self) -> None:
        now = time.monotonic()
        for shelf in tuple(self._shelves.values()):
            if now - shelf.seen >= IDLE_S and not shelf.starting and not shelf.awaited:
                self._retire(shelf)
                del self._shelves[shelf.recipe]


def _see_off(thread: threading.Thread) -> None:
    """Wait until a thread that ends has left the kernel, too: before Python 3.13 join() is earlier, and a fork would still count it."""
    thread.join()
    last = time.monotonic() + LEAVING_S  # another one may have its number by now
    while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < last:
        os.sched_yield()


def launch_warm(recipe: Recipe, fds: Sequence[int], argv: Strings, environ: Strings) -> Process | None:
    """Launch into a cell made ahead. None where there is none, or it did not work out: to be done the cold way then.

    Args:
        fds: the descriptors to hand over, as many as `recipe.sources`; borrowed.
    """
    if len(fds) > FDS_MOST or argv[1] + environ[1] > STRINGS_MOST or len(argv[0]) + len(environ[0]) + len(recipe.finish) > BYTES_MOST:
        return None
    waiting = _pool.take(recipe)
    if waiting is None:
        return None
    process = None
    try:
        process = waiting.become(recipe.finish, fds, argv, environ)
    finally:
        _pool.done_with(waiting, recipe, failed=process is None)
    _pool.refill(recipe, process)  # only now: the making of another would compete with this one
    return process


def fetch() -> None:
    """Get ready for the next launch, while there is nothing better to do."""
    if _pool.is_used:
        _pool.fetch()


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
