"""KeptFd: a descriptor that is made on first use and kept for every later one.

What is kept may have a high number, and a child copies the descriptor table up to the highest number it is handed. So it does not
hand over a high one but opens the same file anew by its link in /proc.
"""

from __future__ import annotations

import os
from collections.abc import Callable

FEW_FDS = 64
"""So many descriptors are copied as fast as none."""


def wants_reopening(fd: int) -> bool:
    """Whether a child should open this file anew instead of being handed the number."""
    return fd >= FEW_FDS and os.path.exists("/proc/self/fd")


def is_still(fd: int, status: os.stat_result) -> bool:
    """Whether a descriptor is of the file it was made for: the program may have closed it under our feet, and the number be another's."""
    try:
        return os.path.samestat(os.fstat(fd), status)
    except OSError:
        return False


class KeptFd:
    """Holds what `make` made, and makes it anew if the program closed it under our feet. The caller does the locking.

    Args:
        make: gives a new descriptor.
    """

    def __init__(self, make: Callable[[], int]) -> None:
        self._make = make
        self._fd = -1
        self._status: os.stat_result | None = None

    def fd(self) -> int:
        """The descriptor. Raises what `make` raises."""
        if self._status is None or not is_still(self._fd, self._status):
            self._fd = self._make()
            self._status = os.fstat(self._fd)
        return self._fd
