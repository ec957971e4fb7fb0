"""Every choice between kernel features, made once by trying. `shoal doctor` prints it.

Nothing here looks at version numbers: distributions carry features over, and containers take them away.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import functools
import os
from dataclasses import dataclass

from shoal import _native
from shoal.packing import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, Packer

CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a machine may allow or not.

    Attributes:
        name: short, lower case.
        available: whether it works here, for this user.
        essential: whether shoal cannot spawn without it.
        detail: what was seen.
        fix: a command or a setting that would make it available; empty when there is none or none is needed.
    """

    name: str
    available: bool
    essential: bool
    detail: str
    fix: str = ""


@functools.lru_cache(maxsize=8)
def _capable(euid: int, capability: int) -> bool:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def is_privileged() -> bool:
    """Whether this process may make namespaces and mounts without a user namespace (CAP_SYS_ADMIN)."""
    try:
        return _capable(os.geteuid(), CAP_SYS_ADMIN)
    except OSError:
        return False


def try_namespaces(flags: int) -> int:
    """0 when a child in new namespaces `flags` could be made and set up, or the errno. Leaves nothing behind."""
    packer = Packer()
    if flags & CLONE_NEWUSER:
        uid, gid = os.geteuid(), os.getegid()
        packer.op("WRITE", "setgroups", text="/proc/self/setgroups", text2="deny")
        packer.op("WRITE", "uid_map", text="/proc/self/uid_map", text2=f"{uid} {uid} 1\n")
        packer.op("WRITE", "gid_map", text="/proc/self/gid_map", text2=f"{gid} {gid} 1\n")
    if flags & CLONE_NEWNS:
        packer.op("PRIVATE_MOUNTS", "mounts")
    if flags & CLONE_NEWNET:
        packer.op("LOOPBACK_UP", "loopback")
    *_, error, slots = _native.launch(packer.pack(clone_flags=flags, collect=True), b"", 0, b"", 0)
    return 0 if slots is not None else error or errno.EIO


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


def _syscall(number: int, *args: int) -> int:
    """The result of a raw system call, or -errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args)))
    return -ctypes.get_errno() if result < 0 else result


def landlock_abi() -> int:
    """The Landlock ABI the kernel offers, 0 for none: landlock_create_ruleset(2)."""
    return max(0, _syscall(444, 0, 0, 1))


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _user_namespace_feature() -> Feature:
    error = try_namespaces(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET)
    if not error:
        return Feature("user namespaces", True, False, "a cell can be made without root")
    fix = "run as root, or let the administrator allow unprivileged user namespaces"
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        fix = "sysctl user.max_user_namespaces=15000"
    elif _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        fix = "sysctl kernel.unprivileged_userns_clone=1"
    elif _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        fix = "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,` for this interpreter"
    return Feature("user namespaces", False, not is_privileged(), os.strerror(error), fix)


def _clone_feature() -> Feature:
    number = 435  # clone3, the same on every architecture
    answer = -_syscall(number, 0, 0)
    if answer == errno.ENOSYS:
        return Feature("clone3", False, False, "refused (a container's filter?): children join their job after the clone, by themselves")
    return Feature("clone3", True, False, "children begin in their job")


def features() -> list[Feature]:
    """What this machine allows, tried now, in the order a person would want to read it."""
    privileged = is_privileged()
    found = [
        Feature("kernel", True, True, f"Linux {os.uname().release} on {os.uname().machine}"),
        _clone_feature(),
        Feature("root", privileged, False, "may mount and make namespaces" if privileged else "an ordinary user"),
        _user_namespace_feature(),
    ]
    if privileged:
        error = try_namespaces(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET)
        found.append(
            Feature("namespaces as root", not error, False, "a cell can be made" if not error else os.strerror(error),
                    "" if not error else "start the container with CAP_SYS_ADMIN, or without a seccomp filter that forbids clone and mount")
        )
    found.append(Feature("kcmp", has_kcmp(), False, "TransferFd notices a descriptor that has a duplicate" if has_kcmp() else
                         "not answered: TransferFd cannot notice duplicates"))
    abi = landlock_abi()
    found.append(Feature("landlock", abi > 0, False, f"ABI {abi}" if abi else "not offered", "" if abi else "boot with lsm=...,landlock"))
    seccomp = _read("/proc/sys/kernel/seccomp/actions_avail")
    found.append(Feature("seccomp", bool(seccomp), False, seccomp or "not offered"))
    return found
