"""Where no cgroup was delegated to an ordinary user, a limit obtains one from the service manager, over a real bus.

The manager is rig/manager.py, which speaks systemd's protocol and makes real cgroups; tests/vm has the real one.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.cli import COMMAND, ENVIRON
from rig.features import needs, unified_cgroup
from rig.manager import Bus, Manager, bus_in, slice_below
from rig.other_user import as_ordinary_user

pytestmark = [
    pytest.mark.root,
    needs("a cgroup v2 tree in which groups can be made"),
    needs("dbus-daemon (Debian package dbus-daemon)"),
    needs("unshare and setpriv (Debian package util-linux)"),
    needs("user namespaces for ordinary users"),
]

LIMITED = """
import shoal
from shoal import Sandbox
def cgroup():
    with open("/proc/self/cgroup") as file:
        return next(line[3:].strip() for line in file if line.startswith("0::"))
def run(**more):
    try:
        done = shoal.run(["true"], sandbox=Sandbox(cpu_time=60, **more))
    except shoal.SpawnError as error:
        return [type(error).__name__, str(error)]
    return [done.returncode, done.enforced["cpu_time"]]
"""


@pytest.fixture
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    folder = tmp_path_factory.mktemp("bus")
    for above in (folder, *folder.parents[:-2]):
        above.chmod(above.stat().st_mode | 0o011)
    with bus_in(folder) as made:
        yield made


@pytest.fixture
def slice() -> Iterator[Path]:
    parent = unified_cgroup()
    assert parent is not None
    with slice_below(parent) as made:
        yield made


@pytest.fixture
def manager(bus: Bus, slice: Path) -> Iterator[Callable[..., Manager]]:
    """Starts a manager on the bus that behaves as told."""
    started: list[Manager] = []

    def start(how: str = "works") -> Manager:
        started.append(Manager(bus.address, slice, how))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def as_user(run_python: Callable[..., Any], bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a script as an ordinary user whose session has the bus."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.address)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return lambda script, *unshared, before=":": run_python(LIMITED + script, prefix=as_ordinary_user(*unshared, before=before), cwd="/")


@pytest.mark.parametrize("how", ["works", "tells early"])
def test_a_limit_obtains_a_scope_and_is_enforced_there(as_user, manager, slice, how):
    serving = manager(how)
    before, first, again, after = as_user("answer([cgroup(), run(), run(), cgroup()])")
    assert first == again == [0, True]
    (asked,) = serving.requests()
    name = asked["name"]
    assert after.startswith(before.rstrip("/") + f"/{slice.name}/{name}")
    assert name.startswith("shoal-")
    assert name.endswith(".scope")
    assert asked["mode"] == "fail"
    assert asked["properties"]["Delegate"] == ["b", True]
    assert asked["properties"]["CollectMode"] == ["s", "inactive-or-failed"]
    assert asked["properties"]["PIDs"][0] == "au"


def test_threads_that_need_one_at_the_same_time_ask_once(as_user, manager):
    serving = manager()
    script = """
import threading
found = []
threads = [threading.Thread(target=lambda: found.append(run())) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
answer(found)
"""
    assert as_user(script) == [[0, True]] * 6
    assert len(serving.requests()) == 1


def test_nobody_is_asked_where_no_limit_takes_it(as_user, manager):
    serving = manager()
    script = """
done = shoal.run(["true"], sandbox=Sandbox(wall_time=60, open_files=32))
answer([done.returncode, "jeepney" in sys.modules, "shoal.handles.service_manager" in sys.modules and "jeepney.io" in sys.modules])
"""
    assert as_user(script) == [0, False, False]
    assert serving.requests() == []


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("refuses", "StartTransientUnit was refused: not for you"),
        ("fails", r"could not move this process into shoal-\d+-\w+\.scope \(failed\)"),
        ("does nothing", "but this process is in "),
        ("silent", "was not answered within 5 s"),
    ],
)
def test_a_manager_that_does_not_do_it_is_quoted_and_not_asked_again(as_user, manager, how, why):
    serving = manager(how)
    first, again, best = as_user("answer([run(), run(), run(limits='best-effort')])")
    assert first[0] == "NotSupportedError"
    assert re.sub(r"-ns\d+", "", first[1]) == re.sub(r"-ns\d+", "", again[1])
    assert best == [0, "each process"]
    assert re.search(why, first[1])
    assert "systemd-run --user --scope -p Delegate=yes" in first[1]
    assert 'limits="best-effort"' in first[1]
    assert len(serving.requests()) == 1


def test_a_bus_without_systemd_is_told(as_user, bus):
    (kind, text) = as_user("answer(run())")
    assert kind == "NotSupportedError"
    assert f"no systemd is on the bus at {bus.address}" in text


def test_without_a_bus_the_refusal_says_how_to_get_a_cgroup(as_user):
    plain = as_user("del os.environ['DBUS_SESSION_BUS_ADDRESS']\nanswer(run())")
    assert plain[0] == "NotSupportedError"
    assert "systemd-run --user --scope -p Delegate=yes" in plain[1]
    assert "jeepney" not in plain[1]
    gone = as_user("os.environ['DBUS_SESSION_BUS_ADDRESS'] = 'unix:path=/nowhere/at/all'\nanswer(run())")
    assert "no connection to the bus at unix:path=/nowhere/at/all" in gone[1]
    nonsense = as_user("os.environ['DBUS_SESSION_BUS_ADDRESS'] = 'unixexec:path=/usr/bin/true'\nanswer(run())")
    assert "no connection to the bus at unixexec:" in nonsense[1]


def test_without_jeepney_the_refusal_says_how_to_get_it(as_user, manager):
    manager()
    kind, text = as_user("sys.modules['jeepney'] = None\nanswer(run())")
    assert kind == "NotSupportedError"
    assert "pip install 'shoal[systemd]'" in text


def test_a_manager_that_counts_processes_otherwise_is_not_asked(as_user, manager):
    """It would move somebody else."""
    serving = manager()
    kind, text = as_user("answer(run())", "--pid", "--fork", "--mount-proc")
    assert kind == "NotSupportedError"
    assert "another pid namespace" in text
    assert serving.requests() == []


def test_what_belongs_to_a_service_stays_there(as_user, manager, slice):
    serving = manager()
    (slice / "worker.service").mkdir()
    kind, text = as_user("answer(run())", before=f"echo $$ > {slice}/worker.service/cgroup.procs")
    assert kind == "NotSupportedError"
    assert "belongs to worker.service" in text
    assert "Delegate=yes in the unit worker.service" in text
    assert serving.requests() == []


def test_a_forked_child_finds_the_scope_of_its_parent(as_user, manager):
    serving = manager()
    script = """
first = run()
read, write = os.pipe()
pid = os.fork()
if not pid:
    os.write(write, json.dumps(run()).encode())
    os._exit(0)
os.close(write)
with open(read) as file:
    answer([first, json.load(file)])
os.waitpid(pid, 0)
"""
    assert as_user(script) == [[0, True], [0, True]]
    assert len(serving.requests()) == 1


def doctor(bus: Bus) -> dict[str, Any]:
    command = [*as_ordinary_user(), *COMMAND, "doctor", "--json"]
    environ = {name: value for name, value in ENVIRON.items() if name != "XDG_RUNTIME_DIR"}
    environ |= {"DBUS_SESSION_BUS_ADDRESS": bus.address, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, check=False, timeout=120)
    return {feature["name"]: feature for feature in json.loads(done.stdout)["features"]}["limit groups"]


def test_doctor_says_what_would_happen_and_asks_for_nothing(bus, manager):
    row = doctor(bus)
    assert not row["available"]
    assert "no systemd is on the bus" in row["detail"]
    assert "systemd-run --user --scope" in row["fix"]
    serving = manager()
    row = doctor(bus)
    assert row["available"]
    assert bus.address in row["detail"]
    assert serving.requests() == []


def test_shoal_does_without_jeepney(run_python):
    script = "import shoal, shoal.sandbox.run, shoal.cli.main\nanswer([name for name in sys.modules if name.startswith('jeepney')])"
    assert run_python(script) == []
