"""run(): subprocess.run, for a program that nobody trusts."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import Any, Literal

from shoal.arguments import Duration, Size, StrOrBytesPath
from shoal.handles.deadline import Wait
from shoal.sandbox.box import Sandbox
from shoal.sandbox.launch import Boxed
from shoal.sandbox.output import Pump, Why
from shoal.sandbox.request import OUTPUT_LIMIT, Request
from shoal.sandbox.result import Result
from shoal.sandbox.running import Move, Running, Steps

_default = Sandbox()


def boxed_of(sandbox: Sandbox | None) -> Boxed:
    """What stands for the sandbox that a caller gave, or left out.

    Raises:
        TypeError: it is no Sandbox.
    """
    if sandbox is None:
        return Boxed.of(_default)
    if not isinstance(sandbox, Sandbox):
        raise TypeError(f"sandbox has to be a shoal.Sandbox, not {sandbox!r}")
    return Boxed.of(sandbox)


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
    request = Request.of(
        boxed_of(sandbox),
        args,
        input=input,
        capture_output=capture_output,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=text,
        encoding=encoding,
        errors=errors,
        timeout=timeout,
        output_limit=output_limit,
        on_output_limit=on_output_limit,
        spill_directory=spill_directory,
    )
    result = carry_out(request)
    if check:
        result.check_returncode()
    return result


def carry_out(request: Request) -> Result:
    """From the start to the result. This thread sleeps meanwhile. Whatever is raised meanwhile, nothing of the run is left then.

    Raises:
        As `run()`, `check` aside.
    """
    with Running(request) as running:
        try:
            running.begin()
            drive(running.following(), running.pump)
        except BaseException:
            drive(running.ending(), running.pump)
            raise
    return running.result()


def drive(steps: Steps[None], pump: Pump | None) -> None:
    """Take the steps of a `Running`, and let this thread sleep between them."""
    answer: object = None
    try:
        while True:
            step = steps.send(answer)
            if isinstance(step, Move) and pump is not None:
                answer = pump.run(step.fd, step.deadline)
            else:
                is_ready = step.deadline.wait_ready(step.fd, select.POLLIN)
                answer = is_ready if isinstance(step, Wait) else Why.ENDED if is_ready else Why.DEADLINE
    except StopIteration:
        return
