"""Orders: what the init of a domain is told and tells, packed. The layout is in src/native/domain.h."""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

LAUNCH, CELL, KEEP, SIGNAL, END, COMMAND = range(1, 7)
HERE, STARTED, FAILED, TOLD_ENDED = range(1, 5)
OUT, ERR, EMPTY, TENTATIVE = 1, 2, 4, 8
"""Which descriptors come with LAUNCH and CELL; TENTATIVE: it is no dispatcher until KEEP says so."""
AS_THE_KERNEL_SAYS: Final = -1

_ORDER: Final = struct.Struct("=IiiIQQQ")
_TOLD: Final = struct.Struct("=IiiIQQ")
_FDS: Final = 4
_SENDING: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)  # put together here, since that takes as long as sending
_RECEIVING: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)


class Told(NamedTuple):
    """What an init told. `fds` are the receiver's."""

    kind: int
    pid: int
    error: int
    slot: int
    id: int
    key: int
    fds: tuple[int, ...]


def order(
    sock: socket.socket,
    kind: int,
    a: int = 0,
    b: int = 0,
    *,
    core: int = -1,
    c: int = 0,
    d: int = 0,
    e: int = 0,
    fds: Sequence[int] = (),
) -> None:
    """Send an order.

    Args:
        core: where LAUNCH is to begin; -1: anywhere.
    Raises:
        OSError: the init has ended, or does not listen.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([_ORDER.pack(kind, a, b, core + 1, c, d, e)], ancillary, _SENDING)


def told(sock: socket.socket) -> Told | None:
    """What is there to hear; None when the init has ended.

    Raises:
        BlockingIOError: nothing is.
    """
    try:
        data, ancillary, _, _ = sock.recvmsg(_TOLD.size, socket.CMSG_SPACE(_FDS * 4), _RECEIVING)
    except ConnectionError:
        return None
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content[: len(content) // 4 * 4])
    if len(data) != _TOLD.size:
        for fd in fds:
            os.close(fd)
        return None
    kind, pid, error, slot, id, key = _TOLD.unpack(data)
    return Told(kind, pid, error, slot, id, key, tuple(fds))
