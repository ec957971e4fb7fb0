"""Zircon statuses, the stages of a spawn, and the tree of errors built from them.

ShoalError
+- SpawnError (OSError)             the child never ran its program, or a handle refused an operation
   +- NotFoundError                 NOT_FOUND       (FileNotFoundError)
   +- AccessDeniedError             ACCESS_DENIED   (PermissionError)
   +- InvalidArgsError              INVALID_ARGS    (ValueError)
   +- BadHandleError                BAD_HANDLE
   +- WrongTypeError                WRONG_TYPE      (TypeError)
   +- AlreadyExistsError            ALREADY_EXISTS  (FileExistsError)
   +- OutOfRangeError               OUT_OF_RANGE
   +- NotSupportedError             NOT_SUPPORTED
   +- UnavailableError              UNAVAILABLE
   +- BadStateError                 BAD_STATE
   +- NoResourcesError              NO_RESOURCES
   +- NoMemoryError                 NO_MEMORY       (MemoryError)
   +- TimedOutError                 TIMED_OUT       (TimeoutError)
   +- IoInvalidError                IO_INVALID
   +- BadPathError                  BAD_PATH
   +- NotDirError                   NOT_DIR         (NotADirectoryError)
   +- NotFileError                  NOT_FILE
   +- PeerClosedError               PEER_CLOSED     (ConnectionError)
   +- InternalError                 INTERNAL, and every status without a class of its own

Source: Zircon's <zircon/errors.h> for names and numbers; fdio's spawn.h for their use.
"""

import enum
import errno as _errno
import os
import resource as _resource
from typing import Any

MESSAGE_BYTES = 1023
"""Longest text of a SpawnError in bytes: FDIO_SPAWN_ERR_MSG_MAX_LENGTH without its NUL."""


class Status(enum.IntEnum):
    """What became of a request. Names and numbers are Zircon's."""

    OK = 0
    INTERNAL = -1
    NOT_SUPPORTED = -2
    NO_RESOURCES = -3
    NO_MEMORY = -4
    INVALID_ARGS = -10
    BAD_HANDLE = -11
    WRONG_TYPE = -12
    OUT_OF_RANGE = -14
    BUFFER_TOO_SMALL = -15
    BAD_STATE = -20
    TIMED_OUT = -21
    SHOULD_WAIT = -22
    CANCELED = -23
    PEER_CLOSED = -24
    NOT_FOUND = -25
    ALREADY_EXISTS = -26
    ALREADY_BOUND = -27
    UNAVAILABLE = -28
    ACCESS_DENIED = -30
    IO = -40
    IO_INVALID = -47
    BAD_PATH = -50
    NOT_DIR = -51
    NOT_FILE = -52


class Stage(enum.Enum):
    """Where a spawn failed. The values are words for people."""

    ARGUMENTS = "arguments"
    LOAD = "loading the executable"
    DIRECTIVES = "following #! lines"
    LOADER = "finding shared libraries"
    JOB = "job"
    DESCRIPTORS = "descriptors"
    NAMESPACE = "namespace"
    HANDLES = "startup handles"
    CLONE = "clone"
    SETUP = "setting up the child"
    EXEC = "exec"
    HANDLE = "handle operation"


_ERRNO = {
    Status.INTERNAL: _errno.EIO,
    Status.NOT_SUPPORTED: _errno.EOPNOTSUPP,
    Status.NO_RESOURCES: _errno.EAGAIN,
    Status.NO_MEMORY: _errno.ENOMEM,
    Status.INVALID_ARGS: _errno.EINVAL,
    Status.BAD_HANDLE: _errno.EBADF,
    Status.WRONG_TYPE: _errno.EINVAL,
    Status.OUT_OF_RANGE: _errno.ERANGE,
    Status.BUFFER_TOO_SMALL: _errno.ENOBUFS,
    Status.BAD_STATE: _errno.ESRCH,
    Status.TIMED_OUT: _errno.ETIMEDOUT,
    Status.SHOULD_WAIT: _errno.EAGAIN,
    Status.CANCELED: _errno.ECANCELED,
    Status.PEER_CLOSED: _errno.EPIPE,
    Status.NOT_FOUND: _errno.ENOENT,
    Status.ALREADY_EXISTS: _errno.EEXIST,
    Status.ALREADY_BOUND: _errno.EBUSY,
    Status.UNAVAILABLE: _errno.EBUSY,
    Status.ACCESS_DENIED: _errno.EACCES,
    Status.IO: _errno.EIO,
    Status.IO_INVALID: _errno.ELOOP,
    Status.BAD_PATH: _errno.ENAMETOOLONG,
    Status.NOT_DIR: _errno.ENOTDIR,
    Status.NOT_FILE: _errno.EISDIR,
}

_FROM_ERRNO = {
    _errno.ENOENT: Status.NOT_FOUND,
    _errno.EACCES: Status.ACCESS_DENIED,
    _errno.EPERM: Status.ACCESS_DENIED,
    _errno.EROFS: Status.ACCESS_DENIED,
    _errno.EINVAL: Status.INVALID_ARGS,
    _errno.EBADF: Status.BAD_HANDLE,
    _errno.EEXIST: Status.ALREADY_EXISTS,
    _errno.ERANGE: Status.OUT_OF_RANGE,
    _errno.E2BIG: Status.OUT_OF_RANGE,
    _errno.ENOSYS: Status.NOT_SUPPORTED,
    _errno.EOPNOTSUPP: Status.NOT_SUPPORTED,
    _errno.ENOMEM: Status.NO_MEMORY,
    _errno.EAGAIN: Status.NO_RESOURCES,
    _errno.EMFILE: Status.NO_RESOURCES,
    _errno.ENFILE: Status.NO_RESOURCES,
    _errno.ENOSPC: Status.NO_RESOURCES,
    _errno.EDQUOT: Status.NO_RESOURCES,
    _errno.EBUSY: Status.UNAVAILABLE,
    _errno.ETXTBSY: Status.UNAVAILABLE,
    _errno.ELOOP: Status.BAD_PATH,
    _errno.ENAMETOOLONG: Status.BAD_PATH,
    _errno.ENOTDIR: Status.NOT_DIR,
    _errno.EISDIR: Status.NOT_FILE,
    _errno.ENODEV: Status.BAD_STATE,
    _errno.ESRCH: Status.BAD_STATE,
    _errno.EPIPE: Status.PEER_CLOSED,
    _errno.ECONNREFUSED: Status.PEER_CLOSED,
    _errno.ETIMEDOUT: Status.TIMED_OUT,
    _errno.EIO: Status.IO,
}


def on_one_line(text: str) -> str:
    """`text` as a terminal can show it: a path may hold anything, and control characters and undecodable bytes are spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class ShoalError(Exception):
    """Base of every error that is shoal's own."""


class SpawnError(ShoalError, OSError):
    """The child never ran its program. It has been reaped, and what had to be consumed is consumed.

    The same classes report a refused handle operation (`stage` is then `Stage.HANDLE`).
    Compare `status` and `stage`; the text is for people and is at most 1,023 bytes long.

    Attributes:
        status: the Zircon status.
        errno: the Linux error number nearest to it, or the one the kernel gave.
        stage: where it happened.
        detail: the text without status and stage.
    """

    status: Status
    stage: Stage
    detail: str

    def __init__(self, status: Status, errno: int, stage: Stage, detail: str) -> None:
        super().__init__(errno, detail)
        self.status, self.stage, self.detail = status, stage, detail

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses processes and machines whole
        return type(self), (self.status, self.errno, self.stage, self.detail)

    def __str__(self) -> str:
        tail = f": {self.status.name} ({os.strerror(self.errno or 0)}, while in {self.stage.value})"
        room = MESSAGE_BYTES - len(tail.encode())
        detail = on_one_line(self.detail).encode("utf-8", "backslashreplace")
        if len(detail) > room:
            detail = detail[: room - 3] + b"..."
        return detail.decode("utf-8", "ignore") + tail


class NotFoundError(SpawnError, FileNotFoundError):
    """The path given to spawn, or a name that was looked up, does not exist."""


class AccessDeniedError(SpawnError, PermissionError):
    """A right is missing: on a handle, or a file permission."""


class InvalidArgsError(SpawnError, ValueError):
    """An argument is of the right type but cannot be right."""


class BadHandleError(SpawnError):
    """The handle is closed, was consumed, or never was one."""


class WrongTypeError(SpawnError, TypeError):
    """A valid handle, but to another kind of object."""


class AlreadyExistsError(SpawnError, FileExistsError):
    """The same descriptor number or name was asked for twice."""


class OutOfRangeError(SpawnError):
    """A number or a length is outside what is possible."""


class NotSupportedError(SpawnError):
    """This object, or this kernel, cannot do it."""


class UnavailableError(SpawnError):
    """The object is shared or in use, so it cannot be handed over now."""


class BadStateError(SpawnError):
    """The object exists but has ended: a job that was killed, say."""


class NoResourcesError(SpawnError):
    """A limit of the system or of this process is reached: descriptors, processes, space."""


class NoMemoryError(SpawnError, MemoryError):
    """The kernel had no memory for it."""


class TimedOutError(SpawnError, TimeoutError):
    """Nobody answered in time."""


class IoInvalidError(SpawnError):
    """Too many #! directives followed one another."""


class BadPathError(SpawnError):
    """A path or one of its components is too long, or loops."""


class NotDirError(SpawnError, NotADirectoryError):
    """A path passes through, or ends with a slash after, something that is not a directory."""


class NotFileError(SpawnError):
    """A regular file was needed."""


class PeerClosedError(SpawnError, ConnectionError):
    """Whoever should have answered is gone."""


class InternalError(SpawnError):
    """A dependency of the launch was missing or failed: an interpreter, a resolver, a library."""


_CLASSES: dict[Status, type[SpawnError]] = {
    Status.NOT_FOUND: NotFoundError,
    Status.ACCESS_DENIED: AccessDeniedError,
    Status.INVALID_ARGS: InvalidArgsError,
    Status.BAD_HANDLE: BadHandleError,
    Status.WRONG_TYPE: WrongTypeError,
    Status.ALREADY_EXISTS: AlreadyExistsError,
    Status.OUT_OF_RANGE: OutOfRangeError,
    Status.NOT_SUPPORTED: NotSupportedError,
    Status.UNAVAILABLE: UnavailableError,
    Status.BAD_STATE: BadStateError,
    Status.NO_RESOURCES: NoResourcesError,
    Status.NO_MEMORY: NoMemoryError,
    Status.TIMED_OUT: TimedOutError,
    Status.IO_INVALID: IoInvalidError,
    Status.BAD_PATH: BadPathError,
    Status.NOT_DIR: NotDirError,
    Status.NOT_FILE: NotFileError,
    Status.PEER_CLOSED: PeerClosedError,
}


def failure(status: Status, stage: Stage, detail: str, errno: int | None = None) -> SpawnError:
    """The error of the class that belongs to `status`, ready to be raised."""
    number = errno if errno is not None else _ERRNO.get(status, _errno.EIO)
    return _CLASSES.get(status, InternalError)(status, number, stage, detail)


def failure_from_errno(errno: int, stage: Stage, detail: str) -> SpawnError:
    """The error that tells of a failed system call."""
    if errno == _errno.EMFILE:
        detail += f"; no more than {_resource.getrlimit(_resource.RLIMIT_NOFILE)[0]} descriptors may be open: ulimit -n"
    return failure(_FROM_ERRNO.get(errno, Status.INTERNAL), stage, detail, errno)
