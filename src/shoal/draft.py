"""Draft: turns the arguments of a spawn into a Plan, step by step in the order the specification fixes.

The order decides which of several errors is reported: a missing file beats a bad argument, a bad argument anywhere in the
list beats a bad descriptor, and the side effects of an earlier action stand when a later one fails (spec 2.1).

With `consume=False` (for `explain`) a draft takes nothing over, duplicates nothing and closes nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

from shoal import loader
from shoal.actions import Action, AddHandle, AddNsEntry, CloneDir, CloneFd, SetName, TransferFd
from shoal.descriptors import Descriptors, close_transferred, shown, what_is
from shoal.entries import NETWORK_PREFIX, add_entry, add_library, check_clone_dir, clean_prefix, cloned_directories, socket_source
from shoal.environment import Environ, encode_environ, own_environment, working_directory
from shoal.flags import SpawnFlags
from shoal.handles.base import PA_HND, PA_HND_ARG, PA_HND_TYPE, Handle, HandleType, Rights
from shoal.handles.callers_own import default_job, is_home, system_clock
from shoal.handles.clock import given_clock
from shoal.handles.directory import Directory
from shoal.handles.job import Job, given_job
from shoal.handles.job_backend import Placement
from shoal.handles.mount import Bind, Contents, MountSource
from shoal.handles.netns import NetNs
from shoal.handles.socket import Socket
from shoal.handles.vmo import Vmo
from shoal.plan import Confinement, Descriptor, JobPlace, Mount, Network, Plan, Program
from shoal.privileges import has_room_for_keys, is_privileged
from shoal.processargs import Startup, listed_entries, listen_variables, numbering_order
from shoal.startup_table import VARIABLE, StartupTable
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

NAME_BYTES = 31
VMO_RIGHTS = Rights.READ | Rights.MAP | Rights.GET_PROPERTY | Rights.TRANSFER | Rights.DUPLICATE
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)
CLOCK_RIGHTS = Rights.READ | Rights.WAIT | Rights.DUPLICATE | Rights.TRANSFER

_RESERVED = frozenset(
    (
        HandleType.PROC_SELF,
        HandleType.THREAD_SELF,
        HandleType.VMAR_ROOT,
        HandleType.VMAR_LOADED,
        HandleType.VMO_STACK,
        HandleType.VMO_EXECUTABLE,
        HandleType.NS_DIR,
    )
)
_KNOWN_TYPES = frozenset(int(kind) for kind in HandleType)
_CLOCK_ID = PA_HND(HandleType.CLOCK_UTC)


class Draft:
    """One spawn in the making. The methods are steps; `spawn` calls each once, in order."""

    def __init__(self, flags: int, actions: tuple[Action, ...], *, consume: bool) -> None:
        self.flags = flags
        self.actions = actions
        self.consume = consume
        self.privileged = is_privileged()
        self.whole_world = bool(flags & SpawnFlags.CLONE_NAMESPACE) or any(isinstance(a, CloneDir) and a.prefix == "/" for a in actions)
        self.descriptors = Descriptors(consume=consume)
        self.placement: Placement | None = None
        self._done = 0  # actions whose turn has come
        self._name = ""
        self._path: str | bytes | None = None
        self._memory_fd = -1
        self._label = ""
        self._program: Program | None = None
        self._executable: loader.Executable | None = None
        self._resolved: loader.Resolved | None = None
        self._closure: loader.Closure | None = None
        self._argv: tuple[bytes, ...] = ()
        self._job: Job | None = None
        self._startup: list[Startup] = []
        self._entries: list[tuple[int, AddNsEntry, MountSource]] = []
        self._netns: int | None = None
        self._bad_handle: SpawnError | None = None

    # Step 1

    def load(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        """Step 1: find out what the file at `path` is."""
        self._path = os.fspath(path)
        self._label = os.fsdecode(self._path)
        self._executable = loader.inspect(self._path)

    def load_vmo(self, vmo: Handle) -> None:
        """Step 10 of spawn_vmo: the program is in memory, and is looked at after the arguments."""
        if not isinstance(vmo, Vmo):
            vmo.fileno()  # a closed handle is a bad handle before it is of the wrong type
            raise failure(Status.WRONG_TYPE, Stage.LOAD, f"the executable is a {vmo.kind} handle, not a VMO")
        self._label = f"VMO {vmo.name!r}" if vmo.name else "a VMO"
        if not vmo.closed and Rights.EXECUTE not in vmo.rights:
            what = f"{self._label} has no EXECUTE right; get it with replace_as_executable()"
            raise failure(Status.ACCESS_DENIED, Stage.LOAD, what)
        fd = vmo.require(VMO_RIGHTS, "spawn_vmo()")
        self._memory_fd = self.descriptors.own(vmo.consume()) if self.consume else fd
        self._executable = loader.inspect(self._memory_fd, self._label)

    # Steps 6 and 7

    def check_shape(self, argv: tuple[bytes, ...]) -> None:
        """Steps 6 and 7: everything about the arguments that can be told without looking at a descriptor."""
        name: str | None = None
        for index, action in enumerate(self.actions):
            if isinstance(action, AddHandle):
                if action.id == _CLOCK_ID and self.flags & SpawnFlags.CLONE_UTC_CLOCK:
                    what = "PA_CLOCK_UTC is given while CLONE_UTC_CLOCK asks for the caller's clock; there can be only one"
                    raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"action {index}: {shown(action)}: {what}")
            elif isinstance(action, CloneDir):
                check_clone_dir(index, action)
            elif isinstance(action, SetName):
                if "\0" in action.name:
                    raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"action {index}: SetName: the name holds a zero byte")
                name = action.name
        if name is None and not argv:
            raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, "the process has no name: argv is empty and there is no SetName action")
        self._name = os.fsdecode((argv[0] if name is None else os.fsencode(name))[:NAME_BYTES])

    # Step 10

    def follow_directives(self, argv: tuple[bytes, ...]) -> None:
        """Step 10: #! lines lead to the program that will run, and lengthen argv at the front."""
        assert self._executable is not None
        followed = loader.follow(self._executable, loader.inspect, loader.ask, self._label)
        if followed.executable.status is Status.OUT_OF_RANGE:
            raise failure(Status.OUT_OF_RANGE, Stage.DIRECTIVES, self._label + followed.executable.defect)
        self._argv = followed.extra_args + argv
        self._executable = followed.executable
        path = None if self._path is None else os.fsencode(self._path)
        fd = self._memory_fd if path is None else None
        label, script = self._label, None
        if followed.resolved is not None:
            self._resolved = followed.resolved
            fd, path, label = self.descriptors.own(followed.resolved.executable.consume()), None, f"{label}, resolved"
        elif followed.interpreter is not None:
            script, fd, path, label = label, None, followed.interpreter, os.fsdecode(followed.interpreter)
        if path is not None and not path.startswith(b"/"):
            path = os.path.join(os.getcwdb(), path)
        identity, dynamic = followed.executable.identity, followed.executable.kind is loader.Kind.DYNAMIC
        self._program = Program(path, fd, identity.dev, identity.ino, label, dynamic, script)

    # Steps 14 to 17

    def take_job(self, job: Job | None) -> None:
        """Step 14, first part: the duplicate of the job that CLONE_JOB gives."""
        self._job = job
        if not self.flags & SpawnFlags.CLONE_JOB:
            return
        given = job if job is not None else default_job()
        if given is None:
            return  # no cgroup to be in, so no job to speak of
        try:
            fd = given.require(Rights.DUPLICATE | Rights.TRANSFER, "CLONE_JOB")
        except SpawnError as error:
            raise failure(error.status, Stage.JOB, error.detail) from error
        source = self.descriptors.copy(fd) if job is not None else fd
        self._startup.append(Startup(PA_HND(HandleType.JOB_DEFAULT), given.kind, int(given.rights), source, False, job is None))

    def take_actions(self) -> None:
        """Step 14, second part: each action in order. What an action consumes is gone once its turn has come."""
        for index, action in enumerate(self.actions):
            self._done = index + 1
            if isinstance(action, CloneFd | TransferFd):
                self.descriptors.take(index, action)
            elif isinstance(action, AddHandle):
                self._take_handle(index, action)
            elif isinstance(action, AddNsEntry):
                self._take_entry(index, action)

    def _take_handle(self, index: int, action: AddHandle) -> None:
        handle = action.handle
        is_fd = PA_HND_TYPE(action.id) == HandleType.FD
        target, for_stdio = self.descriptors.claim(index, action, PA_HND_ARG(action.id)) if is_fd else (-1, False)
        number = f" for descriptor {target}" if is_fd else ""
        if not self._is_good(f"action {index}: {shown(action)}{number}", handle):
            return
        if isinstance(handle, Directory) and handle.is_recipe:
            self._bad_handle = self._bad_handle or failure(
                Status.INVALID_ARGS, Stage.HANDLES, f"action {index}: {shown(action)}: a recipe can only be a namespace entry"
            )
            return
        source: int | Bind | None = None
        if isinstance(handle, Directory) and not self.whole_world:
            # In a cell it arrives as a mount of its own, so that `..` leads nowhere and its rights hold.
            mount = self._borrowed_source(handle.source())
            source = mount if isinstance(mount, Bind) else None
        kind, rights = handle.kind, int(handle.rights)
        fd = self.descriptors.own(handle.consume()) if self.consume else handle.fileno()
        item = source if source is not None else fd
        if is_fd:
            label = "" if self.consume else f"{what_is(fd)} ({shown(action)}, action {index})"
            self.descriptors.place(target, for_stdio, item, label)
        else:
            self._startup.append(Startup(action.id, kind, rights, item, True, name=action.name))

    def _is_good(self, what: str, handle: Handle) -> bool:
        """Notes the first handle that cannot be handed over: it is reported in step 17, after all descriptors were looked at."""
        problem: SpawnError | None = None
        if handle.closed:
            problem = failure(Status.BAD_HANDLE, Stage.HANDLES, f"{what}: the {handle.kind} handle is closed or was already handed over")
        elif Rights.TRANSFER not in handle.rights:
            problem = failure(Status.ACCESS_DENIED, Stage.HANDLES, f"{what}: the {handle.kind} handle lacks Rights.TRANSFER")
        self._bad_handle = self._bad_handle or problem
        return problem is None

    def _take_entry(self, index: int, action: AddNsEntry) -> None:
        handle = action.handle
        what = f"action {index}: AddNsEntry({action.prefix!r}, {handle.kind})"
        if not self._is_good(what, handle):
            return
        if isinstance(handle, NetNs):
            self._netns = self.descriptors.own(handle.consume()) if self.consume else handle.fileno()
            return
        try:
            source = self._borrowed_source(_entry_source(handle))
        except SpawnError as error:
            self._bad_handle = self._bad_handle or failure(error.status, Stage.NAMESPACE, f"{what}: {error.detail}", error.errno)
            return
        if self.consume:
            fd = handle.consume()
            if fd >= 0:
                self.descriptors.own(fd)
        self._entries.append((index, action, source))

    def _borrowed_source(self, source: MountSource) -> MountSource:
        """A privileged caller mounts by descriptor; without privileges only a name leads from one mount table to another."""
        if isinstance(source, Bind) and not self.privileged:
            return Bind(source.path, source.dev, source.ino, source.is_dir, source.writable, source.devices, follow_fd=source.fd)
        return source

    def take_stdio_and_clock(self) -> None:
        """Steps 15 to 17: 0, 1, 2 where no action took them, the clock; then handles that are none."""
        self.descriptors.fill_standard(clone_stdio=bool(self.flags & SpawnFlags.CLONE_STDIO))
        if self.flags & SpawnFlags.CLONE_UTC_CLOCK:
            clock = given_clock() or system_clock()
            missing = CLOCK_RIGHTS & ~clock.rights
            if missing:
                status = Status.ACCESS_DENIED if Rights.DUPLICATE in missing else Status.INVALID_ARGS
                raise failure(status, Stage.HANDLES, f"CLONE_UTC_CLOCK: this process's clock handle lacks {missing.name}")
            self._startup.append(Startup(_CLOCK_ID, clock.kind, int(CLOCK_RIGHTS), clock.fileno(), False, True))
        if self._bad_handle is not None:
            problem, self._bad_handle = self._bad_handle, None
            raise problem

    # Step 18

    def enter_job(self) -> JobPlace:
        """Step 18: the right to put a process there, and whether the job still lives."""
        job = self._job if self._job is not None else given_job()
        if job is None:
            return JobPlace("the caller's")  # a child begins where its parent is
        try:
            job.require(Rights.DUPLICATE | Rights.TRANSFER, "spawn()")
            place = self.placement = job.placement("spawn()")
        except SpawnError as error:
            raise failure(error.status, Stage.JOB, error.detail, error.errno) from error
        # A child begins in its parent's cgroup by itself; moving it there would take a permission that users lack.
        cgroup_fd = None if place.cgroup_fd is None or is_home(place.cgroup_fd) else place.cgroup_fd
        return JobPlace(job.name, cgroup_fd, place.init_pidfd, place.deny_new_process)

    # Step 19

    def check_entries_and_ids(self) -> None:
        """Step 19: prefixes and handle ids."""
        network: int | None = None
        for index, action in enumerate(self.actions):
            if isinstance(action, AddHandle):
                _check_id(index, action)
            elif isinstance(action, AddNsEntry):
                clean = clean_prefix(index, action)
                if isinstance(action.handle, NetNs):
                    what = f"action {index}: AddNsEntry({action.prefix!r}, netns)"
                    if clean != NETWORK_PREFIX:
                        raise failure(Status.WRONG_TYPE, Stage.NAMESPACE, f"{what}: a network can only be handed over at {NETWORK_PREFIX}")
                    if network is not None:
                        raise failure(Status.INVALID_ARGS, Stage.NAMESPACE, f"{what}: action {network} has handed over a network already")
                    network = index

    def find_libraries(self) -> None:
        """Step 19: a dynamic program needs a loader, and all that the loader will need has to be there."""
        assert self._program is not None
        assert self._executable is not None
        label = self._program.label
        image = self._executable.program(label)  # raises for what is no program of this machine
        if image.is_static:
            return
        if self._resolved is not None:
            if self._resolved.closure is None and not self._resolved.files and not self._resolved.actions:
                what = f"{label} is dynamically linked, and the resolver gave no libraries for it"
                raise failure(Status.INVALID_ARGS, Stage.LOADER, what)
            self._closure = self._resolved.closure
        elif not self.flags & SpawnFlags.DEFAULT_LDSVC:
            what = f"{label} is dynamically linked (its interpreter is {image.interpreter}), but no loader was given;"
            what += " add SpawnFlags.DEFAULT_LDSVC, or use a statically linked program"
            raise failure(Status.INVALID_ARGS, Stage.LOADER, what)
        elif not self.whole_world:
            target = self._program.path if self._program.fd is None else self._program.fd
            self._closure = loader.library_closure(self._executable, target, label)

    # The result

    def finish(
        self,
        argv: tuple[bytes, ...],
        environ: Environ,
        job: JobPlace,
        *,
        terminal: int | None,
        dies_with_caller: bool,
        confinement: Confinement,
    ) -> Plan:
        """The plan. Raises for what can only be told when everything is known."""
        assert self._program is not None
        env = own_environment() if environ is None and self.flags & SpawnFlags.CLONE_ENVIRON else encode_environ(environ or ())
        mounts = self._mounts()
        numbers = self._number_startup()
        table = StartupTable(
            name=None if argv and os.fsdecode(argv[0]) == self._name else self._name,
            handles=tuple(item.described(fd) for item, fd in zip(self._startup, numbers, strict=True)),
            entries=() if self.whole_world else listed_entries(mounts, network=self._netns is not None),
        )
        listen_pid = None
        if table.handles or table.entries or table.name is not None:
            env.append(VARIABLE.encode() + b"=" + table.encode().encode())
            env += (listen := listen_variables(self._startup, numbers))
            listen_pid = len(env) - 1 if listen else None
        placed = self.descriptors.placed
        placed += (item.placed(fd) for item, fd in zip(self._startup, numbers, strict=True))
        network = self._network()
        return Plan(
            program=self._program,
            argv=self._argv,
            environ=tuple(env),
            name=self._name,
            world="caller" if self.whole_world else "cell",
            mounts=mounts,
            network=network,
            netns_fd=self._netns if network == "handed over" else None,
            userns_fd=self._owner_of_network() if network == "handed over" else None,
            descriptors=tuple(sorted(placed, key=_by_target)),
            table=table,
            cwd=working_directory(env),
            job=job,
            privileged=self.privileged,
            session=not self.whole_world or terminal is not None,
            terminal=terminal,
            listen_pid=listen_pid,
            dies_with_caller=dies_with_caller,
            own_keyring=not self.whole_world and (has_room_for_keys() or not confinement.without_keys),
            confinement=confinement,
        )

    def _network(self) -> Network:
        if self._netns is not None and not _is_own_netns(self._netns):
            return "handed over"
        if self.whole_world:
            return "caller"
        return "loopback" if self._netns is None else "host"

    def _owner_of_network(self) -> int | None:
        """Without root a network can only be entered from the user namespace it was made in."""
        assert self._netns is not None
        if self.privileged:
            return None
        try:
            fd = fcntl.ioctl(self._netns, _NS_GET_USERNS)
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.NAMESPACE, "the network handed over belongs to somebody else") from error
        return self.descriptors.own(fd)

    def _number_startup(self) -> list[int]:
        order = numbering_order(self._startup)
        numbers = [0] * len(order)
        for position, number in zip(order, self.descriptors.free_numbers(len(order)), strict=True):
            numbers[position] = number
        return numbers

    def _mounts(self) -> tuple[Mount, ...]:
        chosen: list[Mount] = []
        if not self.whole_world:
            chosen += cloned_directories((index, action) for index, action in enumerate(self.actions) if isinstance(action, CloneDir))
        for index, action, source in self._entries:
            prefix, origin = clean_prefix(index, action), f"AddNsEntry, action {index}"
            if self.whole_world and not os.path.exists(prefix):
                what = f"{origin}: {prefix} does not exist in the caller's world, so there is nothing to mount on"
                raise failure(Status.INVALID_ARGS, Stage.NAMESPACE, what)
            add_entry(chosen, prefix, source, nested=action.nested, origin=origin)
        if self._resolved is not None:
            self._add_resolved(self._resolved, chosen)
        if self._closure is not None and not self.whole_world:
            for library in self._closure:
                add_library(chosen, library)
        return tuple(chosen)

    def _add_resolved(self, resolved: loader.Resolved, chosen: list[Mount]) -> None:
        for inside, vmo in resolved.files:
            source = Contents(vmo.fileno(), vmo.size, 0o555, vmo.name)
            chosen.append(Mount(inside, source, "the resolver", is_entry=False))
        for action in resolved.actions:
            if not isinstance(action, AddNsEntry):
                what = f"the resolver answered with a {type(action).__name__}; what it adds can only be namespace entries"
                raise failure(Status.NOT_SUPPORTED, Stage.DIRECTIVES, what)
            source_of = self._borrowed_source(_entry_source(action.handle))
            add_entry(chosen, clean_prefix(-1, action), source_of, nested=action.nested, origin="the resolver")

    def closure_check(self) -> Callable[[], bool]:
        """Tells, later and cheaply, whether the library closure would still be the same."""
        closure, executable, program = self._closure, self._executable, self._program
        if closure is None or executable is None or program is None:
            return _always
        return loader.closure_check(executable, program.path, program.label, closure)

    def close(self) -> None:
        """Close all that is owned, and carry out the ownership rule for every action whose turn never came."""
        self.descriptors.close()
        self.placement = None
        if self._resolved is not None:
            self._resolved.close()
        if not self.consume:
            return
        for action in self.actions[self._done :]:
            if isinstance(action, TransferFd):
                close_transferred(action.local_fd)
        for action in self.actions:
            if isinstance(action, AddHandle | AddNsEntry):
                action.handle.close()


def _always() -> bool:
    return True


def _entry_source(handle: Handle) -> MountSource:
    if isinstance(handle, Directory):
        return handle.source()
    if isinstance(handle, Socket):
        return socket_source(handle)
    raise failure(Status.WRONG_TYPE, Stage.NAMESPACE, f"a {handle.kind} handle cannot be an entry of a namespace")


def _check_id(index: int, action: AddHandle) -> None:
    id, kind, problem = action.id, PA_HND_TYPE(action.id), ""
    if not 0 <= id <= 0xFFFFFFFF or id & 0xFF00:
        problem = "that is no startup handle id; make one with PA_HND(type, arg)"
    elif kind not in _KNOWN_TYPES:
        problem = f"{kind:#x} is no type of startup handle (see HandleType)"
    elif "\0" in action.name:
        problem = "the name holds a zero byte"
    elif kind in _RESERVED:
        problem = f"{HandleType(kind).name} is given to every process by the system, not by an action"
    if problem:
        raise failure(Status.INVALID_ARGS, Stage.HANDLES, f"action {index}: AddHandle({id:#x}, {action.handle.kind}): {problem}")
    if kind == HandleType.LDSVC_LOADER:
        what = (
            f"action {index}: AddHandle({id:#x}, {action.handle.kind}): there are no loader handles here; add the libraries with AddNsEntry"
        )
        raise failure(Status.NOT_SUPPORTED, Stage.HANDLES, what)


def _by_target(item: Descriptor) -> int:
    return item.target


def _is_own_netns(fd: int) -> bool:
    given, own = os.fstat(fd), os.stat("/proc/thread-self/ns/net")
    return (given.st_dev, given.st_ino) == (own.st_dev, own.st_ino)
