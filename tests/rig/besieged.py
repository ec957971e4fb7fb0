"""A manager in this thread, beside which a good client sits while others do their worst."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rig.frames import Forge, every_kind_of_descriptor
from shoal.manager import DomainCap, DomainRights, wire
from shoal.manager.layout import Layout
from shoal.manager.naming import Kept
from shoal.manager.nursery import AHEAD
from shoal.manager.running import Running

ROUNDS = 40
"""Turns of the loop that suffice for what was sent to be carried out, unless it waits for another process."""
PATIENCE_S = 60.0


class Besieged:
    """The manager and its good client. What comes out of the loop is in `complaints`."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="shoal-besieged-")
        self.loop = asyncio.new_event_loop()
        self.complaints: list[str] = []
        self.sent: list[bytes] = []
        """What the last hostile client has said."""
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(f"{context}"))
        layout = Layout.of(self._directory.name)
        self._running = Running(layout)
        self.loop.run_until_complete(self._running.start(listens=False))
        assert self._running.server is not None
        self.server = self._running.server
        with open(layout.capability, encoding="ascii") as file:
            self.capability = file.read()
        self._good = self.connect()
        self._inbox = wire.Inbox()
        self._rid = 0
        self.ask(wire.Hello, wire.VERSION, self.capability)
        self.domain, token = self.spawn("the good client's")
        """The number of a domain that no hostile client can end."""
        watched = DomainCap.from_token(token).attenuate(DomainRights.WAIT | DomainRights.STATUS | DomainRights.LOGS).to_token()
        self.tokens = (self.spawn("prey")[1], watched, self.capability)

    def spawn(self, key: str) -> tuple[int, str]:
        """A domain: its number, and a capability for it."""
        told = self.ask(wire.SpawnProgram, key, 0, b"/bin/sleep", [b"sleep", b"1000"], [], b"/", [], [1, 2], None, 0)
        return told[0], told[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        service = self._running.service
        assert service is not None
        for status in self.ask(wire.List):
            self._rid += 1
            self._good.sendall(wire.frame(wire.encode(wire.Kill(self._rid, status["id"]))))
            self._answer()
        self._good.close()
        self.loop.run_until_complete(service.settle())
        self._running.close()
        self.loop.close()
        self._directory.cleanup()

    def connect(self) -> socket.socket:
        """Another client's end."""
        near, far = socket.socketpair()
        near.setblocking(False)
        self.server.add(far)
        return near

    def turn(self, times: int = ROUNDS) -> None:
        async def turns() -> None:
            for _ in range(times):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def settle(self) -> None:
        """Until nothing is being carried out."""
        assert self._running.service is not None
        self.turn()
        self.loop.run_until_complete(self._running.service.settle())
        self.turn()

    def ask(self, kind: type[wire.Request], *fields: Any) -> Any:
        """What the good client asks, and is answered."""
        self._rid += 1
        self._good.sendall(wire.frame(wire.encode(kind(self._rid, *fields))))
        return self._answer()

    def _answer(self) -> Any:
        async def answer() -> wire.AnyAnswer:
            while True:
                if (found := self._inbox.next()) is not None:
                    told = wire.decode_answer(found[0])
                    if not isinstance(told, wire.Event) and told.rid == self._rid:
                        return told
                    continue
                with suppress(BlockingIOError):
                    if not self._inbox.receive(self._good):
                        raise EOFError("the good client was thrown out")
                    continue
                await asyncio.sleep(0.001)

        told = self.loop.run_until_complete(asyncio.wait_for(answer(), PATIENCE_S))
        return told.value if isinstance(told, wire.Answer) else told


def descriptors() -> dict[int, str]:
    """Those of this process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def left_over(before: dict[int, str]) -> list[str]:
    """Descriptors that were not there before, and that nobody may keep."""
    now = descriptors()
    new = {fd: now[fd] for fd in now.keys() - before.keys()}
    if not any(map(_is_strange, new.values())) and len(new) <= AHEAD:
        return []
    kept = {each.fd for each in gc.get_objects() if isinstance(each, Kept)}  # of records, and of the capability store
    strange = [what for fd, what in new.items() if fd not in kept and _is_strange(what)]
    return strange or (list(new.values()) if len(new) > AHEAD + len(kept) else [])


def _is_strange(what: str) -> bool:
    """Not the socket of an init made ahead, not the memory of a domain, and not what all logs are followed by."""
    return not what.startswith(("socket:", "/memfd:sleep", "anon_inode:inotify"))


def storm(besieged: Besieged, pick: random.Random, messages: int) -> None:
    """One hostile client says `messages` things and leaves."""
    forge = Forge(pick, besieged.tokens)
    sock = besieged.connect()
    besieged.sent.clear()
    with sock, every_kind_of_descriptor() as fds:
        greets = pick.choices(("with", "without", "not"), (3, 6, 1))[0]
        if greets != "not":
            sock.send(forge.hello(besieged.capability if greets == "with" else None))
        for _ in range(messages):
            data, count = forge.message()
            if greets == "with" and (b"Stop" in data or b"Revoke" in data or b"Kill" in data or b"Signal" in data):
                continue  # it may, and then there would be nothing left to besiege
            chosen = [pick.choice(fds) for _ in range(count)]
            besieged.sent.append(data)
            if not _sent(besieged, sock, data, chosen, pick):
                break
            besieged.turn(2)
        if pick.random() < 0.5:
            with suppress(OSError):
                while sock.recv(1 << 16):
                    pass
    besieged.settle()


def _sent(besieged: Besieged, sock: socket.socket, data: bytes, fds: Sequence[int], pick: random.Random) -> bool:
    """Whether anybody takes it. In pieces, of which the first has the descriptors."""
    at = 0
    for _ in range(1000):
        if at == len(data):
            return True
        piece = data[at : at + pick.choice((1, 5, 6, 100, len(data)))]
        try:
            at += sock.sendmsg([piece], wire.ancillary(fds), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            fds = ()
        except BlockingIOError:
            besieged.turn(2)
        except OSError:
            return False
    return True
