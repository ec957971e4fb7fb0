"""Resolvers: who answers `#!resolve NAME` with a program and its libraries.

Called by: spawn (through `ask`), programs (`set_resolver`). Touches: what the resolver in use touches.
One resolver per process, as there is one Resolver service per namespace. None is set at first: then every resolve line fails.
Source: spec section 4 step 5; fuchsia.process.Resolver.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from shoal.loader.closure import Closure
from shoal.loader.executable import Executable, Kind, inspect, library_closure
from shoal.loader.tree import OPEN_FLAGS
from shoal.status import SpawnError, Stage, Status, failure, failure_from_errno

if TYPE_CHECKING:
    from shoal.handles.vmo import Vmo

MAX_LINKS = 40


class Resolved(NamedTuple):
    """A resolver's answer. Without closure, files and actions the child has no libraries, even with DEFAULT_LDSVC.

    Ownership: whoever called `resolve` owns what is in it.
    """

    executable: Vmo
    closure: Closure | None = None
    """Libraries that are files of this host."""
    files: tuple[tuple[str, Vmo], ...] = ()
    """Libraries that come as memory: absolute path in the child, read-only bytes."""
    actions: tuple[Any, ...] = ()
    """What a resolver of the user's own wants done for its program (`shoal.Action`); types of a layer above this one."""

    def close(self) -> None:
        """Close everything in it: the executable, the files, and the handles its actions would hand over."""
        self.executable.close()
        for _, vmo in self.files:
            vmo.close()
        for action in self.actions:
            handle = getattr(action, "handle", None)
            if handle is not None:
                handle.close()


class Resolver(Protocol):
    """Finds programs by name."""

    def resolve(self, name: str) -> Resolved | tuple[Vmo, Sequence[Any]]:
        """The program called `name` as an executable VMO, with its libraries or the actions that bring them.

        Raises:
            NotFoundError: there is no such name; the spawn then fails with INTERNAL.
            SpawnError: any other refusal; the spawn fails with its status.
        """


_resolver: Resolver | None = None


def set_resolver(resolver: Resolver | None) -> None:
    """Use `resolver` for every later spawn of this process; None: none.

    Raises:
        TypeError: it has no resolve().
    """
    global _resolver
    if resolver is not None and not callable(getattr(resolver, "resolve", None)):
        raise TypeError(f"a resolver has a method resolve(name), which {type(resolver).__name__} lacks")
    _resolver = resolver


def get_resolver() -> Resolver | None:
    """The resolver in use."""
    return _resolver


def ask(name: str) -> tuple[Executable, Resolved]:
    """Ask the resolver in use; what `interpreter.follow` wants as its `resolve`.

    Raises:
        InternalError: no resolver is set, or it failed in some way of its own.
        SpawnError: its refusal, unchanged.
        BadHandleError: a success without an executable.
        WrongTypeError: an answer that is none.
    """
    resolver = _resolver
    if resolver is None:
        raise failure(Status.INTERNAL, Stage.DIRECTIVES, "no resolver is set; call shoal.set_resolver()")
    try:
        answer = resolver.resolve(name)
    except SpawnError:
        raise
    except Exception as error:
        raise failure(Status.INTERNAL, Stage.DIRECTIVES, f"the resolver failed: {type(error).__name__}: {error}") from error
    resolved = _as_resolved(answer)
    try:
        return inspect(resolved.executable.fileno(), repr(name)), resolved
    except BaseException:
        resolved.close()
        raise


def _as_resolved(answer: object) -> Resolved:
    if isinstance(answer, tuple) and not isinstance(answer, Resolved) and len(answer) == 2:
        answer = Resolved(answer[0], actions=tuple(answer[1]))
    if not isinstance(answer, Resolved):
        detail = f"the resolver answered with {type(answer).__name__}, not with (executable, actions)"
        raise failure(Status.WRONG_TYPE, Stage.DIRECTIVES, detail)
    if answer.executable is None:
        raise failure(Status.BAD_HANDLE, Stage.DIRECTIVES, "the resolver gave no executable")
    return answer


def _contents(fd: int) -> bytes:
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return file.readall()


class DirectoryResolver:
    """A directory of executables: NAME is the file of that name in it, with the libraries this host has for it.

    The name is one component, without a leading dot. Links are followed only to other names in the same directory, so
    whoever may write a #! line reaches nothing outside it. The directory is held open: moving it makes no difference.
    """

    def __init__(self, directory: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        """Open `directory`.

        Raises:
            SpawnError: it cannot be opened.
        """
        self._fd = -1
        self._lock = threading.Lock()  # a close in another thread must not leave us with a number that means something else
        try:
            self._fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"cannot open the directory {os.fsdecode(directory)}") from error

    def resolve(self, name: str) -> Resolved:
        """The program `name` and its closure.

        Raises:
            NotFoundError: no such file, or a name that cannot be one here.
            SpawnError: as `inspect` and `library_closure`.
        """
        from shoal.handles.vmo import Vmo

        with self._lock:
            fd = self._open(name)
        try:
            executable = inspect(fd, name)
            closure = library_closure(executable, fd, name) if executable.kind is Kind.DYNAMIC else None
            vmo = Vmo.from_bytes(_contents(fd), name).replace_as_executable()
        finally:
            os.close(fd)
        return Resolved(vmo, closure)

    def close(self) -> None:
        """Give up the directory. Closing twice is fine."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> DirectoryResolver:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _open(self, name: str) -> int:
        if self._fd < 0:
            raise failure(Status.BAD_HANDLE, Stage.HANDLE, "this resolver is closed")
        component = name
        for _ in range(MAX_LINKS):
            if not component or component.startswith(".") or "/" in component or "\0" in component:
                raise failure(Status.NOT_FOUND, Stage.DIRECTIVES, f"{name!r} is not a name in the resolver's directory")
            try:
                found = os.stat(component, dir_fd=self._fd, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    component = os.readlink(component, dir_fd=self._fd).removeprefix("./")
                    continue
                if not stat.S_ISREG(found.st_mode):
                    raise failure(Status.NOT_SUPPORTED, Stage.DIRECTIVES, f"{name!r} is not a regular file")
                return os.open(component, OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=self._fd)
            except SpawnError:
                raise
            except OSError as error:
                raise failure_from_errno(error.errno or 0, Stage.DIRECTIVES, f"cannot open {name!r}") from error
        raise failure(Status.BAD_PATH, Stage.DIRECTIVES, f"{name!r} is a loop of links")
