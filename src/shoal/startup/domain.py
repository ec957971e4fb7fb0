"""What a program sees of the domain that it is, from inside: the capabilities that a process manager gave it.

A part of the manager's client that is imported from here because this is where a program looks for what it was handed. Importing
`shoal.startup` does not load it.

Source: spec sections 2.7, 4.1 and 4.2; lib/barrelfish/domain.c and init.c in Barrelfish.
"""

from __future__ import annotations

from shoal import startup
from shoal.handles.base import PA_HND_ARG, PA_HND_TYPE
from shoal.handles.forks import held_over_forks
from shoal.manager.cnode import ARGUMENTS, CNode

_lock = held_over_forks()
_args: list[CNode | None] = []


def args() -> CNode | None:
    """The CNode that was given as the domain's arguments, with the same handles in the same slots; None: nothing was.

    The first call claims the startup handles of type `HandleType.USER0`, which are then no longer in `shoal.startup.handles()`. Every call
    gives the same CNode, so that what is taken out of it is gone for all. An empty CNode arrives as none.
    """
    with _lock:
        if not _args:
            _args.append(_claimed())
        return _args[0]


def _claimed() -> CNode | None:
    names = {id: name for name, id in startup.names().items()}
    found = CNode()
    for id in startup.handles():
        slot = PA_HND_ARG(id)
        if PA_HND_TYPE(id) == ARGUMENTS and slot < CNode.SLOTS and (handle := startup.take_handle(id)) is not None:
            found.adopt(slot, handle, names.get(id, ""))
    return found if len(found) else None
