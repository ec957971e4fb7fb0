"""What the tests of octopus itself expect, as one table of examples: text in, text or error out. Source: spec 5.15; usr/tests/octopus."""

import pytest
from rig.names import service

from shoal.manager import ManagerError

OBJECTS = [
    "object1 { weight: 20 }",
    "object2 { value: 'A text with $characters! {in} it.', flag: 0 }",
    "object3 { weight: 5.5, attr1: 'x', attr2: 'y' }",
    "reservation_1 { date: '2011-08-25', number: 1 }",
    "reservation_2 { date: '1999-12-31', number: 2 }",
    "reservation_10 { date: '20110825', number: 10 }",
]
DATE = r"^(19|20)\d\d[- /.](0[1-9]|1[012])[- /.](0[1-9]|[12][0-9]|3[01])$"


@pytest.fixture
def names():
    with service() as names:
        for text in OBJECTS:
            names.register(text)
        yield names


@pytest.mark.parametrize(
    ("call", "argument", "answer"),
    [
        ("get", "object1", "object1 { weight: 20 }"),
        ("get", "object2", "object2 { flag: 0, value: 'A text with $characters! {in} it.' }"),
        ("get", "object3", "object3 { attr1: 'x', attr2: 'y', weight: 5.5 }"),
        ("get", "object1 { weight >= 20 }", "object1 { weight: 20 }"),
        ("get", "_ { weight > 5.4, weight < 20 }", "object3 { attr1: 'x', attr2: 'y', weight: 5.5 }"),
        ("get", "object1 { weight > 20 }", "OCT_ERR_NO_RECORD"),
        ("get", "object3 { weight >= 5.6 }", "OCT_ERR_NO_RECORD"),
        ("get", "unknown", "OCT_ERR_NO_RECORD"),
        ("get", "object1 { weight: 20", "OCT_ERR_PARSER_FAIL"),
        ("get", f"_ {{ date: r'{DATE}' }}", "reservation_1 { date: '2011-08-25', number: 1 }"),
        ("get", f"_ {{ date: r'{DATE}', number > 1 }}", "reservation_2 { date: '1999-12-31', number: 2 }"),
        ("names", "r'^object[0-9]+$'", ["object1", "object2", "object3"]),
        ("names", "r'^reservation_'", ["reservation_1", "reservation_2", "reservation_10"]),
        ("names", "_ { weight: _ }", ["object1", "object3"]),
        ("names", "_ { number: 10 }", ["reservation_10"]),
        ("names", "_ { attr1: 'x' }", ["object3"]),
        ("names", "_ { attr1: 'y' }", []),
        ("names", "r'^object {", "OCT_ERR_PARSER_FAIL"),
        ("exists", "object2", True),
        ("exists", "object20", False),
        ("exists", "_ { flag: 0 }", True),
        ("exists", "object2 { , }", "OCT_ERR_PARSER_FAIL"),
        ("register", "object1 { weight: 21 }", "object1"),
        ("register", "r'^object' { weight: 1 }", "OCT_ERR_NO_RECORD_NAME"),
        ("register", "_ { weight: 1 }", "OCT_ERR_NO_RECORD_NAME"),
        ("register", "object1 { weight: }", "OCT_ERR_PARSER_FAIL"),
        ("register", "object1 { weight: 21, weight == 19 }", "OCT_ERR_CONSTRAINT_MISMATCH"),
        ("remove", "object1", None),
        ("remove", "unknown", "OCT_ERR_NO_RECORD"),
        ("remove", "r'^object'", "OCT_ERR_NO_RECORD_NAME"),
        ("remove", "_", "OCT_ERR_NO_RECORD_NAME"),
        ("subscribe", "_ { weight > }", "OCT_ERR_PARSER_FAIL"),
        ("lookup", "object1", "object1 { weight: 20 }"),
    ],
)
def test_each_call_answers_as_octopus_does(names, call, argument, answer):
    try:
        got = getattr(names, call)(argument)
    except ManagerError as error:
        got = error.code
    assert (str(got) if call in ("get", "lookup") else got) == answer


def test_what_is_removed_is_gone_and_can_be_set_again(names):
    names.remove("object1")
    with pytest.raises(ManagerError) as caught:
        names.get("object1")
    assert caught.value.code == "OCT_ERR_NO_RECORD"
    names.register("object1 { weight: 20 }")
    assert str(names.get("object1")) == "object1 { weight: 20 }"


def test_a_persistent_trigger_sees_delete_then_set_then_removed(names):
    watch = names.watch("r'^object1$'")
    names.remove("object1")
    names.register("object1 { weight: 1 }")
    watch.close()
    assert [(event.mode, str(event.record)) for event in watch] == [
        (2, "object1 { weight: 20 }"),
        (1, "object1 { weight: 1 }"),
        (16, "None"),
    ]


def test_a_one_shot_delete_trigger_has_both_bits_at_once(names):
    watch = names.watch("object1", on=["delete"], persistent=False)
    names.remove("object1")
    assert [(event.mode, str(event.record)) for event in watch] == [(2 | 16, "object1 { weight: 20 }")]


def test_seven_messages_against_four_subscriptions_are_six_deliveries(names):
    queries = ["r'^msg_[0-9]$'", "_ { value > 9 }", "msg { text: 'hello' }", "_ { text: r'^h', value: _ }"]
    subscriptions = [names.subscribe(query) for query in queries]
    messages = [
        "msg_1 { value: 1 }",
        "msg_22 { value: 9 }",
        "msg_2 { value: 10 }",
        "msg { text: 'hello' }",
        "msg { text: 'hello', value: '8' }",  # text against > 9 does not deliver
        "other { text: 'x' }",
        "other",
    ]
    assert [names.publish(message) for message in messages] == [1, 0, 2, 1, 2, 0, 0]
    for subscription in subscriptions:
        subscription.close()
    got = [[(event.mode, event.record and event.record.name) for event in subscription] for subscription in subscriptions]
    assert got == [
        [(32, "msg_1"), (32, "msg_2"), (16, None)],
        [(32, "msg_2"), (16, None)],
        [(32, "msg"), (32, "msg"), (16, None)],
        [(32, "msg"), (16, None)],
    ]


def test_a_semaphore_of_one_is_taken_once(names):
    semaphore = names.semaphore(1)
    assert semaphore.trywait() is True
    assert semaphore.trywait() is False


@pytest.mark.timeout(240)
def test_a_hundred_thousand_lock_operations(names):
    lock = names.lock("lock")
    for _ in range(50_000):
        lock.acquire()
        lock.release()
    lock.acquire()
    assert lock.number == 50_000
    assert names.names("_ { lock: 'lock' }") == ["lock_50000"]


def test_a_record_is_read_by_format_in_any_order_of_attributes(names):
    record = names.get("object3")
    assert record.read("%s { weight: %f, attr2: %s, attr1: %s }") == ("object3", 5.5, "y", "x")
    assert record.read("_ { attr1: %s }") == ("x",)


def test_the_names_of_the_spawn_daemons_are_found_in_natural_order():
    with service(privileged=True) as names:
        for core in (10, 2, 0):
            names.register(f"spawn.{core} {{ iref: {core + 1} }}")
        names.register("spawn.node7.0 { iref: 9 }")
        assert names.names(r"r'^spawn\.[0-9]+$' { iref: _ }") == ["spawn.0", "spawn.2", "spawn.10"]


def test_start_up_barriers_of_names_alone(names):
    """lib/dist/barrier.c: a master waits for every worker's name, then registers its own, for which they wait."""
    for number in range(3):
        names.register(f"svc.{number}.ready {{ iref: 0 }}")
    for number in range(3):
        assert names.lookup(f"svc.{number}.ready", timeout=0).read("_ { iref: %d }") == (0,)
    names.register("svc.ready { iref: 0 }")
    assert names.lookup("svc.ready").name == "svc.ready"
