"""Errand: a domain started and waited for in a thread of its own, so that signals are served meanwhile.

The first thread cannot wait for the manager and for signals at once: what it is asked goes over a connection that any number share.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from shoal.cli.contact import as_command_error
from shoal.cli.output import CommandError, complain
from shoal.cli.signals import FORWARDED, Signals
from shoal.manager import Domain, ManagerError

if TYPE_CHECKING:
    from shoal.manager import ExitStatus

_BY_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
_GIVE_UP = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


class Errand:
    """Starts a domain with `start` and waits for its end, once it is entered. Leaving it leaves the domain alone."""

    def __init__(self, start: Callable[[], Domain]) -> None:
        self._start = start
        self._told = -1
        self._domain: Domain | None = None
        self._end: ExitStatus | None = None
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._told = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="shoal-errand", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._thread.is_alive():  # else the process is about to end, and it would write to somebody else's
            os.close(self._told)

    def follow(self, signals: Signals) -> tuple[Domain, ExitStatus]:
        """Until the domain has ended; what we are sent, it is sent.

        Raises:
            ManagerError: it was not started; why. CommandError: somebody insisted on leaving before it was.
        """
        held: list[int] = []
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        poll.register(signals.fileno(), select.POLLIN)
        while self._thread.is_alive():
            if self._domain is not None:
                for number in held:
                    _deliver(self._domain, number, signals)
                held.clear()
            ready = {fd for fd, _ in poll.poll()}
            if self._told in ready:
                os.eventfd_read(self._told)
                if self._failure is not None or self._end is not None:
                    self._thread.join()
            held += signals.take()
            insisting = [number for number in held if number in _GIVE_UP]
            if self._domain is None and len(insisting) > 1:
                raise CommandError("the manager has not answered yet; it may start the domain all the same", 128 + insisting[0])
        if self._failure is not None:
            raise self._failure
        assert self._domain is not None
        assert self._end is not None
        return self._domain, self._end

    def _run(self) -> None:
        try:
            self._domain = self._start()
            os.eventfd_write(self._told, 1)
            self._end = self._domain.wait()
        except BaseException as error:
            self._failure = error
        finally:
            os.eventfd_write(self._told, 1)


def _deliver(domain: Domain, number: int, signals: Signals) -> None:
    if number in FORWARDED:
        _send(domain, number, to_group=number in _BY_KEYBOARD)
    elif number == signal.SIGTSTP:
        _send(domain, signal.SIGSTOP, to_group=True)
        signals.stop_myself()
        _send(domain, signal.SIGCONT, to_group=True)


def _send(domain: Domain, number: int, *, to_group: bool) -> None:
    """To its programs, or as a keyboard does, to what they have started as well. One that has ended meanwhile needs it no more."""
    try:
        if not (to_group and _sent_to_groups(domain, number)):
            domain.send_signal(number)
    except ManagerError as error:
        if error.code != "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING":
            complain(f"the domain was not sent signal {number}: {as_command_error(error).message}")


def _sent_to_groups(domain: Domain, number: int) -> bool:
    """To the process groups that its programs lead. False where we cannot: they are another user's, or are not seen from here."""
    held: dict[int, int] = {}
    try:
        for pid in domain.status().pids:
            held[pid] = os.pidfd_open(pid)
        # Still its own after we hold them: so what we hold is no other process that has got the number meanwhile.
        pids = [pid for pid in domain.status().pids if pid in held and os.getpgid(pid) == pid]
        for pid in pids:
            os.killpg(pid, number)
        return bool(pids)
    except OSError:
        return False
    finally:
        for fd in held.values():
            os.close(fd)
