"""Queries: which records are meant. One class for everything the record language can say.

A query is a name (an identifier, a regular expression, or any) and constraints on attributes. The same form stores a record: there the
constraints written `name: value` are its attributes, and the others are tested on what is stored already.
Called by: every module of this package. Touches: nothing. A Query that exists is valid and within the bounds of limits.py, so it may come
from parse(), from values, or out of a message.
Source: spec 5.1, 5.2 and 5.4 (compare-and-set).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from shoal.manager.errors import ManagerError
from shoal.manager.names.pattern import Pattern
from shoal.manager.names.record import Record, Value, check_name, check_size, plain_value, record_text, shortened, value_text

Operator = Literal[":", "==", "!=", ">", ">=", "<", "<="]
"""How an attribute is compared. In a query `:` and `==` mean the same; in a record to store, `:` gives the attribute its value."""

OPERATORS: Final[tuple[str, ...]] = get_args(Operator)

_EQUAL: Final = frozenset({":", "=="})
_ORDER: Final = frozenset({">", ">=", "<", "<="})
_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ":": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """What one attribute has to be like.

    Attributes:
        attribute: its name. A record that lacks it does not match, whatever the operator.
        operator: one of `OPERATORS`.
        operand: a value; with `:` also a Pattern, or None for any value. Numbers compare as numbers, text by its characters, and a number
            never with text, not even with `!=`.
    Raises:
        TypeError: a name, operator or operand of another type.
        ManagerError: OCT_ERR_PARSER_FAIL, as for a Record; a Pattern or None after another operator than `:`; true or false ordered.
    """

    attribute: str
    operator: Operator
    operand: Value | Pattern | None

    def __post_init__(self) -> None:
        check_name(self.attribute, "the name of an attribute")
        if self.operator not in OPERATORS:
            raise ManagerError("OCT_ERR_PARSER_FAIL", f"{self.operator!r} is no operator; there are {' '.join(OPERATORS)}")
        if self.operand is None or isinstance(self.operand, Pattern):
            if self.operator != ":":
                raise ManagerError(
                    "OCT_ERR_PARSER_FAIL", f"{self.attribute}: {self.operator} compares with a value; _ and r'...' come after ':'"
                )
            return
        object.__setattr__(self, "operand", plain_value(self.operand, self.attribute))
        if isinstance(self.operand, bool) and self.operator in _ORDER:
            raise ManagerError("OCT_ERR_PARSER_FAIL", f"{self.attribute}: true and false have no order; compare them with ':', == or !=")

    def holds(self, value: Value) -> bool:
        """Whether an attribute with this value meets it."""
        operand = self.operand
        if operand is None:
            return True
        if isinstance(operand, Pattern):
            return isinstance(value, str) and operand.found_in(value)
        if kind(value) is not kind(operand):
            return False
        return _COMPARE[self.operator](value, operand)

    def steps(self, value: Value) -> int:
        """What holds() may cost, in the steps that Limits.look_up_steps counts."""
        return self.operand.steps(value) if isinstance(self.operand, Pattern) and isinstance(value, str) else 1

    @property
    def is_equality(self) -> bool:
        """Whether one value alone meets it."""
        return self.operator in _EQUAL and self.operand is not None and not isinstance(self.operand, Pattern)

    def __str__(self) -> str:
        operand = "_" if self.operand is None else str(self.operand) if isinstance(self.operand, Pattern) else value_text(self.operand)
        return f"{self.attribute}: {operand}" if self.operator == ":" else f"{self.attribute} {self.operator} {operand}"


def kind(value: Value) -> type:
    """What a value compares with: numbers with numbers, text with text, booleans with booleans."""
    if isinstance(value, bool):
        return bool
    return str if isinstance(value, str) else float


@dataclass(frozen=True, slots=True)
class Query:
    """Which records are meant, or the record to store. `str()` gives its canonical text, which parse() turns into an equal Query.

    Attributes:
        name: an identifier, a Pattern for all names it is found in, or None for any.
        constraints: all have to hold; sorted by attribute, those of one attribute in the order given.
    Raises:
        TypeError, ManagerError: as for a Record and a Constraint.
    """

    name: str | Pattern | None
    constraints: tuple[Constraint, ...] = ()
    text: str = field(init=False, repr=False, compare=False)
    patterns: tuple[Pattern, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name is not None and not isinstance(self.name, Pattern):
            check_name(self.name, "the name of a record")
        ordered = tuple(sorted(self.constraints, key=lambda constraint: constraint.attribute))
        name = "_" if self.name is None else str(self.name)
        text = record_text(name, map(str, ordered))
        check_size(text, len(ordered))
        found = [self.name, *(constraint.operand for constraint in ordered)]
        object.__setattr__(self, "constraints", ordered)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "patterns", tuple(each for each in found if isinstance(each, Pattern)))

    @classmethod
    def of(cls, what: str | Query | Record) -> Query:
        """The query that a text, a query or a record stands for.

        Raises:
            TypeError: none of these.
            ManagerError: OCT_ERR_PARSER_FAIL, OCT_ERR_QUERY_SIZE: the text.
        """
        if isinstance(what, Query):
            return what
        if isinstance(what, Record):
            return cls.where(what.name, what.attributes)
        from shoal.manager.names.parse import parse

        return parse(what)

    @classmethod
    def where(cls, name: str | Pattern | None, attributes: Mapping[str, Value | Pattern | None]) -> Query:
        """Records of this name whose attributes are these. A Pattern has to be found in the value, and None means any value."""
        return cls(name, tuple(Constraint(attribute, ":", value) for attribute, value in attributes.items()))

    def matches(self, name: str, attributes: Mapping[str, Value]) -> bool:
        """Whether a record is meant."""
        if self.name is not None:
            if isinstance(self.name, Pattern):
                if not self.name.found_in(name):
                    return False
            elif self.name != name:
                return False
        return self.attributes_match(attributes)

    def attributes_match(self, attributes: Mapping[str, Value]) -> bool:
        """Whether the constraints hold, whatever the name."""
        return hold(self.constraints, attributes)

    def steps(self, name: str, attributes: Mapping[str, Value]) -> int:
        """What matches() may cost, in the steps that Limits.look_up_steps counts."""
        steps = self.name.steps(name) if isinstance(self.name, Pattern) else 1
        for constraint in self.constraints:
            steps += constraint.steps(attributes.get(constraint.attribute, 0))
        return steps

    def to_store(self) -> tuple[str, dict[str, Value], tuple[Constraint, ...]]:
        """The name and attributes of the record to store, and what has to hold of the one it replaces.

        An attribute given twice has its last value.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD_NAME, the name is not an identifier; OCT_ERR_PARSER_FAIL, `_` in the place of a value.
        """
        name = self.plain_name("store a record")
        attributes: dict[str, Value] = {}
        conditions = []
        for constraint in self.constraints:
            operand = constraint.operand
            if operand is None:
                raise ManagerError(
                    "OCT_ERR_PARSER_FAIL", f"{constraint.attribute}: _ is no value; to store a record each attribute needs one"
                )
            if constraint.operator == ":" and not isinstance(operand, Pattern):
                attributes[constraint.attribute] = operand
            else:
                conditions.append(constraint)
        return name, attributes, tuple(conditions)

    def plain_name(self, act: str) -> str:
        """The name, where it has to be one.

        Raises:
            ManagerError: OCT_ERR_NO_RECORD_NAME, it is a pattern or any.
        """
        if isinstance(self.name, str):
            return self.name
        raise ManagerError(
            "OCT_ERR_NO_RECORD_NAME", f"to {act} takes a plain name, not {'_' if self.name is None else shortened(str(self.name))}"
        )

    def __str__(self) -> str:
        return self.text


def hold(constraints: Iterable[Constraint], attributes: Mapping[str, Value]) -> bool:
    for constraint in constraints:
        value = attributes.get(constraint.attribute)
        if value is None or not constraint.holds(value):
            return False
    return True
