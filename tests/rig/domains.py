"""What tests of the process manager share: a state directory, and a manager by each of the two ways."""

import contextlib
import os
import select
import tempfile
from pathlib import Path

import pytest

import shoal.manager
from shoal.manager import ManagerError


@pytest.fixture
def state(monkeypatch):
    """A state directory of its own; what is left in it of domains is ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="shoal-manager-") as directory:
        monkeypatch.setenv("SHOAL_STATE_DIR", directory)
        yield directory
        with contextlib.suppress(ManagerError):
            with shoal.manager.connect() as manager:
                for status in manager.statuses():
                    with contextlib.suppress(ManagerError):
                        manager.domain(status.id).kill()
                daemon = manager_pid(directory)
                manager.stop()
            if daemon:
                wait_gone(daemon)


def manager_pid(state):
    return int(Path(state, "lock").read_text() or 0)


def wait_gone(pid):
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 30)[0]
    finally:
        os.close(pidfd)


@pytest.fixture(params=["daemon", "embedded"])
def manager(request, state):
    made = shoal.manager.connect() if request.param == "daemon" else shoal.manager.embedded(state)
    with made:
        yield made
        if request.param == "embedded":
            for status in made.statuses():
                with contextlib.suppress(ManagerError):
                    made.domain(status.id).kill()


def core(manager):
    """The first that it serves."""
    return manager.cores()[0]


def sh(manager, script, *words, **how):
    return manager.spawn_program(how.pop("core", core(manager)), "sh", ["sh", "-c", script, *words], **how)


def code_of(error):
    return error.value.code
