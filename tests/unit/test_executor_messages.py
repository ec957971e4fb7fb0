"""What comes back from a call is decoded without running anything, in bounded time and memory, whatever the bytes are."""

from __future__ import annotations

import datetime
import pickle
import random
import resource
import struct
import time

import hypothesis
import hypothesis.strategies as st
import msgpack
import numpy
import pytest

from shoal.executor import wire
from shoal.executor.decode import BadMessageError, decode
from shoal.executor.encode import UnfitError, encode
from shoal.executor.errors import harmless
from shoal.executor.wire import Container, Leaf

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(),
    st.binary(),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
)
keys = st.one_of(st.text(), st.integers(), st.none(), st.binary(), st.tuples(st.integers(), st.text()))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner), st.frozensets(keys), st.sets(keys)),
    max_leaves=30,
)


@hypothesis.given(values)
def test_what_was_encoded_is_decoded_to_the_same(value):
    found = decode(encode(value))
    assert found == value
    assert type(found) is type(value)


@hypothesis.given(st.binary(max_size=300))
def test_whatever_the_bytes_are_it_is_a_plain_value_or_an_error(message):
    try:
        found = decode(message)
    except BadMessageError:
        return
    check_plain(found)


@hypothesis.given(values, st.randoms(use_true_random=False))
def test_a_message_with_something_changed_is_a_plain_value_or_an_error(value, chance):
    message = bytearray(encode(value))
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(message))
        action = chance.randrange(3)
        if action == 0:
            message[at] = chance.randrange(256)
        elif action == 1:
            del message[at]
            message = message or bytearray(b"\xc0")
        else:
            message.insert(at, chance.randrange(256))
    try:
        check_plain(decode(bytes(message)))
    except BadMessageError:
        pass


ALLOWED = {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, numpy.ndarray}


def check_plain(value):
    kind = type(value)
    assert kind in ALLOWED or kind.__module__ in ("datetime", "decimal", "uuid", "numpy"), kind
    if kind in (list, tuple, set, frozenset):
        for item in value:
            check_plain(item)
    if kind is dict:
        for key, item in value.items():
            check_plain(key)
            check_plain(item)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_is_no_message():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        message = pickle.dumps(Trap(), protocol)
        with pytest.raises(BadMessageError):
            decode(message)
        assert decode(msgpack.packb({"a": message})) == {"a": message}  # bytes are bytes


def ext(code, data=b""):
    return msgpack.packb(msgpack.ExtType(code, data))


def marked(number, content):
    return msgpack.packb({number: content})


def array(dtype, shape, data, *, count=None, size=None):
    name = dtype.encode()
    return (
        bytes([len(name) if size is None else size])
        + name
        + bytes([len(shape) if count is None else count])
        + struct.pack(f"<{len(shape)}Q", *shape)
        + data
    )


@pytest.mark.parametrize("kind", ["<U0", ">U0", "|S0"])
def test_text_without_room_for_a_character_comes_back(kind):
    numpy = pytest.importorskip("numpy")
    record = numpy.zeros(3, [("number", "u1"), ("text", kind)])
    found = decode(encode([record["text"], record["text"][0]]))
    assert found[0].tolist() == record["text"].tolist()
    assert found[1] == record["text"][0]


def test_an_array_with_nothing_in_it_keeps_its_shape():
    numpy = pytest.importorskip("numpy")
    assert decode(encode(numpy.empty((0, 2**62), "u1"))).shape == (0, 2**62)


HOSTILE = {
    "nothing": b"",
    "half": encode([1, 2, 3])[:-1],
    "two": encode(1) + encode(2),
    "a reserved byte": b"\xc1",
    "a list that claims to be huge": b"\xdd\xff\xff\xff\xff",
    "text that claims to be huge": b"\xdb\xff\xff\xff\xff" + b"x" * 100,
    "bytes that claim to be huge": b"\xc6\xff\xff\xff\xff",
    "a map that claims to be huge": b"\xdf\xff\xff\xff\xff\x01",
    "an extension that claims to be huge": b"\xc9\xff\xff\xff\xff\x0a",
    "lists in lists that claim to be huge": b"\xdd\x00\x1e\x00\x00" * 900,
    "maps in maps that claim to be huge": b"\xdf\x00\x1e\x00\x00\xa1a" * 900,
    "deep lists": b"\x91" * 101 + b"\xc0",
    "very deep lists": b"\x91" * 100_000 + b"\xc0",
    "deep maps": b"\x81\xa1a" * 101 + b"\xc0",
    "very deep maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "deep tuples": b"\x81\x01\x91" * 101 + b"\xc0",
    "bytes that are no text": b"\xa2\xff\xfe",
    "a map with a number for a key": msgpack.packb({99: []}),
    "a map with numbers for keys": msgpack.packb({1: [], 2: []}),
    "a map with bytes for keys": msgpack.packb({b"a": 1}),
    "a map with None for a key": msgpack.packb({None: 1}),
    "a map with a list for a key": b"\x81\x90\xc0",
    "a map with a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "a tuple that holds no list": marked(Container.TUPLE, 3),
    "a tuple that holds a map": marked(Container.TUPLE, {"a": 1}),
    "a set of lists": marked(Container.SET, [[1]]),
    "a set of arrays": marked(Container.SET, [msgpack.ExtType(Leaf.ARRAY, array("<i4", (1,), b"1234"))]),
    "a dict with half a pair": marked(Container.DICT, [1, 2, 3]),
    "a dict with lists for keys": marked(Container.DICT, [[1], 2]),
    "a dict with a key twice": marked(Container.DICT, [1, 2, 1.0, 3]),
    "a set with keys of one hash": marked(
        Container.SET, [{Container.TUPLE: [-1 - (n >> bit & 1) for bit in range(12)]} for n in range(4096)]
    ),
    "a dict with keys of one hash": marked(
        Container.DICT, [x for n in range(4096) for x in ({Container.TUPLE: [-1 - (n >> bit & 1) for bit in range(12)]}, 0)]
    ),
    "a dict with ints of one hash": marked(
        Container.DICT, [x for n in range(200) for x in (msgpack.ExtType(Leaf.INT, (n * (2**61 - 1)).to_bytes(12, "little")), 0)]
    ),
    "an unknown extension": ext(99),
    "a negative extension": ext(-5 & 0x7F),
    "an int that is too long": ext(Leaf.INT, b"\x01" * (wire.INT_BYTES_MOST + 1)),
    "half a complex": ext(Leaf.COMPLEX, b"1234"),
    "a date that there was not": ext(Leaf.DATE, wire.DATE.pack(2023, 2, 30)),
    "a year 0": ext(Leaf.DATE, wire.DATE.pack(0, 1, 1)),
    "a time zone of a week": ext(Leaf.DATETIME, wire.DATETIME.pack(2024, 1, 1, 0, 0, 0, 0, 604800, 1)),
    "a timedelta without end": ext(Leaf.TIMEDELTA, wire.TIMEDELTA.pack(2**31 - 1, 2**32 - 1, 2**32 - 1)),
    "a Decimal that is none": ext(Leaf.DECIMAL, b"__import__('os')"),
    "a uuid that is too short": ext(Leaf.UUID, b"123"),
    "an array without anything": ext(Leaf.ARRAY),
    "an array of objects": ext(Leaf.ARRAY, array("|O", (1,), b"\0" * 8)),
    "an array of objects by another name": ext(Leaf.ARRAY, array("O8", (1,), b"\0" * 8)),
    "an array of records": ext(Leaf.ARRAY, array("i4,O", (1,), b"\0" * 16)),
    "an array of a type with a shape": ext(Leaf.ARRAY, array("(2,)i4", (1,), b"\0" * 8)),
    "an array of void": ext(Leaf.ARRAY, array("|V8", (1,), b"\0" * 8)),
    "an array whose type is code": ext(Leaf.ARRAY, array("__import__('os').system('false')", (1,), b"\0" * 8)),
    "an array of text without end": ext(Leaf.ARRAY, array("<U999999999", (1,), b"\0" * 8)),
    "an array with a negative shape": ext(Leaf.ARRAY, array("<i4", (2**64 - 1,), b"1234")),
    "an array whose shape overflows to what is there": ext(Leaf.ARRAY, array("<i4", (2**32, 2**32), b"")),
    "an array whose shape overflows to a little": ext(Leaf.ARRAY, array("|i1", (2**63, 2, 4), b"1234")),
    "an array of nothing that is huge": ext(Leaf.ARRAY, array("<i8", (0, 2**61), b"")),
    "an array that is too short": ext(Leaf.ARRAY, array("<i4", (2,), b"1234")),
    "an array that is too long": ext(Leaf.ARRAY, array("<i4", (1,), b"12345678")),
    "an array of too many dimensions": ext(Leaf.ARRAY, array("|i1", (1,) * 33, b"1")),
    "an array that claims more dimensions": ext(Leaf.ARRAY, array("|i1", (1,), b"1", count=9)),
    "an array whose type claims to be long": ext(Leaf.ARRAY, array("|i1", (1,), b"1", size=200)),
    "an array of bool that are none": ext(Leaf.ARRAY, array("|b1", (2,), b"\x01\x02")),
    "an array of text that is none": ext(Leaf.ARRAY, array("<U1", (1,), b"\xff\xff\xff\x7f")),
    "an array of much text that takes no room": ext(Leaf.ARRAY, array("<U0", (2**28,), b"")),
    "an array with nothing in it that numpy cannot have": ext(Leaf.ARRAY, array("|u1", (0, 2**63), b"")),
    "a scalar with a shape": ext(Leaf.SCALAR, array("|i1", (2,), b"12")),
    "too many values": b"\x92"
    + b"\xdd"
    + struct.pack(">I", 1_500_000)
    + b"\xc0" * 1_500_000
    + b"\xdd"
    + struct.pack(">I", 600_000)
    + b"\xc0" * 600_000,
    "too many empty lists": b"\xdd" + struct.pack(">I", 1_200_000) + b"\x90" * 1_200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_are_refused_soon_and_take_no_memory(name):
    message = HOSTILE[name]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadMessageError):
        decode(message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (256 << 10) + 8 * len(message) // 1024  # KiB
    assert time.process_time() - began < 20


@pytest.mark.parametrize("depth", [99, 100])
def test_as_deep_as_is_allowed_is_fine(depth):
    value = None
    for _ in range(depth):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(BadMessageError, match="deep"):
        decode(encode(value), depth=depth - 1)
    beside = [value, [1], (2,), {"a": {3}}]
    assert decode(encode(beside[1:])) == beside[1:]
    if depth == 99:
        assert decode(encode(beside)) == beside
    else:
        with pytest.raises(UnfitError, match="deep"):
            encode(beside)


def test_depth_is_that_of_the_deepest_wherever_it_is():
    value = {"a": [1, [2, [3]]], "b": ({"c": [[[[4]]]]},)}
    assert decode(encode(value), depth=7) == value
    with pytest.raises(BadMessageError, match="deep"):
        decode(encode(value), depth=6)


def test_long_flat_lists_are_fast_enough_to_come_back():
    value = [random.random() for _ in range(300_000)]
    assert decode(encode(value)) == value
    many = {f"key {n}": n for n in range(100_000)}
    assert decode(encode(many)) == many


def test_what_cannot_come_back_is_named_with_its_place():
    with pytest.raises(UnfitError, match=r"result\['plot'\]\[1\] is an? .*object"):
        encode({"plot": [1, object()]})
    with pytest.raises(UnfitError, match="is an array of object"):
        encode([numpy.array([{}])])
    with pytest.raises(UnfitError, match="is an array of"):
        encode(numpy.zeros(1, dtype=[("a", "i4")]))
    with pytest.raises(UnfitError, match="is an array of"):
        encode(numpy.ma.zeros(1, dtype=[("a", "i4")]))
    with pytest.raises(UnfitError, match=r"result\['a'\] is an array with masked values"):
        encode({"a": numpy.ma.array([1, 2], mask=[False, True])})
    with pytest.raises(UnfitError, match="whole number of seconds"):
        encode(datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(microseconds=1))))
    loop = []
    loop.append(loop)
    with pytest.raises(UnfitError, match="contains itself"):
        encode(loop)


def test_a_masked_array_in_which_nothing_is_masked_is_its_data():
    found = decode(encode(numpy.ma.array([1, 2], mask=[False, False])))
    assert type(found) is numpy.ndarray
    assert found.tolist() == [1, 2]


def test_text_from_inside_does_nothing_to_a_terminal():
    assert harmless("\x1b[2Jgone\x07\r\u202e\ud800") == r"\x1b[2Jgone\x07\r\u202e\ud800"
    assert harmless("two\n\tlines \u00e9") == "two\n\tlines \u00e9"
