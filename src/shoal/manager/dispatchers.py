"""Dispatchers: the processes of a domain on several cores, and what they share: a memory object, and a channel between each two.

The source says that no main runs in a dispatcher made by a span. A Linux process has to run something: it is the same program with the
same arguments and the environment that the first one began with, and `shoal.startup.domain` tells it that it is another dispatcher.
"""

from __future__ import annotations

import socket
from typing import Final

from shoal.handles.threads import folder_of
from shoal.handles.vmo import Vmo
from shoal.manager.errors import ManagerError

MEMORY_BYTES: Final = 1 << 20
"""The size of the shared memory at first; any of the dispatchers may change it."""


class Shared:
    """What the dispatchers of one domain share, and the ends of channels that nobody has fetched yet.

    Ownership: of the descriptors in it.
    """

    def __init__(self) -> None:
        self._memory: Vmo | None = None
        self._ends: dict[tuple[int | str, int | str], socket.socket] = {}

    def memory(self, name: str) -> int:
        """A descriptor of the memory, made on first use; borrowed."""
        if self._memory is None:
            self._memory = Vmo.create(MEMORY_BYTES, name)
        return self._memory.fileno()

    def connect(self, here: int | str, there: int | str) -> None:
        """Make the channel between the dispatchers on two cores."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for key, end in (((here, there), near), ((there, here), far)):
            before = self._ends.pop(key, None)
            if before is not None:
                before.close()
            self._ends[key] = end

    def fetch(self, here: int | str, there: int | str) -> socket.socket:
        """One's end of a channel, once; the caller's.

        Raises:
            ManagerError: there is none, or it was fetched before.
        """
        end = self._ends.pop((here, there), None)
        if end is None:
            what = f"there is no channel from core {here} to core {there}, or it was fetched before"
            raise ManagerError("LIB_ERR_NO_SPANNED_DISP", what)
        return end

    def drop(self, core: int | str) -> None:
        """There is no dispatcher on this core after all."""
        for key in [key for key in self._ends if core in key]:
            self._ends.pop(key).close()

    def close(self) -> None:
        for end in self._ends.values():
            end.close()
        self._ends.clear()
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def environment_of(pid: int) -> list[bytes]:
    """The variables that a living process began with.

    Raises:
        ManagerError: they cannot be read.
    """
    try:
        with open(f"{folder_of(pid)}/environ", "rb") as file:
            return [item for item in file.read().split(b"\0") if item and not item.startswith(b"SHOAL_STARTUP=")]
    except OSError as error:
        raise ManagerError("SPAWN_ERR_SPAN", f"the environment of process {pid} cannot be read: {error.strerror}") from error
