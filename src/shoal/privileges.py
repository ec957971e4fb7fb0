"""What this process may do: its capabilities, its user namespace, and what else is asked at every launch."""

from __future__ import annotations

import functools
import os

from shoal import _native

CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24
MAKING_CELLS = {
    6: "CAP_SETGID",
    7: "CAP_SETUID",
    8: "CAP_SETPCAP",
    12: "CAP_NET_ADMIN",
    18: "CAP_SYS_CHROOT",
    19: "CAP_SYS_PTRACE",
    CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
}
"""What it takes to make cells without a user namespace: capabilities(7). A container's root often has some of them only."""


@functools.lru_cache(maxsize=8)
def _capabilities(euid: int) -> int:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


@functools.lru_cache(maxsize=8)
def _lacking(euid: int) -> tuple[str, ...]:
    effective = _capabilities(euid)
    return tuple(name for capability, name in MAKING_CELLS.items() if not effective >> capability & 1)


def has_capability(capability: int) -> bool:
    """Whether this process has a capability, by its number."""
    try:
        return bool(_capabilities(os.geteuid()) >> capability & 1)
    except OSError:
        return False


def is_privileged() -> bool:
    """Whether this process may make cells without a user namespace: it has all of `MAKING_CELLS`. Else it does as an ordinary user does."""
    return not lacking()


def lacking() -> tuple[str, ...]:
    """The capabilities of `MAKING_CELLS` that this process has not."""
    try:
        return _lacking(os.geteuid())
    except OSError:
        return tuple(MAKING_CELLS.values())


@functools.cache
def is_initial_user_namespace() -> bool:
    """Whether every user id exists here as it is, which is so in the user namespace the machine started with only."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return False


def can_raise_limits() -> bool:
    """Whether this process may give more than it was left itself: setrlimit(2)."""
    return has_capability(CAP_SYS_RESOURCE) and is_initial_user_namespace()


def has_room_for_keys() -> bool:
    """Whether this user may have as many keys as it starts children. Root may have a million, anybody else 200: keyrings(7)."""
    return os.getuid() == 0 and is_initial_user_namespace()


@functools.cache
def has_kcmp() -> bool:
    """Whether the kernel tells if two descriptors are the same open file."""
    try:
        _native.find_duplicate(0, b"")
        with open(os.devnull, "rb") as null:
            _native.find_duplicate(null.fileno(), null.fileno().to_bytes(4, "little"))
    except OSError:
        return False
    return True
