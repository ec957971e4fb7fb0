"""A service manager on a real bus that makes real cgroups: what systemd does for StartTransientUnit, and the ways in which it may not.

Run as a program, by root: takes the name org.freedesktop.systemd1 on the bus named, says "ready", then one line of JSON for each scope
it was asked for. With Delegate it hands the directory to whoever asked, as systemd does. The real one is in tests/vm.

Source: org.freedesktop.systemd1(5); https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, MessageType, message_bus, new_error, new_method_return, new_signal
from jeepney.io.blocking import Proxy, open_dbus_connection

NAME = "org.freedesktop.systemd1"
OBJECT = DBusAddress("/org/freedesktop/systemd1", NAME, f"{NAME}.Manager")
DELEGATED = ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")
POLICY = """<busconfig>
<listen>unix:path={socket}</listen>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
"""


class Bus:
    """A real dbus-daemon, open to every user."""

    def __init__(self, folder: Path) -> None:
        socket = folder / "bus"
        (folder / "bus.conf").write_text(POLICY.format(socket=socket))
        command = ["dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork", "--print-address=1"]
        self._daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._daemon.stdout is not None
        assert self._daemon.stdout.readline()
        self.address = f"unix:path={socket}"

    def close(self) -> None:
        self._daemon.kill()
        self._daemon.communicate(timeout=60)


class Manager:
    """The manager, from the test's side."""

    def __init__(self, address: str, slice: Path, how: str) -> None:
        command = [sys.executable, __file__, address, str(slice), how]
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def requests(self) -> list[dict[str, Any]]:
        """What it was asked for. Ends it."""
        self._server.terminate()
        said, _ = self._server.communicate(timeout=60)
        return [json.loads(line) for line in said.splitlines()]

    def close(self) -> None:
        self._server.kill()
        self._server.communicate(timeout=60)


@contextmanager
def bus_in(folder: Path) -> Iterator[Bus]:
    bus = Bus(folder)
    try:
        yield bus
    finally:
        bus.close()


@contextmanager
def slice_below(parent: Path) -> Iterator[Path]:
    """A cgroup for scopes; it and all below are removed at the end."""
    path = parent / f"shoal-test-{os.getpid()}.slice"
    path.mkdir()
    try:
        yield path
    finally:
        for folder, _, _ in os.walk(path, topdown=False):
            os.rmdir(folder)


def _start(slice: Path, uid: int, name: str, properties: dict[str, tuple[str, Any]]) -> None:
    scope = slice / name
    scope.mkdir()
    if properties.get("Delegate") == ("b", True):
        for path in (scope, *(scope / file for file in DELEGATED)):
            os.chown(path, uid, uid)
    signature, pids = properties["PIDs"]
    assert signature == "au"
    for pid in pids:
        (scope / "cgroup.procs").write_text(str(pid))


def _serve(address: str, slice: Path, how: str) -> None:
    connection = open_dbus_connection(address)
    bus = Proxy(message_bus, connection)
    assert bus.RequestName(NAME) == (1,)
    print("ready", flush=True)
    for number in itertools.count(1):
        message = connection.receive()
        fields = message.header.fields
        if message.header.message_type is not MessageType.method_call or fields[HeaderFields.member] != "StartTransientUnit":
            continue
        assert fields[HeaderFields.signature] == "ssa(sv)a(sa(sv))"
        name, mode, properties, _ = message.body
        print(json.dumps({"name": name, "mode": mode, "properties": dict(properties)}), flush=True)
        if how == "refuses":
            connection.send(new_error(message, "org.freedesktop.DBus.Error.AccessDenied", "s", ("not for you",)))
            continue
        if how == "silent":
            continue
        (uid,) = bus.GetConnectionUnixUser(fields[HeaderFields.sender])
        if how not in ("fails", "does nothing"):
            _start(slice, uid, name, dict(properties))
        job = f"/org/freedesktop/systemd1/job/{number}"
        answer = new_method_return(message, "o", (job,))
        other = new_signal(OBJECT, "JobRemoved", "uoss", (999, "/org/freedesktop/systemd1/job/999", "other.service", "failed"))
        removed = new_signal(OBJECT, "JobRemoved", "uoss", (number, job, name, "failed" if how == "fails" else "done"))
        for each in (other, removed, answer) if how == "tells early" else (answer, other, removed):
            connection.send(each)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
