"""What a program sees of the domain that it is a dispatcher of, from inside: what a process manager gave it.

A part of the manager's client that is imported from here because this is where a program looks for what it was handed. Importing
`shoal.startup` does not load it. Everything but `args()` takes a domain that was started with `own_capability=True`, or by a span.

Source: spec sections 2.7, 4.1 and 4.2; lib/barrelfish/domain.c and init.c in Barrelfish.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shoal import startup
from shoal.handles.base import PA_HND, PA_HND_ARG, PA_HND_TYPE, Handle
from shoal.handles.forks import held_over_forks
from shoal.handles.received import received
from shoal.handles.socket import Socket
from shoal.handles.vmo import Vmo
from shoal.manager.cnode import (
    ARGUMENTS,
    CHANNEL,
    CORE,
    MEMORY_RIGHTS,
    TASK,
    TASK_CHANNELS,
    TASK_DOMAIN,
    TASK_MANAGER,
    TASK_MEMORY,
    CNode,
)
from shoal.manager.errors import ManagerError
from shoal.manager.tokens import DomainCap

if TYPE_CHECKING:
    from shoal.manager.client import Manager

_lock = held_over_forks()


class _Claimed:
    """What was claimed, from the first use of each on."""

    def __init__(self) -> None:
        self.args: list[CNode | None] = []
        self.capability: DomainCap | None = None
        self.core: int | str | None = None
        self.manager: Manager | None = None
        self.memory: Handle | None = None
        self.channels: dict[int | str, Handle] | None = None


_claimed = _Claimed()


def args() -> CNode | None:
    """The CNode that was given as the domain's arguments, with the same handles in the same slots; None: nothing was.

    The first call claims the startup handles of type `HandleType.USER0`, which are then no longer in `shoal.startup.handles()`. Every call
    gives the same CNode, so that what is taken out of it is gone for all. An empty CNode arrives as none.
    """
    with _lock:
        if not _claimed.args:
            _claimed.args.append(_arguments())
        return _claimed.args[0]


def capability() -> DomainCap:
    """The capability for this domain itself.

    Raises:
        ManagerError: it was not given any.
    """
    with _lock:
        return _capability()


def core() -> int | str:
    """The core that this dispatcher was started on.

    Raises:
        ManagerError: as `capability()`.
    """
    return _core()


def manager() -> Manager:
    """The manager of this domain, by the connection that was handed over; where that is lost, by the way everybody takes, if it is open.

    Raises:
        ManagerError: no connection was handed over.
    """
    from shoal.manager.client import Manager, dial_own

    with _lock:
        if _claimed.manager is None:
            given = startup.take_handle(PA_HND(TASK, TASK_MANAGER))
            if given is None:
                raise _not_given("connection to its manager")
            _claimed.manager = Manager(dial_own(given), lambda: None, lambda: None)
        return _claimed.manager


def span(core: int | str) -> None:
    """Start another dispatcher of this domain on another core, and be connected with it when this returns: `channel()`, `memory()`.

    Raises:
        ManagerError: as `Domain.span()` in shoal.manager, or nothing was handed over that it takes.
    Source: spawn_span() in Barrelfish's spawn_client.c.
    """
    here, token, asked = _core(), capability().to_token(), manager()
    memory_fd, end = asked._span(token, core, here)
    with _lock:
        _own_channels()[core] = Socket.from_fd(end)
        if _claimed.memory is None:
            _claimed.memory = _memory_of(memory_fd)
        else:
            os.close(memory_fd)


def memory() -> Handle:
    """The memory that all dispatchers of this domain share: a memory object (Vmo) that may be mapped, read and written.

    Raises:
        ManagerError: nothing was handed over by which it could be had.
    """
    with _lock:
        if _claimed.memory is None:
            _claimed.memory = startup.take_handle(PA_HND(TASK, TASK_MEMORY))
        known = _claimed.memory
    if known is not None:
        return known
    fd = manager()._shared_memory(capability().to_token())
    with _lock:
        if _claimed.memory is None:
            _claimed.memory = _memory_of(fd)
        else:
            os.close(fd)
        return _claimed.memory


def channel(core: int | str) -> Handle:
    """This dispatcher's end of the channel to the one on another core: a socket that keeps messages apart (SOCK_SEQPACKET). Every call
    gives the same one.

    Raises:
        ManagerError: LIB_ERR_NO_SPANNED_DISP: there is no dispatcher of this domain there.
    """
    here = _core()
    with _lock:
        known = _own_channels().get(core)
    if known is not None:
        return known
    end = manager()._channel(capability().to_token(), here, core)
    with _lock:
        return _own_channels().setdefault(core, Socket.from_fd(end))


def _arguments() -> CNode | None:
    names = {id: name for name, id in startup.names().items()}
    found = CNode()
    for id in startup.handles():
        slot = PA_HND_ARG(id)
        if PA_HND_TYPE(id) == ARGUMENTS and slot < CNode.SLOTS and (handle := startup.take_handle(id)) is not None:
            found.adopt(slot, handle, names.get(id, ""))
    return found if len(found) else None


def _capability() -> DomainCap:
    if _claimed.capability is None:
        id = PA_HND(TASK, TASK_DOMAIN)
        name = next((name for name, named in startup.names().items() if named == id), "")
        given = startup.take_handle(id)
        if not isinstance(given, Vmo):
            raise _not_given("capability for itself")
        with given:
            _claimed.capability = DomainCap.from_vmo(given)
        _claimed.core = _as_core(name.removeprefix(CORE))
    return _claimed.capability


def _core() -> int | str:
    with _lock:
        _capability()
        assert _claimed.core is not None
        return _claimed.core


def _own_channels() -> dict[int | str, Handle]:
    if _claimed.channels is None:
        _claimed.channels = {}
        names = {id: name for name, id in startup.names().items()}
        for id in startup.handles():
            if PA_HND_TYPE(id) == TASK and PA_HND_ARG(id) >= TASK_CHANNELS and (handle := startup.take_handle(id)) is not None:
                _claimed.channels[_as_core(names.get(id, "?").removeprefix(CHANNEL))] = handle
    return _claimed.channels


def _memory_of(fd: int) -> Handle:
    return received(Vmo.kind, fd, int(MEMORY_RIGHTS))


def _as_core(name: str) -> int | str:
    return int(name) if name.isdigit() else name


def _not_given(what: str) -> ManagerError:
    how = "a domain is given it when it is started with own_capability=True"
    return ManagerError("PROC_MGMT_ERR_DOMAIN_CAP_HASH", f"this process was not handed a {what}; {how}")
