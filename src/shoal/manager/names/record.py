"""Records: a name with typed attributes, and the one text that says the same.

Called by: every module of this package. Touches: nothing. A Record that exists is valid: its name and attributes are identifiers, its
values have a type the text form knows, and its text is within the bounds of limits.py.
Extension: two quotes in a string stand for one. In the source no text with a quote could be written, and two strings side by side are an
error there, so every text the source knows keeps its meaning.
Source: if/octopus.if and usr/skb/octopus in Barrelfish; spec 5.1 and 5.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from shoal.manager.errors import ManagerError
from shoal.manager.names.limits import ATTRIBUTES, NAME_BYTES, QUERY_BYTES

if TYPE_CHECKING:
    from shoal.handles import Handle

Value = int | float | str | bool
"""What an attribute may be: a signed 64-bit integer, a finite float, text, or a boolean."""

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1

_IDENTIFIER: Final = re.compile(r"[a-z][A-Za-z0-9._-]*")
_BOOLEANS: Final = ("true", "false")
_SHOWN: Final = 80


class Atom(str):
    """Text written without quotes: an identifier in the place of a value. It equals the string with the same letters.

    Raises:
        ValueError: it could not be written without quotes.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Atom:
        if not is_identifier(text):
            raise ValueError(f"{shown(text)} is no identifier; only text such as ready or v1.2 can go without quotes")
        return super().__new__(cls, text)


def is_identifier(text: str) -> bool:
    """Whether this can name a record or an attribute: a lower-case letter, then letters, digits, `.`, `_`, `-`; not `true` or `false`."""
    return _IDENTIFIER.fullmatch(text) is not None and text not in _BOOLEANS


def quoted(text: str) -> str:
    """`text` as a string of the record language."""
    return "'" + text.replace("'", "''") + "'"


def unquoted(text: str) -> str:
    """What stands between the quotes of a string. The opposite of quoted()."""
    return text[1:-1].replace("''", "'")


def value_text(value: Value) -> str:
    """A value as the record language writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if type(value) is Atom else quoted(value)
    if isinstance(value, int):
        return str(value)
    text = repr(value)
    if "e" in text:  # the language has no exponents
        text = format(Decimal(text), "f")
    return text if "." in text else text + ".0"


def record_text(name: str, terms: Iterable[str]) -> str:
    """The canonical text of a name and attributes, each of them text already."""
    return f"{name} {{ {', '.join(terms)} }}"


def shown(text: str) -> str:
    """`text` as error messages show it: what a client sent, but not all of it and on one line."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."


def shortened(text: str) -> str:
    """`text` as error messages end with it: not all of what a client sent."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check_name(text: object, what: str) -> None:
    """Refuse what cannot be a record's or an attribute's name.

    Raises:
        TypeError: not text.
        ManagerError: OCT_ERR_PARSER_FAIL, no identifier; OCT_ERR_QUERY_SIZE, too long.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} is text, not {type(text).__name__}")
    if not is_identifier(text):
        rule = "a lower-case letter, then letters, digits, '.', '_' and '-'; not true or false"
        raise ManagerError("OCT_ERR_PARSER_FAIL", f"{shown(text)} cannot be {what}: {rule}")
    if len(text) > NAME_BYTES:
        raise ManagerError("OCT_ERR_QUERY_SIZE", f"{what} may have {NAME_BYTES} bytes, not {len(text)}: {shown(text)}")


def plain_value(value: object, attribute: str) -> Value:
    """`value` as exactly one of the types in `Value` (or an Atom).

    Raises:
        TypeError: none of them.
        ManagerError: OCT_ERR_PARSER_FAIL, a number out of range, or text that is no Unicode.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise ManagerError("OCT_ERR_PARSER_FAIL", f"{attribute}: an integer has 64 bits, {INT_MIN} to {INT_MAX}")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ManagerError("OCT_ERR_PARSER_FAIL", f"{attribute}: {float(value)} is not a number that can be written")
        return float(value)
    if isinstance(value, str):
        check_unicode(value)
        return value if type(value) is Atom else str(value)
    raise TypeError(f"{attribute}: a value is an int, float, str or bool, not {type(value).__name__}")


def check_unicode(text: str) -> int:
    """The bytes of `text` in UTF-8.

    Raises:
        ManagerError: OCT_ERR_PARSER_FAIL, it has half of a surrogate pair.
    """
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise ManagerError("OCT_ERR_PARSER_FAIL", f"character {error.start + 1} of the text is half of a surrogate pair") from None


def check_size(text: str, attributes: int) -> None:
    """Refuse a record or query that passes the bounds of limits.py.

    Raises:
        ManagerError: OCT_ERR_QUERY_SIZE.
    """
    if attributes > ATTRIBUTES:
        raise ManagerError("OCT_ERR_QUERY_SIZE", f"a record or query may have {ATTRIBUTES} attributes, not {attributes}")
    size = check_unicode(text)
    if size > QUERY_BYTES:
        raise ManagerError("OCT_ERR_QUERY_SIZE", f"a record or query may have {QUERY_BYTES} bytes, not {size}: {shown(text)}")


@dataclass(frozen=True, slots=True)
class Record:
    """A named set of attributes, as it was at one moment. `str()` gives its canonical text.

    Attributes:
        name: what it is found by.
        attributes: by name, in alphabetical order. Text that was written without quotes is an `Atom`, which is a str.
        value: a descriptor that came with it, or None. It is no part of what makes two records equal.
    Raises:
        TypeError: a name or value of another type.
        ManagerError: OCT_ERR_PARSER_FAIL, a name that is no identifier, or a value that cannot be written; OCT_ERR_QUERY_SIZE, too large.
    Ownership: a record that a look-up returned owns its value: close it.
    """

    name: str
    attributes: Mapping[str, Value] = field(default_factory=dict)
    value: Handle | None = field(default=None, compare=False)
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name(self.name, "the name of a record")
        for attribute in self.attributes:
            check_name(attribute, "the name of an attribute")
        sorted_attributes = {attribute: plain_value(self.attributes[attribute], attribute) for attribute in sorted(self.attributes)}
        text = record_text(self.name, [f"{attribute}: {value_text(value)}" for attribute, value in sorted_attributes.items()])
        check_size(text, len(sorted_attributes))
        object.__setattr__(self, "attributes", sorted_attributes)
        object.__setattr__(self, "text", text)

    def __str__(self) -> str:
        return self.text

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.attributes.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self.name, dict(self.attributes), self.value)

    def with_value(self, value: Handle | None) -> Record:
        """The same record carrying `value`."""
        return Record(self.name, self.attributes, value)

    def read(self, format: str) -> tuple[Value, ...]:
        """The values that `format` asks for, in its order: `"_ { iref: %d, owner: %s }"`; `%s` in the place of the name gives the name.

        `%s` takes text, `%d` an integer, `%f` a float.

        Raises:
            ManagerError: OCT_ERR_PARSER_FAIL; OCT_ERR_INVALID_FORMAT, a format that is none, or a value of another type;
                OCT_ERR_UNKNOWN_ATTRIBUTE, the record lacks one.
        Source: oct_read() in lib/octopus.
        """
        from shoal.manager.names.reading import read

        return read(self, format)
