"""Locks and fork: a child has only the thread that forked, so a lock that another one held would never be released there.

A signal handler may fork in the middle of anything, also of what a lock of its own thread guards: so these can be taken again by who has
them. Such a child should execute something or end: what was interrupted is the parent's to finish.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager


def held_over_forks() -> AbstractContextManager[object]:
    """A lock that is taken before each os.fork() and released on both sides, so that a child finds what it guards in order.

    For a lock that lives as long as the program, and whose holder takes no other such lock that was made after it: a fork takes the
    youngest first.
    """
    lock = threading.RLock()
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
