"""Pipelines: programs that read what others write, each in a sandbox of its own.

The kernel moves the bytes between them; nothing comes through this process but what goes in at the front and what comes out at the
end. Every stage has its own limits, and its own result.

A program whose reader has ended gets a SIGPIPE, as in every shell, since we keep no end of the pipes between the stages. A stage
before the last that this ends has not failed: somebody after it had enough. Else the return code is that of `set -o pipefail`.

Source: pipe(7); SIGPIPE in signal(7); "pipefail" in bash(1).
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from shoal.aio.driving import conduct_all
from shoal.aio.loops import unbroken
from shoal.aio.run import Box, starter_of
from shoal.arguments import Duration, Size, StrOrBytesPath
from shoal.handles.reaper import OwnedFd
from shoal.sandbox.output import open_pipe
from shoal.sandbox.request import OUTPUT_LIMIT, Request, Starter, words_of
from shoal.sandbox.result import Reason, Result, RunError
from shoal.sandbox.running import too_late
from shoal.sandbox.unboxed import Unboxed

_ENOUGH = (-signal.SIGPIPE, 128 + signal.SIGPIPE)
"""How a program ends whose reader has ended, and what a shell says of one."""


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """A pipeline that is over.

    Attributes:
        results: of each stage, in their order.
    """

    results: tuple[Result, ...]

    @property
    def failed(self) -> Result | None:
        """The last stage that failed. Not one before the last that only had nobody left to write to."""
        for result in reversed(self.results):
            enough = result is not self.results[-1] and result.returncode in _ENOUGH
            if (result.returncode or result.reason != "exited") and not enough:
                return result
        return None

    @property
    def returncode(self) -> int:
        """Of the stage that failed, or 0."""
        failed = self.failed
        return 0 if failed is None else failed.returncode

    @property
    def reason(self) -> Reason:
        """Why the stage ended that failed, or "exited"."""
        failed = self.failed
        return "exited" if failed is None else failed.reason

    @property
    def stdout(self) -> Any:
        """What the last stage wrote, where that was captured."""
        return self.results[-1].stdout

    @property
    def stderr(self) -> Any:
        """What the stages wrote there, one after the other in their order; None where it was not captured."""
        captured = [result.stderr for result in self.results if result.stderr is not None]
        return captured[0][:0].join(captured) if captured else None

    @property
    def truncated(self) -> bool:
        """Is there less of any stream than was written?"""
        return any(result.truncated for result in self.results)

    def check_returncode(self) -> None:
        """Return if no stage has failed.

        Raises:
            RunError: one has; it is that stage's.
        """
        if (failed := self.failed) is not None:
            raise RunError(failed)


@dataclass(frozen=True, slots=True)
class Command:
    """A program and what it gets, as a stage of a pipeline. Made by `command()`; `a | b` makes a pipeline of two."""

    words: tuple[str, ...]
    starter: Starter = field(repr=False, compare=False)
    stderr: Any = None

    def __or__(self, other: Command | Pipeline) -> Pipeline:
        if isinstance(other, Command):
            return Pipeline((self, other))
        return Pipeline((self, *other.commands)) if isinstance(other, Pipeline) else NotImplemented

    def __str__(self) -> str:
        return shlex.join(self.words)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands, each of which reads what the one before it writes."""

    commands: tuple[Command, ...]

    def __or__(self, other: Command | Pipeline) -> Pipeline:
        if isinstance(other, Command):
            return Pipeline((*self.commands, other))
        return Pipeline((*self.commands, *other.commands)) if isinstance(other, Pipeline) else NotImplemented

    def __str__(self) -> str:
        return " | ".join(map(str, self.commands))

    async def run(
        self,
        *,
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
    ) -> PipelineResult:
        """Start all stages, wait until all have ended, and tell how each did.

        A stage that ends does not end the others: those before it get a SIGPIPE when they write on, those after it read the end of what
        it has written. A cancellation kills all of them and waits until they are gone.

        Args:
            input, stdin: of the first stage; stdout: of the last.
            stderr, capture_output: the former of every stage that has not been given its own; the latter captures stdout and stderr.
            timeout, output_limit, on_output_limit, spill_directory, text, encoding, errors: as of `run()`, for every stage.
            check: raise for the stage that failed.
        Raises:
            TimeoutExpired: not all have ended in time; all are dead by then. CalledProcessError: with `check`, one has failed.
            SpawnError: one could not be started; the others are dead by then.
        """
        whole = Request.of(
            self.commands[0].starter,
            self.commands[0].words,
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
        results, is_late = await _conduct(self, whole)
        if is_late:
            raise too_late(str(self), whole.timeout_s, results)
        done = PipelineResult(tuple(results))
        if check:
            done.check_returncode()
        return done

    def _stages(self, whole: Request) -> tuple[list[Request], list[dict[int, OwnedFd]]]:
        """What each stage is to be run as, and the ends of the pipes that are lent to it."""
        last = len(self.commands) - 1
        lent: list[dict[int, OwnedFd]] = [{} for _ in self.commands]
        for before in range(last):
            reader, writer = open_pipe()
            lent[before][1], lent[before + 1][0] = OwnedFd(writer), OwnedFd(reader)
        requests = []
        for number, (command, fds) in enumerate(zip(self.commands, lent, strict=True)):
            starter = command.starter
            requests.append(
                replace(
                    whole,
                    starter=starter,
                    words=list(command.words),
                    host_cwd=starter.host_cwd if isinstance(starter, Unboxed) else None,
                    data=None if number else whole.data,
                    stdin=fds[0].fd if number else whole.stdin,
                    stdout=whole.stdout if number == last else fds[1].fd,
                    stderr=whole.stderr if command.stderr is None else command.stderr,
                )
            )
        return requests, lent


@unbroken
async def _conduct(pipeline: Pipeline, whole: Request) -> tuple[list[Result], bool]:
    return await conduct_all(*pipeline._stages(whole))


def command(
    *args: StrOrBytesPath,
    sandbox: Box = None,
    stderr: Any = None,
    env: Mapping[str, str] | None = None,
    cwd: StrOrBytesPath | None = None,
) -> Command:
    """A program for a pipeline: `command("sort", "-u", sandbox=box) | command("head")`, and then `await pipeline.run()`.

    Args:
        args: the program and its arguments.
        sandbox, env, cwd: as `run()` has them.
        stderr: instead of what `Pipeline.run()` says: a descriptor, a file, PIPE, DEVNULL, or STDOUT: the next stage reads it, too.
    Raises:
        TypeError, ValueError: what was asked for cannot be meant.
    """
    if len(args) == 1 and not isinstance(args[0], str | bytes | os.PathLike):
        raise TypeError(f"the words of a command are separate arguments: command(*{args[0]!r})")
    return Command(tuple(words_of(args)), starter_of(sandbox, env, cwd), stderr)
