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


class KeptFd:
    """Holds what `make` made, and makes it anew if the program closed it under our feet. The caller does the locking.

    Args:
        make: gives a new descriptor.
    """

    def __init__(self, make: Callable[[], int]) -> None:
        self._make = make
        self._fd = -1
        self._identity = (-1, -1)

    def fd(self) -> int:
        """The descriptor. Raises what `make` raises."""
        if self._fd >= 0:
            try:
                status = os.fstat(self._fd)
                if (status.st_dev, status.st_ino) == self._identity:
                    return self._fd
            except OSError:
                pass
        self._fd = self._make()
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)
        return self._fd
