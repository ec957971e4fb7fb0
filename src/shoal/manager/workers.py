"""Workers: the functions that a compiler has made of the parallel parts of a program (OpenMP), as records of the name service.

Source: usr/spawnd/spawn_omp.c in Barrelfish.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from shoal.loader.symbols import functions
from shoal.manager.errors import ManagerError
from shoal.manager.names.record import INT_MAX, is_identifier, quoted
from shoal.manager.names.reserved import is_reserved

MOST: Final = 10_000
"""Functions of one program."""
_IN_NAMES: Final = b"_omp_fn"


def prefix_of(path: bytes) -> str:
    """What the names of the records of a program begin with.

    Raises:
        ManagerError: none can.
    """
    binary = os.path.basename(path).decode("utf-8", "backslashreplace").lower()
    prefix = f"{binary}.omp."
    if not is_identifier(f"{prefix}0") or is_reserved(f"{prefix}0"):
        what = f"flags: OMP: functions cannot be registered as {prefix}0: a name begins with a letter, goes on with letters, digits, . _ -"
        raise ManagerError("SPAWN_ERR_GET_CMDLINE_ARGS", f"{what}, and is not the manager's own")
    return prefix


def records_of(path: bytes) -> Sequence[str]:
    """The records of a program: the number of its functions, then one of each. Reads the file, which may take a while.

    Raises:
        ManagerError: it is no program, or there are too many.
    """
    prefix = prefix_of(path)
    try:
        found = functions(path, _IN_NAMES)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ManagerError("SPAWN_ERR_LOAD", f"flags: OMP: the symbols of {os.fsdecode(path)} cannot be read: {why}") from error
    if len(found) > MOST:
        raise ManagerError("SPAWN_ERR_LOAD", f"flags: OMP: {os.fsdecode(path)} has {len(found)} functions for workers, {MOST} at most")
    records = [f"{prefix}0 {{ count: {len(found)} }}"]
    for number, (name, address) in enumerate(found, 1):
        sym = quoted(name.removeprefix("_").lower())
        records.append(f"{prefix}{number} {{ addr: {min(address, INT_MAX)}, sym: {sym} }}")
    return records
