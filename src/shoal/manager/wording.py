"""Wording: what programs have given, as people are shown it."""

from __future__ import annotations

import os

from shoal.packing import not_encoded


def shown_bytes(name: bytes) -> str:
    """For people, and for what takes nothing but characters."""
    return name.decode("utf-8", "backslashreplace")


def shown_path(name: str) -> str:
    """The same of text that comes from a path or a command line, and may have bytes in it that are no characters."""
    return shown_bytes(os.fsencode(name))


def as_bytes(word: object, what: str) -> bytes:
    """What is handed to the kernel as a string, and what to call it in an error.

    Raises:
        TypeError, ValueError: it cannot be one.
    """
    if not isinstance(word, str | bytes | os.PathLike):
        raise TypeError(f"{what} must be str or bytes, not {type(word).__name__}")
    try:
        data = os.fsencode(word)
    except UnicodeEncodeError as error:
        raise ValueError(not_encoded(what, error)) from None
    if b"\0" in data:
        raise ValueError(f"{what} holds a zero byte")
    return data
