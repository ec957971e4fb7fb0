"""Encoding a result: in the call, where nobody is trusted. What the other side makes of it is in `decode`.

A value that cannot come back is refused with the place where it is: "result['plot'][0] is a Figure".
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import struct
import sys
import uuid
from collections.abc import Iterable, Mapping, Set
from typing import Any

import msgpack

from shoal.executor import wire
from shoal.executor.wire import Container, Leaf

_AS_THEY_ARE: frozenset[type] = frozenset({type(None), bool, float, str, bytes})
_AS_MOST_ARE = _AS_THEY_ARE | {int}
_INT64, _UINT64 = -(1 << 63), 1 << 64
_MEANT = (
    "None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, datetime's types, Decimal, UUID, dataclasses, "
    "and numpy's arrays of numbers, bool, text, bytes and times can come back"
)


class UnfitError(Exception):
    """A value that cannot come back; says which and why."""


def encode(value: object) -> bytes:
    """The message for a value.

    Raises:
        UnfitError: it cannot come back.
    """
    try:
        return _packed(_plain(value, "result", 0, _AS_MOST_ARE))
    except OverflowError:  # an int of more than 64 bits, for which each is to be looked at
        return _packed(_plain(value, "result", 0, _AS_THEY_ARE))


def _packed(plain: object) -> bytes:
    made: bytes = msgpack.packb(plain, use_bin_type=True, unicode_errors="surrogatepass")
    return made


def _plain(value: Any, place: str, depth: int, simple: frozenset[type]) -> Any:
    """The same in what msgpack knows.

    Args:
        simple: the types whose values are left as they are.
    """
    kind = type(value)
    if kind in simple:
        return value
    if kind is int:
        return value if _INT64 <= value < _UINT64 else _big(value, place)
    if depth >= wire.DEPTH_MOST:
        raise UnfitError(f"{_shown(place)} is more than {wire.DEPTH_MOST} containers deep, or contains itself")
    if kind is list:
        return _items(value, place, depth, simple)
    if kind is dict:
        return _mapping(value, place, depth, simple)
    if kind is tuple:
        return {int(Container.TUPLE): _items(value, place, depth, simple)}
    return _other(value, place, depth, simple)


def _items(value: Iterable[Any], place: str, depth: int, simple: frozenset[type]) -> list[Any]:
    # Most lists are long and flat: nothing is called for what is simple.
    found = list(value)
    for index, item in enumerate(found):
        if type(item) not in simple:
            found[index] = _plain(item, f"{place}[{index}]", depth + 1, simple)
    return found


def _mapping(value: Mapping[Any, Any], place: str, depth: int, simple: frozenset[type]) -> dict[Any, Any]:
    if all(type(key) is str for key in value):
        return {key: _plain(item, f"{place}[{key!r}]", depth + 1, simple) for key, item in value.items()}
    pairs: list[Any] = []
    for key, item in value.items():
        pairs.append(_plain(key, f"key {_brief(key)} of {place}", depth + 1, simple))
        pairs.append(_plain(item, f"{place}[{_brief(key)}]", depth + 1, simple))
    return {int(Container.DICT): pairs}


def _other(value: Any, place: str, depth: int, simple: frozenset[type]) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (getattr(numpy, "ndarray", ()), getattr(numpy, "generic", ()))):
        return _array(value, numpy, place)
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return _plain(int(value), place, depth, simple)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return msgpack.ExtType(Leaf.COMPLEX, wire.COMPLEX.pack(value.real, value.imag))
    if isinstance(value, bytearray):
        return msgpack.ExtType(Leaf.BYTEARRAY, bytes(value))
    if isinstance(value, bytes | memoryview):
        return bytes(value)
    if isinstance(value, tuple):
        return {int(Container.TUPLE): _items(value, place, depth, simple)}
    if isinstance(value, list):
        return _items(value, place, depth, simple)
    if isinstance(value, Mapping):
        return _mapping(value, place, depth, simple)
    if isinstance(value, Set):
        container = Container.SET if isinstance(value, set) else Container.FROZENSET
        return {int(container): _items(value, f"{place}, a set,", depth, simple)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _mapping({item.name: getattr(value, item.name) for item in dataclasses.fields(value)}, place, depth, simple)
    return _leaf(value, place)


def _leaf(value: Any, place: str) -> Any:
    if isinstance(value, datetime.datetime):
        offset = value.utcoffset()
        seconds = 0 if offset is None else _whole_seconds(offset, place)
        flags = (offset is not None) | value.fold << 1
        moment = (value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
        return msgpack.ExtType(Leaf.DATETIME, wire.DATETIME.pack(*moment, seconds, flags))
    if isinstance(value, datetime.date):
        return msgpack.ExtType(Leaf.DATE, wire.DATE.pack(value.year, value.month, value.day))
    if isinstance(value, datetime.time):
        offset = value.utcoffset()
        seconds = 0 if offset is None else _whole_seconds(offset, place)
        flags = (offset is not None) | value.fold << 1
        return msgpack.ExtType(Leaf.TIME, wire.TIME.pack(value.hour, value.minute, value.second, value.microsecond, seconds, flags))
    if isinstance(value, datetime.timedelta):
        return msgpack.ExtType(Leaf.TIMEDELTA, wire.TIMEDELTA.pack(value.days, value.seconds, value.microseconds))
    if isinstance(value, decimal.Decimal):
        return msgpack.ExtType(Leaf.DECIMAL, str(value).encode())
    if isinstance(value, uuid.UUID):
        return msgpack.ExtType(Leaf.UUID, value.bytes)
    raise UnfitError(f"{_shown(place)} is {_article(type(value))}; {_MEANT}")


def _whole_seconds(offset: datetime.timedelta, place: str) -> int:
    if offset.microseconds:
        raise UnfitError(f"{_shown(place)} has an offset from UTC that is no whole number of seconds")
    return offset.days * 86400 + offset.seconds


def _big(value: int, place: str) -> Any:
    size = value.bit_length() // 8 + 1
    if size > wire.INT_BYTES_MOST:
        raise UnfitError(f"{_shown(place)} is an int of {size} bytes; {wire.INT_BYTES_MOST} can come back")
    return msgpack.ExtType(Leaf.INT, value.to_bytes(size, "little", signed=True))


def _array(value: Any, numpy: Any, place: str) -> Any:
    dtype = value.dtype
    if dtype.hasobject or dtype.kind not in "biufcSUmM" or dtype.metadata or dtype.subdtype is not None:
        raise UnfitError(f"{_shown(place)} is an array of {dtype}; arrays of numbers, bool, text, bytes and times can come back")
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())
    if isinstance(value, masked) and value.mask.any():
        advice = "no mask can come back; return its filled(), or its data and its mask"
        raise UnfitError(f"{_shown(place)} is an array with masked values; {advice}")
    code = Leaf.SCALAR if isinstance(value, numpy.generic) else Leaf.ARRAY
    if not dtype.itemsize:  # numpy gives each such text room for a character, which has to be paid for on the way
        dtype = numpy.dtype(dtype.str[:-1] + "1")
        value = numpy.asarray(value).astype(dtype)
    name = dtype.str.encode()
    shape = value.shape
    if len(shape) > wire.ARRAY_DIMENSIONS_MOST:
        raise UnfitError(f"{_shown(place)} is an array of {len(shape)} dimensions; {wire.ARRAY_DIMENSIONS_MOST} can come back")
    head = struct.pack(f"<B{len(name)}sB{len(shape)}Q", len(name), name, len(shape), *shape)
    return msgpack.ExtType(code, head + numpy.ascontiguousarray(value).tobytes())


def _article(kind: type) -> str:
    name = str(getattr(kind, "__qualname__", kind))
    module = str(getattr(kind, "__module__", ""))
    full = name if module in ("builtins", "__main__", "") else f"{module}.{name}"
    return ("an " if full[:1].lower() in "aeiou" else "a ") + full


def _brief(key: object) -> str:
    try:
        text = repr(key)
    except Exception:
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 40 else text[:37] + "..."


def _shown(place: str) -> str:
    return place if len(place) <= 200 else f"{place[:120]}...{place[-60:]}"
