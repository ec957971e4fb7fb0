"""The wire: what a manager and its clients say to each other.

A frame is a 32-bit length, an 8-bit number of descriptors, and so many bytes of msgpack; the descriptors come as ancillary data with
the first byte of their frame. Requests have numbers, any number of them may be under way, and each has one answer.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

FRAME_MOST: Final = 4 << 20
"""Bytes of one frame: more than the kernel takes as arguments and environment together."""
_CLOSED_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
FDS_MOST: Final = 64
"""Descriptors in one frame."""
VERSION: Final = 1
_HEAD: Final = struct.Struct("<IB")


class Request(msgspec.Struct, tag_field="t", tag=True, array_like=True):
    """A request. `rid` tells the answers apart."""

    rid: int


class Hello(Request):
    """The first one of a connection. `token`: the manager capability, or nothing."""

    version: int
    token: str | None = None


class Given(msgspec.Struct, array_like=True):
    """A startup handle that comes along: what the child is told of it, and its number there."""

    id: int
    kind: str
    rights: int
    name: str
    target: int


class SpawnProgram(Request):
    """Start a domain. The descriptors of the frame are those that `fds` speaks of, in order.

    Attributes:
        key: the same request, sent again after a lost connection, has the same one.
        environ: all of it; None: what the sandbox says. cwd: where the caller is, and the program starts if it sees that.
        targets: the numbers in the child of the descriptors that came along.
        kept: which of 1 and 2 go to the domain's log.
        sandbox: a Sandbox as JSON, or None for the manager's own world.
        given: which of what came along are startup handles.
        startup: the variable that tells the program of them; the manager's to fill in.
        own: it is handed the capability for itself, and a connection to the manager.
    """

    key: str
    core: int | str
    path: bytes
    argv: list[bytes]
    environ: list[bytes] | None
    cwd: bytes
    targets: list[int]
    kept: list[int]
    name: str | None
    flags: int
    sandbox: str | None = None
    given: list[Given] = []
    own: bool = False
    startup: bytes | None = None


class Wait(Request):
    domain: str | int
    nohang: bool


class Kill(Request):
    """`again`: it was sent before, and nobody knows what became of it: where the domain was killed, that was done."""

    domain: str | int
    again: bool = False


class Signal(Request):
    """`key`: the same signal, sent again after a lost connection, has the same one, and is not sent twice; 0: none."""

    domain: str | int
    number: int
    key: int = 0


class Span(Request):
    """Answered with the number of the new process, and to a dispatcher, which says on which core it is, with descriptors of the memory
    they share and of its end of the channel. `again`: as with Kill; where there is a dispatcher on that core, that was done."""

    domain: str | int
    core: int | str
    here: int | str | None = None
    again: bool = False


class Exec(Request):
    """Run a command in a domain; answered with the number of its process. Its descriptors are the line to the domain's init, by which the
    command is signalled and its end is told (src/native/domain.h), and then those of `targets`.

    Attributes:
        variables: what differs from those that the domain began with; None: it has no such variable.
        cwd: where it starts, as the domain sees it; None: where the domain began.
        terminal: the first of what `targets` speaks of that is a terminal becomes its controlling one.
    """

    domain: str | int
    argv: list[bytes]
    variables: dict[bytes, bytes | None]
    cwd: bytes | None
    targets: list[int]
    terminal: bool = False


class Channel(Request):
    """Answered with a dispatcher's end of the channel to another one, once."""

    domain: str | int
    here: int | str
    there: int | str


class Memory(Request):
    """Answered with a descriptor of the memory that all dispatchers of a domain share."""

    domain: str | int


class Status(Request):
    domain: str | int


class Capabilities(Request):
    domain: str | int


class Logs(Request):
    """Answered with descriptors of the log's files; with `seen`, once there is more than that, or the domain has ended."""

    domain: str | int
    seen: tuple[int, int] | None = None


class List(Request):
    """Those that have not been cleaned up, by number: as many as fit into an answer, of those with a number above `after`."""

    after: int | None = None


class History(Request):
    """Those that have ended, newest first: as many as fit into an answer, of those with a number below `before`."""

    before: int | None = None


class Cores(Request):
    pass


class Mint(Request):
    """A capability for a domain, for who has that of the manager."""

    domain: int


class Revoke(Request):
    """All capabilities for a domain, or one token and what was narrowed from it."""

    domain: str | int


class AddSpawnd(Request):
    """`again`: as with Kill; where that core is served by the one at that address, that was done."""

    core: int | str
    address: str
    again: bool = False


class Cancel(Request):
    """Nobody waits for the answer to `other` any more."""

    other: int


class Stop(Request):
    """End the manager; its domains live on."""


class Audit(Request):
    """The newest entries of the audit log."""

    count: int


class NameSet(Request):
    """A record is stored; a descriptor may come along, of which `kind` and `rights` speak. Answered with its text."""

    query: str
    mode: str
    lifetime: str
    shared: bool
    under: str | None
    kind: str = ""
    rights: int = 0


class NameGet(Request):
    """Answered with text, kind and rights, and the descriptor that the record carries."""

    query: str
    unique: bool


class NameList(Request):
    query: str


class NameExists(Request):
    query: str


class NameRemove(Request):
    query: str


class NameWatch(Request):
    """Answered with the number of the watch, or None where it was not installed, and what matches now, as events."""

    query: str
    on: list[str]
    persistent: bool
    when: str
    existing: bool


class NameSubscribe(Request):
    query: str


class NameUnwatch(Request):
    watch: int
    is_subscription: bool


class NamePublish(Request):
    query: str


class CapabilityPut(Request):
    key: str
    kind: str
    rights: int
    numbered: bool
    shared: bool
    keep: bool


class CapabilityGet(Request):
    key: str


class CapabilityRemove(Request):
    key: str


NameRequest = (
    NameSet
    | NameGet
    | NameList
    | NameExists
    | NameRemove
    | NameWatch
    | NameSubscribe
    | NameUnwatch
    | NamePublish
    | CapabilityPut
    | CapabilityGet
    | CapabilityRemove
)


class Answer(msgspec.Struct, tag_field="t", tag="ok", array_like=True):
    rid: int
    value: Any = None


class Failure(msgspec.Struct, tag_field="t", tag="error", array_like=True):
    """`kind` is the class of the exception: "ManagerError", or one of a launch, with its status and errno."""

    rid: int
    kind: str
    code: str
    message: str
    status: int = 0
    stage: str = ""
    errno: int = 0


class Event(msgspec.Struct, tag_field="t", tag="event", array_like=True):
    """What happened to what a watch or subscription is about."""

    watch: int
    kind: str
    record: str | None
    has_value: bool
    removed: bool


AnyRequest = (
    Hello
    | SpawnProgram
    | Wait
    | Kill
    | Signal
    | Span
    | Exec
    | Channel
    | Memory
    | Status
    | Capabilities
    | Logs
    | List
    | History
    | Cores
    | Mint
    | Revoke
    | AddSpawnd
    | Cancel
    | Stop
    | Audit
    | NameRequest
)
AnyAnswer = Answer | Failure | Event

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(AnyRequest).decode
decode_answer = msgspec.msgpack.Decoder(AnyAnswer).decode


class WireError(Exception):
    """The other side does not keep to the format. Costs it its connection."""


def packed(request: Request) -> bytes:
    """A request as a body. What a manager would not take costs nobody the connection, and all that lives as long as that.

    Raises:
        TypeError, ValueError: a field has what it cannot have.
    """
    try:
        body = encode(request)
    except (OverflowError, UnicodeEncodeError) as error:
        raise _unsendable(request) or error from None
    try:
        decode_request(body)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$[")
        index = int(place.partition("]")[0] or 0)
        name = request.__struct_fields__[index - 1] if index else type(request).__name__.lower()
        raise TypeError(f"{name}: {what}") from None
    return body


def _unsendable(request: Request) -> ValueError | None:
    """Which field it is, of a request with a number or text that the format has not."""
    for name in request.__struct_fields__:
        try:
            encode(getattr(request, name))
        except OverflowError:
            return ValueError(f"{name}: a number has 64 bits at most")
        except UnicodeEncodeError as error:
            return ValueError(f"{name}: character {error.start + 1} is half of a surrogate pair")
    return None


def frame(body: bytes, fds: Sequence[int] = ()) -> bytes:
    """A body with its head.

    Raises:
        WireError: too large, or too many descriptors.
    """
    if len(body) > FRAME_MOST:
        raise WireError(f"a message of {len(body)} bytes; at most {FRAME_MOST} can be sent")
    if len(fds) > FDS_MOST:
        raise WireError(f"{len(fds)} descriptors in one message; at most {FDS_MOST} can be sent")
    return _HEAD.pack(len(body), len(fds)) + body


def ancillary(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """What sendmsg(2) takes along."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


class Inbox:
    """Takes bytes and descriptors from a socket and gives frames. What nobody takes is closed with it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: deque[int] = deque()

    def receive(self, sock: socket.socket, flags: int = 0) -> bool:
        """Read once. False: the other side has closed.

        Raises:
            BlockingIOError: with MSG_DONTWAIT, nothing is there. OSError: the connection is broken.
            WireError: descriptors were lost: we have too many.
        """
        data, control, notes, _ = sock.recvmsg(65536, socket.CMSG_SPACE(FDS_MOST * 4), flags | _CLOSED_ON_EXEC)
        for _, _, content in control:
            fds = array.array("i")
            fds.frombytes(content[: len(content) // 4 * 4])
            self._fds.extend(fds)
        if notes & socket.MSG_CTRUNC:
            raise WireError("descriptors were lost on the way: too many are open here")
        if len(self._fds) > 4 * FDS_MOST:
            raise WireError("more descriptors than messages speak of")
        self._data += data
        return bool(data)

    def next(self) -> tuple[bytes, list[int]] | None:
        """A whole frame, whose descriptors are the caller's, or None.

        Raises:
            WireError: it is too large, lacks descriptors, or came with some that it does not speak of.
        """
        if len(self._data) < _HEAD.size:
            if self._fds and not self._data:
                raise WireError("descriptors that no message speaks of")
            return None
        size, count = _HEAD.unpack_from(self._data)
        if size > FRAME_MOST or count > FDS_MOST:
            raise WireError(f"a frame of {size} bytes with {count} descriptors; at most {FRAME_MOST} and {FDS_MOST} are taken")
        if len(self._data) < _HEAD.size + size:
            if len(self._fds) > count:
                raise WireError(f"a frame speaks of {count} descriptors, and {len(self._fds)} came")
            return None
        if len(self._fds) < count:
            raise WireError(f"a frame speaks of {count} descriptors, and {len(self._fds)} came")
        body = bytes(self._data[_HEAD.size : _HEAD.size + size])
        del self._data[: _HEAD.size + size]
        return body, [self._fds.popleft() for _ in range(count)]

    @property
    def holds_descriptors(self) -> bool:
        """Of a frame that is not whole yet."""
        return bool(self._fds)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._data.clear()
