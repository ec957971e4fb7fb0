"""Spawn daemons of a manager, in processes of their own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rig import managed
from shoal.manager.bond import peer_of


@contextlib.contextmanager
def spawnd(state: Path, *cores: int, prefix: Sequence[str] = (), registers: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """One that listens. Killed afterwards.

    Args:
        prefix: what it is started by.
        registers: it tells the manager itself; else somebody else has to.
    """
    where = address_of(state, *cores)
    words = [*prefix, sys.executable, "-m", "shoal.manager.spawnd", str(state), str(state / "run"), str(where)]
    process = subprocess.Popen([*words, *map(str, cores if registers else ())])
    try:
        managed.wait_until(lambda: process.poll() is not None or _listener(where) == process.pid)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


def address_of(state: Path, *cores: int) -> Path:
    return state / "run" / f"spawnd.{cores[0]}.sock"


def _listener(path: Path) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return None
        return peer_of(sock)[0]
