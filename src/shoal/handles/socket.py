"""Socket and File: descriptors made by somebody else, taken over to be handed on.

Source: socket(7), fcntl(2).
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import ClassVar, Protocol, Self

from shoal.handles.base import Handle, Rights
from shoal.status import Stage, Status, failure, failure_from_errno


class HasFileno(Protocol):
    """Anything with a descriptor: a socket, an open file, a handle."""

    def fileno(self) -> int: ...


class _Taken(Handle):
    """What Socket and File have in common: `from_fd()`."""

    @classmethod
    def from_fd(cls, fd: int | HasFileno) -> Self:
        """Take over a descriptor; it is made close-on-exec.

        Args:
            fd: a number, or an object with fileno(). A handle is consumed, a socket.socket detached, and any other object that
                can be closed is closed, after its descriptor was copied.
        Raises:
            TypeError: neither.
            BadHandleError: not open.
            WrongTypeError: not of this type.
            NoResourcesError: no descriptor left for the copy.
        Ownership: belongs to the handle afterwards; on an error it stays with the caller.
        """
        number = _number_of(fd)
        try:
            status = os.fstat(number)
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"descriptor {number} is not open") from error
        cls._check(number, status)
        rights = cls._rights_for(flags)
        try:
            number = _take(fd, number)
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"descriptor {number} cannot be taken over") from error
        return cls._own(number, rights)

    @classmethod
    def _check(cls, fd: int, status: os.stat_result) -> None:
        """Raise unless this is a descriptor of this type."""

    @classmethod
    def _rights_for(cls, flags: int) -> Rights:
        return cls.default_rights


class Socket(_Taken):
    """A socket of any family."""

    kind: ClassVar[str] = "socket"
    default_rights: ClassVar[Rights] = Rights.DEFAULT_SOCKET

    @classmethod
    def _check(cls, fd: int, status: os.stat_result) -> None:
        if not stat.S_ISSOCK(status.st_mode):
            raise failure(Status.WRONG_TYPE, Stage.HANDLE, f"descriptor {fd} is not a socket; File.from_fd() takes any other")


class File(_Taken):
    """Any other descriptor: a file, pipe, terminal, directory, event... Its rights follow from how it was opened."""

    kind: ClassVar[str] = "file"
    default_rights: ClassVar[Rights] = Rights.BASIC | Rights.IO | Rights.PROPERTY | Rights.SIGNAL

    @classmethod
    def _rights_for(cls, flags: int) -> Rights:
        if flags & getattr(os, "O_PATH", 0):
            return cls.default_rights & ~Rights.IO
        lacking = {os.O_RDONLY: Rights.WRITE, os.O_WRONLY: Rights.READ}.get(flags & os.O_ACCMODE, Rights.NONE)
        return cls.default_rights & ~lacking


def _number_of(fd: int | HasFileno) -> int:
    if isinstance(fd, bool) or not (isinstance(fd, int) or hasattr(fd, "fileno")):
        raise TypeError(f"a descriptor is an int or has fileno(), unlike {type(fd).__name__}")
    number = fd if isinstance(fd, int) else fd.fileno()
    if not isinstance(number, int):
        raise TypeError(f"fileno() of {type(fd).__name__} gave {type(number).__name__}, not int")
    if not 0 <= number < 1 << 31:
        raise failure(Status.BAD_HANDLE, Stage.HANDLE, f"{number} cannot be an open descriptor")
    return number


def _take(fd: int | HasFileno, number: int) -> int:
    """Move the descriptor out of whatever holds it. Raises OSError, and has then taken nothing."""
    if isinstance(fd, int):
        os.set_inheritable(number, False)
        return number
    if isinstance(fd, Handle):
        os.set_inheritable(number, False)
        return fd.consume()
    detach = getattr(fd, "detach", None)
    # io objects have a detach() of another meaning: it gives the object below
    if detach is not None and not hasattr(fd, "read") and not hasattr(fd, "write"):
        os.set_inheritable(number, False)
        taken: int = detach()
        return taken
    copy = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    close = getattr(fd, "close", None)
    try:
        if close is not None:
            close()  # writes out what it holds in its buffer
    except BaseException:
        os.close(copy)
        raise
    return copy
