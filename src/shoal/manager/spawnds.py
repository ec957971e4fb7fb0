"""Spawnds: which spawn daemon serves which core of this machine. The manager is one itself, for the cores that it was given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from shoal.manager.bond import Bond
from shoal.manager.errors import ManagerError
from shoal.manager.nurseries import Nurseries
from shoal.manager.nursery import Init

_LOG: Final = logging.getLogger("shoal.manager")
LOCAL: Final = "local"
"""The name of this machine."""


class Spawnds:
    """For the loop's thread.

    Args:
        own: the cores that the manager serves itself. nurseries: where it gets inits for those; taken over.
        token: the manager capability, by which a spawn daemon knows who asks.
        fds: the ledger, and the directories of sockets and of logs; borrowed.
        on_change: called when another core is served, or is not any more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        own: Iterable[int],
        nurseries: Nurseries,
        token: Callable[[], str],
        fds: Sequence[int],
        on_change: Callable[[int], None],
    ) -> None:
        self._loop, self._nurseries, self._token, self._fds, self._on_change = loop, nurseries, token, fds, on_change
        self._serving: dict[int, Bond | None] = dict.fromkeys(own)
        self._adding = asyncio.Lock()

    def close(self) -> None:
        """Let go of all of them."""
        self._nurseries.close()
        for bond in self._bonds():
            bond.close()

    @property
    def cores(self) -> list[int]:
        """Those that are served, in order."""
        return sorted(self._serving)

    def pid_of(self, core: int) -> int | None:
        """Of the spawn daemon that serves a core; None: the manager does, or none."""
        bond = self._serving.get(core)
        return None if bond is None else bond.pid

    def addresses(self) -> dict[int, str]:
        """Of those in processes of their own, by core: what is to be remembered."""
        return {core: bond.address for core, bond in self._serving.items() if bond is not None}

    def number(self, core: int | str) -> int:
        """A core that is served, by its number.

        Raises:
            ManagerError: PROC_MGMT_ERR_INVALID_SPAWND.
        """
        found = number_of(core)
        if found not in self._serving:
            what = f"core {core} has no spawn daemon; there is one for {_listed(self.cores)}"
            advice = f"spawn_program(wait=...) waits until there is: proc_mgmt.{found}.ready" if found >= 0 else "cores are numbers"
            raise ManagerError("PROC_MGMT_ERR_INVALID_SPAWND", f"{what}; {advice}")
        return found

    async def add(self, core: int | str, address: str, *, again: bool = False) -> None:
        """Have the spawn daemon at `address` serve a core. Returns when it does.

        Args:
            again: it is good enough that it does already.
        Raises:
            ManagerError: PROC_MGMT_ERR_SPAWND_EXISTS: another one does. PROC_MGMT_ERR_INVALID_SPAWND: it may not run there, or there is no
                such core. PROC_MGMT_ERR_SPAWND_REQUEST: there is none at that address, or none of use.
        """
        number = number_of(core)
        if number < 0:
            raise ManagerError("PROC_MGMT_ERR_INVALID_SPAWND", f"core {core}: a core of this machine has a number")
        async with self._adding:
            if number in self._serving:
                bond = self._serving[number]
                if again and bond is not None and bond.address == address:
                    return
                who = "the manager itself" if bond is None else f"the spawn daemon at {bond.address}"
                advice = "; `shoal manager start --cores` says which ones it is to serve" if bond is None else ""
                raise ManagerError("PROC_MGMT_ERR_SPAWND_EXISTS", f"core {number} is served by {who}{advice}")
            known = next((bond for bond in self._bonds() if bond.address == address), None)
            bond = known or await Bond.to(self._loop, address, self._token(), self._fds, self._lost)
            if not bond.lives:
                raise ManagerError("PROC_MGMT_ERR_SPAWND_REQUEST", f"the spawn daemon at {address} has gone meanwhile")
            if number not in bond.cores:
                if known is None:
                    bond.close()
                what = f"the spawn daemon at {address} may not run on core {number}, but on {_listed(bond.cores)}"
                raise ManagerError("PROC_MGMT_ERR_INVALID_SPAWND", what)
            self._serving[number] = bond
            self._on_change(number)

    async def add_known(self, addresses: Mapping[int, str]) -> list[ManagerError]:
        """Those that an earlier manager had, as far as they are there. What kept the others from it."""
        errors: list[ManagerError] = []

        async def add(address: str, cores: Sequence[int]) -> None:
            for core in cores:
                try:
                    await self.add(core, address)
                except ManagerError as error:
                    errors.append(error)

        by_address: dict[str, list[int]] = {}
        for core, address in addresses.items():
            by_address.setdefault(address, []).append(core)
        await asyncio.gather(*(add(address, cores) for address, cores in by_address.items()))
        return errors

    async def take_init(self, core: int, *, makes_cell: bool) -> Init:
        """An init for a domain on a core.

        Raises:
            ManagerError: there is none to be had.
        """
        bond = self._serving[self.number(core)]
        if bond is None:
            return await self._nurseries.take_init(makes_cell=makes_cell)
        return await bond.take_init(makes_cell=makes_cell)

    def _bonds(self) -> set[Bond]:
        return {bond for bond in self._serving.values() if bond is not None}

    def _lost(self, lost: Bond) -> None:
        """It has gone, and may come back."""
        _LOG.warning("the spawn daemon at %s has gone", lost.address)
        for core in [core for core, bond in self._serving.items() if bond is lost]:
            del self._serving[core]
            self._on_change(core)


def number_of(core: int | str) -> int:
    """The number of a core, served or not. -1: it is none of this machine."""
    node, _, number = core.rpartition("/") if isinstance(core, str) else (LOCAL, "", str(core))
    return int(number) if node in ("", LOCAL) and number.isdecimal() and number.isascii() and len(number) < 10 else -1


def _listed(cores: Iterable[int]) -> str:
    return ", ".join(map(str, cores)) or "none"
