"""Cells made ahead, as they can be seen from outside: which processes wait in one, and what a process looks like in /proc.

A process that waits has the words `NAME w`, from shoal-init's start to the exec of its program; the program then has that very pid.
So a launch was warm when its process was there before the call, and nothing of shoal has to be asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rig.workload import PATIENCE_S, Report, observe
from shoal import Process, cells

PR_SET_CHILD_SUBREAPER = 36
ENOUGH = 40
"""So many launches in a row are never all cold."""
WORDS = ["workload"]
STAYS = ["workload", "drain", "0"]
PATH = os.pathsep.join(entry for entry in sys.path if entry)

PRELUDE = """
import ctypes, faulthandler, gc, resource, shutil, signal, socket, subprocess, threading, time
import shoal
from shoal import CloneFd, cells
from rig.cells import *
from rig.workload import observe
faulthandler.dump_traceback_later(20, exit=True)  # a script that hangs is a failure of the test
libc = ctypes.CDLL(None, use_errno=True)
watched = Watched(shoal.spawn)
WORDS = ["workload"]
def go(*words, **how):
    with watched.launch(workload, ["workload", *words], **how) as process:
        return process.wait(timeout=20)
"""
"""What stands in front of a script that launches and watches."""
SHORT_PATIENCE = "faulthandler.dump_traceback_later(8, exit=True)\n"

_SYSCALLS = ctypes.CDLL(None, use_errno=True)
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31}.get(os.uname().machine)


def children(pid: int | None = None) -> set[int]:
    """The direct children of a process, whichever of its threads made them; zombies too."""
    found: set[int] = set()
    folder = f"/proc/{'self' if pid is None else pid}/task"
    with contextlib.suppress(FileNotFoundError):
        threads: set[str] = set()
        while not threads or not threads <= set(os.listdir(folder)):  # those of a thread that has ended meanwhile are another's now
            threads = set(os.listdir(folder))
            found.clear()
            for thread in threads:
                with contextlib.suppress(OSError):
                    found |= {int(child) for child in Path(f"{folder}/{thread}/children").read_text().split()}
    return found


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return []


def waiting(pid: int | None = None) -> set[int]:
    """The children that wait in a cell for their program, or have been told just now what it is."""
    return {child for child in children(pid) if _words(child)[1:] == [b"w"]}


def keepers(pid: int | None = None) -> set[int]:
    """The children that are the first process of a cell."""
    return {child for child in children(pid) if _words(child)[:1] == [b"shoal-init"]}


def makers(pid: int | None = None) -> set[int]:
    """The children that make cells."""
    return {child for child in children(pid) if _words(child)[:2] == [b"shoal-cells", b"f"]}


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait until `holds` gives something true, and return it. For what /proc tells of without any event."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)
    return found


def descriptors() -> set[int]:
    """The open descriptors of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.add(int(name))
    return found


def count_sockets_to_cells() -> int:
    """How many descriptors of this process lead to a waiting process: nothing else here is of this type."""
    count = 0
    for fd in descriptors():
        try:
            end = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        with end:
            count += end.type == socket.SOCK_SEQPACKET
    return count


@dataclass
class Watched:
    """A launcher that takes note of each launch whether its process was there before the call."""

    launch: Callable[..., Process]
    warm: list[bool] = field(default_factory=list)

    def __call__(self, path: Any, argv: Any, **rest: Any) -> Process:
        cells.wait_ready()  # a cell that is finished only now would pass for one made in the call
        before = waiting()
        process = self.launch(path, argv, **rest)
        self.warm.append(process.pid in before)
        return process

    def until_warm(self, path: Any, argv: Any, **rest: Any) -> Process:
        """The first of many equal launches whose process was there before. The others are ended."""
        for _ in range(ENOUGH):
            process = self(path, argv, **rest)
            if self.warm[-1]:
                return process
            process.kill_cell()
            process.wait(timeout=PATIENCE_S)
            process.close()
        raise AssertionError(f"none of {ENOUGH} launches was warm")

    def warm_up(self, path: Any, argv: Any, **rest: Any) -> None:
        """Launch until it is warm, and until at least one more cell waits."""
        with self.until_warm(path, argv, **rest) as process:
            process.kill()
            process.wait(timeout=PATIENCE_S)
        until(waiting, "a cell waits")

    def observe_warm(self, *words: Any, **rest: Any) -> Report:
        """What `observe` gives, of the first warm launch."""
        for _ in range(ENOUGH):
            report = observe(self, *words, **rest)
            if self.warm[-1]:
                return report
        raise AssertionError(f"none of {ENOUGH} launches was warm")


# --- what a process looks like -------------------------------------------------------------------------------------

# Its numbers, what it uses of memory and time, and how far its table of descriptors once grew: no two launches are equal in these.
# SigQ counts for the whole user.
_OF_ONE_PROCESS = re.compile(r"Tgid|Pid|PPid|State|FDSize|Threads|SigQ|Vm.*|Rss.*|.*ctxt_switches|HugetlbPages")
_FILES = (
    "limits timerslack_ns coredump_filter oom_score_adj personality loginuid sessionid cgroup cpuset cmdline environ comm uid_map gid_map "
    "setgroups net/route net/unix timens_offsets"
)
_STAT = {"terminal": 4, "exit signal": 35, "priority": 15, "nice": 16, "real-time priority": 37, "policy": 38}
_AUXV_OF_INTEREST = {6, 11, 12, 13, 14, 16, 17, 23, 26}  # page size, ids, hardware, AT_SECURE: what does not depend on chance


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        return f"errno {error.errno}"


def appearance(pid: int) -> dict[str, Any]:
    """What /proc tells of a process, without what is different for any two."""
    folder = f"/proc/{pid}"
    found: dict[str, Any] = {}
    for line in _read(f"{folder}/status").splitlines():
        key, _, text = line.partition(":")
        if not _OF_ONE_PROCESS.fullmatch(key):
            found[f"status {key}"] = text.split()[1:] if key.startswith("NS") else text.strip()  # the first is our number for it
    found |= {name: _read(f"{folder}/{name}") for name in _FILES.split()}
    fields = _read(f"{folder}/stat").rpartition(")")[2].split()
    found |= {name: fields[at] for name, at in _STAT.items()}
    # Not the numbers of mounts and devices, which the kernel gives out as they come.
    found["mounts"] = [re.sub(r"^\d+ \d+ \d+:\d+ ", "", line) for line in _read(f"{folder}/mountinfo").splitlines()]
    found["interfaces"] = [line.split(":")[0].strip() for line in _read(f"{folder}/net/dev").splitlines()[2:]]
    found["namespaces shared with us"] = {kind for kind, name in namespaces(pid).items() if name == namespaces("self").get(kind)}
    found |= {name: os.readlink(f"{folder}/{name}") for name in ("exe", "cwd", "root")}
    for fd in sorted(os.listdir(f"{folder}/fd"), key=int):
        how = [line for line in _read(f"{folder}/fdinfo/{fd}").splitlines() if line.startswith(("flags:", "pos:"))]
        found[f"descriptor {fd}"] = (os.readlink(f"{folder}/fd/{fd}"), *how)
    found["io priority"] = None if _IOPRIO_GET is None else _SYSCALLS.syscall(_IOPRIO_GET, 1, pid)
    vector = Path(f"{folder}/auxv").read_bytes()
    pairs = struct.iter_unpack("=QQ", vector[: len(vector) // 16 * 16])
    found |= {f"auxv {key}": value for key, value in pairs if key in _AUXV_OF_INTEREST}
    return found


def namespaces(pid: int | str) -> dict[str, str]:
    """Kind of namespace to its identity. Not the one for children, which exists only once there is a child."""
    found = {}
    for kind in os.listdir(f"/proc/{pid}/ns"):
        if not kind.endswith("_for_children"):
            found[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is not the same in two appearances."""
    return {key: (one.get(key), other.get(key)) for key in sorted({*one, *other}) if one.get(key) != other.get(key)}


def look(launch: Callable[..., Process], path: str, **how: Any) -> dict[str, Any]:
    """Launch the workload as `how` says, and look at it once it runs. It ends afterwards."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            argv = ["workload", "to", "1022", "comm", "drain", "1022"]
            process = launch(path, argv, **how | {"actions": [*how.get("actions", ()), _hand_over(theirs)]})
        with process:
            assert select.select([ours], [], [], PATIENCE_S)[0]
            assert ours.recv(100).startswith(b"comm")
            found = appearance(process.pid)
            del found["descriptor 1022"]
            ours.shutdown(socket.SHUT_RDWR)
            assert process.wait(timeout=PATIENCE_S) == 0
    return found


def _hand_over(end: socket.socket) -> Any:
    from shoal import CloneFd

    return CloneFd(end, 1022)


# --- the end of whole programs -------------------------------------------------------------------------------------


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Meanwhile everything that outlives the program that made it becomes a child of this process: prctl(2)."""
    _SYSCALLS.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _SYSCALLS.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def await_end_of_adopted(besides: Collection[int], patience_s: float = PATIENCE_S) -> list[str]:
    """Wait until all children but those named have ended, and reap them. What is left when patience is, in words."""
    deadline = time.monotonic() + patience_s
    while adopted := children() - set(besides):
        # All at once: the first process of a cell does not end before the others in it are reaped, and that may be ours to do.
        pidfds = [os.pidfd_open(pid) for pid in adopted]
        try:
            ready = select.select(pidfds, [], [], max(0.0, deadline - time.monotonic()))[0]
            for pidfd in ready:
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        finally:
            for pidfd in pidfds:
                os.close(pidfd)
        if not ready:
            return [f"{pid} {_words(pid)} {_read(f'/proc/{pid}/wchan')}" for pid in adopted]
    return []
