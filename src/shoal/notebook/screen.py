"""Screen: what a program writes, shown below the cell while it runs; and the line that says how it ended."""

from __future__ import annotations

import codecs
import html
import sys
from typing import TextIO

from shoal.sandbox.result import Result
from shoal.status import on_one_line

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SHOWN_REFUSALS = 3


class Screen:
    """Writes to `sys.stdout` and `sys.stderr` as they are when this is made, each no more than `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._streams}
        self._left = dict.fromkeys(self._streams, limit_bytes)
        self.hidden_bytes = 0
        """What came beyond the limits."""

    def show(self, name: str, piece: memoryview) -> None:
        """Show a piece of a stream."""
        shown = piece[: self._left[name]]
        self._left[name] -= len(shown)
        self.hidden_bytes += len(piece) - len(shown)
        if shown:
            self._write(self._streams[name], self._decoders[name].decode(shown))

    def close(self) -> None:
        """All has been written, also what was half a character."""
        for name, stream in self._streams.items():
            rest = self._decoders[name].decode(b"", final=True)
            if rest and self._left[name]:
                self._write(stream, rest)
            stream.flush()

    def _write(self, stream: TextIO, text: str) -> None:
        stream.write(text)
        if stream.isatty():  # a notebook's stream gathers what comes close together into one message
            stream.flush()


class Ended:
    """How it ended, for people: what a cell shows last."""

    def __init__(self, name: str, result: Result, hidden_bytes: int) -> None:
        self._text = sentence(name, result, hidden_bytes)
        self._is_bad = result.reason != "exited" or bool(result.returncode)

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        colour = "#b00" if self._is_bad else "#888"
        return f'<span style="color: {colour}; font-size: smaller">{html.escape(self._text)}</span>'


def sentence(name: str, result: Result, hidden_bytes: int = 0) -> str:
    """How it ended, what it used, what it was denied and what is not shown."""
    usage = result.usage
    parts = [f"{name} {result.summary}", f"{usage.wall_s:.2f} s"]
    if usage.counts_tree:  # else it is little more than what this process had when it started it
        parts.append(size(usage.max_memory_bytes))
    if hidden_bytes:
        parts.append(f"{size(hidden_bytes)} more not shown")
    text = ", ".join(parts)
    if result.denied:
        more = f" and {len(result.denied) - _SHOWN_REFUSALS} more" if len(result.denied) > _SHOWN_REFUSALS else ""
        text += f"; denied: {', '.join(map(str, result.denied[:_SHOWN_REFUSALS]))}{more}"
    return on_one_line(text)


def size(count: float) -> str:
    """A number of bytes, for people."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} {_UNITS[-1]}"
