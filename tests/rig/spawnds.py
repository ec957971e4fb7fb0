"""Spawn daemons of a manager, in processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rig import managed

PATIENCE_S = 30.0


@contextlib.contextmanager
def spawnd(state: Path, *cores: int, address: Path | None = None, registers: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """One that serves. Killed afterwards.

    Args:
        registers: it tells the manager itself; else somebody else has to.
    """
    where = address_of(state, *cores) if address is None else address
    words = [
        sys.executable,
        "-m",
        "shoal.manager.spawnd",
        str(state),
        str(state / "run"),
        str(where),
        *map(str, cores if registers else ()),
    ]
    process = subprocess.Popen(words)
    try:
        managed.wait_until(lambda: process.poll() is not None or where.exists(), PATIENCE_S)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


def address_of(state: Path, *cores: int) -> Path:
    return state / "run" / f"spawnd.{cores[0]}.sock"
