"""Denied: what a program that ended badly was refused or looked for in vain, as far as it is known.

Known is what the kernel says: its log names the system call that a filter has killed for. Of files it says nothing to anybody but the
program, so known there is what the program says and what is so: its stderr tells that a file is not there, the file is on the host,
and the program was not handed it. Where stderr was not captured, the words it was given stand in for that. What may have been the
cause besides, and is told to people, is in hints.py.

Called for what ended badly only; until then nothing of this is loaded.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from shoal.handles.process import Process
from shoal.launcher import user_of
from shoal.sandbox.box import PATH
from shoal.sandbox.grants import View, working_directory
from shoal.sandbox.hints import Run, can_run, find_on_path, missing_words, path_word
from shoal.sandbox.launch import Boxed, Order
from shoal.sandbox.refused import refused_call
from shoal.sandbox.seccomp import Seccomp

DENIED_MAX: Final = 5
_KILLED_FOR_A_CALL: Final = (-signal.SIGSYS, 128 + signal.SIGSYS)
"""Its own end, or that of something a shell has started."""
_STDERR_BYTES: Final = 1 << 16
"""So much of its end is looked at: a program tells last what it dies of."""
_PLACES_MAX: Final = 64
_SAYS_SO: Final = (b"o such file", b"ot found", b"nonexistent", b"cannot open shared")
_PATH_MAX: Final = 4096
_NOT_THERE: Final = re.compile(
    "(?:cannot open shared object file: )?no such file(?: or directory)?|(?:command )?not found|directory nonexistent", re.IGNORECASE
)
_AFTER: Final = re.compile(r"[^'\"\n]{0,24}['\"]([^'\"\n]+)")
"""Python's and node's words for it come before the name."""
_BARE: Final = re.compile(r"[^\s:'\"‘’`()]*$")
_LIBRARY: Final = re.compile(r"[^/]+\.so[.\d]*")


@dataclass(frozen=True, slots=True)
class Denied:
    """What a program that ended badly was refused, or looked for in vain.

    Attributes:
        kind: "system call": something in the sandbox was killed for it by the filter. "file": it is on the host, and the program was
            not handed it.
        name: of the call, "" where the kernel does not tell it to this user; the path as the program would have had to see it.
        known_from: "kernel": its log or the signal tells. "stderr": the program has said that it is not there. "arguments": the
            program was given its name; whether it ended for this is not known, since its stderr was not captured.
    """

    kind: Literal["system call", "file"]
    name: str
    known_from: Literal["kernel", "stderr", "arguments"]

    def __str__(self) -> str:
        if self.kind == "system call" and not self.name:
            return "a system call that its filter kills for (SIGSYS); which one, root finds with: dmesg | grep type=1326"
        return f"{self.kind} {self.name}"


def denied_in(boxed: Boxed, order: Order, process: Process, since: float, returncode: int, stderr: bytes | None) -> tuple[Denied, ...]:
    """What was denied to a program that has ended badly, by itself, in a box without additions.

    Args:
        since: when it was started, in seconds since 1970.
        returncode, stderr: as `denied_call()` and `denied_files()` take them.
    """
    box, keeper = boxed.box, process._keeper
    user = user_of(keeper) if boxed.enforced["user"] and keeper is not None else None
    call = denied_call(returncode, process.pid, user, since, box.seccomp)
    if call is not None or returncode < 0:
        return () if call is None else (call,)
    try:
        view = View(boxed.grants(order.program, order.host_cwd))
        cwd = working_directory(box.cwd, view, order.host_cwd)
    except (OSError, ValueError):
        return ()  # what the box names was changed meanwhile
    search = os.environ.get("PATH", PATH)
    network = box.network == "host"
    run = Run(order.program, order.args, view, cwd, order.host_cwd, boxed.environ, search, network, returncode)
    return denied_files(run, stderr)


def denied_call(returncode: int, pid: int, user: int | None, since: float, mode: str | Seccomp) -> Denied | None:
    """The system call that a run was killed for.

    Args:
        returncode: as `Result` has it.
        pid, user, since, mode: as `refused_call()` takes them.
    """
    if returncode not in _KILLED_FOR_A_CALL or mode == "off":
        return None
    name = refused_call(pid, user, since, mode)
    # A status of 159 alone may mean anything; the signal is only ever the filter's, unless somebody has sent it.
    return Denied("system call", name, "kernel") if name or returncode < 0 else None


def denied_files(run: Run, stderr: bytes | None) -> tuple[Denied, ...]:
    """The files that a run missed.

    Args:
        stderr: what it wrote there; None: that was not captured.
    """
    if run.exit_code == 0:
        return ()
    if stderr is None:
        found = dict.fromkeys(hint.missing for hint in missing_words(run))
        return tuple(Denied("file", path, "arguments") for path in found if path)[:DENIED_MAX]
    end = stderr[-_STDERR_BYTES:]
    if not any(words in end for words in _SAYS_SO):
        return ()
    return tuple(Denied("file", path, "stderr") for path in dict.fromkeys(_told_of(run, os.fsdecode(end))))[:DENIED_MAX]


def _told_of(run: Run, text: str) -> Iterator[str]:
    """Files that `text` says are not there, and that only the sandbox has kept from being there."""
    commands: set[str] = set()
    said = list(_NOT_THERE.finditer(text))[-_PLACES_MAX:]
    for name in dict.fromkeys(name for at in said for name in _names_at(text, at, commands)):
        if not name or "\0" in name:
            continue
        missing = [hint.missing for hint in path_word(run, name) if hint.missing]
        yield from missing
        if missing or "/" in name:
            continue
        if _LIBRARY.fullmatch(name):
            library = _library(name)
            if library and run.view.missing(library):
                yield library
        elif name in commands and (host := find_on_path(name, run.search)) and not can_run(run, name):
            yield host


def _names_at(text: str, said: re.Match[str], commands: set[str]) -> Iterator[str]:
    """What may be the name of the file that is said not to be there. Adds to `commands` what may be the name of one."""
    start, end = said.span()
    line = text[max(0, start - _PATH_MAX) : start].rpartition("\n")[2].rstrip(" :(")
    if line.endswith(("'", '"', "’", "`")):
        opening = "‘" if line.endswith("’") else line[-1]
        name = line[line.rfind(opening, 0, -1) + 1 : -1]
        commands.add(name)  # env quotes it, and has the same words for it as for a file
        yield name
    elif found := _BARE.search(line):
        if said[0].lower().endswith("not found"):
            commands.add(found[0])
        yield found[0]
    if found := _AFTER.match(text, end, end + _PATH_MAX):
        yield found[1]


def _library(name: str) -> str | None:
    """Where the host has a shared library."""
    from shoal.loader import ldcache
    from shoal.loader.elf import MACHINES
    from shoal.loader.linker import LD_SO_CACHE

    try:
        with open(LD_SO_CACHE, "rb") as file:
            data = file.read(ldcache.CACHE_BYTES)
    except OSError:
        return None
    return ldcache.parse(data, MACHINES.get(os.uname().machine, 0)).lookup(name)
