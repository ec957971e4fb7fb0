"""What a new manager makes of every way in which the ledger and the database can differ."""

import dataclasses

import pytest

from shoal.manager.adoption import never_began, sort_out
from shoal.manager.ledger import ASSIGNED, CAUSE_KILLED, CAUSE_UNBEGUN, ENDED, ENDING, FREE, RUNNING, Slot
from shoal.manager.store import Row

BOOT, OTHER = "this boot", "another boot"
EMPTY = Slot(FREE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def slot(state, id=7, key=70, cause=0):
    return dataclasses.replace(EMPTY, state=state, id=id, key=key, cause=cause, init_pid=100, pid=101)


def row(id=7, key=70, number=0, boot=BOOT):
    return Row((id, key, None, number, boot, "name", "0", b"argv", "{}", None))


def sorted_out(slots, rows, *, ends=(), ledger_boot=BOOT, whole=None):
    return sort_out(slots, rows, lambda id, key: (id, key) in ends, BOOT, ledger_boot, len(slots) if whole is None else whole)


@pytest.mark.parametrize("state", [ASSIGNED, RUNNING, ENDING, ENDED])
def test_a_slot_and_its_row_are_looked_for(state):
    left = sorted_out([slot(state)], [mine := row()])
    assert [(one.number, one.slot.state, one.row, one.was_lost, one.this_boot) for one in left.found] == [(0, state, mine, False, True)]
    assert left.free == left.done == left.unbegun == []


def test_a_free_slot_is_free():
    assert sorted_out([EMPTY, EMPTY], []).free == [0, 1]


def test_a_row_whose_slot_was_never_taken_may_have_lost_it_and_is_looked_for():
    (one,) = sorted_out([EMPTY], [row()]).found
    assert (one.slot.id, one.slot.key, one.was_lost) == (7, 70, False)
    assert never_began(one.slot)


def test_of_several_rows_with_one_slot_those_it_does_not_speak_of_never_began():
    left = sorted_out([slot(RUNNING)], [stale := row(5, 50), mine := row(), later := row(9, 90)])
    assert [one.row for one in left.found] == [mine]
    assert left.unbegun == [stale, later]
    left = sorted_out([EMPTY], [stale, mine, later])
    assert [one.row for one in left.found] == [later]
    assert left.unbegun == [stale, mine]


def test_an_end_that_was_written_down_is_not_written_again():
    assert sorted_out([slot(ENDED)], [], ends={(7, 70)}).done == [0]
    assert [one.row for one in sorted_out([slot(ENDED)], [], ends={(7, 71)}).found] == [None]


def test_a_domain_the_database_does_not_know_is_looked_for():
    (one,) = sorted_out([slot(RUNNING)], []).found
    assert (one.row, one.this_boot) == (None, True)


def test_beyond_where_the_ledger_was_cut_off_nothing_is_taken_for_free_before_it_was_looked_for():
    left = sorted_out([slot(RUNNING), EMPTY, EMPTY], [row(), row(8, 80, 2)], whole=1)
    assert [(one.slot.id, one.was_lost) for one in left.found] == [(7, False), (8, True)]
    assert left.free == [1]


@pytest.mark.parametrize("boots", [(OTHER, BOOT), (BOOT, OTHER), (OTHER, OTHER)])
def test_after_another_boot_no_number_of_a_process_means_anything(boots):
    (one,) = sorted_out([slot(RUNNING)], [row(boot=boots[0])], ledger_boot=boots[1]).found
    assert not one.this_boot
    (one,) = sorted_out([EMPTY], [row(boot=boots[0])], ledger_boot=boots[1]).found
    assert one.was_lost  # it may have run, and its slot may not have reached the disk


@pytest.mark.parametrize("damage", [{"state": 5}, {"id": 1 << 32}, {"key": 1 << 63}, {"cause": 9}, {"cause": -1}])
def test_what_no_init_can_have_written_is_damage(damage):
    bad = dataclasses.replace(slot(RUNNING), **damage)
    assert sorted_out([bad], []).done == [0]
    (one,) = sorted_out([bad], [mine := row()]).found
    assert (one.row, one.was_lost, one.slot.id) == (mine, True, 7)


def test_a_row_with_a_number_no_slot_has_is_dropped():
    assert sorted_out([EMPTY], [bad := row(number=1 << 40)]).unbegun == [bad]


@pytest.mark.parametrize(
    ("state", "cause", "expected"),
    [
        (FREE, 0, True),
        (ASSIGNED, 0, True),
        (RUNNING, 0, False),
        (ENDING, 0, False),
        (ENDING, CAUSE_UNBEGUN, True),
        (ENDED, 0, False),
        (ENDED, CAUSE_KILLED, False),
        (ENDED, CAUSE_UNBEGUN, True),
    ],
)
def test_it_never_began_if_its_program_was_not_executed(state, cause, expected):
    assert never_began(slot(state, cause=cause)) is expected
