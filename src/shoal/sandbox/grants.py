"""Grants: what a program is handed, and the view of the files that results.

Everything here is a decision about names. Nothing is opened or mounted: each Grant becomes one AddNsEntry.
Looks at the host only to tell directories from files and to follow symbolic links.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shoal.handles.directory import DEVICES
from shoal.sandbox.errors import DirectoryError, RequestError

TMP_SIZE = "1G"
"""Most that the private /tmp, or a --tmpfs without a size, can hold. A bound, not a reservation: pages are taken when written."""

NETWORK_FILES = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/ssl/certs",
    "/etc/pki/ca-trust/extracted",
    "/usr/share/ca-certificates",
)
"""What a program needs besides a network to reach https://example.org: names and public certificates. Read-only, where they exist."""

_MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_MADE_IN_DEV = ("shm", "fd", "stdin", "stdout", "stderr", "pts", "ptmx")
_LINKS_MAX = 40


class Kind(enum.Enum):
    """What is behind a grant."""

    PATH = "path"
    TMPFS = "tmpfs"
    PROC = "proc"
    DEVICES = "devices"


class Grant(NamedTuple):
    """Something at `dest`. `source` is the host's path when `kind` is PATH."""

    kind: Kind
    dest: str
    source: str = ""
    writable: bool = False
    size: str = TMP_SIZE
    asked: bool = True
    """False for what every program gets, which anything asked for replaces."""


# --- as the command line writes them ----------------------------------------------------------------


def parse_bind(text: str, *, writable: bool, cwd: str) -> list[Grant]:
    """The grants that `--ro` or `--rw SRC[:DEST]` stands for.

    DEST begins at the last ":/" that has no backslash before it; `\\:` is a colon of the path. Without a DEST the file appears
    where it is on the host; when symbolic links lead there, under its real path as well, because programs ask for both.

    Raises:
        RequestError: no such file, or a DEST that is no usable place.
    """
    option = "--rw" if writable else "--ro"
    source, dest = split_dest(text)
    if not source:
        raise RequestError(f"{option} {text}: SRC is empty")
    try:
        return grant_path(source, dest, writable=writable, cwd=cwd, option=option)
    except FileNotFoundError as error:
        relative = ":" in source and os.path.lexists(os.path.join(cwd, source.rpartition(":")[0]))
        advice = "; DEST has to be an absolute path" if relative else ""
        raise RequestError(f"{option} {text}: {source}: {error.strerror}{advice}") from None
    except OSError as error:
        raise RequestError(f"{option} {text}: {source}: {error.strerror}") from None


def grant_path(source: str, dest: str | None, *, writable: bool, cwd: str, option: str) -> list[Grant]:
    """The grants for a file or directory of the host, at `dest` or where it is.

    Raises:
        OSError: it is not there.
        RequestError: `dest` is no usable place; names `option`.
    """
    path = os.path.join(cwd, source)
    os.stat(path)
    real = os.path.realpath(path)
    if dest is not None:
        return [Grant(Kind.PATH, check_dest(dest, option), real, writable)]
    named = os.path.normpath(path)
    if named != real and os.path.realpath(named) == real:
        return [Grant(Kind.PATH, named, real, writable), Grant(Kind.PATH, real, real, writable)]
    return [Grant(Kind.PATH, real, real, writable)]


def parse_tmpfs(text: str) -> Grant:
    """The grant that `--tmpfs DEST[:SIZE]` stands for."""
    from shoal.units import parse_size

    dest, colon, size = text.rpartition(":")
    if colon and not size.startswith("/") and not dest.endswith("\\"):
        try:
            parse_size(size)
        except ValueError as error:
            raise RequestError(f"--tmpfs {text}: {error}") from None
    else:
        dest, size = text, TMP_SIZE
    return Grant(Kind.TMPFS, check_dest(dest.replace("\\:", ":"), "--tmpfs"), writable=True, size=size)


def split_dest(text: str) -> tuple[str, str | None]:
    """SRC and DEST of `SRC[:DEST]`; DEST is None when there is none."""
    at = len(text)
    while (at := text.rfind(":/", 0, at)) >= 0:
        if at == 0 or text[at - 1] != "\\":
            return text[:at].replace("\\:", ":"), text[at + 1 :].replace("\\:", ":")
    return text.replace("\\:", ":"), None


def check_dest(dest: str, option: str) -> str:
    """`dest` without doubled and trailing slashes.

    Raises:
        RequestError: it is not absolute, or climbs with `..`.
    """
    if not dest.startswith("/"):
        raise RequestError(f"{option}: the place in the program's world has to be an absolute path, not {dest!r}")
    parts = [part for part in dest.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise RequestError(f"{option}: {dest!r} has a '..' in it; write the path it means")
    return "/" + "/".join(parts)


# --- laid out ---------------------------------------------------------------------------------------


def lay_out(asked: Iterable[Grant], *, program: str, scripts: Sequence[str] = (), network: bool, tmp: bool = True) -> tuple[Grant, ...]:
    """All grants of one run, each place once, parents before what lies inside them.

    Besides what was asked for there are a private /tmp (with `tmp`), /proc, a minimal /dev, the program itself and the `scripts` it is
    a script for at their own paths, with a network the files of NETWORK_FILES, and /bin, /lib... where the host has them as links into
    a directory that is granted.

    Raises:
        RequestError: one place is asked for twice with different contents.
    """
    places: dict[str, Grant] = {}
    for grant in asked:
        other = places.get(grant.dest)
        if other is not None and other != grant:
            raise RequestError(f"{grant.dest} is granted twice: {_words(other)} and {_words(grant)}")
        places[grant.dest] = grant
    wanted = set(places)
    for grant in _defaults(tmp):
        places.setdefault(grant.dest, grant)
    _drop_risky_doubles(places, wanted)
    for grant in _merged_directories(places.values()):
        places.setdefault(grant.dest, grant)
    for grant in places.values():
        _check_place(grant, places)
    for path in [program, *scripts, *(NETWORK_FILES if network else ())]:
        if os.path.exists(path) and View(tuple(places.values())).missing(path) is not None:
            grant = Grant(Kind.PATH, path, os.path.realpath(path), asked=False)
            if _place(grant, places) is None or os.path.lexists(_place(grant, places) or ""):
                places.setdefault(path, grant)
    return tuple(sorted(places.values(), key=_depth))


def _defaults(tmp: bool) -> list[Grant]:
    return [
        *([Grant(Kind.TMPFS, "/tmp", writable=True, asked=False)] if tmp else []),
        Grant(Kind.PROC, "/proc", asked=False),
        Grant(Kind.DEVICES, "/dev", asked=False),
    ]


def _place(grant: Grant, places: dict[str, Grant]) -> str | None:
    """The host's file that `grant` has to be mounted on; None where a place is made for it."""
    path = grant.dest
    while path != "/":
        path = os.path.dirname(path)
        holder = places.get(path)
        if holder is not None:
            return os.path.join(holder.source, os.path.relpath(grant.dest, path)) if holder.kind is Kind.PATH else None
    return None


def _check_place(grant: Grant, places: dict[str, Grant]) -> None:
    """Inside a directory of the host there has to be something to mount on: shoal makes nothing there.

    Raises:
        RequestError: there is nothing, or a file where a directory is needed.
    """
    place = _place(grant, places)
    if place is None:
        return
    is_directory = grant.kind is not Kind.PATH or os.path.isdir(grant.source)
    if os.path.isdir(place) if is_directory else os.path.isfile(place):
        return
    what = "directory" if is_directory else "file"
    advice = f"{'mkdir -p' if is_directory else 'touch'} {place}"
    problem = f"{grant.dest}: there is no {what} {place} to put it on, and shoal makes nothing in your directories"
    raise RequestError(problem, hints=(advice,))


def _depth(grant: Grant) -> tuple[int, str]:
    return (0 if grant.dest == "/" else grant.dest.count("/"), grant.dest)


def is_inside(path: str, directory: str) -> bool:
    """True when `path` is strictly below `directory`. Both are absolute and tidy."""
    return path != directory and path.startswith(directory.rstrip("/") + "/")


def _drop_risky_doubles(places: dict[str, Grant], wanted: set[str]) -> None:
    """Where one directory appears at two places and something is granted inside one of them (an empty tmpfs over a secret, say),
    the other place would still show what was covered. The place as the user wrote it stays, the other goes.

    A place that a link inside another grant leads to anyway goes too: nothing can be mounted behind that link."""
    for grant in list(places.values()):
        if grant.kind is not Kind.PATH or grant.dest == grant.source:
            continue
        twin = places.get(grant.source)
        if twin is None or twin.source != grant.source:
            continue
        if any(is_inside(dest, place) for dest in wanted for place in (grant.dest, twin.dest)):
            del places[twin.dest]
        elif any(g.kind is Kind.PATH and g.dest == g.source and is_inside(grant.dest, g.dest) for g in places.values()):
            del places[grant.dest]


def _merged_directories(granted: Iterable[Grant]) -> list[Grant]:
    """/bin -> usr/bin and the like: a program that was handed /usr would not find its interpreter or libraries without them.
    They show nothing that the grant does not show already, and are left out where it is partly covered by another."""
    granted = list(granted)
    found: list[Grant] = []
    if any(grant.dest == "/" for grant in granted):
        return found  # which has brought its own along, if any
    for path in _MERGED:
        if not os.path.islink(path):
            continue
        target = os.path.realpath(path)
        holder = next((g for g in granted if g.dest == g.source and (target == g.source or is_inside(target, g.source))), None)
        if holder is None or holder.dest == "/" or not os.path.isdir(target):
            continue
        inside = (g for g in granted if g != holder and (g.dest == target or is_inside(g.dest, target)))
        # What is only what is there anyway, and not less writable, covers nothing.
        if all(g.kind is Kind.PATH and g.dest == g.source and g.writable >= holder.writable for g in inside):
            found.append(Grant(Kind.PATH, path, target, holder.writable, asked=False))
    return found


def _words(grant: Grant) -> str:
    if grant.kind is not Kind.PATH:
        return str(grant.kind.value)
    return f"{grant.source} ({'read and write' if grant.writable else 'read-only'})"


# --- seen from inside -------------------------------------------------------------------------------


class View:
    """The files as the program will see them, worked out from the grants alone."""

    def __init__(self, grants: Sequence[Grant]) -> None:
        self._grants = {grant.dest: grant for grant in grants}

    def missing(self, path: str) -> str | None:
        """None when the program can see `path`, else the path that would have to be there.

        Symbolic links are followed as the program would follow them, so the answer may lie somewhere else entirely.
        """
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        at, links = "", 0
        while todo:
            name = todo.pop()
            if name == "..":
                at = at.rpartition("/")[0]
                continue
            here = f"{at}/{name}"
            target = self._look(here)
            if target is None:
                return os.path.normpath("/".join([here, *reversed(todo)]))
            if target == "":
                at = here
                continue
            links += 1
            if links > _LINKS_MAX:
                return here
            todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
            at = "" if target.startswith("/") else at
        return None

    def is_directory(self, path: str) -> bool:
        """True when the program can see `path` and it is a directory."""
        if self.missing(path) is not None:
            return False
        host = self.host_path(path)
        return host is None or os.path.isdir(host)

    def host_path(self, path: str) -> str | None:
        """The host's file behind `path`, or None when it is not one: an implied parent, a tmpfs, /proc."""
        holder = self._holder(path)
        if holder is None or holder.kind is not Kind.PATH:
            return None
        return holder.source if holder.dest == path else os.path.join(holder.source, os.path.relpath(path, holder.dest))

    def _look(self, path: str) -> str | None:
        """None when nothing is at `path`, "" when something is, its target when that is a symbolic link."""
        holder = self._holder(path)
        if holder is not None:
            if holder.dest == path or holder.kind is Kind.PROC:
                return ""
            if holder.kind is Kind.DEVICES and path.removeprefix(f"{holder.dest}/").split("/")[0] in (*DEVICES, *_MADE_IN_DEV):
                return ""
            if holder.kind is Kind.PATH:
                host = os.path.join(holder.source, path.removeprefix(holder.dest).lstrip("/"))
                try:
                    return os.readlink(host) if stat.S_ISLNK(os.lstat(host).st_mode) else ""
                except PermissionError:
                    return ""  # the caller cannot see it either, so no grant is what is missing
                except OSError:
                    pass
        return "" if any(is_inside(dest, path) for dest in self._grants) else None

    def _holder(self, path: str) -> Grant | None:
        """The grant that `path` lies in."""
        while True:
            grant = self._grants.get(path or "/")
            if grant is not None or path in ("", "/"):
                return grant
            path = path.rpartition("/")[0]


def working_directory(asked: str | None, view: View, host_cwd: str) -> str:
    """Where the program starts: `asked`, else the caller's directory where the program can see it, else "/".

    Raises:
        DirectoryError: the directory asked for is not one that the program can see; the hint says what to grant.
    """
    if asked is None:
        return host_cwd if view.is_directory(host_cwd) else "/"
    path = os.path.normpath(os.path.join(host_cwd, asked))
    if view.is_directory(path):
        return path
    if view.missing(path) is None:
        raise DirectoryError(f"--cwd {asked}: {path} is not a directory")
    if os.path.isdir(path):
        advice = f"add --ro {path}, or --rw {path} when it is to write there"
        raise DirectoryError(f"--cwd {asked}: the program cannot see {path}", hints=(advice,))
    raise DirectoryError(f"--cwd {asked}: there is no {path} in the program's world")
