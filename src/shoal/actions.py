"""What is handed over: the six actions of a spawn, as data. They are carried out in order.

Source: fdio_spawn_action in fdio's spawn.h; spec 1.2 and 3.7 to 3.11.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from shoal.handles.base import Handle


@runtime_checkable
class HasFileno(Protocol):
    """Anything with a descriptor: a file, a socket, a handle."""

    def fileno(self) -> int: ...


Fd: TypeAlias = int | HasFileno


@dataclass(frozen=True, slots=True)
class CloneFd:
    """Give the child a copy of `local_fd` at `target_fd`; the caller keeps its own.

    Args:
        local_fd: an open descriptor, or anything with fileno().
        target_fd: 0 to 1023, in the child; with `FD_USE_FOR_STDIO` it also fills each of 0, 1, 2 that nothing else filled.
    Fails with: OUT_OF_RANGE (target), ALREADY_EXISTS (target taken by an earlier action), INVALID_ARGS (local_fd is not
        open). The target is checked first.
    Source: FDIO_SPAWN_ACTION_CLONE_FD in fdio's spawn.h.
    """

    local_fd: Fd
    target_fd: int


@dataclass(frozen=True, slots=True)
class TransferFd:
    """Move `local_fd` to the child at `target_fd`. The caller's descriptor is gone, whether or not the spawn succeeds.

    An object with fileno() is closed through its own close(), so that it knows.

    Fails with: what CloneFd fails with, and UNAVAILABLE when another descriptor of this process is the same open file
        (a dup).
    Source: FDIO_SPAWN_ACTION_TRANSFER_FD in fdio's spawn.h.
    """

    local_fd: Fd
    target_fd: int


@dataclass(frozen=True, slots=True)
class AddNsEntry:
    """Put what `handle` stands for at `prefix` in the child's world. The handle is consumed in any case.

    Among entries the first wins: a repeated path, and one below or above an earlier entry, is ignored. Entries that
    CLONE_NAMESPACE or CloneDir bring come before added ones, except that an entry added to the caller's whole world is
    mounted on top of what is there.

    Args:
        prefix: an absolute path. `//`, `.` and a trailing `/` are cleaned away; `..` is refused.
        handle: a Directory, Socket or Vmo (as a file); a NetNs, only and always at "/svc/net".
        nested: mount it also where it lies below or on top of an earlier entry. What is not there to mount it on is made
            only in directories that are themselves made for the child. Where it is only read and lies in what can be written, the
            directories on the way to it are mounted where they are, so that they can be neither moved nor removed.
    Source: FDIO_SPAWN_ACTION_ADD_NS_ENTRY in fdio's spawn.h; `nested` is ours.
    """

    prefix: str
    handle: Handle
    nested: bool = False


@dataclass(frozen=True, slots=True)
class AddHandle:
    """Give the child `handle` under `id` (see `PA_HND`), to be found with `shoal.startup.take_handle(id)`. Consumed in any case.

    Args:
        name: what the two programs call it, for `shoal.startup.names()` and LISTEN_FDNAMES. A handle that becomes a descriptor of the
            number asked for (`HandleType.FD`) has none.
    Source: FDIO_SPAWN_ACTION_ADD_HANDLE in fdio's spawn.h; `name` is ours.
    """

    id: int
    handle: Handle
    name: str = ""


@dataclass(frozen=True, slots=True)
class SetName:
    """Name the process; the default is argv[0]. The last one wins. Cut to 31 bytes; the kernel shows 15 (`ps -o comm`).

    Source: FDIO_SPAWN_ACTION_SET_NAME in fdio's spawn.h.
    """

    name: str


@dataclass(frozen=True, slots=True)
class CloneDir:
    """Share the caller's directory at `prefix`, with everything below it, at the same path and with the same access.

    `/` is CLONE_NAMESPACE. A prefix that does not exist selects nothing, without error.

    Args:
        prefix: absolute, without `/` at the end, without `..`.
    Source: FDIO_SPAWN_ACTION_CLONE_DIR in fdio's spawn.h.
    """

    prefix: str


Action: TypeAlias = CloneFd | TransferFd | AddNsEntry | AddHandle | SetName | CloneDir

_FIELDS: dict[type, tuple[tuple[str, type | tuple[type, ...], str], ...]] = {
    CloneFd: (("local_fd", (int, HasFileno), "an int or an object with fileno()"), ("target_fd", int, "an int")),
    TransferFd: (("local_fd", (int, HasFileno), "an int or an object with fileno()"), ("target_fd", int, "an int")),
    AddNsEntry: (("prefix", str, "a str"), ("handle", Handle, "a shoal handle")),
    AddHandle: (("id", int, "an int"), ("handle", Handle, "a shoal handle"), ("name", str, "a str")),
    SetName: (("name", str, "a str"),),
    CloneDir: (("prefix", str, "a str"),),
}


def check_actions(actions: Iterable[Action]) -> tuple[Action, ...]:
    """The actions as a tuple, each field of the right type.

    Raises:
        TypeError: an element is no action, or a field has the wrong type; names the action's index. Nothing is consumed.
    """
    checked = tuple(actions)
    for index, action in enumerate(checked):
        fields = _FIELDS.get(type(action))
        if fields is None:
            raise TypeError(
                f"action {index} is a {type(action).__name__}; actions are CloneFd, TransferFd, AddNsEntry, AddHandle, SetName, CloneDir"
            )
        for name, kind, words in fields:
            value = getattr(action, name)
            if not isinstance(value, kind):
                raise TypeError(f"action {index}: {type(action).__name__}.{name} must be {words}, not {type(value).__name__}")
    return checked
