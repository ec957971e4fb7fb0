"""Background: a run that goes on while later cells are executed, in a thread of its own."""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
import weakref
from concurrent.futures import Future

from shoal.notebook.screen import Screen, sentence
from shoal.notebook.script import Script
from shoal.sandbox.request import Request
from shoal.sandbox.result import Result
from shoal.sandbox.run import drive
from shoal.sandbox.running import Running

_all: weakref.WeakSet[Background] = weakref.WeakSet()


class Background(Future[Result]):
    """A run in the background, and its Result to come. What it writes shows below the cell that began it.

    Ownership: it goes on without this object. What still runs when the notebook's kernel ends is ended with it.
    """

    def __init__(self, request: Request, screen: Screen, script: Script) -> None:
        """Begin.

        Raises:
            As `shoal.run()`, where it cannot be started.
        """
        super().__init__()
        self._name, self._screen, self._script = script.name, screen, script
        self._lock = threading.Lock()
        self._running: Running | None = Running(request)
        try:
            self._running.begin()
        except BaseException:
            self._running.close()
            raise
        self.set_running_or_notify_cancel()
        here = contextvars.copy_context()  # which tells the notebook what cell it is about
        self._thread = threading.Thread(target=here.run, args=(self._follow, self._running), name=f"shoal: {self._name}", daemon=True)
        _all.add(self)
        self._thread.start()

    def kill(self) -> None:
        """End it, with all that it has started. The reason of its result then is "killed". Fine when it is over."""
        with self._lock:
            if self._running is not None:
                self._running.kill()

    def end(self) -> None:
        """The same, and wait until it is gone."""
        self.kill()
        self._thread.join()

    def _follow(self, running: Running) -> None:
        try:
            with running:
                try:
                    drive(running.following(), running.pump)
                except BaseException:
                    drive(running.ending(), running.pump)
                    raise
                finally:
                    with self._lock:
                        self._running = None
            self._screen.close()
            result = running.result()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)

    def __repr__(self) -> str:
        if not self.done():
            return f"<Background: {self._name} runs>"
        error = self.exception()
        return f"<Background: {sentence(self._name, self.result()) if error is None else f'{self._name}: {error}'}>"


def _end_all() -> None:
    for each in list(_all):
        each.end()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_all.clear)  # they are the parent's, to whose end a fork's own has nothing to say
