"""RequestError: what was asked for cannot be meant. Nothing has been started or opened."""

from __future__ import annotations

SHOAL_FAILED = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
"""Exit codes, as docker has them: shoal itself failed, the program cannot be executed, there is none."""


class RequestError(ValueError):
    """Says what was wrong and, in `hints`, what to do.

    Attributes:
        code: the exit code that a command gives for it.
    """

    def __init__(self, message: str, code: int = SHOAL_FAILED, hints: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message, self.code, self.hints = message, code, hints


class DirectoryError(RequestError):
    """The working directory that was asked for is none that the program can see."""
