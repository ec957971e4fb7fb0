"""Result: how a run ended, why, and what it used.

A subprocess.CompletedProcess, so that what takes one takes this. Imported when something is run, not with shoal: subprocess costs
milliseconds. Touches nothing. Every value in a Result can be pickled, and its printed form stays short, whatever the program wrote.

Source: Python's subprocess; isolate(1), "META-FILES", for `Result.meta()`.
"""

from __future__ import annotations

import codecs
import locale
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from shoal.status import ShoalError, on_one_line

if TYPE_CHECKING:  # loaded only where something has ended badly
    from shoal.sandbox.denied import Denied

Reason = Literal["exited", "signaled", "oom", "wall_time", "cpu_time", "output_limit", "killed", "setup_failed"]

_IN_WORDS: Final[Mapping[str, str]] = {
    "oom": "was ended by its memory limit (oom)",
    "wall_time": "was ended by its wall time limit (wall_time)",
    "cpu_time": "was ended by its processor time limit (cpu_time)",
    "output_limit": "was ended by its output limit (output_limit)",
    "killed": "was ended by its caller (killed)",
    "setup_failed": "was never started (setup_failed)",
}
_TIMED_OUT: Final = ("wall_time", "cpu_time")
_SHOWN_CHARACTERS: Final = 60
_SHOWN_WORDS: Final = 8
_SHOWN_REFUSALS: Final = 3


@dataclass(frozen=True, slots=True)
class RunUsage:
    """What a run used. A count is None where the kernel does not tell.

    Attributes:
        wall_s: from the start of the program to the end of the run.
        user_s, system_s: processor time.
        max_memory_bytes: the most memory in use at once, by whatever `counts_tree` says.
        counts_tree: the figures are those of everything the run started, which a control group counts; else those of the program
            and of what it waited for, and the memory is that of the largest single process.
        max_rss_bytes: the most memory that a single process had resident.
        max_pids: the most processes and threads at once.
        io_read_bytes, io_write_bytes: moved from and to block devices.
        voluntary_switches, forced_switches: how often a processor was given up, and taken away.
    """

    wall_s: float
    user_s: float
    system_s: float
    max_memory_bytes: int
    max_pids: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    max_rss_bytes: int | None = None
    voluntary_switches: int | None = None
    forced_switches: int | None = None
    counts_tree: bool = False


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """What became of one stream.

    Attributes:
        total_bytes: how much was read from it: all that was written, unless the run was stopped before.
        kept_bytes: how much of that, from its beginning, is in memory.
        spill_path: the file that has the stream from byte 0 on; None when none was needed. It is the caller's, to keep or remove.
        spilled_bytes: the length of that file.
        spill_error: why the file stops before the end of the stream, or why there is none, in words; None when all went well.
    """

    total_bytes: int
    kept_bytes: int
    spill_path: str | None = None
    spilled_bytes: int = 0
    spill_error: str | None = None

    @property
    def truncated(self) -> bool:
        """Is there less in memory than was read?"""
        return self.kept_bytes < self.total_bytes

    @property
    def complete(self) -> bool:
        """Is all that was read available, in memory or in the file?"""
        return not self.truncated or (self.spilled_bytes == self.total_bytes and self.spill_error is None)


class Result(subprocess.CompletedProcess[Any]):
    """A run that is over.

    Args:
        args, returncode, stdout, stderr: as subprocess has them; a stream that was not captured is None.
        reason: why it ended. "exited" and "signaled" are the program's own doing, the others somebody else's.
        usage: what it used.
        enforced: each protection, and whether it was in force; text says how far.
        output: what became of each captured stream, by "stdout" and "stderr".
        denied: the system call that it was killed for and the files that it missed, as far as that is known; see `Denied`. Empty for
            what ended well, or was ended by a limit.
        unkilled: pids of what was killed when the run ended and is still there, since it sleeps in the kernel where no signal reaches
            it; `message` says more. It can do nothing any more, and is reaped when it ends. Where it is the program itself,
            `returncode` is the one it will have, and what it used is what is known so far.
        message: what a person should know beyond the reason, such as why the setup failed.
    """

    def __init__(
        self,
        args: Any,
        returncode: int,
        stdout: Any = None,
        stderr: Any = None,
        *,
        reason: Reason,
        usage: RunUsage,
        enforced: Mapping[str, bool | str] | None = None,
        output: Mapping[str, OutputFacts] | None = None,
        denied: Sequence[Denied] = (),
        unkilled: Sequence[int] = (),
        message: str = "",
    ) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.reason: Reason = reason
        self.usage = usage
        # Copies, and plain ones: a view of the caller's mapping could change, and one that cannot be changed cannot be pickled.
        self.enforced: Mapping[str, bool | str] = dict(enforced or {})
        self.output: Mapping[str, OutputFacts] = dict(output or {})
        self.denied: tuple[Denied, ...] = tuple(denied)
        self.unkilled: tuple[int, ...] = tuple(unkilled)
        self.message = message

    @property
    def truncated(self) -> bool:
        """Does `stdout` or `stderr` have less than the program wrote?"""
        return any(facts.truncated for facts in self.output.values())

    @property
    def summary(self) -> str:
        """How it ended, as the end of a sentence: "exited with status 3", "was ended by its memory limit (oom)"."""
        words = _IN_WORDS.get(self.reason)
        if words is None:
            code = self.returncode
            words = f"was ended by {_signal_name(-code)}" if code < 0 else f"exited with status {code}"
        return f"{words}: {self.message}" if self.message else words

    def check_returncode(self) -> None:
        """Return if the program exited by itself, with status 0.

        Raises:
            RunError: it did not. A run that a limit has ended has failed, whatever status its program managed to give.
        """
        if self.returncode or self.reason != "exited":
            raise RunError(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it as values that JSON has. Bytes that are no UTF-8 are spelled out, as \\xff; `stdout` has them as they were."""
        args = [self.args] if isinstance(self.args, str | bytes | os.PathLike) else self.args
        return {
            "args": [_json_text(os.fspath(word)) for word in args],
            "returncode": self.returncode,
            "reason": self.reason,
            "message": _json_text(self.message),
            "stdout": _json_text(self.stdout),
            "stderr": _json_text(self.stderr),
            "truncated": self.truncated,
            "output": {name: asdict(facts) | {"spill_path": _json_text(facts.spill_path)} for name, facts in self.output.items()},
            "usage": asdict(self.usage),
            "enforced": dict(self.enforced),
            "denied": [{name: _json_text(value) for name, value in asdict(what).items()} for what in self.denied],
            "unkilled": list(self.unkilled),
        }

    def meta(self) -> str:
        """The run as a meta-file of isolate(1) tells it, for programs that read those: lines of `key:value`.

        Where shoal knows more, the nearest that isolate has: "output_limit" and "killed" are SG with `killed`. What isolate does not
        tell is left out: no exit code or signal after a time limit, no figures of a program that never ran.
        """
        usage, reason, code = self.usage, self.reason, self.returncode
        pairs: list[tuple[str, object]] = []
        if reason != "setup_failed":
            rss = usage.max_rss_bytes if usage.max_rss_bytes is not None or usage.counts_tree else usage.max_memory_bytes
            pairs += [("time", f"{usage.user_s + usage.system_s:.3f}"), ("time-wall", f"{usage.wall_s:.3f}")]
            pairs += [("max-rss", rss >> 10)] if rss is not None else []
            counts = (("csw-voluntary", usage.voluntary_switches), ("csw-forced", usage.forced_switches))
            pairs += [(key, count) for key, count in counts if count is not None]
            pairs += [("cg-mem", usage.max_memory_bytes >> 10)] if usage.counts_tree else []
            pairs += [("cg-oom-killed", 1)] if reason == "oom" else []
            if reason not in _TIMED_OUT:
                pairs.append(("exitcode", code) if code >= 0 else ("exitsig", -code))
        if reason in (*_TIMED_OUT, "output_limit", "killed"):
            pairs.append(("killed", 1))
        status = "XX" if reason == "setup_failed" else "TO" if reason in _TIMED_OUT else "SG" if code < 0 else "RE" if code else ""
        if status:
            # Readers tell the two time limits apart by the word "wall" in the message.
            pairs += [("status", status), ("message", on_one_line(self.summary))]
        return "".join(f"{key}:{value}\n" for key, value in pairs)

    def __repr__(self) -> str:
        """Short, however long the command and the output are."""
        parts = [f"args={_brief_command(self.args)}", f"returncode={self.returncode}", f"reason={self.reason!r}"]
        parts += [f"{name}={_brief(value)}" for name, value in (("stdout", self.stdout), ("stderr", self.stderr)) if value is not None]
        if self.truncated:
            parts.append("truncated=True")
        return f"{type(self).__name__}({', '.join(parts)})"


class RunError(ShoalError, subprocess.CalledProcessError):
    """A run did not end well; says why.

    Attributes:
        result: the whole Result. `cmd`, `returncode`, `stdout` and `stderr` are its, too.
    """

    def __init__(self, result: Result) -> None:
        super().__init__(result.returncode, result.args, result.stdout, result.stderr)
        # What is raised again elsewhere, after pickling, is made from this.
        self.args = (result,)
        self.result = result

    @property
    def reason(self) -> Reason:
        """Why the run ended."""
        return self.result.reason

    def __str__(self) -> str:
        text = f"command {_brief_command(self.cmd)} {on_one_line(self.result.summary)}"
        denied = self.result.denied
        if denied:
            more = f" and {len(denied) - _SHOWN_REFUSALS} more" if len(denied) > _SHOWN_REFUSALS else ""
            text += f"; denied: {', '.join(on_one_line(str(what)) for what in denied[:_SHOWN_REFUSALS])}{more}"
        return text


def decoded(data: bytes, *, truncated: bool, encoding: str | None = None, errors: str | None = None) -> str:
    """Output as text, with every line ending a newline, as subprocess does it.

    Args:
        truncated: `data` was cut by a limit, which knows nothing of characters: half a character at the end is left out, not an error.
        encoding: None is that of the locale.
        errors: what to do with bytes that are no text; None is "strict".
    Raises:
        UnicodeDecodeError: the program wrote bytes that are no text, and `errors` is "strict".
        LookupError: there is no such encoding.
    """
    name = encoding or ("utf-8" if sys.flags.utf8_mode else locale.getencoding())
    make_decoder = codecs.lookup(name).incrementaldecoder if truncated else None
    how = errors or "strict"
    # None: nothing was cut, or this is one of the few codecs that decode in one go only.
    text = data.decode(name, how) if make_decoder is None else make_decoder(how).decode(data, final=False)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _json_text(value: str | bytes | None) -> str | None:
    if value is None:
        return None
    try:
        data = os.fsencode(value)  # a file name keeps bytes that are no text in a way of Python's own
    except UnicodeEncodeError:
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return data.decode("utf-8", "backslashreplace")


def _brief(value: str | bytes) -> str:
    if len(value) <= _SHOWN_CHARACTERS:
        return repr(value)
    unit = "bytes" if isinstance(value, bytes) else "characters"
    return f"<{len(value)} {unit}, {value[: _SHOWN_CHARACTERS // 2]!r}...>"


def _brief_command(args: Any) -> str:
    if isinstance(args, str | bytes):
        return _brief(args)
    if not isinstance(args, Sequence):
        return f"<{type(args).__name__}>"
    words = [_brief(word) if isinstance(word, str | bytes) else _brief(os.fspath(word)) for word in args[:_SHOWN_WORDS]]
    more = [f"... {len(args) - _SHOWN_WORDS} more"] if len(args) > _SHOWN_WORDS else []
    return f"[{', '.join(words + more)}]"
