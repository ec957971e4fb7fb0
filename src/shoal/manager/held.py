"""Held: a domain as programs see it, held by its capability.

Source: the spawn_*() functions of Barrelfish's spawn_client.h that take a domain capability.
"""

from __future__ import annotations

import functools
import itertools
import json
import operator
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal.arguments import Duration
from shoal.manager import wire
from shoal.manager.domains import ExitStatus
from shoal.manager.errors import ManagerError
from shoal.manager.logs import Entry, LogReader
from shoal.manager.tokens import DomainCap
from shoal.units import parse_duration

if TYPE_CHECKING:
    from shoal.manager.capabilities import Capabilities
    from shoal.manager.client import Manager
    from shoal.manager.command import Command


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

    @classmethod
    def _told(cls, told: dict[str, Any]) -> DomainStatus:
        """As a manager tells it."""
        ended = told["ended"]
        return cls(
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
        number, key = operator.index(signal), secrets.randbits(63)
        self._manager._ask(lambda rid: wire.Signal(rid, self._token, number, key))

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
        return DomainStatus._told(self._manager._ask(lambda rid: wire.Status(rid, self._token))[0])

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
