"""Directories of the cgroup tree, as tests look at them from outside of shoal."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

from shoal import Job

PATIENCE_S = 60.0
"""How long the kernel may take to report something. Only a broken run, or an emulated machine at its worst, waits this long."""


def path_of(job: Job) -> Path:
    """The directory of a job."""
    return Path(os.readlink(f"/proc/self/fd/{job.fileno()}"))


def values(path: Path) -> dict[str, int]:
    """A file of lines "key number"."""
    return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}


def pids_in(path: Path) -> list[int]:
    """The processes directly in a directory."""
    return [int(pid) for pid in (path / "cgroup.procs").read_text().split()]


def group_of(pid: int | str) -> str:
    """The last part of the name of the directory a process is in."""
    return Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].strip().rpartition("/")[2]


def await_file(path: Path, reached: Callable[[str], bool]) -> str:
    """The text of an events file once it is as wanted. The kernel tells when such a file changes."""
    with path.open("rb", buffering=0) as file:
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        while not reached(text := os.pread(file.fileno(), 1 << 16, 0).decode()):
            assert poll.poll(PATIENCE_S * 1000), f"{path} stays {text!r}"
        return text


def remove(path: Path) -> None:
    """Kill what runs in a directory and remove it with everything below."""
    (path / "cgroup.kill").write_text("1")
    await_file(path / "cgroup.events", lambda text: "populated 0" in text)
    for folder, _, _ in os.walk(path, topdown=False):
        os.rmdir(folder)
