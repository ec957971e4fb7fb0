"""Repeated launches: what was worked out for a program is used again while nothing it was worked out from has changed.

The first launch of a program goes through the whole of draft, plan and lowering. Most later ones differ in nothing but their
arguments, environment and the numbers of descriptors, so the packed plan is kept and only those are written anew. Kept are plain
launches only: with no other actions than CloneFd, in the caller's world or in an empty cell. Whatever fails here is done again
the long way, which then finds the right error.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.actions import Action, CloneFd
from shoal.cells import launch_warm
from shoal.descriptors import FD_TABLE_SIZE, Descriptors, number_of
from shoal.environment import Environ, encode_environ, own_environment, working_directory
from shoal.flags import SpawnFlags
from shoal.handles.made import empty_mounts
from shoal.handles.process import Process
from shoal.launcher import run
from shoal.loader import FileIdentity
from shoal.lowering import Lowered
from shoal.packing import count_strings
from shoal.plan import JobPlace, Plan
from shoal.recipe import Recipe, can_wait, make_recipe
from shoal.startup_table import VARIABLE

KEPT = 256
"""Launches kept; the oldest goes first."""

Key = tuple[str | bytes, int, bytes, tuple[int, ...]]
Identity = tuple[int, int, int, int, int, int, int]

_CLONE_STDIO = int(SpawnFlags.CLONE_STDIO)
_CLONE_ENVIRON = int(SpawnFlags.CLONE_ENVIRON)
_ASSIGNMENT = VARIABLE.encode() + b"="


@dataclass(frozen=True, slots=True)
class _Known:
    identity: Identity
    lowered: Lowered
    cwd: bytes
    startup: bytes
    """The SHOAL_STARTUP assignment with its NUL, or nothing."""
    sources: tuple[int, ...]
    """Descriptors handed over, in the order of the plan: a number, or -1 - the index of the action that has it."""
    same_libraries: Callable[[], bool]
    ahead: Recipe | None
    """The same for a cell made ahead, if that can be; its sources are as those above."""
    ahead_sources: tuple[int, ...]


_known: OrderedDict[Key, _Known] = OrderedDict()
_lock = threading.RLock()
_environment: tuple[dict[bytes, bytes], bytes, int, bytes] | None = None
"""The last seen environment of this process: as it was, packed, how many strings, PWD."""


def targets_of(actions: Sequence[Action]) -> tuple[int, ...] | None:
    """What tells launches with different actions apart; None where they are not for keeping."""
    targets: list[int] = []
    for action in actions:
        if not isinstance(action, CloneFd) or not 0 <= action.target_fd < FD_TABLE_SIZE:
            return None
        targets.append(action.target_fd)
    return tuple(targets)


def repeat(path: str | bytes, argv: tuple[bytes, ...], flags: int, environ: Environ, actions: Sequence[Action]) -> Process | None:
    """Launch as before, or None when the long way has to be gone."""
    targets = targets_of(actions) if actions else ()
    known = None if targets is None else _known.get((path, flags, argv[0] if argv else b"", targets))
    if known is None:
        return None
    try:
        identity = _identity(path)
    except (OSError, ValueError):
        return None
    envp, envc, cwd = packed_environment(flags, environ)
    if identity != known.identity or cwd != known.cwd:
        return None
    args, argc = count_strings(argv)
    if args.count(b"\0") != argc:
        return None
    if known.startup:
        envp += known.startup
        envc += 1
    descriptors = Descriptors(consume=True)
    try:
        given: list[int] = []
        if actions:
            given = [descriptors.copy(_number(action)) for action in actions]
        if not known.same_libraries():
            return None
        if known.ahead is not None:
            process = launch_warm(known.ahead, _filled(known.ahead_sources, given), (args, argc), (envp, envc))
            if process is not None:
                return process
        return run(known.lowered, _filled(known.sources, given), (args, argc), (envp, envc))
    except (OSError, ValueError, OverflowError):
        return None  # and the long way says what is wrong
    finally:
        descriptors.close()


def _filled(sources: tuple[int, ...], given: Sequence[int]) -> tuple[int, ...]:
    return tuple(given[-1 - source] if source < 0 else source for source in sources) if given else sources


def _number(action: Action) -> int:
    assert isinstance(action, CloneFd)
    number = number_of(action.local_fd)
    return -1 if number is None else number


def remember(
    path: str | bytes,
    argv: tuple[bytes, ...],
    flags: int,
    actions: Sequence[Action],
    plan: Plan,
    lowered: Lowered,
    same_libraries: Callable[[], bool],
) -> None:
    """Keep what was worked out for `plan`, if it is plain enough."""
    targets = targets_of(actions)
    program = plan.program
    if targets is None or program.fd is not None or program.interpreter_for is not None or not os.path.isabs(path):
        return
    if (
        plan.terminal is not None
        or plan.listen_pid is not None
        or plan.network not in ("caller", "loopback")
        or plan.job != JobPlace(plan.job.label)
    ):
        return
    if any(mount.is_entry for mount in plan.mounts):
        return
    order = [item.target for item in plan.descriptors]
    clones_stdio = flags & _CLONE_STDIO
    if clones_stdio and order[:3] != [0, 1, 2]:
        return  # one was closed; the next time it may not be
    startup = next((item + b"\0" for item in plan.environ if item.startswith(_ASSIGNMENT)), b"")
    try:
        identity = _identity(path)
    except (OSError, ValueError):
        return
    if identity[:2] != (program.dev, program.ino):
        return
    if not all(isinstance(item.source, int) for item in plan.descriptors):
        return

    def given(source: int, target: int) -> int:
        return -1 - targets.index(target) if target in targets else source

    sources = tuple(map(given, lowered.sources, lowered.targets))
    ahead_sources = tuple(given(item.source, item.target) for item in plan.descriptors if isinstance(item.source, int))
    ahead = make_recipe(plan, empty_mounts) if can_wait(plan) else None
    known = _Known(identity, lowered, plan.cwd, startup, sources, same_libraries, ahead, ahead_sources)
    with _lock:
        _known[path, flags, argv[0] if argv else b"", targets] = known
        while len(_known) > KEPT:
            _known.popitem(last=False)


def _forget_in_child() -> None:
    """After os.fork(): what was packed names descriptors by way of /proc/PID of the parent."""
    global _lock
    _lock = threading.RLock()
    _known.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _identity(path: str | bytes) -> Identity:
    """The state of the file, and who looks at it: permissions depend on both."""
    return *FileIdentity.of(os.stat(path)), os.geteuid(), os.getegid()


def packed_environment(flags: int, environ: Environ) -> tuple[bytes, int, bytes]:
    """The strings in one piece, how many, and where they say that the child begins. Of the caller's it is kept while that is the same."""
    global _environment
    if environ is not None:
        return _pack(encode_environ(environ))
    if not flags & _CLONE_ENVIRON:
        return b"", 0, b"/"
    raw = getattr(os.environ, "_data", None)
    last = _environment
    if last is not None and raw == last[0]:
        return last[1:]
    packed = _pack(own_environment())
    if isinstance(raw, dict):
        _environment = (raw.copy(), *packed)
    return packed


def _pack(items: Sequence[bytes]) -> tuple[bytes, int, bytes]:
    return *count_strings(items), working_directory(items)
