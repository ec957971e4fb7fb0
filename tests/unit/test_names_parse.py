"""The record language as text: what it says, what is refused and where. Source: spec 5.1."""

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rig.names import exact, queries

from shoal.manager import ManagerError
from shoal.manager.names import Atom, Constraint, Pattern, Query
from shoal.manager.names.limits import ATTRIBUTES, QUERY_BYTES
from shoal.manager.names.parse import parse


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("job7", Query("job7")),
        (" \t\r\n\fjob7\n{\f}", Query("job7")),
        ("_", Query(None)),
        ("r'^a'", Query(Pattern("^a"))),
        ("r''", Query(Pattern(""))),
        ("r", Query("r")),
        ("true1 { false-: 1 }", Query.where("true1", {"false-": 1})),
        ("a{b:1,c:'x'}", Query.where("a", {"b": 1, "c": "x"})),
        ("a { b: up }", Query.where("a", {"b": Atom("up")})),
        ("a { b: 'it''s' }", Query.where("a", {"b": "it's"})),
        ("a { b: '''' }", Query.where("a", {"b": "'"})),
        ("a { b: r'it''s' }", Query.where("a", {"b": Pattern("it's")})),
        ("a { b: 'x\ny' }", Query.where("a", {"b": "x\ny"})),
        ("a { b: r }", Query.where("a", {"b": Atom("r")})),
        ("a { b: _ }", Query.where("a", {"b": None})),
        ("a { b: true, c: false }", Query.where("a", {"b": True, "c": False})),
        ("a { b: 0, c: -0, d: -12 }", Query.where("a", {"b": 0, "c": 0, "d": -12})),
        ("a { b: .5, c: 0.50, d: -.5, e: -1.0 }", Query.where("a", {"b": 0.5, "c": 0.5, "d": -0.5, "e": -1.0})),
        (
            "a { b>1, b >= 2, b<3, b<= 4, b==5, b!=6 }",
            Query("a", tuple(Constraint("b", op, at + 1) for at, op in enumerate((">", ">=", "<", "<=", "==", "!=")))),
        ),
        ("a { b>-1 }", Query("a", (Constraint("b", ">", -1),))),
        ("a { c: 1, b: 2 }", Query.where("a", {"b": 2, "c": 1})),
        ("a { b: 9223372036854775807, c: -9223372036854775808 }", Query.where("a", {"b": (1 << 63) - 1, "c": -(1 << 63)})),
    ],
)
def test_a_text_says_one_thing(text, query):
    assert exact(parse(text)) == exact(query)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1 of '': the text ends, but _, a regular expression r'...' or an identifier was expected"),
        ("job7 {,}", r"column 7 of 'job7 \{,\}': ',' where '}' or an identifier was expected"),
        ("job7 { a: 1, }", "column 14 .*: '}' where an identifier was expected"),
        ("job7 { a: }", "column 11 .*: '}' where _, a regular expression r'...' or a value was expected"),
        ("job7 { a", "column 9 .*: the text ends, but ':' or an operator was expected"),
        ("job7 { a: 1", "column 12 .*: the text ends, but ',' or '}' was expected"),
        ("job7 { a: 1 } x", "column 15 .*: 'x' where the end was expected"),
        ("a\n{\n  b: 1 c: 2 }", "line 3, column 8 .*: 'c' where ',' or '}' was expected"),
        ("a { b: 'x\ny', c? 1 }", r"line 2, column 6 .*: '\?' is no part of the language"),
        ("Job", "column 1 .*: 'J': an identifier begins with a lower-case letter"),
        ("a { b: 'x }", 'column 8 .*: "\'": the string that begins here does not end'),
        ("a { b: r'x }", "the string that begins here does not end"),
        ('a { b: "x" }', "strings stand between single quotes"),
        ("a { b = 1 }", "equality is written ':' or =="),
        ("a { b: +1 }", "numbers have no plus sign"),
        ("a { b: 007 }", "column 9 .*: '0' where ',' or '}' was expected"),
        ("a { b: 1.}", "column 9"),
        ("a { b: 1e5 }", "column 9 .*: 'e5' where ',' or '}' was expected"),
        ("a { b > _ }", "column 9 .*: '_' where a value was expected"),
        ("a { b > r'x' }", "column 9 .*: \"r'x'\" where a value was expected"),
        ("a { b > true }", "column 9 .*: b: true and false have no order"),
        ("true", "column 1 .*: 'true' where"),
        ("a { true: 1 }", "column 5 .*: 'true' where '}' or an identifier was expected"),
        ("a { b: %s }", "column 8 .*: '%s' where"),
        ("%s { b: 1 }", "column 1 .*: '%s' where"),
        ("_x", "column 2"),
        ("r'(' { }", r"column 1 .*: '\(' is no regular expression: missing \)"),
        ("a { b: r'x{2,1}' }", r"column 8 .*: 'x\{2,1\}' is no regular expression"),
        (r"a { b: r'(a)\1' }", "is no regular expression: invalid escape sequence"),
        ("a { b: r'a(?=b)' }", "is no regular expression: invalid perl operator"),
        ("a { b: r'((x{30}){30}){30}' }", "is no regular expression: invalid repetition size"),
        (r"a { b: r'\pL{100}' }", "is no regular expression: pattern too large"),
        ("a { b: 9223372036854775808 }", "column 8 .*: b: an integer has 64 bits"),
        (f"a {{ b: -1{'0' * 5000} }}", "column 8 .*: an integer has 64 bits"),
        (f"a {{ b: {'9' * 400}.0 }}", "column 8 .*: b: inf is not a number"),
        ("a { b: 'x\udc80' }", "character 10 of the text is half of a surrogate pair"),
        ("a\x00", r"column 2 .*: '\\x00' is no part of the language"),
        ("a\u00a0{}", "column 2 .*is no part of the language"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_what_was_expected(text, message):
    with pytest.raises(ManagerError, match=message) as caught:
        parse(text)
    assert caught.value.code == "OCT_ERR_PARSER_FAIL"


@pytest.mark.parametrize(
    "text",
    [
        "a" * (QUERY_BYTES + 1),
        "a { b: '" + "é" * (QUERY_BYTES // 2) + "' }",
        "a {" + " " * QUERY_BYTES + "}",
        "a { " + ", ".join(["b: 1"] * (ATTRIBUTES + 1)) + " }",
        "a" * 256,
    ],
)
def test_a_text_past_the_bounds_is_refused(text):
    with pytest.raises(ManagerError) as caught:
        parse(text)
    assert caught.value.code == "OCT_ERR_QUERY_SIZE"
    assert len(str(caught.value)) < 300  # what a client sent does not come back whole


def test_an_error_does_not_show_all_of_what_was_sent():
    for text in ("a { b: r'" + "(" * 4000 + "' }", "a { b: 'x' " + "y" * 4000 + " }", "a" * 4000, "a { b: " + "9" * 4000 + " }"):
        with pytest.raises(ManagerError) as caught:
            parse(text)
        assert len(str(caught.value)) < 500


def test_commas_in_strings_are_no_attributes():
    text = "a { " + ", ".join(f"b{at}: '" + "," * 60 + "'" for at in range(ATTRIBUTES)) + " }"
    assert len(parse(text).constraints) == ATTRIBUTES
    with pytest.raises(ManagerError, match=f"may have {ATTRIBUTES} attributes") as caught:
        parse(text[:-2] + ", c: 1 }")
    assert caught.value.code == "OCT_ERR_QUERY_SIZE"


def test_a_text_just_within_the_bounds_is_taken():
    text = "a { b: '" + "x" * (QUERY_BYTES - 11) + "' }"
    assert len(text) == QUERY_BYTES
    assert str(parse(text)) == text


def test_a_query_that_grows_past_the_bounds_when_written_is_refused():
    text = "a{" + ",".join(f"b{number}:'{'x' * 120}'" for number in range(ATTRIBUTES)) + "}"
    assert len(text) <= QUERY_BYTES
    room = QUERY_BYTES - len(text)
    with pytest.raises(ManagerError, match="bytes") as caught:
        parse(text[:-2] + "x" * room + text[-2:])
    assert caught.value.code == "OCT_ERR_QUERY_SIZE"


def test_what_is_no_text_is_a_type_error():
    with pytest.raises(TypeError, match="a query is text, not bytes"):
        parse(b"a")


@given(queries)
@example(Query(None, (Constraint("n", "!=", -0.0), Constraint("n", ":", 5e-324), Constraint("n", "<", 1.7976931348623157e308))))
def test_every_query_is_said_by_its_text(query):
    again = parse(str(query))
    assert exact(again) == exact(query)
    assert str(again) == str(query)


PIECES = [*"a_{}:,>.=-01 (é\x00\ud800A\n", "job7", "r'", "'", "''", ">=", "==", "!=", "true", "%s"]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=40))
@example("r'" + "(" * 4000 + "'")
@example("a { b: r'" + "(?i)" * 2000 + "' }")
def test_any_text_is_a_query_or_a_manager_error(text):
    query, code = None, ""
    try:
        query = parse(text)
    except ManagerError as error:
        code = error.code
    if query is None:
        assert code in ("OCT_ERR_PARSER_FAIL", "OCT_ERR_QUERY_SIZE")
    else:
        assert exact(parse(str(query))) == exact(query)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plain_name_needs_neither_parser_nor_regular_expressions():
    out = python(
        "import sys; from shoal.manager.names import LocalService, NameService\n"
        "names = NameService(LocalService().connect()); names.register('a'); names.lookup('a')\n"
        "print('lark' in sys.modules, 're2' in sys.modules)\n"
        "names.names('_ { x: 1 }'); print('lark' in sys.modules, 're2' in sys.modules)"
    )
    assert out.split() == ["False", "False", "True", "False"]


@pytest.mark.parametrize(("module", "text"), [("lark", "_ { a: 1 }"), ("re2", "r'a'")])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(module, text):
    out = python(
        f"import sys; sys.modules[{module!r}] = None\n"
        "from shoal.manager import ManagerError; from shoal.manager.names.parse import parse\n"
        f"try: parse({text!r})\nexcept ManagerError as error: print(error)"
    )
    assert "pip install 'shoal[manager]'" in out
    assert "OCT_ERR_ENGINE_FAIL" in out
