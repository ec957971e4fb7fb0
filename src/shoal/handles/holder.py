"""Holder: the parent of a program that lives in no cell, and the end of all that the program leaves behind.

Where no pid namespace can be made there is nobody whose end the kernel makes the end of all. shoal-init then is the program's
parent, adopts what outlives its parent, and ends the whole tree by one kill(2); how, and why nothing escapes that, is said in
src/native/init/hold.c. What holds the tree is that process: when somebody else kills it, the tree lives on.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

from shoal.handles.images import init_image
from shoal.handles.keeper import DIE_WITH_US, STAY, launch
from shoal.handles.pidfd import pid_of
from shoal.handles.reaper import Ended, Keeper, OwnedFd
from shoal.packing import Packed, count_strings
from shoal.status import Stage, Status, failure, failure_from_errno

SCOPED, OWN_USER = "s", "u"
"""How a holder reaches all that it holds: by Landlock's scope of signals; by a user that nobody else is. Else by the group."""
_END = b"k"
_HELD = struct.Struct("=ii")
_ENDED = struct.Struct("=iiqqq")


class Holder(Keeper):
    """A process that holds a program and its descendants. It ends when nothing is left of them."""

    __slots__ = ("at_end", "has_own_user")

    def __init__(self, pidfd: int, pid: int) -> None:
        super().__init__(pidfd, pid)
        self.at_end: Callable[[], None] | None = None
        """Called once all that it holds is gone."""
        self.has_own_user = False

    def settle(self) -> bool:
        """As a keeper's; and what is to be done at the end is done."""
        gone = super().settle()
        if gone and (at_end := self.at_end) is not None:
            self.at_end = None
            at_end()
        return gone

    def kill(self) -> None:
        """End everything it holds. Returns at once; fine when all is gone already."""
        if (control := self._control) is not None:
            with suppress(OSError), socket.socket(fileno=os.dup(control.fd)) as ours:
                ours.send(_END, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def has_children(self) -> bool:
        """Whether something may be left. It ends by itself soon after the last, so that "yes" may be past."""
        return not self.settle()

    def program_end(self) -> Ended | None:
        """How the program ended, once it has: waits for the holder's word, which comes at once."""
        control = self._control
        if control is None:
            return None
        with socket.socket(fileno=os.dup(control.fd)) as ours:
            told = b""
            with suppress(OSError):
                while len(told) < _ENDED.size:  # left in place: every thread that asks gets the same answer
                    told = ours.recv(_ENDED.size, socket.MSG_PEEK | socket.MSG_WAITALL)
                    if not told:
                        break
        if len(told) < _ENDED.size:
            # It was killed before it could tell: by the end of its job, or for want of memory, which the program shared.
            return self.pid, os.CLD_KILLED, 9, 0.0, 0.0, 0
        code, status, user_us, system_us, max_rss_kib = _ENDED.unpack(told)
        return self.pid, code, status, user_us / 1e6, system_us / 1e6, max_rss_kib

    def keep(self, *, dies_with_caller: bool) -> None:
        """Tell it that there is something to hold, and how long."""
        with suppress(OSError):  # somebody has killed it already; the process will tell
            os.write(self.control, DIE_WITH_US if dies_with_caller else STAY)

    def __repr__(self) -> str:
        return f"<shoal.Holder, process {self.pid}>"


class Held:
    """A process that waits to become the program, below its holder.

    Ownership: it has all four; `pidfd` passes to whoever takes it.
    """

    __slots__ = ("holder", "pid", "pidfd", "plans")

    def __init__(self, holder: Holder, plans: OwnedFd, pid: int, pidfd: int) -> None:
        self.holder, self.plans, self.pid, self.pidfd = holder, plans, pid, pidfd


def start_holder(plan: Packed, label: str, how: str, fds: Sequence[int] = ()) -> Held:
    """Launch a holder and, below it, a process that waits for a plan.

    Args:
        plan: with holes for shoal-init's image, the holder's end of its socket, the waiting process's, and `fds`.
        label: what it is for, in messages.
        how: SCOPED, OWN_USER, both or neither.
    Raises:
        SpawnError: why it could not be started; nothing is left.
    """
    image = init_image()
    try:
        near, far = socket.socketpair()
        ours, theirs = OwnedFd(near.detach()), OwnedFd(far.detach())
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plans, told = OwnedFd(near.detach()), OwnedFd(far.detach())
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.SETUP, f"cannot make a socket to {label}") from error
    pid, pidfd = launch(plan, (image, theirs.fd, told.fd, *fds), count_strings((b"shoal-init", b"h" + how.encode())), (b"", 0), label)
    del theirs, told  # their ends are its own now, so that its end is told
    holder = Holder(pidfd, pid)
    holder._control = ours
    holder.has_own_user = OWN_USER in how
    try:
        refused, pid, pidfd = _read_held(ours.fd)
        if refused:
            raise failure_from_errno(refused, Stage.SETUP, f"{label}: its holder cannot confine it")
    except BaseException:
        end_holder(holder)
        raise
    return Held(holder, plans, pid_of(pidfd) or pid, pidfd)


def end_holder(holder: Holder) -> None:
    """End one whose program has not begun, and wait until it is gone. Closing its socket is all that takes."""
    holder._control = None
    with suppress(TimeoutError):
        holder.wait(2.0)
    holder.release()


def _read_held(control: int) -> tuple[int, int, int]:
    """Its first word: an errno, and the pid and pidfd of its child."""
    with socket.socket(fileno=os.dup(control)) as ours:
        message, ancillary, _, _ = ours.recvmsg(_HELD.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC | socket.MSG_WAITALL)
    if len(message) < _HELD.size:
        raise failure(Status.BAD_STATE, Stage.SETUP, "the program's holder was killed before it began; has its job been killed?")
    error, pid = _HELD.unpack(message)
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[:4])
    return error, pid, fds[0] if fds else -1
