"""The child's environment: what is taken from the caller, what is given, and what is never taken along."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shoal.packing import not_encoded
from shoal.startup_table import VARIABLE
from shoal.status import Stage, Status, failure

Environ = Mapping[str, str] | Sequence[str | bytes] | None

NOT_FOR_CHILDREN = (VARIABLE.encode() + b"=", b"LISTEN_PID=", b"LISTEN_FDS=", b"LISTEN_FDNAMES=")
"""Variables that speak of this process's own descriptors; in a child they would be lies."""


def encode_environ(environ: Mapping[str, str] | Sequence[str | bytes]) -> list[bytes]:
    """The environment as the kernel takes it.

    Raises:
        TypeError: neither a mapping of str nor a sequence of str or bytes.
        InvalidArgsError: a zero byte, a character that cannot be encoded; in a mapping, a name that is empty or holds `=`.
    """
    items: list[bytes] = []
    if isinstance(environ, Mapping):
        for key, value in environ.items():
            name = _encoded(key, key)
            if not name or b"=" in name:
                raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"{key!r} cannot be the name of an environment variable")
            items.append(name + b"=" + _encoded(value, key))
    elif isinstance(environ, str | bytes):
        raise TypeError("environ must be a mapping or a sequence of NAME=VALUE strings, not one string")
    else:
        items = [_encoded(item, item) for item in environ]
    if b"\0" in b"".join(items):
        culprit = next(item for item in items if b"\0" in item)
        raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, f"the environment variable {culprit.split(b'=')[0]!r} holds a zero byte")
    return items


def _encoded(text: str | bytes, item: str | bytes) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError as error:
        what = f"the environment variable {os.fsdecode(item).split('=')[0]!a}"  # its value may be a secret
        raise failure(Status.INVALID_ARGS, Stage.ARGUMENTS, not_encoded(what, error)) from None


def own_environment() -> list[bytes]:
    """This process's environment as it is now, without what is not for children."""
    # os.environ keeps the encoded form; going through its mapping would decode and encode every string, on every spawn.
    raw = getattr(os.environ, "_data", None)
    pairs = raw.items() if isinstance(raw, dict) else os.environb.items()
    items = [name + b"=" + value for name, value in pairs]
    return [item for item in items if not item.startswith(NOT_FOR_CHILDREN)]


def working_directory(env: Sequence[bytes]) -> bytes:
    """Where the child begins: PWD of its own environment, else the root (spec 5.2)."""
    for item in env:
        if item.startswith(b"PWD="):
            return item[4:]
    return b"/"
