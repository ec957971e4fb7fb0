"""Records and their one text. Source: spec 5.1, 5.3, 5.6."""

import copy
import enum
import math
import pickle

import pytest
from hypothesis import given
from rig.names import records

from shoal.manager import ManagerError
from shoal.manager.names import Atom, Query, Record
from shoal.manager.names.limits import ATTRIBUTES, NAME_BYTES, QUERY_BYTES
from shoal.manager.names.ordering import natural_key
from shoal.manager.names.parse import parse


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Record("job7"), "job7 {  }"),
        (Record("job7", {"prio": 3, "owner": "ana"}), "job7 { owner: 'ana', prio: 3 }"),
        (Record("a", {"x": Atom("ready")}), "a { x: ready }"),
        (Record("a", {"x": "it's"}), "a { x: 'it''s' }"),
        (Record("a", {"x": ""}), "a { x: '' }"),
        (Record("a", {"x": True, "y": False}), "a { x: true, y: false }"),
        (Record("a", {"x": 12.0}), "a { x: 12.0 }"),
        (Record("a", {"x": 1e-7}), "a { x: 0.0000001 }"),
        (Record("a", {"x": 1e22}), "a { x: 10000000000000000000000.0 }"),
        (Record("a", {"b": 1, "a-": 3}), "a { a-: 3, b: 1 }"),
        (Record("a", {"x": -(1 << 63)}), "a { x: -9223372036854775808 }"),
    ],
)
def test_a_record_has_one_text(record, text):
    assert str(record) == text


@given(records)
def test_the_text_of_a_record_says_all_of_it(record):
    name, attributes, conditions = parse(str(record)).to_store()
    again = Record(name, attributes)
    assert (again, conditions) == (record, ())
    assert [(type(value), value) for value in again.attributes.values()] == [(type(value), value) for value in record.attributes.values()]


@pytest.mark.parametrize(
    ("attributes", "code", "message"),
    [
        ({"A": 1}, "OCT_ERR_PARSER_FAIL", "'A' cannot be the name of an attribute"),
        ({"true": 1}, "OCT_ERR_PARSER_FAIL", "not true or false"),
        ({"": 1}, "OCT_ERR_PARSER_FAIL", "cannot be the name of an attribute"),
        ({"a b": 1}, "OCT_ERR_PARSER_FAIL", "cannot be the name of an attribute"),
        ({"a": 1 << 63}, "OCT_ERR_PARSER_FAIL", "a: an integer has 64 bits"),
        ({"a": math.nan}, "OCT_ERR_PARSER_FAIL", "a: nan is not a number that can be written"),
        ({"a": -math.inf}, "OCT_ERR_PARSER_FAIL", "a: -inf is not a number"),
        ({"a": "x\ud800"}, "OCT_ERR_PARSER_FAIL", "character 2 of the text is half of a surrogate pair"),
        ({"a": "x" * QUERY_BYTES}, "OCT_ERR_QUERY_SIZE", f"may have {QUERY_BYTES} bytes"),
        ({"a": "é" * (QUERY_BYTES // 2)}, "OCT_ERR_QUERY_SIZE", f"may have {QUERY_BYTES} bytes"),
        (
            {f"a{number}": 1 for number in range(ATTRIBUTES + 1)},
            "OCT_ERR_QUERY_SIZE",
            f"may have {ATTRIBUTES} attributes, not {ATTRIBUTES + 1}",
        ),
        ({"a" * (NAME_BYTES + 1): 1}, "OCT_ERR_QUERY_SIZE", f"may have {NAME_BYTES} bytes, not {NAME_BYTES + 1}"),
    ],
)
def test_a_record_that_cannot_be_written_is_refused(attributes, code, message):
    with pytest.raises(ManagerError, match=message) as caught:
        Record("a", attributes)
    assert caught.value.code == code
    if len(attributes) == 1:
        with pytest.raises(ManagerError) as caught:
            Query.where("a", attributes)
        assert caught.value.code == code


@pytest.mark.parametrize("name", ["", "A", "1a", "_", "a b", "é", "a'", "true", "a\n"])
def test_a_name_is_an_identifier(name):
    with pytest.raises(ManagerError, match="cannot be the name of a record") as caught:
        Record(name)
    assert caught.value.code == "OCT_ERR_PARSER_FAIL"


def test_a_value_of_another_type_is_a_type_error():
    with pytest.raises(TypeError, match="owner: a value is an int, float, str or bool, not bytes"):
        Record("a", {"owner": b"ana"})
    with pytest.raises(TypeError, match="the name of a record is text, not int"):
        Record(7)


def test_values_have_the_plain_types_whatever_was_given():
    class Colour(enum.IntEnum):
        RED = 3

    class Word(str):
        __slots__ = ()

    record = Record("a", {"x": Colour.RED, "y": Word("w")})
    assert [type(value) for value in record.attributes.values()] == [int, str]
    assert str(record) == "a { x: 3, y: 'w' }"


def test_an_atom_is_the_text_with_the_same_letters():
    assert Atom("ready") == "ready"
    assert Record("a", {"x": Atom("ready")}) == Record("a", {"x": "ready"})
    with pytest.raises(ValueError, match="'not so' is no identifier"):
        Atom("not so")


def test_what_a_record_was_made_of_may_change_afterwards():
    attributes = {"x": 1}
    record = Record("a", attributes)
    attributes["x"] = 2
    assert str(record) == "a { x: 1 }"


def test_records_are_compared_hashed_copied_and_pickled():
    one, other = Record("a", {"x": 1, "y": "b"}), Record("a", {"y": "b", "x": 1})
    assert (one, hash(one)) == (other, hash(other))
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert one != Record("a", {"x": 1})


def test_names_have_a_natural_order():
    names = ["a10", "a2", "a", "a01", "a1", "b", "a1.10", "a1.9", "a1b", "ab"]
    assert sorted(names, key=natural_key) == ["a", "a01", "a1", "a1.9", "a1.10", "a1b", "a2", "a10", "ab", "b"]


# --- oct_read() -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "values"),
    [
        ("%s { iref: %d }", ("spawn", 7)),
        ("_ { load: %f, owner: %s, iref: %d }", (0.5, "ana", 7)),
        ("_ { iref: %d, load: %f }", (7, 0.5)),
        ("_ { state: %s }", ("up",)),
        ("%s", ("spawn",)),
        ("_ {}", ()),
    ],
)
def test_a_record_is_read_by_a_format_in_its_order(format, values):
    record = Record("spawn", {"iref": 7, "load": 0.5, "owner": "ana", "state": Atom("up"), "more": 1})
    assert record.read(format) == values


@pytest.mark.parametrize(
    ("format", "code", "message"),
    [
        ("spawn { iref: %d }", "OCT_ERR_PARSER_FAIL", "column 1"),
        ("_ { iref: 7 }", "OCT_ERR_PARSER_FAIL", "'7' where %s, %d or %f was expected"),
        ("_ { iref > %d }", "OCT_ERR_PARSER_FAIL", "'>' where ':' was expected"),
        ("_ { iref: %x }", "OCT_ERR_INVALID_FORMAT", "%x is no type"),
        ("_ { iref: %s }", "OCT_ERR_INVALID_FORMAT", "%s takes text, and spawn has 7 there"),
        ("_ { iref: %f }", "OCT_ERR_INVALID_FORMAT", "%f takes a float"),
        ("_ { load: %d }", "OCT_ERR_INVALID_FORMAT", "%d takes an integer"),
        ("_ { flag: %d }", "OCT_ERR_INVALID_FORMAT", "has true there"),
        ("_ { none: %d }", "OCT_ERR_UNKNOWN_ATTRIBUTE", "spawn has no attribute none"),
        (f"_ {{ {'n' * 256}: %d }}", "OCT_ERR_QUERY_SIZE", "may have 255 bytes"),
        ("_ { " + ", ".join(["iref: %d"] * 65) + " }", "OCT_ERR_QUERY_SIZE", "may have 64 attributes"),
    ],
)
def test_a_format_that_does_not_fit_says_why(format, code, message):
    with pytest.raises(ManagerError, match=message) as caught:
        Record("spawn", {"iref": 7, "load": 0.5, "flag": True}).read(format)
    assert caught.value.code == code
