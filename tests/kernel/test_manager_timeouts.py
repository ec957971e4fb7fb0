"""A timeout is kept, whatever the manager is at: about to start, or stopped by somebody."""

import fcntl
import os
import signal
import stat
import sys

import pytest
from rig import managed

import shoal.manager

BRIEF_S = 0.2


state = managed.state


@pytest.fixture
def stopped(state):
    """A client of a manager that somebody has stopped, with a domain that runs."""
    with shoal.manager.connect() as manager:
        domain = manager.spawn_program(manager.cores()[0], "sleep", ["sleep", "1000"])
        pid = managed.manager_pid(state)
        managed.stop(pid)
        try:
            yield domain
        finally:
            os.kill(pid, signal.SIGCONT)
        assert domain.wait(nohang=True) is None  # what was given up disturbs nothing
        domain.kill()


def test_a_manager_that_does_not_answer_keeps_nobody_waiting_who_connects(stopped):
    with pytest.raises(TimeoutError, match="did not answer hello in time"):
        shoal.manager.connect(timeout=BRIEF_S)


def test_a_manager_that_does_not_answer_keeps_nobody_waiting_who_waits(stopped):
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"has not ended within 0\.2 s"):
            stopped.wait(timeout=BRIEF_S)


def test_a_manager_that_cannot_begin_yet_is_not_waited_for_longer_than_asked(state):
    with open(state / "starting", "w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="did not begin to listen in time"):
            shoal.manager.connect(timeout=BRIEF_S)
    with shoal.manager.connect() as manager:  # the one that was started then, or another
        assert manager.domains() == []


def test_a_manager_whose_interpreter_has_not_begun_is_not_waited_for_longer_than_asked(state, tmp_path, monkeypatch):
    """As on a machine that is short of memory, or reads from a slow disk."""
    gate, slow = tmp_path / "gate", tmp_path / "python"
    os.mkfifo(gate)
    slow.write_text(f'#!/bin/sh\nread go < {gate}\nexec {sys.executable} "$@"\n')
    slow.chmod(stat.S_IRWXU)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(slow))
        with pytest.raises(TimeoutError, match="did not begin to listen in time"):
            shoal.manager.connect(timeout=BRIEF_S)
    gate.write_text("\n")  # returns once it is read
    managed.wait_until(lambda: managed.manager_pid(state))
    with shoal.manager.connect() as manager:
        assert manager.domains() == []
