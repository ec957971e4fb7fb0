"""Nursery: where copies are made, from the moment they are asked for until they wait for a call. It owns the zygote.

Everything here is called under the engine's lock, by its thread or by who submits.

A zygote that dies is replaced; what it was making is ended, and what that was for waits again. Calls that run have nothing to do with it.
A file of the interpreter, or one that is granted, may be exchanged while this lives, as an upgrade does: then the recipe is made again, and
a new zygote is started from that.

What cannot be made now may be possible when something else has ended; with nothing running, so many failures in a row are told to those
who wait.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final, Protocol

from shoal import _native
from shoal.executor.call import Call
from shoal.executor.copy_process import CopyProcess, State
from shoal.executor.errors import BrokenSandboxError, PreloadError
from shoal.executor.reactor import Reactor
from shoal.executor.zygote_process import Made, Recipe, ZygoteProcess
from shoal.handles.keeper import launch_error
from shoal.sandbox.limits import Budget
from shoal.status import SpawnError

log = logging.getLogger("shoal.executor")

ASKED_MOST: Final = 4
"""So many copies are asked for at once: the zygote makes one after the other."""
HOPELESS: Final = 3
"""After so many failures in a row, with nothing running whose end could help, what waits is told."""
RETRY_S: Final = 0.05
EXCHANGED: Final = (errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR)
"""What a file leads to that is another since the recipe was made."""

GroupOf = Callable[["Call[Any] | None"], Budget]


class Parent(Protocol):
    """Who is told."""

    def take(self, copy: CopyProcess) -> None:
        """It waits for a call, or for the one that it was asked for."""

    def bury(self, copy: CopyProcess) -> None:
        """Some of it is there, and to be ended."""

    def take_back(self, call: Call[Any], *, given_up: bool) -> None:
        """A copy that was for this call came to nothing."""

    def no_copies(self, error: BaseException) -> None:
        """None can be made: whoever waits is to be told."""

    def anything_runs(self) -> bool:
        """Whether something could end and make room."""

    def known_pids(self) -> set[int]:
        """Of copies that are made."""


class Nursery:
    """Makes copies.

    Args:
        group_of: makes the budget of a call, where something is to be counted for all of it; raises what `Budget.of()` does.
        counted: every copy has one.
    Attributes:
        broken: why there will be no copy any more.
    """

    def __init__(self, recipe: Recipe, reactor: Reactor, group_of: GroupOf, parent: Parent, *, counted: bool) -> None:
        self.broken: BaseException | None = None
        self._recipe, self._reactor, self._group_of, self._parent, self._counted = recipe, reactor, group_of, parent, counted
        self._asked: deque[CopyProcess] = deque()
        self._making: set[CopyProcess] = set()
        self._failures = 0
        self._pausing = False
        self._zygote: ZygoteProcess | None = ZygoteProcess(recipe)  # here, so that its errors are the constructor's
        self._watch(self._zygote)
        log.debug("zygote %d started, to load %s", self._zygote.pid, ", ".join(recipe.preload) or "nothing")

    @property
    def is_ready(self) -> bool:
        """Whether the modules are loaded."""
        return self._zygote is not None and self._zygote.ready

    @property
    def zygote_pid(self) -> int | None:
        return None if self._zygote is None else self._zygote.pid

    @property
    def asked(self) -> int:
        """How many copies the zygote has still to make."""
        return len(self._asked)

    @property
    def plain(self) -> int:
        """How many are on their way that are for no call in particular."""
        return sum(copy.call is None for copy in (*self._asked, *self._making))

    def ask(self, call: Call[Any] | None) -> bool:
        """Ask for a copy.

        Args:
            call: what it is for, with a budget of its own; None: for whatever comes next.
        Returns:
            Whether that could be done; if not, whoever is told of room tries again.
        """
        zygote = self._zygote
        if zygote is None or not zygote.ready or self._pausing or self.broken is not None or len(self._asked) >= ASKED_MOST:
            return False
        budget = None
        try:
            if self._counted or call is not None:
                budget = self._group_of(call)
            copy = CopyProcess(budget, call)
        except (SpawnError, OSError, ValueError) as error:
            if budget is not None:
                budget.close()
            self._not_made(error)
            return False
        fds = [fd.fd for fd in copy.theirs]
        placement = None if budget is None or budget.job is None else budget.job.placement("an executor")
        if placement is not None and placement.cgroup_fd is not None:
            fds.append(placement.cgroup_fd)
        asked = zygote.ask(fds, in_group=len(fds) > 3)
        copy.theirs = ()
        if not asked:
            copy.let_go()  # it has ended, which is told in a moment
            return False
        self._asked.append(copy)
        return True

    @property
    def calls(self) -> list[Call[Any]]:
        """Those for which something is being made."""
        return [copy.call for copy in (*self._asked, *self._making) if copy.call is not None]

    def copies_of(self, call: Call[Any]) -> list[CopyProcess]:
        """What is being made for a call."""
        return [copy for copy in (*self._asked, *self._making) if copy.call is call]

    def pause(self) -> None:
        """Make none for a moment: what happens again and again shall not keep anybody busy."""
        if not self._pausing:
            self._pausing = True
            self._reactor.later(RETRY_S, self._go_on)

    def discard_made(self) -> None:
        """End those that the zygote has told of."""
        for copy in list(self._making):
            self._take_back(copy, given_up=True)

    def end(self) -> None:
        """End the zygote, and what it was making."""
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            self._reactor.unwatch(zygote.talk_fd)
            self._reactor.unwatch(zygote.errors_fd)
            self._reactor.unwatch(zygote.end_fd)
            zygote.end(self._known())
        for copy in list(self._asked):  # nobody makes them any more; what they were for waits again
            self._take_back(copy)

    def forget(self) -> None:
        """After os.fork() in the child: all of it is the parent's."""
        for copy in (*self._asked, *self._making):
            copy.forget()
        self._asked.clear()
        self._making.clear()
        if self._zygote is not None:
            self._zygote.forget()
            self._zygote = None

    # --- the zygote ---------------------------------------------------------------------------------------------------------------

    def _known(self) -> Collection[int]:
        known = self._parent.known_pids()
        for copy in self._making:
            known.update(copy.pids)
        return known

    def _watch(self, zygote: ZygoteProcess) -> None:
        self._reactor.watch(zygote.talk_fd, self._hear)
        self._reactor.watch(zygote.errors_fd, self._hear_errors)
        self._reactor.watch(zygote.end_fd, lambda: self._see_end(zygote))

    def _hear_errors(self) -> None:
        zygote = self._zygote
        if zygote is None:
            return
        fd = zygote.errors_fd
        text = zygote.hear_errors().decode("utf-8", "backslashreplace")
        if zygote.errors_fd < 0:
            self._reactor.unwatch(fd)
        for line in text.splitlines():
            log.info("zygote: %s", line)

    def _hear(self) -> None:
        while (zygote := self._zygote) is not None:
            heard = zygote.hear()
            if heard is None:
                return
            if heard is True:
                if zygote.refused:
                    self._refused(zygote.refused)
                    return
                log.debug("zygote %d is ready", zygote.pid)
            elif heard is False:
                self._lost(zygote)
                return
            elif self._asked:
                self._take_made(self._asked.popleft(), heard)

    def _see_end(self, zygote: ZygoteProcess) -> None:
        if not zygote.has_ended:
            return
        if self._zygote is zygote:
            self._hear()  # what it has told before
        if self._zygote is zygote:
            self._lost(zygote)

    def _refused(self, why: str) -> None:
        self.end()
        text, _, more = why.partition("\n")
        error = PreloadError(f"preload: {text}")
        if more:
            error.add_note(more.rstrip())
        self._break(error)

    def _lost(self, zygote: ZygoteProcess) -> None:
        """It has ended by itself, or by somebody's hand."""
        self._hear_errors()
        how, said, was_ready = zygote.status(), zygote.said, zygote.ready
        self.end()
        self._failures += 1
        words = f"the interpreter that calls are forked from has ended ({how})"
        if said:
            words += f"; it said last: {said.decode('utf-8', 'backslashreplace').strip()[-500:]}"
        log.warning("%s%s", words, "" if was_ready else ", before it was ready")
        if self._failures >= HOPELESS:
            self._break(BrokenSandboxError(f"{words}, {self._failures} times in a row"))
        else:
            self._start()

    def _start(self) -> None:
        try:
            self._zygote = ZygoteProcess(self._recipe)
        except (SpawnError, OSError) as error:
            self._failures += 1
            if error.errno in EXCHANGED:
                with suppress(OSError, ValueError):  # the same is told by what comes of the old one
                    self._recipe = self._recipe.renewed()
            if self._failures >= HOPELESS:
                broken = BrokenSandboxError(f"no interpreter can be started that calls could be forked from: {error}")
                broken.__cause__ = error
                self._break(broken)
            else:
                self._reactor.later(RETRY_S, self._start)
            return
        self._watch(self._zygote)
        log.info("zygote %d started in its place", self._zygote.pid)

    def _replace(self) -> None:
        """Go on with a zygote that knows the files as they are now. What the old one has begun to make is of no use.

        Raises:
            OSError, ValueError: a file cannot be had; the old one stays.
        """
        self._recipe = self._recipe.renewed()
        self.end()
        for copy in list(self._making):
            self._take_back(copy)
        self._start()

    def _break(self, error: BaseException) -> None:
        self.broken = error
        self._parent.no_copies(error)

    # --- copies -------------------------------------------------------------------------------------------------------------------

    def _take_made(self, copy: CopyProcess, made: Made) -> None:
        copy.keeper, copy.pid, copy.pidfd = made.keeper, made.pid, made.pidfd
        self._making.add(copy)
        if copy.pidfd is None:
            labels = self._recipe.copies.copy.labels if made.of_copy else self._recipe.copies.keeper.labels
            self._failed(copy, (made.stage, made.index, made.error), labels)
            return
        copy.state = State.MAKING
        copy.greet()
        self._reactor.watch(copy.talk_fd, lambda: self._hear_report(copy))
        self._reactor.watch(copy.pidfd.fd, lambda: self._hear_report(copy))
        if copy.verdict is not None:
            self._take_back(copy)

    def _hear_report(self, copy: CopyProcess) -> None:
        """How its ops went, or that it has ended without telling."""
        if copy not in self._making:
            return
        copy.receive()
        report = copy.take_report()
        if report is None:
            if copy.has_ended:
                self._failed(copy, (_native.STAGE_OPS, -1, 0), ())
            return
        stage, _, error = report
        if stage != _native.STAGE_EXEC or error:
            self._failed(copy, report, self._recipe.copies.copy.labels)
            return
        assert copy.keeper is not None
        with suppress(OSError):
            os.write(copy.keeper.control, self._recipe.copies.mode)
        self._failures = 0
        self._making.discard(copy)
        self._unwatch(copy)
        copy.state = State.READY
        self._parent.take(copy)

    def _failed(self, copy: CopyProcess, report: tuple[int, int, int], labels: Collection[str]) -> None:
        given_up = copy.verdict is not None
        self._take_back(copy)
        error: Exception = launch_error(list(labels), "a call", *report)
        if report[0] == _native.STAGE_OPS and report[2] in EXCHANGED:
            try:
                self._replace()
            except (OSError, ValueError) as missing:
                error = missing  # it says which file and why, where the report has a number
        if not given_up:
            self._not_made(error)

    def _take_back(self, copy: CopyProcess, *, given_up: bool = False) -> None:
        """It came to nothing."""
        given_up = given_up or copy.verdict is not None  # what was cancelled meanwhile does not wait again
        self._unwatch(copy)
        self._making.discard(copy)
        with suppress(ValueError):
            self._asked.remove(copy)
        call, copy.call = copy.call, None
        if copy.keeper is None:
            copy.let_go()
        else:
            self._parent.bury(copy)
        if call is not None:
            self._parent.take_back(call, given_up=given_up)

    def _unwatch(self, copy: CopyProcess) -> None:
        self._reactor.unwatch(copy.talk_fd)
        if copy.pidfd is not None:
            self._reactor.unwatch(copy.pidfd.fd)

    def _not_made(self, error: Exception) -> None:
        """There is no copy, for a reason that may pass as long as something runs."""
        self._failures += 1
        log.debug("no copy could be made: %s", error)
        if self._parent.anything_runs() or self._failures < HOPELESS:
            self.pause()
            return
        self._failures = 0
        broken = BrokenSandboxError(f"no sandbox can be made for a call: {error}")
        broken.__cause__ = error
        self._parent.no_copies(broken)

    def _go_on(self) -> None:
        self._pausing = False
