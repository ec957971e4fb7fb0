"""The client: a Manager, as programs see it, over a connection to a daemon or to a manager in this process.

Source: proc_mgmt_bind_client() and the spawn_*() functions of Barrelfish's spawn_client.h.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from shoal.actions import Action
from shoal.arguments import Duration
from shoal.handles.base import Handle
from shoal.manager import wire
from shoal.manager.cnode import CNode
from shoal.manager.connection import Connection, ConnectionLost
from shoal.manager.errors import ManagerError, ManagerTimeoutError
from shoal.manager.given import Given
from shoal.manager.held import Domain, DomainStatus
from shoal.manager.layout import Layout
from shoal.manager.tokens import DomainCap
from shoal.sandbox.box import Sandbox
from shoal.units import parse_duration

if TYPE_CHECKING:
    from shoal.manager.names import NameService

NEW_DOMAIN, OMP = 0x1, 0x2
_TRIES = 3
"""How often a request is sent again over a new connection."""
_DYING_S = 10.0
"""How long a manager that has closed its connections may take to be gone, before which no other can take its place."""


class Manager(AbstractContextManager["Manager"]):
    """A process manager. For any number of threads.

    Ownership: has the connection. Domains live on when it is closed.
    """

    def __init__(
        self,
        dial: Callable[[float | None], socket.socket],
        token: Callable[[], str | None],
        on_close: Callable[[], None],
        patience_s: float | None = None,
    ) -> None:
        self._dial, self._token, self._on_close, self._patience_s = dial, token, on_close, patience_s
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._closed = False
        _all.add(self)

    def __repr__(self) -> str:
        return f"<shoal.manager.Manager {'closed' if self._closed else 'connected' if self._connection else 'not connected'}>"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @functools.cached_property
    def names(self) -> NameService:
        """Its name service, as one session of it, which is this connection."""
        from shoal.manager.names import NameService
        from shoal.manager.remote_names import RemoteNames

        return NameService(RemoteNames(lambda: self._connected(None)))

    # --- domains ------------------------------------------------------------------------------------

    def cores(self) -> list[int | str]:
        """The cores on which domains can be started."""
        return list(self._ask(wire.Cores)[0])

    def add_spawnd(self, core: int | str, address: str | os.PathLike[str]) -> None:
        """Have the spawn daemon that listens at `address` serve a core. Returns when it does. Takes the manager capability.

        Args:
            address: the path of its socket: `shoal manager spawnd` starts one, and tells the manager by itself.
        Raises:
            ManagerError: PROC_MGMT_ERR_NOT_MONITOR: without the manager capability. PROC_MGMT_ERR_SPAWND_EXISTS: the core is served.
                PROC_MGMT_ERR_INVALID_SPAWND: it may not run on that core. PROC_MGMT_ERR_SPAWND_REQUEST: none listens there.
        Source: proc_mgmt_add_spawnd() in Barrelfish's proc_mgmt_client.c.
        """
        self._add_spawnd(core, os.path.abspath(os.fspath(address)))

    def _add_spawnd(self, core: int | str, address: str, *, again: bool = False) -> None:
        sent = itertools.count()
        self._ask(lambda rid: wire.AddSpawnd(rid, core, address, again or next(sent) > 0))

    def spawn_program(
        self,
        core: int | str,
        path: str | os.PathLike[str],
        argv: Sequence[str],
        envp: Mapping[str, str] | None = None,
        *,
        flags: int = 0,
        inherit: CNode | None = None,
        args: CNode | None = None,
        sandbox: Sandbox | None = None,
        own_capability: bool = False,
        name: str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        wait: Duration | None = None,
    ) -> Domain:
        """Start a program as a domain of its own. Returns once it has been executed.

        Args:
            core: the one it is pinned to: one of `cores()`.
            path: with a slash it is a path from the current directory; without, it is searched for in this process's PATH.
            argv: argv[0] is the name the program sees.
            envp: its environment; None is this process's, or with a sandbox what that says.
            flags: NEW_DOMAIN changes nothing. OMP registers the functions that a compiler has made of the program's parallel parts, by the
                addresses that they were linked for: `<program>.omp.<n>` from 1 on, with `sym` and `addr`, and `<program>.omp.0` with their
                `count`; unless they are registered.
            inherit: open files under their own numbers, a session: CNode.inherit(). args: handles that the program finds in the same
                slots: shoal.startup.domain.args(). Both are used up, whether or not it is started.
            sandbox: what it gets of the machine; None: it sees what this process does.
            own_capability: it is handed the capability for itself and a connection to the manager: shoal.startup.domain.
            name: what people see; None is the last part of `path`.
            cwd: where it starts; None: where this process is. In a sandbox it starts there if that sees it.
            stdin: a descriptor or file; None is /dev/null.
            stdout, stderr: a descriptor or file; None: kept in the domain's log; subprocess.DEVNULL and, for stderr, STDOUT.
            wait: how long to wait for a spawn daemon of that core, where there is none: seconds, or text such as "5s".
        Raises:
            ManagerTimeoutError: there has been no spawn daemon in the time given by `wait`.
            ManagerError: it was not started: PROC_MGMT_ERR_INVALID_SPAWND for a core without a spawn daemon, SPAWN_ERR_LOAD for a
                program that cannot be found or executed, SPAWN_ERR_ARGSPG_OVERFLOW for too many arguments, and others.
            TypeError, ValueError: what was given cannot be meant.
        Source: spawn_program() and spawn_program_with_caps() in Barrelfish's spawn_client.c.
        """
        for part, cnode in (("inherit", inherit), ("args", args)):
            if cnode is not None and not isinstance(cnode, CNode):
                raise TypeError(f"{part} must be a CNode or None, not {type(cnode).__name__}")
        with ExitStack() as stack:
            actions: list[Action] = []
            if inherit is not None:
                actions += stack.enter_context(inherit.handing_over("inherit"))
            if args is not None:
                actions += stack.enter_context(args.handing_over("args"))
            stdio = (stdin, stdout, stderr)
            spawn = functools.partial(
                self._spawn_program, core, path, argv, envp, flags, actions, sandbox, own_capability, name, cwd, stdio
            )
            return spawn() if wait is None else self._when_served(core, parse_duration(wait), spawn)

    def _when_served(self, core: int | str, patience_s: float, spawn: Callable[[], Domain]) -> Domain:
        last = time.monotonic() + patience_s
        while True:
            try:
                return spawn()
            except ManagerError as error:
                if error.code != "PROC_MGMT_ERR_INVALID_SPAWND" or not str(core).isdecimal():
                    raise
                refused = error
            left = last - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                self.names.lookup(f"proc_mgmt.{core}.ready", timeout=left)
            except TimeoutError:
                what = f"core {core} has had no spawn daemon for {patience_s:g} s"
                raise ManagerTimeoutError(refused.code, what) from refused

    def _spawn_program(
        self,
        core: int | str,
        path: str | os.PathLike[str],
        argv: Sequence[str],
        envp: Mapping[str, str] | None,
        flags: int,
        actions: Sequence[Action],
        sandbox: Sandbox | None,
        own: bool,
        name: str | None,
        cwd: str | os.PathLike[str] | None,
        stdio: tuple[Any, Any, Any],
    ) -> Domain:
        given = Given.of(path, argv, envp, actions, sandbox, cwd, stdio)
        key = uuid.uuid4().hex

        def request(rid: int) -> wire.Request:
            return given.request(rid, key, core, name=name, flags=flags, own=own)

        (id, token), _ = self._ask(request, given.fds)
        return Domain._started(self, id, token)

    def spawn_program_on_all_cores(
        self,
        same_core: bool,
        path: str | os.PathLike[str],
        argv: Sequence[str],
        envp: Mapping[str, str] | None = None,
        *,
        on_error: Literal["stop", "continue", "undo"] = "stop",
        sandbox: Sandbox | None = None,
    ) -> list[Domain]:
        """Start a program once on every core.

        Args:
            same_core: also on the one that this thread runs on now.
            on_error: "stop": the first error ends it, and what was started lives on, named in a note; "continue": the other cores are
                tried all the same, and an error is raised only when none could be started; "undo": what was started is killed.
        Raises:
            ManagerError: as `spawn_program`.
        Source: spawn_program_on_all_cores() in Barrelfish's spawn_client.c.
        """
        if on_error not in ("stop", "continue", "undo"):
            raise ValueError(f'on_error {on_error!r}: there are "stop", "continue" and "undo"')
        here = _own_core()
        started: list[Domain] = []
        errors: list[ManagerError] = []
        for core in self.cores():
            if core == here and not same_core:
                continue
            try:
                started.append(self.spawn_program(core, path, argv, envp, sandbox=sandbox))
            except ManagerError as error:
                if on_error == "undo":
                    for domain in started:
                        domain.kill()
                if on_error != "continue":
                    error.add_note(f"started before: {', '.join(str(domain.id) for domain in started) or 'none'}")
                    raise
                errors.append(error)
        if errors and not started:
            raise errors[0]
        return started

    def spawn_arrakis_program(
        self,
        core: int | str,
        path: str | os.PathLike[str],
        argv: Sequence[str],
        envp: Mapping[str, str] | None = None,
        *,
        inherit: CNode | None = None,
        args: CNode | None = None,
    ) -> Domain:
        """Start a program in a virtual machine of its own. There is no service for that yet: it is refused, with what is missing.

        Args: as of `spawn_program`. Both CNodes are used up.
        Raises:
            ManagerError: PROC_MGMT_ERR_INVALID_SPAWND: no service is registered as `arrakis.<core>`; or one is, and none is known.
        Source: spawn_arrakis_program() in Barrelfish's spawn_client.c.
        """
        with ExitStack() as stack:
            if inherit is not None:
                stack.enter_context(inherit.handing_over("inherit"))
            if args is not None:
                stack.enter_context(args.handing_over("args"))
            name = f"arrakis.{core}"
            if name in self.names.names("r'^arrakis[.]'"):
                what = f"{name} is registered, and this version of shoal knows no way to ask it for a guest"
            else:
                what = f"core {core} has no service for virtual machines: nothing is registered as {name}, and shoal has none; {_virtual()}"
            raise ManagerError("PROC_MGMT_ERR_INVALID_SPAWND", f"{what}; spawn_program(sandbox=...) confines without one")

    def span(self, cap: DomainCap | str, core: int | str) -> None:
        """Start another dispatcher of a domain: `Domain.span()`."""
        self.domain(cap).span(core)

    def domain(self, cap: DomainCap | str | int) -> Domain:
        """The domain that a capability is for; with the manager capability, also by its number.

        Raises:
            ManagerError: there is none; of a capability only its form is checked here, and the rest when it is used.
        """
        if isinstance(cap, int):
            return Domain(self, DomainCap.from_token(self._ask(lambda rid: wire.Mint(rid, cap))[0]))
        return Domain(self, cap if isinstance(cap, DomainCap) else DomainCap.from_token(cap))

    def domains(self, sort: bool = True) -> list[int]:
        """The numbers of all domains that have not been cleaned up. Takes the manager capability.

        Source: spawn_get_domain_list() in Barrelfish's spawn_client.c.
        """
        return [status["id"] for status in self._listed()]  # which is sorted in any case

    def statuses(self) -> list[DomainStatus]:
        """The status of each of them, by number. Of very long arguments only the beginning is there."""
        return list(map(DomainStatus._told, self._listed()))

    def _listed(self) -> Iterator[dict[str, Any]]:
        after: int | None = None
        while found := self._ask(lambda rid, after=after: wire.List(rid, after))[0]:  # type: ignore[misc]
            yield from found
            after = found[-1]["id"]

    def history(self) -> Iterator[DomainStatus]:
        """The status of each that has ended and is remembered, newest first; asked for piece by piece. Takes the manager capability."""
        before: int | None = None
        while found := self._ask(lambda rid, before=before: wire.History(rid, before))[0]:  # type: ignore[misc]
            yield from map(DomainStatus._told, found)
            before = found[-1]["id"]

    def status(self, domain_id: int) -> DomainStatus:
        """What is known of a domain, also of one that has ended. Takes the manager capability.

        Source: spawn_get_status() in Barrelfish's spawn_client.c.
        """
        return DomainStatus._told(self._ask(lambda rid: wire.Status(rid, domain_id))[0])

    def status_of(self, cap: DomainCap | str) -> DomainStatus:
        """What is known of a domain, by its capability."""
        return self.domain(cap).status()

    def revoke(self, domain_id: int | DomainCap) -> None:
        """Make every capability for a domain worthless, or one and all narrowed from it. Takes the manager capability."""
        which = domain_id.to_token() if isinstance(domain_id, DomainCap) else domain_id
        self._ask(lambda rid: wire.Revoke(rid, which))

    def audit(self, count: int = 100) -> list[tuple[float, str, str, int | None, str | None]]:
        """The newest entries of the audit log, oldest first: when, who, what, which domain, and why it was refused."""
        return [tuple(entry) for entry in self._ask(lambda rid: wire.Audit(rid, count))[0]]

    def stop(self) -> None:
        """End the manager; its domains live on. Takes the manager capability."""
        self._ask(wire.Stop)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._on_close()

    # --- for shoal.startup.domain ------------------------------------------------------------------

    def _span(self, token: str, core: int | str, here: int | str) -> tuple[int, int]:
        """The shared memory, and the end here of the channel to the new dispatcher."""
        sent = itertools.count()
        _, (memory, end) = self._ask(lambda rid: wire.Span(rid, token, core, here, next(sent) > 0))
        return memory, end

    def _channel(self, token: str, here: int | str, there: int | str) -> int:
        _, (end,) = self._ask(lambda rid: wire.Channel(rid, token, here, there))
        return end

    def _shared_memory(self, token: str) -> int:
        _, (memory,) = self._ask(lambda rid: wire.Memory(rid, token))
        return memory

    # --- the connection -------------------------------------------------------------------------

    def _ask(self, make: Callable[[int], wire.Request], fds: Sequence[int] = (), timeout: float | None = None) -> tuple[Any, list[int]]:
        """Send a request, over a new connection when the old one is lost.

        What is asked has to be the same when it is asked twice: a spawn and a signal have their keys, and a kill says that it was sent
        before.
        """
        last = None if timeout is None else time.monotonic() + timeout
        for attempt in range(_TRIES):
            connection = self._connected(last) if attempt == 0 else self._connected_again(last)
            try:
                request = make(connection.number())
                try:
                    return connection.call(request, fds, last)
                except TimeoutError:
                    connection.tell(wire.Cancel(connection.number(), request.rid))
                    raise
            except ConnectionLost:
                if attempt == _TRIES - 1 or self._closed:
                    raise
                connection.await_peer(_DYING_S if last is None else min(_DYING_S, max(0.0, last - time.monotonic())))
        raise AssertionError

    def _connected_again(self, last: float | None) -> Connection:
        try:
            return self._connected(last)
        except ConnectionLost:
            raise
        except ManagerError as error:  # of what was sent before, nobody knows what became
            raise ConnectionLost(f"the connection to the manager is lost, and there is no other: {error.message}") from error

    def _connected(self, last: float | None) -> Connection:
        with self._lock:
            if self._closed:
                raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", "this Manager is closed")
            known = self._connection
            if known is not None and not known.is_lost and known.made_in == os.getpid():
                return known
            if known is not None:
                known.close()
            if last is None and self._patience_s is not None:
                last = time.monotonic() + self._patience_s
            left = None if last is None else max(0.0, last - time.monotonic())
            made = Connection(self._dial(left))
            self._connection = made
            try:
                made.call(wire.Hello(made.number(), wire.VERSION, self._token()), last=last)
            except ConnectionLost:
                return made  # of a manager that is ending; the request will find out, and try again
            except BaseException:
                self._connection = None
                made.close()
                raise
            return made


def connect(address: str | None = None, *, timeout: Duration | None = None) -> Manager:
    """A client of the user's process manager, which is started where none runs.

    Args:
        address: the socket of another manager, which is not started. $SHOAL_STATE_DIR names another state directory.
        timeout: for each connection, until the manager has answered on it: seconds, or text such as "5s".
    Raises:
        ManagerError: no manager can be reached or started; says why. TimeoutError: not in time.
    Source: proc_mgmt_bind_client() in Barrelfish's proc_mgmt_client.c.
    """
    from shoal.manager.daemon import dial

    layout = Layout.of()
    if address is not None and os.path.abspath(address) != layout.socket:
        layout = Layout(os.path.dirname(os.path.dirname(address)), os.path.dirname(address))
    patience = None if timeout is None else parse_duration(timeout)

    def token() -> str | None:
        try:
            with open(layout.capability, encoding="ascii") as file:
                return file.read()
        except OSError:
            return None  # who may not read it is a client without it

    manager = Manager(lambda left: dial(layout, left, starts=address is None), token, lambda: None, patience)
    manager._connected(None)
    return manager


def dial_own(given: Handle) -> Callable[[float | None], socket.socket]:
    """Connects by the connection that a domain was handed, once; after that by the way everybody takes, as far as that is open.

    Ownership: takes over the handle.
    """
    from shoal.manager.daemon import dial

    left = [given]

    def connected(timeout: float | None) -> socket.socket:
        if not left:
            return dial(Layout.of(), timeout, starts=False)
        return socket.socket(fileno=left.pop().consume())

    return connected


def embedded(state_dir: str | None = None, *, cores: Sequence[int] | None = None) -> Manager:
    """The same service inside this process, in a thread.

    Args:
        state_dir: what outlives it is there; None is that of the user's manager, of which there can be only one at a time.
        cores: those that it serves itself, which is remembered there; the others are for `Manager.add_spawnd()`. None: as it was, and at
            first all that this process may run on.
    Raises:
        ManagerError: another manager has the directory, or it cannot be used.
    """
    from shoal.manager.running import Embedded  # which loads all that a client does without

    layout = Layout.of(state_dir)
    running = Embedded(layout, cores)

    def token() -> str:
        with open(layout.capability, encoding="ascii") as file:
            return file.read()

    return Manager(lambda left: running.connect(), token, running.close)


def exit(status: int) -> None:
    """End the whole domain this process is a dispatcher of, whichever it is.

    Args:
        status: 0 to 255.
    Source: spawn_exit() in Barrelfish's spawn_client.c.
    """
    import sys

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
    os._exit(status & 0xFF)  # of a dispatcher that ends, its init is told by the kernel: domain.c


def _virtual() -> str:
    """What a service for virtual machines would find here: kvm(4)."""
    if not os.path.exists("/dev/kvm"):
        return "it would take /dev/kvm, which this machine lacks: it has no hardware virtualisation, or the module for it is not loaded"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "it would take /dev/kvm, which this user may not open: the group kvm usually may"
    return "/dev/kvm, which it would take, is here"


def _own_core() -> int:
    with open("/proc/thread-self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[36])


__all__ = ["NEW_DOMAIN", "OMP", "Manager", "connect", "embedded", "exit"]


def _after_fork() -> None:
    """In the child: a thread that connected at that moment is the parent's."""
    for manager in _all:
        manager._lock = threading.Lock()


_all: weakref.WeakSet[Manager] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
