"""CNode: a table of handles for a domain, in slots that both sides know by number or by name.

A CNode is given to a spawn in one of two parts:

* as its arguments: any handles in any slots, and the domain finds them in slots of the same numbers, by `shoal.startup.domain.args()`;
* as what it inherits: open files under the same numbers, a session, and the kernel capability, in the slots of FDSPAGE, SESSIONID and
  KERNELCAP. The domain never sees this CNode, only what was in it.

How they travel: the handle in slot N of the arguments is the startup handle `PA_HND(HandleType.USER0, N)`, so that a program in any
language finds it. What a domain has of its own comes as `PA_HND(HandleType.USER1, N)`, where N is the slot of Barrelfish's task CNode: 12
for its session, 8 for the kernel capability, 19 for the capability that is for the domain itself.

Source: spec sections 4.1 and 4.2; lib/spawndomain and include/barrelfish_kpi/init.h in Barrelfish.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Self

from shoal.actions import Action, AddHandle, CloneFd, HasFileno
from shoal.handles.base import PA_HND, Handle, HandleType, Rights
from shoal.handles.directory import Directory
from shoal.handles.received import received
from shoal.manager.errors import ManagerError
from shoal.status import Stage, Status, failure

FDSPAGE, SESSIONID, KERNELCAP = 1, 2, 3
"""Slots of a CNode that is inherited."""
TASK_KERNEL, TASK_SESSION, TASK_DOMAIN = 8, 12, 19
"""Slots of the task CNode, where a domain finds what is its own."""
ARGUMENTS: Final = HandleType.USER0
TASK: Final = HandleType.USER1
TASK_MEMORY, TASK_MANAGER, TASK_CHANNELS = 4, 22, 64
"""What a dispatcher is handed besides: the memory all of them share, a connection to the manager, and channels."""
CORE, CHANNEL = "core.", "channel."
"""How the names of a capability and of a channel begin; the core follows that it was handed over on, or leads to."""
MEMORY_RIGHTS: Final = Rights.READ | Rights.WRITE | Rights.MAP | Rights.DUPLICATE | Rights.TRANSFER

Part = Literal["args", "inherit"]

_HIGHEST_FD: Final = 1023
_NAME_BYTES: Final = 255
_CODES: Final[Mapping[Part, tuple[str, str]]] = {
    "args": ("SPAWN_ERR_SETUP_ARGCN", "SPAWN_ERR_COPY_ARGCN"),
    "inherit": ("SPAWN_ERR_SETUP_INHERITED_CAPS", "SPAWN_ERR_COPY_INHERITCN_CAP"),
}
_DETAILS: Final = {FDSPAGE: "SPAWN_ERR_SETUP_FDCAP", SESSIONID: "SPAWN_ERR_SETUP_SIDCAP", KERNELCAP: "SPAWN_ERR_SETUP_KERNEL_CAP"}


@dataclass(frozen=True, slots=True)
class Slot:
    """What is in one slot, as it is told to another process beside the descriptor.

    Attributes:
        slot: its number; of an inherited open file the number that it is to have.
        kind, rights: of the handle; "fd" for an inherited open file.
        fd: the descriptor in this process; borrowed.
        name: what both sides call it, or "".
    """

    slot: int
    kind: str
    rights: int
    fd: int
    name: str = ""


class CNode:
    """A table of handles for a domain, in up to 256 slots.

    What is put in belongs to the CNode until it is taken out again. Giving the CNode to a spawn uses it up, with all that is in it,
    whether or not anything is started. Iterating gives the numbers of the slots that are in use, lowest first. Not safe from
    several threads at once.
    """

    SLOTS: ClassVar[int] = 256

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._names: dict[str, int] = {}
        self._fds: dict[int, int] = {}
        self._used_up = False

    @classmethod
    def inherit(cls, *, fds: Mapping[int, Any] | None = None, session: Handle | None = None, kernel: Handle | None = None) -> CNode:
        """A CNode to be inherited. All of what is given comes into it, or nothing.

        Args:
            fds: open files by the number that they are to have in the domain, 0 to 1023. Copied now: the caller's own stay as they are.
            session: the terminal or log that it belongs to. kernel: for programs that start processors.
        Raises:
            ManagerError: SPAWN_ERR_SETUP_INHERITED_CAPS, caused by SPAWN_ERR_SETUP_FDCAP, _SIDCAP or _KERNEL_CAP.
            TypeError: not of the types above.
        Ownership: the handles belong to the CNode if this succeeds, and stay the caller's if not.
        Source: alloc_inheritcn_with_caps() in Barrelfish's spawn_client.c.
        """
        self = cls()
        wanted = {slot: handle for slot, handle in ((SESSIONID, session), (KERNELCAP, kernel)) if handle is not None}
        try:
            for target, local in (fds or {}).items():
                number = _checked_target(target)
                self._fds[number] = _copy(number, local)
            for slot, handle in wanted.items():
                if problem := _problem(handle):
                    raise _refused("inherit", slot, problem)
        except BaseException:
            self.close()
            raise
        self._handles |= wanted
        return self

    def put(self, slot: int, handle: Handle, *, name: str = "") -> None:
        """Put a handle into an empty slot. It is the CNode's from then on; for a copy put `handle.duplicate()`.

        Args:
            slot: 0 to 255.
            name: what both sides call it, besides the number.
        Raises:
            OutOfRangeError: there is no such slot.
            AlreadyExistsError: something is in it, or another slot has this name.
            BadHandleError, AccessDeniedError: the handle is closed, or lacks Rights.TRANSFER.
            InvalidArgsError: what it stands for exists in the child only, or the name cannot be one.
            BadStateError: the CNode was given to a spawn.
        Ownership: on an error the handle stays the caller's.
        """
        self._check_slot(slot)
        if not isinstance(handle, Handle):
            raise TypeError(
                f"what is put into a CNode is a shoal handle, not {type(handle).__name__}; File.from_fd() makes one of a descriptor"
            )
        if not isinstance(name, str):
            raise TypeError(f"a name is text, not {type(name).__name__}")
        if self._used_up:
            raise failure(Status.BAD_STATE, Stage.HANDLES, "this CNode was given to a spawn, which used it up; make another")
        if slot in self:
            raise failure(Status.ALREADY_EXISTS, Stage.HANDLES, f"slot {slot} is taken, by {self._described(slot)}; take() it out first")
        if "\0" in name or len(os.fsencode(name)) > _NAME_BYTES:
            raise failure(Status.INVALID_ARGS, Stage.HANDLES, f"slot {slot}: a name has at most {_NAME_BYTES} bytes, none of them zero")
        if name in self._names:
            raise failure(Status.ALREADY_EXISTS, Stage.HANDLES, f"slot {self._names[name]} is called {name!r} already")
        if any(other is handle for other in self._handles.values()):
            raise failure(Status.ALREADY_EXISTS, Stage.HANDLES, f"this {handle.kind} handle is in another slot; put a duplicate()")
        if problem := _problem(handle):
            status = Status.BAD_HANDLE if handle.closed else Status.INVALID_ARGS if _is_recipe(handle) else Status.ACCESS_DENIED
            raise failure(status, Stage.HANDLES, f"slot {slot}: {problem}")
        self._handles[slot] = handle
        if name:
            self._names[name] = slot

    def take(self, slot: int | str) -> Handle | None:
        """Take a handle out; it belongs to the caller. None: nothing is there.

        Args:
            slot: a number, or a name.
        Raises:
            OutOfRangeError: there is no such slot.
        """
        number = self.find(slot) if isinstance(slot, str) else slot
        if number is None:
            return None
        self._check_slot(number)
        self._names = {name: at for name, at in self._names.items() if at != number}
        return self._handles.pop(number, None)

    def get(self, slot: int | str) -> Handle | None:
        """The handle in a slot, by number or by name; borrowed. None: nothing is there."""
        number = self.find(slot) if isinstance(slot, str) else slot
        return None if number is None else self._handles.get(number)

    def find(self, name: str) -> int | None:
        """The slot that has this name, or None."""
        return self._names.get(name)

    def names(self) -> dict[int, str]:
        """The names by their slots."""
        return {slot: name for name, slot in self._names.items()}

    @property
    def inherited_fds(self) -> tuple[int, ...]:
        """The numbers that inherited open files are to have, lowest first."""
        return tuple(sorted(self._fds))

    def __iter__(self) -> Iterator[int]:
        yield from sorted({*self._handles, *({FDSPAGE} if self._fds else ())})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, slot: object) -> bool:
        return slot in self._handles or (slot == FDSPAGE and bool(self._fds))

    def __repr__(self) -> str:
        slots = ", ".join(f"{slot}: {self._described(slot)}" for slot in self)
        return f"<shoal.manager.CNode {'used up' if self._used_up else slots or 'empty'}>"

    def close(self) -> None:
        """Close all that is in it. Closing twice is fine."""
        handles, self._handles = self._handles, {}
        fds, self._fds = self._fds, {}
        self._names = {}
        for handle in handles.values():
            handle.close()
        for fd in fds.values():
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fds", None):
            with suppress(Exception):
                self.close()

    def adopt(self, slot: int, handle: Handle, name: str = "") -> None:
        """Put a handle into an empty slot as it came from another process, whatever its rights."""
        self._handles[slot] = handle
        if name:
            self._names.setdefault(name, slot)

    # --- for whoever starts a domain --------------------------------------------------------------------

    @contextmanager
    def handing_over(self, part: Part) -> Iterator[tuple[Action, ...]]:
        """The actions that hand its contents over, for one spawn in the `with` block. The CNode is used up afterwards, in any case.

        Raises:
            ManagerError: it was used up before, or something in it cannot be handed over: SPAWN_ERR_SETUP_ARGCN or
                SPAWN_ERR_SETUP_INHERITED_CAPS. It is used up all the same.
        """
        try:
            yield self._actions(part, self.slots(part))
        finally:
            self._used_up = True
            self.close()

    def slots(self, part: Part) -> tuple[Slot, ...]:
        """What is in it, to be told to another process together with the descriptors, which stay its own.

        As what is inherited only the slots that have a meaning are told; the rest is used up unseen.

        Raises:
            ManagerError: as `handing_over()`.
        """
        if self._used_up:
            raise _refused(part, None, "the CNode was given to a spawn before, which used it up; make another")
        if part == "inherit" and FDSPAGE in self._handles:
            raise _refused(part, FDSPAGE, "open files come into a CNode by CNode.inherit(fds=...), not as a handle")
        if part == "args" and self._fds:
            raise _refused(part, None, "it has open files to be inherited, so that it can only be the one that is inherited")
        found = [Slot(target, "fd", 0, fd) for target, fd in sorted(self._fds.items())]
        names = self.names()
        for slot in sorted(self._handles):
            if part == "inherit" and slot not in (SESSIONID, KERNELCAP):
                continue
            handle = self._handles[slot]
            if problem := _problem(handle):
                raise _refused(part, slot, problem)
            found.append(Slot(slot, handle.kind, int(handle.rights), handle.fileno(), names.get(slot, "")))
        return tuple(found)

    @classmethod
    def received(cls, slots: Sequence[Slot], fds: Sequence[int]) -> CNode:
        """The CNode that another process told with `slots()`.

        Args:
            slots: what is where; their `fd` is the other process's, and not looked at.
            fds: as many, in the same order.
        Raises:
            ManagerError: not a CNode; SPAWN_ERR_COPY_ARGCN.
        Ownership: takes over `fds`, also when it fails.
        """
        self, left = cls(), list(fds)
        try:
            if len(slots) != len(fds):
                raise ManagerError("SPAWN_ERR_COPY_ARGCN", f"a CNode of {len(slots)} slots came with {len(fds)} descriptors")
            for item in slots:
                self._receive(item, left)
        except BaseException:
            self.close()
            for fd in left:
                os.close(fd)
            raise
        return self

    def _receive(self, item: Slot, left: list[int]) -> None:
        is_file = item.kind == "fd"
        highest = _HIGHEST_FD if is_file else self.SLOTS - 1
        if not 0 <= item.slot <= highest or item.slot in (self._fds if is_file else self._handles):
            raise ManagerError("SPAWN_ERR_COPY_ARGCN", f"slot {item.slot} of a CNode is named twice, or is not in 0..{highest}")
        if item.name and item.name in self._names:
            raise ManagerError("SPAWN_ERR_COPY_ARGCN", f"two slots of a CNode are called {item.name!r}")
        if not 0 <= item.rights <= 0xFFFFFFFF:
            raise ManagerError("SPAWN_ERR_COPY_ARGCN", f"slot {item.slot} of a CNode has rights that do not exist: {item.rights:#x}")
        fd = left.pop(0)
        if is_file:
            self._fds[item.slot] = fd
            return
        self.adopt(item.slot, received(item.kind, fd, item.rights), item.name)

    def _actions(self, part: Part, slots: Sequence[Slot]) -> tuple[Action, ...]:
        where = {SESSIONID: TASK_SESSION, KERNELCAP: TASK_KERNEL}
        found: list[Action] = []
        for item in slots:
            if item.kind == "fd":
                found.append(CloneFd(item.fd, item.slot))
            elif part == "args":
                found.append(AddHandle(PA_HND(ARGUMENTS, item.slot), self._handles[item.slot], item.name))
            else:
                found.append(AddHandle(PA_HND(TASK, where[item.slot]), self._handles[item.slot], item.name))
        return tuple(found)

    def _check_slot(self, slot: object) -> None:
        if isinstance(slot, bool) or not isinstance(slot, int):
            raise TypeError(f"a slot is a number, not {type(slot).__name__}")
        if not 0 <= slot < self.SLOTS:
            raise failure(Status.OUT_OF_RANGE, Stage.HANDLES, f"a CNode has the slots 0 to {self.SLOTS - 1}; there is no slot {slot}")

    def _described(self, slot: int) -> str:
        if slot not in self._handles:
            return f"open files {' '.join(map(str, self.inherited_fds))}"
        name = self.names().get(slot)
        return f"a {self._handles[slot].kind} handle" + (f" called {name!r}" if name else "")


def _is_recipe(handle: Handle) -> bool:
    return isinstance(handle, Directory) and handle.is_recipe


def _problem(handle: Handle) -> str:
    """Why a handle cannot be handed over, or nothing."""
    if not isinstance(handle, Handle):
        raise TypeError(f"what goes into a CNode is a shoal handle, not {type(handle).__name__}")
    if handle.closed:
        return f"the {handle.kind} handle is closed or was handed over"
    if Rights.TRANSFER not in handle.rights:
        return f"the {handle.kind} handle lacks Rights.TRANSFER"
    return "a recipe can only be an entry of a namespace" if _is_recipe(handle) else ""


def _refused(part: Part, slot: int | None, problem: str) -> ManagerError:
    """The error, on top of the one that says which part of the CNode it was: spec section 9."""
    top, detail = _CODES[part]
    where = "" if slot is None else f"slot {slot}: "
    error = ManagerError(top, f"the {'inherited' if part == 'inherit' else 'argument'} CNode: {where}{problem}")
    code = _DETAILS.get(slot or 0, detail) if part == "inherit" else detail
    error.__cause__ = ManagerError(code, f"{where}{problem}")
    return error


def _checked_target(target: object) -> int:
    if isinstance(target, bool) or not isinstance(target, int):
        raise TypeError(f"an inherited descriptor has a number, not {type(target).__name__}")
    if not 0 <= target <= _HIGHEST_FD:
        raise _refused("inherit", FDSPAGE, f"descriptor {target} is not in 0..{_HIGHEST_FD}")
    return target


def _copy(target: int, local: Any) -> int:
    """A descriptor of ours for what is open."""
    if isinstance(local, bool) or not isinstance(local, int | HasFileno):
        raise TypeError(f"descriptor {target} comes from an int or an object with fileno(), not {type(local).__name__}")
    why = "is not open"
    try:
        number = local if isinstance(local, int) else local.fileno()
        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        if error.errno not in (errno.EBADF, None):
            why = f"cannot be copied: {error.strerror}"
    except (ValueError, OverflowError):
        pass
    raise _refused("inherit", FDSPAGE, f"descriptor {target}: local descriptor {local!r} {why}")
