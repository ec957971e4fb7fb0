"""What tests of the name service are made of: strategies for what the record language can say, and a naive model of what it means."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from shoal.manager.names import Atom, Constraint, LocalService, NameService, Pattern, Query, Record

# Few names and values, so that they meet; and the odd ones, so that quoting and comparing are tried.
NAMES = ["a", "a1", "a2", "a10", "a01", "b", "b.1", "spoon", "job7", "job70", "r", "true1", "x-y_z"]
ATTRIBUTES = ["k", "n", "owner", "r", "iref", "false0"]
TEXTS = ["", "ana", "it's", "''", "r'x'", "{ a: 1 }", "é\n\t", "8", "true", "_", "\x00", "a,b", "𝔘"]
NUMBERS = [0, 1, -1, 8, 12, 12.0, 0.5, -0.0, 1e-7, 1e22, -(1 << 63), (1 << 63) - 1, 2**53 + 1, float(2**53)]
SOURCES = ["", "^a", "^job[0-9]+$", "1$", "a|b", "^(a|b)", "it's", "é", "^a[0-9]", "(?i)^A", "[^a]", "^true", "^É"]

names = st.sampled_from(NAMES) | st.from_regex(r"[a-z][A-Za-z0-9._-]{0,12}", fullmatch=True).filter(
    lambda text: text not in ("true", "false")
)
attributes = st.sampled_from(ATTRIBUTES)
texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.sampled_from(NUMBERS) | texts | st.booleans() | integers | floats | names.map(Atom)
patterns = st.sampled_from(SOURCES).map(Pattern)
records = st.builds(Record, names, st.dictionaries(attributes, values, max_size=4))


@st.composite
def constraints(draw: st.DrawFn) -> Constraint:
    """Any constraint there can be."""
    attribute = draw(attributes)
    if draw(st.integers(0, 3)) == 0:
        return Constraint(attribute, ":", draw(patterns | st.none()))
    operand = draw(values)
    operators = [":", "==", "!="] if isinstance(operand, bool) else [":", "==", "!=", ">", ">=", "<", "<="]
    return Constraint(attribute, draw(st.sampled_from(operators)), operand)  # type: ignore[arg-type]


queries = st.builds(Query, names | patterns | st.none(), st.lists(constraints(), max_size=3).map(tuple))


def exact(query: Query) -> Any:
    """All of a query, with the types of its values: 1 equals 1.0 and True, but is not the same."""
    return query.name, [(each.attribute, each.operator, type(each.operand), str(each), each.operand) for each in query.constraints]


def natural(name: str) -> Any:
    """The natural order once more, in the plainest way."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)], name


def finds(source: str, text: str) -> bool:
    """Whether a pattern is found. RE2's `$` is the very end, that of `re` also before a last newline."""
    return re.search(source.replace("$", r"\Z"), text) is not None


def meets(constraint: Constraint, attributes: dict[str, Any]) -> bool:
    """Whether a record meets a constraint, by spec 5.2."""
    if constraint.attribute not in attributes:
        return False
    have, want = attributes[constraint.attribute], constraint.operand
    if want is None:
        return True
    if isinstance(want, Pattern):
        return isinstance(have, str) and finds(want.source, have)
    kinds = ["boolean" if isinstance(each, bool) else "text" if isinstance(each, str) else "number" for each in (have, want)]
    if kinds[0] != kinds[1]:
        return False
    return {
        ":": have == want,
        "==": have == want,
        "!=": have != want,
        ">": have > want,
        ">=": have >= want,
        "<": have < want,
        "<=": have <= want,
    }[constraint.operator]


def is_meant(query: Query, name: str, attributes: dict[str, Any]) -> bool:
    """Whether a query means a record, by spec 5.2."""
    if isinstance(query.name, Pattern):
        if not finds(query.name.source, name):
            return False
    elif query.name is not None and query.name != name:
        return False
    return all(meets(constraint, attributes) for constraint in query.constraints)


@dataclass
class Model:
    """All records by name, and nothing clever."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def matching(self, query: Query) -> list[str]:
        return sorted((name for name, attributes in self.records.items() if is_meant(query, name, attributes)), key=natural)


class Closing:
    """A value that knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def service(names: LocalService | None = None, **session: Any) -> NameService:
    """A NameService for this process alone."""
    return NameService((names or LocalService()).connect(**session))


PATIENCE_S = 60


class Watchings(dict[int, Any]):
    """The installed watches of a LocalService, which tell of each new one: whoever waits for something has one."""

    def __init__(self) -> None:
        super().__init__()
        self._installed = threading.Semaphore(0)

    def __setitem__(self, watch: int, watching: Any) -> None:
        super().__setitem__(watch, watching)
        self._installed.release()

    def until_installed(self, count: int = 1) -> None:
        for _ in range(count):
            assert self._installed.acquire(timeout=PATIENCE_S), "nobody waits"


def observed(local: LocalService) -> Any:
    """The same service, whose `_watchings` are Watchings."""
    local._watchings = Watchings()
    return local


class Thread:
    """A thread whose end is waited for, with what it returned or raised."""

    def __init__(self, act: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._thread = threading.Thread(target=self._run, args=(act, arguments, options), daemon=True)
        self._thread.start()

    def _run(self, act: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        try:
            self._outcome = (act(*arguments, **options), None)
        except BaseException as error:
            self._outcome = (None, error)

    def result(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert self._outcome is not None, "the thread still waits"
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    @property
    def is_waiting(self) -> bool:
        return self._outcome is None
