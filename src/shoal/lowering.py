"""Lowering: a Plan becomes the ops that the core runs. No decision is taken here that the Plan does not show.

A child in the caller's world is one launch. A cell is two: first its pid 1 in new namespaces, then the program, which enters
them, makes the cell's world of files there and is executed in it. They share the namespaces, so whatever the program's
launch mounts is the cell's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from shoal.confine import Confine
from shoal.handles.keeper import ENTER_NETWORK, MAKE_NETWORK, OWN_KEYRING, keeper_plan, open_null
from shoal.handles.kept import wants_reopening
from shoal.handles.mount import Bind
from shoal.handles.userns import map_ids, own_user_namespace
from shoal.packing import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    CWD_FD,
    NO_FD,
    RESOLVE_NO_MAGICLINKS,
    TARGET_CLOEXEC,
    Packed,
    Packer,
    Place,
)
from shoal.plan import Descriptor, Plan
from shoal.world import COMM_BYTES, World, begins_empty, comm, needs_id_map

CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN = 12, 19, 21
HOSTNAME = "shoal"
FIRST_USER = 0x70000000
"""Above what people, distributions and containers use: login.defs(5), subuid(5). The pid of the cell is added to it."""
ENTERING = "entering the working directory"
ROOM_FOR_KEYS = 100
"""How often a child waits 10 ms for room for its keyring: keys are counted to their user for a moment after their process's end."""

NoMounts = Callable[[], int]
NameIt = Callable[[str, bytes], tuple[int, str | bytes]]
"""Given a wanted comm and a target path: a directory descriptor and a relative path whose last component is that name."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """What `launcher` runs: packed plans whose holes are for the descriptors of one launch.

    Attributes:
        keeper: of the cell's pid 1, or None in the caller's world; its holes are `keeper_plan`'s.
        tasks: what the keeper does first.
        program: holes for the keeper's pidfd and its socket (in a cell only), the number of the user and the id map (where it has
            one of its own), then one for each of `sources`.
        sources: the caller's descriptors that are handed over, in the order of the plan's descriptors.
        targets: their numbers in the child.
        terminal: the controlling one, which a user of its own is to be able to open.
    """

    keeper: Packed | None
    tasks: str
    program: Packed
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    name: str
    label: str
    dies_with_caller: bool
    own_user: bool
    maps_ids: bool
    terminal: int | None


def lower(
    plan: Plan,
    *,
    filter_program: bytes | None,
    name_it: NameIt,
    no_mounts: NoMounts,
    nowhere_fd: int = NO_FD,
    reopening: bool = True,
) -> Lowered:
    """The whole of a plan.

    Args:
        filter_program: a seccomp filter that the plan's job asks for.
        no_mounts: gives a mount namespace in which nothing is, or NO_FD.
        nowhere_fd: an unusable directory to stand in when the wanted one cannot be entered, or NO_FD.
        reopening: what is kept and has a high number may be opened anew by the child, by the caller's links in /proc.
    """
    reopening = reopening and _may_look_at_caller(plan)
    empty_fd = no_mounts() if plan.world == "cell" and begins_empty(plan) else NO_FD
    keeper, tasks = _lower_keeper(plan, empty_fd, reopening) if plan.world == "cell" else (None, "")
    program = _lower_program(plan, filter_program, name_it, empty_fd != NO_FD, nowhere_fd, reopening)
    handed = [(item.source, item.target) for item in plan.descriptors if isinstance(item.source, int) and not _reopens(item, reopening)]
    sources, targets = tuple(source for source, _ in handed), tuple(target for _, target in handed)
    user = plan.confinement.own_user and keeper is not None
    return Lowered(
        keeper,
        tasks,
        program,
        sources,
        targets,
        plan.name,
        plan.program.label,
        plan.dies_with_caller,
        user,
        user and maps_ids(plan),
        plan.terminal,
    )


def _lower_keeper(plan: Plan, empty_fd: int, reopening: bool) -> tuple[Packed, str]:
    """A cell's pid 1, and its tasks after exec."""
    packer = Packer()
    packer.unshare_fds()
    null = open_null(packer)
    if empty_fd != NO_FD and reopening and wants_reopening(empty_fd):
        empty_fd = _reopened(packer, empty_fd, os.O_RDONLY)
    where = placement(plan)
    _enter_owner_of_network(plan, where)
    clone_flags, tasks = keeper_ops(packer, plan, empty_fd, where)
    if tasks and not plan.privileged:
        packer.op("KEEP_CAPS", "keeping what it takes to make a network", a=1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN)
    return keeper_plan(packer, null, clone_flags, **where), tasks


def keeper_ops(packer: Packer, plan: Plan, empty_fd: int, where: Place | None = None) -> tuple[int, str]:
    """What a cell's pid 1 does first. Returns the namespaces it is to be made in, and its tasks after that.

    Args:
        where: where it begins, if it is this process that makes it; None: one that we have executed does.
    """
    clone_flags, unshared, tasks = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS, CLONE_NEWCGROUP, ""
    if empty_fd == NO_FD:
        clone_flags |= CLONE_NEWNS
    else:
        # The copy of a mount namespace with nothing in it costs next to nothing, and so does its end.
        packer.op("SETNS", "leaving the caller's mounts", fd=empty_fd, a=CLONE_NEWNS)
        unshared |= CLONE_NEWNS
    if plan.userns_fd is None and not plan.privileged:
        if where is not None:
            clone_flags |= own_user_namespace(packer, where)
        else:
            clone_flags |= CLONE_NEWUSER
            map_ids(packer)
    if plan.netns_fd is not None:
        packer.op("SETNS", ENTER_NETWORK, fd=plan.netns_fd, a=CLONE_NEWNET)
    elif plan.network == "loopback":
        # The slowest of the namespaces is made while the program's launch makes the world of files.
        tasks = MAKE_NETWORK
    # Not with the clone: the root of the new cgroup namespace is the cgroup one is in, and the clone itself moves us there.
    packer.op("UNSHARE", "making a cgroup namespace", a=unshared)
    packer.op("HOSTNAME", "setting the host name", text=HOSTNAME)
    return clone_flags, tasks


def _lower_program(plan: Plan, filter_program: bytes | None, name_it: NameIt, empty: bool, nowhere_fd: int, reopening: bool) -> Packed:
    packer = Packer()
    packer.unshare_fds()
    in_cell = plan.world == "cell"
    keeper, control = (packer.hole(), packer.hole()) if in_cell else (NO_FD, NO_FD)
    user, id_map = _user_holes(packer, plan) if in_cell else (NO_FD, NO_FD)
    holes = [packer.hole() if isinstance(item.source, int) and not _reopens(item, reopening) else NO_FD for item in plan.descriptors]
    clone_flags = 0
    where = placement(plan)
    needs_null = {0, 1, 2} - {item.target for item in plan.descriptors}
    if in_cell:
        where = _inside(plan, keeper)
    elif not plan.privileged:
        _enter_owner_of_network(plan, where)
        if plan.mounts:
            entered = where.get("enter_flags", 0) & CLONE_NEWUSER
            clone_flags = CLONE_NEWNS | (0 if entered else own_user_namespace(packer, where))
    null = open_null(packer) if needs_null else NO_FD
    for position, item in enumerate(plan.descriptors):
        if isinstance(item.source, int) and _reopens(item, reopening):
            holes[position] = _reopened(packer, item.source, os.O_RDONLY)
    if not in_cell and plan.netns_fd is not None:
        packer.op("SETNS", ENTER_NETWORK, fd=plan.netns_fd, a=CLONE_NEWNET)
    memory_fd = _memory_target(plan) if plan.program.fd is not None else None
    world = World(packer, plan, empty=empty, memory_fd=memory_fd, id_map=id_map)
    world.clone()
    if in_cell:
        enter_cell(packer, keeper)
    pairs = [
        (world.detached(item.source) if isinstance(item.source, Bind) else hole, item.target)
        for hole, item in zip(holes, plan.descriptors, strict=True)
    ]
    exec_fd: int
    exec_path: str | bytes
    set_umask(packer, plan)
    if in_cell:
        exec_fd, exec_path = world.make()
        # Now, since it takes as long as the rest together, and what comes next is waited for anyway.
        packer.op("DROP_BOUNDING", "emptying the capability bounding set")
        if plan.network == "host":
            packer.op("WAIT_READY", "waiting for the cell's first process", fd=control, fd2=keeper)
        else:
            enter_network(packer, keeper, control)
    else:
        if plan.mounts:
            world.mount_on_top(private=bool(clone_flags & CLONE_NEWNS))
        exec_fd, exec_path = _executable_in_callers_world(plan, memory_fd, name_it)
        if reopening and wants_reopening(exec_fd):
            exec_fd = _reopened(packer, exec_fd, os.O_PATH)
    # Not through /proc/self/fd: the caller's descriptors are still open, and a directory among them is a way out.
    if plan.cwd:
        packer.op("CHDIR", ENTERING, fd=nowhere_fd, text=plan.cwd, b=RESOLVE_NO_MAGICLINKS if in_cell else 0)
    packer.op("NAME", "setting the name", text=comm(plan))
    if plan.session:
        packer.op("SETSID", "making a session")
    leave_keys(packer, plan)
    if plan.terminal is not None:
        packer.op("CONTROLLING_TTY", "taking the controlling terminal", fd=plan.terminal)
    confine = Confine(packer, plan.confinement)
    confine.as_process()
    if in_cell or filter_program is not None or plan.confinement.filter or plan.confinement.landlock is not None:
        confine.no_new_privs()
    confine.enter_rules(confine.rules(world), [fd for fd, _ in pairs])
    if in_cell:
        confine.user(user)
        packer.op("DROP_CAPS", "dropping capabilities")
    if plan.program.fd is not None and memory_fd is not None:
        pairs.append((plan.program.fd, memory_fd | TARGET_CLOEXEC))
    packer.fd_map(pairs, null)
    if plan.listen_pid is not None:
        packer.op("ENV_PID", "setting LISTEN_PID", a=plan.listen_pid, b=len("LISTEN_PID="))
    confine.limits()
    if filter_program is not None:
        packer.seccomp(filter_program, "installing the filter of the job")
    confine.filter()
    packer.op("SIGNALS", "resetting signals")
    return packer.packed(clone_flags=clone_flags, exec_fd=exec_fd, exec_path=exec_path, **where)


def _inside(plan: Plan, keeper: int) -> Place:
    """Where a process begins that is made inside a cell."""
    return {
        "cgroup_fd": placement(plan).get("cgroup_fd", NO_FD),
        "enter_fd": keeper,
        "enter_flags": CLONE_NEWPID | (0 if plan.privileged else CLONE_NEWUSER),
    }


def enter_cell(packer: Packer, keeper: int) -> None:
    packer.op("SETNS", "entering the cell", fd=keeper, a=CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)


def join_cell(packer: Packer, plan: Plan, keeper: int) -> None:
    """The op that enters a cell that is made. At once: who has entered its user namespace may not look at its pid 1 any more."""
    user = 0 if plan.privileged else CLONE_NEWUSER
    network = 0 if plan.network == "host" else CLONE_NEWNET
    flags = user | network | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    packer.op("SETNS", "entering the cell", fd=keeper, a=flags)


def enter_network(packer: Packer, keeper: int, control: int) -> None:
    packer.op("WAIT_READY", "waiting for the cell's network namespace", fd=control, fd2=keeper)
    packer.op("SETNS", "entering the cell's network", fd=keeper, a=CLONE_NEWNET)


def set_umask(packer: Packer, plan: Plan) -> None:
    """The op that replaces the caller's mask, where the plan says so."""
    if plan.umask is not None:
        packer.op("UMASK", "setting the file mode mask", a=plan.umask)


def leave_keys(packer: Packer, plan: Plan) -> None:
    """The op that leaves the caller's session keyring, where the plan says so."""
    if plan.own_keyring:
        packer.op("KEYRING", OWN_KEYRING, a=ROOM_FOR_KEYS)


def maps_ids(plan: Plan) -> bool:
    """Whether something of the caller's is handed over writable to a user of the child's own."""
    return plan.confinement.own_user and any(isinstance(mount.source, Bind) and needs_id_map(mount.source) for mount in plan.mounts)


def _user_holes(packer: Packer, plan: Plan) -> tuple[int, int]:
    if not plan.confinement.own_user:
        return NO_FD, NO_FD
    user = packer.value_hole()
    return user, packer.hole() if maps_ids(plan) else NO_FD


REOPENING = "opening what is kept for all children"


def _may_look_at_caller(plan: Plan) -> bool:
    """Whether the child stays in the caller's user namespace: from another one, the links of /proc/PID/fd lead nowhere (ptrace(2))."""
    return plan.privileged or (plan.world == "caller" and not plan.mounts)


def _reopens(item: Descriptor, reopening: bool) -> bool:
    return reopening and item.kept and isinstance(item.source, int) and wants_reopening(item.source)


def _reopened(packer: Packer, fd: int, flags: int) -> int:
    return packer.made("OPEN", REOPENING, fd=CWD_FD, text=f"/proc/{os.getpid()}/fd/{fd}", a=flags)


def _enter_owner_of_network(plan: Plan, where: Place) -> None:
    """A network made without root belongs to a user namespace; only who lives there may enter it. So does a job that is a pid namespace,
    and both to the same one if both were made by this process."""
    if plan.userns_fd is not None and not where.get("enter_flags", 0) & CLONE_NEWUSER:
        where["enter_fd"], where["enter_flags"] = plan.userns_fd, CLONE_NEWUSER


def placement(plan: Plan) -> Place:
    """Where a process of this plan begins."""
    if plan.job.init_pidfd is not None:
        return {"enter_fd": plan.job.init_pidfd, "enter_flags": CLONE_NEWPID | (0 if plan.privileged else CLONE_NEWUSER)}
    return {"cgroup_fd": NO_FD if plan.job.cgroup_fd is None else plan.job.cgroup_fd}


def _memory_target(plan: Plan) -> int:
    """A number for a program in memory that no descriptor of the child has: it is executed through its link in /proc."""
    taken = {item.target for item in plan.descriptors}
    return next(number for number in range(3, 1024) if number not in taken)


def _executable_in_callers_world(plan: Plan, memory_fd: int | None, name_it: NameIt) -> tuple[int, str | bytes]:
    wanted = comm(plan)
    if memory_fd is not None:
        return name_it(wanted, b"/proc/self/fd/%d" % memory_fd)
    path = plan.program.path or b""
    if os.fsdecode(os.path.basename(path)[:COMM_BYTES]) == wanted:
        return CWD_FD, path
    return name_it(wanted, path)
