"""Names for processes in the caller's world.

The kernel names a process after the last component of the path it was executed by, and nobody but the process itself can
change that. So a program that is to be called something else is executed through a symbolic link of that name. The links
live in a tmpfs that is mounted nowhere: no file of the host is created. proc_pid_comm(5), execveat(2).
"""

from __future__ import annotations

import os
from collections import OrderedDict

from shoal.handles.forks import held_over_forks
from shoal.handles.kept import KeptFd
from shoal.handles.made import make_tmpfs
from shoal.packing import CWD_FD
from shoal.status import SpawnError

LINKS = 4096
"""Links kept for the next time; the one used longest ago goes first."""

_lock = held_over_forks()
_links: OrderedDict[tuple[str, bytes], str] = OrderedDict()
_count = 0


def name_it(name: str, target: bytes) -> tuple[int, bytes | str]:
    """A directory descriptor and a path below it that leads to `target` and ends in `name`.

    Where no tmpfs can be made (no root, no user namespaces) the target itself is returned: the name is then the kernel's.
    """
    global _count
    with _lock:
        try:
            fd = _directory.fd()
        except SpawnError:
            return CWD_FD, target
        known = _links.get((name, target))
        if known is not None:
            _links.move_to_end((name, target))
            return fd, known
        _count += 1
        link = f"{_count}/{name}"
        os.mkdir(str(_count), 0o755, dir_fd=fd)
        os.symlink(target, link, dir_fd=fd)
        _links[name, target] = link
        if len(_links) > LINKS:
            _, old = _links.popitem(last=False)
            os.unlink(old, dir_fd=fd)
            os.rmdir(old.split("/", 1)[0], dir_fd=fd)
        return fd, link


def _make_directory() -> int:
    _links.clear()
    return make_tmpfs(1 << 20, 0o755)


_directory = KeptFd(_make_directory)
