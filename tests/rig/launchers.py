"""The ways to start a program that promise the same behaviour. A test marked `every_launcher` runs through each of them.

A new way (an async call, a sandbox, a manager) is one more entry of LAUNCHERS.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import shoal
from shoal import Process, SpawnFlags

NOTHING = SpawnFlags(0)


def _in_the_callers_world(path: Any, argv: Any, *, flags: SpawnFlags = NOTHING, **rest: Any) -> Process:
    return shoal.spawn(path, argv, flags=flags | SpawnFlags.CLONE_NAMESPACE, **rest)


def _in_a_cell(path: Any, argv: Any, *, flags: SpawnFlags = NOTHING, **rest: Any) -> Process:
    return shoal.spawn(path, argv, flags=flags & ~SpawnFlags.CLONE_NAMESPACE, **rest)


@dataclass
class Launcher:
    """Calls like shoal.spawn and remembers what it started, so that a failed test leaves nothing running."""

    name: str
    start: Callable[..., Process]
    own_world: bool
    """The program sees only what it was given, not the caller's files, processes and network."""
    _started: list[weakref.ref[Process]] = field(default_factory=list)

    def __call__(self, path: Any, argv: Any, **rest: Any) -> Process:
        process = self.start(path, argv, **rest)
        self._started.append(weakref.ref(process))
        return process

    def clean_up(self) -> None:
        for reference in self._started:
            process = reference()
            if process is not None and not process.closed:
                if process.poll() is None:
                    process.kill()
                    process.wait(timeout=30)
                process.close()


LAUNCHERS: dict[str, tuple[Callable[..., Process], bool]] = {
    "direct": (_in_the_callers_world, False),
    "cell": (_in_a_cell, True),
}


def make_launcher(name: str) -> Launcher:
    start, own_world = LAUNCHERS[name]
    return Launcher(name, start, own_world)


every_launcher = pytest.mark.parametrize("launch", list(LAUNCHERS), indirect=True)
in_a_cell = pytest.mark.parametrize("launch", [name for name, (_, own) in LAUNCHERS.items() if own], indirect=True)
in_the_callers_world = pytest.mark.parametrize("launch", [name for name, (_, own) in LAUNCHERS.items() if not own], indirect=True)
