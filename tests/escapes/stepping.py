"""Stepping: a launcher is killed when it, or anything it is making, stands at its nth system call.

The launcher is a fork of this process, traced with all it makes: threads, the child that shares its memory until exec, the first
process of a cell. At the chosen stop the launcher alone gets SIGKILL, and everybody else is let go, as it would be when
somebody killed the launcher at that very moment. Call `adopt()` first: what is left without a parent becomes ours, to be reaped.
Source: ptrace(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from typing import NamedTuple

PTRACE_TRACEME, PTRACE_DETACH, PTRACE_SYSCALL, PTRACE_SETOPTIONS = 0, 17, 24, 0x4200
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10  # TRACESYSGOOD; TRACEFORK, VFORK, CLONE and EXEC
SYSCALL_STOP = signal.SIGTRAP | 0x80
PR_SET_CHILD_SUBREAPER = 36
WALL = 0x40000000
PATIENCE_S = 60

_libc = ctypes.CDLL(None, use_errno=True)


class Stepped(NamedTuple):
    """What became of one launcher.

    Attributes:
        steps: how many stops there were, of all that was traced.
        tasks: how many processes and threads that was.
        killed: the launcher was killed; else it came to its end before the step.
    """

    steps: int
    tasks: int
    killed: bool


def adopt() -> None:
    """What loses its parent becomes our child."""
    assert _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def kill_at(step: int, launch: Callable[[], object]) -> Stepped:
    """Run `launch` in a fork and kill that at a step, or, with 0, never. Waits for the end of all that it has made.

    Raises:
        TimeoutError: something of it lives on.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _ptrace(PTRACE_TRACEME, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            launch()
            code = 0
        finally:
            os._exit(code)
    os.waitpid(pid, 0)
    _ptrace(PTRACE_SETOPTIONS, pid, OPTIONS)
    _ptrace(PTRACE_SYSCALL, pid, 0)
    seen, steps, killed = {pid}, 0, False
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(PATIENCE_S)
    while True:
        try:
            task, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            break  # nothing is left of what was launched
        if not os.WIFSTOPPED(status):
            assert task != pid or killed or status == 0, f"the launcher ended with {status}"
            continue
        seen.add(task)
        reason = os.WSTOPSIG(status)
        if reason == SYSCALL_STOP:
            steps += 1
            if steps == step:
                with contextlib.suppress(ProcessLookupError):  # it has ended before
                    os.kill(pid, signal.SIGKILL)
                    killed = True
        # SIGTRAP tells of a new task, an exec or the end; SIGSTOP is how a new one begins.
        pending = 0 if reason in (SYSCALL_STOP, signal.SIGTRAP, signal.SIGSTOP) else reason
        with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
            _ptrace(PTRACE_DETACH if killed and task != pid else PTRACE_SYSCALL, task, pending)
    signal.alarm(0)
    return Stepped(steps, len(seen), killed)


def _give_up(*_: object) -> None:
    raise TimeoutError("something lives on")


def _ptrace(request: int, pid: int, data: int) -> None:
    words = (ctypes.c_long(request), ctypes.c_long(pid), None, ctypes.c_long(data))
    if _libc.ptrace(*words) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
