"""Table: rows under a line of names. On a terminal aligned, coloured and never wider than it; elsewhere separated by tabs, and whole."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

_BETWEEN = "  "
_WIDTH = 80
_CUT = "…"


class Cell(NamedTuple):
    """A text with its colour, by the number that SGR has for it; "" has none."""

    text: str
    colour: str = ""


class Column(NamedTuple):
    """What a column is called, and how narrow it may become for others to fit.

    Attributes:
        least: cells of the terminal; None: it is never cut, unless everything else is as narrow as it may be.
    """

    name: str
    least: int | None = None
    is_number: bool = False


class Screen(NamedTuple):
    """What standard output shows.

    Attributes:
        width: cells in a line; None: it is no terminal, and takes everything as it is.
    """

    width: int | None
    has_colour: bool

    @classmethod
    def of_stdout(cls) -> Screen:
        """What ours is."""
        if sys.stdout is None or not sys.stdout.isatty():
            return cls(None, False)
        given = os.environ.get("COLUMNS", "")
        if given.isdecimal() and int(given) > 0:
            width = int(given)
        else:
            try:
                width = os.get_terminal_size(sys.stdout.fileno()).columns or _WIDTH
            except OSError:
                width = _WIDTH
        return cls(width, not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")


def render(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], screen: Screen) -> str:
    """The table as text, without a newline at its end."""
    names = [Cell(column.name) for column in columns]
    if screen.width is None:
        return "\n".join("\t".join(cell.text for cell in row) for row in (names, *rows))
    widths = _fit(columns, [max(cells_of(row[i].text) for row in (names, *rows)) for i in range(len(columns))], screen.width)
    return "\n".join(_line(columns, row, widths, screen) for row in (names, *rows))


def _fit(columns: Sequence[Column], widths: list[int], width: int) -> list[int]:
    """The widths that columns get: what is too much is taken from those that may be cut, the last of them first."""
    excess = sum(widths) + len(_BETWEEN) * (len(widths) - 1) - width
    for i in range(len(widths) - 1, -1, -1):
        least = columns[i].least
        if excess > 0 and least is not None and widths[i] > least:
            taken = min(excess, widths[i] - least)
            widths[i] -= taken
            excess -= taken
    return widths


def _line(columns: Sequence[Column], row: Sequence[Cell], widths: Sequence[int], screen: Screen) -> str:
    assert screen.width is not None
    parts, left = [], screen.width
    for i, (column, cell, width) in enumerate(zip(columns, row, widths, strict=True)):
        text = cut(cell.text, min(width, left))
        if not text and left <= 0:
            break
        padding = " " * (min(width, left) - cells_of(text))
        shown = f"\x1b[{cell.colour}m{text}\x1b[0m" if cell.colour and screen.has_colour else text
        parts.append(padding + shown if column.is_number else shown if i == len(widths) - 1 else shown + padding)
        left -= width + len(_BETWEEN)
    return _BETWEEN.join(parts).rstrip()


def cut(text: str, width: int) -> str:
    """As much of a text as fits, with a mark where some is missing."""
    if cells_of(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        cells = cells_of(character)
        if used + cells > width - 1:
            break
        kept, used = kept + character, used + cells
    return kept + _CUT if width > 0 else ""


def cells_of(text: str) -> int:
    """How many cells of a terminal a text takes: two for what is wide in East Asia, none for what is put upon another character."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
