"""What survives the manager: journal entries, and a registry made of them. Source: spec 11, corner 10."""

import pytest

from shoal.manager import ManagerError
from shoal.manager.names import Query, Registry
from shoal.manager.names.journal import RecordKept
from shoal.manager.names.parse import parse
from shoal.manager.names.store import Terms


class Journal:
    """A registry and the rows its entries leave."""

    def __init__(self, registry=None):
        self.registry = registry or Registry()
        self.session = self.registry.open_session("ana")
        self.rows = {}

    def write(self, changes):
        for entry in changes.journal:
            if entry.deletes:
                del self.rows[entry.key]
            else:
                self.rows[entry.key] = entry

    def set(self, text, **terms):
        record, changes = self.registry.set(self.session, parse(text), Terms(**terms))
        self.write(changes)
        return record.name

    def remove(self, text):
        self.write(self.registry.remove(self.session, parse(text))[1])

    def again(self):
        registry = Registry()
        assert registry.restore(self.rows.values()) == []
        after = Journal(registry)
        after.rows = dict(self.rows)
        return after


@pytest.fixture
def journal():
    return Journal()


def test_only_persistent_records_are_written(journal):
    journal.set("a { x: 1 }")
    assert journal.rows == {}
    journal.set("b { x: 'it''s', y: 1.0, z: up }", lifetime="persistent")
    journal.set("c", lifetime="persistent", shared=True)
    assert [entry.text for entry in journal.rows.values()] == ["b { x: 'it''s', y: 1.0, z: up }", "c {  }"]
    after = journal.again()
    assert [str(record) for record in after.registry.find(after.session, Query(None))] == ["b { x: 'it''s', y: 1.0, z: up }", "c {  }"]


def test_a_record_that_is_replaced_or_removed_is_written(journal):
    journal.set("a { x: 1 }", lifetime="persistent")
    journal.set("a { x: 2 }", lifetime="persistent")
    assert [entry.text for entry in journal.rows.values()] == ["a { x: 2 }"]
    journal.set("a { x: 3 }")
    assert journal.rows == {}
    journal.set("a { x: 4 }", lifetime="persistent")
    journal.remove("a")
    assert journal.rows == {}


def test_who_a_record_belongs_to_is_kept(journal):
    journal.set("a", lifetime="persistent")
    journal.set("b", lifetime="persistent", shared=True)
    after = journal.again()
    after.session = after.registry.open_session("ben")
    after.remove("b")
    with pytest.raises(ManagerError, match="belongs to another capability"):
        after.remove("a")
    after.session = after.registry.open_session("ana")
    after.remove("a")


def test_what_is_under_a_persistent_record_survives_with_it(journal):
    journal.set("sem", lifetime="persistent")
    journal.set("sem.0", lifetime="parent", under="sem")
    journal.set("sem.1", under="sem")
    after = journal.again()
    assert after.registry.names(after.session, Query(None)) == ["sem", "sem.0"]
    after.remove("sem")
    assert list(after.rows) == []
    assert after.registry.names(after.session, Query(None)) == []


def test_sequences_go_on_above_all_numbers_given(journal):
    given = [journal.set("job", mode="sequential") for _ in range(3)]
    after = journal.again()
    assert after.set("job", mode="sequential") not in given
    assert after.set("other", mode="sequential") == "other0"


def test_the_order_of_entries_does_not_matter(journal):
    journal.set("sem", lifetime="persistent")
    journal.set("sem.0", lifetime="parent", under="sem")
    journal.set("job", mode="sequential")
    entries = list(journal.rows.values())
    registry = Registry()
    assert registry.restore(reversed(entries)) == []
    assert set(registry.snapshot()) == set(entries)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (RecordKept("a", "a { x: ", "", False, None), "the persistent record 'a' is lost: line 1, column 8"),
        (RecordKept("a", "b {  }", "", False, None), "the persistent record 'a' is lost: its row has the text of another"),
        (RecordKept("a", "_ { x: 1 }", "", False, None), "takes a plain name"),
        (RecordKept("ok", "ok { x: 2 }", "", False, None), "its row has the text of another"),
        (RecordKept("a", "a {  }", "", False, "gone"), "the persistent record a is lost: gone, which it ends with, is not there"),
        (RecordKept("a", "a {  }", "", False, "a"), "a, which it ends with, is not there"),
    ],
)
def test_a_damaged_journal_costs_what_is_damaged(entry, complaint):
    registry = Registry()
    complaints = registry.restore([RecordKept("ok", "ok { x: 1 }", "", False, None), entry])
    assert len(complaints) == 1
    assert complaint in complaints[0]
    assert [str(record) for record in registry.find(registry.open_session(), Query(None))] == ["ok { x: 1 }"]
