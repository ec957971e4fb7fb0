"""Which modes of a terminal have to be undone for a program that was killed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.screen import ScreenModes


def after(*pieces: bytes) -> bytes:
    modes = ScreenModes()
    for piece in pieces:
        modes.feed(piece)
    return modes.undo()


@pytest.mark.parametrize(
    ("output", "undo"),
    [
        (b"plain text \x1b[31mred", b""),
        (b"\x1b[?1049h", b"\x1b[?1049l\x1b[0m"),
        (b"\x1b[?1049h...\x1b[?1049l", b""),
        (b"\x1b[?25l", b"\x1b[?25h\x1b[0m"),
        (b"\x1b[?1000;1006h", b"\x1b[?1000l\x1b[?1006l\x1b[0m"),
        (b"\x1b[?25h\x1b[?7h", b""),
        (b"\x1b[?12345h", b""),
        (b"\x1b[?;;h\x1b[?h\x1b[?99999999999999999999h", b""),
    ],
)
def test_only_what_was_left_on_is_undone(output: bytes, undo: bytes) -> None:
    assert after(output) == undo


PIECES = [b"\x1b[?1049h", b"\x1b[?25l", b"\x1b[?25h", b"\x1b[?1003;2004h", b"\x1b[?2004l", b"x", b"\x1b", b"\x1b[?"]


@given(st.lists(st.sampled_from(PIECES)), st.data())
def test_it_does_not_matter_where_output_is_cut(pieces: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(pieces)
    cut = data.draw(st.integers(0, len(whole)))
    assert after(whole[:cut], whole[cut:]) == after(whole)
    assert after(*(whole[i : i + 1] for i in range(len(whole)))) == after(whole)
