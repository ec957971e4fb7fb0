"""Draft: turns the arguments of a spawn into a Plan, step by step in the order the specification fixes.

The order decides which of several errors is reported: a missing file beats a bad argument, a bad argument anywhere in the
list beats a bad descriptor, and the side effects of an earlier action stand when a later one fails (spec 2.1). The draft
owns every descriptor it has taken over or duplicated until `close()`, so nothing another thread closes meanwhile matters.

With `consume=False` (for `explain`) it takes nothing over, duplicates nothing and closes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, cast

from shoal import _native, loader
from shoal.actions import Action, AddHandle, AddNsEntry, CloneDir, CloneFd, Fd, SetName, TransferFd
from shoal.flags import SpawnFlags
from shoal.handles.base import FD_USE_FOR_STDIO, PA_HND, PA_HND_ARG, PA_HND_TYPE, Handle, HandleType, Rights
from shoal.handles.clock import UtcClock
from shoal.handles.directory import Directory, bind_source
from shoal.handles.job import Job, given_job
from shoal.handles.mount import Bind, Contents, MountSource
from shoal.handles.netns import NetNs
from shoal.handles.socket import Socket
from shoal.handles.vmo import Vmo
from shoal.plan import Descriptor, Mount, Network, Placement, Plan, Program
from shoal.probe import has_kcmp, is_privileged
from shoal.startup_table import VARIABLE, StartupEntry, StartupHandle, StartupTable
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

FD_TABLE_SIZE = 1024
NAME_BYTES = 31
NETWORK_PREFIX = "/svc/net"

_RESERVED = {
    HandleType.PROC_SELF,
    HandleType.THREAD_SELF,
    HandleType.VMAR_ROOT,
    HandleType.VMAR_LOADED,
    HandleType.VMO_STACK,
    HandleType.VMO_EXECUTABLE,
    HandleType.NS_DIR,
}
_KNOWN_TYPES = {int(kind) for kind in HandleType}
_CLOCK_ID = PA_HND(HandleType.CLOCK_UTC)
_NOT_FOR_CHILDREN = (VARIABLE.encode() + b"=", b"LISTEN_PID=", b"LISTEN_FDS=", b"LISTEN_FDNAMES=")

Environ = Mapping[str, str] | Sequence[str | bytes] | None


class Draft:
    """One spawn in the making. Use each method once, in the order in which `spawn` calls them."""

    def __init__(self, flags: int, actions: tuple[Action, ...], *, consume: bool) -> None:
        self.flags = flags
        self.actions = actions
        self.consume = consume
        self.privileged = is_privileged()
        self.whole_world = bool(flags & SpawnFlags.CLONE_NAMESPACE) or any(isinstance(a, CloneDir) and a.prefix == "/" for a in actions)
        self.owned: list[int] = []
        self._done = 0  # actions whose ownership rule has been carried out
        self._name: str = ""
        self._program: Program | None = None
        self._closure: loader.Closure | None = None
        self._resolved: loader.Resolved | None = None
        self._argv: tuple[bytes, ...] = ()
        self._job: Job | None = None
        self._taken: dict[int, int] = {}  # target -> index of the action that took it
        self._descriptors: list[Descriptor] = []
        self._startup: list[tuple[int, str, int, int | Bind]] = []  # id, kind, rights, source: in table order
        self._from_actions: set[int] = set()  # positions in _startup that AddHandle gave
        self._stdio_source: tuple[int | Bind, str] | None = None
        self._entries: list[tuple[str, Handle, AddNsEntry, int]] = []
        self._entry_sources: list[MountSource] = []
        self._owned_handles: list[Handle] = []

    # --- steps 1 and 10: the executable and its #! lines -------------------------------------------------

    def load(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> loader.Executable:
        """Step 1: find out what the file at `path` is."""
        self._path = os.fspath(path)
        return loader.inspect(self._path)

    def load_vmo(self, vmo: Vmo) -> loader.Executable:
        """Step 1 of spawn_vmo: the program is in memory."""
        if not isinstance(vmo, Vmo):
            raise failure(Status.WRONG_TYPE, Stage.LOAD, f"the executable is a {vmo.kind} handle, not a VMO")
        try:
            fd = vmo.require(Rights.READ, "spawn_vmo()")
        except SpawnError as error:
            raise failure(error.status, Stage.LOAD, error.detail) from error
        self._vmo_label = f"VMO {vmo.name!r}" if vmo.name else "a VMO"
        if Rights.EXECUTE not in vmo.rights:
            raise failure(
                Status.ACCESS_DENIED, Stage.LOAD, f"{self._vmo_label} has no EXECUTE right; get it with replace_as_executable()"
            )
        if self.consume:
            fd = self._hold(vmo.consume())
        self._path = None
        self._vmo_fd = fd
        return loader.inspect(fd, self._vmo_label)

    _path: str | bytes | None = None
    _vmo_fd: int = -1
    _vmo_label: str = ""

    def follow_directives(self, executable: loader.Executable, argv: tuple[bytes, ...]) -> None:
        """Step 10: #! lines lead to the program that will run, and lengthen argv at the front."""
        path: bytes | None = None
        if self._path is not None:
            path = os.fsencode(self._path)
        label = os.fsdecode(path) if path is not None else self._vmo_label
        followed = loader.follow(executable, loader.inspect, loader.ask, label)
        self._argv = followed.extra_args + argv
        script = None
        fd = self._vmo_fd if path is None else None
        if followed.resolved is not None:
            self._resolved = followed.resolved
            program = followed.resolved.executable
            fd = self._hold(program.consume())
            path = None
            self._vmo_label = f"{label}, resolved"
        elif followed.interpreter is not None:
            script, path, fd = label, followed.interpreter, None
        self._executable = followed.executable
        identity = followed.executable.identity
        absolute = os.path.join(os.getcwdb(), path) if path is not None and not path.startswith(b"/") else path
        shown = os.fsdecode(path) if path is not None else self._vmo_label
        self._program = Program(absolute, fd, identity.dev, identity.ino, shown, executable.kind is loader.Kind.DYNAMIC, script)

    # --- steps 6 and 7: the shape of the actions, the name ------------------------------------------------

    def check_shape(self, argv: tuple[bytes, ...]) -> None:
        """Steps 6 and 7: everything about the arguments that can be told without looking at a descriptor."""
        name: str | None = None
        for index, action in enumerate(self.actions):
            if isinstance(action, AddHandle) and action.id == _CLOCK_ID and self.flags & SpawnFlags.CLONE_UTC_CLOCK:
                raise _bad(index, action, "gives a UTC clock while CLONE_UTC_CLOCK asks for the caller's; only one can be")
            if isinstance(action, CloneDir):
                _check_clone_dir(index, action)
            if isinstance(action, SetName):
                if "\0" in action.name:
                    raise _bad(index, action, "the name holds a zero byte")
                name = action.name
        if name is None:
            if not argv:
                raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, "the process has no name: argv is empty and there is no SetName action")
            name = os.fsdecode(argv[0])
        self._name = os.fsencode(name)[:NAME_BYTES].decode("utf-8", "ignore") if len(name) > NAME_BYTES // 4 else name

    # --- steps 5 and 14 to 17: job, descriptors, handles ---------------------------------------------------

    def take_job(self, job: Job | None) -> None:
        """Step 14, first part: the duplicate of the job that CLONE_JOB gives."""
        self._job = job
        if not self.flags & SpawnFlags.CLONE_JOB:
            return
        given = job if job is not None else _default_job()
        if given is None:
            return  # no cgroup to be in, so no job to speak of
        try:
            fd = given.require(Rights.DUPLICATE | Rights.TRANSFER, "CLONE_JOB")
        except SpawnError as error:
            raise failure(error.status, Stage.JOB, error.detail) from error
        self._startup.append((PA_HND(HandleType.JOB_DEFAULT), given.kind, int(given.rights), self._copy(fd) if job is not None else fd))

    def take_actions(self) -> None:
        """Step 14, second part: each action in order. What an action consumes is gone once its turn has come."""
        for index, action in enumerate(self.actions):
            self._done = index + 1
            if isinstance(action, CloneFd | TransferFd):
                self._take_fd(index, action)
            elif isinstance(action, AddHandle):
                self._take_handle(index, action)
            elif isinstance(action, AddNsEntry):
                self._take_entry(index, action)

    def take_stdio_and_clock(self) -> None:
        """Steps 15 and 16: 0, 1, 2 where no action took them, and the clock."""
        if self.flags & SpawnFlags.CLONE_STDIO:
            for fd in (0, 1, 2):
                if fd not in self._taken and _is_open(fd):
                    self._taken[fd] = -1
                    self._descriptors.append(Descriptor(fd, fd, "the caller's standard " + ("input", "output", "error")[fd]))
        if self._stdio_source is not None:
            source, label = self._stdio_source
            for fd in (0, 1, 2):
                if fd not in self._taken:
                    self._taken[fd] = -1
                    self._descriptors.append(Descriptor(fd, source, label))
        if self.flags & SpawnFlags.CLONE_UTC_CLOCK:
            clock = _system_clock()
            if clock is not None:
                rights = Rights.READ | Rights.WAIT | Rights.DUPLICATE | Rights.TRANSFER
                self._startup.append((_CLOCK_ID, clock.kind, int(rights), clock.fileno()))

    def _claim(self, index: int, action: Action, target: int) -> tuple[int, bool]:
        """The target check of spec 3.7: it comes before the local descriptor is looked at."""
        number = target & ~FD_USE_FOR_STDIO if target >= 0 else target
        what = f"action {index}: {_shown(action)}"
        if not 0 <= number < FD_TABLE_SIZE:
            raise failure(Status.OUT_OF_RANGE, Stage.DESCRIPTORS, f"{what}: target descriptor {number} is not in 0..{FD_TABLE_SIZE - 1}")
        if number in self._taken:
            raise failure(
                Status.ALREADY_EXISTS, Stage.DESCRIPTORS, f"{what}: target descriptor {number} is already taken by action {self._taken[number]}"
            )
        if number >= 64 and number >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise failure(
                Status.OUT_OF_RANGE, Stage.DESCRIPTORS, f"{what}: target descriptor {number} is above the limit on open files, {soft} (RLIMIT_NOFILE)"
            )
        self._taken[number] = index
        return number, bool(target >= 0 and target & FD_USE_FOR_STDIO)

    def _place(self, target: int, for_stdio: bool, source: int | Bind, label: str) -> None:
        self._descriptors.append(Descriptor(target, source, label))
        if for_stdio:
            self._stdio_source = (source, label)

    def _take_fd(self, index: int, action: CloneFd | TransferFd) -> None:
        transfer = isinstance(action, TransferFd)
        try:
            target, for_stdio = self._claim(index, action, action.target_fd)
        except SpawnError:
            if transfer and self.consume:
                _close_transferred(action.local_fd)
            raise
        what = f"action {index}: {_shown(action)}"
        fd = _number(action.local_fd)
        if fd is None or not _is_open(fd):
            raise failure(Status.INVALID_ARGS, Stage.DESCRIPTORS, f"{what}: local descriptor {_describe(action.local_fd)} is not open", errno.EBADF)
        label = f"{_what_is(fd)} ({_shown(action)}, action {index})"
        if transfer and has_kcmp():
            twin = self._find_duplicate(fd)
            if twin >= 0:
                if self.consume:
                    _close_transferred(action.local_fd)
                raise failure(
                    Status.UNAVAILABLE, Stage.DESCRIPTORS, f"{what}: local descriptor {fd} is also open as {twin}, so it cannot be transferred"
                )
        source = fd
        if self.consume:
            try:
                source = self._copy(fd)
            except SpawnError as error:
                if transfer:
                    _close_transferred(action.local_fd)
                raise failure(error.status, Stage.DESCRIPTORS, f"{what}: cannot duplicate local descriptor {fd}", error.errno) from error
            if transfer:
                _close_transferred(action.local_fd)
        self._place(target, for_stdio, source, label)

    def _find_duplicate(self, fd: int) -> int:
        others = array("i")
        for name in os.listdir("/proc/self/fd"):
            number = int(name)
            if number != fd and number not in self.owned:
                others.append(number)
        return _native.find_duplicate(fd, others.tobytes())

    def _take_handle(self, index: int, action: AddHandle) -> None:
        target, for_stdio = -1, False
        is_fd = PA_HND_TYPE(action.id) == HandleType.FD
        handle = action.handle
        try:
            if is_fd:
                target, for_stdio = self._claim(index, action, PA_HND_ARG(action.id))
        finally:
            kind, rights, source = handle.kind, handle.rights, handle
            problem = self._handle_problem(index, action, handle)
            bind = self._detached_directory(handle) if problem is None else None
            fd = self._own_handle(handle)
        if problem is not None:
            raise problem
        item: int | Bind = bind if bind is not None else fd
        if is_fd:
            self._place(target, for_stdio, item, f"{_what_is(fd)} ({_shown(action)}, action {index})")
        else:
            self._from_actions.add(len(self._startup))
            self._startup.append((action.id, kind, int(rights), item))
        del source

    def _handle_problem(self, index: int, action: AddHandle | AddNsEntry, handle: Handle) -> SpawnError | None:
        what = f"action {index}: {_shown(action)}"
        if handle.closed:
            return failure(Status.BAD_HANDLE, Stage.HANDLES, f"{what}: the {handle.kind} handle is closed or was already handed over")
        if Rights.TRANSFER not in handle.rights:
            return failure(Status.ACCESS_DENIED, Stage.HANDLES, f"{what}: the {handle.kind} handle lacks Rights.TRANSFER")
        if isinstance(action, AddHandle) and isinstance(handle, Directory) and handle.recipe:
            return failure(Status.INVALID_ARGS, Stage.HANDLES, f"{what}: a recipe can only be a namespace entry")
        return None

    def _detached_directory(self, handle: Handle) -> Bind | None:
        """In a cell a directory handle arrives as a mount of its own, so that `..` leads nowhere and its rights hold."""
        if self.whole_world or not isinstance(handle, Directory) or handle.recipe:
            return None
        source = handle.source()
        return source if isinstance(source, Bind) else None

    def _own_handle(self, handle: Handle) -> int:
        if not self.consume:
            return -1 if handle.closed or (isinstance(handle, Directory) and handle.recipe) else handle.fileno()
        fd = handle.consume()
        return self._hold(fd) if fd >= 0 else -1

    def _take_entry(self, index: int, action: AddNsEntry) -> None:
        handle = action.handle
        problem = self._handle_problem(index, action, handle)
        source: MountSource | None = None
        if problem is None:
            try:
                source = self._entry_source(index, action)
            except SpawnError as error:
                problem = failure(error.status, Stage.NAMESPACE, f"action {index}: {_shown(action)}: {error.detail}", error.errno)
        fd = self._own_handle(handle)
        if problem is not None:
            raise problem
        if isinstance(handle, NetNs):
            self._netns = fd
        elif source is not None:
            self._added.append((action.prefix, source, action.nested, index))

    _netns: int | None = None

    @property
    def _added(self) -> list[tuple[str, MountSource, bool, int]]:
        return self.__dict__.setdefault("_added_list", [])  # type: ignore[no-any-return]

    def _entry_source(self, index: int, action: AddNsEntry) -> MountSource | None:
        handle = action.handle
        if isinstance(handle, NetNs):
            return None
        if isinstance(handle, Directory):
            return handle.source()
        if isinstance(handle, Vmo):
            mode = 0o555 if Rights.EXECUTE in handle.rights else 0o444
            return Contents(handle.require(Rights.READ, "an entry"), handle.size, mode, f"VMO {handle.name!r}")
        if isinstance(handle, Socket):
            return _socket_source(handle)
        raise failure(Status.WRONG_TYPE, Stage.NAMESPACE, f"a {handle.kind} handle cannot be an entry of a namespace")

    # --- step 19: what the launcher checks -------------------------------------------------------------------

    def check_entries_and_ids(self) -> None:
        """Step 19: prefixes and handle ids."""
        network: int | None = None
        for index, action in enumerate(self.actions):
            if isinstance(action, AddNsEntry):
                clean = clean_prefix(index, action)
                if isinstance(action.handle, NetNs):
                    if clean != NETWORK_PREFIX:
                        raise failure(Status.WRONG_TYPE, Stage.NAMESPACE, f"action {index}: {_shown(action)}: a network can only be handed over at {NETWORK_PREFIX}")
                    if self.whole_world:
                        raise _bad(index, action, "a network can only be handed to a child without CLONE_NAMESPACE")
                    if network is not None:
                        raise _bad(index, action, f"action {network} has handed over a network already")
                    network = index
            elif isinstance(action, AddHandle):
                _check_id(index, action)

    def _clean_entries(self) -> Iterator[tuple[str, MountSource, bool, str]]:
        for prefix, source, nested, index in self._added:
            yield clean_prefix(index, cast(AddNsEntry, self.actions[index])), source, nested, f"AddNsEntry, action {index}"

    def find_libraries(self) -> None:
        """Step 19: a dynamic program needs a loader, and all that the loader will need has to be there."""
        assert self._program is not None
        image = self._executable.program(self._program.label)  # raises for what is no program of this machine
        if image.is_static:
            return
        if self._resolved is not None:
            if self._resolved.closure is None and not self._resolved.files and not self._resolved.actions:
                raise failure(
                    Status.INVALID_ARGS, Stage.LOADER, f"{self._program.label} is dynamically linked, and the resolver gave no libraries for it"
                )
            self._closure = self._resolved.closure
            return
        if not self.flags & SpawnFlags.DEFAULT_LDSVC:
            raise failure(
                Status.INVALID_ARGS,
                Stage.LOADER,
                f"{self._program.label} is dynamically linked (its interpreter is {image.interpreter}), but no loader was given;"
                " add SpawnFlags.DEFAULT_LDSVC, or use a statically linked program",
            )
        if not self.whole_world:
            target = self._program.path if self._program.fd is None else self._program.fd
            self._closure = loader.library_closure(self._executable, target, self._program.label)

    # --- the result ----------------------------------------------------------------------------------------------

    def finish(self, argv: tuple[bytes, ...], environ: Environ, *, terminal: int | None, dies_with_caller: bool) -> Plan:
        """The plan. Raises for what can only be told when everything is known."""
        assert self._program is not None
        placement = self._place_in_job()
        env = self._environment(environ)
        mounts = self._mounts()
        numbers = self._number_startup()
        table = StartupTable(
            name=None if argv and os.fsdecode(argv[0]) == self._name else self._name,
            handles=tuple(self._table_entry(position, fd) for position, fd in numbers.items()),
            entries=() if self.whole_world else self._table_entries(mounts),
        )
        listen_pid = None
        if table.handles or table.entries or table.name is not None:
            env.append(VARIABLE.encode() + b"=" + table.encode().encode())
            listen_pid = self._listen_variables(env, numbers)
        network: Network = "caller"
        if not self.whole_world:
            network = "loopback" if self._netns is None else "host" if _is_own_netns(self._netns) else "handed over"
        for position, fd in numbers.items():
            id, kind, _, source = self._startup[position]
            self._descriptors.append(Descriptor(fd, source, f"{kind} handle {id:#x}"))
        self._descriptors.sort(key=_by_target)
        return Plan(
            program=self._program,
            argv=self._argv,
            environ=tuple(env),
            name=self._name,
            world="caller" if self.whole_world else "cell",
            mounts=mounts,
            network=network,
            netns_fd=self._netns if network == "handed over" else None,
            descriptors=tuple(self._descriptors),
            table=table,
            cwd=_working_directory(env),
            job=placement,
            privileged=self.privileged,
            session=not self.whole_world or terminal is not None,
            terminal=terminal,
            listen_pid=listen_pid,
            dies_with_caller=dies_with_caller,
        )

    def _place_in_job(self) -> Placement:
        job = self._job if self._job is not None else given_job()  # no other default job needs anything: a child begins where its parent is
        if job is None:
            return Placement("the caller's")
        try:
            place = job.placement("spawn()")
        except SpawnError as error:
            raise failure(error.status, Stage.JOB, error.detail, error.errno) from error
        cgroup_fd = place.cgroup_fd
        if cgroup_fd is not None and self.consume and self._job is not None:
            cgroup_fd = self._copy(cgroup_fd)
        return Placement(job.name, cgroup_fd, place.init_pidfd, place.deny_new_process)

    def _environment(self, environ: Environ) -> list[bytes]:
        if environ is None:
            if not self.flags & SpawnFlags.CLONE_ENVIRON:
                return []
            return [item for item in _own_environment() if not item.startswith(_NOT_FOR_CHILDREN)]
        return encode_environ(environ)

    def _number_startup(self) -> dict[int, int]:
        """Numbers for the startup handles, by position: those of actions first, so that they can start at 3."""
        numbers: dict[int, int] = {}
        free = (number for number in range(3, FD_TABLE_SIZE) if number not in self._taken)
        for position in sorted(range(len(self._startup)), key=self._actions_first):
            number = next(free, None)
            if number is None:
                raise failure(Status.OUT_OF_RANGE, Stage.HANDLES, f"no descriptor number is left below {FD_TABLE_SIZE} for a startup handle")
            numbers[position] = number
        return dict(sorted(numbers.items()))

    def _actions_first(self, position: int) -> bool:
        return position not in self._from_actions

    def _table_entry(self, position: int, fd: int) -> StartupHandle:
        id, kind, rights, source = self._startup[position]
        if isinstance(source, Bind):
            return StartupHandle(id, fd, kind, rights, source.dev, source.ino)
        status = os.fstat(source)
        return StartupHandle(id, fd, kind, rights, status.st_dev, status.st_ino)

    def _table_entries(self, mounts: tuple[Mount, ...]) -> tuple[StartupEntry, ...]:
        entries = [StartupEntry(mount.where, "directory" if _is_directory(mount.source) else "file", mount.source.writable) for mount in mounts if mount.is_entry]
        if self._netns is not None:
            entries.append(StartupEntry(NETWORK_PREFIX, "netns", False))
        return tuple(entries)

    def _listen_variables(self, env: list[bytes], numbers: dict[int, int]) -> int | None:
        given = [position for position in numbers if position in self._from_actions and not _is_special(self._startup[position][0])]
        if not given or sorted(numbers[position] for position in given) != list(range(3, 3 + len(given))):
            return None
        kinds = ":".join(self._startup[position][1] for position in sorted(given, key=numbers.__getitem__))
        env += [b"LISTEN_FDS=%d" % len(given), b"LISTEN_FDNAMES=" + kinds.encode(), b"LISTEN_PID=" + b"0" * 10]
        return len(env) - 1

    def _mounts(self) -> tuple[Mount, ...]:
        chosen: list[Mount] = []
        if not self.whole_world:
            for index, action in enumerate(self.actions):
                if isinstance(action, CloneDir):
                    source = _clone_dir_source(action.prefix)
                    if source is not None:
                        _add_entry(chosen, action.prefix, source, False, f"CloneDir, action {index}")
        for prefix, entry, nested, origin in self._clean_entries():
            if self.whole_world and not isinstance(entry, Bind) and not os.path.isdir(prefix):
                raise failure(Status.INVALID_ARGS, Stage.NAMESPACE, f"{origin}: {prefix} does not exist in the caller's world, so nothing can be mounted there")
            _add_entry(chosen, prefix, entry, nested, origin)
        if self._resolved is not None:
            self._add_resolved(chosen)
        if self._closure is not None and not self.whole_world:
            for library in self._closure:
                _add_library(chosen, library)
        return tuple(chosen)

    def _add_resolved(self, chosen: list[Mount]) -> None:
        assert self._resolved is not None
        for inside, vmo in self._resolved.files:
            fd = self._hold(vmo.consume())
            source = Contents(fd, os.fstat(fd).st_size, 0o555, vmo.name)
            chosen.append(Mount(inside, source, "resolver", make_place=True, is_entry=False))
        for action in self._resolved.actions:
            if not isinstance(action, AddNsEntry):
                raise failure(Status.NOT_SUPPORTED, Stage.DIRECTIVES, f"the resolver answered with a {type(action).__name__}; it can only add namespace entries")
            source_of = self._entry_source(-1, action)
            prefix = clean_prefix(-1, action)
            fd = self._own_handle(action.handle)
            if isinstance(source_of, Contents):
                source_of = Contents(fd, source_of.size, source_of.mode, source_of.label)
            if source_of is not None:
                _add_entry(chosen, prefix, source_of, action.nested, "resolver")

    # --- ownership ---------------------------------------------------------------------------------------------

    def _hold(self, fd: int) -> int:
        self.owned.append(fd)
        return fd

    def _copy(self, fd: int) -> int:
        try:
            return self._hold(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)) if self.consume else fd
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.DESCRIPTORS, f"cannot duplicate descriptor {fd}") from error

    def close(self) -> None:
        """Close all that is owned, and carry out the ownership rule for every action whose turn never came."""
        for fd in self.owned:
            os.close(fd)
        self.owned.clear()
        if not self.consume:
            return
        for action in self.actions[self._done :]:
            if isinstance(action, TransferFd):
                _close_transferred(action.local_fd)
        for action in self.actions:
            if isinstance(action, AddHandle | AddNsEntry):
                action.handle.close()


# --- small pure pieces -------------------------------------------------------------------------------------------


def clean_prefix(index: int, action: AddNsEntry) -> str:
    """The prefix without `//`, `.` and trailing `/`.

    Raises:
        InvalidArgsError: relative, with a zero byte, or with `..`.
        BadPathError: too long.
    """
    prefix = action.prefix
    if not prefix.startswith("/"):
        raise _bad(index, action, f"the prefix {prefix!r} is not absolute")
    if "\0" in prefix:
        raise _bad(index, action, f"the prefix {prefix!r} holds a zero byte")
    parts = [part for part in prefix.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _bad(index, action, f"the prefix {prefix!r} has a `..`; write the path itself")
    if len(os.fsencode(prefix)) >= 4096 or any(len(os.fsencode(part)) > 255 for part in parts):
        raise failure(Status.BAD_PATH, Stage.NAMESPACE, f"action {index}: AddNsEntry: the prefix is longer than a path can be")
    return "/" + "/".join(parts)


def _check_clone_dir(index: int, action: CloneDir) -> None:
    prefix = action.prefix
    if not prefix.startswith("/") or (prefix.endswith("/") and prefix != "/"):
        raise _bad(index, action, f"the prefix {prefix!r} has to start with `/` and not to end with one")
    if "\0" in prefix:
        raise _bad(index, action, f"the prefix {prefix!r} holds a zero byte")
    if ".." in prefix.split("/"):
        raise _bad(index, action, f"the prefix {prefix!r} has a `..`; write the path itself")


def _check_id(index: int, action: AddHandle) -> None:
    id = action.id
    if not 0 <= id <= 0xFFFFFFFF or id & 0xFF00:
        raise _bad(index, action, f"{id:#x} is no startup handle id; make one with PA_HND(type, arg)")
    kind = PA_HND_TYPE(id)
    if kind not in _KNOWN_TYPES:
        raise _bad(index, action, f"{id:#x}: {kind:#x} is no type of startup handle (see HandleType)")
    if kind in _RESERVED:
        raise _bad(index, action, f"{id:#x}: {HandleType(kind).name} is given to every process by the system, not by an action")
    if kind == HandleType.LDSVC_LOADER:
        raise failure(Status.NOT_SUPPORTED, Stage.HANDLES, f"action {index}: {_shown(action)}: a loader cannot be handed over here; add its libraries with AddNsEntry")


def covers(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it, by whole components."""
    return outer == "/" or inner == outer or inner.startswith(outer + "/")


def _add_entry(chosen: list[Mount], prefix: str, source: MountSource, nested: bool, origin: str) -> None:
    overlapping = any(covers(mount.where, prefix) or covers(prefix, mount.where) for mount in chosen)
    if overlapping and not nested:
        return  # the first one wins
    chosen.append(Mount(prefix, source, origin, make_place=_can_make_place(chosen, prefix)))


def _can_make_place(chosen: list[Mount], where: str) -> bool:
    """Whether what `where` lies in is made for the child, and not a directory of the caller's."""
    holder = None
    for mount in chosen:
        if covers(mount.where, where) and (holder is None or covers(holder.where, mount.where)):
            holder = mount
    return holder is None or not isinstance(holder.source, Bind)


def _add_library(chosen: list[Mount], library: loader.Library) -> None:
    where = library.inside
    for mount in reversed(chosen):
        if not covers(mount.where, where):
            continue
        if isinstance(mount.source, Bind):
            rest = where[len(mount.where.rstrip("/")) :]
            if not os.path.exists(mount.source.path + rest):
                raise failure(
                    Status.INTERNAL, Stage.LOADER, f"{where}, which the program needs, is hidden by the entry at {mount.where} ({mount.origin})"
                )
            return
        break
    # The closure names the way the linker goes; the core wants one without symbolic links.
    source = Bind(os.path.realpath(library.path), library.identity.dev, library.identity.ino, False, False)
    chosen.append(Mount(where, source, "DEFAULT_LDSVC", make_place=True, is_entry=False))


def _clone_dir_source(prefix: str) -> Bind | None:
    parts = prefix.split("/")[1:]
    if "" in parts or "." in parts:
        return None  # compared as text, it matches nothing
    try:
        fd = os.open(prefix, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return bind_source(fd, True, devices=True)
    finally:
        os.close(fd)


def _socket_source(handle: Socket) -> Bind:
    fd = os.dup(handle.fileno())
    import socket as stdlib_socket  # noqa: PLC0415 - costly, and rarely needed

    with stdlib_socket.socket(fileno=fd) as view:
        address = view.getsockname() if view.family == stdlib_socket.AF_UNIX else None
    if not isinstance(address, str) or not address:
        raise failure(Status.WRONG_TYPE, Stage.NAMESPACE, "only a unix socket that is bound to a path can be an entry")
    path_fd = os.open(address, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return bind_source(path_fd, True)
    finally:
        os.close(path_fd)


def encode_environ(environ: Mapping[str, str] | Sequence[str | bytes]) -> list[bytes]:
    """The environment as the kernel takes it.

    Raises:
        TypeError: neither a mapping of str nor a sequence of str or bytes.
        InvalidArgsError: a zero byte; in a mapping, a name that is empty or holds `=`.
    """
    if isinstance(environ, Mapping):
        items: list[bytes] = []
        for key, value in environ.items():
            name = os.fsencode(key)
            if not name or b"=" in name:
                raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"{key!r} cannot be the name of an environment variable")
            items.append(name + b"=" + os.fsencode(value))
    elif isinstance(environ, str | bytes):
        raise TypeError("environ must be a mapping or a sequence of NAME=VALUE strings, not one string")
    else:
        items = [os.fsencode(item) for item in environ]
    for item in items:
        if b"\0" in item:
            raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"the environment variable {item.split(b'=')[0]!r} holds a zero byte")
    return items


def _own_environment() -> list[bytes]:
    return [name + b"=" + value for name, value in os.environb.items()]


def _working_directory(env: list[bytes]) -> bytes:
    for item in env:
        if item.startswith(b"PWD="):
            return item[4:]
    return b"/"


def _by_target(item: Descriptor) -> int:
    return item.target


def _is_special(id: int) -> bool:
    return PA_HND_TYPE(id) in (HandleType.JOB_DEFAULT, HandleType.CLOCK_UTC, HandleType.LDSVC_LOADER)


def _is_directory(source: MountSource) -> bool:
    return source.is_dir if isinstance(source, Bind) else not isinstance(source, Contents)


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except (OSError, OverflowError, ValueError):
        return False
    return True


def _number(fd: Fd) -> int | None:
    if isinstance(fd, int):
        return fd if fd >= 0 else None
    try:
        number = fd.fileno()
    except (OSError, ValueError):  # closed: a file says ValueError, a socket -1, a handle BadHandleError
        return None
    return number if number >= 0 else None


def _describe(fd: Fd) -> str:
    number = _number(fd)
    return str(fd if isinstance(fd, int) else number if number is not None else repr(fd))


def _close_transferred(local: Fd) -> None:
    """A transferred descriptor is gone from the caller, whatever else happens."""
    if not isinstance(local, int):
        close = getattr(local, "close", None)
        if callable(close):
            try:
                close()
            except (OSError, ValueError):
                pass
            return
    number = _number(local)
    if number is not None and _is_open(number):
        try:
            os.close(number)
        except OSError:
            pass  # closed all the same: close(2)


_TYPES = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "directory"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"))


def _what_is(fd: int) -> str:
    if fd < 0:
        return "nothing"
    mode = os.fstat(fd).st_mode
    for test, word in _TYPES:
        if test(mode):
            return f"{word}, the caller's {fd}"
    return f"the caller's {fd}"


def _is_own_netns(fd: int) -> bool:
    given, own = os.fstat(fd), os.stat("/proc/thread-self/ns/net")
    return (given.st_dev, given.st_ino) == (own.st_dev, own.st_ino)


def _shown(action: Action) -> str:
    if isinstance(action, CloneFd | TransferFd):
        return f"{type(action).__name__}({_describe(action.local_fd)}, {action.target_fd})"
    if isinstance(action, AddHandle):
        return f"AddHandle({action.id:#x}, {action.handle.kind})"
    if isinstance(action, AddNsEntry):
        return f"AddNsEntry({action.prefix!r}, {action.handle.kind})"
    return repr(action)


def _bad(index: int, action: Action, what: str) -> SpawnError:
    return failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"action {index}: {_shown(action)}: {what}")


_home: Job | None = None


def _default_job() -> Job | None:
    """The job handed to this process, or a handle to the one it lives in that is opened once and kept. None: there is no job."""
    global _home
    given = given_job()
    if given is not None:
        return given
    if _home is None or _home.closed:
        try:
            _home = Job.default()
        except SpawnError:
            return None
    return _home


_clock: UtcClock | Literal[False] | None = None


def _system_clock() -> UtcClock | None:
    global _clock
    if _clock is None or (_clock is not False and _clock.closed):
        _clock = UtcClock.system()
    return _clock or None
