"""Executable: what kind of program a file holds, found out once per state of the file.

Called by: spawn, on every launch. Touches: the file, reading only; on a cache hit one stat and one access call.
Two ways in. `inspect(path)` is the quickest; `inspect(fd)` on a descriptor from `open_executable` leaves no moment in which
the file inspected and the file executed could be two different ones.
What is wrong *inside* a file (bad ELF, empty) is not raised here but by `Executable.program` and `follow`: in the order of
evaluation it comes after the arguments have been checked, while a path that cannot be opened comes before.
A file shorter than the resolve prefix is OUT_OF_RANGE only when it is empty; with 1 to 9 bytes it is simply no program.
Source: spec 2.1 (steps 1 and 10), 5.4, 7 and 9.2; execve(2), access(2).
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from shoal.arguments import StrOrBytesPath
from shoal.loader import elf
from shoal.loader.cache import BoundedCache, FileIdentity, are_as_they_were
from shoal.loader.closure import Closure, host_closure, uses_origin, watched_files
from shoal.loader.elf import ElfImage
from shoal.loader.interpreter import WINDOW_BYTES, is_directive
from shoal.loader.tree import OPEN_FLAGS
from shoal.packing import not_encoded
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno


class Kind(enum.Enum):
    """How a file is started."""

    STATIC = "static"
    """An ELF without interpreter."""
    DYNAMIC = "dynamic"
    """An ELF that needs an interpreter and its libraries."""
    SCRIPT = "script"
    """It starts with `#!`."""
    UNKNOWN = "unknown"
    """None of these, or broken: `program()` says what is wrong."""


class Executable(NamedTuple):
    """What a file was found to hold. It knows no path: all names of one file share it."""

    kind: Kind
    identity: FileIdentity
    image: ElfImage | None = None
    window: bytes = b""
    """Of a script: the first bytes, enough for its #! line. Empty for everything else."""
    status: Status = Status.OK
    """Of an unknown one: the status its launch ends with."""
    defect: str = ""
    cacheable: bool = True
    """False for a file without a name (a memfd): it can be changed through a mapping without its times telling."""

    def program(self, name: str) -> ElfImage:
        """The ELF image that will run.

        Raises:
            OutOfRangeError: the file is empty.
            InvalidArgsError: it names its interpreter in no usable way.
            InternalError: it is no program of this machine. All messages begin with `name`.
        """
        if self.image is not None:
            return self.image
        if self.kind is Kind.SCRIPT:
            raise failure(Status.INTERNAL, Stage.LOAD, f"{name} is a script, not a program")
        raise failure(self.status, Stage.LOAD, name + self.defect)


_executables: BoundedCache[FileIdentity, Executable] = BoundedCache(1024)


def inspect(target: StrOrBytesPath | int, name: str | None = None) -> Executable:
    """Find out what `target` holds, after checking that the caller may read and execute it.

    Args:
        target: a path, used as given; or an open descriptor (any access mode, O_PATH too), which stays the caller's and
            whose offset does not move.
        name: how messages call it; default the path, or the number of the descriptor.
    Raises:
        NotFoundError: nothing there, or the empty path.
        AccessDeniedError: not readable, not executable, or on a file system mounted noexec.
        NotSupportedError: a directory, FIFO, socket or device. Never waits for one.
        NotDirError: passes through, or ends with a slash after, something that is no directory.
        BadPathError: too long, or a loop of links.
        InvalidArgsError: the path holds a zero byte.
        TypeError: not a path and not a descriptor.
    """
    if isinstance(target, int):
        return _inspect_fd(target, name or f"descriptor {target}")
    path = os.fspath(target)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise _unreachable(error, name or _shown(path)) from error
    if not stat.S_ISREG(found.st_mode):
        raise _wrong_kind(found.st_mode, name or _shown(path))
    # The kernel is asked every time: the answer depends on who we are now and on the mount, not only on the file.
    if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
        raise _denied(path, name or _shown(path))
    known = _executables.get(FileIdentity.of(found))
    if known is not None:
        return known
    fd = open_executable(path)
    try:
        return _examine(fd, os.fstat(fd), name or _shown(path))
    finally:
        os.close(fd)


def open_executable(path: StrOrBytesPath) -> int:
    """A descriptor for reading and executing the file at `path`, close-on-exec. The caller owns it.

    Raises: as `inspect`, except for a missing execute permission, which `inspect` of the descriptor reports.
    """
    path = os.fspath(path)
    try:
        # Asked first, because opening a device may already do something (rewind a tape, start a watchdog).
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise _wrong_kind(mode, _shown(path))
        fd = os.open(path, OPEN_FLAGS)
    except (OSError, ValueError) as error:
        if isinstance(error, SpawnError):
            raise
        raise _unreachable(error, _shown(path)) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise _wrong_kind(mode, _shown(path))
    return fd


def library_closure(executable: Executable, target: StrOrBytesPath | int | None, name: str | None = None) -> Closure:
    """The interpreter and the libraries of a dynamic program on this host, remembered while none of them changes.

    Args:
        executable: from `inspect`, of kind DYNAMIC.
        target: what was inspected: where the file really is decides about $ORIGIN. None for a program in memory.
        name: how messages call it.
    Raises:
        InternalError: a library or the interpreter is missing or unusable; the message says which and who needs it.
    """
    label = name or (_shown(os.fspath(target)) if target is not None and not isinstance(target, int) else "the program")
    image = executable.program(label)
    origin = _origin(target) if uses_origin(image) else None
    return host_closure(image, executable.identity if executable.cacheable else None, label, origin)


def closure_check(executable: Executable, target: StrOrBytesPath | int | None, name: str, closure: Closure) -> Callable[[], bool]:
    """Tells, later and cheaply, whether `library_closure()` would still give `closure`. The arguments are those of that."""
    identity = executable.identity if executable.cacheable else None
    watched = watched_files(executable.program(name), identity, closure)
    if watched is None:
        return lambda: library_closure(executable, target, name) is closure
    return lambda: are_as_they_were(watched)


def _origin(target: StrOrBytesPath | int | None) -> str | None:
    if target is None:
        return None
    if not isinstance(target, int):
        return os.path.dirname(os.path.realpath(os.fsdecode(target)))
    try:
        path = os.readlink(f"/proc/self/fd/{target}")
        if os.path.samestat(os.stat(path), os.fstat(target)):  # no longer there, renamed over, or a memfd: no place at all
            return os.path.dirname(path)
    except OSError:
        pass
    return None


def _inspect_fd(fd: int, name: str) -> Executable:
    try:
        found = os.fstat(fd)
    except (OSError, OverflowError) as error:
        raise failure(Status.BAD_HANDLE, Stage.LOAD, f"{name} is not open", errno.EBADF) from error
    if not stat.S_ISREG(found.st_mode):
        raise _wrong_kind(found.st_mode, name)
    if not _may_execute(fd, found):
        why = "no permission, or its file system is mounted noexec"
        raise failure(Status.ACCESS_DENIED, Stage.LOAD, f"{name} may not be read and executed: {why}", errno.EACCES)
    known = _executables.get(FileIdentity.of(found)) if found.st_nlink else None
    if known is not None:
        return known
    try:
        return _examine(fd, found, name)
    except OSError as error:
        if isinstance(error, SpawnError) or error.errno != errno.EBADF:
            raise
    try:
        own = os.open(f"/proc/self/fd/{fd}", OPEN_FLAGS)  # O_PATH or write-only: this asks for the permission to read
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.LOAD, f"cannot read {name}") from error
    try:
        return _examine(own, found, name)
    finally:
        os.close(own)


def _may_execute(fd: int, found: os.stat_result) -> bool:
    if os.access(f"/proc/self/fd/{fd}", os.R_OK | os.X_OK, effective_ids=True):
        return True
    if os.path.exists(f"/proc/self/fd/{fd}"):
        return False
    # Without /proc only the bits are left. Access lists are then left to execveat, which has the last word anyway.
    if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
        return False
    if os.geteuid() == 0:
        return bool(found.st_mode & 0o111)
    if os.geteuid() == found.st_uid:
        return found.st_mode & 0o500 == 0o500
    if found.st_gid == os.getegid() or found.st_gid in os.getgroups():
        return found.st_mode & 0o050 == 0o050
    return found.st_mode & 0o005 == 0o005


def _examine(fd: int, found: os.stat_result, name: str) -> Executable:
    identity = FileIdentity.of(found)
    head = os.pread(fd, elf.HEAD_BYTES, 0)

    def read(offset: int, size: int) -> bytes:
        return head[:size] if offset == 0 and size <= len(head) else os.pread(fd, size, offset)

    cacheable = found.st_nlink > 0
    if not head:
        defect = " is empty: there is nothing to execute"
        result = Executable(Kind.UNKNOWN, identity, status=Status.OUT_OF_RANGE, defect=defect, cacheable=cacheable)
    elif is_directive(head):
        result = Executable(Kind.SCRIPT, identity, window=head[:WINDOW_BYTES], cacheable=cacheable)
    else:
        try:
            image = elf.parse(read, identity.size, "")
        except SpawnError as error:
            if isinstance(error.__cause__, OSError):  # the device failed, not the file: nothing to remember
                raise failure_from_errno(error.errno or 0, Stage.LOAD, f"cannot read {name}") from error
            result = Executable(Kind.UNKNOWN, identity, status=error.status, defect=error.detail, cacheable=cacheable)
        else:
            kind = Kind.STATIC if image.is_static else Kind.DYNAMIC
            result = Executable(kind, identity, image, cacheable=cacheable)
    if cacheable and identity.is_settled() and FileIdentity.of(os.fstat(fd)) == identity:
        _executables.put(identity, result)
    return result


def _shown(path: str | bytes) -> str:
    return os.fsdecode(path)


def _unreachable(error: OSError | ValueError, name: str) -> SpawnError:
    if isinstance(error, OSError):
        return failure_from_errno(error.errno or 0, Stage.LOAD, f"cannot open {name!r}" if name == "" else f"cannot open {name}")
    if isinstance(error, UnicodeEncodeError):
        return failure(Status.INVALID_ARGS, Stage.LOAD, not_encoded(f"the path {name!a}", error))
    return failure(Status.INVALID_ARGS, Stage.LOAD, f"the path {name!r} holds a zero byte")


def _wrong_kind(mode: int, name: str) -> SpawnError:
    words = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    word = words.get(stat.S_IFMT(mode), "special file")
    return failure(Status.NOT_SUPPORTED, Stage.LOAD, f"{name} is a {word}, not a file that can be executed")


def _denied(path: str | bytes, name: str) -> SpawnError:
    why = "it is not executable"
    if not os.access(path, os.F_OK, effective_ids=True):
        return failure(Status.NOT_FOUND, Stage.LOAD, f"cannot open {name}", errno.ENOENT)  # gone since the stat
    if not os.access(path, os.R_OK, effective_ids=True):
        why = "it is not readable"
    else:
        try:
            if os.statvfs(path).f_flag & os.ST_NOEXEC:
                why = "its file system is mounted noexec"
        except OSError:
            pass
    return failure(Status.ACCESS_DENIED, Stage.LOAD, f"{name} may not be executed: {why}", errno.EACCES)
