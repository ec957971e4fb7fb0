"""Where the cgroup v2 tree is, and where in it this process lives.

A pure cgroup v2 host has it at /sys/fs/cgroup, a hybrid one below /sys/fs/cgroup/unified; in a container either may be
elsewhere, show a part of the tree only, or be missing. So nothing is assumed: /proc/self/mountinfo says what is mounted,
/proc/self/cgroup where we are, and both speak relative to our cgroup namespace.

Source: cgroups(7), cgroup_namespaces(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

DELEGATE = "systemd-run --user --scope -p Delegate=yes PROGRAM"
"""How an ordinary user gets a cgroup of their own."""

LEAF_SUFFIX = "self"
"""Last part of the name of a directory for the processes directly in the one above, see cgroup_members.py."""

_LEAF = re.compile(rf"shoal-\d+-\d+-{LEAF_SUFFIX}")


class Home(NamedTuple):
    """The cgroup this process lives in: the default job. `device` is st_dev of the file system."""

    path: str
    device: int


class NoHome(NamedTuple):
    """Why there is none, and what would help."""

    reason: str
    fix: str


class _Mount(NamedTuple):
    root: str
    point: str
    device: int


def find_home() -> Home | NoHome:
    """The directory of our own cgroup, as found now."""
    try:
        own = _own_path()
        mounts = _cgroup2_mounts()
    except OSError as error:
        return NoHome(f"/proc cannot be read ({error.strerror}), so the cgroup of this process is not known", "mount /proc")
    if not mounts:
        return NoHome("no cgroup v2 file system is mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup (as root)")
    if own is None:
        return NoHome("this process is in no cgroup v2 cgroup", "boot with cgroup v2: systemd.unified_cgroup_hierarchy=1")
    for mount in mounts:
        inside = _below(own, mount.root)
        if inside is None:
            continue
        path = os.path.join(mount.point, inside).rstrip("/") or "/"
        # A process that made room for limits lives in a leaf of its own; its jobs stay next to that leaf.
        if is_leaf(os.path.basename(path)):
            path = os.path.dirname(path)
        try:
            if os.stat(path).st_dev == mount.device:  # else something is mounted over it
                return Home(path, mount.device)
        except OSError:
            continue
    return NoHome(
        f"the cgroup of this process ({own}) is not visible below {mounts[0].point}",
        "mount the cgroup2 file system inside the container, with a cgroup namespace of its own",
    )


def is_leaf(name: str) -> bool:
    """Is this the name of a directory that is no job, but holds the processes directly in the one above?"""
    return _LEAF.fullmatch(name) is not None


def availability() -> tuple[bool, str, str]:
    """Can jobs be cgroups here? The answer, why, and what would help when they cannot."""
    home = find_home()
    if isinstance(home, NoHome):
        return False, home.reason, home.fix
    # Moving a new process from our cgroup into one below takes write access to both files.
    for needed in (home.path, os.path.join(home.path, "cgroup.procs")):
        if not os.access(needed, os.W_OK, effective_ids=True):
            return False, f"{needed} is not writable by this user", f"start under: {DELEGATE}"
    return True, f"jobs are cgroups below {home.path}", ""


def is_cgroup(fd: int) -> bool:
    """Is this descriptor a directory of a cgroup v2 tree?"""
    # Where no mount can be seen (a cell), the files that only such a directory has must do.
    try:
        device = os.fstat(fd).st_dev
        os.stat("cgroup.procs", dir_fd=fd)
        os.stat("cgroup.subtree_control", dir_fd=fd)
    except OSError:
        return False
    try:
        devices = {mount.device for mount in _cgroup2_mounts()}
    except OSError:
        return True
    return not devices or device in devices


def v1_controllers() -> dict[str, str]:
    """Controllers that a mounted cgroup v1 hierarchy has taken, and where it is."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return {}
    taken: dict[str, str] = {}
    for fields in mounts:
        after = fields[fields.index("-") + 1 :]
        if after[0] == "cgroup":
            taken |= dict.fromkeys(after[2].split(","), _unescape(fields[4]))
    return taken


def _own_path() -> str | None:
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::"):
                return line[3:].rstrip("\n")
    return None


def _cgroup2_mounts() -> list[_Mount]:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                major, _, minor = fields[2].partition(":")
                found.append(_Mount(_unescape(fields[3]), _unescape(fields[4]), os.makedev(int(major), int(minor))))
    return found


def _below(path: str, root: str) -> str | None:
    """`path` relative to `root`, or None when it is not below. Both as /proc shows them in a cgroup namespace."""
    if ".." in path.split("/") or ".." in root.split("/"):
        return None  # outside of our namespace: the names in between are not told
    if root in ("/", path) or path.startswith(root + "/"):
        return path[len(root) :].strip("/") if root != "/" else path.strip("/")
    return None


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
