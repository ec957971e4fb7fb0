"""Handing over: what a program is told of the handles it was given by the manager and through it.

They arrive as startup handles of two types, like everything that a spawn hands over: those of its argument CNode as USER0, what is its
own as USER1 with the number of Barrelfish's slot for it: cnode.py. Those that a manager adds are here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from shoal.handles.base import PA_HND, Rights
from shoal.handles.socket import Socket
from shoal.handles.vmo import Vmo
from shoal.manager.cnode import CHANNEL, CORE, MEMORY_RIGHTS, TASK, TASK_CHANNELS, TASK_DOMAIN, TASK_MANAGER, TASK_MEMORY
from shoal.manager.wire import Given
from shoal.startup_table import VARIABLE, StartupHandle, StartupTable

_FIRST: Final = 3


def lowest_free(taken: Iterable[int]) -> int:
    """The number in the child for one more descriptor."""
    used = set(taken)
    number = _FIRST
    while number in used:
        number += 1
    return number


def capability(target: int, core: int | str) -> Given:
    """The capability for the domain itself."""
    return Given(PA_HND(TASK, TASK_DOMAIN), Vmo.kind, int(Rights.READ | Rights.DUPLICATE | Rights.TRANSFER), f"{CORE}{core}", target)


def manager(target: int) -> Given:
    """A connection to the manager."""
    return Given(PA_HND(TASK, TASK_MANAGER), Socket.kind, int(_SOCKET), "manager", target)


def memory(target: int) -> Given:
    """The memory that all dispatchers share."""
    return Given(PA_HND(TASK, TASK_MEMORY), Vmo.kind, int(MEMORY_RIGHTS), "memory", target)


def channel(target: int, index: int, there: int | str) -> Given:
    """An end of a channel to the dispatcher on another core."""
    return Given(PA_HND(TASK, TASK_CHANNELS + index), Socket.kind, int(_SOCKET), f"{CHANNEL}{there}", target)


_SOCKET: Final = Rights.READ | Rights.WRITE | Rights.DUPLICATE | Rights.TRANSFER | Rights.WAIT


def startup_variable(given: Iterable[Given], fds: Mapping[int, int]) -> bytes | None:
    """The variable that tells a program what it was given; None: nothing.

    Args:
        fds: descriptors of this process by their numbers in the child.
    Raises:
        ValueError: it cannot be told.
    """
    handles = []
    for item in given:
        status = os.fstat(fds[item.target])
        handles.append(StartupHandle(item.id, item.target, item.kind, item.rights, status.st_dev, status.st_ino, item.name))
    return f"{VARIABLE}={StartupTable(None, tuple(handles)).encode()}".encode() if handles else None
