"""run(): subprocess.run, for a program that nobody trusts."""

from __future__ import annotations

import contextlib
import errno
import locale
import os
import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from shoal.cells import fetch, refill
from shoal.handles import reaper
from shoal.handles.deadline import Deadline
from shoal.handles.process import Process, Usage
from shoal.launcher import END_S
from shoal.sandbox.box import Duration, Sandbox, Size, StrOrBytesPath
from shoal.sandbox.errors import NOT_EXECUTABLE, NOT_FOUND, RequestError
from shoal.sandbox.landlocked import has_own_user
from shoal.sandbox.launch import Boxed, Order
from shoal.sandbox.limits import Budget, sum_up
from shoal.sandbox.output import Pump, Why
from shoal.sandbox.program import current_directory, find_program
from shoal.sandbox.result import Reason, Result, decoded
from shoal.status import Stage, Status, failure
from shoal.units import parse_duration, parse_size

if TYPE_CHECKING:
    from shoal.sandbox.denied import Denied
    from shoal.sandbox.unkilled import Unkilled

PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
OUTPUT_LIMIT = "64M"
"""What is kept in memory of each stream, unless the caller says otherwise."""

LOOK_S = 0.2
"""How often somebody looks after a cell that outlives its program."""

_default = Sandbox()


def run(
    args: Sequence[StrOrBytesPath],
    *,
    sandbox: Sandbox | None = None,
    input: bytes | str | None = None,
    capture_output: bool = False,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    text: bool = False,
    encoding: str | None = None,
    errors: str | None = None,
    timeout: Duration | None = None,
    check: bool = False,
    output_limit: Size | None = OUTPUT_LIMIT,
    on_output_limit: Literal["drain", "kill", "spill"] = "drain",
    spill_directory: str | os.PathLike[str] | None = None,
) -> Result:
    """Run a program in a sandbox, wait for its end, and tell how it ended and why.

    It ends when the program exits; what that has left running is killed, unless `Sandbox.linger` says otherwise. The arguments
    that subprocess.run() has, too, mean the same.

    Args:
        args: the program, looked up in the caller's PATH and files, and its arguments.
        sandbox: what it gets; None is `Sandbox()`: itself and its libraries, a private /tmp, and little else.
        timeout: seconds, or text such as "1m30s".
        output_limit: how much of each captured stream is kept in memory; None is all of it.
        on_output_limit: what becomes of more than that: "drain": it is read and counted; "kill": the program is killed; "spill": the
            whole stream goes to a file in `spill_directory`, which is then the caller's.
    Raises:
        TimeoutExpired: it took longer than `timeout`; carries the output so far. The whole tree is dead by then. `Sandbox.wall_time`
            does not raise.
        CalledProcessError: with `check`, it did not return 0; says why.
        NotFoundError, AccessDeniedError: there is no such program, or it cannot be executed.
        SpawnError: it could not be started: says where and why. ValueError: what was asked for cannot be meant.
    """
    box = _default if sandbox is None else sandbox
    boxed = Boxed.of(box)
    arguments = _words(args)
    if capture_output:
        if stdout is not None or stderr is not None:
            raise ValueError("stdout and stderr cannot be used with capture_output")
        stdout = stderr = PIPE
    if input is not None and stdin is not None:
        raise ValueError("stdin and input cannot both be used")
    as_text = text or encoding is not None or errors is not None
    data = _encoded(input, as_text, encoding, errors) if input is not None else b"" if stdin == PIPE else None
    patience = None if timeout is None else parse_duration(timeout)
    host_cwd = current_directory()
    program = _program(arguments[0], host_cwd)
    with Pump(
        data=data,
        stdout=stdout == PIPE,
        stderr=stderr == PIPE,
        limit_bytes=None if output_limit is None else parse_size(output_limit),
        policy=on_output_limit,
        spill_directory=spill_directory,
    ) as pump:
        fds = _descriptors(pump, stdin, stdout, stderr)
        started = time.monotonic()
        budget = Budget.of(box)
        try:
            enforced = boxed.enforced_with(budget.enforced)
            process = boxed.launch(Order(program, arguments[1:], fds, host_cwd), budget.job)
            if not enforced["namespaces"]:
                enforced["user"] = has_own_user(process)
            with process:
                try:
                    _meanwhile(process)
                    reason, gone = _follow(process, pump, box, budget, patience, started)
                except BaseException:
                    process.end_cell(END_S)
                    raise
                wall_s = time.monotonic() - started
                captured = pump.finish()
                left: tuple[Unkilled, ...] = ()
                if gone:
                    returncode = process.wait()
                    own = process.usage or Usage(0.0, 0.0, 0)
                else:
                    from shoal.sandbox.unkilled import ending_of, in_words, unkilled

                    left = unkilled(process)
                    returncode, own = ending_of(process)
            spent = budget.spent()
        finally:
            budget.close()
            refill()
    usage, reason = sum_up(wall_s, own, spent, returncode, reason, box)
    spilled = [item.facts.spill_path for item in captured.values() if item.facts.spill_path is not None]
    try:
        output: dict[str, Any] = {
            name: decoded(item.data, truncated=item.facts.truncated, encoding=encoding, errors=errors) if as_text else item.data
            for name, item in captured.items()
        }
    except (UnicodeError, LookupError):
        for path in spilled:  # nobody would ever learn of them
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise
    if reason == "timeout":
        late = subprocess.TimeoutExpired(arguments, patience or 0.0, output.get("stdout"), output.get("stderr"))
        for path in spilled:
            late.add_note(f"what it wrote is in {path}")
        if left:
            late.add_note(in_words(left))
        raise late
    denied: tuple[Denied, ...] = ()
    if returncode and reason is None:  # what ended well pays nothing for this
        from shoal.sandbox.denied import denied_in

        heard = captured.get("stdout" if stderr == STDOUT else "stderr")
        order = Order(program, arguments[1:], {}, host_cwd)
        denied = denied_in(boxed, order, process, time.time() - wall_s, returncode, None if heard is None else heard.data)
    result = Result(
        arguments,
        returncode,
        output.get("stdout"),
        output.get("stderr"),
        reason=reason or ("exited" if returncode >= 0 else "signaled"),
        usage=usage,
        enforced=enforced,
        output={name: item.facts for name, item in captured.items()},
        denied=denied,
        unkilled=[each.pid for each in left],
        message=in_words(left) if left else "",
    )
    if check:
        result.check_returncode()
    return result


def _words(args: object) -> list[str]:
    if isinstance(args, str | bytes | os.PathLike) or not isinstance(args, Sequence):
        raise TypeError('args has to be a list of strings, not one string; for example ["prog", "-v"]')
    if not args:
        raise ValueError("args is empty: which program?")
    return [os.fsdecode(word) for word in args]


def _program(name: str, host_cwd: str) -> Any:
    try:
        return find_program(name, os.environ.get("PATH", os.defpath), host_cwd)
    except RequestError as error:
        status = {NOT_FOUND: Status.NOT_FOUND, NOT_EXECUTABLE: Status.ACCESS_DENIED}.get(error.code, Status.INVALID_ARGS)
        raise failure(status, Stage.LOAD, error.message) from None


def _descriptors(pump: Pump, stdin: Any, stdout: Any, stderr: Any) -> dict[int, int]:
    """By the number in the child. What is missing is /dev/null there."""
    fds: dict[int, int] = {}
    for target, given in enumerate((stdin, stdout, stderr)):
        if target in pump.ends:
            fds[target] = pump.ends[target]
        elif given is None:
            try:
                os.fstat(target)
            except OSError:
                continue
            fds[target] = target
        elif given == STDOUT and target == 2:
            if 1 in fds:
                fds[2] = fds[1]
        elif given in (PIPE, STDOUT):
            raise ValueError(f"{('stdin', 'stdout', 'stderr')[target]} cannot be {given}")
        elif given != DEVNULL:
            number = given if isinstance(given, int) else given.fileno()
            try:
                os.fstat(number)
            except (OSError, OverflowError):
                what = f"{('stdin', 'stdout', 'stderr')[target]}: descriptor {number} is not open"
                raise failure(Status.BAD_HANDLE, Stage.DESCRIPTORS, what, errno.EBADF) from None
            fds[target] = number
    return fds


def _meanwhile(process: Process) -> None:
    """What is to be done once for each run is done while the program starts."""
    process.look_ahead()
    reaper.sweep()
    fetch()


def _follow(
    process: Process, pump: Pump, box: Sandbox, budget: Budget, patience: float | None, started: float
) -> tuple[Reason | Literal["timeout"] | None, bool]:
    """Wait for the end, and bring it about where it has to be. Why it did (None: it ended by itself), and whether all has ended."""
    wall = None if box.wall_time is None else parse_duration(box.wall_time)
    by_wall = wall is not None and (patience is None or wall < patience)
    limit = wall if by_wall else patience
    last = None if limit is None else started + limit
    why = _wait(process.fileno(), pump, budget, last)
    if why is Why.ENDED and box.linger == "wait" and (rest := process.cell_end()) is not None:
        process.wait()  # a cell is not gone as long as its program has not been reaped
        while (why := _wait(rest.fd, pump, budget, _sooner(last))) is Why.DEADLINE and (last is None or time.monotonic() < last):
            reaper.sweep()  # what its program made our child, the cell waits for us to reap
    if why is Why.ENDED:
        return None, process.end_cell(END_S) if box.linger == "kill" and process.left_something() else True
    gone = process.end_cell(END_S)
    if why == "cpu_time":
        return "cpu_time", gone
    return "output_limit" if why is Why.LIMIT else "wall_time" if by_wall else "timeout", gone


def _sooner(last: float | None) -> float:
    soon = time.monotonic() + LOOK_S
    return soon if last is None else min(soon, last)


def _wait(until: int, pump: Pump, budget: Budget, last: float | None) -> Why | Literal["cpu_time"]:
    """Move bytes until `until` is readable, `last` has come, or the processor time is used up."""
    while True:
        left = None if last is None else last - time.monotonic()
        look = budget.next_look_s()
        if look == 0:
            return "cpu_time"
        soonest = look if left is None else left if look is None else min(look, left)
        why = pump.run(until, Deadline(soonest))
        if why is not Why.DEADLINE or (last is not None and time.monotonic() >= last):
            return why


def _encoded(data: bytes | str, as_text: bool, encoding: str | None, errors: str | None) -> bytes | memoryview:
    if isinstance(data, str):
        if not as_text:
            raise TypeError("input is text, so text=True is needed; or give bytes")
        return data.encode(encoding or locale.getencoding(), errors or "strict")
    if as_text:
        raise TypeError("input has to be text with text=True")
    return memoryview(data)
