"""What a domain can touch, asked of its manager: by whoever has the right, also after the manager has died, and in a picture."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile

import pytest

import shoal.manager
from shoal import File, Sandbox
from shoal.manager import Capabilities, CNode, DomainRights, ManagerError
from shoal.manager.layout import Layout
from shoal.sandbox.tier import tier

needs_cell = pytest.mark.skipif(not tier().is_cell, reason="needs namespaces")
worlds = pytest.mark.parametrize("box", [None, pytest.param(Sandbox(read=["/usr"]), marks=needs_cell)], ids=["flat", "cell"])


@pytest.fixture
def state():
    with tempfile.TemporaryDirectory(prefix="shoal-manager-") as directory:
        yield directory


@contextlib.contextmanager
def manager_of(state, *, ends=True):
    with shoal.manager.embedded(state) as manager:
        yield manager
        for status in manager.statuses() if ends else ():
            with contextlib.suppress(ManagerError):
                manager.domain(status.id).kill()


@pytest.fixture
def manager(state):
    with manager_of(state) as made:
        yield made


def begin(manager, script="", **how):
    """A domain that has said that it is ready."""
    domain = manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", f"{script}\nsleep 1000 & echo ready; wait"], **how)
    assert next(domain.logs(follow=True)) == b"ready\n"
    return domain


def programs(seen):
    """Their number; a shell that is about to become another program may still be called so."""
    names = [process.name for process in seen.observed.processes if not process.keeper]
    assert set(names) <= {"sh", "sleep", "setsid"}
    return len(names)


@worlds
def test_a_domain_that_does_what_it_may_differs_in_nothing(manager, box):
    domain = begin(manager, "(setsid sleep 1000 &); exec 5</usr/bin/env", sandbox=box)
    seen = domain.capabilities()
    assert [str(item) for item in seen.differences] == []
    assert programs(seen) == 3
    assert (seen.domain_id, seen.name, seen.granted.argv[:2]) == (domain.id, "sh", ("sh", "-c"))
    assert str(seen).startswith(f"domain {domain.id} sh: sh -c")
    assert f"{'a cell' if box else 'that of whoever started it'}" in str(seen)
    assert seen.observed.our_mounts == ()
    assert Capabilities.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


@worlds
def test_what_was_handed_over_is_known_again_under_its_slot(manager, box, tmp_path):
    (tmp_path / "log").write_text("x")
    with open(tmp_path / "log") as log:
        args = CNode()
        args.put(4, File.from_fd(os.open(tmp_path / "log", os.O_RDONLY)), name="db")
        domain = begin(manager, inherit=CNode.inherit(fds={50: log}), args=args, sandbox=box, own_capability=True)
    seen = domain.capabilities()
    assert [str(item) for item in seen.differences] == []
    handed = {item.fd: item for item in seen.granted.descriptors}
    assert handed[50].what == str(tmp_path / "log")
    assert next(item.handle for item in handed.values() if item.handle is not None) == shoal.PA_HND(0xF0, 4)
    assert {item.fd for item in handed.values() if item.handle is not None} == {3, 4, 5}  # and its capability, and its connection
    assert handed[1].what == "the domain's log"


def test_another_dispatcher_and_what_it_shares_are_no_difference(manager):
    if len(manager.cores()) < 2:
        pytest.skip("needs two processors")
    domain = begin(manager)
    domain.span(manager.cores()[1])
    seen = domain.capabilities()
    assert [str(item) for item in seen.differences] == []
    assert set(domain.status().pids) < {process.pid for process in seen.observed.processes if not process.keeper}
    assert len(domain.status().pids) == 2
    assert set(seen.granted.processors) == set(manager.cores()[:2])


@needs_cell
def test_what_comes_to_a_domain_from_outside_is_told(manager, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    domain = begin(manager, sandbox=Sandbox(read=["/usr"], write={"/work": tmp_path}))
    [pid] = domain.status().pids
    subprocess.run(["nsenter", "-t", str(pid), "-m", "/usr/bin/mount", "-t", "tmpfs", "none", "/work"], check=True)
    [difference] = domain.capabilities().differences
    assert (difference.kind, difference.subject) == ("beyond", "mount /work")


@worlds
def test_the_next_manager_knows_what_the_first_has_given(state, box):
    with manager_of(state, ends=False) as first:
        domain = begin(first, "exec 5</usr/bin/env", sandbox=box)
        before = domain.capabilities()
    with manager_of(state) as second:
        after = second.domain(domain.cap).capabilities()
        assert after.granted == before.granted
        assert [str(item) for item in after.differences] == []
        assert programs(after) == programs(before)


@worlds
def test_values_of_variables_are_neither_shown_nor_kept_with_what_was_granted(state, box):
    with manager_of(state) as manager:
        seen = begin(manager, envp={"PATH": os.environ["PATH"], "TOKEN": "hunter2-hunter2"}, sandbox=box).capabilities()
    assert "TOKEN=***" in str(seen)
    assert "hunter2" not in str(seen) + seen.to_dot() + json.dumps(seen.to_dict())
    with contextlib.closing(sqlite3.connect(Layout.of(state).database)) as database:
        assert all(b"hunter2" not in what for (what,) in database.execute("SELECT what FROM granted"))


def test_it_takes_the_right_to_look(manager):
    domain = begin(manager)
    blind = manager.domain(domain.cap.attenuate(DomainRights.WAIT | DomainRights.KILL))
    with pytest.raises(ManagerError, match="does not allow: capabilities; it allows: wait kill") as caught:
        blind.capabilities()
    assert caught.value.code == "PROC_MGMT_ERR_DOMAIN_CAP_HASH"
    assert any(did == "capabilities" and refused for _, _, did, _, refused in manager.audit())
    assert manager.domain(domain.cap.attenuate(DomainRights.CAPABILITIES)).capabilities().name == "sh"


@pytest.mark.skipif(not shutil.which("dot"), reason="needs dot (Debian package graphviz)")
def test_the_picture_of_a_domain_is_one_that_graphviz_draws(manager):
    source = begin(manager).capabilities().to_dot()
    done = subprocess.run(["dot", "-Tsvg"], input=source, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert "<svg" in done.stdout
