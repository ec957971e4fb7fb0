"""Wording: what programs have given, as people are shown it."""

from __future__ import annotations


def shown_bytes(name: bytes) -> str:
    """For people, and for what takes nothing but characters."""
    return name.decode("utf-8", "backslashreplace")
