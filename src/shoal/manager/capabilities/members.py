"""Members: which processes belong to a domain, whatever they have called themselves or whose children they have become.

What tells is what holds the domain together, and is asked of each process itself, so that a number that has become somebody else's is
found out:

* a job that is a cgroup: the processes are in it, and nothing they do lets them leave;
* a pid namespace (a cell): they live in it, or in one nested in it;
* neither (a program in its caller's world): the program and what descends from it now. What was left behind by its parent is not
  found, since then only a cgroup would tell.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress

from shoal.handles.cgroup_files import walk
from shoal.handles.pidns import is_or_lies_in
from shoal.manager.capabilities.procfs import ProcessDirectory


def in_pid_namespace(inode: int) -> list[int]:
    """The processes of a pid namespace, and of those nested in it."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), ProcessDirectory(name) as directory:
                if lives_in(directory, inode):
                    found.append(int(name))
    return sorted(found)


def lives_in(directory: ProcessDirectory, inode: int) -> bool:
    """Whether a process lives in a pid namespace, or in one nested in it."""
    try:
        fd = directory.open("ns/pid")
    except OSError:
        return False
    return is_or_lies_in(fd, inode)


def descendants(first: Collection[int]) -> list[int]:
    """Processes and all that descend from them now, each found as a child of one found before."""
    found = dict.fromkeys(first)
    left = list(found)
    for pid in left:  # which grows meanwhile
        with suppress(OSError), ProcessDirectory(pid) as directory:
            more = [child for child in directory.children() if child not in found]
            found |= dict.fromkeys(more)
            left += more
    return left


def in_cgroup(fd: int) -> Iterator[int]:
    """The processes in a cgroup and below it."""
    for directory in walk(fd):
        listed = b""
        with suppress(OSError):  # removed meanwhile
            file = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            try:
                while part := os.read(file, 1 << 16):
                    listed += part
            finally:
                os.close(file)
        yield from (pid for word in listed.split() if (pid := int(word)))
