"""Entries: which parts of which file systems a child's world is made of, and in what order they are mounted.

Among entries the first wins: one that repeats, lies below or above an earlier one is ignored, unless it asks to be nested
(spec 3.8, 3.9). Libraries come last, where no entry covers them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from shoal import loader
from shoal.actions import AddNsEntry, CloneDir
from shoal.handles.directory import bind_source
from shoal.handles.mount import Bind, MountSource
from shoal.handles.socket import Socket
from shoal.plan import Mount
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

NETWORK_PREFIX = "/svc/net"
"""Where a network is handed over: an entry that is no part of the file system."""

HELD = "kept in place for"
"""The beginning of the origin of a mount that nobody asked for."""

PATH_BYTES, COMPONENT_BYTES = 4095, 255


def clean_prefix(index: int, action: AddNsEntry) -> str:
    """The prefix without `//`, `.` and trailing `/`.

    Raises:
        InvalidArgsError: relative, with a zero byte, or with `..`.
        BadPathError: too long.
    """
    prefix = action.prefix
    parts = [part for part in prefix.split("/") if part not in ("", ".")]
    problem = ""
    if not prefix.startswith("/"):
        problem = "is not absolute"
    elif "\0" in prefix:
        problem = "holds a zero byte"
    elif ".." in parts:
        problem = "has a `..`; write the path itself"
    if problem:
        raise failure(Status.INVALID_ARGS, Stage.NAMESPACE, f"action {index}: AddNsEntry: the prefix {prefix!r} {problem}")
    if len(os.fsencode(prefix)) > PATH_BYTES or any(len(os.fsencode(part)) > COMPONENT_BYTES for part in parts):
        raise failure(Status.BAD_PATH, Stage.NAMESPACE, f"action {index}: AddNsEntry: the prefix is longer than a path can be")
    return "/" + "/".join(parts)


def check_clone_dir(index: int, action: CloneDir) -> None:
    """The shape of the prefix.

    Raises:
        InvalidArgsError: empty, relative, ends in `/`, with a zero byte, or with `..`.
    """
    prefix = action.prefix
    problem = ""
    if not prefix.startswith("/") or (prefix.endswith("/") and prefix != "/"):
        problem = "has to start with `/` and not to end with one"
    elif "\0" in prefix:
        problem = "holds a zero byte"
    elif ".." in prefix.split("/"):
        problem = "has a `..`; write the path itself"
    if problem:
        raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"action {index}: CloneDir: the prefix {prefix!r} {problem}")


def covers(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies below it, by whole components."""
    return outer in ("/", inner) or inner.startswith(outer + "/")


def cloned_directories(actions: Iterable[tuple[int, CloneDir]]) -> list[Mount]:
    """What the CloneDir actions select, in order; a directory within another selected one comes with it."""
    found = [(index, action.prefix, clone_dir_source(action.prefix)) for index, action in actions]
    chosen: list[Mount] = []
    for index, prefix, source in found:
        inside = any(other is not None and outer != prefix and covers(outer, prefix) for _, outer, other in found)
        if source is not None and not inside:
            add_entry(chosen, prefix, source, nested=False, origin=f"CloneDir, action {index}")
    return chosen


def clone_dir_source(prefix: str) -> Bind | None:
    """The caller's own directory at `prefix`, or None where there is none."""
    parts = prefix.split("/")[1:]
    if "" in parts or "." in parts:
        return None  # compared as text, it matches nothing
    try:
        fd = os.open(prefix, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return bind_source(fd, True, devices=True)
    finally:
        os.close(fd)


def socket_source(handle: Socket) -> Bind:
    """The file a unix socket is bound to.

    Raises:
        WrongTypeError: it is bound to no path.
    """
    with socket.socket(fileno=os.dup(handle.fileno())) as view:
        address = view.getsockname() if view.family == socket.AF_UNIX else None
    if not isinstance(address, str) or not address:
        raise failure(Status.WRONG_TYPE, Stage.NAMESPACE, "only a unix socket that is bound to a path can be an entry")
    try:
        fd = os.open(address, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise failure(Status.INTERNAL, Stage.NAMESPACE, f"the socket's path {address!r} is gone", error.errno) from error
    try:
        return bind_source(fd, True)
    finally:
        os.close(fd)


def add_entry(chosen: list[Mount], prefix: str, source: MountSource, *, nested: bool, origin: str) -> None:
    """Append the entry, unless an earlier one wins."""
    overlapping = any(covers(mount.where, prefix) or covers(prefix, mount.where) for mount in chosen)
    if nested or not overlapping:
        if not source.writable:
            chosen += _way_to(chosen, prefix)
        holder = _holder(chosen, prefix)
        chosen.append(Mount(prefix, source, origin, make_place=holder is None or not isinstance(holder.source, Bind)))


def _holder(chosen: list[Mount], where: str) -> Mount | None:
    """What `where` lies in."""
    holder: Mount | None = None
    for mount in chosen:
        if covers(mount.where, where) and (holder is None or covers(holder.where, mount.where)):
            holder = mount
    return holder


def _way_to(chosen: list[Mount], where: str) -> Iterable[Mount]:
    """Mounts that keep the directories on the way to `where` in their place, where they could be written to.

    What is mounted itself can be neither moved nor removed, but what it lies in could be moved away with it, and made anew under the
    old name. So each directory in between is mounted where it is. rename(2), EBUSY.

    Raises:
        SpawnError: one of them is a symbolic link, behind which nothing is mounted.
    """
    holder = _holder(chosen, where)
    if holder is None or not isinstance(holder.source, Bind) or not holder.source.writable or holder.where == where:
        return
    inside, host = holder.where.rstrip("/"), holder.source.path.rstrip("/")
    for name in where[len(inside) + 1 :].split("/")[:-1]:
        inside, host = f"{inside}/{name}", f"{host}/{name}"
        try:
            fd = os.open(host, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            what = f"{inside}, on the way to {where}, has to be a directory and no symbolic link"
            raise failure_from_errno(error.errno or 0, Stage.NAMESPACE, what) from error
        try:
            source = bind_source(fd, True)
        finally:
            os.close(fd)
        if source.path != host:
            raise failure(Status.INTERNAL, Stage.NAMESPACE, f"{inside} was exchanged for something else while it was looked at")
        yield Mount(inside, source, f"{HELD} {where}", make_place=False, is_entry=False)


def held_in_place(mounts: Iterable[Mount]) -> list[str]:
    """Directories of the caller's that are mounted only to keep them in their place."""
    return [mount.source.path for mount in mounts if isinstance(mount.source, Bind) and mount.origin.startswith(HELD)]


def add_library(chosen: list[Mount], library: loader.Library) -> None:
    """Append a library of the closure, unless an entry already has it.

    Raises:
        InternalError: an entry covers its place and does not have it.
    """
    where = library.inside
    for mount in reversed(chosen):
        if covers(mount.where, where):
            if isinstance(mount.source, Bind):
                if os.path.exists(mount.source.path + where[len(mount.where.rstrip("/")) :]):
                    return
                raise _hidden(where, mount)
            break
    # The closure names the way the linker goes; the core wants one without symbolic links.
    source = Bind(os.path.realpath(library.path), library.identity.dev, library.identity.ino, False, False)
    chosen.append(Mount(where, source, "DEFAULT_LDSVC", is_entry=False))


def _hidden(where: str, mount: Mount) -> SpawnError:
    return failure(
        Status.INTERNAL, Stage.LOADER, f"{where}, which the program needs, is hidden by the entry at {mount.where} ({mount.origin})"
    )
