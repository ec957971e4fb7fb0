"""run(): shoal.run, for programs of asyncio and trio."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shoal.aio.driving import conduct
from shoal.arguments import Duration, Size, StrOrBytesPath
from shoal.sandbox.box import Sandbox
from shoal.sandbox.request import OUTPUT_LIMIT, Request, Starter
from shoal.sandbox.result import Result
from shoal.sandbox.run import boxed_of
from shoal.sandbox.unboxed import Unboxed

Box = Sandbox | Literal[False] | None
"""What a program is run in. None: `Sandbox()`. False: in no sandbox at all, as the caller."""

_unboxed = Unboxed()


async def run(
    args: Sequence[StrOrBytesPath],
    *,
    sandbox: Box = None,
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
    env: Mapping[str, str] | None = None,
    cwd: StrOrBytesPath | None = None,
) -> Result:
    """Run a program in a sandbox, wait for its end, and tell how it ended and why. `shoal.run()` in an event loop: asyncio's or trio's.

    It ends when the program exits; what that has left running is killed, unless `Sandbox.linger` says otherwise. A cancellation kills
    all of it and waits until it is gone.

    Args:
        args: the program, looked up in the caller's PATH and files, and its arguments.
        sandbox: what it gets; None is `Sandbox()`. False: it runs in no sandbox, with the caller's files, network, environment and
            rights; what can be ended of its tree then is what descends from it.
        timeout: seconds from its launch, or text such as "1m30s".
        output_limit, on_output_limit, spill_directory: as `shoal.run()` has them.
        env, cwd: only with sandbox=False: all its variables, and where it begins; None: the caller's. A Sandbox has its own.
    Raises:
        TimeoutExpired: it took longer than `timeout`; carries the output so far. The whole tree is dead by then.
        CalledProcessError: with `check`, it did not return 0; says why.
        NotFoundError, AccessDeniedError: there is no such program, or it cannot be executed.
        SpawnError: it could not be started: says where and why. TypeError, ValueError: what was asked for cannot be meant.
    Source: Python's subprocess.run(); anyio's and trio's run_process().
    """
    starter = starter_of(sandbox, env, cwd)
    request = Request.of(
        starter,
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
        host_cwd=starter.host_cwd if isinstance(starter, Unboxed) else None,
    )
    result = await conduct(request)
    if check:
        result.check_returncode()
    return result


def starter_of(sandbox: Box, env: Mapping[str, str] | None = None, cwd: StrOrBytesPath | None = None, *, session: bool = False) -> Starter:
    """What a program is started in.

    Raises:
        TypeError, ValueError: `sandbox` is none, or has what was said besides.
        SpawnError: `cwd` cannot be entered.
    """
    if sandbox is False:
        return _unboxed if env is None and cwd is None and not session else Unboxed(env, cwd, session=session)
    if env is not None or cwd is not None:
        name, value = ("env", env) if env is not None else ("cwd", cwd)
        raise ValueError(f"{name} is for sandbox=False; a sandbox has its own: sandbox.replace({name}={value!r})")
    if session:
        raise ValueError("start_new_session is for sandbox=False; a program in a sandbox has a session of its own")
    return boxed_of(sandbox)
