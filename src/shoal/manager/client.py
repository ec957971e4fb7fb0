"""The client: a Manager and its Domains, as programs see them, over a connection to a daemon or to a manager in this process.

Source: proc_mgmt_bind_client() and the spawn_*() functions of Barrelfish's spawn_client.h.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import secrets
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from shoal.actions import Action, AddHandle, CloneFd
from shoal.arguments import Duration
from shoal.handles.base import Handle
from shoal.manager import wire
from shoal.manager.boxes import to_text
from shoal.manager.cnode import CNode
from shoal.manager.connection import Connection, ConnectionLost
from shoal.manager.domains import ExitStatus
from shoal.manager.errors import ManagerError, ManagerTimeoutError
from shoal.manager.handing import lowest_free
from shoal.manager.layout import Layout
from shoal.manager.logs import Entry, LogReader
from shoal.manager.tokens import DomainCap
from shoal.manager.wording import as_bytes
from shoal.sandbox.box import Sandbox
from shoal.sandbox.errors import RequestError
from shoal.sandbox.program import current_directory, find_program
from shoal.units import parse_duration

if TYPE_CHECKING:
    from shoal.manager.capabilities import Capabilities
    from shoal.manager.command import Command
    from shoal.manager.names import NameService

NEW_DOMAIN, OMP = 0x1, 0x2
_NOT_PASSED_ON = frozenset(("SHOAL_STARTUP", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"))
"""What tells this process of its own descriptors."""
_TRIES = 3
"""How often a request is sent again over a new connection."""
_DYING_S = 10.0
"""How long a manager that has closed its connections may take to be gone, before which no other can take its place."""


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """What is known of a domain.

    Attributes:
        cores, pids: of its dispatchers, in the same order; empty once it has ended.
        started_s, ended_s: seconds since 1970; ended_s is None while it has not ended.
    """

    id: int
    name: str
    state: Literal["nil", "running", "stop_pending", "stopped", "cleaned"]
    argv: Sequence[str]
    cores: Sequence[int | str]
    pids: Sequence[int]
    exit: ExitStatus | None
    started_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    max_memory_bytes: int = 0
    ended_s: float | None = None


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
        if isinstance(argv, str | bytes):
            raise TypeError('argv must be a sequence of strings, not one string; for example ["prog", "-v"]')
        words = [as_bytes(word, f"argv[{index}]") for index, word in enumerate(argv)]
        environ = os.environ if envp is None and sandbox is None else envp
        variables = None
        if environ is not None:
            variables = [_assignment(key, value) for key, value in environ.items() if envp is not None or key not in _NOT_PASSED_ON]
        found = _find(os.fspath(path))
        fds, targets, kept = _stdio(*stdio)
        given = _handed_over(actions, fds, targets, kept)
        directory = current_directory() if cwd is None else os.path.abspath(os.fspath(cwd))
        box = None if sandbox is None else to_text(sandbox, directory)
        key = uuid.uuid4().hex

        def request(rid: int) -> wire.Request:
            return wire.SpawnProgram(
                rid, key, core, os.fsencode(found), words, variables, os.fsencode(directory), targets, kept, name, flags, box, given, own
            )

        (id, token), _ = self._ask(request, fds)
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
        held = DomainCap.from_token(cap) if isinstance(cap, str) else cap
        return Domain(self, held)

    def domains(self, sort: bool = True) -> list[int]:
        """The numbers of all domains that have not been cleaned up. Takes the manager capability.

        Source: spawn_get_domain_list() in Barrelfish's spawn_client.c.
        """
        return [status["id"] for status in self._listed()]  # which is sorted in any case

    def statuses(self) -> list[DomainStatus]:
        """The status of each of them, by number. Of very long arguments only the beginning is there."""
        return list(map(_status, self._listed()))

    def _listed(self) -> Iterator[dict[str, Any]]:
        after: int | None = None
        while found := self._ask(lambda rid, after=after: wire.List(rid, after))[0]:  # type: ignore[misc]
            yield from found
            after = found[-1]["id"]

    def history(self) -> Iterator[DomainStatus]:
        """The status of each that has ended and is remembered, newest first; asked for piece by piece. Takes the manager capability."""
        before: int | None = None
        while found := self._ask(lambda rid, before=before: wire.History(rid, before))[0]:  # type: ignore[misc]
            yield from map(_status, found)
            before = found[-1]["id"]

    def status(self, domain_id: int) -> DomainStatus:
        """What is known of a domain, also of one that has ended. Takes the manager capability.

        Source: spawn_get_status() in Barrelfish's spawn_client.c.
        """
        return _status(self._ask(lambda rid: wire.Status(rid, domain_id))[0])

    def status_of(self, cap: DomainCap | str) -> DomainStatus:
        """What is known of a domain, by its capability."""
        return self.domain(cap).status()

    def revoke(self, domain_id: int | DomainCap) -> None:
        """Make every capability for a domain worthless, or one and all narrowed from it. Takes the manager capability."""
        which = domain_id if isinstance(domain_id, int) else domain_id.to_token()
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
            if known is not None and known.made_in == os.getpid():
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


class Domain:
    """A domain, held by its capability."""

    def __init__(self, manager: Manager, cap: DomainCap) -> None:
        self._manager = manager
        self.id = cap.domain_id
        self._token = cap.to_token()

    @classmethod
    def _started(cls, manager: Manager, id: int, token: str) -> Domain:
        """One that was started just now, whose capability most programs never look at."""
        self = object.__new__(cls)
        self._manager, self.id, self._token = manager, id, token
        return self

    @functools.cached_property
    def cap(self) -> DomainCap:
        """What it is held by."""
        return DomainCap.from_token(self._token)

    def __repr__(self) -> str:
        return f"<shoal.manager.Domain {self.id}>"

    def wait(self, nohang: bool = False, *, timeout: Duration | None = None) -> ExitStatus | None:
        """Wait for its end. Any number may wait, each gets the same; waiting does not use it up.

        Args:
            nohang: return None at once where it has not ended.
            timeout: seconds, or text such as "1m30s".
        Raises:
            TimeoutError: it has not ended in time. ManagerError: the capability does not allow it, or the domain is forgotten.
        Source: spawn_wait() in Barrelfish's spawn_client.c.
        """
        patience = None if timeout is None else parse_duration(timeout)
        try:
            told = self._manager._ask(lambda rid: wire.Wait(rid, self._token, nohang), timeout=patience)[0]
        except TimeoutError:
            raise TimeoutError(f"domain {self.id} has not ended within {patience:g} s") from None
        except ManagerError as error:
            if nohang and error.code == "SPAWN_ERR_DOMAIN_RUNNING":
                return None
            raise
        return ExitStatus(*told)

    def kill(self) -> None:
        """End everything in it. Returns when nothing of it runs any more.

        Raises:
            ManagerError: PROC_MGMT_ERR_DOMAIN_NOT_RUNNING: it has ended already. PROC_MGMT_ERR_KILL: it cannot be ended.
        Source: spawn_kill() in Barrelfish's spawn_client.c.
        """
        sent = itertools.count()
        self._manager._ask(lambda rid: wire.Kill(rid, self._token, again=next(sent) > 0))

    def send_signal(self, signal: int) -> None:
        """Signal each of its dispatchers.

        Raises:
            ManagerError: PROC_MGMT_ERR_DOMAIN_NOT_RUNNING: it has ended.
        """
        key = secrets.randbits(63)
        self._manager._ask(lambda rid: wire.Signal(rid, self._token, int(signal), key))

    def span(self, core: int | str) -> None:
        """Start another dispatcher of it: the same program on another core, with a memory object that all of them share, and a channel
        to each of the others; of a domain in a sandbox, in the same cell. Returns once it has been executed; a kill and a wait cover all
        of them, and the end of any is the domain's.

        Raises:
            ManagerError: PROC_MGMT_ERR_DOMAIN_NOT_RUNNING, PROC_MGMT_ERR_ALREADY_SPANNED, PROC_MGMT_ERR_INVALID_SPAWND: as they say;
                SPAWN_ERR_SPAN: it is in a sandbox, whose cell cannot be entered.
        Source: spawn_span() in Barrelfish's spawn_client.c.
        """
        sent = itertools.count()
        self._manager._ask(lambda rid: wire.Span(rid, self._token, core, again=next(sent) > 0))

    def exec(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        terminal: bool = False,
    ) -> Command:
        """Run a command in it: under all that holds for its program (namespaces, files, user, filters, limits, core), and with no
        descriptor but 0, 1 and 2. Returns once it has been executed. Its end is not the domain's, but the domain's end is its end; and so
        is that of who holds the Command.

        Args:
            argv: argv[0] is looked up in the domain's own files: with a slash as a path there, else in the PATH it has there. The domain's
                own program is found by its name, even where the sandbox has no path to it.
            env: what differs from the variables that the domain began with; None as a value: there is no such variable.
            cwd: where it starts, in the domain's own files; None: where the domain began.
            stdin, stdout, stderr: a descriptor or file; None is this process's own; subprocess.DEVNULL, and for stderr STDOUT.
            terminal: the first of them that is a terminal becomes its controlling one. It must be nobody's yet: an end of os.openpty().
        Raises:
            ManagerError: it was not started: SPAWN_ERR_FIND_MODULE: the domain has no such program. SPAWN_ERR_LOAD: it cannot be executed
                there. SPAWN_ERR_SETUP_ENV: its directory cannot be entered. PROC_MGMT_ERR_DOMAIN_NOT_RUNNING: the domain has ended.
                SPAWN_ERR_SPAN: nothing more can be started in it. PROC_MGMT_ERR_DOMAIN_CAP_HASH: the capability lacks the right `span`.
            TypeError, ValueError: what was given cannot be meant.
        Source: docker-exec(1), for what is expected of it.
        """
        from shoal.manager.command import execute

        return execute(self._manager._ask, self._token, argv, env, cwd, (stdin, stdout, stderr), terminal=terminal)

    def status(self) -> DomainStatus:
        """What is known of it."""
        return _status(self._manager._ask(lambda rid: wire.Status(rid, self._token))[0])

    def capabilities(self) -> Capabilities:
        """Everything that it can touch: as granted, as the kernel has it, and where the two differ.

        Raises:
            ManagerError: PROC_MGMT_ERR_DOMAIN_NOT_RUNNING: it has ended.
        Source: spawn_dump_capabilities_compat() in Barrelfish's spawn_client.c.
        """
        from shoal.manager.capabilities import Capabilities

        told, _ = self._manager._ask(lambda rid: wire.Capabilities(rid, self._token))
        return Capabilities.from_dict(json.loads(told))

    def logs(self, *, stream: Literal["stdout", "stderr", "both"] = "both", follow: bool = False) -> Iterator[bytes]:
        """What it has written, piece by piece as it was written.

        Args:
            follow: also what it writes from now on, until it has ended.
        """
        return (entry.data for entry in self.log_entries(stream=stream, follow=follow))

    def log_entries(
        self, *, stream: Literal["stdout", "stderr", "both"] = "both", follow: bool = False, last: int | None = None
    ) -> Iterator[Entry]:
        """The same, each piece with its time and its stream.

        Args:
            last: of what is there already only so many lines.
        """
        reader = LogReader(lambda seen: self._manager._ask(lambda rid: wire.Logs(rid, self._token, seen)), stream)
        return reader.entries(follow=follow, last=last)


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


def _status(told: dict[str, Any]) -> DomainStatus:
    ended = told["ended"]
    return DomainStatus(
        told["id"],
        told["name"],
        told["state"],
        tuple(os.fsdecode(word) for word in told["argv"]),
        tuple(told["cores"]) if ended is None else (),
        tuple(told["pids"]) if ended is None else (),
        None if ended is None else ExitStatus(ended["code"], ended["reason"], ended["signal"]),
        told["started_s"],
        *((0.0, 0.0, 0, None) if ended is None else (ended["user_s"], ended["system_s"], ended["max_memory_bytes"], ended["at_s"])),
    )


def _find(path: str) -> str:
    try:
        return find_program(path, os.environ.get("PATH", "/usr/bin:/bin"), current_directory()).path
    except RequestError as error:
        raise ManagerError("SPAWN_ERR_LOAD", error.message) from None


def _assignment(name: object, value: object) -> bytes:
    data = as_bytes(name, "a variable's name") + b"=" + as_bytes(value, f"the value of {name}")
    if b"=" in as_bytes(name, "a variable's name"):
        raise ValueError(f"the variable's name {name!r} holds =")
    return data


def _stdio(stdin: Any, stdout: Any, stderr: Any) -> tuple[list[int], list[int], list[int]]:
    """Descriptors to send, their numbers in the child, and which are kept in the log."""
    fds: list[int] = []
    targets: list[int] = []
    kept: list[int] = []
    for number, given in enumerate((stdin, stdout, stderr)):
        if given is None:
            kept += [number] if number else []
        elif given == subprocess.STDOUT and number == 2:
            if 1 in targets:
                fds.append(fds[targets.index(1)])
                targets.append(2)
            elif 1 in kept:
                raise ValueError("stderr=STDOUT: the log keeps both apart; leave stderr out, or give stdout a file")
        elif given in (subprocess.PIPE, subprocess.STDOUT):
            raise ValueError(f"{('stdin', 'stdout', 'stderr')[number]} cannot be {given}: give a descriptor, or None to keep it in the log")
        elif given != subprocess.DEVNULL:
            fds.append(given if isinstance(given, int) else given.fileno())
            targets.append(number)
    return fds, targets, kept


def _handed_over(actions: Sequence[Action], fds: list[int], targets: list[int], kept: list[int]) -> list[wire.Given]:
    """Adds the descriptors of actions to those to be sent. What the child is told of handles among them."""
    for action in actions:
        if isinstance(action, CloneFd):
            if action.target_fd in kept:
                kept.remove(action.target_fd)
            if action.target_fd in targets:
                raise ValueError(f"descriptor {action.target_fd} is given twice: inherited, and as a standard stream")
            targets.append(action.target_fd)
            fds.append(action.local_fd if isinstance(action.local_fd, int) else action.local_fd.fileno())
    given = []
    for action in actions:
        if isinstance(action, AddHandle):
            target = lowest_free((*targets, *kept))
            targets.append(target)
            fds.append(action.handle.fileno())
            given.append(wire.Given(action.id, action.handle.kind, int(action.handle.rights), action.name, target))
    return given


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


__all__ = ["NEW_DOMAIN", "OMP", "Domain", "DomainStatus", "Manager", "connect", "embedded", "exit"]
