"""Tables, and the words that are put into them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.table import Cell, Column, Screen, cells_of, cut, render
from shoal.cli.wording import ago, end_of, exit_code, size_of, span
from shoal.manager import ExitStatus

COLUMNS = [Column("ID", is_number=True), Column("NAME", least=4), Column("STATE"), Column("COMMAND", least=8)]
WORDS = st.text(st.characters(categories=("L", "N", "P", "Mn", "So", "Zs")), max_size=40)


def table(*rows: tuple[str, ...], width: int | None = 40, colour: bool = False) -> list[str]:
    return render(COLUMNS, [[Cell(text, "31" if text == "red" else "") for text in row] for row in rows], Screen(width, colour)).split("\n")


def test_columns_are_as_wide_as_what_is_in_them():
    assert table(("1", "a", "red", "x y"), ("10", "bcd", "b", "z")) == [
        "ID  NAME  STATE  COMMAND",
        " 1  a     red    x y",
        "10  bcd   b      z",
    ]


def test_what_is_too_wide_is_cut_at_the_end_and_then_in_the_names():
    assert table(("1", "a-long-name", "state", "a-long-command"), width=33) == [
        "ID  NAME         STATE  COMMAND",
        " 1  a-long-name  state  a-long-c…",
    ]
    assert table(("1", "a-long-name", "state", "a-long-command"), width=28)[1] == " 1  a-long…  state  a-long-…"
    assert table(("1", "a-long-name", "state", "a-long-command"), width=12)[1] == " 1  a-l…  s…"


def test_elsewhere_it_is_whole_and_has_tabs():
    assert table(("1", "a" * 100, "red", ""), width=None, colour=True) == ["ID\tNAME\tSTATE\tCOMMAND", f"1\t{'a' * 100}\tred\t"]


def test_colour_takes_no_room():
    assert table(("1", "a", "red", "x"), colour=True)[1] == " 1  a     \x1b[31mred\x1b[0m    x"


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), max_size=5), st.integers(1, 120))
def test_no_line_is_wider_than_the_terminal(rows, width):
    assert max(cells_of(line) for line in table(*rows, width=width)) <= width


@given(WORDS, st.integers(0, 50))
def test_a_cut_text_fits_and_is_the_beginning(text, width):
    short = cut(text, width)
    assert cells_of(short) <= width
    assert text == short if cells_of(text) <= width else text.startswith(short.removesuffix("…"))


def test_wide_and_combining_characters_have_the_width_they_have():
    assert [cells_of(text) for text in ("abc", "日本", "é", "e\u0301", "🐟", "")] == [3, 4, 1, 1, 2, 0]


@pytest.mark.parametrize(
    ("end", "told", "code"),
    [
        (ExitStatus(0, "exited", None), "exited 0", 0),
        (ExitStatus(9, "exited", None), "exited 9", 9),
        (ExitStatus(143, "signaled", 15), "SIGTERM", 143),
        (ExitStatus(128 + 35, "signaled", 35), "SIG35", 163),
        (ExitStatus(9, "killed", 9), "killed", 137),
        (ExitStatus(137, "oom", 9), "oom", 137),
        (ExitStatus(255, "lost", None), "lost", 125),
    ],
)
def test_an_end_has_words_and_an_exit_code(end, told, code):
    assert (end_of(end), exit_code(end)) == (told, code)


def test_times_and_sizes_are_short():
    assert [span(seconds) for seconds in (0, 59.9, 60, 3599, 3600, 86399, 86400, 4e7)] == [
        "0s",
        "59s",
        "1m",
        "59m",
        "1h",
        "23h",
        "1d",
        "462d",
    ]
    assert [size_of(size) for size in (0, 1023, 1024, 150 << 10, 3 << 20, 5 << 40)] == ["0B", "1023B", "1.0K", "150K", "3.0M", "5.0T"]
    assert [ago(None), ago(0.0), ago(time.time() + 100)] == ["-", "-", "0s"]
