"""The registry, with its indexes, against a naive model: after any operations both know the same, and told the same."""

from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rig.names import NAMES, Model, is_meant, meets, queries, records, values

from shoal.manager import ManagerError
from shoal.manager.names import Constraint, Query, Registry
from shoal.manager.names.store import Terms

SESSIONS = st.integers(0, 2)
KINDS = st.sampled_from([("set",), ("delete",), ("set", "delete")])


class Names(RuleBasedStateMachine):
    """Three sessions of one principal. `owner` tells with which session each record ends, `watches` who watches what."""

    PERSISTENT: ClassVar[Any] = None

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.model = Model()
        self.owner: dict[str, int | None] = {}
        self.counts: dict[str, int] = {}
        self.watches: dict[int, tuple[int, Query, tuple[str, ...], bool]] = {}
        self.subscriptions: dict[int, tuple[int, Query]] = {}
        self.journal: dict[str, Any] = {}

    @initialize()
    def begin(self) -> None:
        self.sessions = [self.registry.open_session() for _ in range(3)]

    def expected(self, kind: str, name: str, attributes: dict[str, Any]) -> list[tuple[int, int, str, str, bool]]:
        told = []
        for id, (session, query, on, persistent) in sorted(self.watches.items()):
            if kind in on and is_meant(query, name, attributes):
                told.append((session, id, kind, name, not persistent))
                if not persistent:
                    del self.watches[id]
        return told

    def done(self, changes: Any, expected: list[tuple[int, int, str, str, bool]]) -> None:
        got = [
            (session, watch, event.kind, event.record.name if event.record else "", event.removed)
            for session, watch, event in changes.events
        ]
        assert got == expected
        for entry in changes.journal:
            if entry.deletes:
                del self.journal[entry.key]
            else:
                self.journal[entry.key] = entry

    @rule(who=SESSIONS, record=records, mode=st.sampled_from(["replace", "replace", "new", "sequential"]), persistent=st.booleans())
    def set(self, who, record, mode, persistent):
        name, attributes = record.name, dict(record.attributes)
        if mode == "sequential":
            while True:
                number = self.counts.get(record.name, 0)
                self.counts[record.name] = number + 1
                name = f"{record.name}{number}"
                if name not in self.model.records:
                    break
        terms = Terms(mode=mode, lifetime="persistent" if persistent else "session")
        if mode == "new" and name in self.model.records:
            with pytest.raises(ManagerError) as caught:
                self.registry.set(self.sessions[who], Query.of(record), terms)
            assert caught.value.code == "OCT_ERR_CONSTRAINT_MISMATCH"
            return
        stored, changes = self.registry.set(self.sessions[who], Query.of(record), terms)
        assert (stored.name, stored.attributes) == (name, record.attributes)
        self.model.records[name] = attributes
        self.owner[name] = None if persistent else self.sessions[who]
        self.done(changes, self.expected("set", name, attributes))

    @rule(who=SESSIONS, name=st.sampled_from(NAMES), value=values, condition=queries)
    def compare_and_set(self, who, name, value, condition):
        conditions = [each for each in condition.constraints if each.operator != ":"]
        query = Query(name, (*conditions, Constraint("k", ":", value)))
        have = self.model.records.get(name)
        fits = not conditions or (have is not None and all(meets(each, have) for each in conditions))
        if not fits:
            with pytest.raises(ManagerError) as caught:
                self.registry.set(self.sessions[who], query)
            assert caught.value.code == "OCT_ERR_CONSTRAINT_MISMATCH"
            return
        _, changes = self.registry.set(self.sessions[who], query)
        self.model.records[name] = {"k": value}
        self.owner[name] = self.sessions[who]
        self.done(changes, self.expected("set", name, {"k": value}))

    @rule(who=SESSIONS, query=queries)
    def remove(self, who, query):
        if not isinstance(query.name, str) or not self.model.matching(query):
            with pytest.raises(ManagerError) as caught:
                self.registry.remove(self.sessions[who], query)
            assert caught.value.code == ("OCT_ERR_NO_RECORD" if isinstance(query.name, str) else "OCT_ERR_NO_RECORD_NAME")
            return
        _, changes = self.registry.remove(self.sessions[who], query)
        attributes = self.model.records.pop(query.name)
        del self.owner[query.name]
        self.done(changes, self.expected("delete", query.name, attributes))

    @precondition(lambda self: self.model.records)
    @rule(who=SESSIONS, data=st.data())
    def remove_one(self, who, data):
        self.remove(who, Query(data.draw(st.sampled_from(sorted(self.model.records)))))

    @rule(query=queries)
    def look(self, query):
        matching = self.model.matching(query)
        session = self.sessions[0]
        assert self.registry.names(session, query) == matching
        assert self.registry.exists(session, query) is bool(matching)
        if matching:
            assert self.registry.get(session, query)[0].name == matching[0]
        else:
            with pytest.raises(ManagerError) as caught:
                self.registry.get(session, query)
            assert caught.value.code == "OCT_ERR_NO_RECORD"

    @rule(
        who=SESSIONS,
        query=queries,
        on=KINDS,
        persistent=st.booleans(),
        when=st.sampled_from(["always", "present", "absent"]),
        existing=st.booleans(),
    )
    def watch(self, who, query, on, persistent, when, existing):
        matching = self.model.matching(query)
        id, present = self.registry.watch(self.sessions[who], query, on=on, persistent=persistent, when=when, existing=existing)
        assert (id is not None) == (when == "always" or (when == "present") == bool(matching))
        assert [event.record.name for event in present] == (matching if existing else [] if when == "always" else matching[:1])
        if id is not None:
            self.watches[id] = (self.sessions[who], query, on, persistent)

    @precondition(lambda self: self.watches)
    @rule(data=st.data())
    def unwatch(self, data):
        id = data.draw(st.sampled_from(sorted(self.watches)))
        session, *_ = self.watches.pop(id)
        self.done(self.registry.unwatch(session, id), [(session, id, "removed", "", True)])

    @rule(who=SESSIONS, query=queries)
    def subscribe(self, who, query):
        self.subscriptions[self.registry.subscribe(self.sessions[who], query)] = (self.sessions[who], query)

    @rule(who=SESSIONS, record=records)
    def publish(self, who, record):
        reached, changes = self.registry.publish(self.sessions[who], Query.of(record))
        expected = [
            (session, id, "publish", record.name, False)
            for id, (session, query) in sorted(self.subscriptions.items())
            if is_meant(query, record.name, dict(record.attributes))
        ]
        assert reached == len(expected)
        self.done(changes, expected)

    @rule(who=SESSIONS)
    def end_session(self, who):
        ended = self.sessions[who]
        changes = self.registry.close_session(ended)
        self.watches = {id: watch for id, watch in self.watches.items() if watch[0] != ended}
        self.subscriptions = {id: each for id, each in self.subscriptions.items() if each[0] != ended}
        gone = [event.record.name for _, _, event in changes.events]
        names = [name for name, owner in self.owner.items() if owner == ended]
        expected = []
        for name in sorted(names, key=lambda name: gone.index(name) if name in gone else -1):
            attributes = self.model.records.pop(name)
            del self.owner[name]
            expected += self.expected("delete", name, attributes)
        self.done(changes, expected)
        self.sessions[who] = self.registry.open_session()

    @rule()
    def restart(self):
        """What the journal and the snapshot say is the same, and is what was persistent."""
        again, other = Registry(), Registry()
        assert again.restore(reversed(list(self.journal.values()))) == []
        assert other.restore(self.registry.snapshot()) == []
        everything = Query(None)
        kept = self.model.matching(everything)
        kept = [name for name in kept if self.owner[name] is None]
        for registry in (again, other):
            session = registry.open_session()
            assert registry.names(session, everything) == kept
            for base, count in self.counts.items():
                assert int(registry.set(session, Query(base), Terms(mode="sequential"))[0].name.removeprefix(base)) >= count

    @invariant()
    def knows_the_same(self):
        if not hasattr(self, "sessions"):
            return
        everything = Query(None)
        found = self.registry.find(self.sessions[0], everything)
        assert [record.name for record in found] == self.model.matching(everything)
        assert all(record.attributes == self.model.records[record.name] for record in found)
        for session in self.sessions:
            assert set(self.registry._sessions[session].records) == {name for name, owner in self.owner.items() if owner == session}

    def teardown(self) -> None:
        """Nothing is left of ended sessions: no account, no place in an index."""
        if not hasattr(self, "sessions"):
            return
        for session in self.sessions:
            self.registry.close_session(session)
        index = self.registry._store.index
        persistent = sum(stored.persistent for stored in index)
        assert len(index) == len(index._ordered) == persistent
        assert (len(self.registry._watches), len(self.registry._subscriptions)) == (0, 0)
        assert (self.registry._watches._places, self.registry._watches._prefix_lengths, self.registry._watches.weight) == ({}, {}, 0)
        for stored in list(index):
            self.registry._store.drop(stored, _Ignored())
        assert index._attributes == {}
        everybody = self.registry._accounts._all
        assert (everybody.records, everybody.memory, everybody.values) == (0, 0, 0)
        assert self.registry._accounts._principals == {}


class _Ignored:
    def __init__(self) -> None:
        self.journal: list[Any] = []
        self.released: list[Any] = []


TestNames = Names.TestCase
TestNames.settings = settings(max_examples=100, stateful_step_count=40)
