"""Recipes: what a process that makes cells ahead of their use needs to know, and what turns a process waiting in one into the program.

A launch is cut in two. What is the same for each launch of its kind happens ahead: namespaces, world of files, no privileges. What
is left are the descriptors and the limits. The layout of a recipe is in src/native/recipe.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.confine import Confine
from shoal.handles.keeper import CONTROL_FD, DIE_WITH_US, STAY, open_null
from shoal.handles.mount import Bind, Devices, MountSource, NewMount
from shoal.handles.userns import own_user_namespace
from shoal.lowering import (
    CAP_SYS_ADMIN,
    ENTERING,
    FIRST_USER,
    NoMounts,
    enter_cell,
    enter_network,
    join_cell,
    keeper_ops,
    leave_keys,
    maps_ids,
    set_umask,
)
from shoal.packing import CLONE_NEWUSER, NO_FD, RESOLVE_NO_MAGICLINKS, Packed, Packer, Place
from shoal.plan import JobPlace, Plan
from shoal.world import World, begins_empty, comm

WAITING_SOCKET, WAITING_BASE, WAITING_RULES = 3, 4, 5
"""A waiting process's descriptors: src/native/request.h. The last one is there only with Landlock."""
REQUESTS, RECIPE, EMPTY = 3, 4, 5
"""Those of the process that makes cells: src/native/recipe.h. The last one is a mount namespace with nothing in it."""
_ALL_SIGNALS = (1 << 64) - 1
_HEAD = struct.Struct("=IIIIII4sc3x16s")


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How cells for one kind of launch are made.

    Attributes:
        maker: the launch of the process that makes them; holes: shoal-init's image, the socket it is asked by, `file`.
        file: what it reads.
        finish: the plan that goes to a waiting process; its slots are the descriptors of `sources`.
        sources: the caller's descriptors, in the order of the plan's descriptors.
        comm: what the kernel calls the program.
        begins_empty: in a mount namespace with nothing in it, which has to be handed over.
    """

    maker: Packed
    file: bytes
    finish: bytes
    sources: tuple[int, ...]
    name: str
    comm: bytes
    dies_with_caller: bool
    begins_empty: bool = False


def can_wait(plan: Plan) -> bool:
    """Whether the cell of this plan could be made before it is known what runs in it: nothing in it is the caller's of one moment."""
    return plan.network == "loopback" and can_be_cooked(plan)


def can_be_cooked(plan: Plan) -> bool:
    """Whether the cell of this plan can be made by a recipe, by and by or at once."""
    return (
        plan.world == "cell"
        and plan.network in ("loopback", "host")
        and plan.program.fd is None
        and plan.terminal is None
        and plan.listen_pid is None
        and plan.job == JobPlace(plan.job.label)
        and (plan.confinement.early or not plan.confinement.filter)  # what it still has to do must be allowed
        and all(isinstance(item.source, int) for item in plan.descriptors)
        and all(_lasts(mount.source) for mount in plan.mounts)
    )


def _lasts(source: MountSource) -> bool:
    """Whether it can be mounted any time and any number of times: it holds no descriptor."""
    return isinstance(source, NewMount | Devices) or (isinstance(source, Bind) and source.fd < 0 and source.follow_fd < 0)


def make_recipe(plan: Plan, no_mounts: NoMounts) -> Recipe:
    """The recipe for a plan that `can_be_cooked()`.

    Args:
        no_mounts: gives a mount namespace in which nothing is, or NO_FD.
    """
    empty_fd = no_mounts() if begins_empty(plan) else NO_FD
    keeper, tasks = _keeper(plan, EMPTY if empty_fd != NO_FD else NO_FD)
    prepare, exec_path, has_rules = _prepare(plan, empty=empty_fd != NO_FD)
    own_user = plan.confinement.own_user
    name = os.fsencode(comm(plan))
    head = _HEAD.pack(
        len(keeper),
        len(prepare),
        os.geteuid(),
        os.getegid(),
        FIRST_USER if own_user else 0,
        maps_ids(plan),
        tasks.encode(),
        DIE_WITH_US if plan.dies_with_caller else STAY,
        name,
    )
    file = head + keeper + b"\0" * (-len(keeper) % 8) + prepare
    sources = tuple(item.source for item in plan.descriptors if isinstance(item.source, int))
    finish = _finish(plan, exec_path, has_rules=has_rules)
    return Recipe(_maker(plan, empty_fd), file, finish, sources, plan.name, name, plan.dies_with_caller, empty_fd != NO_FD)


def make_joining(plan: Plan, cwd: bytes | None = None) -> bytes:
    """What takes another process into the cell that a recipe for the same plan has made, but for its processors: into the same namespaces,
    under the same rules and filters. It finds the program where the first one did.

    Args:
        cwd: where it stands then, or it is not made: in the cell's own files. None: where the plan says, if it can.
    """
    keeper, tasks = _keeper(plan, NO_FD)
    prepare, _, _ = _prepare(plan, empty=False, joins=True, cwd=cwd)
    first_user = FIRST_USER if plan.confinement.own_user else 0
    name = os.fsencode(comm(plan))
    head = _HEAD.pack(len(keeper), len(prepare), os.geteuid(), os.getegid(), first_user, False, tasks.encode(), STAY, name)
    return head + keeper + b"\0" * (-len(keeper) % 8) + prepare


def make_command(plan: Plan, targets: Sequence[int], places: Sequence[bytes], *, terminal: int | None = None, own: bool = False) -> Packed:
    """What turns a process that has joined the cell of a plan into another program than the plan's: one of the cell's own world.

    Args:
        targets: the numbers in the child of the descriptors it will be sent.
        places: where the program may be, in the cell's world, first come first served; at least one.
        terminal: which of the descriptors becomes its controlling terminal, by its place among them.
        own: where it is in none of those places it is the plan's own program, which no path of its world leads to.
    """
    packer = Packer()
    pairs = [(packer.received(), target) for target in targets]
    begin_command(packer, pairs, terminal=terminal)
    confine = Confine(packer, plan.confinement)
    confine.enter_rules(None if plan.confinement.landlock is None else WAITING_RULES, [fd for fd, _ in pairs])
    packer.fd_map(pairs, 0)
    confine.limits()
    if not plan.confinement.early:
        confine.filter()
    look_for(packer, places if own else places[:-1])
    return packer.packed(exec_fd=WAITING_BASE, exec_path=f"exe/{comm(plan)}") if own else packer.packed(exec_path=places[-1])


def begin_command(packer: Packer, pairs: Sequence[tuple[int, int]], *, terminal: int | None) -> None:
    """The ops by which a command leaves the session it was made in."""
    packer.op("SETSID", "making a session")
    if terminal is not None:
        packer.op("CONTROLLING_TTY", "taking the controlling terminal", fd=pairs[terminal][0])


def look_for(packer: Packer, places: Sequence[bytes]) -> None:
    """The last ops of a command: it becomes the program at the first of these places that has one."""
    packer.op("INHERIT_SIGNALS", "resetting signals", a=_ALL_SIGNALS)
    for place in places:
        packer.op("TRY_EXEC", "looking for the program", text=place)


def _maker(plan: Plan, empty_fd: int) -> Packed:
    packer = Packer()
    packer.unshare_fds()
    image, socket, file = packer.hole(), packer.hole(), packer.hole()
    clone_flags, where = 0, Place()
    if not plan.privileged:
        # A place in which it may have processes made in the namespaces of others; each cell still has one of its own.
        clone_flags = own_user_namespace(packer, where)
        packer.op("KEEP_CAPS", "keeping what it takes to enter a cell", a=1 << CAP_SYS_ADMIN)
    null = open_null(packer)
    packer.op("SETSID", "making a session")
    packer.fd_map([(socket, REQUESTS), (file, RECIPE)] + ([(empty_fd, EMPTY)] if empty_fd != NO_FD else []), null)
    packer.op("SIGNALS", "resetting signals")
    return packer.packed(clone_flags=clone_flags, exec_fd=image, **where)


def _keeper(plan: Plan, empty_fd: int) -> tuple[bytes, str]:
    packer = Packer()
    control = packer.received()
    null = open_null(packer)
    clone_flags, tasks = keeper_ops(packer, plan, empty_fd)
    packer.fd_map([(control, CONTROL_FD)], null)
    return packer.packed(clone_flags=clone_flags).filled(()), tasks


def _prepare(plan: Plan, *, empty: bool, joins: bool = False, cwd: bytes | None = None) -> tuple[bytes, str, bool]:
    """What the waiting process does ahead, how it is to be executed, and whether it has rules to live by.

    Args:
        joins: the cell is there already, with its world.
    """
    packer = Packer()
    init, control, socket, id_map, user = (packer.received() for _ in range(5))  # as in recipe.h
    null = open_null(packer)
    world = World(packer, plan, empty=empty, id_map=id_map if maps_ids(plan) else NO_FD)
    if joins:
        join_cell(packer, plan, init)
    else:
        world.clone()
        packer.op("WAIT_READY", "waiting for the cell's namespaces", fd=control, fd2=init)
        if not plan.privileged:
            packer.op("SETNS", "entering the cell", fd=init, a=CLONE_NEWUSER)
        enter_cell(packer, init)
    set_umask(packer, plan)
    base, exec_path = world.enter(control) if joins else world.make()
    packer.op("DROP_BOUNDING", "emptying the capability bounding set")
    if joins:
        pass  # it is there already
    elif plan.network == "host":
        packer.op("WAIT_READY", "waiting for the cell's first process", fd=control, fd2=init)
    else:
        enter_network(packer, init, control)
    packer.op("CHDIR", ENTERING, text=plan.cwd if cwd is None else cwd, b=RESOLVE_NO_MAGICLINKS, flags=cwd is not None)
    leave_keys(packer, plan)
    confine = Confine(packer, plan.confinement)
    confine.as_process()
    confine.no_new_privs()
    rules = confine.rules(world)
    confine.user(user)
    packer.op("DROP_CAPS", "dropping capabilities")
    kept = [(socket, WAITING_SOCKET), (base, WAITING_BASE)] + ([] if rules is None else [(rules, WAITING_RULES)])
    packer.fd_map(kept, null)
    if plan.confinement.early:
        confine.filter()
    packer.op("SIGNALS", "resetting signals")
    return packer.packed().filled(()), exec_path, rules is not None


def _finish(plan: Plan, exec_path: str, *, has_rules: bool) -> bytes:
    packer = Packer()
    pairs = [(packer.received(), item.target) for item in plan.descriptors]
    packer.op("SETSID", "making a session")  # until now its session tells who made it
    confine = Confine(packer, plan.confinement)
    confine.enter_rules(WAITING_RULES if has_rules else None, [fd for fd, _ in pairs])
    packer.fd_map(pairs, 0)  # where it waits, 0 is /dev/null
    confine.limits()
    if not plan.confinement.early:
        confine.filter()
    return packer.packed(exec_fd=WAITING_BASE, exec_path=exec_path).filled(())
