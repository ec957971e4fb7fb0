"""Screen: which modes of the user's terminal a program has switched on, so that they can be undone when it is killed.

A full-screen program switches to the alternate screen, hides the cursor, asks for mouse reports. One that ends by itself
leaves as it likes (`tput civis` is meant to last); one that is killed cannot clean up.
Source: xterm's "Control Sequences", DECSET and DECRST.
"""

from __future__ import annotations

import re

_SWITCH = re.compile(rb"\x1b\[\?([0-9;]{1,64})([hl])")
_TAIL_BYTES = 72
_OFF_BY_DEFAULT = frozenset((1, 9, 47, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 1047, 1049, 2004, 2026))
_ON_BY_DEFAULT = frozenset((7, 25))


class ScreenModes:
    """Follows what is written to a terminal."""

    def __init__(self) -> None:
        self._off: set[int] = set()
        self._on: set[int] = set()
        self._tail = b""

    def feed(self, data: bytes | memoryview) -> None:
        """Note the switches in the next piece of output; a sequence may be cut in two by the end of a piece."""
        text = self._tail + bytes(data)
        end = 0
        if b"\x1b[?" in text:
            for match in _SWITCH.finditer(text):
                end = match.end()
                for word in match[1].split(b";"):
                    if word:
                        self._note(int(word), match[2] == b"h")
        last = text.rfind(b"\x1b", max(end, len(text) - _TAIL_BYTES))
        self._tail = text[last:] if last >= 0 else b""

    def undo(self) -> bytes:
        """What to write so that the terminal is as it usually is; empty when it is already."""
        ons = [mode for mode in self._off if mode in _ON_BY_DEFAULT]
        offs = [mode for mode in self._on if mode in _OFF_BY_DEFAULT]
        reset = b"".join(b"\x1b[?%dl" % mode for mode in sorted(offs)) + b"".join(b"\x1b[?%dh" % mode for mode in sorted(ons))
        return reset + b"\x1b[0m" if reset else b""

    def _note(self, mode: int, on: bool) -> None:
        (self._on if on else self._off).add(mode)
        (self._off if on else self._on).discard(mode)
