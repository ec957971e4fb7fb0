"""A process manager of a test's own, by the command line: a state directory, and the end of all that was started in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import shoal.manager
from rig import cli
from rig.cli import COMMAND, ENVIRON, PATIENCE_S, User, wait_gone
from shoal.manager import ManagerError


class Desk:
    """Somebody's desk.

    Attributes:
        state: the state directory. env: the environment that says so.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.env = {**ENVIRON, "SHOAL_STATE_DIR": str(state)}
        self.env.pop("COLUMNS", None)

    def shoal(self, *words: str | os.PathLike[str], **how: Any) -> subprocess.CompletedProcess[str]:
        """`shoal WORDS`, to its end."""
        return cli.shoal(*words, **({"env": self.env} | how))

    def spawn(self, *words: str) -> str:
        """`shoal spawn -d WORDS`: the domain's number."""
        done = self.shoal("spawn", "-d", *words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    def sh(self, script: str, *options: str) -> str:
        """The same for a script."""
        return self.spawn(*options, "--", "sh", "-c", script)

    @contextlib.contextmanager
    def begin(self, *words: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
        """`shoal WORDS`, while it runs; killed, where it still does."""
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True, "env": self.env} | how
        process = subprocess.Popen([*COMMAND, *words], **how)
        try:
            yield process
        finally:
            process.kill()
            process.wait(timeout=PATIENCE_S)
            for pipe in (process.stdin, process.stdout, process.stderr):  # of which a domain may hold the other ends
                if pipe is not None:
                    pipe.close()

    def user(self, *words: str, **how: Any) -> User:
        """Somebody who typed `shoal WORDS` at a terminal."""
        env = {**self.env, "TERM": "xterm"} | how.pop("env", {})
        return User(*COMMAND, *words, env=env, **how)

    def manager_pid(self) -> int:
        """Of the daemon that has the state directory now."""
        return int((self.state / "lock").read_text().split()[0])

    def end(self) -> None:
        """Everything."""
        if not (self.state / "manager.db").exists():
            return
        with mock.patch.dict(os.environ, {"SHOAL_STATE_DIR": str(self.state)}), shoal.manager.connect() as manager:
            for status in manager.statuses():
                with contextlib.suppress(ManagerError):
                    manager.domain(status.id).kill()
            daemon = self.manager_pid()
            manager.stop()
        assert wait_gone([daemon])


@contextlib.contextmanager
def own_desk() -> Iterator[Desk]:
    """A desk, cleared afterwards."""
    with tempfile.TemporaryDirectory(prefix="shoal-desk-") as directory:
        desk = Desk(Path(directory, "state"))
        try:
            yield desk
        finally:
            desk.end()
