"""Natural order of names: digits count as numbers, so `a2` comes before `a10`.

Called by: index.py, and whoever sorts names. Touches: nothing.
Source: octopus clients sort the answer of get_names naturally.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from shoal.manager.names.limits import NAME_BYTES

Key = tuple[tuple[str | int, ...], str]
"""What names are sorted by: text and numbers by turns; then the name itself, for `a01` and `a1` differ."""

DIGITS: Final = "0123456789"

_DIGITS: Final = re.compile(f"([{DIGITS}]+)")


def natural_key(name: str) -> Key:
    """The sort key of a name of at most NAME_BYTES."""
    parts: list[str | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts), name


def prefix_ranges(prefix: str) -> Iterator[tuple[Key, Key]]:
    """Ranges of keys, lowest first, the upper ends excluded, in which all names lie that begin so. The prefix is not empty.

    Digits at its end may be the beginning of a longer number: names that begin with `a12` are between `a12` and `a13`, `a120` and `a130`,
    and so on. There is no end to that: stop when no name follows that is the same up to the number.
    """
    head = prefix.rstrip(DIGITS)
    digits = prefix[len(head) :]
    if not digits:
        (*parts, last), _ = natural_key(head)
        assert isinstance(last, str)
        yield ((*parts, last), ""), ((*parts, last[:-1] + chr(ord(last[-1]) + 1)), "")
        return
    parts = list(natural_key(head)[0])
    low, high = int(digits), int(digits) + 1
    if digits.startswith("0"):  # a00 begins a001 as well, and any number with these digits behind zeros
        yield ((*parts, 0), ""), ((*parts, 10**NAME_BYTES), "")
        return
    while True:
        yield ((*parts, low), ""), ((*parts, high), "")
        low, high = 10 * low, 10 * high
