"""Copies: what a process needs that makes copies of itself in cells, as an interpreter does that has its modules loaded.

A copy is a fork, not an exec, but its cell comes from the same Plan and the same ops as any other: first the cell's pid 1, which is
shoal-init as always, then the copy, which runs its ops and returns to where it was made (src/native/fork_into.c). Both become children
of this process, whose only they are to wait for (CLONE_PARENT).

The maker (the zygote) lives in the caller's world, since it has to see what it mounts for its copies, but in a mount namespace of its
own in which the file it executes is mounted read-only over itself: a copy executes nothing, so /proc/self/exe leads there. It never
runs what its copies run. The plans are run in the maker, where each descriptor they need has a number that is always the same.

Source: src/native/init/make.c does the same for programs; clone(2), pid_namespaces(7), proc_pid_exe(5).
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from shoal.confine import Confine
from shoal.copy_numbers import (
    CONFIGURATION,
    CONTROL,
    EMPTY,
    GROUP,
    ID_MAP,
    INIT,
    INSIDE_TALK,
    KEEPER,
    KEEPER_END,
    LIFE,
    NETWORK,
    REQUESTS,
    STDERR,
    STDOUT,
    TALK,
)
from shoal.handles.keeper import DIE_WITH_US, STAY, keeper_tail, open_null
from shoal.handles.mount import Bind
from shoal.handles.userns import own_user_namespace
from shoal.lowering import (
    CAP_NET_ADMIN,
    CAP_SYS_ADMIN,
    ENTERING,
    FIRST_USER,
    NoMounts,
    enter_cell,
    enter_network,
    keeper_ops,
    leave_keys,
    maps_ids,
    set_umask,
)
from shoal.packing import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, NO_FD, RESOLVE_NO_MAGICLINKS, Packed, Packer, Place
from shoal.plan import Mount, Plan
from shoal.status import Stage, Status, failure
from shoal.world import World, begins_empty, comm


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """How copies for one plan are made.

    Attributes:
        maker: the launch of the maker; holes: REQUESTS, INIT, CONFIGURATION, LIFE, the maker's error output, then what `sources` says.
        sources: descriptors of this process for EMPTY and NETWORK, by their number in the maker.
        keeper: the plan of pid 1, and tasks what it does after that; keeper_in_group: the same, begun in the cgroup GROUP.
        copy, copy_in_group: the plan of the copy; one hole, the number of its own user.
        first_user: added to the pid of pid 1 it is that number; 0: a copy has no user of its own.
        maps_ids: whether its world needs an id map for that user.
        mode: what pid 1 is told in the end.
    """

    maker: Packed
    sources: tuple[tuple[int, int], ...]
    keeper: Packed
    keeper_in_group: Packed
    tasks: str
    copy: Packed
    copy_in_group: Packed
    first_user: int
    maps_ids: bool
    mode: bytes


def make_copies(plan: Plan, no_mounts: NoMounts, executable: Bind) -> Copies:
    """How to make copies that live as `plan` says. What it executes is never asked for.

    Args:
        no_mounts: gives a mount namespace in which nothing is, or NO_FD.
        executable: the file that the maker executes.
    Raises:
        NotSupportedError: what lives as this plan says cannot be copied.
    """
    if plan.world != "cell" or any(isinstance(mount.source, Bind) and mount.source.fd >= 0 for mount in plan.mounts):
        raise failure(Status.NOT_SUPPORTED, Stage.SETUP, "only what lives in a cell whose files have names can be copied into another")
    if plan.userns_fd is not None:
        what = "a network that was made without root cannot be handed to copies: run as root, or let them have none"
        raise failure(Status.NOT_SUPPORTED, Stage.SETUP, what)
    empty_fd = no_mounts() if begins_empty(plan) else NO_FD
    sources = [(empty_fd, EMPTY)] if empty_fd != NO_FD else []
    if plan.netns_fd is not None:
        sources.append((plan.netns_fd, NETWORK))
        plan = dataclasses.replace(plan, netns_fd=NETWORK)
    inside_empty = EMPTY if empty_fd != NO_FD else NO_FD
    keeper, tasks = _keeper(plan, inside_empty, NO_FD)
    return Copies(
        _maker(plan, executable, tuple(number for _, number in sources)),
        tuple(sources),
        keeper,
        _keeper(plan, inside_empty, GROUP)[0],
        tasks,
        _copy(plan, NO_FD, empty=empty_fd != NO_FD),
        _copy(plan, GROUP, empty=empty_fd != NO_FD),
        FIRST_USER if plan.confinement.own_user else 0,
        maps_ids(plan),
        DIE_WITH_US if plan.dies_with_caller else STAY,
    )


def _maker(plan: Plan, executable: Bind, more: tuple[int, ...]) -> Packed:
    packer = Packer()
    packer.unshare_fds()
    requests, image, configuration, life, errors = (packer.hole() for _ in range(5))
    handed = [(packer.hole(), number) for number in more]
    clone_flags, where = 0, Place()
    if not plan.privileged:
        # A place in which it may have processes made in the namespaces of others; each cell still has one of its own.
        clone_flags = own_user_namespace(packer, where) | CLONE_NEWNS
    null = open_null(packer)
    on_top = Mount(executable.path, executable, "what is executed", make_place=False)
    World(packer, dataclasses.replace(plan, world="caller", mounts=(on_top,))).mount_on_top(private=bool(clone_flags))
    if not plan.privileged:
        packer.op("KEEP_CAPS", "keeping what it takes to enter a cell", a=1 << CAP_SYS_ADMIN)
    packer.op("CHDIR", ENTERING, text="/")
    set_umask(packer, plan)
    packer.op("SETSID", "making a session")
    own = [(requests, REQUESTS), (image, INIT), (configuration, CONFIGURATION), (life, LIFE), (errors, 1), (errors, 2)]
    packer.fd_map([*own, *handed], null)
    packer.op("SIGNALS", "resetting signals")
    return packer.packed(clone_flags=clone_flags, exec_path=plan.program.path or b"", **where)


def _keeper(plan: Plan, empty_fd: int, cgroup_fd: int) -> tuple[Packed, str]:
    """A cell's pid 1. It stays in the maker's session, by which it is found when the maker ends before it could tell of it."""
    packer = Packer()
    packer.unshare_fds()
    null = open_null(packer)
    clone_flags, tasks = keeper_ops(packer, plan, empty_fd)
    if tasks and not plan.privileged:
        packer.op("KEEP_CAPS", "keeping what it takes to make a network", a=1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN)
    keeper_tail(packer, KEEPER_END, null)
    return packer.packed(clone_flags=clone_flags, exec_fd=INIT, cgroup_fd=cgroup_fd, sibling=True), tasks


def _copy(plan: Plan, cgroup_fd: int, *, empty: bool) -> Packed:
    packer = Packer()
    user = packer.value_hole()
    null = open_null(packer)
    world = World(packer, plan, empty=empty, id_map=ID_MAP if maps_ids(plan) else NO_FD, executes=False)
    world.clone()
    if not plan.privileged:
        packer.op("SETNS", "entering the cell", fd=KEEPER, a=CLONE_NEWUSER)
    enter_cell(packer, KEEPER)
    set_umask(packer, plan)
    world.make()
    packer.op("DROP_BOUNDING", "emptying the capability bounding set")
    if plan.network == "host":
        packer.op("WAIT_READY", "waiting for the cell's first process", fd=CONTROL, fd2=KEEPER)
    else:
        enter_network(packer, KEEPER, CONTROL)
    packer.op("CHDIR", ENTERING, text=plan.cwd, b=RESOLVE_NO_MAGICLINKS)
    packer.op("NAME", "setting the name", text=comm(plan))
    leave_keys(packer, plan)
    confine = Confine(packer, plan.confinement)
    confine.as_process()
    confine.no_new_privs()
    confine.enter_rules(confine.rules(world), (STDOUT, STDERR, TALK))
    confine.user(user)
    packer.op("DROP_CAPS", "dropping capabilities")
    # Only who is known leaves the session by which it could be found.
    packer.op("WAIT_READY", "waiting for its owner to know of it", fd=TALK)
    packer.op("SETSID", "making a session")
    packer.fd_map([(STDOUT, 1), (STDERR, 2), (TALK, INSIDE_TALK)], null)
    confine.limits()
    confine.filter()
    return packer.packed(enter_fd=KEEPER, enter_flags=CLONE_NEWPID, cgroup_fd=cgroup_fd)


def executable_of(path: str) -> Bind:
    """The file that a path leads to, as what is mounted."""
    real = os.path.realpath(path)
    found = os.stat(real)
    return Bind(real, found.st_dev, found.st_ino, is_dir=False, writable=False)
