"""The service manager: systemd, asked over D-Bus for a scope, a cgroup of this process's own with the right to make more below.

The one call is StartTransientUnit. A scope has to hold a process from the beginning, and only processes inside may start others in
it without root, so it is this process that moves, with all its threads; what it has started before stays where it is. Everybody asks
their own manager: root the system's, others that of their session.

What is known to go wrong elsewhere, and is avoided here:

* The call answers when the job is queued, not when the process has moved: JobRemoved tells that, and its result whether.
* A scope that failed would be kept, and its name with it: CollectMode. Names are never used twice.
* A manager that is reached from inside a container may count processes by other numbers, and would move somebody else. The bus tells
  by which number it knows us.
* OOMPolicy is left alone: with Delegate=yes a process killed for its memory does not end the rest of the scope, which we are.

Needs jeepney, an optional dependency, loaded when a limit takes a scope and not before.
Source: org.freedesktop.systemd1(5), systemd.scope(5), https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from shoal import xdg

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection

_BUS = ("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
_MANAGER = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")
"""Path, name on the bus, and interface."""
_PATIENCE_S = 5.0
"""How long the manager may take. It takes some ten milliseconds."""
_SIGNALS_KEPT = 256
INSTALL = "pip install 'shoal[systemd]'"


class Refusal(NamedTuple):
    """Why there is no scope, and what would help; "" where nothing is known to."""

    reason: str
    fix: str = ""


class _Refused(Exception):
    """What a manager said."""


def bus_addresses() -> list[str]:
    """Where the manager of this user may be reached, best first; empty where there is no bus."""
    if os.geteuid() == 0:
        given = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
        sockets = ["/run/dbus/system_bus_socket"]
    else:
        given = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
        # su and cron set neither, and a session may be there all the same.
        folders = (xdg.directory("XDG_RUNTIME_DIR"), f"/run/user/{os.geteuid()}")
        sockets = [os.path.join(folder, "bus") for folder in dict.fromkeys(folders) if folder]
    found = [given] if given else []
    return list(dict.fromkeys([*found, *(f"unix:path={path}" for path in sockets if _is_ours(path) and not set(path) & set("%,;"))]))


def _is_ours(path: str) -> bool:
    try:
        return os.stat(path).st_uid in (0, os.geteuid())
    except OSError:
        return False


def look() -> str | Refusal:
    """The address at which a manager would be asked, found without asking it for anything."""
    refusal = Refusal("there is no D-Bus session of this user" if os.geteuid() else "there is no D-Bus system bus")
    for address in bus_addresses():
        try:
            with _connected(address):
                return address
        except _Refused as error:
            refusal = Refusal(str(error))
        except ImportError:
            return Refusal("jeepney, which speaks D-Bus, is not installed", INSTALL)
    return refusal


def move_into_scope(name: str) -> Refusal | None:
    """Have a scope made, delegated to us, and this process moved into it. None: it is there.

    Args:
        name: of the scope, with the suffix.
    """
    address = look()
    if isinstance(address, Refusal):
        return address
    try:
        with _connected(address) as connection:
            _start_scope(connection, name)
    except _Refused as error:
        return Refusal(str(error))
    return None


@contextmanager
def _connected(address: str) -> Iterator[DBusConnection]:
    """A connection to a bus on which a manager is that counts processes as we do. Raises _Refused, ImportError."""
    from jeepney.io.blocking import open_dbus_connection

    try:
        connection = open_dbus_connection(address, auth_timeout=_PATIENCE_S)
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        raise _Refused(f"no connection to the bus at {address}: {error}") from None
    with connection:
        (pid,) = _call(connection, _BUS, "GetConnectionUnixProcessID", "s", connection.unique_name)
        if pid != os.getpid():
            raise _Refused(f"the bus at {address} is in another pid namespace, where this process has the number {pid}")
        (there,) = _call(connection, _BUS, "NameHasOwner", "s", _MANAGER[1])
        if not there:
            raise _Refused(f"no systemd is on the bus at {address}")
        yield connection


def _start_scope(connection: DBusConnection, name: str) -> None:
    from jeepney import MatchRule

    rule = MatchRule(type="signal", interface=_MANAGER[2], member="JobRemoved", path=_MANAGER[0])
    _call(connection, _BUS, "AddMatch", "s", rule.serialise())
    properties = [
        ("Description", ("s", f"Limits of what process {os.getpid()} starts (shoal)")),
        ("PIDs", ("au", [os.getpid()])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    with connection.filter(rule, bufsize=_SIGNALS_KEPT) as removed:  # the signal may come before the answer
        (job,) = _call(connection, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail", properties, [])
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                _, path, _, result = connection.recv_until_filtered(removed, timeout=max(0.0, end - time.monotonic())).body
            except (OSError, TimeoutError) as error:
                raise _Refused(f"systemd has not made {name} within {_PATIENCE_S:g} s{f': {error}' if str(error) else ''}") from None
            if path == job:
                break
    if result != "done":
        raise _Refused(f"systemd could not move this process into {name} ({result}); journalctl --user -u {name} tells why")


def _call(connection: DBusConnection, whom: tuple[str, str, str], method: str, signature: str, *body: object) -> tuple[object, ...]:
    """The answer of a method. Raises _Refused."""
    from jeepney import DBusAddress, DBusErrorResponse, new_method_call
    from jeepney.wrappers import unwrap_msg

    message = new_method_call(DBusAddress(*whom), method, signature, body)
    try:
        answer: tuple[object, ...] = unwrap_msg(connection.send_and_get_reply(message, timeout=_PATIENCE_S))
    except DBusErrorResponse as error:
        words = error.data[0] if error.data and isinstance(error.data[0], str) else error.name
        raise _Refused(f"{method} was refused: {words}") from None
    except (OSError, TimeoutError) as error:
        raise _Refused(f"{method} was not answered within {_PATIENCE_S:g} s{f': {error}' if str(error) else ''}") from None
    return answer
