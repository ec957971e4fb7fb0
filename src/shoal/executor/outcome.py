"""Outcome: what a call that is over is told: its result, or why there is none.

What was told from inside is decoded here, in the engine's thread but without its lock, and nothing of it is believed but what it says
about itself.
"""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass
from typing import Any, cast

from shoal.executor import wire
from shoal.executor.call import Call
from shoal.executor.copy_process import CopyProcess
from shoal.executor.decode import BadMessageError, decode
from shoal.executor.errors import (
    BadResultError,
    CallEndedError,
    CallError,
    CallTimeoutError,
    Reason,
    harmless,
    remote_error,
)
from shoal.executor.wire import Kind
from shoal.sandbox.limits import sum_up
from shoal.sandbox.result import RunUsage

log = logging.getLogger("shoal.executor")

_BROUGHT = "the call could not be rebuilt in the sandbox"
_ADVICE = "a module that a call is to import has to be preloaded, or granted with `read` and be on sys.path"
_SMALL = 10_000
"""Values in what is no result."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that is known of a call's end.

    Attributes:
        verdict, problem: as in `CopyProcess`.
        why: what the kernel says has ended it, besides: "oom", "cpu_time", or nothing.
    """

    verdict: tuple[Kind, bytes] | str | None
    problem: str
    why: str | None
    returncode: int | None
    usage: RunUsage
    stdout: str
    stderr: str
    output_bytes: tuple[int, int]
    half_way: bool
    enforced: dict[str, bool | str]

    @classmethod
    def of(cls, copy: CopyProcess, call: Call[Any]) -> Outcome:
        """What is known of a copy that is over."""
        spent = None if copy.budget is None else copy.budget.spent()
        returncode = copy.returncode
        by_itself = copy.verdict is None
        usage, why = sum_up(
            copy.over_at - copy.started_at, copy.usage, spent, 0 if returncode is None else returncode, None, call.limits.box
        )
        return cls(
            copy.verdict,
            copy.problem,
            why if by_itself or why == "oom" else None,
            returncode,
            usage,
            copy.stdout.text,
            copy.stderr.text,
            (copy.stdout.total, copy.stderr.total),
            copy.is_half_way,
            call.limits.enforced | ({} if copy.budget is None else copy.budget.enforced),
        )

    def tell(self, call: Call[Any]) -> None:
        """Let its future have it."""
        call.usage = self.usage
        call.enforced |= self.enforced
        call.returncode = None if isinstance(self.verdict, tuple) else self.returncode  # who has told all is killed on its way out
        call.stdout, call.stderr, call.output_bytes = self.stdout, self.stderr, self.output_bytes
        if call.cancelled():
            call.finish()
            return
        value: object = None
        error: CallError | None = None
        if isinstance(self.verdict, tuple) and self.verdict[0] is Kind.RESULT:
            try:
                value = decode(self.verdict[1])
            except BadMessageError as problem:
                error = BadResultError(f"{call.name}() gave something that is no result: {problem}")
        else:
            error = self._error(call.name, call)
        if error is None:
            call.reason = "returned"
        else:
            call.reason = error.reason
            error.usage, error.stdout, error.stderr = self.usage, self.stdout, self.stderr
        log.debug("call %d of %s(): %s", call.number, call.name, call.reason)
        call.finish(value, error)

    def _error(self, name: str, call: Call[Any]) -> CallError:
        verdict, why = self.verdict, self.why
        if isinstance(verdict, tuple):
            return _told(name, *verdict)
        if verdict == "bad_result":
            return BadResultError(f"{name}() gave no result: {self.problem}")
        if verdict == "output_limit":
            text = f"{name}() wrote more than {call.limits.output_bytes} bytes to its standard output or error output"
            return CallEndedError(text, "output_limit")
        if verdict == "wall_time":
            return CallTimeoutError(f"{name}() took longer than {call.limits.timeout_s:g} s")
        if "cpu_time" in (verdict, why):
            return CallTimeoutError(f"{name}() used more processor time than it was given", "cpu_time")
        if why == "oom":
            return CallEndedError(f"{name}() needed more memory than it was given", "oom")
        if verdict == "killed":
            return CallEndedError(f"{name}() was killed", "killed")
        return self._ended_by_itself(name)

    def _ended_by_itself(self, name: str) -> CallError:
        code = self.returncode
        half = ", in the middle of telling its result" if self.half_way else ""
        reason: Reason = "exited"
        if code is None:
            why_not = self.problem or "somebody else has taken its status"
            return CallEndedError(f"{name}() ended before it returned{half}; {why_not}", reason)
        if code == wire.CHANNEL_LOST:
            how = "without a result: the channel by which it comes back was closed from inside"
        elif code == wire.NOT_THE_CALL:
            how = "without a result: it forked, and its process ended while a fork of it went on"
        elif code < 0:
            reason = "signaled"
            how = f"before it returned: it was killed by {_signal_name(-code)}"
        else:
            how = f"before it returned, with exit status {code}"
        error = CallEndedError(f"{name}() ended {how}{half}", reason)
        if self.stderr.strip():
            error.add_note("It wrote last:\n" + harmless(self.stderr.strip()[-2000:]))
        return error


def progress_of(call: Call[Any], message: bytes) -> None:
    """What a call told about how far it is; nothing where it makes no sense."""
    try:
        done, total, text = decode(message, items=_SMALL)
    except (BadMessageError, ValueError, TypeError):
        return
    if type(done) is not float or (total is not None and type(total) is not float) or type(text) is not str:
        return
    call.progress = done, total, text
    if call.on_progress is not None and not call.done():
        try:
            call.on_progress(done, total, text)
        except Exception:
            log.exception("on_progress of %r", call)


def _told(name: str, kind: Kind, message: bytes) -> CallError:
    """What was told instead of a result."""
    try:
        told = decode(message, items=_SMALL)
        if kind is Kind.UNFIT:
            if type(told) is not str:
                raise BadMessageError("its explanation is no text")
            return BadResultError(f"{name}(): {harmless(told)}")
        fields = _fields(told)
    except BadMessageError as problem:
        return BadResultError(f"{name}() gave something that is neither a result nor an exception: {problem}")
    error = remote_error(*fields)
    if kind is Kind.UNREAD:
        error.add_note(f"{_BROUGHT}; {_ADVICE}")
    return error


def _fields(told: object) -> tuple[str, str, str, list[str], list[object] | None]:
    if type(told) is not dict:
        raise BadMessageError("an exception without fields")
    fields = cast("dict[str, object]", told)
    texts = [fields.get(key) for key in ("type", "text", "traceback")]
    bases, arguments = fields.get("bases"), fields.get("args")
    if not all(type(text) is str for text in texts) or type(bases) is not list or not all(type(base) is str for base in bases):
        raise BadMessageError("an exception without its fields")
    if arguments is not None and type(arguments) is not list:
        raise BadMessageError("an exception with something for arguments that is no list")
    return cast("str", texts[0]), cast("str", texts[1]), cast("str", texts[2]), bases, arguments


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
