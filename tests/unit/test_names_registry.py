"""The operations on records: what each does, and when it is refused. Source: spec 5.4, 5.11; corners 20, 23 and 24 of its section 11."""

import pytest
from rig.names import Closing, natural

from shoal.manager import ManagerError
from shoal.manager.names import Registry
from shoal.manager.names.parse import parse
from shoal.manager.names.store import Terms

SECRET = "idcapid." + "0123456789abcdef" * 2


class Names:
    """One session of a registry, spoken to in text. `changes` are those of the last operation."""

    def __init__(self, registry, **session):
        self.registry = registry
        self.session = registry.open_session(**session)

    def set(self, text, value=None, **terms):
        record, self.changes = self.registry.set(self.session, parse(text), Terms(**terms), value)
        return str(record)

    def get(self, text, **options):
        return str(self.registry.get(self.session, parse(text), **options)[0])

    def value(self, text):
        return self.registry.get(self.session, parse(text))[1]

    def names(self, text):
        return self.registry.names(self.session, parse(text))

    def exists(self, text):
        return self.registry.exists(self.session, parse(text))

    def remove(self, text):
        record, self.changes = self.registry.remove(self.session, parse(text))
        return str(record)

    def close(self):
        self.changes = self.registry.close_session(self.session)


@pytest.fixture
def registry():
    return Registry()


@pytest.fixture
def names(registry):
    return Names(registry)


def refused(code, message, act, *arguments, **options):
    with pytest.raises(ManagerError, match=message) as caught:
        act(*arguments, **options)
    assert caught.value.code == code


# --- set, get, remove -------------------------------------------------------------------------------------


def test_a_record_that_is_set_is_got(names):
    assert names.set("job7 { prio: 3, owner: 'ana' }") == "job7 { owner: 'ana', prio: 3 }"
    assert names.get("job7") == names.get("_ { prio > 2 }") == names.get("r'^job'") == "job7 { owner: 'ana', prio: 3 }"
    assert names.exists("job7")
    assert not names.exists("job7 { prio: 4 }")


def test_setting_replaces_the_whole_record(names):
    names.set("a { x: 1, y: 2 }")
    names.set("a { z: 3 }")
    assert names.get("a") == "a { z: 3 }"
    assert names.names("_ { x: _ }") == []


def test_what_does_not_match_is_no_record(names):
    names.set("a { x: 1 }")
    for query in ("b", "a { x: 2 }", "_ { y: _ }", "r'^b'"):
        refused("OCT_ERR_NO_RECORD", "nothing matches", names.get, query)
    assert names.names("r'^b'") == []


def test_of_several_matches_the_first_in_natural_order_is_got(names):
    for name in ("a10", "a2", "b1", "a1x"):
        names.set(f"{name} {{ x: 1 }}")
    assert names.get("_") == names.get("_ { x: 1 }") == "a1x { x: 1 }"
    assert names.get("r'^a' { x: _ }") == "a1x { x: 1 }"
    assert names.names("_ { x: 1 }") == ["a1x", "a2", "a10", "b1"]
    refused("OCT_ERR_NOT_UNIQUE", "4 records match '_ {  }': a1x, a2, a10, ...", names.get, "_", unique=True)
    assert names.get("a2", unique=True) == "a2 { x: 1 }"
    refused("OCT_ERR_NO_RECORD", "nothing matches", names.get, "c", unique=True)


def test_the_first_match_is_found_by_the_index_too(names):
    for number in range(50):
        names.set(f"x{number} {{ n: {number} }}")
    for number in (30, 20, 10, 9, 40):
        names.set(f"x{number} {{ rare: true }}")
    names.set("y { rare: 1 }")
    assert names.get("_ { rare: true }") == names.get("_ { rare: _ }") == "x9 { rare: true }"
    assert names.get("_ { rare: 1 }") == "y { rare: 1 }"
    assert names.names("_ { rare: _ }") == ["x9", "x10", "x20", "x30", "x40", "y"]
    assert names.names("r'^x[34]' { rare: true }") == ["x30", "x40"]


ENDS = ["", "0", "01", "1", "1x1", "1x12", "2", "10", "12", "19x", "123", "300", "0012", "x", "x1"]
BEGINNINGS = ["j", *(f"job{end}" for end in ENDS), "k"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("prefix", ["job1", "job", "job0", "job12", "job01", "job3", "job4", "jobx", "jobx1", "j", "job1x", "z", "job1x1"])
def test_names_are_found_by_how_they_begin(names, prefix):
    for name in BEGINNINGS:
        names.set(name)
    assert names.names("_") == sorted(BEGINNINGS, key=natural)
    assert names.names(f"r'^{prefix}'") == sorted((name for name in BEGINNINGS if name.startswith(prefix)), key=natural)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_true_and_one_are_not_the_same_value(names, order):
    for name in order:
        names.set({"a": "a { n: true }", "b": "b { n: 1 }"}[name])
    names.set("c { n: 1.0 }")
    assert names.names("_ { n >= 0 }") == names.names("_ { n: 1 }") == names.names("_ { n < 1.5 }") == ["b", "c"]
    assert names.names("_ { n: true }") == names.names("_ { n != false }") == ["a"]


def test_a_removed_record_is_gone_and_may_be_set_again(names):
    names.set("a { x: 1 }")
    assert names.remove("a") == "a { x: 1 }"
    refused("OCT_ERR_NO_RECORD", "nothing matches 'a", names.get, "a")
    refused("OCT_ERR_NO_RECORD", "nothing matches 'a", names.remove, "a")
    names.set("a { x: 2 }")
    assert names.get("a") == "a { x: 2 }"


def test_removing_can_be_conditional(names):
    names.set("a { x: 1 }")
    refused("OCT_ERR_NO_RECORD", "nothing matches", names.remove, "a { x > 1 }")
    names.remove("a { x >= 1 }")
    assert not names.exists("a")


def test_set_and_remove_take_a_plain_name(names):
    names.set("a")
    for query in ("_", "r'^a'"):
        refused("OCT_ERR_NO_RECORD_NAME", "takes a plain name", names.set, query)
        refused("OCT_ERR_NO_RECORD_NAME", "takes a plain name", names.remove, query)
    assert names.exists("a")


def test_compare_and_set(names):
    refused("OCT_ERR_CONSTRAINT_MISMATCH", "there is no such record", names.set, "a { x: 1, x == 0 }")
    names.set("a { x: 0, owner: 'ana' }")
    assert names.set("a { x: 1, x == 0, owner: r'^a' }") == "a { x: 1 }"
    refused("OCT_ERR_CONSTRAINT_MISMATCH", "a was not replaced: it is 'a { x: 1 }'", names.set, "a { x: 2, x == 0 }")
    assert names.get("a") == "a { x: 1 }"


def test_a_new_record_never_replaces(names):
    names.set("a { x: 1 }", mode="new")
    refused("OCT_ERR_CONSTRAINT_MISMATCH", "there is a record a", names.set, "a { x: 2 }", mode="new")
    assert names.get("a") == "a { x: 1 }"


def test_sequential_names_count_by_name_and_never_come_twice(names):
    assert [names.set("job {  }", mode="sequential") for _ in range(3)] == ["job0 {  }", "job1 {  }", "job2 {  }"]
    assert names.set("lock_ { lock: x }", mode="sequential") == "lock_0 { lock: x }"
    names.remove("job2")
    assert names.set("job", mode="sequential") == "job3 {  }"
    names.set("job5")
    assert [names.set("job", mode="sequential") for _ in range(2)] == ["job4 {  }", "job6 {  }"]
    refused("OCT_ERR_CONSTRAINT_MISMATCH", "no such record", names.set, "job { x > 1 }", mode="sequential")
    assert names.set("job", mode="sequential") == "job7 {  }"


def test_a_sequential_name_past_the_bound_is_refused_and_uses_no_number(names):
    refused("OCT_ERR_QUERY_SIZE", "255 bytes", names.set, "a" * 255, mode="sequential")
    assert not names.exists("_")


# --- sessions and owners ----------------------------------------------------------------------------------


def test_a_record_ends_with_the_session_that_set_it_last(registry, names):
    other = Names(registry)
    names.set("a")
    names.set("b")
    other.set("b")
    names.close()
    assert other.names("_") == ["b"]
    other.close()
    assert Names(registry).names("_") == []


def test_a_persistent_record_outlives_its_session(registry, names):
    names.set("a", lifetime="persistent")
    names.close()
    other = Names(registry)
    assert other.names("_") == ["a"]
    other.set("a { x: 1 }")
    other.close()
    assert Names(registry).names("_") == []


def test_an_ended_session_can_do_nothing_and_ends_only_once(registry, names):
    names.close()
    for act in (
        lambda: names.set("a"),
        lambda: names.get("_"),
        lambda: names.names("_"),
        lambda: names.remove("a"),
        lambda: names.exists("a"),
    ):
        refused("LIB_ERR_NAMESERVICE_NOT_BOUND", "has ended", act)
    names.close()
    assert (names.changes.journal, names.changes.events, names.changes.released) == ([], [], [])
    assert registry.open_session() == 2  # numbers are not used again


def test_a_session_with_many_records_ends_in_steps(registry, names):
    other = Names(registry)
    registry.watch(names.session, parse("_"))
    for number in range(10):
        names.set(f"a{number}")
    names.set("b", under="a5")
    told, _ = registry.watch(other.session, parse("_"))
    gone = []
    while not gone or registry.is_ending(names.session):
        changes = registry.close_session(names.session, most=4)
        assert {watch for _, watch, _ in changes.events} == {told}
        gone.append([event.record.name for _, _, event in changes.events])
        refused("LIB_ERR_NAMESERVICE_NOT_BOUND", "has ended", names.set, "c")
    assert gone == [["a0", "a1", "a2", "a3"], ["a4", "a5", "b", "a6", "a7"], ["a8", "a9"]]
    assert not registry.is_ending(other.session)
    assert other.names("_") == []


def test_a_name_belongs_to_the_capability_that_set_it(registry):
    ana, also_ana, ben = (Names(registry, principal=who) for who in ("ana", "ana", "ben"))
    manager = Names(registry, principal="root", privileged=True)
    ana.set("web { port: 80 }")
    assert ben.get("web") == "web { port: 80 }"
    refused("OCT_ERR_NOT_OWNER", "web belongs to another capability", ben.set, "web { port: 666 }")
    refused("OCT_ERR_NOT_OWNER", "web belongs to another capability", ben.remove, "web")
    also_ana.set("web { port: 81 }")
    manager.set("web { port: 82 }")
    refused("OCT_ERR_NOT_OWNER", "web belongs to another capability", ana.remove, "web")
    manager.remove("web")
    ben.set("web")


def test_a_shared_record_may_be_replaced_and_removed_by_others(registry):
    ana, ben = Names(registry, principal="ana"), Names(registry, principal="ben")
    ana.set("unit", shared=True)
    ben.remove("unit")
    ana.set("unit", shared=True)
    ben.set("unit { x: 1 }")
    refused("OCT_ERR_NOT_OWNER", "belongs to another", ana.remove, "unit")


@pytest.mark.parametrize("name", ["proc_mgmt", "proc_mgmt.3.ready", "spawn.0", "spawn.node7.0", "arrakis.0.hyper", "all_spawnds_up"])
def test_a_name_of_the_manager_takes_its_capability(registry, names, name):
    refused("PROC_MGMT_ERR_NOT_MONITOR", f"{name} stands for a part of the manager", names.set, name)
    refused("PROC_MGMT_ERR_NOT_MONITOR", f"{name} stands for a part of the manager", names.remove, name)
    manager = Names(registry, privileged=True)
    manager.set(name)
    assert names.exists(name)
    refused("PROC_MGMT_ERR_NOT_MONITOR", "stands for", names.remove, name)


def test_a_sequence_does_not_lead_to_a_reserved_name(names):
    refused("PROC_MGMT_ERR_NOT_MONITOR", "spawn.0 stands for", names.set, "spawn.", mode="sequential")


def test_a_record_by_id_capability_is_found_by_nobody_who_only_guesses(registry, names):
    names.set(f"{SECRET} {{ tty: 'pts/3' }}")
    other = Names(registry, principal="other")
    assert other.names("_") == other.names("r'^idcapid'") == other.names("_ { tty: _ }") == []
    assert other.get(SECRET) == f"{SECRET} {{ tty: 'pts/3' }}"
    other.set(f"{SECRET} {{ tty: 'pts/4' }}")  # knowing the id is what it takes
    other.remove(SECRET)
    for name in ("idcapid.1", "idcapid.xyz", "idcapid.", SECRET.upper().replace("IDCAPID", "idcapid")):
        refused("OCT_ERR_IDCAP_INVOKE", "cannot be guessed", names.set, name)
        refused("OCT_ERR_IDCAP_INVOKE", "cannot be guessed", names.get, name)


# --- records under others ---------------------------------------------------------------------------------


def test_a_record_under_another_ends_with_it(registry, names):
    other = Names(registry)
    names.set("sem")
    other.set("sem.0", lifetime="parent", under="sem")
    other.set("sem.1", under="sem")
    names.set("sem.2", under="sem")
    other.close()
    assert names.names("_") == ["sem", "sem.0", "sem.2"]
    names.remove("sem.2")
    names.set("sem { x: 1 }")  # replacing the parent keeps what is under it
    names.remove("sem")
    assert names.names("_") == []


def test_what_is_under_nothing_is_refused(names):
    refused("OCT_ERR_NO_RECORD", "there is no record 'sem' to be under", names.set, "sem.0", under="sem")
    refused("OCT_ERR_INVALID_FORMAT", "has to be under one", names.set, "sem.0", lifetime="parent")
    names.set("a")
    refused("OCT_ERR_INVALID_FORMAT", "as persistent as that", names.set, "b", lifetime="persistent", under="a")
    names.set("b", under="a")
    refused("OCT_ERR_INVALID_FORMAT", "one level is all there is", names.set, "c", under="b")
    refused("OCT_ERR_INVALID_FORMAT", "one level is all there is", names.set, "a", under="b")
    names.set("d")
    refused("OCT_ERR_INVALID_FORMAT", "so it cannot be under d", names.set, "a", under="d")
    refused("OCT_ERR_INVALID_FORMAT", "whether it is persistent stays", names.set, "a", lifetime="persistent")
    assert names.names("_") == ["a", "b", "d"]


def test_a_record_cannot_be_under_itself(names):
    names.set("a")
    refused("OCT_ERR_INVALID_FORMAT", "a cannot be under itself", names.set, "a", under="a")


def test_terms_that_mean_nothing_are_refused(names):
    refused("OCT_ERR_INVALID_FORMAT", "'often' is no mode", names.set, "a", mode="often")
    refused("OCT_ERR_INVALID_FORMAT", "'ever' no lifetime", names.set, "a", lifetime="ever")


# --- values -----------------------------------------------------------------------------------------------


def test_a_value_is_the_registrys_until_the_record_is_replaced_removed_or_ends(registry, names):
    one, two, three = Closing(), Closing(), Closing()
    names.set("a", one)
    assert names.value("a") is one
    assert names.changes.released == []
    names.set("a", two)
    assert names.changes.released == [one]
    names.set("a")
    assert names.changes.released == [two]
    assert names.value("a") is None
    names.set("b", three)
    names.close()
    assert names.changes.released == [three]
    assert [each.closed for each in (one, two, three)] == [0, 0, 0]  # closing is the caller's


def test_a_refused_value_stays_the_callers(names):
    names.set("a")
    value = Closing()
    refused("OCT_ERR_CONSTRAINT_MISMATCH", "was to be new", names.set, "a", value, mode="new")
    refused("OCT_ERR_INVALID_FORMAT", "cannot outlive the manager", names.set, "b", value, lifetime="persistent")
    names.set("p", lifetime="persistent")
    refused("OCT_ERR_INVALID_FORMAT", "cannot outlive the manager", names.set, "b", value, lifetime="parent", under="p")
    names.close()
    assert names.changes.released == []


# --- the capability store ---------------------------------------------------------------------------------


def test_the_capability_store(registry):
    ana, ben = registry.open_session("ana"), registry.open_session("ben")
    one, two, kept = Closing(), Closing(), Closing()
    assert registry.put_capability(ana, "Key of any text!", one) == "Key of any text!"
    assert registry.get_capability(ana, "Key of any text!") is one
    refused("OCT_ERR_CAP_OVERWRITE", "there is a capability under 'Key of", registry.put_capability, ana, "Key of any text!", two)
    refused("OCT_ERR_CAP_NAME_UNKNOWN", "no capability under 'x'", registry.get_capability, ana, "x")
    refused("OCT_ERR_CAP_NAME_UNKNOWN", "no capability under 'Key", registry.get_capability, ben, "Key of any text!")
    refused("OCT_ERR_CAP_NAME_UNKNOWN", "no capability under 'Key", registry.remove_capability, ben, "Key of any text!")
    assert [registry.put_capability(ana, "n", Closing(), numbered=True, shared=True) for _ in range(2)] == ["n0", "n1"]
    registry.get_capability(ben, "n0")
    refused("OCT_ERR_NOT_OWNER", "only that may remove it", registry.remove_capability, ben, "n0")
    assert registry.remove_capability(ana, "Key of any text!").released == [one]
    registry.put_capability(ana, "kept", kept, keep=True)
    assert len(registry.close_session(ana).released) == 2
    ana = registry.open_session("ana")
    assert registry.remove_capability(ana, "kept").released == [kept]
    refused("OCT_ERR_QUERY_SIZE", "1 to 255 bytes", registry.put_capability, ana, "", two)
    refused("OCT_ERR_QUERY_SIZE", "1 to 255 bytes", registry.put_capability, ana, "é" * 128, two)
    refused("OCT_ERR_PARSER_FAIL", "surrogate", registry.put_capability, ana, "\ud800", two)
