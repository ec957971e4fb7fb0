"""Records: what becomes of programs, told to Python's `logging` by loggers below "shoal".

Names of programs, pids and reasons: no argument, no variable, no output, any of which may be secret. Who has not imported logging
cannot have asked for records, and does not pay for its import.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

_loggers: dict[str, Logger] = {}
"""Those that were asked for: logging looks a name up under a lock, twice for each run."""


def _logger(name: str) -> Logger | None:
    found = _loggers.get(name)
    if found is None and (logging := sys.modules.get("logging")) is not None:
        found = _loggers[name] = logging.getLogger(name)
    return found


def began(logger: str, name: str, pid: int) -> None:
    """A program runs. DEBUG."""
    found = _logger(logger)
    if found is not None:
        found.debug("process %d (%s) begins", pid, name)


def ended(logger: str, name: str, pid: int, returncode: int, reason: str, unkilled: str = "") -> None:
    """It is over. DEBUG; WARNING where something of it is left.

    Args:
        unkilled: what is left, in words.
    """
    found = _logger(logger)
    if found is not None:
        found.debug("process %d (%s) returned %d: %s", pid, name, returncode, reason)
        if unkilled:
            found.warning("process %d (%s) has left something: %s", pid, name, unkilled)
