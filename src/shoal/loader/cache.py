"""FileIdentity and the cache keyed by it: what was learned about a file stays true while its identity stays the same.

Called by: executable, closure, ldcache. Touches: nothing but memory.
Why an identity of five numbers: a file replaced by rename has another inode, one changed in place has another ctime, and
ctime cannot be set by hand as mtime can. What is left is a change within one tick of the kernel's clock after we
looked; `is_settled` is for that, the way git treats an index entry as young as the index itself.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Hashable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

SETTLE_NS = 20_000_000
"""Two ticks of the coarsest kernel clock (100 Hz): a ctime older than this cannot be reused by a later change."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class FileIdentity(NamedTuple):
    """Which file it is and which state of it. A named tuple, because it is hashed on every launch."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileIdentity:
        """The identity seen by a stat call."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def is_settled(self) -> bool:
        """False while a further change might leave this identity as it is: then nothing may be remembered under it.

        A ctime in the future (a file server with another clock) counts as unsettled too; it costs speed, never truth.
        """
        return time.time_ns() - self.ctime_ns > SETTLE_NS


def identity_at(path: str) -> FileIdentity | None:
    """The identity of what `path` leads to, or None when there is nothing that can be reached."""
    try:
        return FileIdentity.of(os.stat(path))
    except (OSError, ValueError):
        return None


def are_as_they_were(files: Iterable[tuple[str, FileIdentity | None]]) -> bool:
    """Whether each path leads to what it led to, or to nothing where it led to nothing."""
    for path, seen in files:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            if seen is not None:
                return False
        else:
            # Spelled out, since it is done for each file of a program at each launch.
            if (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) != seen:
                return False
    return True


class BoundedCache(Generic[Key, Value]):
    """At most `capacity` values; the one used longest ago goes first. Safe from any thread, with and without the GIL."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a cache holds at least one value: {capacity}")
        self._capacity = capacity
        self._lock = threading.RLock()
        self._values: dict[Key, Value] = {}  # a dict keeps insertion order: the first key is the oldest
        _caches.add(self)

    def get(self, key: Key) -> Value | None:
        """The value, now the youngest; None when there is none."""
        with self._lock:
            try:
                value = self._values[key] = self._values.pop(key)
            except KeyError:
                return None
            return value

    def put(self, key: Key, value: Value) -> None:
        """Remember `value`; of two threads that learned the same thing the later one is kept."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
            while len(self._values) > self._capacity:
                del self._values[next(iter(self._values))]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._values = {}  # it may have been half changed


_caches: weakref.WeakSet[BoundedCache[Any, Any]] = weakref.WeakSet()


def _after_fork() -> None:
    # A fork in one thread may happen while another holds a lock; the child would wait for ever on its copy.
    for cache in list(_caches):
        cache._start_over()


os.register_at_fork(after_in_child=_after_fork)
