"""The SHOAL_STARTUP line: what is written can be read back, and what cannot be read is refused without harm."""

import os
import shlex
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.startup_table import StartupEntry, StartupHandle, StartupTable

names = st.binary(max_size=31).map(os.fsdecode)
kinds = st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True)
words32 = st.integers(0, 0xFFFFFFFF)
words64 = st.integers(0, 2**64 - 1)
handles = st.builds(StartupHandle, words32, st.integers(0, 2**31 - 1), kinds, words32, words64, words64)
prefixes = st.binary(max_size=80).filter(lambda text: b"\0" not in text).map(lambda text: "/" + os.fsdecode(text))
entries = st.builds(StartupEntry, prefixes, kinds, st.booleans())
tables = st.builds(StartupTable, st.none() | names, st.lists(handles).map(tuple), st.lists(entries).map(tuple))


@given(tables)
def test_a_table_reads_back_as_it_was_written(table):
    assert StartupTable.decode(table.encode()) == table


@given(tables)
def test_a_line_is_one_shell_word_list_of_printable_ascii(table):
    line = table.encode()
    assert line.isascii()
    assert line.isprintable()
    assert all(set(word) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/:._-+@%=~") for word in line.split(" "))
    assert shlex.split(line) == line.split(" ")  # `for word in $SHOAL_STARTUP` sees the same words


def test_the_line_of_a_known_table_is_as_documented():
    table = StartupTable(
        name="my job",
        handles=(StartupHandle(0xF0, 3, "file", 0x1F, 1, 2046),),
        entries=(StartupEntry("/data", "directory", False), StartupEntry("/a b:c", "directory", True)),
    )
    assert table.encode() == "1 name=my%20job handle=0xf0:3:file:0x1f:1:2046 ns=/data:directory:ro ns=/a%20b:c:directory:rw"


def test_the_name_of_a_handle_follows_it():
    table = StartupTable(handles=(StartupHandle(0xF0, 3, "file", 0, 0, 0, "my db"), StartupHandle(0xF0, 4, "vmo", 0, 0, 0)))
    line = "1 handle=0xf0:3:file:0x0:0:0 label=my%20db handle=0xf0:4:vmo:0x0:0:0"
    assert table.encode() == line
    assert StartupTable.decode(line) == table


def test_a_label_of_nothing_is_refused():
    with pytest.raises(ValueError, match="label before any handle"):
        StartupTable.decode("1 label=x handle=0xf0:3:file:0x4:0:0")


def test_an_empty_name_differs_from_no_name():
    assert StartupTable(name="").encode() == "1 name="
    assert StartupTable().encode() == "1"
    assert StartupTable.decode("1 name=").name == ""
    assert StartupTable.decode("1").name is None


def test_a_prefix_may_look_like_another_entry():
    table = StartupTable(entries=(StartupEntry("/a:directory:rw", "file", False), StartupEntry("/%2F\n", "file", False)))
    assert StartupTable.decode(table.encode()) == table


def test_words_with_a_key_of_a_later_version_are_skipped():
    line = "1 color=blue name=x flag later=1:2:3 handle=0x30:3:file:0x4:0:0"
    assert StartupTable.decode(line) == StartupTable("x", (StartupHandle(0x30, 3, "file", 4, 0, 0),))


@pytest.mark.parametrize("line", ["", " 1", "2", "1.0 name=x", "01", "name=x", "9" * 10_000])
def test_a_line_of_another_version_is_refused(line):
    with pytest.raises(ValueError, match="version"):
        StartupTable.decode(line)


@pytest.mark.parametrize(
    "word",
    [
        "handle=",
        "handle=0xf0:3:file:0x4:0",  # a field short
        "handle=0xf0:3:file:0x4:0:0:0",  # a field too many
        "handle=f0:3:file:0x4:0:0",  # id without 0x
        "handle=0xf0:-1:file:0x4:0:0",
        "handle=0xf0:2147483648:file:0x4:0:0",  # beyond any descriptor
        "handle=0xf0:3::0x4:0:0",
        "handle=0xf0:3:File:0x4:0:0",
        "handle=0x1ffffffff:3:file:0x4:0:0",  # an id has 32 bits
        "handle=0xf0:3:file:0x4:0:" + "9" * 5_000,  # more digits than int() accepts
        "handle=0xf0:\N{ARABIC-INDIC DIGIT THREE}:file:0x4:0:0",
        "handle=0xf0:3:file:0x4:0:0\n",
    ],
)
def test_a_bad_handle_is_refused(word):
    with pytest.raises(ValueError, match="bad handle"):
        StartupTable.decode(f"1 {word}")


@pytest.mark.parametrize(
    "word", ["ns=", "ns=data:directory:ro", "ns=/data:ro", "ns=/data:directory:rx", "ns=/a%00b:directory:ro", "ns=/data"]
)
def test_a_bad_namespace_entry_is_refused(word):
    with pytest.raises(ValueError, match="bad namespace entry"):
        StartupTable.decode(f"1 {word}")


@given(st.text() | st.text("1 nameshdl=:/0x%fio\n\udc80", max_size=200).map(lambda text: "1 " + text))
def test_any_line_is_read_or_refused_with_a_value_error(line):
    try:
        table = StartupTable.decode(line)
    except ValueError:
        return
    assert StartupTable.decode(table.encode()) == table


@pytest.mark.parametrize(
    "table",
    [
        StartupTable(handles=(StartupHandle(-1, 3, "file", 0, 0, 0),)),
        StartupTable(handles=(StartupHandle(0xF0, -1, "file", 0, 0, 0),)),
        StartupTable(handles=(StartupHandle(0xF0, 3, "two words", 0, 0, 0),)),
        StartupTable(entries=(StartupEntry("relative", "directory", False),)),
        StartupTable(entries=(StartupEntry("/nul\0", "directory", False),)),
        StartupTable(name="\ud800"),  # a lone surrogate that no file name decodes to
    ],
)
def test_a_table_nobody_could_read_back_is_not_written(table):
    with pytest.raises(ValueError):
        table.encode()


@pytest.mark.parametrize(
    ("written", "meant"),
    [("%41", "A"), ("%4a%4A", "JJ"), ("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("%%41", "%A"), ("a%25b", "a%b"), ("%2541", "%41")],
)
def test_escapes_are_read_as_in_a_url(written, meant):
    assert StartupTable.decode(f"1 name={written}").name == meant == urllib.parse.unquote(written)


@given(st.binary())
def test_what_is_written_is_what_any_url_library_writes(text):
    assert StartupTable(name=os.fsdecode(text)).encode() == "1 name=" + urllib.parse.quote_from_bytes(text, safe="/:._-+@")
