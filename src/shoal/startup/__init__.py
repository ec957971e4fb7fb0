"""What this process was handed by the program that started it.

The first call of any function here claims the startup table: the SHOAL_STARTUP line and the LISTEN_* variables leave
os.environ, and every descriptor the table names is checked, marked close-on-exec and wrapped in a handle, so that
nothing handed over goes on by accident to programs started later. All functions are safe from any thread.

A program that was not started by shoal, or was handed nothing, gets empty answers, never an error. A table that
cannot be read counts as nothing handed over, and a RuntimeWarning says so. A descriptor that is no longer the one the
table speaks of (closed and reused before the claim) is left alone and not handed out.

A program that a process manager started finds more in `shoal.startup.domain`.

Source: zx_take_startup_handle() and zx_job_default() in Zircon's <zircon/process.h>, zx_utc_reference_get(), fdio_ns_export_root().
"""

from __future__ import annotations

import fcntl
import functools
import os
import sys
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from shoal.handles.base import PA_HND_TYPE, Handle, HandleType
from shoal.handles.clock import UtcClock, use_given_clock
from shoal.handles.directory import Directory
from shoal.handles.forks import held_over_forks
from shoal.handles.job import Job, use_given_job
from shoal.handles.netns import NetNs
from shoal.handles.received import received
from shoal.startup_table import VARIABLE, StartupEntry, StartupHandle, StartupTable

_LISTEN: Final = ("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID")
_NAME_BYTES: Final = 31
_COMM_BYTES: Final = 15


class _Claimed:
    """What the startup table gave, from the first use on."""

    def __init__(self, name: str | None = None, entries: tuple[StartupEntry, ...] = ()) -> None:
        self.name = name
        self.entries = entries
        self.unclaimed: list[tuple[int, Handle, str]] = []
        self.job: Job | None = None
        self.clock: UtcClock | None = None


_lock = held_over_forks()


def handles() -> Mapping[int, Handle]:
    """The startup handles nobody has taken yet, by id, in the order they were given; borrowed.

    A picture of this moment: later takes do not change it, but a handle that is taken belongs to its taker from then
    on. Where an id was given more than once the one `take_handle()` would return is shown. The default job and the
    UTC clock are not here: `job()` and `utc_clock()` hold them.
    """
    with _lock:
        found: dict[int, Handle] = {}
        for id, handle, _ in _table().unclaimed:
            found.setdefault(id, handle)
    return MappingProxyType(found)


def names() -> Mapping[str, int]:
    """The ids of the startup handles that were given a name and that nobody has taken yet, by that name.

    A picture of this moment, as `handles()` is. Of several with one name the first counts.
    """
    with _lock:
        found: dict[str, int] = {}
        for id, _, name in _table().unclaimed:
            if name:
                found.setdefault(name, id)
    return MappingProxyType(found)


def take_handle(id: int) -> Handle | None:
    """Take the first unclaimed startup handle with exactly this id, type and argument; None when there is none.

    Two threads never get the same handle. Equal ids come out in the order they were given.

    Args:
        id: made by `PA_HND(type, arg)`; a bare `HandleType` means argument 0.
    Ownership: the handle belongs to the caller, who closes it.
    Source: zx_take_startup_handle().
    """
    with _lock:
        unclaimed = _table().unclaimed
        for index, (given, _, _) in enumerate(unclaimed):
            if given == id:
                return unclaimed.pop(index)[1]
    return None


def job() -> Job | None:
    """The job handed over with `CLONE_JOB` or as `HandleType.JOB_DEFAULT`; None when there is none. Borrowed.

    Source: zx_job_default().
    """
    with _lock:
        return _table().job


def utc_clock() -> UtcClock | None:
    """The clock handed over with `CLONE_UTC_CLOCK` or as `HandleType.CLOCK_UTC`; None when there is none. Borrowed.

    Source: zx_utc_reference_get().
    """
    with _lock:
        return _table().clock


def namespace() -> Mapping[str, Handle]:
    """The entries of this process's namespace, path to handle, ready to be handed on with `AddNsEntry`.

    In a cell these are the entries it was made with, in order; an entry that is no longer there is left out. In the
    caller's world there is one, "/". The network a cell was given is there only if the cell has a /proc to open it from.

    Raises:
        SpawnError: an entry is there but cannot be opened.
    Ownership: the handles are new with each call and belong to the caller.
    Source: fdio_ns_export_root().
    """
    with _lock:
        entries = _table().entries
    if not entries:
        return MappingProxyType({"/": Directory.open("/", writable=True)})
    opened: dict[str, Handle] = {}
    for entry in entries:
        try:
            opened.setdefault(entry.prefix, _open_entry(entry))
        except FileNotFoundError:
            continue
    return MappingProxyType(opened)


def name() -> str:
    """The name this process was given, at most 31 bytes.

    Without a given name it is the one the kernel shows in /proc/self/comm, or argv[0] where that tells more of the
    same name (the kernel keeps 15 bytes) and where there is no /proc.
    """
    with _lock:
        given = _table().name
    if given is not None:
        return given
    # orig_argv is what the kernel was given: sys.argv[0] is the script where the process is the interpreter.
    argv0 = os.fsencode(sys.orig_argv[0]) if sys.orig_argv else b""
    try:
        with open("/proc/self/comm", "rb") as file:
            comm = file.read().removesuffix(b"\n")
    except OSError:
        comm = argv0[:_COMM_BYTES]
    return os.fsdecode(argv0[:_NAME_BYTES] if comm == argv0[:_COMM_BYTES] else comm)


@functools.cache
def _table() -> _Claimed:
    """What was claimed; claims on the first call. The caller holds `_lock`, since a cache alone may run this twice."""
    line = os.environ.pop(VARIABLE, None)
    if line is None:
        return _Claimed()  # LISTEN_* stay: they are somebody else's, such as systemd's
    for variable in _LISTEN:
        os.environ.pop(variable, None)
    try:
        table = StartupTable.decode(line)
    except ValueError as error:
        warnings.warn(f"nothing is taken from the startup table: {error}", RuntimeWarning, stacklevel=3)
        return _Claimed()
    claimed = _Claimed(table.name, table.entries)
    owned: set[int] = set()
    for given in table.handles:
        # Two handles on one descriptor would close each other's; no launch makes such a table.
        if given.fd in owned or not _is_the_one(given):
            continue
        owned.add(given.fd)
        handle = received(given.kind, given.fd, given.rights)
        # By type, whatever the argument; the last one wins, and the earlier ones are dropped.
        if PA_HND_TYPE(given.id) == HandleType.JOB_DEFAULT and isinstance(handle, Job):
            claimed.job = handle
        elif PA_HND_TYPE(given.id) == HandleType.CLOCK_UTC and isinstance(handle, UtcClock):
            claimed.clock = handle
        else:
            claimed.unclaimed.append((given.id, handle, given.name))
    return claimed


def _is_the_one(given: StartupHandle) -> bool:
    """Is the descriptor still the object the table was written about? If so it is close-on-exec afterwards."""
    try:
        status = os.fstat(given.fd)
        if (status.st_dev, status.st_ino) != (given.dev, given.ino):
            return False
        fcntl.fcntl(given.fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    except OSError:
        return False
    return True


def _open_entry(entry: StartupEntry) -> Handle:
    if entry.kind == NetNs.kind:
        return NetNs.host()
    if os.path.isdir(entry.prefix):
        return Directory.open(entry.prefix, writable=entry.writable)
    return Directory.file(entry.prefix, writable=entry.writable)


use_given_job(job)
use_given_clock(utc_clock)
