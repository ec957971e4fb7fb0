"""shoal logs: what a domain has written, as long as it is kept; with -f also what it goes on to write, until it has ended.

Prints as it goes, and so by itself. In a pipe what was written comes out byte by byte; on a terminal, what could change more of it than
the colour of some text is spelled out, for a domain may run what nobody has read.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, Protocol

from shoal.cli.contact import reached_with
from shoal.cli.output import CommandError, Outcome
from shoal.cli.reader import ReaderWatched, write
from shoal.cli.wording import moment

if TYPE_CHECKING:
    from shoal.manager.logs import Entry

_NOTES = """\
Both streams come out together on stdout, in the order in which they were read from the domain; --stdout or --stderr chooses one. At most
the newest 16 to 32 MiB of a domain are kept, also after it has ended. What was started without -d has written to where `shoal spawn` was
told to, and nothing is kept of it.

--json     a line for each line: {"at_s": seconds since 1970, "stream": "stdout", "text": "..."}; "base64" in place of "text" where it is
           not UTF-8
terminal   colours are let through, other control sequences are spelled out; --raw lets all through, as a pipe does

examples:
  shoal logs web
  shoal logs -f -n 20 web | grep -i error
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "shoal logs [-f] [-n N] [-t] [--stdout | --stderr] [--raw | --json] ID"
    parser.epilog = _NOTES
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the domain has ended")
    parser.add_argument("-n", "--lines", metavar="N", help="of what is there, only the last N lines")
    parser.add_argument("-t", "--timestamps", action="store_true", help="begin each line with when it was written")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--stdout", action="store_true", help="only what it wrote to stdout")
    which.add_argument("--stderr", action="store_true", help="only what it wrote to stderr")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--raw", action="store_true", help="byte by byte also on a terminal")
    how.add_argument("--json", action="store_true", help="print lines of JSON")
    parser.add_argument("id", metavar="ID", help="number or name of a domain")


def run(args: argparse.Namespace) -> Outcome:
    last = None if args.lines is None else _count(args.lines)
    stream: Literal["stdout", "stderr", "both"] = "stdout" if args.stdout else "stderr" if args.stderr else "both"
    shape: Shape
    if args.json:
        shape = AsJson()
    elif args.timestamps:
        shape = Stamped()
    else:
        shape = AsIs()
    if not args.raw and not args.json and sys.stdout is not None and sys.stdout.isatty():
        shape = Harmless(shape)
    with reached_with([args.id]) as (manager, [domain]), ReaderWatched(manager, is_needed=args.follow):
        for data in _shaped(domain.log_entries(stream=stream, follow=args.follow, last=last), shape):
            write(data)
    return Outcome()


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise CommandError(f"--lines {text}: not a whole number")
    return int(text)


# --- how entries are shown --------------------------------------------------------------------------


class Shape(Protocol):
    """Makes bytes of entries, which are pieces of two streams and no lines."""

    def piece(self, entry: Entry) -> bytes: ...

    def rest(self) -> bytes:
        """What was held back, at the end."""
        ...


def _shaped(entries: Iterable[Entry], shape: Shape) -> Iterator[bytes]:
    for entry in entries:
        yield shape.piece(entry)
    yield shape.rest()


class AsIs:
    """What was written."""

    def piece(self, entry: Entry) -> bytes:
        return entry.data

    def rest(self) -> bytes:
        return b""


class Stamped:
    """Each line begins with when it was begun. One that the other stream breaks into is ended, so that the lines stay apart."""

    def __init__(self) -> None:
        self._inside = 0  # the stream whose line has not ended

    def piece(self, entry: Entry) -> bytes:
        out = bytearray()
        if self._inside not in (0, entry.stream):
            out += b"\n"
            self._inside = 0
        stamp = moment(entry.at_s, "milliseconds").encode() + b" "
        for line in _lines(entry.data):
            if not self._inside:
                out += stamp
            out += line
            self._inside = 0 if line.endswith(b"\n") else entry.stream
        return bytes(out)

    def rest(self) -> bytes:
        return b"\n" if self._inside else b""


class AsJson:
    """A line of JSON for each line, told when it is whole, and of the domain's last ones as they are."""

    def __init__(self) -> None:
        self._begun: dict[int, tuple[float, bytes]] = {}

    def piece(self, entry: Entry) -> bytes:
        at_s, data = self._begun.pop(entry.stream, (entry.at_s, b""))
        *lines, rest = (data + entry.data).split(b"\n")
        out = []
        for line in lines:
            out.append(_json_line(at_s, entry.stream, line))
            at_s = entry.at_s
        if rest:
            self._begun[entry.stream] = at_s, rest
        return b"".join(out)

    def rest(self) -> bytes:
        return b"".join(_json_line(at_s, stream, data) for stream, (at_s, data) in sorted(self._begun.items()))


def _json_line(at_s: float, stream: int, data: bytes) -> bytes:
    told: dict[str, object] = {"at_s": at_s, "stream": "stdout" if stream == 1 else "stderr"}
    try:
        told["text"] = data.decode()
    except UnicodeDecodeError:
        told["base64"] = base64.b64encode(data).decode()
    return json.dumps(told).encode() + b"\n"


def _lines(data: bytes) -> list[bytes]:
    """Lines with their ends, of which "\\r" is none."""
    *lines, rest = data.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


class Harmless:
    """For a terminal: colours, tabs, backspaces and returns stay; every other control character, of either set, is spelled out.

    A sequence may be cut anywhere between two pieces, so that the beginning of one is held back until the rest of it comes.
    """

    _COLOUR = rb"\x1b\[[0-9;:]{0,64}m"
    _BEGUN = re.compile(rb"(?:\x1b(?:\[[0-9;:]{0,64})?|\xc2)\Z")
    _TOKEN = re.compile(rb"(" + _COLOUR + rb")|([\x00-\x07\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f])")

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._held: dict[int, bytes] = {}

    def piece(self, entry: Entry) -> bytes:
        data = self._held.pop(entry.stream, b"") + entry.data
        begun = self._BEGUN.search(data)
        if begun:
            self._held[entry.stream] = begun.group()
            data = data[: begun.start()]
        return self._shape.piece(entry._replace(data=self._TOKEN.sub(_spelled, data))) if data else b""

    def rest(self) -> bytes:
        held = b"".join(data for _, data in sorted(self._held.items()))
        return self._TOKEN.sub(_spelled, held) + self._shape.rest()


def _spelled(found: re.Match[bytes]) -> bytes:
    if found[1] is not None:
        return found[1]
    return b"".join(b"\\x%02x" % byte for byte in found[2])
