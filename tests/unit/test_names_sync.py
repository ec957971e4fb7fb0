"""Locks, barriers and semaphores, between threads with a session each. Source: spec 5.8, 5.9, 5.10."""

import threading

import pytest
from rig import own_names
from rig.names import Thread, service
from rig.own_names import refused

from shoal.handles.deadline import Deadline
from shoal.manager import ManagerError, ManagerTimeoutError
from shoal.manager.names import Barrier, Query

local, names = own_names.local, own_names.names


def left(local):
    """Records and watches that are still there."""
    looking = service(local)
    found = looking.names("_")
    looking.close()
    return found, len(local._registry._watches), dict(local._watchings)


NOTHING = ([], 0, {})


# --- locks ------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_at_a_time(local):
    holders, most = [], []

    def work():
        names = service(local)
        for _ in range(50):
            with names.lock("one"):
                holders.append(1)
                most.append(len(holders))
                holders.pop()

    for thread in [Thread(work) for _ in range(6)]:
        thread.result()
    assert len(most) == 300
    assert max(most) == 1
    assert left(local) == NOTHING


def test_who_waits_for_a_lock_gets_it_in_the_order_of_asking(local, names):
    order = []

    def work(number):
        with service(local).lock("one"):
            order.append(number)

    lock = names.lock("one")
    lock.acquire()
    threads = []
    for number in range(8):
        threads.append(Thread(work, number))
        local._watchings.until_installed()
    lock.release()
    for thread in threads:
        thread.result()
    assert order == list(range(8))


def test_a_lock_is_two_records_a_holder_and_a_waiter(local, names):
    with names.lock("one"):
        waiting = Thread(service(local).lock("one").acquire)
        local._watchings.until_installed()
        assert [str(names.get(name)) for name in names.names("_ { lock: 'one' }")] == ["one_0 { lock: 'one' }", "one_1 { lock: 'one' }"]
    waiting.result()


def test_when_a_lock_is_let_go_one_waiter_is_woken(local, names):
    lock = names.lock("one")
    lock.acquire()
    watch = names.watch("_", on=["delete"])
    threads = []
    for _ in range(5):
        threads.append(Thread(service(local).lock("one").acquire))
        local._watchings.until_installed()
    before = dict(local._watchings)
    lock.release()
    threads[0].result()
    assert watch.next(timeout=0).record.name == "one_0"
    assert sum(id not in local._watchings for id in before) == 1
    assert [thread.is_waiting for thread in threads] == [False, True, True, True, True]


def test_a_lock_dies_with_its_session(local, names):
    holder, first, second = service(local), service(local), service(local)
    holder.lock("one").acquire()
    waiting = Thread(first.lock("one").acquire)
    local._watchings.until_installed()
    next_one = Thread(second.lock("one").acquire)
    local._watchings.until_installed()
    first.close()  # a waiter dies: the one behind it takes its place, and does not get the lock for that
    refused("LIB_ERR_NAMESERVICE_NOT_BOUND", waiting.result)
    local._watchings.until_installed()
    assert next_one.is_waiting
    holder.close()
    next_one.result()
    assert names.names("_ { lock: 'one' }") == ["one_2"]


def test_trying_and_waiting_a_while(local, names):
    lock, other = names.lock("one"), service(local).lock("one")
    assert lock.try_acquire()
    assert not other.try_acquire()
    with pytest.raises(ManagerTimeoutError, match="the lock one was not free in the time given; 1 are first in line"):
        other.acquire(timeout=0.01)
    with pytest.raises(ManagerTimeoutError), service(local).lock("one", timeout="10ms"):
        pytest.fail("two hold it")
    lock.release()
    assert other.try_acquire()
    other.release()
    assert left(local) == NOTHING


def test_each_holder_has_a_higher_number(names):
    lock = names.lock("one")
    numbers = []
    for _ in range(3):
        lock.acquire()
        numbers.append(lock.number)
        lock.release()
    assert numbers == [0, 1, 2]
    assert lock.number is None


def test_a_lock_object_is_for_one_holder(names):
    lock = names.lock("one")
    with pytest.raises(RuntimeError, match="is not held through this object"):
        lock.release()
    lock.acquire()
    with pytest.raises(RuntimeError, match=r"another holder makes its own with names\.lock"):
        lock.acquire()
    lock.release()


def test_a_lock_that_was_lost_is_told_when_it_is_released(local, names):
    lock = names.lock("one")
    lock.acquire()
    names.remove("one_0")
    with pytest.raises(ManagerError, match="the lock one was lost") as caught:
        lock.release()
    assert caught.value.code == "OCT_ERR_NO_RECORD"
    lock.acquire()
    names.close()
    refused("OCT_ERR_NO_RECORD", lock.release)


def test_a_waiter_whose_place_is_taken_away_is_told(local, names):
    other = service(local)
    lock = names.lock("one")
    lock.acquire()
    waiting = Thread(other.lock("one").acquire)
    local._watchings.until_installed()
    names.remove("one_1")
    lock.release()
    refused("OCT_ERR_NO_RECORD", waiting.result)


def test_other_records_with_the_same_attribute_are_not_in_line(names):
    for name in ("a", "one_", "one_x", "one_1x", "onf_0"):
        names.register(f"{name} {{ lock: 'one' }}")
    assert names.lock("one").try_acquire()


@pytest.mark.parametrize("name", ["", "One", "a b", "_", "true"])
def test_the_name_of_a_lock_or_barrier_is_an_identifier(names, name):
    refused("OCT_ERR_PARSER_FAIL", names.lock, name)
    refused("OCT_ERR_PARSER_FAIL", names.barrier, name, 2)


def test_an_interrupted_wait_leaves_nothing(local, names, monkeypatch):
    lock, other = names.lock("one"), service(local).lock("one")
    lock.acquire()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shoal.manager.names.local.LocalWatching.next", interrupt)
        with pytest.raises(KeyboardInterrupt):
            other.acquire()
    lock.release()
    assert left(local) == NOTHING


# --- semaphores -------------------------------------------------------------------------------------------


def test_a_semaphore_of_one(names):
    semaphore = names.semaphore(1)
    assert semaphore.id == 1
    assert semaphore.trywait()
    assert not semaphore.trywait()
    semaphore.post()
    semaphore.wait()
    with pytest.raises(ManagerTimeoutError, match="semaphore 1 had no unit in the time given"):
        semaphore.wait(timeout=0.01)
    semaphore.post()
    with semaphore:
        assert not semaphore.trywait()
    assert semaphore.trywait()
    assert names.semaphore(0).id == 2


def test_one_record_is_one_unit(names):
    semaphore = names.semaphore(2)
    assert names.names(f"_ {{ sem: {semaphore.id} }}") == ["sem.1.0", "sem.1.1"]
    semaphore.wait()
    assert names.names(f"_ {{ sem: {semaphore.id} }}") == ["sem.1.1"]


def test_no_more_than_the_units_are_taken_at_once(local, names):
    semaphore = names.semaphore(3)
    inside, most, lock = 0, 0, threading.Lock()

    def work():
        nonlocal inside, most
        mine = service(local).semaphore(id=semaphore.id)
        for _ in range(20):
            with mine:
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    for thread in [Thread(work) for _ in range(8)]:
        thread.result()
    assert 1 <= most <= 3
    assert len(names.names(f"_ {{ sem: {semaphore.id} }}")) == 3
    semaphore.destroy()
    assert left(local) == NOTHING


def test_who_waits_for_a_unit_gets_it_in_the_order_of_asking(local, names):
    semaphore = names.semaphore(0)
    order = []

    def work(number):
        service(local).semaphore(id=semaphore.id).wait()
        order.append(number)

    threads = []
    for number in range(6):
        threads.append(Thread(work, number))
        local._watchings.until_installed()
    assert not semaphore.trywait()
    for number, thread in enumerate(threads):
        semaphore.post()
        assert not semaphore.trywait()  # a unit somebody waits for is not for who just tries
        thread.result()
        assert order == list(range(number + 1))


def test_a_waiter_that_dies_takes_no_unit(local, names):
    semaphore = names.semaphore(0)
    dying = service(local)
    first = Thread(dying.semaphore(id=semaphore.id).wait)
    local._watchings.until_installed()
    second = Thread(service(local).semaphore(id=semaphore.id).wait)
    local._watchings.until_installed()
    dying.close()
    refused("LIB_ERR_NAMESERVICE_NOT_BOUND", first.result)
    semaphore.post()
    second.result()
    assert not semaphore.trywait()


def test_destroying_a_semaphore_ends_all_waits(local, names):
    semaphore = names.semaphore(0)
    threads = []
    for _ in range(3):
        threads.append(Thread(service(local).semaphore(id=semaphore.id).wait))
        local._watchings.until_installed()
    semaphore.destroy()
    for thread in threads:
        refused("OCT_ERR_NO_RECORD", thread.result)
    for act in (semaphore.post, semaphore.wait, semaphore.trywait, semaphore.destroy):
        refused("OCT_ERR_NO_RECORD", act)
    assert left(local) == NOTHING


def test_a_semaphore_ends_with_the_session_that_made_it_unless_persistent(local, names):
    maker = service(local)
    one, two = maker.semaphore(1), maker.semaphore(1, persistent=True)
    mine = names.semaphore(id=one.id)
    mine.post()
    maker.close()
    refused("OCT_ERR_NO_RECORD", mine.post)
    assert names.names(f"_ {{ sem: {one.id} }}") == []
    assert names.semaphore(id=two.id).trywait()


def test_a_unit_outlives_who_posted_it(local, names):
    semaphore = names.semaphore(0)
    poster = service(local)
    poster.semaphore(id=semaphore.id).post()
    poster.close()
    assert semaphore.trywait()


def test_a_semaphore_is_used_by_other_capabilities_but_destroyed_by_its_own(local):
    ana, ben = service(local, principal="ana"), service(local, principal="ben")
    semaphore = ana.semaphore(1)
    shared = ben.semaphore(id=semaphore.id)
    shared.wait()
    shared.post()
    semaphore.wait()
    refused("OCT_ERR_NOT_OWNER", shared.destroy)


def test_ids_are_never_used_again(names):
    one = names.semaphore(0)
    one.destroy()
    assert names.semaphore(0).id > one.id


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((), {}, TypeError),
        ((1,), {"id": 1}, TypeError),
        ((-1,), {}, ValueError),
        ((True,), {}, ValueError),
        ((), {"id": 0}, ValueError),
        (("1",), {}, ValueError),
    ],
)
def test_a_semaphore_that_cannot_be_meant_is_refused(local, names, arguments, options, error):
    with pytest.raises(error):
        names.semaphore(*arguments, **options)
    assert left(local) == NOTHING


# --- barriers ---------------------------------------------------------------------------------------------


def test_nobody_begins_before_all_are_there_and_nobody_goes_before_all_are_done(local):
    parties, rounds = 5, 10
    entered = [0] * rounds
    done = [0] * rounds
    lock = threading.Lock()

    def work():
        barrier = service(local).barrier("start", parties)
        for round in range(rounds):
            with lock:
                entered[round] += 1
            barrier.enter(timeout=60)
            assert entered[round] == parties
            with lock:
                done[round] += 1
            barrier.leave(timeout=60)
            assert done[round] == parties

    for thread in [Thread(work) for _ in range(parties)]:
        thread.result()
    assert entered == done == [parties] * rounds
    assert left(local) == NOTHING


def test_more_participants_than_parties_pass_too(local):
    all_inside = threading.Barrier(7)

    def work():
        with service(local).barrier("start", 3):
            all_inside.wait(timeout=60)

    for thread in [Thread(work) for _ in range(7)]:
        thread.result()
    assert left(local) == NOTHING


def test_who_comes_while_it_is_open_goes_in_however_few_are_left_inside(local, names):
    staying, going = (service(local).barrier("start", 2) for _ in range(2))
    entering = Thread(staying.enter)
    local._watchings.until_installed()
    going.enter(timeout=60)
    entering.result()
    leaving = Thread(going.leave)
    local._watchings.until_installed(2)
    names.barrier("start", 9).enter(timeout=60)
    assert leaving.is_waiting


def test_who_leaves_does_not_wait_for_one_that_has_come_again(local):
    """Between giving up the own place and looking who else is there, another can have left and come back."""

    class Slow:
        def __init__(self, operations):
            self._operations = operations

        def __getattr__(self, name):
            return getattr(self._operations, name)

        def remove(self, query):
            self._operations.remove(query)
            come_again.wait(timeout=60)

    come_again = threading.Event()
    first, slow = service(local).barrier("start", 2), Barrier(Slow(local.connect()), "start", 2)
    entering = Thread(first.enter)
    local._watchings.until_installed()
    slow.enter(timeout=60)
    entering.result()

    def leave_and_come_again():
        first.leave(timeout=60)
        opened = local.connect().watch(Query("start_2"))
        again = Thread(first.enter)
        assert opened.next(Deadline(60)).kind == "set"
        come_again.set()
        return again

    leaving = Thread(leave_and_come_again)
    local._watchings.until_installed(2)
    slow.leave(timeout=60)
    again = leaving.result()
    slow.enter(timeout=60)
    again.result()


def test_a_participant_that_dies_before_the_start_is_not_counted(local, names):
    dying = service(local)
    lost = Thread(dying.barrier("start", 3).enter)
    local._watchings.until_installed()
    waiting = Thread(service(local).barrier("start", 3).enter)
    local._watchings.until_installed()
    dying.close()
    refused("LIB_ERR_NAMESERVICE_NOT_BOUND", lost.result)
    another = Thread(service(local).barrier("start", 3).enter)
    local._watchings.until_installed()
    assert waiting.is_waiting
    assert another.is_waiting
    names.barrier("start", 3).enter(timeout=60)
    waiting.result()
    another.result()


def test_nobody_waits_for_a_participant_that_dies_inside(local, names):
    dying = service(local)
    theirs, mine = dying.barrier("start", 2), names.barrier("start", 2)
    entering = Thread(theirs.enter)
    local._watchings.until_installed()
    mine.enter(timeout=60)
    entering.result()
    leaving = Thread(mine.leave)
    local._watchings.until_installed(2)  # that of mine.enter() and this
    assert leaving.is_waiting
    dying.close()
    leaving.result()
    assert left(local) == NOTHING


def test_a_wait_at_a_barrier_that_ends_without_the_others(local, names):
    barrier = names.barrier("start", 2)
    with pytest.raises(ManagerTimeoutError, match="1 of 2 were at the barrier start in the time given"):
        barrier.enter(timeout=0.01)
    assert left(local) == NOTHING
    waiting = Thread(service(local).barrier("start", 2).enter)
    local._watchings.until_installed(2)
    barrier.enter(timeout=60)
    waiting.result()
    with pytest.raises(ManagerTimeoutError, match="not all had left the barrier start"):
        barrier.leave(timeout=0.01)
    assert names.names("_") == ["start_1"]


def test_a_barrier_is_entered_and_left_by_turns(names):
    barrier = names.barrier("start", 1)
    with pytest.raises(RuntimeError, match="was not entered"):
        barrier.leave()
    barrier.enter()
    with pytest.raises(RuntimeError, match="each participant makes its own"):
        barrier.enter()
    barrier.leave()
    for parties in (0, -1, True, "2"):
        with pytest.raises(ValueError, match="a number of parties from 1"):
            names.barrier("start", parties)
