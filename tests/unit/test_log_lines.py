"""Lines of logs, which come as pieces of two streams: the last of them, and how they are shown."""

import json
import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.logs import AsIs, AsJson, Harmless, Stamped
from shoal.manager.logs import Entry, last_lines

PIECES = st.lists(st.tuples(st.sampled_from((1, 2)), st.text("ab\n", min_size=1, max_size=6)), max_size=12)
NASTY = st.text("\x1b[0;1m]\x07\x9b\u00e9\n\r\t\b\x7fJx", max_size=30)


def entries_of(pieces):
    return [Entry(1.7e9 + i, stream, text.encode()) for i, (stream, text) in enumerate(pieces)]


def text_of(entries, stream):
    return b"".join(entry.data for entry in entries if entry.stream == stream)


def lines_of(data):
    *lines, rest = data.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


@given(PIECES, st.integers(0, 20))
def test_the_last_lines_are_whole_lines_of_each_stream_and_as_many_as_wanted(pieces, count):
    entries = entries_of(pieces)
    kept = last_lines(entries, count)
    found = 0
    for stream in (1, 2):
        whole, shown = lines_of(text_of(entries, stream)), lines_of(text_of(kept, stream))
        assert shown == (whole[len(whole) - len(shown) :])
        found += len(shown)
    assert found == min(count, sum(len(lines_of(text_of(entries, stream))) for stream in (1, 2)))


@given(PIECES)
def test_the_last_lines_are_those_that_were_ended_last(pieces):
    entries = entries_of(pieces)
    ends = [(i, at, entry.stream) for i, entry in enumerate(entries) for at, byte in enumerate(entry.data) if byte == 10]
    ends += [
        (max(i for i, e in enumerate(entries) if e.stream == s), 99, s) for s in (1, 2) if text_of(entries, s)[-1:] not in (b"", b"\n")
    ]
    expected = {s: sum(stream == s for _, _, stream in sorted(ends)[-3:]) for s in (1, 2)}
    kept = last_lines(entries, 3)
    assert {s: len(lines_of(text_of(kept, s))) for s in (1, 2)} == expected


def test_a_stamp_is_put_before_each_line_and_lines_do_not_mix():
    shape = Stamped()
    shown = b"".join(map(shape.piece, entries_of([(1, "one\ntw"), (1, "o\n\nopen"), (2, "err\n"), (1, "more")]))) + shape.rest()
    assert re.sub(rb"\S*T\S* ", b"@", shown) == b"@one\n@two\n@\n@open\n@err\n@more\n"


@given(PIECES)
def test_json_lines_are_the_lines(pieces):
    shape = AsJson()
    entries = entries_of(pieces)
    told = [json.loads(line) for line in (b"".join(map(shape.piece, entries)) + shape.rest()).splitlines()]
    for number, name in (1, "stdout"), (2, "stderr"):
        assert [each["text"] for each in told if each["stream"] == name] == [
            line.decode().removesuffix("\n") for line in lines_of(text_of(entries, number))
        ]


@given(NASTY, st.lists(st.integers(0, 40), max_size=6))
def test_what_is_spelled_out_does_not_depend_on_where_it_was_cut(text, cuts):
    data = text.encode()
    places = [0, *sorted(min(at, len(data)) for at in cuts), len(data)]
    pieces = [Entry(0.0, 1, data[a:b]) for a, b in pairwise(places)]
    whole, cut = Harmless(AsIs()), Harmless(AsIs())
    shown = b"".join(map(cut.piece, pieces)) + cut.rest()
    assert shown == whole.piece(Entry(0.0, 1, data)) + whole.rest()
    left = re.sub(rb"\x1b\[[0-9;:]*m", b"", shown).decode()
    assert all(character.isprintable() or character in "\n\r\t\b" for character in left)
