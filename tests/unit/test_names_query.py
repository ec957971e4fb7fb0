"""What a query means, and the bounded regular expressions in it. Source: spec 5.2."""

import pickle
import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rig.names import SOURCES, finds, is_meant, names, queries, records

from shoal.manager import ManagerError
from shoal.manager.names import Constraint, Pattern, Query, Record
from shoal.manager.names.parse import parse

RECORD = Record("job7", {"owner": "ana", "prio": 3, "load": 12.0, "up": True, "digits": "8"})


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("job7", True),
        ("job70", False),
        ("_", True),
        ("r'7'", True),
        ("r'^7'", False),
        ("r'JOB'", False),
        ("r'^job[0-9]+$'", True),
        ("_ { owner: 'ana' }", True),
        ("_ { owner: ana }", True),
        ("_ { owner: _ }", True),
        ("_ { owner: r'n' }", True),
        ("_ { owner: r'^n' }", False),
        ("_ { owner: ana, prio: 4 }", False),
        ("_ { prio: 3.0 }", True),
        ("_ { load: 12 }", True),
        ("_ { load == 12, load >= 12, load <= 12 }", True),
        ("_ { prio > 2, prio < 4 }", True),
        ("_ { prio > 3 }", False),
        ("_ { prio != 3 }", False),
        ("_ { prio != 4 }", True),
        ("_ { prio > 1, prio > 2, prio > 3 }", False),
        ("_ { owner > 'an', owner < b }", True),
        ("_ { digits > 7 }", False),
        ("_ { digits != 7 }", False),
        ("_ { digits: 8 }", False),
        ("_ { prio: '3' }", False),
        ("_ { prio: r'3' }", False),
        ("_ { up: true }", True),
        ("_ { up != false }", True),
        ("_ { up: 1 }", False),
        ("_ { prio: true }", False),
        ("_ { none: _ }", False),
        ("_ { none != 1 }", False),
    ],
)
def test_a_query_means_what_the_language_says(query, matches):
    assert parse(query).matches(RECORD.name, RECORD.attributes) is matches


@given(queries, records)
def test_a_query_means_what_the_model_says(query, record):
    assert query.matches(record.name, record.attributes) is is_meant(query, record.name, dict(record.attributes))


PIECES = ["^", "a", "b", "1", "*", "?", "+", "{2}", "{0,1}", "(", ")", "|", "(?i)", "(?m)", "[ab]", ".", "$", "É"]


@settings(max_examples=500)
@given(st.sampled_from(SOURCES) | st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.text("abAB1É", max_size=4) | names)
@example("^É", "e")
def test_a_pattern_knows_how_what_it_matches_begins(source, name):
    try:
        pattern = Pattern(source)
    except ManagerError:
        assume(False)
    if source in SOURCES:
        assert pattern.found_in(name) is finds(source, name)
    if pattern.found_in(name):
        assert name.startswith(pattern.prefix)


def test_only_a_pattern_that_is_bound_to_the_beginning_has_a_prefix():
    for source in (
        "job",
        "a$",
        "^a|^b",
        "^ab|ac",
        "(^a)?",
        "(?i)^job",
        "(?m)^job",
        "^*job",
        "^?job",
        "^{0,1}job",
        "^(?i)job",
        "^",
        "^.",
        "^[jk]ob",
    ):
        assert Pattern(source).prefix == "", source
    for source, prefix in {
        "^job[0-9]+$": "job",
        "^spawn\\.": "spawn.",
        "^^a": "a",
        "^a+": "a",
        "^ab*": "a",
        "^ab{2}": "abb",
        "^É": "É",
    }.items():
        assert Pattern(source).prefix == prefix, source


@pytest.mark.timeout(20)
@pytest.mark.parametrize("source", ["(a*)*b", "(a|a)*b", "(.*.*.*.*)*c", "(a|b)*a(a|b){12}$", "((a{1,9}){1,9}){1,9}b", "(x+x+)+y"])
def test_no_pattern_makes_matching_explode(source):
    text = "a" * 4000 + "x" * 4000
    pattern = Pattern(source)
    for _ in range(20):  # an engine that goes back over the text does not finish the first
        assert pattern.found_in(text) is False


def test_a_pattern_and_a_query_are_pickled_and_compared_by_what_they_say():
    query = parse("r'^a' { b: r'c', d >= 2 }")
    assert pickle.loads(pickle.dumps(query)) == query
    assert Pattern("a") == Pattern("a") != Pattern("b")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint("a", "=", 1), "'=' is no operator; there are : == != > >= < <="),
        (lambda: Constraint("a", ">", None), "a: > compares with a value; _ and r'...' come after ':'"),
        (lambda: Constraint("a", "!=", Pattern("x")), "come after ':'"),
        (lambda: Constraint("a", "<", False), "true and false have no order"),
        (lambda: Constraint("A", ":", 1), "cannot be the name of an attribute"),
        (lambda: Query("A"), "cannot be the name of a record"),
        (lambda: Pattern("x\ud800"), "half of a surrogate pair"),
    ],
)
def test_a_query_made_of_values_is_held_to_the_same(make, message):
    with pytest.raises(ManagerError, match=re.escape(message)) as caught:
        make()
    assert caught.value.code == "OCT_ERR_PARSER_FAIL"


def test_what_a_query_may_be_given_as():
    assert Query.of("a { b: 1 }") == Query.of(Record("a", {"b": 1})) == Query.of(Query.where("a", {"b": 1}))
    with pytest.raises(TypeError, match="a query is text, not int"):
        Query.of(7)
    with pytest.raises(TypeError, match="a pattern is text, not bytes"):
        Pattern(b"x")


def test_to_store_tells_attributes_from_conditions():
    name, attributes, conditions = parse("a { b: 1, c: r'x', b: 2, d > 3, e == 4 }").to_store()
    assert (name, attributes) == ("a", {"b": 2})  # the last of two wins
    assert [str(condition) for condition in conditions] == ["c: r'x'", "d > 3", "e == 4"]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("_ { a: 1 }", "OCT_ERR_NO_RECORD_NAME", "to store a record takes a plain name, not _"),
        ("r'^a' { a: 1 }", "OCT_ERR_NO_RECORD_NAME", "not r'^a'"),
        ("a { b: _ }", "OCT_ERR_PARSER_FAIL", "b: _ is no value"),
    ],
)
def test_what_cannot_be_stored_is_refused(text, code, message):
    with pytest.raises(ManagerError, match=re.escape(message)) as caught:
        parse(text).to_store()
    assert caught.value.code == code
