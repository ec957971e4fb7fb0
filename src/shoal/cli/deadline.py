"""Deadline: until when something is waited for, as it is said on the command line."""

from __future__ import annotations

import math
import time

from shoal.cli.output import CommandError
from shoal.units import parse_duration


class Deadline:
    """A point in time, counted from now on."""

    def __init__(self, option: str, text: str | None) -> None:
        """`text` is what was given for `option`; None: there is no end to it.

        Raises:
            CommandError: it is no duration.
        """
        try:
            self.span_s = math.inf if text is None else parse_duration(text)
        except ValueError as error:
            raise CommandError(f"{option}: {error}") from None
        self._at = time.monotonic() + self.span_s

    def left_s(self) -> float | None:
        """Seconds until then; None when there is no end."""
        return None if self._at == math.inf else max(0.0, self._at - time.monotonic())
