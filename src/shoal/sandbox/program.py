"""Program: the executable that the user named, where it was found, and the interpreters its #! lines lead to."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from shoal.loader.cache import FileIdentity
from shoal.loader.interpreter import WINDOW_BYTES, InterpreterDirective, is_directive, parse_directive
from shoal.packing import not_encoded
from shoal.sandbox.errors import NOT_EXECUTABLE, NOT_FOUND, RequestError

_DIRECTIVES_SHOWN = 8
"""How far #! lines are followed here, where it is only for the sake of hints; the loader has the real limit."""


class Directive(NamedTuple):
    """One #! line: the interpreter it names and its single argument, "" when there is none."""

    interpreter: str
    argument: str


class Program(NamedTuple):
    """What will be executed. `path` is absolute and as found: symbolic links in it are not resolved.

    `identity` is the state of the file when it was found, if it was looked at.
    """

    name: str
    path: str
    directives: tuple[Directive, ...] = ()
    identity: FileIdentity | None = None

    @property
    def is_script(self) -> bool:
        """True when something else has to read it."""
        return bool(self.directives)

    @property
    def argv0(self) -> str:
        """What the program sees as its name. A script's interpreter finds the script by it, so there it is the whole path."""
        return self.path if self.is_script else self.name

    @property
    def between(self) -> tuple[str, ...]:
        """The scripts that it is a script for: the last interpreter reads them, so they have to be there."""
        return tuple(_tidy(directive.interpreter) for directive in self.directives[:-1] if directive.interpreter.startswith("/"))

    @property
    def executes(self) -> str:
        """The path of the ELF file that really runs."""
        return self.directives[-1].interpreter if self.directives else self.path


_REMOVED = "/(removed)"


def current_directory() -> str:
    """The caller's. Where it has been removed: a name that nothing has, so that no relative path leads from there to anything."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return _REMOVED


def find_program(name: str, search: str, cwd: str) -> Program:
    """The program called `name`: a path when it has a slash, else the first executable of that name in `search`.

    Args:
        search: directories separated by ":", as in PATH; an empty one is `cwd`.
    Raises:
        RequestError: with exit code 127 when there is no such file, 126 when there is one that cannot be executed; it cannot be meant.
    """
    known = _found.get(name)
    if known is not None and _is_same(known):
        return known.program
    if not name:
        raise RequestError("the program's name is empty", NOT_FOUND)
    if "\0" in name:
        raise RequestError("the program's name holds a zero byte")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise RequestError(not_encoded("the program", error)) from None
    if "/" in name:
        path = os.path.join(cwd, name)
        reason = _look(path)
        if isinstance(reason, FileIdentity):
            program = Program(name, _tidy(path), known_directives_of(path, reason), reason)
            if name.startswith("/") and ".." not in name and not program.is_script:  # of a script the interpreters may change
                _remember(name, _Found(program, os.geteuid()))
            return program
        code = NOT_FOUND if reason == "not found" else NOT_EXECUTABLE
        raise RequestError(f"{name}: {reason}", code)
    refused: tuple[str, str] | None = None
    for directory in search.split(":"):
        path = os.path.join(cwd, directory, name)
        reason = _look(path)
        if isinstance(reason, FileIdentity):
            return Program(name, _tidy(path), known_directives_of(path, reason), reason)
        if reason != "not found" and refused is None:
            refused = (path, reason)
    if refused:
        raise RequestError(f"{refused[0]}: {refused[1]}", NOT_EXECUTABLE)
    here = os.path.join(cwd, name)
    nearby = f"; it is in the current directory: write ./{name}" if why_not_executable(here) is None else ""
    raise RequestError(f"{name}: not found in PATH{nearby}", NOT_FOUND)


class _Found(NamedTuple):
    """A program that was named by its whole path, and whom it could be executed by."""

    program: Program
    euid: int


_found: dict[str, _Found] = {}


def _is_same(known: _Found) -> bool:
    """Whether it would be found again. Who may execute a file does not change without its identity doing so."""
    try:
        found = os.stat(known.program.name)
    except OSError:
        return False
    identity = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return identity == known.program.identity and os.geteuid() == known.euid


def _remember(name: str, found: _Found) -> None:
    if len(_found) >= _KNOWN_MOST:
        _found.clear()
    _found[name] = found


def why_not_executable(path: str) -> str | None:
    """None when `path` can be executed, else the reason in words ("not found" when there is no such file)."""
    found = _look(path)
    return found if isinstance(found, str) else None


def _look(path: str) -> FileIdentity | str:
    """Which file it is when it can be executed, else the reason why not."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            return f"is a symbolic link to {os.readlink(path)}, which does not exist"
        return "not found"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if stat.S_ISDIR(found.st_mode):
        return "is a directory"
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if not os.access(path, os.X_OK):
        if os.statvfs(path).f_flag & os.ST_NOEXEC:
            return "is on a file system that is mounted noexec"
        return "is not executable (chmod +x makes it so)"
    return FileIdentity.of(found)


_known: dict[str, tuple[FileIdentity, tuple[Directive, ...]]] = {}
"""What was found out about a file, as long as it is the same."""
_KNOWN_MOST = 256


def known_directives_of(path: str, identity: FileIdentity) -> tuple[Directive, ...]:
    """`directives_of()`, looking into the file only when it has changed."""
    known = _known.get(path)
    if known is None or known[0] != identity or known[1]:  # of a script the interpreters may have changed
        if len(_known) >= _KNOWN_MOST:
            _known.clear()
        known = _known[path] = (identity, directives_of(path))
    return known[1]


def directives_of(path: str) -> tuple[Directive, ...]:
    """The #! lines that lead from `path` to an ELF file, outermost first. Never fails: what cannot be read has none."""
    found: list[Directive] = []
    while len(found) < _DIRECTIVES_SHOWN:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # to open a device does something, and a pipe waits for somebody
                break
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                window = os.pread(fd, WINDOW_BYTES, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
            finally:
                os.close(fd)
            directive = parse_directive(window, path) if is_directive(window) else None
        except OSError:
            break
        if not isinstance(directive, InterpreterDirective):
            break
        path = os.fsdecode(directive.interpreter)
        found.append(Directive(path, os.fsdecode(directive.argument or b"")))
    return tuple(found)


def _tidy(path: str) -> str:
    """Without `.` and doubled slashes. `..` stays: behind a symbolic link, removing it would name another file."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return os.path.realpath(path) if ".." in parts else "/" + "/".join(parts)
