"""Nurseries: where the inits of domains come from, on the cores of one spawn daemon. Made when the first init is wanted."""

from __future__ import annotations

import asyncio

from shoal.manager.errors import ManagerError
from shoal.manager.layout import out_of
from shoal.manager.nursery import Init, Nursery
from shoal.privileges import is_privileged
from shoal.status import SpawnError


class Nurseries:
    """One for domains that see the world of who has it, one for those in a cell where that takes a user namespace. For the loop's thread.

    Args:
        ledger, run, logs: as of a Nursery; borrowed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ledger: int, run: int, logs: int) -> None:
        self._loop = loop
        self._given = (ledger, run, logs)
        self._nurseries: dict[bool, Nursery] = {}
        self._wanted: list[asyncio.Future[None]] = []

    def close(self) -> None:
        """Raise no more. Inits that have a domain live on."""
        for apart in tuple(self._nurseries):
            self._close_one(apart)

    async def take_init(self, *, makes_cell: bool) -> Init:
        """An init that waits for its domain. Waits for one to be made where none does.

        Raises:
            ManagerError: none can be made.
        """
        apart = makes_cell and not is_privileged()  # in a user namespace in which it may
        while True:
            nursery = self._nurseries.get(apart)
            if nursery is None:
                try:
                    nursery = self._nurseries[apart] = Nursery(*self._given, makes_cells=apart)
                except SpawnError as error:
                    raise ManagerError("SPAWN_ERR_RUN", f"no init for a domain could be made: {error.detail}") from error
                self._loop.add_reader(nursery.fileno(), self._readable, apart)
            try:
                init = nursery.take()
            except OSError as error:
                raise out_of(error, "no init for a domain could be made", "SPAWN_ERR_RUN") from error
            if init is not None:
                return init
            wanted: asyncio.Future[None] = self._loop.create_future()
            self._wanted.append(wanted)
            await wanted

    def _readable(self, apart: bool) -> None:
        nursery = self._nurseries.get(apart)
        if nursery is not None and not nursery.receive():
            self._close_one(apart)  # somebody has killed it; the next launch makes another
        wanted, self._wanted = self._wanted, []
        for future in wanted:
            if not future.done():
                future.set_result(None)

    def _close_one(self, apart: bool) -> None:
        nursery = self._nurseries.pop(apart, None)
        if nursery is not None:
            self._loop.remove_reader(nursery.fileno())
            nursery.close()
