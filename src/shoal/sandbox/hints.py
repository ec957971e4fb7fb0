"""Hints: when a program ended badly, which grant would have helped.

Works from what is known without watching the program: its words, its #! lines, its exit code, and the difference between
the host's files and the View it was given. A hint is only made on evidence: something exists on the host, the program was told of
it or is known to need it, and it is not there inside. That this is what it failed for is likely, not known; see denied.py.
Pure: nothing is printed or started here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

from shoal.sandbox.grants import View, is_inside
from shoal.sandbox.program import Program

HINTS_MAX = 5

_ABSOLUTE = re.compile(r"(?<![\w./~$}:-])(/(?:[\w.@%+,~-]+/?)+)|(?<=-[A-Z])(/(?:[\w.@%+,~-]+/?)+)")
_TOKEN = re.compile(r"[^\s;|&<>()`'\"=,:]+")
_URL = re.compile(r"\b(?:https?|ftp|ssh|git|wss?)://|^[\w.-]+@[\w.-]+:", re.IGNORECASE)
_SHELLS = re.compile(r"(?:ba|da|z|k|a|fi)?sh")
_BUILT_IN = frozenset(("[", "echo", "false", "kill", "printf", "pwd", "test", "true"))
"""What every shell has itself, so that the file of that name is not what it misses."""
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?")

_SCRIPTS_READ = 3
_SCRIPT_BYTES = 1 << 16

_COMMAND_NOT_FOUND = 127
_COMMAND_REFUSED = 126

_HOMES: Sequence[tuple[re.Pattern[str], Sequence[str]]] = (
    (re.compile(r"perl[\d.]*"), ("share/perl", "share/perl5", "lib/perl5", "lib64/perl5")),
    (re.compile(r"i?ruby[\d.]*|irb[\d.]*"), ("lib/ruby",)),
    (re.compile(r"(?:[\w-]+-)?(?:gcc|g\+\+|cc|c\+\+|clang|clang\+\+|cpp)(?:-[\d.]+)?"), ("lib/gcc", "lib/clang", "lib/llvm")),
    (re.compile(r"git"), ("lib/git-core", "libexec/git-core")),
    (re.compile(r"java|javac|jshell"), ("lib", "conf")),
    (re.compile(r"npm|npx"), ("lib/node_modules", "share/nodejs")),
    (re.compile(r"php[\d.]*"), ("lib/php",)),
    (re.compile(r"R|Rscript"), ("lib/R",)),
    (re.compile(r"tclsh[\d.]*|wish[\d.]*"), ("share/tcltk", "lib/tcl8.6")),
    (re.compile(r"lua[\d.]*|luajit"), ("share/lua",)),
)
"""Runtimes that cannot do much without files of their own, and where those lie below the prefix they are installed in."""

_DIRECTORY_WORKERS = re.compile(r"g?make|ninja|cmake|meson|git|npm|npx|yarn|cargo|go|pytest|tox|mvn|gradle")
"""Programs that look around in the working directory without being told to."""


class Hint(NamedTuple):
    """What was not there, and the option that would put it there, if any; `missing` is the file, where it is one that exists."""

    problem: str
    option: str
    missing: str = ""

    def __str__(self) -> str:
        return f"{self.problem}; add {self.option}" if self.option else self.problem


class Run(NamedTuple):
    """One run that ended badly."""

    program: Program
    args: Sequence[str]
    view: View
    cwd: str
    host_cwd: str
    environ: Mapping[str, str]
    search: str
    """The caller's PATH: where commands are on the host."""
    network: bool
    exit_code: int


def hints_for(run: Run) -> list[Hint]:
    """What would have helped, most likely cause first; at most HINTS_MAX, none that another one includes."""
    found: dict[str, Hint] = {}
    for hint in _shim(run) or _all(run):
        path = _granted_by(hint)
        if path and any(path == other or is_inside(path, other) for other in map(_granted_by, found.values()) if other):
            continue
        found.setdefault(hint.option, hint)
        if len(found) == HINTS_MAX:
            break
    return list(found.values())


def _all(run: Run) -> Iterator[Hint]:
    yield from _interpreter(run)
    yield from _runtime(run)
    yield from _words(run)
    yield from _commands(run)
    yield from _scripts(run)
    yield from _network(run)
    yield from _working_directory(run)


def _granted_by(hint: Hint) -> str | None:
    option, _, path = hint.option.partition(" ")
    return path if option in ("--ro", "--rw") else None


# --- the program itself -----------------------------------------------------------------------------


def _shim(run: Run) -> list[Hint]:
    """pyenv, nodenv, asdf and the like put scripts into PATH that look for the real program. Those need all that their manager needs."""
    place = os.path.dirname(run.program.path)
    if not run.program.is_script or os.path.basename(place) != "shims":
        return []
    name, manager = os.path.basename(run.program.path), os.path.basename(os.path.dirname(place)).lstrip(".")
    return [Hint(f"{run.program.name} is a script that looks for the real program; name that one: $({manager} which {name})", "")]


def _interpreter(run: Run) -> Iterator[Hint]:
    """`#!/usr/bin/env python3`: env is brought along, python3 is not."""
    if not run.program.directives:
        return
    last = run.program.directives[-1]
    if os.path.basename(last.interpreter) != "env":
        return
    command = _env_command(last.argument)
    host = find_on_path(command, run.search) if command else None
    if host and not can_run(run, command):
        yield Hint(f"{command}, which the #! line of {run.program.name} names, is not visible to the program", f"--ro {bundle(host)}")


def _env_command(argument: str) -> str:
    """The command in the argument of `env`, past -S and assignments."""
    words = argument.removeprefix("-S").split()
    return next((word for word in words if "=" not in word and not word.startswith("-")), "")


def _runtime(run: Run) -> Iterator[Hint]:
    """An interpreter whose own library is not there."""
    path = _executable(run)
    name, real = os.path.basename(path), os.path.realpath(path)
    if _PYTHON.fullmatch(name):
        yield from _python_library(run, path, real)
        return
    prefix = os.path.dirname(os.path.dirname(real))
    for pattern, homes in _HOMES:
        if pattern.fullmatch(name) or pattern.fullmatch(os.path.basename(real)):
            for library in (os.path.join(prefix, home) for home in homes):
                if os.path.isdir(library) and run.view.missing(library):
                    yield Hint(f"{name} keeps its own files in {library}, which it cannot see", f"--ro {_prefix_grant(prefix)}")
                    return


def _executable(run: Run) -> str:
    """The host's path of the program that runs, or would have if `env` had found it; "" when there is none."""
    if run.program.directives and os.path.basename(run.program.executes) == "env":
        return find_on_path(_env_command(run.program.directives[-1].argument), run.search) or ""
    return run.program.executes


def _python_library(run: Run, path: str, real: str) -> Iterator[Hint]:
    """A Python without its standard library ends with "Could not find platform independent libraries"."""
    for venv in {os.path.dirname(os.path.dirname(path)), os.path.dirname(path)}:
        if os.path.isfile(os.path.join(venv, "pyvenv.cfg")) and run.view.missing(os.path.join(venv, "pyvenv.cfg")):
            yield Hint(f"{path} belongs to the virtual environment {venv}, which the program cannot see", f"--ro {venv}")
    prefix = os.path.dirname(os.path.dirname(real))
    version = os.path.basename(real)
    for directory in (f"lib/{version}", f"lib64/{version}", "lib/python3"):
        library = os.path.join(prefix, directory)
        if os.path.isdir(library) and run.view.missing(library):
            yield Hint(f"{os.path.basename(path)} cannot see its standard library, {library}", f"--ro {_prefix_grant(prefix)}")
            return
    if not is_inside(prefix, "/usr") and run.view.missing("/usr/lib"):
        yield Hint(f"the modules of {os.path.basename(path)} load libraries of the system, which it cannot see", "--ro /usr")


# --- the words it was given -------------------------------------------------------------------------


def _words(run: Run) -> Iterator[Hint]:
    """Arguments that name something which exists on the host and not inside."""
    for index, word in enumerate(run.args):
        if _URL.search(word) or "\0" in word:
            continue
        value = word.partition("=")[2] if word.startswith("-") else word
        was_path = bool(value) and (yield from path_word(run, value))
        if not was_path and (" " in word or "/" in word):
            yield from _paths_within(run, word)
        if word == "-m" and index + 1 < len(run.args):
            yield from _python_module(run, run.args[index + 1])


def missing_words(run: Run) -> Iterator[Hint]:
    """Words that are the name of a file, and nothing else, which exists on the host and not inside."""
    for word in run.args:
        if word and not word.startswith("-") and "\0" not in word and not _URL.search(word):
            yield from path_word(run, word)


def path_word(run: Run, word: str) -> Generator[Hint, None, bool]:
    """Hints for `word` taken as a path; the value is whether it was one."""
    host = os.path.join(run.host_cwd, word)
    inside = os.path.normpath(os.path.join(run.cwd, word))
    if _exists(host):
        if run.view.missing(inside) is None:
            return True
        path = os.path.normpath(host)
        gone = run.view.missing(path)
        if gone is None:
            yield Hint(f"{word} means {inside} to the program, which runs in {run.cwd}", f"--cwd {run.host_cwd}", inside)
        else:
            yield Hint(f"{word} is not visible to the program", f"--ro {_least(gone)}", gone)
        return True
    parent = os.path.dirname(os.path.normpath(host))
    if "/" in word and " " not in word and parent != "/" and os.path.isdir(parent) and run.view.missing(os.path.dirname(inside)):
        yield Hint(f"{parent}, where {word} would be, is not visible to the program", f"--rw {parent}")
        return True
    return False


def _paths_within(run: Run, text: str) -> Iterator[Hint]:
    """Paths in the middle of a word: of a shell's -c, of --option=PATH, of -I/usr/include."""
    for match in _ABSOLUTE.finditer(text):
        path = os.path.normpath(match[1] or match[2])
        if _exists(path) and (gone := run.view.missing(path)):
            yield Hint(f"{path} is not visible to the program", f"--ro {_least(gone)}")
    if " " not in text:
        return
    for token in dict.fromkeys(_TOKEN.findall(text)):
        if token.startswith(("/", "-", "$")) or not re.search(r"[./]", token) or token in (".", ".."):
            continue
        host = os.path.normpath(os.path.join(run.host_cwd, token))
        if _exists(host) and run.view.missing(os.path.normpath(os.path.join(run.cwd, token))):
            yield Hint(f"{token} is not visible to the program", f"--ro {host}")


def _scripts(run: Run) -> Iterator[Hint]:
    """Paths that a shell script names, when the script itself could be read."""
    if not _SHELLS.fullmatch(os.path.basename(_executable(run))):
        return
    scripts = [run.program.path] if run.program.is_script else []
    scripts += [os.path.join(run.host_cwd, word) for word in run.args if not word.startswith("-")]
    for path in scripts[:_SCRIPTS_READ]:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
            with open(path, "rb") as file:
                lines = os.fsdecode(file.read(_SCRIPT_BYTES)).splitlines()
        except (OSError, ValueError):
            continue
        for line in lines:
            if not line.startswith("#"):
                for match in _ABSOLUTE.finditer(line):
                    named = os.path.normpath(match[1] or match[2])
                    if _exists(named) and (gone := run.view.missing(named)):
                        yield Hint(f"{named}, named in {os.path.basename(path)}, is not visible to the program", f"--ro {_least(gone)}")


def _python_module(run: Run, module: str) -> Iterator[Hint]:
    name = module.partition(".")[0]
    for path in (os.path.join(run.host_cwd, name), os.path.join(run.host_cwd, f"{name}.py")):
        if name and os.path.exists(path) and run.view.missing(path):
            yield Hint(f"the module {name} in {run.host_cwd} is not visible to the program", f"--ro {run.host_cwd}")
            return


def _least(missing: str) -> str:
    """What to grant so that `missing` is there: itself, or for an installed program the tree it is part of."""
    real = os.path.realpath(missing)
    if os.access(real, os.X_OK) and os.path.isfile(real) and os.path.basename(os.path.dirname(real)) in ("bin", "sbin"):
        return bundle(real)
    return missing


# --- what it could not find -------------------------------------------------------------------------


def _commands(run: Run) -> Iterator[Hint]:
    """127 and 126 are how shells, env and their like say that a command was not there."""
    if run.exit_code not in (_COMMAND_NOT_FOUND, _COMMAND_REFUSED):
        return
    is_shell = _SHELLS.fullmatch(os.path.basename(_executable(run)))
    for word in run.args:
        for token in dict.fromkeys(_TOKEN.findall(word)):
            if "/" in token or token.startswith("-") or (is_shell and token in _BUILT_IN):
                continue
            host = find_on_path(token, run.search)
            if host and not can_run(run, token):
                yield Hint(f"the command {token} is not visible to the program", f"--ro {bundle(host)}")
                return
    if _SHELLS.fullmatch(os.path.basename(run.program.executes)) and not any(map(run.view.is_directory, _inside_path(run))):
        yield Hint("no directory of PATH is visible to the program, so it finds no command", "--ro /usr")


def _network(run: Run) -> Iterator[Hint]:
    if not run.network and any(_URL.search(word) for word in run.args):
        yield Hint("the program has no network", "--network host")


def _working_directory(run: Run) -> Iterator[Hint]:
    """Only for programs that are about the directory they start in: for others it would be noise."""
    if run.cwd != run.host_cwd and _DIRECTORY_WORKERS.fullmatch(os.path.basename(run.program.path)) and run.view.missing(run.host_cwd):
        yield Hint(f"the current directory is not visible to the program, which ran in {run.cwd}", f"--rw {run.host_cwd}")


def can_run(run: Run, command: str) -> bool:
    return any(run.view.missing(os.path.join(directory, command)) is None for directory in _inside_path(run))


def _inside_path(run: Run) -> list[str]:
    return [directory for directory in run.environ.get("PATH", "").split(":") if directory.startswith("/")]


# --- the host ---------------------------------------------------------------------------------------


def find_on_path(command: str, search: str) -> str | None:
    """The host's path of `command`, or None."""
    for directory in search.split(":"):
        path = os.path.join(directory, command)
        if directory.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def bundle(path: str) -> str:
    """What to grant so that the executable at `path` works: the prefix it is installed in, else the file alone."""
    real = os.path.realpath(path)
    prefix = _prefix_grant(os.path.dirname(os.path.dirname(real)))
    return prefix if os.path.basename(os.path.dirname(real)) in ("bin", "sbin") and prefix != "/" else path


def _prefix_grant(prefix: str) -> str:
    """/usr for everything below it: what is installed there needs the libraries of the whole tree."""
    return "/usr" if prefix in ("/", "/usr") or is_inside(prefix, "/usr") else prefix


def _exists(path: str) -> bool:
    try:
        return path != "/" and os.path.lexists(path)
    except (OSError, ValueError):
        return False
