"""Watches, subscriptions, and the bounded queue their events wait in. Source: spec 5.5, 5.7."""

import pytest

from shoal.manager import ManagerError
from shoal.manager.names import Event, Limits, Record, Registry
from shoal.manager.names.events import ENDED, OVERFLOW, Mailbox
from shoal.manager.names.parse import parse
from shoal.manager.names.store import Terms

SECRET = "idcapid." + "0123456789abcdef" * 2


class Told:
    """A session of a registry, and all it was told: `(watch, kind, record, removed)`."""

    def __init__(self, registry=None):
        self.registry = registry or Registry()
        self.session = self.registry.open_session()
        self.events = []

    def do(self, changes):
        for session, watch, event in changes.events:
            assert session == self.session
            self.events.append((watch, event.kind, str(event.record) if event.record else None, event.removed))

    def set(self, text, **terms):
        self.do(self.registry.set(self.session, parse(text), Terms(**terms))[1])

    def remove(self, text):
        self.do(self.registry.remove(self.session, parse(text))[1])

    def watch(self, text, **how):
        id, self.present = self.registry.watch(self.session, parse(text), **how)
        return id

    def unwatch(self, id):
        self.do(self.registry.unwatch(self.session, id))

    def take(self):
        events, self.events = self.events, []
        return events


@pytest.fixture
def told():
    return Told()


def test_a_persistent_watch_sees_deletes_and_sets_and_its_end(told):
    told.set("a { x: 1 }")
    watch = told.watch("a")
    told.remove("a")
    told.set("a { x: 2 }")
    told.set("b")
    told.unwatch(watch)
    told.set("a")
    assert told.take() == [
        (watch, "delete", "a { x: 1 }", False),
        (watch, "set", "a { x: 2 }", False),
        (watch, "removed", None, True),
    ]


def test_the_event_of_a_one_shot_watch_is_its_last(told):
    told.set("a")
    told.set("b")
    watch = told.watch("_", on=["delete"], persistent=False)
    told.set("c")
    told.remove("a")
    told.remove("b")
    assert told.take() == [(watch, "delete", "a {  }", True)]
    with pytest.raises(ManagerError, match="it may have ended") as caught:
        told.unwatch(watch)
    assert caught.value.code == "OCT_ERR_INVALID_ID"


def test_the_bits_of_a_notification_are_those_of_octopus():
    record = Record("a")
    assert Event("set", record).mode == 1
    assert Event("delete", record, removed=True).mode == 2 | 16
    assert Event("publish", record).mode == 32
    assert ENDED.mode == 16


@pytest.mark.parametrize(
    ("query", "told_of"),
    [
        ("_", ["a1", "a2", "b", "job7"]),
        ("a1", ["a1"]),
        ("a1 { n > 5 }", []),
        ("_ { n: 2 }", ["a2"]),
        ("_ { n >= 2 }", ["a2", "job7"]),
        ("_ { n: _, owner: 'ana' }", ["job7"]),
        ("_ { owner: _ }", ["b", "job7"]),
        ("r'^a'", ["a1", "a2"]),
        ("r'^job[0-9]$' { n: 3 }", ["job7"]),
        ("r'^job[0-9]$' { n: 4 }", []),
        ("r'[12]$'", ["a1", "a2"]),
        ("_ { up: true }", ["b"]),
        ("_ { up: 1 }", []),
    ],
)
def test_a_watch_is_told_of_what_its_query_means(told, query, told_of):
    watch = told.watch(query, on=["set"])
    for text in ("a1 { n: 1 }", "a2 { n: 2 }", "b { owner: 'ben', up: true }", "job7 { n: 3.0, owner: 'ana' }"):
        told.set(text)
    assert [record.split()[0] for _, _, record, _ in told.take()] == told_of
    told.unwatch(watch)
    told.set("a1")
    assert [kind for _, kind, _, _ in told.take()] == ["removed"]


def test_what_stops_matching_is_not_told_and_replacing_is_one_set(told):
    told.set("a { x: 1 }")
    told.watch("_ { x: 1 }")
    told.set("a { x: 2 }")
    assert told.take() == []
    told.set("a { x: 1 }")
    told.set("a { x: 1 }")
    assert [kind for _, kind, _, _ in told.take()] == ["set", "set"]


def test_one_change_is_told_to_each_watch_in_the_order_they_were_installed(told):
    watches = [told.watch(text) for text in ("r'a'", "_", "a", "_ { x: 1 }", "_ { x: _ }", "r'^a'")]
    told.set("a { x: 1 }")
    assert [watch for watch, *_ in told.take()] == watches


@pytest.mark.parametrize(
    ("when", "there", "installed"),
    [
        ("always", False, True),
        ("always", True, True),
        ("present", False, False),
        ("present", True, True),
        ("absent", False, True),
        ("absent", True, False),
    ],
)
def test_a_watch_may_depend_on_what_is_there_at_that_moment(told, when, there, installed):
    if there:
        told.set("a")
    watch = told.watch("_", when=when)
    assert (watch is not None) is installed
    assert [str(event.record) for event in told.present] == (["a {  }"] if there and when != "always" else [])


def test_a_watch_may_begin_with_what_is_there(told):
    for name in ("a10", "a2", "b"):
        told.set(name)
    told.watch("r'^a'", existing=True)
    assert [(event.kind, event.record.name) for event in told.present] == [("set", "a2"), ("set", "a10")]
    assert told.take() == []


def test_only_its_own_session_can_remove_a_watch(told):
    watch = told.watch("_")
    other = told.registry.open_session()
    for id in (watch, 0, -1, 99):
        with pytest.raises(ManagerError) as caught:
            told.registry.unwatch(other, id)
        assert caught.value.code == "OCT_ERR_INVALID_ID"
    subscription = told.registry.subscribe(told.session, parse("_"))
    for act, id, code in (
        (told.registry.unwatch, subscription, "OCT_ERR_INVALID_ID"),
        (told.registry.unsubscribe, watch, "OCT_ERR_NO_SUBSCRIPTION"),
    ):
        with pytest.raises(ManagerError) as caught:
            act(told.session, id)
        assert caught.value.code == code


def test_a_watch_that_makes_no_sense_is_refused(told):
    for how in ({"on": []}, {"on": ["publish"]}, {"when": "sometimes"}):
        with pytest.raises(ManagerError) as caught:
            told.watch("_", **how)
        assert caught.value.code == "OCT_ERR_INVALID_FORMAT"


def test_watches_and_numbers_end_with_their_session(told):
    other = Told(told.registry)
    watch = other.watch("_")
    other.registry.close_session(other.session)
    told.set("a")  # Told would fail on an event for another session
    assert told.watch("_") == watch + 1


def test_records_that_go_together_are_told_in_order(told):
    told.set("sem")
    told.set("sem.1", under="sem")
    told.set("sem.0", lifetime="parent", under="sem")
    told.watch("_")
    told.remove("sem")
    assert [record.split()[0] for _, _, record, _ in told.take()] == ["sem", "sem.1", "sem.0"]


def test_a_secret_record_is_told_to_those_only_who_watch_it_by_its_name(told):
    told.watch("_")
    told.watch("r'idcapid'")
    told.watch("_ { tty: _ }")
    watch = told.watch(SECRET)
    told.set(f"{SECRET} {{ tty: 1 }}")
    assert [id for id, *_ in told.take()] == [watch]


# --- publish and subscribe --------------------------------------------------------------------------------


def test_a_published_record_reaches_each_matching_subscription_and_is_not_stored(told):
    registry = told.registry
    first = registry.subscribe(told.session, parse("_ { prio > 2 }"))
    second = registry.subscribe(told.session, parse("news"))
    told.watch("_")
    reached, changes = registry.publish(told.session, parse("news { prio: 3 }"))
    told.do(changes)
    assert reached == 2
    assert told.take() == [(first, "publish", "news { prio: 3 }", False), (second, "publish", "news { prio: 3 }", False)]
    assert registry.names(told.session, parse("_")) == []
    assert registry.publish(told.session, parse("other"))[0] == 0  # nobody listens: no error
    told.do(registry.unsubscribe(told.session, first))
    assert told.take() == [(first, "removed", None, True)]
    assert registry.publish(told.session, parse("news { prio: 3, prio > 9 }"))[0] == 1  # constraints do not matter


@pytest.mark.parametrize(("text", "code"), [("_ { a: 1 }", "OCT_ERR_NO_RECORD_NAME"), ("a { b: _ }", "OCT_ERR_PARSER_FAIL")])
def test_what_is_published_is_a_record(told, text, code):
    with pytest.raises(ManagerError) as caught:
        told.registry.publish(told.session, parse(text))
    assert caught.value.code == code


# --- the mailbox ------------------------------------------------------------------------------------------

LIMITS = Limits(queued_events=3, queued_events_per_session=5, queued_bytes_per_session=1_000)


def event(number, size=0, **how):
    return Event("set", Record("a", {"n": number, "x": "x" * size}), **how)


def drain(mailbox):
    taken = []
    while (each := mailbox.take()) is not None:
        taken.append((each[0], each[1].record.attributes["n"] if each[1].record else each[1].kind))
    return taken


def test_events_come_in_order_over_all_watches():
    mailbox = Mailbox(LIMITS)
    for watch, number in ((1, 1), (2, 2), (1, 3), (2, 4)):
        mailbox.put(watch, event(number))
    assert drain(mailbox) == [(1, 1), (2, 2), (1, 3), (2, 4)]
    assert mailbox.take() is None


def test_a_watch_that_never_drains_gets_one_overflow_and_costs_others_nothing():
    mailbox = Mailbox(LIMITS)
    for number in range(1_000):
        mailbox.put(1, event(number))
    mailbox.put(2, event(7))
    assert drain(mailbox) == [(1, 0), (1, 1), (1, 2), (1, "overflow"), (2, 7)]
    mailbox.put(1, event(8))
    assert drain(mailbox) == [(1, 8)]


def test_after_an_overflow_is_taken_events_are_queued_again():
    mailbox = Mailbox(LIMITS)
    for number in range(10):
        mailbox.put(1, event(number))
    assert [mailbox.take()[1].kind for _ in range(4)] == ["set", "set", "set", "overflow"]
    mailbox.put(1, event(11))
    assert drain(mailbox) == [(1, 11)]


def test_a_session_is_bounded_in_events_and_in_bytes():
    mailbox = Mailbox(LIMITS)
    for watch in range(10):
        mailbox.put(watch, event(watch))
    assert len(mailbox) == 10  # five events, and an overflow for each of the other watches
    assert drain(mailbox) == [(watch, watch if watch < 5 else "overflow") for watch in range(10)]
    mailbox.put(1, event(1, size=600))
    mailbox.put(2, event(2, size=600))
    assert drain(mailbox) == [(1, 1), (2, "overflow")]
    mailbox.put(2, event(3, size=600))
    assert drain(mailbox) == [(2, 3)]


def test_the_last_event_of_a_watch_always_arrives():
    mailbox = Mailbox(LIMITS)
    for number in range(10):
        mailbox.put(1, event(number))
    mailbox.put(1, ENDED)
    assert not mailbox.is_full or len(mailbox) == 5
    mailbox.put(2, event(5, removed=True))
    assert mailbox.is_full
    assert drain(mailbox) == [(1, 0), (1, 1), (1, 2), (1, "overflow"), (1, "removed"), (2, 5)]


def test_what_waits_for_a_forgotten_watch_is_dropped():
    mailbox = Mailbox(LIMITS)
    for number in range(10):
        mailbox.put(1, event(number, size=200))
    mailbox.put(2, event(7))
    mailbox.forget(1)
    mailbox.forget(3)
    assert [each for _, each in mailbox] == [event(7, size=0)]
    assert drain(mailbox) == [(2, 7)]
    for number in range(3):
        mailbox.put(1, event(number, size=200))
    assert OVERFLOW not in [each for _, each in mailbox]
