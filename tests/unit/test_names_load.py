"""Many records and many watches: what a look-up or a change compares does not grow with them, and memory is counted on the safe side.

Nothing here looks at the time: comparisons are counted, and bytes. bench/names.py measures.
"""

import gc
import tracemalloc

import pytest

from shoal.manager.names import Query, Registry
from shoal.manager.names.index import cost
from shoal.manager.names.parse import parse

RECORDS = 5_000
WATCHES = 3_000


@pytest.fixture(scope="module")
def full():
    registry = Registry()
    session = registry.open_session()
    for number in range(RECORDS):
        registry.set(session, Query.where(f"job{number}", {"owner": f"user{number % 100}", "prio": number % 10, "iref": number}))
    for number in range(WATCHES):
        registry.watch(
            session, [Query(f"x{number}"), Query.where(None, {"iref": -number}), Query.where(None, {f"a{number}": None})][number % 3]
        )
    registry.watch(session, parse("r'^y[0-9]'"))
    return registry, session


@pytest.fixture
def compared(monkeypatch):
    """How many records, and watches, are compared with a query."""
    count = [0]
    matches = Query.matches

    def counting(self, *arguments):
        count[0] += 1
        return matches(self, *arguments)

    monkeypatch.setattr(Query, "matches", counting)
    return count


@pytest.mark.parametrize(
    ("query", "found", "most"),
    [
        ("job77", 1, 1),
        ("nothing", 0, 0),
        ("_ { iref: 77 }", 1, 1),
        ("_ { owner: user7 }", 50, 50),
        ("_ { owner: _, iref: 77 }", 1, 1),
        ("_ { owner: user7, prio: 7 }", 50, 50),
        ("_ { prio > 8 }", 500, 500),
        ("_ { owner: r'^user1$' }", 50, 50),
        ("_ { none: _ }", 0, 0),
        ("r'^job77[0-9]$'", 10, 11),
        ("r'^job1'", 1111, 1111),
        ("r'^other'", 0, 0),
        ("r'^job77' { owner: user70 }", 1, 11),
        ("r'^job' { iref: 77 }", 1, 1),
    ],
)
def test_a_look_up_compares_what_may_match(full, compared, query, found, most):
    registry, session = full
    assert len(registry.names(session, parse(query))) == found
    assert found <= compared[0] <= most


@pytest.mark.parametrize(("query", "most"), [("_", 1), ("_ { prio >= 0 }", 1), ("r'^job'", 1), ("_ { owner: _ }", 1)])
def test_the_first_match_is_found_without_looking_at_all(full, compared, query, most):
    registry, session = full
    registry.get(session, parse(query))
    assert compared[0] <= most


def test_a_change_is_compared_with_the_watches_it_may_concern(full, compared):
    registry, session = full
    registry.set(session, parse("z { iref: 1, owner: user7, prio: 3 }"))
    assert compared[0] == 0
    for text, told in (("x0", 1), ("z { iref: -1 }", 1), ("z { a2: 1 }", 1), ("y1", 1), ("y", 0)):
        compared[0] = 0
        _, changes = registry.set(session, parse(text))
        assert (len(changes.events), compared[0]) == (told, 1), text


SHAPES = {
    "no attributes": lambda number: f"a{number}",
    "one integer": lambda number: f"a{number} {{ x: {number + 1000} }}",
    "one text": lambda number: f"a{number} {{ x: 'text {number} text' }}",
    "an attribute of its own": lambda number: f"a{number} {{ x{number}: 1 }}",
    "64 integers": lambda number: f"a{number} {{ {', '.join(f'x{at}: 1{number}{at}' for at in range(64))} }}",
    "64 attributes of its own": lambda number: f"a{number} {{ {', '.join(f'x{number}-{at}: 1{number}{at}' for at in range(64))} }}",
    "long text": lambda number: f"a{number} {{ x: '{number}{'y' * 7000}' }}",
    "long text of wide characters": lambda number: f"a{number} {{ x: '{number}{'𝔘' * 1900}' }}",
    "a long name": lambda number: f"a{'b' * 240}{number}",
    "a name of many numbers": lambda number: f"a{'bc123' * 48}{number}",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_memory_of_a_record_is_counted_on_the_safe_side(shape):
    make = SHAPES[shape]
    registry = Registry()
    session = registry.open_session()
    for number in range(20):
        registry.set(session, parse("w" + make(number)))
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100):
            registry.set(session, parse(make(number)))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = sum(cost(record) for record in registry.find(session, parse("r'^a'")))
    assert taken <= counted <= 4 * taken
