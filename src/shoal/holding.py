"""Holding: a Plan for a program without a cell is carried out, below a holder that ends all the program starts.

The holder is one launch, as a cell's first process is; the rest of the plan goes to its child in a message, as to a process that
waits in a cell made ahead, so that the same ops do the same work in the same order.
"""

from __future__ import annotations

import array
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from shoal import _native
from shoal.confine import Confine
from shoal.handles.holder import OWN_USER, SCOPED, Held, end_holder, start_holder
from shoal.handles.keeper import CONTROL_FD, launch_error, open_null
from shoal.handles.policy import deny_new_process_filter
from shoal.handles.process import Process
from shoal.launcher import user_of
from shoal.lowering import ENTERING, placement, set_umask
from shoal.packing import CWD_FD, RESOLVE_NO_MAGICLINKS, Packed, Packer, count_strings
from shoal.plan import Plan
from shoal.status import Stage, Status, failure
from shoal.world import World, comm

SCOPE_SIGNAL = 2
"""Of Landlock: nobody outside the rules gets signals from inside. landlock(7)."""
_PLANS_FD = 4  # src/native/init/hold.c
_REQUEST = "arguments, environment and plan together are larger than the 64 KiB that can be handed to a program without a cell"


@dataclass(frozen=True, slots=True)
class LoweredHeld:
    """What is launched, and what is sent after it.

    Attributes:
        holder: its holes are `start_holder`'s.
        how: how it reaches all that it holds.
        program: what its child does, with a slot for each of `sources` in their order.
        sources: the caller's descriptors.
    """

    holder: Packed
    how: str
    program: Packed
    sources: tuple[int, ...]


def lower_held(plan: Plan) -> LoweredHeld:
    """A plan for the caller's world that is `held`. No decision is taken here that the plan does not show."""
    return LoweredHeld(*_lower_holder(plan), *_lower_program(plan))


def _lower_holder(plan: Plan) -> tuple[Packed, str]:
    packer = Packer()
    packer.unshare_fds()
    image, control, plans = packer.hole(), packer.hole(), packer.hole()
    null = open_null(packer)
    packer.op("SETSID", "making a session")
    confine = Confine(packer, plan.confinement)
    confine.as_process()
    confine.no_new_privs()
    how = OWN_USER if plan.confinement.own_user else ""
    landlock = plan.confinement.landlock
    if landlock is not None and landlock.scopes & SCOPE_SIGNAL:
        label = "keeping its signals to what it holds"
        packer.op("LANDLOCK_ENTER", label, fd=packer.made("LANDLOCK_RULES", label, flags=SCOPE_SIGNAL))
        how = SCOPED + how  # in this order: it is checked while there are privileges that only the rules take
    packer.fd_map([(control, CONTROL_FD), (plans, _PLANS_FD)], null)
    packer.op("SIGNALS", "resetting signals")
    return packer.packed(exec_fd=image, **placement(plan)), how


def _lower_program(plan: Plan) -> tuple[Packed, tuple[int, ...]]:
    packer = Packer()
    handed = [(item.source, item.target) for item in plan.descriptors if isinstance(item.source, int)]
    pairs = [(packer.received(), target) for _, target in handed]
    sources = [source for source, _ in handed]
    set_umask(packer, plan)
    packer.op("CHDIR", ENTERING, text=plan.cwd, b=RESOLVE_NO_MAGICLINKS)
    packer.op("NAME", "setting the name", text=comm(plan))
    packer.op("SETSID", "making a session")
    if plan.terminal is not None:
        packer.op("CONTROLLING_TTY", "taking the controlling terminal", fd=packer.received())
        sources.append(plan.terminal)
    confine = Confine(packer, plan.confinement)
    confine.enter_rules(confine.rules(World(packer, plan)), [fd for fd, _ in pairs])
    packer.fd_map(pairs, 0)  # where it waits, 0 is /dev/null
    confine.limits()
    if plan.job.deny_new_process:
        packer.seccomp(deny_new_process_filter(), "installing the filter of the job")
    confine.filter()
    packer.op("SIGNALS", "resetting signals")
    return packer.packed(exec_fd=CWD_FD, exec_path=plan.program.path or b""), tuple(sources)


def start_held(plan: Plan, on_user: Callable[[int], None]) -> Process:
    """Carry out a plan, whose descriptors are borrowed.

    Args:
        on_user: told the number of the program's own user, where it has one, before it begins.
    Raises:
        SpawnError: nothing was started.
    """
    lowered = lower_held(plan)
    held = start_holder(lowered.holder, plan.program.label, lowered.how)
    try:
        if plan.confinement.own_user:
            on_user(user_of(held.holder))
            if plan.terminal is not None:
                os.fchown(plan.terminal, user_of(held.holder), -1)
        _hand_over(plan, lowered, held)
    except BaseException:
        os.close(held.pidfd)
        end_holder(held.holder)
        raise
    held.holder.keep(dies_with_caller=plan.dies_with_caller)
    return Process._started(held.pidfd, held.pid, plan.name, held.holder)


def _hand_over(plan: Plan, lowered: LoweredHeld, held: Held) -> None:
    program, numbers = lowered.program, array.array("i", lowered.sources).tobytes()
    argv, environ = count_strings(plan.argv), count_strings(plan.environ)
    stage, index, error = _native.hand_over(held.plans.fd, held.pidfd, program.filled(()), *argv, *environ, numbers)
    if error == errno.E2BIG and stage not in (_native.STAGE_OPS, _native.STAGE_EXEC):
        raise failure(Status.OUT_OF_RANGE, Stage.EXEC, f"{plan.program.label}: {_REQUEST}", error)
    if stage != _native.STAGE_EXEC or error:
        raise launch_error(program.labels, plan.program.label, stage, index, error)
