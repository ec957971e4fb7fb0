"""Popen: the standard class, with its start, its waits and its signals replaced; all else is the standard module's own code.

What is replaced are methods that the standard class calls by itself, so that every corner of it stays what it is: how pipes and text
streams are made, what communicate() does, how a KeyboardInterrupt is waited for. They are the same in every CPython this was written
for; a later one in which they are not is refused at import, and not met with half a class.

Source: Lib/subprocess.py of CPython 3.11, 3.12 and 3.13, which are the ones tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, AnyStr, Literal, NamedTuple, Unpack, overload

from shoal.handles.tree import make_mark, mark_process, marking, now
from shoal.subprocess.child import Child, PidfdLost
from shoal.subprocess.inheritance import Traits, encoded, kept_fds, places_of, start

if TYPE_CHECKING:
    from shoal.arguments import StrOrBytesPath
    from shoal.handles.tree import Left
    from shoal.sandbox.box import Sandbox
    from shoal.sandbox.result import Reason, Result, RunUsage
    from shoal.subprocess.inside import Inside
    from shoal.subprocess.options import Command, Env, File, Popened


class Request(NamedTuple):
    """What the standard __init__ hands to the method that starts the program, in its order."""

    args: Any
    executable: Any
    preexec_fn: Any
    close_fds: Any
    pass_fds: Any
    cwd: Any
    env: Any
    startupinfo: Any
    creationflags: Any
    shell: Any
    p2cread: int
    p2cwrite: int
    c2pread: int
    c2pwrite: int
    errread: int
    errwrite: int
    restore_signals: Any
    gid: int | None
    gids: list[int] | None
    uid: int | None
    umask: int
    start_new_session: Any
    process_group: int

    @property
    def pipes(self) -> tuple[int, int, int, int, int, int]:
        """Both ends of each stream, as `_close_pipe_fds()` takes them."""
        return self.p2cread, self.p2cwrite, self.c2pread, self.c2pwrite, self.errread, self.errwrite

    @property
    def needs_fork(self) -> bool:
        """Whether it takes Python in the child, or a child that is another user while it shares our memory."""
        return self.preexec_fn is not None or self.uid is not None or self.gid is not None or self.gids is not None

    def command(self) -> tuple[list[Any], Any]:
        """All words of the command, and what is to be executed."""
        if isinstance(self.args, str | bytes):
            words: list[Any] = [self.args]
        elif isinstance(self.args, os.PathLike):
            if self.shell:
                raise TypeError("path-like args is not allowed when shell is true")
            words = [self.args]
        else:
            words = list(self.args)
        if self.shell:
            words = [self.executable or "/bin/sh", "-c", *words]
        return words, words[0] if self.executable is None else self.executable


def _check(method: str, *names: str) -> None:
    code = getattr(subprocess.Popen, method).__code__
    found = code.co_varnames[: code.co_argcount]
    if found[: len(names)] != names:
        raise ImportError(f"shoal.subprocess does not know the subprocess module of Python {sys.version.split()[0]}: Popen.{method}{found}")


_check("_execute_child", "self", *Request._fields)
_check("_wait", "self", "timeout")
_check("_internal_poll", "self", "_deadstate")


class Popen(subprocess.Popen[AnyStr]):
    """A program that was started; as subprocess.Popen, and one in every respect.

    Args:
        sandbox: a Sandbox, or the name of a profile: the program gets what that says, and nothing else. See docs/change-one-import.md for
            what the other arguments mean then. All of them are those of subprocess.Popen.
    Raises:
        OSError, ValueError, TypeError, SubprocessError: as subprocess.Popen, and with `sandbox` what shoal.run raises.
    Ownership: its pidfd is closed once its end was seen.
    Source: Python's subprocess.
    """

    _child: Child | Inside | None = None
    _sandbox: Sandbox | str | None = None
    _is_given_up = False

    if TYPE_CHECKING:  # one for each way to say text, or bytes

        @overload
        def __init__(
            self: Popen[str],
            args: Command,
            bufsize: int = -1,
            executable: StrOrBytesPath | None = None,
            *,
            text: Literal[True],
            encoding: str | None = None,
            errors: str | None = None,
            universal_newlines: bool | None = None,
            **options: Unpack[Popened],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[str],
            args: Command,
            bufsize: int = -1,
            executable: StrOrBytesPath | None = None,
            *,
            text: bool | None = None,
            encoding: str,
            errors: str | None = None,
            universal_newlines: bool | None = None,
            **options: Unpack[Popened],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[str],
            args: Command,
            bufsize: int = -1,
            executable: StrOrBytesPath | None = None,
            *,
            text: bool | None = None,
            encoding: str | None = None,
            errors: str,
            universal_newlines: bool | None = None,
            **options: Unpack[Popened],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[str],
            args: Command,
            bufsize: int = -1,
            executable: StrOrBytesPath | None = None,
            *,
            text: bool | None = None,
            encoding: str | None = None,
            errors: str | None = None,
            universal_newlines: Literal[True],
            **options: Unpack[Popened],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[bytes],
            args: Command,
            bufsize: int = -1,
            executable: StrOrBytesPath | None = None,
            *,
            text: Literal[False] | None = None,
            encoding: None = None,
            errors: None = None,
            universal_newlines: Literal[False] | None = None,
            **options: Unpack[Popened],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[Any],
            args: Command,
            bufsize: int = -1,
            executable: StrOrBytesPath | None = None,
            *,
            text: bool | None = None,
            encoding: str | None = None,
            errors: str | None = None,
            universal_newlines: bool | None = None,
            **options: Unpack[Popened],
        ) -> None: ...

    def __init__(
        self: Popen[Any],
        args: Command,
        bufsize: int = -1,
        executable: StrOrBytesPath | None = None,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        preexec_fn: Callable[[], Any] | None = None,
        close_fds: bool = True,
        shell: bool = False,
        cwd: StrOrBytesPath | None = None,
        env: Env | None = None,
        universal_newlines: bool | None = None,
        startupinfo: Any = None,
        creationflags: int = 0,
        restore_signals: bool = True,
        start_new_session: bool = False,
        pass_fds: Collection[int] = (),
        *,
        user: str | int | None = None,
        group: str | int | None = None,
        extra_groups: Iterable[str | int] | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        text: bool | None = None,
        umask: int = -1,
        pipesize: int = -1,
        process_group: int | None = None,
        sandbox: Sandbox | str | None = None,
    ) -> None:
        self._sandbox = sandbox
        super().__init__(
            args,
            bufsize,
            executable,
            stdin,
            stdout,
            stderr,
            preexec_fn,
            close_fds,
            shell,
            cwd,
            env,
            universal_newlines,
            startupinfo,
            creationflags,
            restore_signals,
            start_new_session,
            pass_fds,
            user=user,
            group=group,
            extra_groups=extra_groups,
            encoding=encoding,
            errors=errors,
            text=text,
            umask=umask,
            pipesize=pipesize,
            process_group=process_group,
        )

    @property
    def reason(self) -> Reason | None:
        """Why it ended, as `shoal.Result` has it; None until the end was seen."""
        if self.returncode is None or self._child is None:
            return None
        return self._child.reason

    @property
    def usage(self) -> RunUsage | None:
        """What it used; None until the end was seen, and when it cannot be learnt."""
        return None if self.returncode is None or self._child is None else self._child.usage

    @property
    def enforced(self) -> Mapping[str, bool | str]:
        """Each protection of its sandbox, and whether it is in force; empty without one."""
        return {} if self._child is None else self._child.enforced

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program; nothing happens once it has ended. Never hits a recycled pid."""
        child = self._child
        if child is None:
            super().send_signal(sig)
        elif self.poll() is None:
            child.send_signal(sig)

    def kill(self, *, tree: bool = False) -> None:
        """Kill the program.

        Args:
            tree: also kill all that it has started and what that has started, even where the program itself has ended. In a sandbox
                nothing escapes that. Without one it finds what does not try to hide: docs/change-one-import.md says how, and what
                escapes. What belongs to another user is left alone.
        Raises:
            OSError: there is no /proc to find the tree in; the program itself has been killed.
        """
        if tree:
            self._end_tree()
        else:
            super().kill()

    def _end_tree(self) -> tuple[Left, ...]:
        """Kill the program and all that it has started. Returns what has not ended all the same."""
        child = self._child
        if child is None:
            super().kill()
            return ()
        return child.end_tree()

    def _give_up(self) -> None:
        """Do not wait for it at the end of a `with` block. It is reaped when a later Popen finds that it has ended."""
        self._is_given_up = True

    def __exit__(self, *error: Any) -> None:
        if self._is_given_up:
            for stream in (self.stdin, self.stdout, self.stderr):
                with suppress(OSError):
                    if stream is not None:
                        stream.close()
        else:
            super().__exit__(*error)

    def _result(self, stdout: Any, stderr: Any) -> Result | None:
        """The end of a program in a sandbox, as run() tells it; None without one."""
        child = self._child
        return None if child is None or self._sandbox is None else child.result(self.args, stdout, stderr)

    def _execute_child(self, *given: Any, **named: Any) -> None:
        """Start the program. Called by the standard __init__, which cleans up after what is raised here."""
        request = Request(*given, **named)
        if self._sandbox is not None:
            from shoal.subprocess.inside import start_inside  # loads all of the sandbox

            words, executable = request.command()
            sys.audit("subprocess.Popen", executable, words, request.cwd, request.env)
            self._child = start_inside(self._sandbox, request, words, executable)
        elif request.needs_fork or not getattr(subprocess, "_USE_VFORK", True):
            self._fork(request)
            return
        else:
            words, executable = request.command()
            sys.audit("subprocess.Popen", executable, words, request.cwd, request.env)
            self._child = self._start(request, words, executable)
        self.pid = self._child.pid
        self._child_created = True
        self._close_pipe_fds(*request.pipes)  # type: ignore[attr-defined]

    def _start(self, request: Request, words: list[Any], executable: Any) -> Child:
        """Start it by the core."""
        traits = Traits(
            (request.p2cread, request.c2pwrite, request.errwrite),
            kept_fds(request.pass_fds) if request.pass_fds else (),
            bool(request.close_fds),
            None if request.cwd is None else encoded(request.cwd, "cwd"),
            request.umask,
            bool(request.restore_signals),
            bool(request.start_new_session),
            request.process_group,
        )
        mark, since = make_mark(), now()
        places = places_of(encoded(executable, "the program"), request.env)
        pid, pidfd = start(words, places, request.env, traits, mark, (executable, request.cwd))
        return Child(pid, pidfd, mark, since)

    def _fork(self, request: Request) -> None:
        """Start it by the standard module."""
        mark, since = make_mark(), now()
        if request.preexec_fn is not None:
            request = request._replace(preexec_fn=marking(mark, request.preexec_fn))
        super()._execute_child(*request)  # type: ignore[misc]
        if request.preexec_fn is None:
            mark_process(self.pid, mark)
        with suppress(OSError):  # no descriptor is left: then it is waited for as the standard module does
            self._child = Child(self.pid, os.pidfd_open(self.pid), mark, since)

    def _internal_poll(self, _deadstate: int | None = None, **more: Any) -> int | None:
        """The return code, when it has one by now. Also runs when the interpreter ends."""
        child = self._child
        if child is None or self.returncode is not None:
            return super()._internal_poll(_deadstate, **more)  # type: ignore[misc, no-any-return]
        try:
            self.returncode = child.poll()
        except PidfdLost:
            self._child = None
            return super()._internal_poll(_deadstate, **more)  # type: ignore[misc, no-any-return]
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        """Wait for the end; raises TimeoutExpired."""
        child = self._child
        if child is None or self.returncode is not None:
            return super()._wait(timeout)  # type: ignore[misc, no-any-return]
        try:
            returncode = child.wait(timeout)
        except PidfdLost:
            self._child = None
            return super()._wait(timeout)  # type: ignore[misc, no-any-return]
        if returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)  # type: ignore[arg-type]
        self.returncode = returncode
        return returncode
