"""Reading a record by a format: what oct_read() does. Called by: Record.read(). Touches: nothing."""

from __future__ import annotations

from typing import Final

from shoal.manager.errors import ManagerError
from shoal.manager.names.parse import parse_format
from shoal.manager.names.record import Record, Value, shortened, value_text

_TYPES: Final = {"s": (str, "text"), "d": (int, "an integer"), "f": (float, "a float")}


def read(record: Record, format: str) -> tuple[Value, ...]:
    """See Record.read()."""
    asked = parse_format(format)
    values: list[Value] = [record.name] if asked.name else []
    for attribute, letter in asked.wanted:
        if letter not in _TYPES:
            raise ManagerError("OCT_ERR_INVALID_FORMAT", f"{attribute}: %{letter} is no type; there are %s text, %d integer, %f float")
        if attribute not in record.attributes:
            raise ManagerError("OCT_ERR_UNKNOWN_ATTRIBUTE", f"{record.name} has no attribute {attribute}")
        value = record.attributes[attribute]
        type_, words = _TYPES[letter]
        if not isinstance(value, type_) or isinstance(value, bool):
            have = shortened(value_text(value))
            raise ManagerError("OCT_ERR_INVALID_FORMAT", f"{attribute}: %{letter} takes {words}, and {record.name} has {have} there")
        values.append(value)
    return tuple(values)
