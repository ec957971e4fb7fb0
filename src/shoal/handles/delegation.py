"""Delegation: a cgroup in which limits can be set, obtained where this process does not live in one.

Limits take a cgroup v2 directory that this process may make others in, and in which nobody else lives. Where the one it was started
in is no such, systemd is asked for a scope, once. Nothing of this happens, or is loaded, unless a limit was asked for and refused.

Not moved is what belongs to a service: systemd would lose sight of it, and stopping the service would leave it running. Nor is anything
asked where the controllers are bound to cgroup v1, since no scope would have them.
Source: https://systemd.io/CGROUP_DELEGATION; cgroups(7).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection

from shoal.handles.hierarchy import DELEGATE, Home, NoHome, find_home, v1_controllers
from shoal.handles.service_manager import Refusal, bus_addresses, look, move_into_scope

_USER_MANAGER = re.compile(r"user@\d+\.service")
_UNIT = re.compile(r".+\.(?:service|scope)")

_lock = threading.RLock()
_moved = 0
"""How often this process was moved: 0 or 1."""
_refusal: Refusal | None = None
"""What a manager has said. It is not asked again."""


def generation() -> int:
    """To be noted before a limit is tried, for `obtain()`."""
    return _moved


def obtain(before: int, controllers: Collection[str]) -> Refusal | None:
    """Move this process into a scope of its own. None: it is in one now, and what was refused may be tried again.

    Args:
        before: from `generation()`: another thread may have been quicker.
        controllers: which ones the limits take.
    """
    global _moved, _refusal
    with _lock:
        if _moved != before:
            return None
        if _moved:
            return Refusal(f"systemd has made {_place()} for this process", _undelegated())
        if _refusal is None:
            refusal = _hopeless(controllers)
            if refusal is not None or not bus_addresses():
                return refusal or Refusal("", DELEGATE)
            _refusal = _ask()
        if _refusal is None:
            _moved = 1
        return _refusal


def outlook() -> tuple[bool, str, str]:
    """For a person: will limits find a cgroup? The answer, why, and what would help. Asks the manager for nothing."""
    home = find_home()
    if isinstance(home, NoHome):
        return False, home.reason, home.fix
    others = _others_in(home)
    if others is None:
        why = f"{home.path} is not writable by this user"
    elif others:
        why = f"{home.path} is shared with {'process ' + str(others[0]) if others[0] else 'a process of another pid namespace'}"
    else:
        return True, f"set below {home.path}", ""
    refusal = _hopeless(())
    found = refusal or look()
    if isinstance(found, Refusal):
        return False, f"{why}; systemd cannot be asked: {found.reason}", found.fix or DELEGATE
    return True, f"{why}; the first limit has systemd, on {found}, make a scope and moves this process there", ""


def _ask() -> Refusal | None:
    name = f"shoal-{os.getpid()}-{os.urandom(4).hex()}.scope"
    refusal = move_into_scope(name)
    if refusal is None and _unit() != name:
        return Refusal(f"systemd has made {name}, but this process is in {_place()}", DELEGATE)
    return refusal if refusal is None or refusal.fix else refusal._replace(fix=DELEGATE)


def _hopeless(controllers: Collection[str]) -> Refusal | None:
    """Why nobody needs to be asked."""
    if isinstance(home := find_home(), NoHome):
        return Refusal(home.reason, home.fix)
    unit = _unit()
    if unit.endswith(".service") and not _USER_MANAGER.fullmatch(unit):
        return Refusal(f"this process belongs to {unit}, which it is not to leave", f"Delegate=yes in the unit {unit}")
    if taken := v1_controllers().keys() & set(controllers):
        return Refusal(f"cgroup v1 holds {', '.join(sorted(taken))}", "boot with systemd.unified_cgroup_hierarchy=1")
    return None


def _undelegated() -> str:
    """What helps where a scope lacks a controller: by default users are given memory and pids, newer systemd adds cpu."""
    return "systemctl edit user@.service, with [Service] Delegate=cpu cpuset io memory pids, and a new login" if os.geteuid() else ""


def _place() -> str:
    home = find_home()
    return home.path if isinstance(home, Home) else "a cgroup that cannot be seen here"


def _unit() -> str:
    """The unit that this process belongs to; "" where none can be told."""
    home = find_home()
    parts = home.path.split("/") if isinstance(home, Home) else []
    return next((part for part in reversed(parts) if _UNIT.fullmatch(part)), "")


def _others_in(home: Home) -> list[int] | None:
    """The processes directly in our cgroup that are not ours to move; None where it is not ours to change."""
    files = [home.path, os.path.join(home.path, "cgroup.procs"), os.path.join(home.path, "cgroup.subtree_control")]
    if not all(os.access(path, os.W_OK, effective_ids=True) for path in files):
        return None
    if not os.path.exists(os.path.join(home.path, "cgroup.type")):
        return []  # the root, which may hold processes all the same
    from shoal.handles.cgroup_members import strangers_in

    fd = os.open(home.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return strangers_in(fd)
    finally:
        os.close(fd)


def _forget_in_child() -> None:
    """After os.fork(): the child may need a scope of its own, since its parent lives in the one it is in."""
    global _lock, _moved, _refusal
    _lock, _moved, _refusal = threading.RLock(), 0, None


os.register_at_fork(after_in_child=_forget_in_child)
