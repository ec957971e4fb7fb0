"""Records: what becomes of programs, told to Python's `logging` by loggers below "shoal".

Names of programs, pids and reasons: no argument, no variable, no output, any of which may be secret. Who has not imported logging
cannot have asked for records, and does not pay for its import.
"""

from __future__ import annotations

import sys


def began(logger: str, name: str, pid: int) -> None:
    """A program runs. DEBUG."""
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(logger).debug("process %d (%s) begins", pid, name)


def ended(logger: str, name: str, pid: int, returncode: int, reason: str, unkilled: str = "") -> None:
    """It is over. DEBUG; WARNING where something of it is left.

    Args:
        unkilled: what is left, in words.
    """
    logging = sys.modules.get("logging")
    if logging is not None:
        found = logging.getLogger(logger)
        found.debug("process %d (%s) returned %d: %s", pid, name, returncode, reason)
        if unkilled:
            found.warning("process %d (%s) has left something: %s", pid, name, unkilled)
