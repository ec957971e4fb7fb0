"""The nursery: a small process that the inits of domains are forked from, seen from here; src/native/init/nursery.c is what it does."""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import Final

from shoal.handles import reaper
from shoal.handles.images import init_image
from shoal.handles.keeper import launch, open_null
from shoal.handles.reaper import Keeper
from shoal.handles.userns import own_user_namespace
from shoal.lowering import CAP_SYS_ADMIN, CAP_SYS_PTRACE
from shoal.packing import Packed, Packer, Place, count_strings

_CONTROL, _LEDGER, _RUN, _LOGS = 3, 6, 7, 8
"""The descriptors of an init: src/native/domain.h."""
_ANSWER: Final = struct.Struct("=i")
AHEAD: Final = 16
"""How many inits wait for their domain."""


_files_before: tuple[int, int] | None = None


def allow_many_files() -> None:
    """Let this process have as many files open as it may, since each domain needs one. Its domains may have as many as it could before."""
    global _files_before
    _files_before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_files_before[1], _files_before[1]))


class Init:
    """A process that waits to become the init of a domain. `socket` is what it is told by."""

    __slots__ = ("pid", "socket")

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.socket = sock

    def lives(self) -> bool:
        """Whether nobody has killed it."""
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionError:
            pass
        return False  # it has nothing to say before it is told something


class Nursery:
    """Inits made ahead, a few at a time. When it is closed, those that have no domain yet end."""

    def __init__(self, ledger: int, run: int, logs: int, *, makes_cells: bool = False) -> None:
        """Start it.

        Args:
            ledger, run, logs: the ledger, and the directories where an init without a manager listens and keeps what it hears.
            makes_cells: an ordinary user's inits need a user namespace to make cells in.
        Raises:
            SpawnError: why not.
        """
        self._waiting: deque[Init] = deque()
        self._asked = 0
        self._refused = 0
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            self._socket = near
            try:
                fds = (init_image(), far.fileno(), ledger, run, logs)
                # Two words and room in them: what is forked is called by other names.
                argv = count_strings((b"shoal-domain", b"d".ljust(16)))
                pid, pidfd = launch(_plan(in_user_namespace=makes_cells), fds, argv, (b"", 0), "the nursery of domains")
            except BaseException:
                near.close()
                raise
        self._process = Keeper(pidfd, pid)
        self._ask()

    def fileno(self) -> int:
        """Readable when there is something to `receive()`."""
        return self._socket.fileno()

    def take(self) -> Init | None:
        """An init, if one waits.

        Raises:
            OSError: none does, since none could be made.
        """
        while True:
            if not self._waiting:
                self.receive()
            init = self._waiting.popleft() if self._waiting else None
            refused, self._refused = self._refused, 0
            if init is None and refused:
                raise OSError(refused, os.strerror(refused))
            self._ask()
            if init is None or init.lives():
                return init
            init.socket.close()

    def receive(self) -> bool:
        """Take in what has been made. False: there will be no more, it has ended."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if len(data) != _ANSWER.size:
                return False
            self._asked -= 1
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content[: len(content) // 4 * 4])
            for fd in fds:
                self._waiting.append(Init(_ANSWER.unpack(data)[0], socket.socket(fileno=fd)))
            if not fds:  # it could not be made; or we have no descriptor left for it, and it has ended
                self._refused = max(-_ANSWER.unpack(data)[0], 0) or errno.EMFILE

    def _ask(self) -> None:
        if self._asked == 0 and len(self._waiting) <= AHEAD // 2:
            self._asked = AHEAD - len(self._waiting)
            try:
                self._socket.send(struct.pack("=I", self._asked), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except OSError:
                self._asked = 0

    def close(self) -> None:
        """End it, and the inits nobody has taken."""
        self._socket.close()
        for init in self._waiting:
            init.socket.close()
        self._waiting.clear()
        reaper.register(self._process)  # which lives as long as its inits do, and reaps them


def _plan(*, in_user_namespace: bool) -> Packed:
    packer = Packer()
    packer.unshare_fds()
    image, control, ledger, run, logs = (packer.hole() for _ in range(5))
    clone_flags, where = 0, Place()
    if in_user_namespace:
        clone_flags = own_user_namespace(packer, where)
        packer.op("KEEP_CAPS", "keeping what it takes to enter a cell", a=1 << CAP_SYS_ADMIN | 1 << CAP_SYS_PTRACE)
    null = open_null(packer)
    packer.op("SETSID", "making a session")
    if _files_before is not None:
        soft, hard = _files_before
        packer.op("RLIMIT", "setting the limit of open files", flags=resource.RLIMIT_NOFILE, a=soft, b=hard)
    packer.fd_map([(control, _CONTROL), (ledger, _LEDGER), (run, _RUN), (logs, _LOGS)], null)
    packer.op("SIGNALS", "resetting signals")
    return packer.packed(clone_flags=clone_flags, exec_fd=image, **where)
