"""Limits of an ordinary user's sandboxes in a scope that systemd makes: the real `systemd --user`, on a real bus.

Not the machine's own: one is started here, in a group that is delegated to the user as user@.service would be, with a runtime folder of
its own. In the virtual machine nothing but this folder's tests is there to be disturbed. The system's manager, which moves a process for
the user's where that may not, is missing; so the process starts in that group, as in a desktop session.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import groups
import pytest
from rig.features import needs
from rig.manager import DELEGATED
from rig.other_user import ORDINARY_UID

SYSTEMD = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if os.access(path, os.X_OK)), "")

BECOME = ("setpriv", f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups", "--inh-caps=-all")

pytestmark = [
    pytest.mark.root,
    needs("unshare and setpriv (Debian package util-linux)"),
    pytest.mark.skipif(not SYSTEMD or not shutil.which("systemctl"), reason="needs systemd (Debian package systemd)"),
    pytest.mark.skipif(not os.path.exists("/usr/lib/systemd/user/dbus.socket"), reason="needs Debian package dbus-user-session"),
]

LIMITED = """
from shoal import Sandbox
def cgroup():
    return open("/proc/self/cgroup").read().rpartition("0::")[2].strip()
def run(*words, **box):
    done = shoal.run([workload, *words], sandbox=Sandbox(**{"wall_time": 60} | box))
    return [done.returncode, done.reason, done.enforced.get("memory"), done.enforced.get("pids")]
"""


@pytest.fixture
def session(group: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a session with a manager, which lives in `group`."""
    if os.path.exists("/run/systemd/system"):
        pytest.skip("needs a machine that systemd does not run, such as the virtual one")
    runtime = Path(f"/run/user/{ORDINARY_UID}")
    for folder in (runtime, Path("/run/systemd/system")):  # the latter is how systemd tells that it runs the machine
        folder.mkdir(parents=True)
    os.chown(runtime, ORDINARY_UID, ORDINARY_UID)
    runtime.chmod(0o700)
    (group / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    manager_group = group / "user.service"
    manager_group.mkdir()
    for path in (group, manager_group):
        for name in ("", *DELEGATED):
            os.chown(path / name, ORDINARY_UID, ORDINARY_UID)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, ORDINARY_UID, ORDINARY_UID)
    for above in (home, *home.parents[:-2]):
        above.chmod(above.stat().st_mode | 0o011)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"{runtime}/notify")
        os.chown(f"{runtime}/notify", ORDINARY_UID, ORDINARY_UID)
        told.settimeout(groups.PATIENCE_S)
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(runtime),
            "SYSTEMD_LOG_TARGET": "console",
            "NOTIFY_SOCKET": f"{runtime}/notify",
        }
        enter = ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(manager_group)]
        manager = subprocess.Popen([*enter, *BECOME, SYSTEMD, "--user"], env=environ)
        del environ["NOTIFY_SOCKET"]
        try:
            while b"READY=1" not in told.recv(4096):
                pass
            # It has started the bus, too, or does now, and then takes its name there.
            subprocess.run([*BECOME, "systemctl", "--user", "start", "dbus.service"], env=environ, check=True, timeout=groups.PATIENCE_S)
            end = time.monotonic() + groups.PATIENCE_S
            look = [*BECOME, "busctl", "--user", "status", "org.freedesktop.systemd1"]
            while subprocess.run(look, env=environ, check=False, capture_output=True, timeout=groups.PATIENCE_S).returncode:
                assert time.monotonic() < end, "the manager never came to its bus"
                time.sleep(0.1)
            yield environ
        finally:
            (group / "cgroup.kill").write_text("1")
            manager.wait(timeout=groups.PATIENCE_S)
            shutil.rmtree(runtime, ignore_errors=True)
            os.rmdir("/run/systemd/system")


@pytest.fixture
def run_in_session(
    session: dict[str, str], group: Path, run_inside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, workload: str
) -> Callable[..., Any]:
    for folder in (Path(workload), *Path(workload).parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    for name, value in session.items():
        monkeypatch.setenv(name, value)
    terminal = group / "terminal.scope"
    terminal.mkdir()
    return lambda script: run_inside(terminal, LIMITED + script, uid=ORDINARY_UID)


def test_limits_are_kept_in_a_scope_of_the_users_manager(run_in_session: Callable[..., Any]) -> None:
    script = """
before = cgroup()
ends = [run("exit", "3", memory="64M", pids=16), run("alloc", str(128 << 20), memory="32M"), run("bomb", "300", pids=12, wall_time=5)]
unit = cgroup().split("/")
import subprocess
scope = next(part for part in unit if part.endswith(".scope") and part.startswith("shoal-"))
shown = subprocess.run(["systemctl", "--user", "show", "-p", "ActiveState,Delegate,CollectMode", scope], capture_output=True, text=True)
answer([before, ends, shown.stdout.split()])
"""
    before, ends, shown = run_in_session(script)
    assert before.endswith("/terminal.scope")
    assert ends[0] == [3, "exited", True, True]
    assert ends[1][:3] == [-9, "oom", True]
    assert ends[2][3] is True
    assert sorted(shown) == ["ActiveState=active", "CollectMode=inactive-or-failed", "Delegate=yes"]
