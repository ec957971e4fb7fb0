"""Natural order of names: digits count as numbers, so `a2` comes before `a10`.

Called by: index.py, and whoever sorts names. Touches: nothing.
Source: octopus clients sort the answer of get_names naturally.
"""

from __future__ import annotations

import re
from typing import Final

Key = tuple[tuple[str | int, ...], str]
"""What names are sorted by: text and numbers by turns; then the name itself, for `a01` and `a1` differ."""

_DIGITS: Final = re.compile(r"([0-9]+)")


def natural_key(name: str) -> Key:
    """The sort key of a name of at most NAME_BYTES."""
    parts: list[str | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, parts[1::2])
    return tuple(parts), name


def prefix_range(prefix: str) -> tuple[Key, Key] | None:
    """Keys between which, the second excluded, all names with this prefix lie. None where that is everywhere.

    Digits at the end of the prefix are left out: `a1` is the beginning of `a10`, which is not among the neighbours of `a1`.
    """
    head = prefix.rstrip("0123456789")
    if not head:
        return None
    (*parts, last), _ = natural_key(head)
    assert isinstance(last, str)
    assert last
    after = last[:-1] + chr(ord(last[-1]) + 1)
    return ((*parts, last), ""), ((*parts, after), "")
