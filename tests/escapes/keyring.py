"""The keys of this process: keyctl(2), which neither Python nor the C library has a function for."""

from __future__ import annotations

import ctypes
import os

from shoal.sandbox.syscalls import number_of

GET_KEYRING_ID, JOIN_SESSION_KEYRING, LINK, SEARCH, READ, SESSION_TO_PARENT = 0, 1, 8, 10, 11, 18
SESSION, USER = -3, -4

_libc = ctypes.CDLL(None, use_errno=True)


def keyctl(*words: int) -> int:
    """What the call gives. Raises OSError."""
    return _call("keyctl", *words)


def add_key(name: str, payload: str, keyring: int) -> int:
    """The number of a new key. Raises OSError."""
    return _call("add_key", b"user", name.encode(), payload.encode(), len(payload), keyring)


def _call(name: str, *arguments: int | bytes) -> int:
    number = number_of(name, os.uname().machine)
    value: int = _libc.syscall(*(ctypes.c_long(item) if isinstance(item, int) else item for item in (number, *arguments)))
    if value < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return value
