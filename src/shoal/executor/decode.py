"""Decoding a result: in the caller, of bytes that anybody may have made up.

What is guaranteed: the value consists of the types in `wire`, of no subclass and of nothing else, whatever the bytes are; there are at most
so many values in it, so deep; no code runs that the message chose; no memory is taken that the message only claims to need; it takes
time in proportion to its length. Everything else is a BadMessageError.

How: msgpack is decoded by msgpack's C code, which keeps a stack of its own (no recursion) and calls back for each container when it is
complete. There the containers are counted, their depth is worked out from that of what they hold, and maps become what they mean.

What is looked at besides types and lengths:
* keys that all have the same hash make a dict quadratic. The hash of text is secret, but not that of numbers and tuples of them;
* a bool of numpy that is neither 0 nor 1, and text of numpy that is no text, break programs that have no reason to expect them.
Source: msgpack's specification; numpy's "The N-dimensional array".
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from shoal.executor import wire
from shoal.executor.wire import Container, Leaf

_SAME_HASH_MOST = 64
_DTYPE = re.compile(rb"[<>|=]?(?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SU][1-9][0-9]{0,8}|[mM]8(?:\[[0-9]{0,6}[a-zA-Z]{1,7}\])?)")
_TOO_MANY = f"it has too many values in it: {wire.ITEMS_MOST:,} can come back, of which an array of numpy or bytes is one"
_CONTAINERS = frozenset({list, dict, tuple, set, frozenset})


class BadMessageError(Exception):
    """These bytes are no value; says why."""


def decode(message: bytes | bytearray | memoryview, *, items: int = wire.ITEMS_MOST, depth: int = wire.DEPTH_MOST) -> Any:
    """The value that a message means.

    Args:
        items, depth: how many values there may be, and how many containers within each other.
    Raises:
        BadMessageError: it means none, or one that is too large.
    """
    import msgpack  # only who has results needs it

    counted = _Decoder(items, depth)
    most = min(items, len(message))
    try:
        return msgpack.unpackb(
            message,
            raw=False,
            use_list=True,
            strict_map_key=False,  # each key is looked at before anything is done with it
            timestamp=1,  # the one extension that msgpack has itself: a number
            unicode_errors="surrogatepass",
            list_hook=counted.take_list,
            object_pairs_hook=counted.take_map,
            ext_hook=take_leaf,
            max_array_len=most,
            max_map_len=most,
            max_str_len=len(message),
            max_bin_len=len(message),
            max_ext_len=len(message),
        )
    except BadMessageError:
        raise
    except MemoryError:
        raise BadMessageError("it takes more memory than there is") from None
    except Exception as error:  # msgpack has many, and this is no place to let one pass
        if isinstance(error, ValueError) and str(error).endswith((f"max_array_len({most})", f"max_map_len({most})")) and most == items:
            raise BadMessageError(_TOO_MANY) from None
        raise BadMessageError(f"it is not what a result looks like ({type(error).__name__}: {str(error)[:200]})") from None


class _Decoder:
    """Counts what one message contains.

    `_depths` has the depth of each container that is complete and not yet in another, by its id, which is its own as long as it lives.
    """

    def __init__(self, items: int, depth: int) -> None:
        self._left = items
        self._most_deep = depth
        self._depths: dict[int, int] = {}

    def _note(self, made: object, holds: Sequence[object]) -> None:
        self._left -= len(holds) + 1
        if self._left < 0:
            raise BadMessageError(_TOO_MANY)
        depth = 1
        if self._depths:
            inside = [self._depths.pop(id(item), 1) for item in holds if type(item) in _CONTAINERS]
            depth += max(inside, default=0)
        if depth > self._most_deep:
            raise BadMessageError(f"it is more than {self._most_deep} containers deep")
        self._depths[id(made)] = depth

    def take_list(self, found: list[Any]) -> list[Any]:
        self._note(found, found)
        return found

    def take_map(self, pairs: list[tuple[Any, Any]]) -> Any:
        made: Any
        if len(pairs) == 1 and type(pairs[0][0]) is int:
            number, content = pairs[0]
            if type(content) is not list:
                raise BadMessageError("a container without a list of what it contains")
            made = _container(number, content)
            self._depths[id(made)] = self._depths.pop(id(content), 1)
            return made
        if not all(type(key) is str for key, _ in pairs):
            raise BadMessageError("a map whose keys are not text")
        self._note(pairs, [item for _, item in pairs])
        made = _dict(pairs)
        self._depths[id(made)] = self._depths.pop(id(pairs))
        return made


def _container(number: int, content: list[Any]) -> Any:
    if number == Container.TUPLE:
        return tuple(content)
    if number in (Container.SET, Container.FROZENSET):
        _check_hashes(content)
        return set(content) if number == Container.SET else frozenset(content)
    if number == Container.DICT:
        if len(content) % 2:
            raise BadMessageError("a dict in which a key has no value")
        return _dict(list(zip(content[::2], content[1::2], strict=True)))
    raise BadMessageError(f"there is no container {number}")


def _dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    _check_hashes([key for key, _ in pairs])
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadMessageError("a dict in which a key comes twice")
    return made


def _check_hashes(keys: Sequence[Any]) -> None:
    """TypeError where one has none."""
    if len(keys) > _SAME_HASH_MOST:
        (_, most), *_ = Counter(map(hash, keys)).most_common(1)
        if most > _SAME_HASH_MOST:
            raise BadMessageError("keys that were chosen to have the same hash")


# --- leaves ---------------------------------------------------------------------------------------------------------------------


def take_leaf(code: int, data: bytes) -> Any:
    """What an extension means."""
    maker = _LEAVES.get(code)
    if maker is None:
        raise BadMessageError(f"there is no extension {code}")
    return maker(data)


def _int(data: bytes) -> int:
    if len(data) > wire.INT_BYTES_MOST:
        raise BadMessageError(f"an int of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


def _zone(seconds: int, flags: int) -> datetime.timezone | None:
    return datetime.timezone(datetime.timedelta(seconds=seconds)) if flags & 1 else None


def _datetime(data: bytes) -> datetime.datetime:
    year, month, day, hour, minute, second, micro, offset, flags = wire.DATETIME.unpack(data)
    return datetime.datetime(year, month, day, hour, minute, second, micro, _zone(offset, flags), fold=flags >> 1 & 1)


def _time(data: bytes) -> datetime.time:
    hour, minute, second, micro, offset, flags = wire.TIME.unpack(data)
    return datetime.time(hour, minute, second, micro, _zone(offset, flags), fold=flags >> 1 & 1)


def _timedelta(data: bytes) -> datetime.timedelta:
    days, seconds, microseconds = wire.TIMEDELTA.unpack(data)
    return datetime.timedelta(days, seconds, microseconds)


def _decimal(data: bytes) -> decimal.Decimal:
    if len(data) > wire.INT_BYTES_MOST:
        raise BadMessageError(f"a Decimal of {len(data)} digits")
    return decimal.Decimal(data.decode("ascii"))


def _array(data: bytes) -> Any:
    try:
        import numpy
    except ImportError:
        raise BadMessageError("it is an array, and numpy, which it takes to have one, is not installed here") from None
    size = data[0]
    name = data[1 : 1 + size]
    count = data[1 + size]
    if len(name) != size or not _DTYPE.fullmatch(name):
        raise BadMessageError("an array of a type that cannot come back")
    if count > wire.ARRAY_DIMENSIONS_MOST:
        raise BadMessageError(f"an array of {count} dimensions")
    shape = struct.unpack_from(f"<{count}Q", data, 2 + size)
    begin = 2 + size + 8 * count
    dtype = numpy.dtype(name.decode("ascii"))
    wanted = math.prod(shape) * dtype.itemsize  # a number of Python's, which does not overflow
    if wanted != len(data) - begin:
        raise BadMessageError(f"an array whose shape takes {wanted} bytes, with {len(data) - begin}")
    content = bytearray(memoryview(data)[begin:])  # a copy of its own, which can be written
    if dtype.kind == "b" and content.translate(None, b"\0\1"):
        raise BadMessageError("an array of bool with something else in it")
    if wanted == 0:
        return numpy.zeros(shape, dtype)
    if dtype.kind == "U" and int(numpy.frombuffer(content, dtype.byteorder.replace("|", "=") + "u4").max()) > 0x10FFFF:
        raise BadMessageError("an array of text with something else in it")
    return numpy.frombuffer(content, dtype).reshape(shape)


def _scalar(data: bytes) -> Any:
    found = _array(data)
    if found.shape != ():
        raise BadMessageError("a scalar that has a shape")
    return found[()]


_LEAVES: dict[int, Callable[[bytes], Any]] = {
    Leaf.INT: _int,
    Leaf.COMPLEX: lambda data: complex(*wire.COMPLEX.unpack(data)),
    Leaf.DATETIME: _datetime,
    Leaf.DATE: lambda data: datetime.date(*wire.DATE.unpack(data)),
    Leaf.TIME: _time,
    Leaf.TIMEDELTA: _timedelta,
    Leaf.DECIMAL: _decimal,
    Leaf.UUID: lambda data: uuid.UUID(bytes=data),
    Leaf.BYTEARRAY: bytearray,
    Leaf.ARRAY: _array,
    Leaf.SCALAR: _scalar,
}
