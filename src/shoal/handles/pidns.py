"""Jobs made of pid namespaces, for where no cgroup can be made.

The guarantees that matter are the same: a process in the job can neither leave it nor survive its kill, whatever it forks,
because the kernel ends a pid namespace as a whole with its first process. What is weaker, and said where it shows:

* Such a job ends with the process that made it; a job made of a cgroup outlives its maker.
* It has no limits and counts nothing: asking for either is refused.
* Without root its processes live in a user namespace where only the caller's own ids are mapped.

Source: pid_namespaces(7), user_namespaces(7).
"""

from __future__ import annotations

import fcntl
import itertools
import os
import select
import signal
import weakref
from contextlib import suppress
from typing import NoReturn

from shoal.handles import reaper
from shoal.handles.deadline import Deadline, is_ready
from shoal.handles.job_backend import Counters, JobBackend, Limits, Placement
from shoal.handles.keeper import HOLD, keeper_plan, open_null, start_keeper
from shoal.handles.process import Usage
from shoal.handles.reaper import Keeper, OwnedFd
from shoal.handles.userns import kept_user_namespace
from shoal.packing import CLONE_NEWPID, CLONE_NEWUSER, Packer, Place
from shoal.privileges import is_privileged
from shoal.status import SpawnError, Stage, Status, failure

_NS_GET_PARENT = 0xB702

_counter = itertools.count(1)
_lingering: list[tuple[Keeper, OwnedFd]] = []
"""Jobs nobody holds any more in which something still ran; looked at again whenever another is made."""


def create(name: str | None, parent: JobBackend) -> PidnsBackend:
    """A new job below `parent`.

    Raises:
        NotSupportedError: no namespace can be made here.
    """
    _end_empty()
    packer = Packer()
    packer.unshare_fds()
    where = Place()
    above = parent.placement().init_pidfd
    if above is not None:
        where = {"enter_fd": above, "enter_flags": CLONE_NEWPID | (0 if is_privileged() else CLONE_NEWUSER)}
    try:
        if above is None and not is_privileged():
            where = kept_user_namespace()
        plan = keeper_plan(packer, open_null(packer), CLONE_NEWPID, **where)
        keeper, control = start_keeper(plan, "the job's first process")
    except SpawnError as error:
        if error.stage is Stage.CLONE or error.status is Status.ACCESS_DENIED:
            raise failure(Status.NOT_SUPPORTED, Stage.JOB, f"no pid namespace either ({error.detail})", error.errno) from error
        raise
    os.write(control, HOLD)
    keeper.control = control
    chosen = name if name is not None else f"shoal-{os.getpid()}-ns{next(_counter)}"
    return PidnsBackend(chosen, OwnedFd(os.dup(keeper.fileno())), parent.depth + 1, parent.denies_new_process, keeper, parent)


def adopt(fd: int, name: str | None) -> PidnsBackend:
    """The job that the pidfd of a first process stands for, handed over by its maker. Takes over `fd`."""
    return PidnsBackend(name or "job", OwnedFd(fd), 1, False, None, None)


class PidnsBackend:
    """One pid namespace, held by the pidfd of its first process. Implements `job_backend.JobBackend`."""

    def __init__(self, name: str, init: OwnedFd, depth: int, denies: bool, keeper: Keeper | None, parent: JobBackend | None) -> None:
        self.name = name
        self.depth = depth
        self.denies_new_process = denies
        self._init = init
        self._parent = parent  # keeps it alive: the namespaces are nested
        self._children: list[PidnsBackend] = []
        self._killed = False
        if keeper is not None:
            # Not __del__: in a cycle of references that would find the descriptors closed already.
            weakref.finalize(self, _retire, keeper, init, os.getpid()).atexit = False

    def open_fd(self) -> int:
        return os.dup(self._init.fd)

    def placement(self) -> Placement:
        return Placement(None, None if _is_ours(self._init.fd) else self._init.fd, self.denies_new_process, self)

    def create_child(self, name: str | None) -> PidnsBackend:
        child = create(name, self)
        self._children.append(child)
        return child

    def children(self) -> list[PidnsBackend]:
        self._children = [child for child in self._children if not child.is_killed()]
        return list(self._children)

    def processes(self, *, recursive: bool) -> list[int]:
        found = _processes_of(self._init.fd)
        if recursive:
            return found
        below = {pid for child in self.children() for pid in child.processes(recursive=True)}
        return [pid for pid in found if pid not in below]

    def is_populated(self) -> bool:
        return not self.is_killed() and bool(self.processes(recursive=True))

    def wait_empty(self, deadline: Deadline) -> bool:
        # There is no event for "empty", but there is one for the end of each process; so wait for one after the other.
        while not is_ready(self._init.fd, select.POLLIN):
            pids = self.processes(recursive=True)
            if not pids:
                return True
            for pid in pids:
                try:
                    pidfd = OwnedFd(os.pidfd_open(pid))
                except ProcessLookupError:
                    continue
                if not deadline.wait_ready(pidfd.fd, select.POLLIN):
                    return False
        return True

    def usage(self) -> Usage:
        self._refuse("count what it uses")

    def counters(self) -> Counters:
        self._refuse("count what it uses")

    def set_limits(self, limits: Limits) -> None:
        self._refuse("have limits")

    def kill(self) -> None:
        self._killed = True
        for child in self._children:
            child.kill()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init.fd, signal.SIGKILL)

    def is_killed(self) -> bool:
        return self._killed or is_ready(self._init.fd, select.POLLIN)

    def deny_new_process(self) -> None:
        self.denies_new_process = True

    def hand_over(self) -> None:
        """Nothing to note: it ends with its maker, whoever else holds it."""

    def _refuse(self, what: str) -> NoReturn:
        detail = f"job {self.name} is a pid namespace, which cannot {what}; that takes a cgroup, see `shoal doctor`"
        raise failure(Status.NOT_SUPPORTED, Stage.JOB, detail)


def _retire(keeper: Keeper, init: OwnedFd, maker: int) -> None:
    """Nobody holds the job any more: end it, now or once nothing runs in it."""
    if os.getpid() == maker:
        _lingering.append((keeper, init))
        _end_empty()


def _end_empty() -> None:
    """End the jobs nobody holds and nothing runs in."""
    for entry in tuple(_lingering):
        keeper, init = entry
        if is_ready(init.fd, select.POLLIN) or not _processes_of(init.fd):
            keeper.kill()
            try:
                _lingering.remove(entry)
            except ValueError:
                continue  # another thread did it
            reaper.register(keeper)


def _processes_of(init: int) -> list[int]:
    """The live processes of the namespace that `init` is the first of, and of all nested in it, by their pids here."""
    first = _pid_of(init)
    try:
        wanted = None if first is None else os.stat(f"/proc/{first}/ns/pid").st_ino
    except OSError:
        wanted = None
    if wanted is None:
        return []
    depth = len(_status(first or 0).get("NSpid", ()))
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or name == str(first):
            continue
        status = _status(name)
        levels = status.get("NSpid", [])
        # The first process of a namespace is one that shoal started to hold it, not something anybody asked for.
        is_keeper = levels[-1:] == ["1"] and status.get("Name") == ["shoal-init"]
        if len(levels) >= depth and not _is_zombie(status) and not is_keeper and _lives_below(name, wanted):
            found.append(int(name))
    return sorted(found)


def _is_ours(init: int) -> bool:
    """Whether this process lives in the namespace that `init` is the first of, so that there is nothing to enter."""
    levels = next((line.split()[1:] for line in _lines(f"/proc/self/fdinfo/{init}") if line.startswith("NSpid:")), [])
    own = _status("self").get("NSpid", [])
    return levels[-1:] == ["1"] and len(levels) == len(own)


def _pid_of(pidfd: int) -> int | None:
    for line in _lines(f"/proc/self/fdinfo/{pidfd}"):
        if line.startswith("Pid:"):
            pid = int(line.split()[1])
            return pid if pid > 0 else None
    return None


def _status(pid: int | str) -> dict[str, list[str]]:
    """The fields of /proc/PID/status, empty when there is no such process."""
    pairs = (line.partition(":") for line in _lines(f"/proc/{pid}/status"))
    return {field: value.split() for field, _, value in pairs}


def _is_zombie(status: dict[str, list[str]]) -> bool:
    """Whether it has ended. One whose first thread has ended shows the state of a zombie, too, but has other threads."""
    return status.get("State", [])[:1] == ["Z"] and status.get("Threads", ["0"]) in (["0"], ["1"])


def _lives_below(pid: str, wanted: int) -> bool:
    """Whether the namespace of `pid` is `wanted` or nested in it."""
    try:
        fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    return is_or_lies_in(fd, wanted)


def is_or_lies_in(namespace: int, inode: int) -> bool:
    """Whether a namespace is the one with this inode or nested in it: by the chain of NS_GET_PARENT, ioctl_ns(2).

    Whoever made the other may look, also at one of a process that does not want to be looked at: user_namespaces(7).

    Ownership: takes over the descriptor `namespace`.
    """
    fd = namespace
    try:
        while os.fstat(fd).st_ino != inode:
            above = fcntl.ioctl(fd, _NS_GET_PARENT)
            os.close(fd)
            fd = above
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
