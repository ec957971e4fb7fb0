"""What this machine offers to tests. `needs("...")` skips with the name of the missing feature, never silently."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOCKET_PROXY = "/lib/systemd/systemd-socket-proxyd"


def unified_cgroup() -> Path | None:
    """The directory of this process's cgroup in the v2 tree, also when that tree is only part of a hybrid."""
    mount = next((Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line), None)
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None)
    if mount is None or own is None:
        return None
    path = mount / own.lstrip("/")
    return path.parent if path.name.endswith("-self") else path  # the leaf that a job's processes live in once it hands on controllers


def _can_make_cgroups() -> bool:
    own = unified_cgroup()
    return own is not None and os.access(own, os.W_OK) and os.access(own / "cgroup.procs", os.W_OK)


def _user_namespaces() -> bool:
    return subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdigit())


def _readable_kernel_log() -> bool:
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"  # it tells of processes by the machine's own numbers


FEATURES: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "an ordinary user": lambda: os.geteuid() != 0,
    "a cgroup v2 tree in which groups can be made": _can_make_cgroups,
    "user namespaces for ordinary users": _user_namespaces,
    "a limit of processes for each pid namespace (Linux 6.14)": lambda: os.geteuid() == 0 and _release() >= (6, 14),
    "a cgroup v1 tree that limits processes": lambda: os.access("/sys/fs/cgroup/pids/cgroup.procs", os.W_OK),
    "a log of the kernel that this user may read": _readable_kernel_log,
    "file systems in user space (/dev/fuse)": lambda: os.access("/dev/fuse", os.R_OK | os.W_OK) and os.geteuid() == 0,
    "systemd-socket-proxyd (Debian package systemd)": lambda: os.access(SOCKET_PROXY, os.X_OK),
    "dbus-daemon (Debian package dbus-daemon)": lambda: shutil.which("dbus-daemon") is not None,
    "unshare and setpriv (Debian package util-linux)": lambda: bool(shutil.which("unshare") and shutil.which("setpriv")),
}


@functools.cache
def has(feature: str) -> bool:
    """Whether `feature` is there. A name that is not in FEATURES is a mistake in the test."""
    return FEATURES[feature]()


def needs(feature: str) -> pytest.MarkDecorator:
    """Skip the test where `feature` is missing, and say so."""
    return pytest.mark.skipif(not has(feature), reason=f"needs {feature}")


def broken(why: str, *, always: bool = True) -> pytest.MarkDecorator:
    """Fails at present: always, or only where two things happen at the same moment."""
    return pytest.mark.xfail(reason=why, strict=always)
