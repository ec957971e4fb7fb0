"""Secrets at rest: what is in the variables of a domain is in no file of its manager."""

import os
import signal
from pathlib import Path

import pytest
from rig import managed

import shoal.manager
from shoal import Sandbox

SECRET = f"hush-{os.getpid()}-{'x' * 20}"
SCRIPT = 'test -n "$TOKEN" && echo started && exec sleep 1000'
WORLD = Sandbox(read=["/"], env={"TOKEN": SECRET, "PLAIN": "seen"}, secrets=["TOKEN"])


state = managed.state


def files_with(state, text):
    found = []
    for folder, _, names in os.walk(state):
        for path in (Path(folder, name) for name in names):
            if path.is_file() and text.encode() in path.read_bytes():
                found.append(path.name)
    return found


@pytest.mark.parametrize("how", ["sandbox", "sandbox and envp", "flat"])
def test_no_file_has_them_while_it_runs_nor_afterwards(state, how):
    given = {
        "sandbox": {"sandbox": WORLD},
        "sandbox and envp": {"sandbox": WORLD, "envp": {"TOKEN": SECRET, "PATH": os.environ["PATH"]}},
        "flat": {"envp": {"TOKEN": SECRET, "PATH": os.environ["PATH"]}},
    }[how]
    with shoal.manager.connect() as manager:
        domain = manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", SCRIPT], name="has-a-secret", **given)
        assert next(domain.logs(follow=True)) == b"started\n"
        assert b"has-a-secret" in b"".join(path.read_bytes() for path in state.glob("manager.db*"))  # where it would be
        assert files_with(state, SECRET) == []
        pid = managed.manager_pid(state)
        os.kill(pid, signal.SIGKILL)
        managed.wait_gone(pid)
        found = domain.capabilities()  # of a new manager
        assert SECRET not in str(found) + str(found.to_dict())
        domain.kill()
        domain.wait()
        assert files_with(state, SECRET) == []
    if how == "sandbox":
        assert files_with(state, "seen")  # values that are no secrets are shown by caps
