"""The program that is pid 1 of every cell, as a sealed copy in memory.

Why a copy: it is executed where the installation directory may not be readable, and what runs in a cell as the same user could
reach the file through /proc/1/exe; a sealed memfd cannot be written by anybody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource

from shoal.handles.forks import held_over_forks
from shoal.handles.kept import KeptFd
from shoal.status import Stage, Status, failure, failure_from_errno

_MFD_EXEC = 0x10
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_lock = held_over_forks()


def init_image() -> int:
    """A descriptor of shoal-init, made on first use and kept. Made anew if the program closed it under our feet.

    Raises:
        InternalError: the installation lacks it.
        NoResourcesError: this process may not write a file of its size: RLIMIT_FSIZE in setrlimit(2).
    """
    with _lock:
        return _kept.fd()


def _load() -> int:
    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "shoal-init")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise failure(Status.INTERNAL, Stage.SETUP, f"this installation of shoal lacks {path}; install it again", error.errno) from error
    fd = -1
    try:
        fd = _memory_file()
        os.fchmod(fd, 0o555)
        rest = memoryview(data)
        while rest:  # a limit of file sizes cuts off what is beyond it, and refuses the rest only
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        if error.errno == errno.EFBIG:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            what = f"a cell takes a file in memory of {len(data)} bytes, and the limit of file sizes is {most} (RLIMIT_FSIZE): raise it"
            raise failure(Status.NO_RESOURCES, Stage.SETUP, what, error.errno) from error
        raise failure_from_errno(error.errno or 0, Stage.SETUP, "cannot make a memory file for the cell's first process") from error
    return fd


def _memory_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("shoal-init", flags | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 6.3 every memory file can be executed
            raise
        return os.memfd_create("shoal-init", flags)


_kept = KeptFd(_load)
