"""The children of a process, whichever of its threads made them."""

from __future__ import annotations

import os
import subprocess
import threading

from shoal.handles.children import children


def test_those_of_every_thread_are_found_and_those_that_have_ended(world):
    with subprocess.Popen(["true"]) as ended, subprocess.Popen(["cat"], stdin=subprocess.PIPE) as running:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        found: set[int] = set()
        looker = threading.Thread(target=lambda: found.update(children()))
        looker.start()
        looker.join()
        assert {ended.pid, running.pid} <= found
        assert children(os.getpid()) == children()
    assert not {ended.pid, running.pid} & children()
    world.assert_unchanged()


def test_a_process_that_is_not_there_has_none():
    with subprocess.Popen(["true"]) as gone:
        pass
    assert children(gone.pid) == set()


def test_those_of_a_thread_that_ends_while_they_are_looked_for_are_found(world):
    """They become those of another thread, which may have been looked at before."""
    for _ in range(100):
        started: list[subprocess.Popen[bytes]] = []
        is_there, end = threading.Event(), threading.Event()

        def start(started=started, is_there=is_there, end=end):
            started.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
            is_there.set()
            end.wait()

        threads = [threading.Thread(target=start), *(threading.Thread(target=end.wait) for _ in range(20))]
        for thread in threads:
            thread.start()
        is_there.wait()
        (child,) = started
        end.set()
        with child:
            while threads[0].is_alive():
                assert child.pid in children()
            assert child.pid in children()
        for thread in threads:
            thread.join()
    world.assert_unchanged()
