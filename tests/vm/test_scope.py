"""Root in a group that it shares with others gets one of its own from the system's manager (rig/manager.py) when a limit needs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.features import needs
from rig.manager import Bus, Manager, bus_in, slice_below

pytestmark = [pytest.mark.root, needs("dbus-daemon (Debian package dbus-daemon)")]

LIMITED = """
from shoal import Sandbox
ends = []
for words, limits in ((("alloc", str(128 << 20)), {"memory": "32M"}), (("exit", "3"), {"memory": "64M", "pids": 16})):
    try:
        done = shoal.run([workload, *words], sandbox=Sandbox(wall_time=60, **limits))
    except shoal.SpawnError as error:
        ends.append(str(error))
    else:
        ends.append([done.returncode, done.reason, done.enforced["memory"]])
answer(ends)
"""


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    with bus_in(tmp_path) as made:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made.address)
        yield made


def test_a_group_that_is_shared_is_left_for_a_scope(
    delegation: Path, group: Path, bus: Bus, stranger: Callable[[Path], int], run_inside: Callable[..., Any]
) -> None:
    stranger(group)
    (text, _) = run_inside(group, LIMITED)
    assert "no systemd is on the bus" in text
    assert "shares the one we live in" in text
    with slice_below(delegation) as slice:
        (slice / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        serving = Manager(bus.address, slice, "works")
        try:
            assert run_inside(group, LIMITED) == [[-9, "oom", True], [3, "exited", True]]
            assert len(serving.requests()) == 1
        finally:
            serving.close()


def test_a_scope_without_the_controller_is_told_of_and_no_other_asked_for(
    delegation: Path, group: Path, bus: Bus, stranger: Callable[[Path], int], run_inside: Callable[..., Any]
) -> None:
    stranger(group)
    with slice_below(delegation) as slice:
        serving = Manager(bus.address, slice, "works")
        try:
            for text in run_inside(group, LIMITED):
                assert "no memory controller" in text
                assert re.search(r"systemd has made \S+/shoal-\d+-\w+.scope for this process", text)
            assert len(serving.requests()) == 1
        finally:
            serving.close()
