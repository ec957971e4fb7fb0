"""Inheritance: a child that takes over what fork and exec leave it, started by the core in one call.

The order of things, and what is said when one fails, are those of the standard module's own child. What does not differ from launch to
launch (and for most programs that is all but the arguments and the mark) is packed once.

Source: child_exec() in CPython's Modules/_posixsubprocess.c; execve(2).
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import NamedTuple

from shoal import _native
from shoal.arguments import StrOrBytesPath
from shoal.packing import CWD_FD, NO_FD, Packer, count_strings, item_of, not_encoded, operand_at

_RESTORED = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
"""Signals that Python ignores and a child does not: the bits that INHERIT_SIGNALS takes."""
_ENTERING = "entering the working directory"
_LARGEST_FD = 0x7FFFFFFF
_MOST_KEPT = 65533


class Traits(NamedTuple):
    """What a child is besides its program: all that Popen() is told of it.

    Attributes:
        stdio: what becomes its 0, 1 and 2; NO_FD: what the caller has there.
        kept: other descriptors that it keeps, ascending.
        close_fds: it has no others.
        cwd: None: the caller's. umask, group: negative: the caller's.
        restore_signals: signals that Python ignores are default again.
        session: it leads one of its own.
    """

    stdio: tuple[int, int, int]
    kept: tuple[int, ...]
    close_fds: bool
    cwd: bytes | None
    umask: int
    restore_signals: bool
    session: bool
    group: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """A plan but for its mark, which lies between the two parts, and what each of its ops is doing."""

    before: bytes
    after: bytes
    labels: tuple[str, ...]


def kept_fds(pass_fds: Sequence[int]) -> tuple[int, ...]:
    """Descriptors to be kept, as the core wants them.

    Raises:
        ValueError: one cannot be a descriptor.
    """
    numbers = tuple(sorted(set(map(int, pass_fds))))
    if numbers and (numbers[0] < 0 or numbers[-1] > _LARGEST_FD or len(numbers) > _MOST_KEPT):
        raise ValueError("bad value(s) in fds_to_keep")
    return numbers


def places_of(executable: bytes, env: Mapping[str, str] | Mapping[bytes, bytes] | None) -> tuple[bytes, ...]:
    """Where the program may be: the path itself, or one in each directory of PATH, `env`'s where that is given."""
    if os.path.dirname(executable):
        return (executable,)
    return _places(executable, tuple(os.get_exec_path(env)))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=128)
def _places(executable: bytes, directories: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(os.path.join(os.fsencode(directory), executable) for directory in directories)


def start(
    args: Sequence[StrOrBytesPath],
    places: tuple[bytes, ...],
    env: Mapping[str, str] | Mapping[bytes, bytes] | None,
    traits: Traits,
    mark: int,
    named: tuple[StrOrBytesPath, StrOrBytesPath | None],
) -> tuple[int, int]:
    """Start a program. Returns its pid and pidfd.

    Args:
        places: from `places_of()`.
        env: None: what this process has, which os.environ need not be the whole of.
        mark: what all its descendants inherit; see `tree.py`.
        named: the program and the working directory as the caller has called them, for errors.
    Raises:
        OSError: it could not be started; `filename` is the program, or the directory that cannot be entered, or None.
        ValueError, TypeError: an argument cannot be one.
    """
    try:
        argv, argc = count_strings(map(os.fsencode, args))
    except UnicodeEncodeError as unknown:
        unknown.add_note(not_encoded(item_of(args, unknown, "args"), unknown))
        raise
    envp, envc = (None, 0) if env is None else count_strings(map(_assignment, env.items()))
    nulls = argv.count(b"\0") - argc + (0 if envp is None else envp.count(b"\0") - envc)
    if nulls or (traits.cwd is not None and b"\0" in traits.cwd) or b"\0" in places[0]:
        raise ValueError("embedded null byte")
    if min(traits.stdio) < NO_FD:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    plan = _packed(traits, places)
    data = b"".join((plan.before, mark.to_bytes(8, sys.byteorder), plan.after))
    pid, pidfd, stage, index, error, _ = _native.launch(data, argv, argc, envp, envc)
    if pid > 0:
        return pid, pidfd
    raise _failure(plan, stage, index, error, *named)


def _assignment(item: tuple[str | bytes, str | bytes]) -> bytes:
    try:
        name, value = os.fsencode(item[0]), os.fsencode(item[1])
    except UnicodeEncodeError as error:
        error.add_note(not_encoded(f"the environment variable {os.fsdecode(item[0])!a}", error))
        raise
    if b"=" in name:
        raise ValueError("illegal environment variable name")
    return name + b"=" + value


def encoded(path: StrOrBytesPath, what: str) -> bytes:
    """A path as the kernel takes it. Raises UnicodeEncodeError, whose note calls it `what`."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as error:
        error.add_note(not_encoded(what, error))
        raise


def _failure(
    plan: _Packed, stage: int, index: int, error: int, program: StrOrBytesPath, cwd: StrOrBytesPath | None
) -> OSError | SubprocessError:
    if not error:
        return SubprocessError(f"{program!r}: it was killed before it could be executed")
    if stage == _native.STAGE_EXEC:
        return OSError(error, os.strerror(error), program)
    if stage == _native.STAGE_OPS and plan.labels[index] == _ENTERING:
        return OSError(error, os.strerror(error), cwd)
    return OSError(error, os.strerror(error))


@functools.lru_cache(maxsize=256)
def _packed(traits: Traits, places: tuple[bytes, ...]) -> _Packed:
    packer = Packer()
    if traits.close_fds:
        packer.unshare_fds()  # else the table is copied whole, by the clone
    packer.inherit_fds(traits.stdio, traits.kept, close_others=traits.close_fds)
    if traits.cwd is not None:
        packer.op("CHDIR", _ENTERING, text=traits.cwd, flags=1)
    if traits.umask >= 0:
        packer.op("UMASK", "setting the file mode mask", a=traits.umask)
    if traits.session:
        packer.op("SETSID", "making a session")
    if traits.group >= 0:
        packer.op("PROCESS_GROUP", "joining the process group", a=traits.group)
    mark_at = operand_at(len(packer.labels))
    packer.op("MARK", "marking its tree")
    packer.op("INHERIT_SIGNALS", "resetting signals", a=_RESTORED if traits.restore_signals else 0)
    for place in places[:-1]:
        packer.op("TRY_EXEC", "looking for the program", text=place)
    data = packer.packed(exec_fd=CWD_FD, exec_path=places[-1]).filled(())
    return _Packed(data[:mark_at], data[mark_at + 8 :], tuple(packer.labels))
