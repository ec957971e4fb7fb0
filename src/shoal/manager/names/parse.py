"""Text into a Query: lark's LALR parser with the grammar in grammar.lark, and errors that say where and what was expected.

Called by: Query.of() and reading.py. Touches: grammar.lark, once. lark is imported and the tables are made when the first text comes that
is more than a plain name (about 50 ms); a parse is then some 40 us. lark can write its tables to a file, but only as a pickle, which a
manager should not load, or as a module of 3,500 lines.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from shoal.manager.errors import ManagerError
from shoal.manager.names.limits import ATTRIBUTES, QUERY_BYTES
from shoal.manager.names.pattern import Pattern
from shoal.manager.names.query import Constraint, Query
from shoal.manager.names.record import Atom, Value, check_name, check_size, check_unicode, is_identifier, shown, unquoted

if TYPE_CHECKING:
    from lark import Lark, Token

_EXPECTED: Final = {
    "$END": "the end",
    "ANY": "_",
    "BOOLEAN": "true or false",
    "COLON": "':'",
    "COMMA": "','",
    "FLOAT": "a number",
    "IDENTIFIER": "an identifier",
    "INTEGER": "a number",
    "LBRACE": "'{'",
    "OPERATOR": "an operator",
    "PATTERN": "a regular expression r'...'",
    "RBRACE": "'}'",
    "SCAN": "%s, %d or %f",
    "STRING": "a string '...'",
}
_STRING: Final = re.compile("'[^']*'")
_LITERAL: Final = frozenset({"BOOLEAN", "FLOAT", "IDENTIFIER", "INTEGER", "STRING"})
_HINTS: Final = {
    "'": "the string that begins here does not end",
    '"': "strings stand between single quotes",
    "%": "a % and a letter can only stand in the format of Record.read()",
    "(": "calls and brackets are no part of the language",
    "=": "equality is written ':' or ==",
    "+": "numbers have no plus sign",
}


@dataclass(frozen=True, slots=True)
class Format:
    """What Record.read() is to return.

    Attributes:
        name: whether the name comes first.
        wanted: names of attributes, each with the letter of its type.
    """

    name: bool
    wanted: tuple[tuple[str, str], ...]


def parse(text: str) -> Query:
    """The query that `text` says.

    Raises:
        TypeError: not text.
        ManagerError: OCT_ERR_PARSER_FAIL, with the position and what was expected there; OCT_ERR_QUERY_SIZE, too long, or too many
            attributes; OCT_ERR_ENGINE_FAIL, lark or google-re2 is not installed.
    """
    _check(text)
    if is_identifier(text):  # the commonest query needs no parser, and its user no lark
        return Query(text)
    name, attributes = _run(text, "record")
    at = name
    try:
        subject = str(name) if name.type == "IDENTIFIER" else _value(name)
        constraints = []
        for attribute, operator, at in attributes:
            constraints.append(Constraint(str(attribute), str(operator), _value(at)))  # type: ignore[arg-type]
    except ManagerError as error:
        raise _at(error.code, text, at.start_pos, error.message) from None
    return Query(subject, tuple(constraints))  # type: ignore[arg-type]


def parse_format(text: str) -> Format:
    """The format of Record.read().

    Raises:
        TypeError: not text.
        ManagerError: OCT_ERR_PARSER_FAIL, OCT_ERR_QUERY_SIZE.
    """
    _check(text)
    name, wanted = _run(text, "format")
    for attribute, _, _ in wanted:
        check_name(str(attribute), "the name of an attribute")
    check_size(text, len(wanted))
    return Format(name.type == "SCAN", tuple((str(attribute), str(scan)[1:]) for attribute, _, scan in wanted))


def _check(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a query is text, not {type(text).__name__}")
    if len(text) > QUERY_BYTES or check_unicode(text) > QUERY_BYTES:
        raise ManagerError("OCT_ERR_QUERY_SIZE", f"a record or query may have {QUERY_BYTES} bytes: {shown(text)}")
    if text.count(",") >= ATTRIBUTES and _STRING.sub("", text).count(",") >= ATTRIBUTES:  # before the parser spends its time on them
        raise ManagerError("OCT_ERR_QUERY_SIZE", f"a record or query may have {ATTRIBUTES} attributes: {shown(text)}")


def _value(token: Token) -> Value | Pattern | None:
    kind, text = token.type, str(token)
    if kind == "ANY":
        return None
    if kind == "PATTERN":
        return Pattern(unquoted(text[1:]))
    if kind == "STRING":
        return unquoted(text)
    if kind == "IDENTIFIER":
        return Atom(text)
    if kind == "BOOLEAN":
        return text == "true"
    if kind == "FLOAT":
        return float(text)
    if len(text) > 20:  # more than 64 bits have; int() would take its time
        raise ManagerError("OCT_ERR_PARSER_FAIL", "an integer has 64 bits")
    return int(text)


class _Build:
    """What the parser calls for each rule: plain tuples of tokens instead of trees."""

    @staticmethod
    def name(children: list[Any]) -> Any:
        return children[0]

    @staticmethod
    def attribute(children: list[Any]) -> Any:
        return tuple(children)

    wanted = attribute

    @staticmethod
    def record(children: list[Any]) -> Any:
        return children[0], [child for child in children[1:] if child is not None]

    format = record


@functools.cache
def _parser() -> Lark:
    try:
        from lark import Lark
    except ImportError:
        raise ManagerError("OCT_ERR_ENGINE_FAIL", "queries need lark; install it with: pip install 'shoal[manager]'") from None
    grammar = resources.files(__package__).joinpath("grammar.lark").read_text(encoding="ascii")
    return Lark(grammar, parser="lalr", lexer="basic", start=["record", "format"], transformer=_Build())


def _run(text: str, start: str) -> Any:
    parser = _parser()
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    try:
        return parser.parse(text, start=start)
    except UnexpectedToken as error:
        token = error.token
        if token.type == "$END":
            raise _at("OCT_ERR_PARSER_FAIL", text, len(text), f"the text ends, but {_expected(error)} was expected") from None
        assert token.start_pos is not None
        raise _at("OCT_ERR_PARSER_FAIL", text, token.start_pos, f"{shown(str(token))} where {_expected(error)} was expected") from None
    except UnexpectedCharacters as error:
        position = error.pos_in_stream or 0
        raise _at("OCT_ERR_PARSER_FAIL", text, position, _unknown(text, position)) from None


def _expected(error: Any) -> str:
    names = set(error.accepts or error.expected)
    words = set()
    if names >= _LITERAL:
        names -= _LITERAL
        words.add("a value")
    words |= {_EXPECTED.get(name, name) for name in names}
    *most, last = sorted(words)
    return f"{', '.join(most)} or {last}" if most else last


def _unknown(text: str, position: int) -> str:
    character = text[position]
    if character.isupper():
        return f"{character!r}: an identifier begins with a lower-case letter"
    hint = _HINTS.get(character)
    return f"{character!r} is no part of the language" if hint is None else f"{character!r}: {hint}"


def _at(code: str, text: str, position: int, what: str) -> ManagerError:
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return ManagerError(code, f"line {line}, column {column} of {shown(text)}: {what}")
