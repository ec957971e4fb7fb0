"""Calls: run() and what is made of it. As the standard module has them, but on our Popen, and with an end for the whole tree.

They look Popen up in the package, as the standard ones do in their module: whoever replaces it there replaces it for them.
"""

from __future__ import annotations

from subprocess import PIPE, STDOUT, CalledProcessError, CompletedProcess, TimeoutExpired
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import shoal.subprocess as package
from shoal.handles.tree import END_S
from shoal.subprocess.popen import Popen

if TYPE_CHECKING:
    from shoal.arguments import StrOrBytesPath
    from shoal.sandbox.box import Sandbox
    from shoal.subprocess.options import Called, Checked, Command, Ran


@overload
def run(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: str | None = None,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **options: Unpack[Ran],
) -> CompletedProcess[str]: ...
@overload
def run(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: str | None = None,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **options: Unpack[Ran],
) -> CompletedProcess[str]: ...
@overload
def run(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: str | None = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str,
    universal_newlines: bool | None = None,
    **options: Unpack[Ran],
) -> CompletedProcess[str]: ...
@overload
def run(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: str | None = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: Literal[True],
    **options: Unpack[Ran],
) -> CompletedProcess[str]: ...
@overload
def run(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: bytes | bytearray | memoryview | None = None,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    universal_newlines: Literal[False] | None = None,
    **options: Unpack[Ran],
) -> CompletedProcess[bytes]: ...
@overload
def run(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: Any = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **options: Unpack[Ran],
) -> CompletedProcess[Any]: ...
def run(
    *popenargs: Any, input: Any = None, capture_output: bool = False, timeout: float | None = None, check: bool = False, **kwargs: Any
) -> CompletedProcess[Any]:
    """Run a program, wait for its end, and tell how it ended. As subprocess.run().

    When `timeout` is over, the whole tree is killed, and what has inherited a pipe and has left the tree is not waited for.

    Args:
        sandbox: as Popen has it. The result then is a `shoal.Result`, which says why it ended, what it used and what was enforced.
    Raises:
        TimeoutExpired: it took longer; carries the output so far. A note tells what of the tree could not be killed.
        CalledProcessError: with `check`, it did not return 0; with `sandbox` it is a RunError.
        OSError, ValueError, TypeError, SubprocessError: as Popen().
    Source: Python's subprocess.
    """
    if input is not None:
        if kwargs.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        kwargs["stdin"] = PIPE
    if capture_output:
        if kwargs.get("stdout") is not None or kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        kwargs["stdout"] = kwargs["stderr"] = PIPE
    with package.Popen(*popenargs, **kwargs) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except TimeoutExpired as late:
            _end(process, late)
            raise
        except:
            process.kill()  # and the end of the block waits, as long as is right after a KeyboardInterrupt
            raise
        returncode: Any = process.poll()
        result = process._result(stdout, stderr) if kwargs.get("sandbox") is not None else None
    if result is not None:
        if check:
            result.check_returncode()
        return result
    if check and returncode:
        raise CalledProcessError(returncode, process.args, output=stdout, stderr=stderr)
    return CompletedProcess(process.args, returncode, stdout, stderr)


@overload
def call(args: Command, /, bufsize: int = -1, executable: StrOrBytesPath | None = None, **options: Unpack[Called]) -> int: ...
@overload
def call(*, args: Command, bufsize: int = -1, executable: StrOrBytesPath | None = None, **options: Unpack[Called]) -> int: ...
def call(*popenargs: Any, timeout: float | None = None, **kwargs: Any) -> int:
    """Run a program, wait for its end, and give its return code. As subprocess.call(); `sandbox` and `timeout` as in run()."""
    with package.Popen(*popenargs, **kwargs) as process:
        try:
            return process.wait(timeout=timeout)
        except TimeoutExpired as late:
            _end(process, late)
            raise
        except:
            process.kill()
            raise


@overload
def check_call(args: Command, /, bufsize: int = -1, executable: StrOrBytesPath | None = None, **options: Unpack[Called]) -> int: ...
@overload
def check_call(*, args: Command, bufsize: int = -1, executable: StrOrBytesPath | None = None, **options: Unpack[Called]) -> int: ...
def check_call(*popenargs: Any, **kwargs: Any) -> int:
    """call(), for what has to return 0. As subprocess.check_call(); `sandbox` and `timeout` as in run().

    Raises:
        CalledProcessError: it did not return 0.
    """
    returncode = package.call(*popenargs, **kwargs)
    if returncode:
        command = kwargs.get("args")
        raise CalledProcessError(returncode, popenargs[0] if command is None else command)
    return 0


@overload
def check_output(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: str | None = None,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **options: Unpack[Checked],
) -> str: ...
@overload
def check_output(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: str | None = None,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **options: Unpack[Checked],
) -> str: ...
@overload
def check_output(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: str | None = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str,
    universal_newlines: bool | None = None,
    **options: Unpack[Checked],
) -> str: ...
@overload
def check_output(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: str | None = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: Literal[True],
    **options: Unpack[Checked],
) -> str: ...
@overload
def check_output(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: bytes | bytearray | memoryview | None = None,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    universal_newlines: Literal[False] | None = None,
    **options: Unpack[Checked],
) -> bytes: ...
@overload
def check_output(
    args: Command,
    bufsize: int = -1,
    executable: StrOrBytesPath | None = None,
    *,
    input: Any = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **options: Unpack[Checked],
) -> Any: ...
def check_output(*popenargs: Any, timeout: float | None = None, **kwargs: Any) -> Any:
    """Run a program that has to return 0, and give what it writes. As subprocess.check_output(); `sandbox` and `timeout` as in run().

    Raises:
        CalledProcessError: it did not return 0.
    """
    for name in ("stdout", "check"):
        if name in kwargs:
            raise ValueError(f"{name} argument not allowed, it will be overridden.")
    if "input" in kwargs and kwargs["input"] is None:  # which once meant no input, and still does
        as_text = any(kwargs.get(name) for name in ("universal_newlines", "text", "encoding", "errors"))
        kwargs["input"] = "" if as_text else b""
    return package.run(*popenargs, stdout=PIPE, timeout=timeout, check=True, **kwargs).stdout


def getstatusoutput(
    cmd: str | bytes, *, encoding: str | None = None, errors: str | None = None, sandbox: Sandbox | str | None = None
) -> tuple[int, str]:
    """The status and the output, stderr's included, of a command in a shell. As subprocess.getstatusoutput(); `sandbox` as in run()."""
    more: dict[str, Any] = {} if sandbox is None else {"sandbox": sandbox}
    try:
        data = package.check_output(cmd, shell=True, text=True, stderr=STDOUT, encoding=encoding, errors=errors, **more)
        status = 0
    except CalledProcessError as error:
        data, status = error.output, error.returncode
    return status, data[:-1] if data[-1:] == "\n" else data


def getoutput(cmd: str | bytes, *, encoding: str | None = None, errors: str | None = None, sandbox: Sandbox | str | None = None) -> str:
    """The output, stderr's included, of a command in a shell. As subprocess.getoutput(); `sandbox` as in run()."""
    more: dict[str, Any] = {} if sandbox is None else {"sandbox": sandbox}
    return package.getstatusoutput(cmd, encoding=encoding, errors=errors, **more)[1]


def _end(process: Popen[Any], late: TimeoutExpired) -> None:
    """Kill a tree whose time is over, and say what has not ended."""
    try:
        left = process._end_tree()
    except OSError as error:
        late.add_note(f"only the program itself was killed: {error}")
    else:
        for each in left:
            late.add_note(f"left running: {each}")
    try:
        process.wait(timeout=END_S)
    except TimeoutExpired:
        process._give_up()  # it sleeps in the kernel where no signal reaches it
