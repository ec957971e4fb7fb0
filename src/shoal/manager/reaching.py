"""Reaching: the inits of domains whose manager is gone, each of which listens for the next one as d<slot>.

It takes an init a moment to notice, and one that is stopped (SIGSTOP, or its cgroup is frozen) takes as long as it is.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from shoal.manager.errors import ManagerError
from shoal.manager.ledger import Slot
from shoal.manager.watching import Watcher

LOOK_S: Final = 1.0
"""How often one is looked for that lives and does not listen, should the kernel have no room to tell us when it does."""


class Reaching:
    """For the loop's thread.

    Args:
        directory: where they listen; borrowed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: int) -> None:
        self._loop, self._directory = loop, directory
        self._watcher = Watcher(loop)

    def close(self) -> None:
        self._watcher.close()

    async def to(self, number: int, slot: Slot | None, patience_s: float) -> socket.socket | None:
        """A connection to the init of a slot. None: it is gone, and what it has left of its socket is removed.

        Args:
            slot: names its process; None: that is not known.
            patience_s: how long to look for one whose process is not known, or does not live any more.
        """
        path = f"/proc/self/fd/{self._directory}/d{number}"
        last = self._loop.time() + patience_s
        while (sock := _connected(path)) is None:
            with self._told_of(path, slot) as (news, lives):
                if (sock := _connected(path)) is not None:  # since the look before, and now we would be told
                    return sock
                left = LOOK_S if lives else last - self._loop.time()
                if left <= 0:
                    self.unlink(number)
                    return None
                await asyncio.wait((news,), timeout=left)
        return sock

    def unlink(self, number: int) -> None:
        """Remove what an init that was killed has left of its socket."""
        for name in (f"d{number}", f"n{number}"):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)

    @contextmanager
    def _told_of(self, path: str, slot: Slot | None) -> Iterator[tuple[asyncio.Future[None], bool]]:
        """What is done when something appears at `path`, or the process of the slot ends; and whether that lives."""
        news: asyncio.Future[None] = self._loop.create_future()

        def tell() -> None:
            if not news.done():
                news.set_result(None)

        init, lives = -1, slot is not None and _lives(slot)
        try:
            # Without room for another watch or descriptor it is looked for again.
            with suppress(ManagerError):
                self._watcher.appears(path, path, tell)
            if slot is not None and lives:
                with suppress(OSError):
                    init = os.pidfd_open(slot.init_pid)
                    self._loop.add_reader(init, tell)
                lives = _lives(slot)  # still, so that it was the one
            yield news, lives
        finally:
            self._watcher.forget(path)
            if init >= 0:
                self._loop.remove_reader(init)
                os.close(init)


def _connected(path: str) -> socket.socket | None:
    """A socket connected to who listens there, if anybody does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)  # who has stopped an init does not stop us
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock


def _lives(slot: Slot) -> bool:
    """Whether its init does. A process with its number that began at another time is somebody else."""
    try:
        with open(f"/proc/{slot.init_pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return int(fields[19]) == slot.init_start and fields[0] not in (b"Z", b"X")
