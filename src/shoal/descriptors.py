"""Descriptors: which of the caller's descriptors becomes which of the child's, and who owns what meanwhile.

A target number is claimed before the local descriptor is looked at (spec 3.7), so a bad target is reported even when the local
one is bad too. Everything that will be handed over is duplicated first: what another thread closes meanwhile does not matter.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from array import array

from shoal import _native
from shoal.actions import AddHandle, CloneFd, Fd, TransferFd
from shoal.handles.base import FD_USE_FOR_STDIO
from shoal.handles.mount import Bind
from shoal.plan import Descriptor
from shoal.privileges import has_kcmp
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

FD_TABLE_SIZE = 1024
STANDARD = ("the caller's standard input", "the caller's standard output", "the caller's standard error")

FdAction = CloneFd | TransferFd | AddHandle


class Descriptors:
    """The child's descriptor table in the making.

    Args:
        consume: False to look only: nothing is duplicated and nothing taken over.
    """

    def __init__(self, *, consume: bool) -> None:
        self.consume = consume
        self.placed: list[Descriptor] = []
        self.taken: dict[int, int] = {}
        """Target number to the index of the action that took it."""
        self._owned: list[int] = []
        self._for_stdio: tuple[int | Bind, str] | None = None

    def claim(self, index: int, action: FdAction, target: int) -> tuple[int, bool]:
        """Take a number of the child for an action; also tells whether it is to fill the standard ones.

        Raises:
            OutOfRangeError: not in 0..1023, or above the limit on open files.
            AlreadyExistsError: an earlier action took it.
        """
        number = target & ~FD_USE_FOR_STDIO if target >= 0 else target
        problem = ""
        if not 0 <= number < FD_TABLE_SIZE:
            problem = f"target descriptor {number} is not in 0..{FD_TABLE_SIZE - 1}"
        elif number not in self.taken and number >= 64:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            if number >= soft != resource.RLIM_INFINITY:
                problem = f"target descriptor {number} is above the limit on open files, {soft} (RLIMIT_NOFILE)"
        if problem:
            raise failure(Status.OUT_OF_RANGE, Stage.DESCRIPTORS, f"action {index}: {shown(action)}: {problem}")
        if number in self.taken:
            what = f"action {index}: {shown(action)}: target descriptor {number} is already taken by action {self.taken[number]}"
            raise failure(Status.ALREADY_EXISTS, Stage.DESCRIPTORS, what)
        self.taken[number] = index
        return number, target != number

    def place(self, target: int, for_stdio: bool, source: int | Bind, label: str) -> None:
        """Put `source` at a claimed number."""
        self.placed.append(Descriptor(target, source, label))
        if for_stdio:
            self._for_stdio = (source, label)

    def take(self, index: int, action: CloneFd | TransferFd) -> None:
        """Carry out an action. A transferred descriptor is gone from the caller afterwards, in any case.

        Raises:
            OutOfRangeError, AlreadyExistsError: the target.
            InvalidArgsError: the local descriptor is not open.
            UnavailableError: to be transferred, but also open under another number.
        """
        fd = number_of(action.local_fd)
        if fd is not None and not is_open(fd):
            fd = None
        try:
            target, for_stdio = self.claim(index, action, action.target_fd)
            if fd is None:
                raise self._not_open(index, action)
            if isinstance(action, TransferFd):
                self._check_sole_owner(index, action, fd)
            label = "" if self.consume else f"{what_is(fd)} ({shown(action)}, action {index})"
            try:
                source = self.copy(fd)
            except SpawnError as error:
                if error.errno == errno.EBADF:  # closed by another thread just now
                    fd = None
                    raise self._not_open(index, action) from error
                raise failure(error.status, Stage.DESCRIPTORS, f"action {index}: {shown(action)}: {error.detail}", error.errno) from error
            self.place(target, for_stdio, source, label)
        finally:
            # What was not open is not closed: by now the number may belong to another thread.
            if fd is not None and isinstance(action, TransferFd) and self.consume:
                close_transferred(action.local_fd)

    def _not_open(self, index: int, action: CloneFd | TransferFd) -> SpawnError:
        what = f"action {index}: {shown(action)}: local descriptor {described(action.local_fd)} is not open"
        return failure(Status.INVALID_ARGS, Stage.DESCRIPTORS, what, errno.EBADF)

    def _check_sole_owner(self, index: int, action: TransferFd, fd: int) -> None:
        if not has_kcmp():
            return
        owned = set(self._owned)
        others = array("i", (int(name) for name in os.listdir("/proc/self/fd") if int(name) != fd and int(name) not in owned))
        try:
            twin = _native.find_duplicate(fd, others.tobytes())
        except OSError:
            return
        if twin >= 0:
            what = f"action {index}: {shown(action)}: local descriptor {fd} is also open as {twin}, so it cannot be transferred"
            raise failure(Status.UNAVAILABLE, Stage.DESCRIPTORS, what)

    def fill_standard(self, *, clone_stdio: bool) -> None:
        """0, 1, 2 where no action took them: the caller's own where it has any, then what is to fill them."""
        for fd in (0, 1, 2):
            if fd in self.taken:
                continue
            if clone_stdio and is_for_children(fd):
                self.taken[fd] = -1
                self.placed.append(Descriptor(fd, fd, STANDARD[fd]))
            elif self._for_stdio is not None:
                self.taken[fd] = -1
                self.placed.append(Descriptor(fd, *self._for_stdio))

    def free_numbers(self, count: int) -> list[int]:
        """The lowest `count` numbers from 3 on that nothing has taken.

        Raises:
            OutOfRangeError: there are not that many.
        """
        free: list[int] = []
        for number in range(3, FD_TABLE_SIZE):
            if len(free) == count:
                break
            if number not in self.taken:
                free.append(number)
        if len(free) < count:
            raise failure(Status.OUT_OF_RANGE, Stage.HANDLES, f"no descriptor number is left below {FD_TABLE_SIZE} for a startup handle")
        return free

    def own(self, fd: int) -> int:
        """Take `fd` over until `close()`."""
        self._owned.append(fd)
        return fd

    def copy(self, fd: int) -> int:
        """A duplicate, owned until `close()`. The descriptor itself when only looking."""
        if not self.consume:
            return fd
        try:
            return self.own(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.DESCRIPTORS, f"cannot duplicate descriptor {fd}") from error

    def close(self) -> None:
        """Close all that is owned."""
        owned, self._owned = self._owned, []
        for fd in owned:
            os.close(fd)


def shown(action: FdAction) -> str:
    """An action in a message: numbers without the stdio bit."""
    if isinstance(action, AddHandle):
        return f"AddHandle({action.id & ~(FD_USE_FOR_STDIO << 16):#x}, {action.handle.kind})"
    target = action.target_fd & ~FD_USE_FOR_STDIO if action.target_fd >= 0 else action.target_fd
    return f"{type(action).__name__}({described(action.local_fd)}, {target})"


def number_of(fd: Fd) -> int | None:
    """The number of something with a descriptor, or None when it is closed."""
    if isinstance(fd, int):
        return fd if fd >= 0 else None
    try:
        number = fd.fileno()
    except (OSError, ValueError):  # closed: a file says ValueError, a socket -1, a handle BadHandleError
        return None
    return number if number >= 0 else None


def described(fd: Fd) -> str:
    """A local descriptor in a message."""
    if isinstance(fd, int):
        return str(fd)
    number = number_of(fd)
    return repr(fd) if number is None else str(number)


def is_open(fd: int) -> bool:
    """Whether `fd` is open in this process."""
    try:
        os.get_inheritable(fd)  # the cheapest question: other threads are not let in meanwhile
    except (OSError, OverflowError, ValueError):
        return False
    return True


def is_for_children(fd: int) -> bool:
    """Whether a standard descriptor is one: open, and not marked close-on-exec, as what a library opens is, which gets a number from
    0 to 2 where the program has closed those."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def close_transferred(local: Fd) -> None:
    """Close what was transferred; an object is closed through its own close(), so that it knows."""
    try:
        if isinstance(local, int):
            if local >= 0:
                os.close(local)
        else:
            close = getattr(local, "close", None)
            number = number_of(local)
            if callable(close):
                close()
            elif number is not None:
                os.close(number)
    except (OSError, ValueError, OverflowError):
        pass  # it was not open; or closed with an error, which is closed all the same: close(2)


_TYPES = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def what_is(fd: int) -> str:
    """A descriptor of the caller in words."""
    mode = os.fstat(fd).st_mode
    kind = next((word for is_kind, word in _TYPES if is_kind(mode)), "object")
    return f"{kind}, the caller's {fd}"
