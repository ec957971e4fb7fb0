"""Repeated launches: what was worked out for a program is used again while nothing it was worked out from has changed.

The first launch of a program goes through the whole of draft, plan and lowering. Most later ones differ in nothing but their
arguments, environment and the numbers of descriptors, so the packed plan is kept and only those are written anew. Kept are plain
launches only: in the caller's world, with no other actions than CloneFd, with all three standard descriptors. Whatever fails
here is done again the long way, which then finds the right error.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from shoal import _native
from shoal.actions import Action, CloneFd
from shoal.descriptors import FD_TABLE_SIZE, Descriptors, number_of
from shoal.environment import Environ, encode_environ, own_environment, working_directory
from shoal.flags import SpawnFlags
from shoal.handles.process import Process
from shoal.packing import Packer, count_strings
from shoal.plan import Plan
from shoal.startup_table import VARIABLE

KEPT = 256
"""Programs kept; the one used longest ago goes first."""

Key = tuple[str | bytes, int, bytes, tuple[int, ...]]
Identity = tuple[int, int, int, int, int, int]

_INT, _LONG = struct.Struct("=i"), struct.Struct("=Q")
_CLONE_ENVIRON = int(SpawnFlags.CLONE_ENVIRON)
_ASSIGNMENT = VARIABLE.encode() + b"="


@dataclass(frozen=True, slots=True)
class _Known:
    identity: Identity
    packed: bytes
    name: str
    cwd: bytes
    startup: bytes
    """The SHOAL_STARTUP assignment with its NUL, or nothing."""
    highest_fd: int
    """Of the descriptors that are the same every time."""
    unshared_at: int
    sources_at: tuple[int, ...]
    """Where in `packed` the source of each action is."""


_known: OrderedDict[Key, _Known] = OrderedDict()
_lock = threading.Lock()
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
    envp, envc, cwd = _packed_environment(flags, environ)
    if identity != known.identity or cwd != known.cwd:
        return None
    args, argc = count_strings(argv)
    if args.count(b"\0") != argc:
        return None
    if known.startup:
        envp += known.startup
        envc += 1
    if not actions:
        pid, pidfd, *_ = _native.launch(known.packed, args, argc, envp, envc)
        return Process._started(pidfd, pid, known.name) if pid > 0 else None
    descriptors = Descriptors(consume=True)
    try:
        packed = _with_sources(known, [descriptors.copy(_number(action)) for action in actions])
        pid, pidfd, *_ = _native.launch(packed, args, argc, envp, envc)
    except (OSError, ValueError):
        return None
    finally:
        descriptors.close()
    return Process._started(pidfd, pid, known.name) if pid > 0 else None


def _number(action: Action) -> int:
    assert isinstance(action, CloneFd)
    number = number_of(action.local_fd)
    return -1 if number is None else number


def _with_sources(known: _Known, sources: list[int]) -> bytes:
    packed = bytearray(known.packed)
    for at, source in zip(known.sources_at, sources, strict=True):
        _INT.pack_into(packed, at, source)
    _LONG.pack_into(packed, known.unshared_at, max(known.highest_fd, *sources) + 1)
    return bytes(packed)


def remember(path: str | bytes, argv: tuple[bytes, ...], flags: int, actions: Sequence[Action], plan: Plan, packer: Packer, packed: bytes) -> None:
    """Keep what was worked out for `plan`, if it is plain enough."""
    targets = targets_of(actions)
    order = [item.target for item in plan.descriptors]
    plain = plan.world == "caller" and not plan.mounts and plan.netns_fd is None and plan.terminal is None and plan.listen_pid is None
    program = plan.program
    if targets is None or not plain or order[:3] != [0, 1, 2] or program.fd is not None or program.interpreter_for is not None:
        return
    if plan.job.cgroup_fd is not None or plan.job.init_pidfd is not None or plan.job.deny_new_process or not os.path.isabs(path):
        return
    startup = next((item + b"\0" for item in plan.environ if item.startswith(_ASSIGNMENT)), b"")
    try:
        identity = _identity(path)
    except (OSError, ValueError):
        return
    if identity[:2] != (program.dev, program.ino):
        return
    fixed = [item.source for item in plan.descriptors if item.target not in targets and isinstance(item.source, int)]
    known = _Known(
        identity,
        packed,
        plan.name,
        plan.cwd,
        startup,
        max([2, packer.exec_fd, *fixed]),
        packer.unshared_at(),
        tuple(packer.pairs_at() + 2 * _INT.size * order.index(target) for target in targets),
    )
    with _lock:
        _known[path, flags, argv[0] if argv else b"", targets] = known
        while len(_known) > KEPT:
            _known.popitem(last=False)


def _identity(path: str | bytes) -> Identity:
    """The state of the file, and who looks at it: permissions depend on both."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, os.geteuid()


def _packed_environment(flags: int, environ: Environ) -> tuple[bytes, int, bytes]:
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
