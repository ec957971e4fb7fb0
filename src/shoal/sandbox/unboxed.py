"""Unboxed: programs that were asked to be run without a sandbox, in the caller's world with the caller's rights.

What a program inherits here is what it inherits from every launcher: working directory, mask of file modes, environment, user, limits.
Not inherited are descriptors that nobody named, signals that are ignored, and the mask of signals: it begins with the defaults.

What was worked out for a program is kept, and used again while its file is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.actions import CloneFd
from shoal.arguments import StrOrBytesPath
from shoal.draft import Draft
from shoal.flags import SpawnFlags
from shoal.handles import reaper
from shoal.handles.job import Job, given_job
from shoal.handles.process import Process
from shoal.handles.reaper import OwnedFd
from shoal.handles.tree import kill_descendants
from shoal.launcher import run
from shoal.loader import FileIdentity
from shoal.lowering import Lowered
from shoal.packing import count_strings, not_encoded
from shoal.repeat import packed_environment
from shoal.sandbox.box import Sandbox
from shoal.sandbox.launch import Order
from shoal.sandbox.program import Program
from shoal.spawning import make_plan, start
from shoal.startup_table import VARIABLE
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

KEPT = 256
"""Programs remembered; the one used longest ago goes first."""

_FLAGS = int(SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC)
_STARTUP = VARIABLE.encode() + b"="
_NO_LIMITS = Sandbox()
_NOTHING: Mapping[str, bool | str] = {
    "tier": "none",
    "namespaces": False,
    "network": False,
    "no_new_privs": False,
    "capabilities": False,
    "seccomp": False,
    "landlock": False,
    "user": False,
    "tree": "what descends from it when it is ended",
}

Key = tuple[str, str, tuple[int, ...], bytes, bool]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was worked out for one program.

    Attributes:
        really: the file that a script is read by, and which it was.
        directives: arguments that #! lines put in front.
    """

    program: FileIdentity
    really: tuple[str, FileIdentity] | None
    directives: tuple[bytes, ...]
    targets: tuple[int, ...]
    lowered: Lowered

    def is_same(self, program: Program) -> bool:
        if program.identity != self.program:
            return False
        return self.really is None or FileIdentity.of(os.stat(self.really[0])) == self.really[1]


_kept: OrderedDict[Key, _Kept] = OrderedDict()


class Unboxed:
    """The caller's world, for programs to be started in.

    Args:
        environ: all their variables; None: the caller's.
        cwd: where they begin; None: where the caller is.
        session: each begins a session of its own.
    Raises:
        NotFoundError, NotDirError, AccessDeniedError: `cwd` cannot be entered.
    """

    box = _NO_LIMITS

    def __init__(self, environ: Mapping[str, str] | None = None, cwd: StrOrBytesPath | None = None, *, session: bool = False) -> None:
        self.environ = None if environ is None else dict(environ)
        self.cwd = b"" if cwd is None else _checked_directory(cwd)
        self.session = session

    @property
    def search(self) -> str:
        """Where programs are looked for: the PATH that they get."""
        return (os.environ if self.environ is None else self.environ).get("PATH", os.defpath)

    @property
    def host_cwd(self) -> str | None:
        """Where what has no absolute path is looked for; None: in the caller's working directory."""
        return os.fsdecode(self.cwd) if self.cwd else None

    def looks_around(self, name: str) -> bool:
        """It begins where the caller is, so only what has to be looked for is looked for from there."""
        return not name.startswith("/")

    def enforced_with(self, others: dict[str, bool | str]) -> dict[str, bool | str]:
        """Each protection that a sandbox has. None is in force."""
        return {**_NOTHING, **others}

    def kill(self, process: Process) -> Sequence[OwnedFd]:
        """Kill it, and what descends from it. The pidfds of the latter, to be waited for."""
        found: Sequence[OwnedFd] = ()
        if (pidfd := process.pidfd) is not None and process.returncode is None:
            found = kill_descendants(process.pid, pidfd)
        process.kill()
        return found

    def launch(self, order: Order, job: Job | None) -> Process:
        """Start a program.

        Raises:
            SpawnError: nothing was started.
        """
        program = order.program
        key = (program.path, program.argv0, tuple(order.fds), self.cwd, self.session)
        kept = _kept.get(key)
        if kept is not None and job is None and (process := self._again(kept, order)) is not None:
            return process
        reaper.sweep()
        draft = Draft(_FLAGS, tuple(CloneFd(fd, target) for target, fd in order.fds.items()), consume=True)
        try:
            environ = packed_environment(int(SpawnFlags.CLONE_ENVIRON), self.environ)[0].split(b"\0")[:-1]
            plan = make_plan(draft, program.path, order.argv, environ, job, None, die_with_caller=False)
            # What it is handed are its standard streams, which nobody has to look up in a table.
            own = tuple(item for item in plan.environ if not item.startswith(_STARTUP))
            plan = dataclasses.replace(plan, environ=own, cwd=self.cwd, umask=None, session=self.session)
            process, lowered = start(plan, draft)
        finally:
            draft.close()
        if program.identity is not None and job is None and given_job() is None and plan.program.path is not None:
            with contextlib.suppress(OSError):
                path = os.fsdecode(plan.program.path)
                really = (path, FileIdentity.of(os.stat(path))) if program.is_script else None
                directives = plan.argv[: len(plan.argv) - len(order.args) - 1]
                targets = tuple(item.target for item in plan.descriptors)
                _remember(key, _Kept(program.identity, really, directives, targets, lowered))
        return process

    def _again(self, kept: _Kept, order: Order) -> Process | None:
        try:
            if given_job() is not None or not kept.is_same(order.program):
                return None
        except OSError:
            return None
        argv = count_strings((*kept.directives, *order.argv))
        if argv[0].count(b"\0") != argv[1]:
            return None
        envp, envc, _ = packed_environment(int(SpawnFlags.CLONE_ENVIRON), self.environ)
        try:
            return run(kept.lowered, tuple(order.fds[target] for target in kept.targets), argv, (envp, envc))
        except SpawnError:
            return None  # and the long way says what is wrong


def _remember(key: Key, kept: _Kept) -> None:
    _kept[key] = kept
    while len(_kept) > KEPT:
        with contextlib.suppress(KeyError):  # another thread was quicker
            _kept.popitem(last=False)


def _checked_directory(path: StrOrBytesPath) -> bytes:
    try:
        name = os.path.abspath(os.fsencode(path))
    except UnicodeEncodeError as error:
        raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, not_encoded("cwd", error)) from None
    if b"\0" in name:
        raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"cwd {os.fsdecode(name)!r} holds a zero byte")
    try:
        os.close(os.open(name, os.O_PATH | os.O_DIRECTORY))
        refused = 0 if os.access(name, os.X_OK, effective_ids=True) else errno.EACCES
    except OSError as error:
        refused = error.errno or errno.EIO
    if refused:
        raise failure_from_errno(refused, Stage.ARGUMENTS, f"cwd {os.fsdecode(name)!r} cannot be entered")
    return name


os.register_at_fork(after_in_child=_kept.clear)
