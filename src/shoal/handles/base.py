"""Handle: an owned file descriptor together with the rights its holder has.

Rights belong to the handle, not to the object: a duplicate may have fewer, never more. Operations check in Zircon's
order: is the handle valid (BAD_HANDLE), of the right type (WRONG_TYPE), and does it carry the right (ACCESS_DENIED).

Source: Zircon's <zircon/rights.h> and <zircon/processargs.h>; spec sections 1.4 and 6.1.
"""

from __future__ import annotations

import enum
import fcntl
import os
import threading
from typing import ClassVar, Self

from shoal.status import Stage, Status, failure, failure_from_errno


class Rights(enum.IntFlag):
    """What the holder of a handle may do. Bits are Zircon's; SAME is only for requests."""

    NONE = 0
    DUPLICATE = 1 << 0
    TRANSFER = 1 << 1
    READ = 1 << 2
    WRITE = 1 << 3
    EXECUTE = 1 << 4
    MAP = 1 << 5
    GET_PROPERTY = 1 << 6
    SET_PROPERTY = 1 << 7
    ENUMERATE = 1 << 8
    DESTROY = 1 << 9
    SET_POLICY = 1 << 10
    GET_POLICY = 1 << 11
    SIGNAL = 1 << 12
    SIGNAL_PEER = 1 << 13
    WAIT = 1 << 14
    INSPECT = 1 << 15
    MANAGE_JOB = 1 << 16
    MANAGE_PROCESS = 1 << 17
    MANAGE_THREAD = 1 << 18
    APPLY_PROFILE = 1 << 19
    MANAGE_SOCKET = 1 << 20
    OP_CHILDREN = 1 << 21
    RESIZE = 1 << 22
    ATTACH_VMO = 1 << 23
    MANAGE_VMO = 1 << 24
    SAME = 1 << 31

    BASIC = TRANSFER | DUPLICATE | WAIT | INSPECT
    IO = READ | WRITE
    PROPERTY = GET_PROPERTY | SET_PROPERTY
    POLICY = GET_POLICY | SET_POLICY
    DEFAULT_JOB = BASIC | IO | PROPERTY | POLICY | ENUMERATE | DESTROY | SIGNAL | MANAGE_JOB | MANAGE_PROCESS | MANAGE_THREAD
    DEFAULT_PROCESS = BASIC | IO | PROPERTY | ENUMERATE | DESTROY | SIGNAL | MANAGE_PROCESS | MANAGE_THREAD
    DEFAULT_VMO = BASIC | IO | PROPERTY | MAP | SIGNAL
    DEFAULT_CLOCK = BASIC | IO | PROPERTY | SIGNAL
    DEFAULT_SOCKET = BASIC | IO | PROPERTY | SIGNAL | SIGNAL_PEER | MANAGE_SOCKET


class HandleType(enum.IntEnum):
    """The type part of a startup handle id (`PA_*`)."""

    PROC_SELF = 0x01
    THREAD_SELF = 0x02
    JOB_DEFAULT = 0x03
    VMAR_ROOT = 0x04
    VMAR_LOADED = 0x05
    LDSVC_LOADER = 0x10
    VMO_VDSO = 0x11
    VMO_STACK = 0x13
    VMO_EXECUTABLE = 0x14
    VMO_BOOTDATA = 0x1A
    VMO_BOOTFS = 0x1B
    VMO_KERNEL_FILE = 0x1C
    VMO_COMPONENT_CONFIG = 0x1D
    NS_DIR = 0x20
    FD = 0x30
    LIFECYCLE = 0x3A
    DIRECTORY_REQUEST = 0x3B
    ESCROWED_DICTIONARY = 0x3C
    LOG_SINK = 0x3D
    RESOURCE = 0x3F
    CLOCK_UTC = 0x40
    MMIO_RESOURCE = 0x50
    IRQ_RESOURCE = 0x51
    IOPORT_RESOURCE = 0x52
    SMC_RESOURCE = 0x53
    SYSTEM_RESOURCE = 0x54
    USER0 = 0xF0
    USER1 = 0xF1
    USER2 = 0xF2


FD_USE_FOR_STDIO = 0x8000
"""A bit in the argument of a `PA_FD` id, or in a target_fd: that descriptor also fills each of 0, 1, 2 nothing else filled."""


def PA_HND(type: int, arg: int = 0) -> int:
    """The startup handle id for a `HandleType` and its argument. Source: spec 1.4."""
    return (int(type) & 0xFF) | ((arg & 0xFFFF) << 16)


def PA_HND_TYPE(id: int) -> int:
    """The type part of a startup handle id."""
    return id & 0xFF


def PA_HND_ARG(id: int) -> int:
    """The argument part of a startup handle id."""
    return (id >> 16) & 0xFFFF


class Handle:
    """An owned descriptor with rights. Made by the class methods of the concrete types, never directly.

    A handle closes its descriptor when it is closed, consumed or collected. All methods are safe from any thread.
    """

    kind: ClassVar[str] = "handle"
    """The word for this type in SHOAL_STARTUP and in messages."""
    default_rights: ClassVar[Rights] = Rights.BASIC | Rights.IO

    _fd: int
    _rights: Rights
    _lock: threading.RLock

    def __init__(self) -> None:
        raise TypeError(f"a {type(self).__name__} is made by its class methods, not by calling the class")

    @classmethod
    def _own(cls, fd: int, rights: Rights | None = None) -> Self:
        """Take over `fd` with `rights` (default: all this type has). The only way in."""
        self = object.__new__(cls)
        self._lock = threading.RLock()
        self._fd = fd
        self._rights = cls.default_rights if rights is None else rights
        return self

    @property
    def rights(self) -> Rights:
        """What may be done through this handle."""
        return self._rights

    @property
    def closed(self) -> bool:
        """True once the handle was closed or consumed."""
        return self._fd < 0

    def fileno(self) -> int:
        """The descriptor, still owned by the handle.

        Raises:
            BadHandleError: the handle is closed or was consumed.
        """
        fd = self._fd
        if fd < 0:
            raise self._closed_error()
        return fd

    def require(self, rights: Rights, operation: str) -> int:
        """The descriptor, after checking that the handle is open and carries all of `rights`.

        Raises:
            BadHandleError: closed or consumed.
            AccessDeniedError: a right is missing; the message names it.
        """
        fd = self.fileno()
        # As plain ints: IntFlag's own operators make a new member each time, which shows on every wait.
        if int.__and__(self._rights, rights) != rights:
            missing = rights & ~self._rights
            raise failure(
                Status.ACCESS_DENIED, Stage.HANDLE, f"{operation} needs {missing.name} on this {self.kind} handle, which it lacks"
            )
        return fd

    def duplicate(self, rights: Rights = Rights.SAME) -> Self:
        """A second handle to the same object, with the same rights or fewer.

        Raises:
            BadHandleError: this handle is closed.
            AccessDeniedError: this handle lacks `Rights.DUPLICATE`.
            InvalidArgsError: `rights` has one that this handle lacks.
        Source: zx_handle_duplicate(); spec 6.1.
        """
        self.require(Rights.DUPLICATE, "duplicate()")
        wanted = self._narrowed(rights)
        with self._lock:
            fd = self.fileno()
            try:
                copy = self._duplicate_fd(fd, wanted)
            except OSError as error:
                raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"cannot duplicate this {self.kind} handle") from error
        return self._wrap_duplicate(copy, wanted)

    def close(self) -> None:
        """Give up the descriptor. Closing twice is fine."""
        fd = self._release()
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd {self._fd}"
        return f"<shoal.{type(self).__name__} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"a {type(self).__name__} is a descriptor of this process and cannot be pickled")

    # --- for the layers above -------------------------------------------------------------------------

    def consume(self) -> int:
        """Move the descriptor out; the handle is closed afterwards. -1 when it already was."""
        return self._release()

    def _release(self) -> int:
        with self._lock:
            fd, self._fd = self._fd, -1
        return fd

    def _narrowed(self, rights: Rights) -> Rights:
        if rights == Rights.SAME:
            return self._rights
        more = Rights(rights) & ~self._rights
        if more:
            what = f"a duplicate can only narrow rights; this {self.kind} handle lacks {more.name}"
            raise failure(Status.INVALID_ARGS, Stage.HANDLE, what)
        return Rights(rights)

    def _duplicate_fd(self, fd: int, rights: Rights) -> int:
        """A new descriptor for `rights`; types whose object can carry the limit itself override this."""
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)

    def _wrap_duplicate(self, fd: int, rights: Rights) -> Self:
        return type(self)._own(fd, rights)

    def _closed_error(self) -> Exception:
        return failure(Status.BAD_HANDLE, Stage.HANDLE, f"this {self.kind} handle is closed or was handed over")
