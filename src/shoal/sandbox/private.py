"""PrivateDirectory: a directory made for one run and removed after it, where nothing can be mounted over /tmp.

What a hostile program leaves in it is removed with it: directories that nobody may enter are opened first, and no symbolic link is
followed. By then nothing of the program lives that could exchange one for another.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from typing import Self


class PrivateDirectory:
    """Owned; removed by `remove()`, and at the end of this process at the latest."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._finalizer = weakref.finalize(self, _remove, path, os.getpid())

    @classmethod
    def make(cls) -> Self:
        """A new one, which only its owner may enter."""
        import tempfile  # costly, and hardly ever needed; what is needed to remove it comes with it

        return cls(os.path.realpath(tempfile.mkdtemp(prefix="shoal-")))

    def give_to(self, user: int) -> None:
        """Let it be somebody else's."""
        os.chown(self.path, user, user)

    def remove(self) -> None:
        """With all that is in it. Fine when it is gone already."""
        self._finalizer()


def _remove(path: str, owner: int) -> None:
    if os.getpid() != owner:  # after os.fork() in the child: it is the parent's
        return
    import shutil

    with suppress(OSError):
        shutil.rmtree(path)
        return
    _open_all(path)
    shutil.rmtree(path, ignore_errors=True)


def _open_all(path: str) -> None:
    """Let every directory in it be entered again."""
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        with suppress(OSError):
            os.chmod(directory, 0o700)
            with os.scandir(directory) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
