"""Inside: a program in a sandbox that Popen has started: the same launch, the same limits, the same end as with shoal.run().

What the arguments of Popen() mean then is decided here and told in docs/change-one-import.md. What cannot be meant is a ValueError:
nothing that was asked for is left out in silence.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shoal import records
from shoal.cells import fetch
from shoal.descriptors import is_for_children
from shoal.handles import reaper
from shoal.handles.deadline import Deadline, is_ready
from shoal.handles.process import Process, Usage
from shoal.handles.reaper import OwnedFd
from shoal.handles.tree import Left
from shoal.launcher import END_S
from shoal.sandbox.box import Sandbox
from shoal.sandbox.denied import Denied
from shoal.sandbox.errors import NOT_EXECUTABLE, NOT_FOUND, DirectoryError, RequestError
from shoal.sandbox.landlocked import note_own_user
from shoal.sandbox.launch import Boxed, Order
from shoal.sandbox.limits import Budget, sum_up
from shoal.sandbox.program import Program, current_directory, find_program
from shoal.sandbox.result import Reason, Result, RunUsage
from shoal.sandbox.running import LOOK_S
from shoal.status import BadHandleError, BadStateError, Stage, Status, failure
from shoal.subprocess import watch
from shoal.subprocess.inheritance import kept_fds
from shoal.units import parse_duration

if TYPE_CHECKING:
    from shoal.subprocess.popen import Request

_HIGHEST_FD = 1023
_profiles: dict[str, Sandbox] = {}
"""The last seen of each name: an equal one is not made anew, since cells made ahead belong to one."""

_elsewhere: weakref.WeakKeyDictionary[Boxed, dict[str, Boxed]] = weakref.WeakKeyDictionary()
_KEPT = 64
LOGGER = "shoal.subprocess"


def start_inside(sandbox: object, request: Request, words: list[Any], executable: Any) -> Inside:
    """Start a program in a sandbox.

    Args:
        sandbox: a Sandbox, or the name of a profile.
        words: the whole command; executable: what is executed.
    Raises:
        TypeError, ValueError: an argument cannot be meant, or cannot be meant in a sandbox.
        SpawnError: it could not be started: says where and why. It is the OSError that the standard module would raise.
    """
    box = _box(sandbox)
    _refuse(request)
    host_cwd = current_directory()
    boxed, base = Boxed.of(box), host_cwd
    if request.cwd is not None:
        base = os.path.join(host_cwd, os.fsdecode(request.cwd))
        boxed = _standing_in(boxed, base)
    environ = None if request.env is None else _environ(request.env)
    if any("\0" in os.fsdecode(word) for word in (*words, executable)):
        raise ValueError("embedded null byte")
    program = _program(os.fsdecode(executable), os.pathsep.join(os.get_exec_path(environ)), base)._replace(name=os.fsdecode(words[0]))
    order = Order(program, [os.fsdecode(word) for word in words[1:]], _descriptors(request), host_cwd, environ=environ)
    since, started = time.time(), time.monotonic()
    budget = Budget.of(box)
    try:
        enforced = boxed.enforced_with(budget.enforced)
        process = boxed.launch(order, budget.job)
        note_own_user(enforced, process)
    except BaseException as error:
        budget.close()
        if isinstance(error, DirectoryError) and request.cwd is not None:
            raise FileNotFoundError(errno.ENOENT, f"no directory that the program can see ({error})", request.cwd) from None
        raise
    return Inside(process, boxed, order, budget, enforced, since, started)


class Inside:
    """A program in a sandbox, until its end and that of what it leaves running, as its `linger` says.

    Attributes:
        returncode: None until all that has to end has ended.
        reason, usage: as `Result` has them, once `returncode` is there. enforced: from the beginning.
    """

    def __init__(
        self, process: Process, boxed: Boxed, order: Order, budget: Budget, enforced: dict[str, bool | str], since: float, started: float
    ) -> None:
        box = boxed.box
        self._process, self._boxed, self._order, self._budget = process, boxed, order, budget
        self._since, self._started = since, started
        self._last = None if box.wall_time is None else started + parse_duration(box.wall_time)
        self._ended_by: Reason | None = None
        self._program_is_over = False
        self._unkilled: tuple[int, ...] = ()
        self._message = ""
        self._lock = threading.Lock()
        self.pid = process.pid
        self.returncode: int | None = None
        self.reason: Reason = "exited"
        self.usage: RunUsage | None = None
        self.enforced: Mapping[str, bool | str] = enforced
        records.began(LOGGER, order.program.argv0, self.pid)
        process.look_ahead()
        reaper.sweep()
        fetch()
        if box.linger == "kill" or self._last is not None or budget.cpu_s is not None:
            watch.add(self)

    def poll(self) -> int | None:
        """The return code if it is over, else None."""
        return self._follow(Deadline(0))

    def wait(self, timeout: float | None) -> int | None:
        """The return code once it is over; None when it is not after `timeout` seconds."""
        return self._follow(Deadline(None if timeout is None else float(timeout)))

    def send_signal(self, signal: int) -> None:
        """Send a signal to the program; nothing happens when it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal)

    def end_tree(self) -> tuple[Left, ...]:
        """Kill everything in it, and wait until it is gone. Returns what has not ended: it sleeps where no signal reaches it."""
        self._end("killed")
        with suppress(BadHandleError):
            if not self._process.end_cell(END_S):
                return self._left()
        return ()

    def _left(self) -> tuple[Left, ...]:
        from shoal.sandbox.unkilled import unkilled

        return tuple(Left(each.pid, each.name, str(each)) for each in unkilled(self._process))

    def result(self, args: Any, stdout: Any, stderr: Any) -> Result:
        """All of it, as run() tells it. Once it is over."""
        assert self.returncode is not None
        assert self.usage is not None
        denied: tuple[Denied, ...] = ()
        if self.returncode and self._ended_by is None and self.reason in ("exited", "signaled"):
            from shoal.sandbox.denied import denied_in

            heard = stderr.encode(errors="surrogateescape") if isinstance(stderr, str) else stderr
            denied = denied_in(self._boxed, self._order, self._process, self._since, self.returncode, heard)
        return Result(
            args,
            self.returncode,
            stdout,
            stderr,
            reason=self.reason,
            usage=self.usage,
            enforced=self.enforced,
            denied=denied,
            unkilled=self._unkilled,
            message=self._message,
        )

    # --- for the thread that watches ------------------------------------------------------------------------------

    def stage(self) -> OwnedFd | None:
        """The program's pidfd, then what tells the end of the rest; None: it is over."""
        if self.returncode is not None:
            return None
        return self._process.cell_end() if self._program_is_over else self._process.pidfd

    def settle(self) -> bool:
        """Do what is to be done at the end of the program, or of all."""
        return self.poll() is not None

    def look(self) -> float | None:
        """End it when a limit of time is reached; when to look again."""
        if self.returncode is not None:
            return None
        if self._last is not None and time.monotonic() >= self._last:
            self._end("wall_time")
            return None
        left_s = self._budget.next_look_s()
        if left_s == 0:
            self._end("cpu_time")
            return None
        moments = [self._last, None if left_s is None else time.monotonic() + left_s]
        return min((moment for moment in moments if moment is not None), default=None)

    # --- its end --------------------------------------------------------------------------------------------------

    def _end(self, reason: Reason) -> None:
        """Kill all of it."""
        pidfd = self._process.pidfd
        if pidfd is None:
            return
        if self._ended_by is None and not is_ready(pidfd.fd, select.POLLIN):
            self._ended_by = reason
        with suppress(BadHandleError):  # it is over, and another thread has seen to all
            self._process.kill_cell()

    def _follow(self, deadline: Deadline) -> int | None:
        """Wait for its end until `deadline`, and bring about what has to end with the program."""
        pidfd = self._process.pidfd  # stays open for us, whoever closes the handle
        if self.returncode is None and pidfd is not None and deadline.wait_ready(pidfd.fd, select.POLLIN):
            with suppress(BadHandleError):  # another thread was quicker
                self._come_to_end(deadline)
        return self.returncode

    def _come_to_end(self, deadline: Deadline) -> None:
        process, linger = self._process, self._boxed.box.linger
        try:
            process.wait(_left_s(deadline))
        except TimeoutError:
            return  # it has ended, but a tracer has it
        except BadStateError:
            pass  # somebody has taken the status, which counts as 0 then, as in the standard module
        self._program_is_over = True
        if linger == "wait" and self._ended_by is None:
            while (rest := process.cell_end()) is not None and not is_ready(rest.fd, select.POLLIN):
                if not deadline.at_most(LOOK_S).wait_ready(rest.fd, select.POLLIN) and deadline.remaining_ms() == 0:
                    return
                reaper.sweep()  # what its program made our child, the cell waits for us to reap
        ends = linger == "kill" or self._ended_by is not None
        self._finish(process.end_cell(END_S) if ends and process.left_something() else True)

    def _finish(self, gone: bool) -> None:
        with self._lock:
            if self.returncode is not None:
                return
            process, box = self._process, self._boxed.box
            returncode, own = process.returncode, process.usage or Usage(0.0, 0.0, 0)
            if not gone:
                from shoal.sandbox.unkilled import in_words, unkilled

                left = unkilled(process)
                self._unkilled, self._message = tuple(each.pid for each in left), in_words(left) if left else ""
            try:
                spent = self._budget.spent()
            finally:
                self._budget.close()
            if returncode is None:
                returncode = 0
            usage, reason = sum_up(time.monotonic() - self._started, own, spent, returncode, self._ended_by, box)
            assert reason != "timeout"
            self.usage, self.reason = usage, reason or ("exited" if returncode >= 0 else "signaled")
            self.returncode = returncode
            records.ended(LOGGER, self._order.program.argv0, self.pid, returncode, self.reason, self._message)
            if box.linger != "keep":  # then there is still something to be killed
                process.close()


def _left_s(deadline: Deadline) -> float | None:
    left_ms = deadline.remaining_ms()
    return None if left_ms is None else left_ms / 1000


def _box(sandbox: object) -> Sandbox:
    if isinstance(sandbox, Sandbox):
        return sandbox
    if not isinstance(sandbox, str):
        raise TypeError(f"sandbox has to be a shoal.Sandbox or the name of a profile, not {type(sandbox).__name__}")
    box = Sandbox.profile(sandbox)
    known = _profiles.get(sandbox)
    if known is None or known != box:
        known = _profiles[sandbox] = box
    return known


def _standing_in(boxed: Boxed, cwd: str) -> Boxed:
    """The same box with another working directory; the same one each time, since it keeps what was worked out."""
    known = _elsewhere.setdefault(boxed, {})
    found = known.get(cwd)
    if found is None:
        if len(known) >= _KEPT:
            known.clear()
        found = known[cwd] = Boxed(boxed.box.replace(cwd=cwd))
    return found


def _refuse(request: Request) -> None:
    """Say no to what a sandbox has no place for. Raises ValueError."""
    no = {
        "preexec_fn": (request.preexec_fn is not None, "it is code of the caller, which would run with all that the caller can do"),
        "close_fds=False": (not request.close_fds, "a program in it has what it is handed; name the descriptors in pass_fds"),
        "user": (request.uid is not None, "Sandbox(user=...) says whom it runs as"),
        "group": (request.gid is not None, "Sandbox(user=...) says whom it runs as"),
        "extra_groups": (request.gids is not None, "a program in it has none"),
        "umask": (request.umask >= 0, "it is 022 there"),
        "restore_signals=False": (not request.restore_signals, "a program in it starts with every signal as usual"),
        "process_group": (request.process_group > 0, "a program in it leads a session of its own"),
    }
    for name, (is_asked, why) in no.items():
        if is_asked:
            raise ValueError(f"{name} cannot be used with sandbox: {why}")


def _environ(env: Mapping[Any, Any]) -> dict[str, str]:
    found = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
    for name, value in found.items():
        if "=" in name:
            raise ValueError("illegal environment variable name")
        if "\0" in name + value:
            raise ValueError("embedded null byte")
    return found


def _program(name: str, search: str, cwd: str) -> Program:
    try:
        return find_program(name, search, cwd)
    except RequestError as error:
        status = {NOT_FOUND: Status.NOT_FOUND, NOT_EXECUTABLE: Status.ACCESS_DENIED}.get(error.code, Status.INVALID_ARGS)
        refused = failure(status, Stage.LOAD, error.message)
        refused.filename = name
        raise refused from None


def _descriptors(request: Request) -> dict[int, int]:
    """By the number in the program. What the caller has not is /dev/null there."""
    fds: dict[int, int] = {}
    for target, given in enumerate((request.p2cread, request.c2pwrite, request.errwrite)):
        if given != -1:
            os.fstat(given)
            fds[target] = given
        elif is_for_children(target):
            fds[target] = target
    for number in kept_fds(request.pass_fds):
        if number > _HIGHEST_FD:
            raise ValueError(f"pass_fds: {number} is too high a number for a sandbox, where they go up to {_HIGHEST_FD}")
        fds.setdefault(number, number)
    return fds
