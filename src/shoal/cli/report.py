"""Report: what is said about the end of a run, on stderr, as JSON and in a meta-file; and the exit code that belongs to it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from shoal.cli.output import TIMED_OUT, CommandError, Outcome, complain, hidden, hint
from shoal.cli.request import Request
from shoal.handles.process import Usage
from shoal.status import SpawnError
from shoal.units import parse_duration

if TYPE_CHECKING:  # these cost milliseconds, and a plain run needs none of them
    from shoal.cli.session import Ended, Over
    from shoal.sandbox.denied import Denied
    from shoal.sandbox.result import Result

_PATIENCE_S = 2.0
_OUT_OF_MEMORY = 128 + signal.SIGKILL
_REFUSED = 128 + signal.SIGSYS


class MetaFile:
    """Where the end is told as isolate(1) tells it. Opened before anything is started: an old one must not be taken for this run's."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CommandError(f"--meta {path}: {error.strerror}") from None

    def write(self, result: Result) -> None:
        """The whole of it. Once."""
        with open(self._fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(hidden(result.meta()))


def report(request: Request, over: Over, *, as_json: bool, meta: MetaFile | None) -> Outcome:
    """Say what there is to say about the end; the terminal is the caller's again."""
    ended = over.ended
    if ended.unkilled:
        from shoal.sandbox.unkilled import in_words

        complain(f"note: {in_words(ended.unkilled)}", patience_s=_PATIENCE_S)
    if not (as_json or meta or over.spent or ended.stopped or ended.returncode == -signal.SIGXCPU):
        # All there is to a plain run, without loading what tells of others.
        code = _own_code(ended)
        _give(_advice(request, over, code)[0])
        return Outcome(code=code)
    result = _result(request, over)
    told, code = _stopped(request, result.reason, ended)
    advice: list[str] = []
    if told:
        complain(told, patience_s=_PATIENCE_S)
    else:
        code = _own_code(ended)
        advice, result.denied = _advice(request, over, code)
        _give(advice)
    if meta:
        meta.write(result)
    return Outcome(data=_data(result, over, code, advice), code=code, stream="stderr")


def never_started(words: list[str], error: CommandError | OSError, code: int, meta: MetaFile | None) -> dict[str, object]:
    """The same for a run that came to nothing; what stderr has to say has been said."""
    known = error if isinstance(error, SpawnError) else None
    message = error.message if isinstance(error, CommandError) else str(error)
    if meta:
        from shoal.sandbox.result import Result, RunUsage

        meta.write(Result(words, code, reason="setup_failed", usage=RunUsage(0.0, 0.0, 0.0, 0), message=message))
    return {
        "exit_code": code,
        "returncode": None,
        "reason": "setup_failed",
        "signal": None,
        "wall_s": None,
        "usage": None,
        "enforced": {},
        "denied": [],
        "unkilled": [],
        "hints": list(getattr(error, "hints", ())),
        "error": {"message": message, "status": known.status.name if known else None, "stage": known.stage.value if known else None},
    }


def _result(request: Request, over: Over) -> Result:
    """The run as shoal.run() would tell of it."""
    from shoal.sandbox.limits import sum_up
    from shoal.sandbox.result import Result

    ended = over.ended
    own = over.info.usage or Usage(0.0, 0.0, 0)
    usage, why = sum_up(ended.wall_s, own, over.spent, ended.returncode, ended.stopped, request.box)
    reason = "wall_time" if why == "timeout" else why or ("exited" if ended.returncode >= 0 else "signaled")
    unkilled = [each.pid for each in ended.unkilled]
    words = [request.program.name, *request.args]
    return Result(words, ended.returncode, reason=reason, usage=usage, enforced=over.enforced, unkilled=unkilled)


def _stopped(request: Request, reason: str, ended: Ended) -> tuple[str, int]:
    """The line about a run that a limit has ended, and its exit code; "" for one that ended by itself."""
    name, box = request.program.name, request.box
    if reason == "wall_time":
        limit = request.timeout_s if ended.stopped == "timeout" else parse_duration(box.wall_time or 0)
        return f"{name}: timed out after {limit:g} s; it was killed with everything it started", TIMED_OUT
    if reason == "cpu_time":
        limit = parse_duration(box.cpu_time or 0)
        return f"{name}: used up its processor time of {limit:g} s; it was killed with everything it started; reason: cpu_time", TIMED_OUT
    if reason == "oom":
        told = f"{name}: used up its memory of {box.memory}; it was killed with everything it started; reason: oom"
        return told, _OUT_OF_MEMORY
    return "", 0


def _own_code(ended: Ended) -> int:
    """The exit code of a program that nobody has stopped."""
    return ended.returncode if ended.returncode >= 0 else 128 - ended.returncode


def _give(advice: list[str]) -> None:
    for line in advice:
        hint(line)


def _advice(request: Request, over: Over, code: int) -> tuple[list[str], tuple[Denied, ...]]:
    """What would have helped, and what is known to have been denied."""
    returncode = over.ended.returncode
    if returncode == 0 or (returncode < 0 and code != _REFUSED):
        return [], ()
    from shoal.sandbox.denied import Denied, denied_call, denied_files
    from shoal.sandbox.hints import Run, hints_for

    call = denied_call(returncode, over.pid, over.user, over.info.started_at, request.box.seccomp)
    if call is not None:
        told = f"it was killed for the {call}, which its filter refuses (SIGSYS)" if call.name else f"it made {call}"
        return [told], (call,)
    if returncode < 0:
        return [], ()
    if returncode == _REFUSED and request.box.seccomp != "off":
        told = f"it ended with {returncode}, as a shell does when something was killed for {Denied('system call', '', 'kernel')}"
        return [told], ()
    from shoal.sandbox.box import PATH
    from shoal.sandbox.grants import View

    run = Run(
        program=request.program,
        args=request.args,
        view=View(request.grants),
        cwd=request.cwd,
        host_cwd=request.host_cwd,
        environ=request.environ,
        search=os.environ.get("PATH", PATH),
        network=request.box.network == "host",
        exit_code=code,
    )
    return [str(found) for found in hints_for(run)], denied_files(run, None)


def _data(result: Result, over: Over, code: int, advice: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    returncode = over.ended.returncode
    usage = {key: value for key, value in asdict(result.usage).items() if value is not None and key != "wall_s"}
    return {
        "exit_code": code,
        "returncode": returncode,
        "reason": result.reason,
        "signal": signal_name(-returncode) if returncode < 0 else None,
        "wall_s": round(over.ended.wall_s, 6),
        "usage": usage if over.info.usage is not None else None,
        "enforced": dict(result.enforced),
        "denied": [asdict(what) for what in result.denied],
        "unkilled": list(result.unkilled),
        "hints": advice,
        "error": None,
    }


def signal_name(number: int) -> str:
    """SIGTERM for 15; real-time signals have no name of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
