"""Watch: the events of a watch or subscription, one after the other. Over any Operations."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Self

from shoal.handles.deadline import Deadline
from shoal.manager.errors import ManagerTimeoutError
from shoal.manager.names.events import Event
from shoal.manager.names.operations import Watching


class Watch(Iterator[Event]):
    """What happens to matching records, or what is published, oldest first. Iterating waits for the next event; the last one has `removed`.

    A reader that falls far behind loses events and gets one of kind "overflow" in their place: look again at what there is, and go on.
    One thread reads, any thread may close. It ends when it is closed, when nothing refers to it, and with its NameService.
    """

    def __init__(self, watching: Watching, present: list[Event]) -> None:
        self._watching = watching
        self._present = deque(present)
        self._ended = not watching.installed

    def next(self, timeout: float | str | None = None) -> Event:
        """The next event, waiting for it.

        Args:
            timeout: seconds or text such as "30s"; None waits as long as it takes.
        Raises:
            ManagerTimeoutError: none came in that time.
            StopIteration: the last one came already.
            ManagerError: LIB_ERR_NAMESERVICE_NOT_BOUND, the name service was closed, or the connection to it is lost.
        """
        if self._present:
            return self._present.popleft()
        if self._ended:
            raise StopIteration
        event = self._watching.next(Deadline(timeout))
        if event is None:
            raise ManagerTimeoutError("OCT_ERR_TIMEOUT", "nothing happened to what is watched in the time given")
        self._ended = event.removed
        return event

    def __next__(self) -> Event:
        return self.next()

    def __iter__(self) -> Self:
        return self

    def close(self) -> None:
        """End it. A reader gets what came before, then an event of kind "removed", then no more. Closing twice is fine."""
        self._watching.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        watching = getattr(self, "_watching", None)
        if watching is not None and not self._ended:
            watching.discard()
