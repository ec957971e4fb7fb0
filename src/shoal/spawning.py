"""spawn(), spawn_vmo(), explain(): arguments become a Plan, and a Plan becomes a process.

Source: fdio_spawn_etc() and fdio_spawn_vmo() in fdio's spawn.h; spec sections 2 to 5.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from shoal import cells
from shoal.actions import Action, Fd, check_actions
from shoal.arguments import StrOrBytesPath
from shoal.draft import Draft
from shoal.environment import Environ, encode_environ
from shoal.flags import SpawnFlags
from shoal.handles import reaper
from shoal.handles.base import Handle
from shoal.handles.job import Job, given_job
from shoal.handles.made import empty_mounts
from shoal.handles.mount import Bind
from shoal.handles.policy import deny_new_process_filter
from shoal.handles.process import Process
from shoal.handles.vmo import Vmo
from shoal.launcher import run
from shoal.lowering import ENTERING, REOPENING, Lowered, lower
from shoal.naming import name_it
from shoal.packing import count_strings, encode_words
from shoal.plan import NOTHING_MORE, Confinement, JobPlace, Plan
from shoal.repeat import remember, repeat
from shoal.status import AccessDeniedError, SpawnError, Stage, Status, failure

T = TypeVar("T")


def spawn(
    path: StrOrBytesPath,
    argv: Sequence[str | bytes],
    *,
    flags: SpawnFlags | int = SpawnFlags(0),
    environ: Environ = None,
    actions: Iterable[Action] = (),
    job: Job | None = None,
    controlling_terminal: Fd | None = None,
    die_with_caller: bool = False,
) -> Process:
    """Start the program at `path` with what `flags` share and `actions` hand over, and nothing else.

    Returns once the program has been executed. On any failure no process is left behind.

    Args:
        path: used as given, in the caller's view; PATH is not searched.
        argv: argv[0] is the name the program sees; it is not added for you. May be empty only with a SetName action.
        flags: what is shared. Without CLONE_NAMESPACE the child lives in a cell of its own, with nothing in it.
        environ: replaces CLONE_ENVIRON, the two are never merged. A mapping, or "NAME=VALUE" strings as they are.
        actions: carried out in order.
        job: where the process lives and is accounted; borrowed. None: the job of the caller.
        controlling_terminal: a terminal that becomes the controlling one of the child's new session; borrowed.
        die_with_caller: only for a cell: it ends when the calling process does, even by SIGKILL.
    Raises:
        NotFoundError: `path` cannot be found (it is a FileNotFoundError too).
        SpawnError: anything else; `stage`, `status`, `errno` and the message say where and why.
        TypeError: an argument has the wrong type. Raised before anything is consumed.
    Ownership: what TransferFd, AddNsEntry and AddHandle were given is gone from the caller, on success and on failure.
    Source: fdio_spawn_etc() in fdio's spawn.h; clone3(2), execveat(2), pidfd_open(2).
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"path must be str, bytes or os.PathLike, not {type(path).__name__}")
    return _start(path, argv, flags, environ, actions, job, controlling_terminal, die_with_caller)


def spawn_vmo(
    executable: Vmo,
    argv: Sequence[str | bytes],
    *,
    flags: SpawnFlags | int = SpawnFlags(0),
    environ: Environ = None,
    actions: Iterable[Action] = (),
    job: Job | None = None,
    controlling_terminal: Fd | None = None,
    die_with_caller: bool = False,
) -> Process:
    """Start a program that is in memory. As `spawn`, but the executable is a VMO, which is consumed in any case.

    Args:
        executable: needs Rights.READ and Rights.EXECUTE (see `Vmo.replace_as_executable`).
    Raises:
        BadHandleError: the VMO is closed.
        WrongTypeError: a handle, but not to a VMO.
        AccessDeniedError: it is not readable or not executable.
        OutOfRangeError: it is empty.
        SpawnError, TypeError: as `spawn`. Never NotFoundError.
    Source: fdio_spawn_vmo() in fdio's spawn.h.
    """
    if not isinstance(executable, Handle):
        raise TypeError(f"executable must be a shoal handle (a Vmo), not {type(executable).__name__}")
    return _start(executable, argv, flags, environ, actions, job, controlling_terminal, die_with_caller)


def explain(
    path: StrOrBytesPath,
    argv: Sequence[str | bytes],
    *,
    flags: SpawnFlags | int = SpawnFlags(0),
    environ: Environ = None,
    actions: Iterable[Action] = (),
    job: Job | None = None,
    controlling_terminal: Fd | None = None,
    die_with_caller: bool = False,
) -> Plan:
    """What `spawn` would do with the same arguments, as a value that prints readably. Consumes nothing, starts nothing.

    Raises: as `spawn`.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"path must be str, bytes or os.PathLike, not {type(path).__name__}")
    arguments = _checked(argv, flags, environ, actions, job)
    draft = Draft(arguments[1], arguments[3], consume=False)
    try:
        return make_plan(draft, path, encode_words(arguments[0]), arguments[2], job, controlling_terminal, die_with_caller=die_with_caller)
    finally:
        draft.close()


_Arguments = tuple[tuple[str | bytes, ...], int, Environ, tuple[Action, ...]]


def _checked(argv: Sequence[str | bytes], flags: int, environ: Environ, actions: Iterable[Action], job: object) -> _Arguments:
    """The arguments, each of the right type. Raises TypeError, before anything is consumed."""
    if isinstance(argv, str | bytes):
        raise TypeError('argv must be a sequence of strings, not one string; for example ["prog", "-v"]')
    for index, arg in enumerate(argv):
        if not isinstance(arg, str | bytes):
            raise TypeError(f"argv[{index}] must be str or bytes, not {type(arg).__name__}")
    if not isinstance(flags, int):
        raise TypeError(f"flags must be SpawnFlags, not {type(flags).__name__}")
    if job is not None and not isinstance(job, Handle):
        raise TypeError(f"job must be a Job or None, not {type(job).__name__}")
    if environ is not None:
        _check_environ_type(environ)
    return tuple(argv), int(flags), environ, check_actions(actions)


def _check_environ_type(environ: object) -> None:
    try:
        encode_environ(environ)  # type: ignore[arg-type]
    except SpawnError:
        pass  # of the right type; refused in its turn


def make_plan(
    draft: Draft,
    program: StrOrBytesPath | Handle,
    argv: tuple[bytes, ...],
    environ: Environ,
    job: Job | None,
    terminal: Fd | None,
    *,
    die_with_caller: bool,
    confinement: Confinement = NOTHING_MORE,
) -> Plan:
    """The steps of spec 2.1 in their order: the first that fails decides what is reported."""
    if not isinstance(program, Handle):
        draft.load(program)
    draft.check_shape(argv)
    if isinstance(program, Handle):
        draft.load_vmo(program)
    draft.follow_directives(argv)
    draft.take_job(_checked_job(job))
    draft.take_actions()
    draft.take_stdio_and_clock()
    place = draft.enter_job()
    for index, arg in enumerate(argv):
        if b"\0" in arg:
            raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"argv[{index}] holds a zero byte")
    draft.check_entries_and_ids()
    draft.find_libraries()
    terminal_fd = None if terminal is None else terminal if isinstance(terminal, int) else terminal.fileno()
    if die_with_caller and draft.whole_world:
        raise failure(Status.NOT_SUPPORTED, Stage.ARGUMENTS, "die_with_caller is for a cell, that is without CLONE_NAMESPACE")
    return draft.finish(argv, environ, place, terminal=terminal_fd, dies_with_caller=die_with_caller, confinement=confinement)


def _checked_job(job: object) -> Job | None:
    if job is not None and not isinstance(job, Job):
        kind = job.kind if isinstance(job, Handle) else type(job).__name__
        raise failure(Status.WRONG_TYPE, Stage.JOB, f"job is a {kind} handle, not a job")
    return job


def _start(
    program: StrOrBytesPath | Handle,
    argv: Sequence[str | bytes],
    flags: int,
    environ: Environ,
    actions: Iterable[Action],
    job: Job | None,
    terminal: Fd | None,
    die_with_caller: bool,
) -> Process:
    words, bits, env, checked = _checked(argv, flags, environ, actions, job)
    try:
        args = encode_words(words)
    except SpawnError:
        Draft(bits, checked, consume=True).close()
        if isinstance(program, Handle):
            program.close()
        raise
    reaper.sweep()
    repeatable = None
    if not (isinstance(program, Handle) or terminal is not None or die_with_caller) and job is None and given_job() is None:
        repeatable = os.fspath(program)
        process = repeat(repeatable, args, bits, env, checked)
        if process is not None:
            return process
    draft = Draft(bits, checked, consume=True)
    try:
        plan = make_plan(draft, program, args, env, job, terminal, die_with_caller=die_with_caller)
        process, lowered = start(plan, draft)
        if repeatable is not None:
            remember(repeatable, args, bits, checked, plan, lowered, draft.closure_check())
        return process
    finally:
        draft.close()
        if isinstance(program, Handle):
            program.close()


def start(plan: Plan, draft: Draft) -> tuple[Process, Lowered]:
    """Carry out the plan of a draft, and see to it that its job has not been killed meanwhile.

    Raises:
        SpawnError: nothing was started, or it was killed and reaped.
    """
    return in_job(draft, lambda: execute(plan, draft.enter_job))


def in_job(draft: Draft, launch: Callable[[], tuple[Process, T]]) -> tuple[Process, T]:
    """What `launch` starts, unless the draft's job has been killed meanwhile.

    Raises:
        SpawnError: nothing was started, or it was killed and reaped.
    """
    try:
        process, more = launch()
    except SpawnError as error:
        if draft.placement is None or not draft.placement.is_revoked():
            raise
        # However the kernel put it: there was nothing left to start in.
        raise failure(Status.BAD_STATE, Stage.JOB, "the job was killed meanwhile", error.errno) from error
    if draft.placement is not None and draft.placement.is_revoked():
        _undo(process)
        raise failure(Status.BAD_STATE, Stage.JOB, "the job was killed meanwhile, and the new process with it")
    return process, more


def _undo(process: Process) -> None:
    """End a process that may not be, with everything it has started if it has a cell."""
    process.kill_cell()
    process.close()


def execute(plan: Plan, place_again: Callable[[], JobPlace]) -> tuple[Process, Lowered]:
    """Carry out a plan, whose descriptors are borrowed. Returns what was run, too.

    Args:
        place_again: asks the job anew where a process begins.
    Raises:
        SpawnError: nothing was started, or it was killed and reaped.
    """
    filter_program = deny_new_process_filter() if plan.job.deny_new_process else None
    for _ in range(RENAMES):
        try:
            return _execute(plan, filter_program)
        except SpawnError as error:
            fresh = _refreshed(plan, error, place_again)
            if fresh is None:
                raise
            plan = fresh
    return _execute(plan, filter_program)


def _refreshed(plan: Plan, error: SpawnError, place_again: Callable[[], JobPlace]) -> Plan | None:
    """The plan as the world is by now. None: nothing has changed that would make it succeed."""
    if error.errno in _RENAMED:
        return _follow_renames(plan)
    if error.errno == errno.EBUSY and plan.job.cgroup_fd is not None:
        # A job that is given limits for its children moves its processes to a leaf: cgroups(7), no internal processes.
        place = place_again()
        return None if place == plan.job else dataclasses.replace(plan, job=place)
    if error.errno in (errno.EMFILE, errno.ENOSPC, errno.EAGAIN) and cells.drain():
        return plan  # what waited there had some
    return None


RENAMES = 100
"""How often a directory may be renamed while it is being mounted by name before we give up."""
_RENAMED = (errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR)


def _follow_renames(plan: Plan) -> Plan | None:
    """The plan with the names that its directories have now. None when nothing in it is held by descriptor."""

    held = False

    def anew(source: Bind) -> Bind:
        nonlocal held
        if source.follow_fd < 0:
            return source
        held = True
        return dataclasses.replace(source, path=os.readlink(f"/proc/self/fd/{source.follow_fd}"))

    mounts = tuple(dataclasses.replace(item, source=anew(item.source)) if isinstance(item.source, Bind) else item for item in plan.mounts)
    placed = tuple(
        dataclasses.replace(item, source=anew(item.source)) if isinstance(item.source, Bind) else item for item in plan.descriptors
    )
    return dataclasses.replace(plan, mounts=mounts, descriptors=placed) if held else None


def _execute(plan: Plan, filter_program: bytes | None, reopening: bool = True) -> tuple[Process, Lowered]:
    lowered = lower(plan, filter_program=filter_program, name_it=name_it, no_mounts=empty_mounts, reopening=reopening)
    argv, environ = count_strings(plan.argv), count_strings(plan.environ)
    try:
        return run(lowered, lowered.sources, argv, environ), lowered
    except AccessDeniedError as error:
        if REOPENING in error.detail and reopening:
            # We are not dumpable, so that our links in /proc are root's: prctl(2). It costs only time to hand it over.
            return _execute(plan, filter_program, reopening=False)
        if ENTERING not in error.detail:
            raise
    # It cannot be entered, and without privileges the child can make no place to stand in instead.
    nowhere = _removed_directory()
    try:
        lowered = lower(
            plan, filter_program=filter_program, name_it=name_it, no_mounts=empty_mounts, nowhere_fd=nowhere, reopening=reopening
        )
        return run(lowered, lowered.sources, argv, environ), lowered
    finally:
        os.close(nowhere)


def _removed_directory() -> int:
    """A directory that exists no more: standing there, nothing relative can be opened or made."""
    import tempfile  # costly, and hardly ever needed

    path = tempfile.mkdtemp(prefix="shoal-")
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.rmdir(path)
