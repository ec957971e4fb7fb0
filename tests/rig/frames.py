"""What a hostile or broken client may send a manager: frames of any size and sense, with descriptors of any kind."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import tempfile
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from shoal.manager import wire

REQUESTS: tuple[type[wire.Request], ...] = tuple(
    each
    for member in typing.get_args(wire.AnyRequest)
    for each in (typing.get_args(member) if isinstance(member, types.UnionType) else (member,))
)
NUMBERS = (0, 1, -1, 2, 9, 255, 256, 1023, 1024, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63))
TEXTS = (
    "",
    "x",
    "0",
    "-1",
    "node/0",
    "a" * 5000,
    "é\U0001f600",
    "\0",
    "a\0b",
    "../..",
    "/bin/true",
    "spawn.0",
    "r'.*'",
    "x { a: 1 }",
    "{",
    "_",
)
BYTES = (
    b"",
    b"x",
    b"/bin/true",
    b"/bin/sh",
    b"/",
    b"true",
    b"\xff\xfe",
    b"a\0b",
    b"/no/such/place",
    b"A=1",
    b"x" * 5000,
    b"/proc/self/exe",
)


class Forge:
    """Draws messages.

    Args:
        tokens: capabilities that a client may have; they are also changed and cut.
    """

    def __init__(self, pick: random.Random, tokens: tuple[str, ...]) -> None:
        self.pick, self.tokens = pick, tokens

    def message(self) -> tuple[bytes, int]:
        """The bytes of a frame, or of what looks like one, and how many descriptors go with them."""
        pick = self.pick
        kind = pick.choices(("request", "changed", "any", "cut", "noise", "head"), (8, 5, 3, 2, 1, 1))[0]
        if kind == "noise":
            return pick.randbytes(pick.choice((1, 4, 5, 64, 4096))), pick.choice((0, 0, 1, 3))
        if kind == "head":
            size = pick.choice((0, 1, 5, wire.FRAME_MOST, wire.FRAME_MOST + 1, 2**32 - 1))
            return struct.pack("<IB", size, pick.choice((0, 1, 64, 65, 255))) + pick.randbytes(3), pick.choice((0, 1))
        body = msgspec.msgpack.encode(self.any(3)) if kind == "any" else self.request(changed=kind == "changed")
        count = pick.choices((0, 1, 2, 5, 64), (10, 3, 2, 1, 1))[0]
        said = count if pick.random() < 0.9 else pick.choice((0, 1, count + 1, 255))
        data = struct.pack("<IB", len(body), said % 256) + body
        return (data[: pick.randrange(1, len(data))] if kind == "cut" else data), count

    def hello(self, token: str | None) -> bytes:
        return wire.frame(wire.encode(wire.Hello(1, wire.VERSION, token)))

    def request(self, *, changed: bool) -> bytes:
        kind = self.pick.choice(REQUESTS)
        hints = typing.get_type_hints(kind)
        fields: list[Any] = [self.value(hints[field.name], field.name) for field in msgspec.structs.fields(kind)]
        words: list[Any] = [kind.__struct_config__.tag, *fields]
        if changed:
            at = self.pick.randrange(len(words))
            change = self.pick.choice(("drop", "add", "replace", "replace"))
            words[at : at + (change != "add")] = [] if change == "drop" else [self.any(2)]
        return msgspec.msgpack.encode(words)

    def value(self, hint: Any, name: str) -> Any:
        """One that has the type, and with luck some sense."""
        pick = self.pick
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            hint = pick.choice(typing.get_args(hint))
        origin = typing.get_origin(hint)
        if hint is type(None):
            return None
        if name in ("keep", "lifetime"):  # what it leaves behind for good, it may
            return False if name == "keep" else "session"
        if hint is bool:
            return pick.random() < 0.5
        if hint is int:
            return pick.choice(NUMBERS) if pick.random() < 0.5 else pick.randrange(8)
        if hint is float:
            return pick.choice((0.0, -1.0, float("nan"), float("inf"), 1e300))
        if hint is str:
            return self.token() if name == "domain" and pick.random() < 0.7 else pick.choice(TEXTS)
        if hint is bytes:
            return pick.choice(BYTES)
        if origin is list:
            (inner,) = typing.get_args(hint)
            return [self.value(inner, "") for _ in range(pick.choice((0, 1, 1, 2, 3, 200)))]
        if origin is tuple:
            return [self.value(inner, "") for inner in typing.get_args(hint)]
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            hints = typing.get_type_hints(hint)
            return [self.value(hints[field.name], field.name) for field in msgspec.structs.fields(hint)]
        return self.any(1)

    def token(self) -> str:
        token = self.pick.choice(self.tokens) if self.tokens else "x"
        how = self.pick.choice(("whole", "whole", "whole", "cut", "changed", "long"))
        if how == "cut":
            return token[: self.pick.randrange(len(token))]
        if how == "changed":
            at = self.pick.randrange(len(token))
            return token[:at] + self.pick.choice("Ab0_-=") + token[at + 1 :]
        return token * 3 if how == "long" else token

    def any(self, depth: int) -> Any:
        pick = self.pick
        makers: list[Callable[[], Any]] = [
            lambda: pick.choice(NUMBERS),
            lambda: pick.choice(TEXTS),
            lambda: pick.choice(BYTES),
            lambda: None,
            lambda: pick.random() < 0.5,
            lambda: pick.random() * 1e9,
        ]
        if depth:
            makers += [
                lambda: [self.any(depth - 1) for _ in range(pick.choice((0, 1, 3, 40)))],
                lambda: {pick.choice(TEXTS): self.any(depth - 1) for _ in range(pick.choice((0, 1, 3)))},
            ]
        return pick.choice(makers)()


@contextmanager
def every_kind_of_descriptor() -> Iterator[list[int]]:
    """One of each that can be had without privileges."""
    with ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        file = stack.enter_context(tempfile.TemporaryFile())
        sockets = [stack.enter_context(end) for _ in range(2) for end in socket.socketpair()]
        sockets.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
        sockets[-1].bind("")
        sockets[-1].listen()
        sockets[0].close()
        opened = [
            os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            os.open("/", os.O_PATH),
            os.open("/dev/null", os.O_RDWR),
            os.open("/proc/self/ns/net", os.O_RDONLY),
            os.memfd_create("sent"),
            os.eventfd(0),
            os.pidfd_open(os.getpid()),
            *os.pipe(),
        ]
        for fd in opened:
            stack.callback(os.close, fd)
        yield [file.fileno(), epoll.fileno(), *(each.fileno() for each in sockets[1:]), *opened]
