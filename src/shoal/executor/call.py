"""Call: the future of one function in one sandbox. A concurrent.futures.Future, and what one wants to know besides.

It stays PENDING for the base class until it is over, so that `cancel()` works as long as there is something to cancel: one that waits is
taken back, one that runs is killed.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from shoal.executor.limits import Limits

if TYPE_CHECKING:
    from shoal.executor.errors import Reason
    from shoal.sandbox.result import RunUsage

T = TypeVar("T")
Progress = Callable[[float, "float | None", str], None]
"""Told how far a call has come: how much is done, of how much, and a text. By `shoal.executor.report()` inside."""

_numbers = itertools.count(1)


class Owner(Protocol):
    """Whoever runs calls."""

    def give_up(self, call: Call[Any]) -> None:
        """It was cancelled: end it."""


class Call(Future[T]):
    """What `SandboxExecutor.submit()` gives. Made by an executor only.

    Attributes:
        name: of the function.
        limits: what it may use.
        reason: why it is over, as in `errors.Reason`; None until then.
        returncode: exit status or negative signal of its process, where that ended before it returned or raised; else None.
        usage: what it used; None until it is over, and where it never ran.
        enforced: each protection, and whether it is in force; with limits once it is over.
        stdout, stderr: what it wrote, as text, as far as it was kept.
        output_bytes: how much it wrote to each.
        progress: what it last told by `shoal.executor.report()`: done, total, text.
    """

    def __init__(
        self,
        owner: Owner,
        name: str,
        payload: bytes,
        limits: Limits,
        on_progress: Progress | None,
        enforced: Mapping[str, bool | str],
    ) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.name = name
        self.limits = limits
        self.reason: Reason | None = None
        self.returncode: int | None = None
        self.usage: RunUsage | None = None
        self.enforced = dict(enforced)
        self.stdout = self.stderr = ""
        self.output_bytes = (0, 0)
        self.progress: tuple[float, float | None, str] | None = None
        self.on_progress = on_progress
        self.payload = payload
        self.started_at: float | None = None
        self._pid = os.getpid()
        self._gone = threading.Event()
        self._when_gone: list[Callable[[], None]] = []
        self._owner: Owner | None = owner
        self._cancelling = threading.RLock()  # a callback may cancel again

    @property
    def truncated(self) -> bool:
        """Whether it wrote more than was kept."""
        return self.output_bytes[0] > self.limits.output_bytes or self.output_bytes[1] > self.limits.output_bytes

    def cancel(self) -> bool:
        """Take it back, or kill it with everything it has started where it runs already. False: it is over.

        Returns at once. `wait_gone()` waits until nothing of it is left.
        """
        with self._cancelling:
            if self.cancelled():
                return True
            if not super().cancel():
                return False
            self.reason = "killed"
            self.set_running_or_notify_cancel()  # tells those who wait for several
        owner = self._owner
        if owner is not None:
            owner.give_up(self)
        return True

    def result(self, timeout: float | None = None) -> T:
        """As Future.result(). RuntimeError in a fork of the process that made the call, where nobody would ever tell how it ends."""
        self._check_process(known=self.done())
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As Future.exception(), and as `result()` in a fork."""
        self._check_process(known=self.done())
        return super().exception(timeout)

    def running(self) -> bool:
        """Whether it has begun and is not over."""
        return self.started_at is not None and not self.done()

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until nothing of it runs any more. That is so when it is done, except where it was cancelled. False: not in time.

        RuntimeError in a fork, as for `result()`.
        """
        self._check_process(known=self._gone.is_set())
        return self._gone.wait(timeout)

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Call `tell` when nothing of it runs any more; at once where that is so. In a thread of the executor, so it must not take long."""
        with self._cancelling:
            if not self._gone.is_set():
                self._when_gone.append(tell)
                return
        tell()

    def finish(self, result: object = None, error: BaseException | None = None) -> None:
        """It is over. For its executor."""
        with self._cancelling:
            self._owner, self.payload = None, b""
            self._gone.set()
            waiting, self._when_gone = self._when_gone, []
        for tell in waiting:
            tell()
        with suppress(InvalidStateError):  # it was cancelled at the last moment
            if error is not None:
                self.set_exception(error)
            else:
                self.set_result(result)  # type: ignore[arg-type]

    def _check_process(self, *, known: bool) -> None:
        if os.getpid() != self._pid and not known:
            raise RuntimeError(f"this call belongs to process {self._pid}, of which this one is a fork: only there is its end told")

    def __repr__(self) -> str:
        if self.started_at is None and not self.done():
            state = "waiting"
        elif not self.done():
            state = f"running for {time.monotonic() - (self.started_at or 0.0):.1f} s"
        else:
            state = self.reason or "killed"
            if self.usage is not None:
                state += f" after {_shown(self.usage.wall_s)}"
        return f"<Call {self.number} of {self.name}(): {state}>"


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
