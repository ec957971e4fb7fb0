"""What a record or the capability store may carry: something that is closed when nobody needs it any more. Touches: nothing."""

from __future__ import annotations

from typing import Protocol


class Closable(Protocol):
    """A descriptor, as far as the registry is concerned: it never looks inside, and never closes one itself."""

    def close(self) -> None:
        """Give it up."""
