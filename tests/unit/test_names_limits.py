"""What one client can make large, and that it is refused before it costs others anything."""

import re

import pytest
from rig.names import Closing

from shoal.manager import ManagerError
from shoal.manager.names import Limits, Query, Registry
from shoal.manager.names.index import cost
from shoal.manager.names.parse import parse
from shoal.manager.names.record import Record
from shoal.manager.names.sequences import BLOCK
from shoal.manager.names.store import Terms


def refused(code, message, act, *arguments, **options):
    with pytest.raises(ManagerError, match=re.escape(message)) as caught:
        act(*arguments, **options)
    assert caught.value.code == code


def test_records_of_a_session_are_bounded_and_removing_makes_room():
    registry = Registry(Limits(records_per_session=2))
    session, other = registry.open_session(), registry.open_session()
    for name in ("a", "b"):
        registry.set(session, Query(name))
    refused("OCT_ERR_LIMIT", "a session may keep 2 records; remove some first", registry.set, session, Query("c"))
    registry.set(session, Query("a"))  # replacing its own takes no more room
    registry.set(other, Query("c"))
    refused("OCT_ERR_LIMIT", "a session may keep 2 records", registry.set, session, Query("c"))  # but another's does
    registry.remove(session, Query("a"))
    registry.set(session, Query("c"))


def test_a_refused_sequential_record_uses_no_number():
    registry = Registry(Limits(records_per_session=1))
    session = registry.open_session()
    registry.set(session, Query("a"), Terms(mode="sequential"))
    refused("OCT_ERR_LIMIT", "1 records", registry.set, session, Query("a"), Terms(mode="sequential"))
    registry.remove(session, Query("a0"))
    assert registry.set(session, Query("a"), Terms(mode="sequential"))[0].name == "a1"


def test_what_outlives_sessions_is_counted_for_the_capability():
    registry = Registry(Limits(records_per_principal=2))
    for name in ("a", "b"):
        session = registry.open_session("ana")
        registry.set(session, Query(name), Terms(lifetime="persistent"))
        registry.close_session(session)
    session = registry.open_session("ana")
    refused("OCT_ERR_LIMIT", "a capability may keep 2 records", registry.set, session, Query("c"), Terms(lifetime="persistent"))
    registry.set(session, Query("c"))
    registry.set(registry.open_session("ben"), Query("d"), Terms(lifetime="persistent"))
    registry.set(session, Query("a"))  # no longer persistent
    registry.set(session, Query("e"), Terms(lifetime="persistent"))


def test_all_records_together_are_bounded():
    registry = Registry(Limits(records=3))
    sessions = [registry.open_session() for _ in range(2)]
    for number in range(3):
        registry.set(sessions[number % 2], Query(f"a{number}"))
    refused("OCT_ERR_LIMIT", "all sessions together may keep 3 records", registry.set, sessions[0], Query("b"))
    registry.close_session(sessions[1])
    registry.set(sessions[0], Query("b"))


def test_the_bytes_of_records_are_bounded():
    record = Query.where("a", {"x": "y" * 1_000})
    each = cost(Record("a", {"x": "y" * 1_000}))
    registry = Registry(Limits(memory_per_session=2 * each, memory=3 * each))
    one, two = registry.open_session(), registry.open_session()
    registry.set(one, record)
    registry.set(one, Query.where("b", {"x": "y" * 1_000}))
    refused("OCT_ERR_LIMIT", f"a session may keep {2 * each} bytes of records", registry.set, one, Query("c"))
    registry.set(one, record)
    registry.set(two, Query.where("c", {"x": "y" * 1_000}))
    refused("OCT_ERR_LIMIT", f"all sessions together may keep {3 * each} bytes", registry.set, two, Query("d"))


def test_descriptors_are_bounded_wherever_they_are_kept():
    registry = Registry(Limits(values=4, values_per_session=3))
    one, two = registry.open_session(), registry.open_session()
    registry.set(one, Query("a"), value=Closing())
    registry.put_capability(one, "x", Closing())
    registry.put_capability(one, "y", Closing())
    refused("OCT_ERR_LIMIT", "a session may keep 3 descriptors", registry.set, one, Query("b"), value=Closing())
    refused("OCT_ERR_LIMIT", "a session may keep 3 descriptors", registry.put_capability, one, "z", Closing())
    registry.put_capability(two, "z", Closing(), keep=True)
    refused("OCT_ERR_LIMIT", "all sessions together may keep 4 descriptors", registry.set, two, Query("b"), value=Closing())
    registry.remove_capability(one, "x")
    registry.set(two, Query("b"), value=Closing())
    assert not registry.exists(one, Query("c"))


def test_watches_are_bounded_for_a_session_and_for_all():
    registry = Registry(Limits(watches=3, watches_per_session=2))
    one, two = registry.open_session(), registry.open_session()
    first, _ = registry.watch(one, Query("a"))
    registry.subscribe(one, Query("a"))
    for act in (registry.watch, registry.subscribe):
        refused("OCT_ERR_MAX_SUBSCRIPTIONS", "this session has 2 watches already", act, one, Query("b"))
    registry.unwatch(one, first)
    registry.watch(one, Query("b"), persistent=False)
    for name in "cd":
        registry.watch(two, Query(name))
    refused("OCT_ERR_MAX_SUBSCRIPTIONS", "there are 3 watches already", registry.watch, registry.open_session(), Query("b"))
    registry.set(two, Query("b"))  # a watch that fired makes room
    registry.watch(registry.open_session(), Query("b"))


def test_what_watching_by_pattern_costs_is_bounded():
    pattern = parse("r'^abc[0-9]+$'")
    (weight,) = (each.weight for each in pattern.patterns)
    registry = Registry(Limits(pattern_weight=3 * weight, pattern_weight_per_session=2 * weight))
    one, two = registry.open_session(), registry.open_session()
    first, _ = registry.watch(one, pattern)
    registry.subscribe(one, pattern)
    refused("OCT_ERR_MAX_SUBSCRIPTIONS", "the patterns this session watches by", registry.watch, one, pattern)
    registry.watch(one, Query("a"))
    registry.watch(two, pattern)
    refused("OCT_ERR_MAX_SUBSCRIPTIONS", "the patterns that all sessions watch by", registry.watch, two, pattern)
    registry.watch(two, Query("a"))
    registry.unwatch(one, first)
    registry.watch(two, pattern)
    registry.close_session(two)
    registry.watch(one, pattern)


def test_sequences_are_bounded_and_no_number_comes_twice():
    registry = Registry(Limits(sequences=10))
    session = registry.open_session()

    def next_of(base):
        record, changes = registry.set(session, Query(base), Terms(mode="sequential"))
        registry.remove(session, Query(record.name))
        entries.extend(changes.journal)
        return int(record.name[len(base) :])

    entries = []
    given = {f"x{number}-": {next_of(f"x{number}-")} for number in range(50)}
    for round in range(3):
        for base, numbers in given.items():
            number = next_of(base)
            assert number not in numbers, (round, base)
            numbers.add(number)
    assert len(registry._store._sequences) == 10
    rows = {}
    for entry in entries:
        if entry.deletes:
            del rows[entry.key]
        else:
            rows[entry.key] = entry
    assert len(rows) <= 11
    after = Registry(Limits(sequences=10))
    after.restore(rows.values())
    registry, session = after, after.open_session()
    for base, numbers in given.items():
        assert next_of(base) not in numbers


def test_a_sequence_is_written_once_for_a_block_of_numbers():
    registry = Registry()
    session = registry.open_session()
    written = [len(registry.set(session, Query("a"), Terms(mode="sequential"))[1].journal) for _ in range(2 * BLOCK + 1)]
    assert [at for at, entries in enumerate(written) if entries] == [0, BLOCK, 2 * BLOCK]


def test_a_look_up_that_takes_too_long_is_refused():
    registry = Registry(Limits(look_up_steps=1_000))
    session = registry.open_session()
    for number in range(200):
        registry.set(session, Query.where(f"a{number}", {"x": "y" * 100 + str(number), "n": number}))
    for text in ("_ { x: r'z' }", "r'z'", "_ { x > 'a', x < 'b', n > 0, n < 300, x != 'z' }"):
        refused("OCT_ERR_ENGINE_FAIL", "takes too long to look up", registry.names, session, parse(text))
        refused("OCT_ERR_ENGINE_FAIL", "takes too long to look up", registry.watch, session, parse(text), existing=True)
    assert registry.names(session, parse("_ { n: 7, x: r'^y' }")) == ["a7"]  # found by the index
    assert registry.names(session, parse("r'^a19[0-9]$' { x: r'y' }"))[:2] == ["a190", "a191"]


@pytest.mark.timeout(60)
def test_a_name_taken_for_each_number_does_not_stop_a_sequence():
    registry = Registry()
    session = registry.open_session()
    for number in range(2_000):
        registry.set(session, Query(f"job{number}"))
    assert registry.set(session, Query("job"), Terms(mode="sequential"))[0].name == "job2000"
