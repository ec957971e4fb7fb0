"""Reader: whoever reads our stdout, for verbs that go on printing: what they are given as it comes, and that they may go at any time."""

from __future__ import annotations

import os
import select
import stat
import threading
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.manager import Manager


def write(data: bytes) -> None:
    """All of it to stdout, past Python's buffer: somebody may be watching."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(1, left) :]
        except BlockingIOError:  # it was made so by somebody who shares it with us
            poll = select.poll()
            poll.register(1, select.POLLOUT)
            poll.poll()
        except OSError as error:
            error.filename = "stdout"  # for whoever tells of it
            raise


class ReaderWatched:
    """While entered, the end of whoever reads our stdout ends us, as writing would: a quiet domain must not keep `logs -f | head` alive.

    The manager is left for that, which wakes whoever waits for its answer; a signal could come a moment before somebody waits.
    """

    def __init__(self, manager: Manager, *, is_needed: bool) -> None:
        self._manager = manager
        self._is_needed = is_needed and _is_pipe(1)
        self._is_gone = False

    def __enter__(self) -> None:
        if self._is_needed:
            threading.Thread(target=self._watch, name="shoal-reader", daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_gone and isinstance(error, Exception):
            raise BrokenPipeError from None

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(1, 0)  # what tells of an error is always told
        poll.poll()
        self._is_gone = True
        self._manager.close()


def _is_pipe(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
