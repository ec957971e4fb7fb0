"""Announcing: which cores are served, by the well-known names, and the spawn daemons that serve them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from typing import Final

from shoal.manager import wire
from shoal.manager.callers import Caller
from shoal.manager.errors import ManagerError
from shoal.manager.naming import Naming
from shoal.manager.rights import ManagerRights
from shoal.manager.spawnds import LOCAL
from shoal.manager.store import Store
from shoal.manager.table import Table

_LOG: Final = logging.getLogger("shoal.manager")
OWN_CORES, SPAWNDS = "own_cores", "spawnds"
"""Facts: which cores the manager serves itself, and the addresses of the spawn daemons of others."""


class Announcing:
    """For the loop's thread."""

    def __init__(self, table: Table, naming: Naming) -> None:
        self._table, self._naming = table, naming

    def announce(self) -> None:
        """The well-known names of the spec."""
        for core in self._table.launcher.spawnds.cores:
            self._announce_core(core)
        self._naming.announce(f"proc_mgmt {{ pid: {os.getpid()} }}")

    def _announce_core(self, core: int) -> None:
        cores, pid = self._table.launcher.spawnds.cores, self._table.launcher.spawnds.pid_of(core)
        if core in cores:
            self._naming.announce(f"spawn.{core} {{ core: {core}, node: '{LOCAL}', pid: {pid or os.getpid()} }}")
            self._naming.announce(f"proc_mgmt.{core}.ready {{ iref: 0 }}")
        else:
            self._naming.withdraw(f"proc_mgmt.{core}.ready")
            self._naming.withdraw(f"spawn.{core}")
        if set(cores) >= os.sched_getaffinity(0):
            self._naming.announce("all_spawnds_up { iref: 0 }")
        else:
            self._naming.withdraw("all_spawnds_up")

    def core_changed(self, core: int) -> None:
        self._table.written(self._table.store.remember, SPAWNDS, json.dumps(self._table.launcher.spawnds.addresses()))
        self._announce_core(core)

    async def rebind(self) -> None:
        """To the spawn daemons that an earlier manager had."""
        known = json.loads(self._table.store.fact(SPAWNDS) or "{}")
        for error in await self._table.launcher.spawnds.add_known({int(core): address for core, address in known.items()}):
            _LOG.warning("%s", error)

    async def _added(self, caller: Caller, request: wire.AddSpawnd) -> None:
        with self._table.answering(caller, request, "the spawn daemon could not be added"):
            await self._table.launcher.spawnds.add(request.core, request.address, again=request.again)
            self._table.audit(caller, request, None)
            caller.answer(request.rid)

    def cores(self, caller: Caller, request: wire.Cores) -> None:
        caller.answer(request.rid, self._table.launcher.spawnds.cores)

    def add_spawnd(self, caller: Caller, request: wire.AddSpawnd) -> None:
        self._table.need(caller, ManagerRights.ADD_SPAWND, "a spawn daemon")
        self._table.begin(self._added(caller, request))


def own_cores(store: Store, given: Iterable[int] | None) -> list[int]:
    """The cores that a manager is itself the spawn daemon of: those given, which are remembered; or remembered ones; or all it may run on.

    Raises:
        ManagerError: it may not run on one that was given.
    """
    allowed = os.sched_getaffinity(0)
    if given is not None:
        cores = sorted(set(given))
        if not allowed.issuperset(cores):
            which = ", ".join(str(core) for core in cores if core not in allowed)
            what = f"the manager cannot serve core {which}: it may run on {', '.join(map(str, sorted(allowed)))}"
            raise ManagerError("PROC_MGMT_ERR_INVALID_SPAWND", what)
        store.remember(OWN_CORES, json.dumps(cores))
        return cores
    remembered = store.fact(OWN_CORES)
    return sorted(allowed if remembered is None else allowed.intersection(json.loads(remembered)))
