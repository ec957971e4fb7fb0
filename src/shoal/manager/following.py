"""Following: the logs of domains, as far as they are written and as they grow."""

from __future__ import annotations

import os

from shoal.manager import wire
from shoal.manager.callers import Caller
from shoal.manager.domains import Domain
from shoal.manager.layout import out_of
from shoal.manager.logs import names, open_log, state_of
from shoal.manager.rights import DomainRights
from shoal.manager.table import Table
from shoal.manager.waiting import Waiting
from shoal.manager.watching import Watcher


class Following:
    """For the loop's thread."""

    def __init__(self, table: Table, waiting: Waiting) -> None:
        self._table, self._waiting = table, waiting
        self._watcher = Watcher(table.loop)

    def close(self) -> None:
        self._watcher.close()

    def forget(self, caller: Caller, rid: int) -> None:
        """Nobody waits for that answer any more."""
        self._watcher.forget((caller, rid))

    def logs(self, caller: Caller, request: wire.Logs) -> None:
        domain = self._table.allowed(caller, request.domain, DomainRights.LOGS)
        who = (caller, request.rid)

        def look(outcome: object = None) -> None:
            if who not in domain.waiters and outcome is None:
                return  # it has been answered, or nobody waits any more
            if domain.ended is None and request.seen == state_of(self._table.layout.logs, domain.id):
                self._watcher.once(os.path.join(self._table.layout.logs, names(domain.id)[1]), who, look)
                if request.seen == state_of(self._table.layout.logs, domain.id):  # still, now that it is watched
                    return
            self._watcher.forget(who)
            domain.waiters.pop(who, None)
            self._waiting.has_answered(caller, request.rid)
            self._answer_log(caller, request.rid, domain)

        if domain.ended is not None or request.seen is None:
            self._answer_log(caller, request.rid, domain)
            return
        self._waiting.begins(caller, request.rid, domain)
        domain.waiters[who] = look
        try:
            look()
        except BaseException:
            domain.forget(who)
            raise

    def _answer_log(self, caller: Caller, rid: int, domain: Domain) -> None:
        try:
            state, fds = open_log(self._table.layout.logs, domain.id)
        except OSError as error:
            caller.refuse(rid, out_of(error, "the log cannot be opened"))
            return
        try:
            caller.answer(rid, [domain.ended is not None, state], fds)
        finally:
            for fd in fds:
                os.close(fd)
