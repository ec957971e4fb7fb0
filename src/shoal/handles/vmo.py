"""Vmo: a piece of memory with a descriptor, readable, writable, sealable, and executable once it cannot change.

Made of a memfd. Its size is fixed when it is made, and the kernel holds it to that, so that nobody who maps it can be hurt
by its shrinking. Sizes are exact: they are not rounded up to whole pages.

A handle without `Rights.WRITE` holds a descriptor that was opened for reading, so the kernel keeps the limit too, wherever
the descriptor goes. (A process of the same user may open it anew for writing through /proc; sealing ends that.)

Source: memfd_create(2), fcntl(2) "File Sealing"; zx_vmo_create(), zx_vmo_replace_as_executable(); spec 6.5.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from typing import ClassVar, Final, Self

from shoal.handles.base import Handle, Rights
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno
from shoal.units import parse_size

NAME_BYTES: Final = 31

_MFD_NOEXEC_SEAL = 0x0008
_MFD_EXEC = 0x0010
_F_SEAL_EXEC = 0x0020
_SEAL_SIZE = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
_SEAL_ALL = _SEAL_SIZE | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_LARGEST = (1 << 63) - 1
_CHUNK = 1 << 30
_LARGEST_UNSIZED = 256 << 20
"""The most read from a file that does not tell its size, as those of /proc."""


class Vmo(Handle):
    """Memory behind a descriptor; `fileno()` is the memfd."""

    kind: ClassVar[str] = "vmo"
    default_rights: ClassVar[Rights] = Rights.DEFAULT_VMO

    @classmethod
    def create(cls, size: int | str, name: str = "") -> Vmo:
        """Memory full of zeros.

        Args:
            size: bytes, or text such as "64K". Pages are only taken when they are written.
            name: for people (/proc/PID/maps, /proc/PID/fd); cut to 31 bytes.
        Raises:
            OutOfRangeError: larger than a file can be.
            InvalidArgsError: `size` is not a size, or `name` has a NUL in it.
            NoMemoryError, NoResourcesError: no memory or no descriptor left.
        """
        try:
            length = parse_size(size)
        except ValueError as error:
            raise failure(Status.INVALID_ARGS, Stage.HANDLE, str(error)) from error
        fd = _new_memory(name)
        try:
            _resize(fd, length)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_SIZE)
        except BaseException:
            os.close(fd)
            raise
        return cls._own(fd)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, name: str = "") -> Vmo:
        """Memory that holds a copy of `data`."""
        view = memoryview(data).cast("B")
        vmo = cls.create(len(view), name)
        try:
            vmo.write(view)
        except BaseException:
            vmo.close()
            raise
        return vmo

    @classmethod
    def from_file(cls, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Vmo:
        """Memory that holds a copy of a regular file, as long as the file was when it was opened.

        If the file shrinks meanwhile the copy ends there; what is added meanwhile is left out. Named after the file.

        Raises:
            NotFoundError, AccessDeniedError, NotDirError: the file cannot be opened.
            NotFileError: a directory, pipe, socket or device. It is not opened, so nothing blocks or happens.
            OutOfRangeError: it does not tell its size and holds more than 256 MiB.
        """
        file = _open_regular(path)
        try:
            fd = _new_memory(os.fsdecode(os.path.basename(os.fspath(path))))
            try:
                _resize(fd, _copy(file, fd, os.fstat(file).st_size))
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_SIZE)
            except OSError as error:
                os.close(fd)
                if isinstance(error, SpawnError):
                    raise
                raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"cannot copy {_shown(path)} to memory") from error
            except BaseException:
                os.close(fd)
                raise
        finally:
            os.close(file)
        return cls._own(fd)

    @classmethod
    def _from_fd(cls, fd: int, rights: Rights | None = None) -> Self:
        """The handle to a memfd that is there already, such as one handed over.

        Raises:
            BadHandleError: `fd` is not open.
            WrongTypeError: it is not a memfd.
        Ownership: takes over `fd`; on an error it stays with the caller.
        """
        check_memory(fd)
        return super()._own(fd, rights)

    @property
    def size(self) -> int:
        """Bytes; exact."""
        return os.fstat(self.fileno()).st_size

    @property
    def name(self) -> str:
        """The name it was made with. Empty where there is no /proc."""
        try:
            target = os.readlink(f"/proc/self/fd/{self.fileno()}")
        except FileNotFoundError:
            return ""
        return target.removeprefix("/memfd:").removesuffix(" (deleted)")

    @property
    def is_sealed(self) -> bool:
        """Can nothing change the contents any more, through whatever handle?"""
        return bool(fcntl.fcntl(self.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)

    def read(self, size: int = -1, offset: int = 0) -> bytes:
        """`size` bytes from `offset`; -1: all from there to the end. Needs `Rights.READ`.

        Raises:
            OutOfRangeError: a part of that is past the end.
        """
        with self._lock:  # so that a close in another thread waits for the end of the read
            fd = self.require(Rights.READ, "read()")
            length = os.fstat(fd).st_size
            if size < 0:
                size = max(0, length - offset)
            self._check_range(offset, size, length)
            buffer = bytearray(size)
            view, done = memoryview(buffer), 0
            while done < size:
                count = os.preadv(fd, [view[done : done + _CHUNK]], offset + done)
                if count == 0:
                    raise failure(Status.OUT_OF_RANGE, Stage.HANDLE, f"the memory ends at {offset + done}")
                done += count
            return bytes(buffer)

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Write all of `data` at `offset`, and say how many bytes that were. Needs `Rights.WRITE`.

        Raises:
            OutOfRangeError: it does not fit; nothing was written.
            AccessDeniedError: the right is missing, or the memory is sealed.
            NoMemoryError, NoResourcesError: no memory left; a part may have been written.
        """
        view = memoryview(data).cast("B")
        with self._lock:
            fd = self.require(Rights.WRITE, "write()")
            self._check_range(offset, len(view), os.fstat(fd).st_size)
            done = 0
            try:
                while done < len(view):
                    done += os.pwrite(fd, view[done : done + _CHUNK], offset + done)
            except OSError as error:
                what = "the memory is sealed" if error.errno == errno.EPERM else f"cannot write byte {offset + done} of the memory"
                raise failure_from_errno(error.errno or 0, Stage.HANDLE, what) from error
            return done

    def seal(self) -> None:
        """Make the contents final, for every handle there is. Needs `Rights.WRITE`. Sealing twice is fine.

        Raises:
            UnavailableError: it is mapped for writing somewhere.
        """
        with self._lock:
            _seal(self.require(Rights.WRITE, "seal()"))

    def replace_as_executable(self) -> Vmo:
        """Seal the memory and give a handle with `Rights.EXECUTE`, and without WRITE, in place of this one.

        This handle is consumed, whatever comes of it. The file mode becomes r-xr-xr-x: whoever is handed the descriptor may
        execute it. As with any file, it cannot be executed while a descriptor open for writing remains, such as that of a
        duplicate made before.

        Raises:
            BadHandleError: the handle is closed.
            UnavailableError: it is mapped for writing somewhere.
            AccessDeniedError: this machine forbids executable memfds (sysctl vm.memfd_noexec=2).
            NotSupportedError: there is no /proc, which is needed to give up write access.
        Source: zx_vmo_replace_as_executable(); spec 6.5.
        """
        rights = self.rights
        fd = self.consume()
        if fd < 0:
            raise self._closed_error()
        try:
            if not stat.S_IMODE(os.fstat(fd).st_mode) & stat.S_IXUSR:
                try:
                    os.fchmod(fd, 0o555)
                except OSError as error:
                    what = "cannot make the memory executable; see sysctl vm.memfd_noexec"
                    raise failure_from_errno(error.errno or 0, Stage.HANDLE, what) from error
            _seal(fd)
            read_only = _reopened(fd, os.O_RDONLY)
        finally:
            os.close(fd)
        return Vmo._own(read_only, (rights | Rights.EXECUTE) & ~Rights.WRITE)

    def _duplicate_fd(self, fd: int, rights: Rights) -> int:
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if writable and not rights & Rights.WRITE:
            return _reopened(fd, os.O_RDONLY)
        return super()._duplicate_fd(fd, rights)

    def _check_range(self, offset: int, size: int, length: int) -> None:
        if offset < 0 or offset + size > length:
            raise failure(Status.OUT_OF_RANGE, Stage.HANDLE, f"bytes {offset} to {offset + size} of a memory of {length} bytes")


def check_memory(fd: int) -> None:
    """Raise unless `fd` is a memfd.

    Raises:
        BadHandleError: it is not open.
        WrongTypeError: it is something else.
    """
    try:
        nameless = os.fstat(fd).st_nlink == 0
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"descriptor {fd} is not open") from error
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        nameless = False
    if not nameless:
        raise failure(Status.WRONG_TYPE, Stage.HANDLE, f"descriptor {fd} is not a memfd")


def _new_memory(name: str) -> int:
    """A new, empty memfd that may be made executable later."""
    cut = os.fsencode(name)[:NAME_BYTES]
    if b"\0" in cut:
        raise failure(Status.INVALID_ARGS, Stage.HANDLE, f"the name {name!r} has a NUL in it")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    # Without a word about execution Linux 6.3 and later decide by a sysctl, and older ones know no such word. Where the
    # sysctl forbids executable ones altogether, memory is still of use for data.
    for execution in (_MFD_EXEC, 0, _MFD_NOEXEC_SEAL):
        try:
            # The name goes in as bytes through the file system encoding: cutting must not fail inside a character.
            fd = os.memfd_create(os.fsdecode(cut), flags | execution)
            break
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EACCES) or execution == _MFD_NOEXEC_SEAL:
                raise failure_from_errno(error.errno or 0, Stage.HANDLE, "cannot make memory") from error
    if not execution & _MFD_NOEXEC_SEAL:
        os.fchmod(fd, 0o600)  # no longer executable; replace_as_executable() is the way to that
    return fd


def _resize(fd: int, size: int) -> None:
    if size > _LARGEST:
        raise failure(Status.OUT_OF_RANGE, Stage.HANDLE, f"{size} bytes are more than a memory can have")
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        if error.errno in (errno.EFBIG, errno.EINVAL):
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            of_ours = "" if most == resource.RLIM_INFINITY else f" here: the limit of file sizes is {most} bytes (RLIMIT_FSIZE)"
            what = f"{size} bytes are more than a memory can have{of_ours}"
            raise failure(Status.OUT_OF_RANGE, Stage.HANDLE, what, error.errno) from error
        raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"cannot make a memory of {size} bytes") from error


def _seal(fd: int) -> None:
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    if seals & _SEAL_ALL == _SEAL_ALL:
        return
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEAL_ALL)
    except OSError as error:
        what = "the memory is mapped for writing" if error.errno == errno.EBUSY else "the memory cannot be sealed"
        raise failure_from_errno(error.errno or 0, Stage.HANDLE, what) from error


def _reopened(fd: int, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        what = "write access to the memory can only be given up where /proc is mounted"
        raise failure(Status.NOT_SUPPORTED, Stage.HANDLE, what, error.errno) from error
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.HANDLE, "cannot open the memory for reading") from error


def _open_regular(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> int:
    """Open a regular file for reading, and nothing else."""
    try:
        # Looked at first: opening a device may already do something. Looked at again, as it may be another one by then.
        _check_regular(os.stat(path), path)
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as error:
        if isinstance(error, OSError):
            raise
        raise failure(Status.INVALID_ARGS, Stage.HANDLE, f"{_shown(path)} is not a path: {error}") from error
    except OSError as error:
        if isinstance(error, SpawnError):
            raise
        raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"cannot open {_shown(path)}") from error
    try:
        _check_regular(os.fstat(file), path)
    except BaseException:
        os.close(file)
        raise
    return file


def _check_regular(status: os.stat_result, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise failure(Status.NOT_FILE, Stage.HANDLE, f"{_shown(path)} is not a regular file")


def _copy(source: int, target: int, size: int) -> int:
    """Copy up to `size` bytes, or all when the file does not tell how many; says how many there were."""
    if size == 0:
        return _copy_unsized(source, target)
    done = 0
    while done < size:
        try:
            count = os.sendfile(target, source, done, min(_CHUNK, size - done))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            data = os.pread(source, min(1 << 20, size - done), done)
            count = os.pwrite(target, data, done) if data else 0
            os.lseek(target, done + count, os.SEEK_SET)
        if count == 0:
            break  # it has shrunk
        done += count
    return done


def _copy_unsized(source: int, target: int) -> int:
    done = 0
    while data := os.read(source, 1 << 20):
        if done + len(data) > _LARGEST_UNSIZED:
            raise failure(Status.OUT_OF_RANGE, Stage.HANDLE, f"a file that does not tell its size has more than {_LARGEST_UNSIZED} bytes")
        while data:
            count = os.pwrite(target, data, done)
            data, done = data[count:], done + count
    return done


def _shown(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    return os.fsdecode(os.fspath(path))
