"""Rights: the same rules for handles of every type."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import socket
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig.world import World

from shoal.handles.base import Handle, Rights
from shoal.handles.clock import UtcClock
from shoal.handles.job import Job
from shoal.handles.process import Process
from shoal.handles.socket import File, Socket
from shoal.handles.vmo import Vmo
from shoal.status import AccessDeniedError, BadHandleError, InvalidArgsError


def _socket() -> Socket:
    ours, theirs = socket.socketpair()
    theirs.close()
    return Socket.from_fd(ours)


MAKERS: dict[str, Callable[[], Handle]] = {
    "process": lambda: Process._from_fd(os.pidfd_open(os.getpid())),
    "job": Job.default,
    "vmo": lambda: Vmo.create(1),
    "clock": UtcClock.system,
    "socket": _socket,
    "file": lambda: File.from_fd(os.open("/dev/null", os.O_RDWR)),
}
each_type = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
SINGLE = [right for right in Rights if right not in (Rights.SAME, Rights.NONE)]


def test_the_bits_are_zircons() -> None:
    assert Rights.BASIC == 0xC003
    assert Rights.DEFAULT_JOB == 0x7DFCF
    assert Rights.DEFAULT_PROCESS == 0x6D3CF
    assert Rights.DEFAULT_VMO == 0xD0EF
    assert Rights.DEFAULT_CLOCK == 0xD0CF
    assert Rights.DEFAULT_SOCKET == 0x10F0CF


@each_type
def test_a_duplicate_has_the_same_rights_or_those_asked_for(make: Callable[[], Handle], world: World) -> None:
    with make() as handle:
        with handle.duplicate() as same, handle.duplicate(Rights.NONE) as none:
            assert same.rights == handle.rights
            assert none.rights == Rights.NONE
            assert type(same) is type(handle)
            assert same.fileno() != handle.fileno()
            assert not os.get_inheritable(same.fileno())
        assert not handle.closed
    world.assert_unchanged()


@each_type
def test_rights_never_grow(make: Callable[[], Handle]) -> None:
    @settings(max_examples=30)
    @given(st.lists(st.sets(st.sampled_from(SINGLE)), max_size=4))
    def check(steps: list[set[Rights]]) -> None:
        handles = [handle]
        for step in steps:
            wanted = Rights.DUPLICATE
            for right in step:
                wanted |= right
            before = handles[-1].rights
            if wanted & ~before:
                with pytest.raises(InvalidArgsError):
                    handles[-1].duplicate(wanted)
            else:
                handles.append(handles[-1].duplicate(wanted))
                assert handles[-1].rights == wanted
        for made in handles[1:]:
            made.close()

    with make() as handle:
        check()


@each_type
def test_duplicating_needs_the_right(make: Callable[[], Handle]) -> None:
    with make() as handle, handle.duplicate(handle.rights & ~Rights.DUPLICATE) as less:
        with pytest.raises(AccessDeniedError, match="DUPLICATE"):
            less.duplicate()
        with pytest.raises(AccessDeniedError):
            less.duplicate(handle.rights)  # the missing right comes before the impossible wish


@each_type
def test_a_closed_handle_is_a_bad_handle_before_anything_else(make: Callable[[], Handle], world: World) -> None:
    handle = make()
    handle.close()
    handle.close()
    assert handle.closed
    for operation in (handle.fileno, handle.duplicate, lambda: handle.duplicate(~Rights.SAME), lambda: handle.require(Rights.READ, "x")):
        with pytest.raises(BadHandleError):
            operation()
    assert handle.consume() == -1
    assert "closed" in repr(handle)
    world.assert_unchanged()


@each_type
def test_a_consumed_handle_leaves_an_open_descriptor_of_the_object(make: Callable[[], Handle], world: World) -> None:
    handle = make()
    before = os.fstat(handle.fileno())
    fd = handle.consume()
    assert handle.closed
    assert (os.fstat(fd).st_dev, os.fstat(fd).st_ino) == (before.st_dev, before.st_ino)
    os.close(fd)
    del handle
    world.assert_unchanged()


@each_type
def test_a_handle_nobody_refers_to_is_closed(make: Callable[[], Handle], world: World) -> None:
    for _ in range(5):
        make()
    cycle: list[object] = [make()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    world.assert_unchanged()


@each_type
def test_a_handle_cannot_be_pickled_or_made_by_hand(make: Callable[[], Handle]) -> None:
    with make() as handle:
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                duplicate(handle)
        with pytest.raises(TypeError):
            type(handle)()


@each_type
def test_a_handle_handed_to_this_process_is_what_it_was(make: Callable[[], Handle]) -> None:
    """As `shoal.startup` takes them."""
    with make() as handle:
        fd = os.dup(handle.fileno())
        with type(handle)._own(fd, Rights.DUPLICATE | Rights.READ) as taken:
            assert taken.fileno() == fd
            assert taken.rights == Rights.DUPLICATE | Rights.READ


@each_type
def test_threads_may_close_one_handle_at_once(make: Callable[[], Handle], world: World) -> None:
    for _ in range(5):
        handle = make()
        threads = [threading.Thread(target=handle.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert handle.closed
    del handle, threads, thread
    world.assert_unchanged()


@pytest.fixture(scope="module", autouse=True)
def _a_thread_was_made() -> None:
    """The C library installs a signal handler of its own with the first thread, which `world` would notice."""
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
