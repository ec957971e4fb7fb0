"""Profiles: Sandboxes with a name, in TOML files.

A file has the attributes of Sandbox, with the same names and meanings, and `inherits = "NAME"`: what the file says wins over what it
inherits; lists of files, devices, secrets and requirements, and tables, add to it. The user's own are in
$XDG_CONFIG_HOME/shoal/profiles, and win over those that come with shoal; one that inherits its own name builds upon the one it
replaces. A relative path means what it means in a Sandbox: it is looked up in the working directory of the caller.

Those that come with shoal must work on every machine, so what they hand over is left out where it is not there, and "{prefix}" in
their lists is where the program is installed, if it is an interpreter that needs its own files.

Every mistake is an error. A limit that was misspelt, or slipped into the table above it, is a limit that is not there.
Reads files, and nothing else. tomllib is loaded when a profile is.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from shoal import xdg
from shoal.sandbox.box import Sandbox, nearest
from shoal.sandbox.errors import SHOAL_FAILED, RequestError
from shoal.sandbox.grants import is_inside
from shoal.sandbox.seccomp import Seccomp

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "profiles")
"""Those that come with shoal."""
LARGEST = 1 << 20
"""What is longer is no profile."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
_WHERE = re.compile(r" \(at line (\d+), column \d+\)$")
_PREFIX = "{prefix}"

_PATHS = ((list, dict), "a list of paths, or a table of where inside = what outside")
_TEXT = ((str,), "text")
_NAMES = ((list,), "a list of names")
_NUMBER = ((int,), "a whole number")
_SIZE = ((int, str), 'a number of bytes, or text such as "512M"')
_TIME = ((int, float, str), 'a number of seconds, or text such as "30s"')

FORMS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "inherits": ((str,), "the name of a profile"),
    "read": _PATHS,
    "write": _PATHS,
    "tmp": ((bool, int, str), 'true, false, or a size such as "64M"'),
    "env": ((dict,), "a table of variables"),
    "cwd": _TEXT,
    "network": ((str,), '"none" or "host"'),
    "devices": _NAMES,
    "memory": _SIZE,
    "swap": _SIZE,
    "pids": _NUMBER,
    "cpus": ((int, float), "a number of processors"),
    "io": ((dict,), 'a table of devices, such as "/dev/sda" = "10M"'),
    "cpu_time": _TIME,
    "wall_time": _TIME,
    "open_files": _NUMBER,
    "file_size": _SIZE,
    "core_set": ((list,), "a list of numbers of processors"),
    "nice": _NUMBER,
    "seccomp": ((str, dict), '"default", "strict", "off", or a table of deny, allow, base, on_denied'),
    "limits": _TEXT,
    "require": _NAMES,
    "user": _TEXT,
    "linger": _TEXT,
    "secrets": _NAMES,
}
"""What a profile may say, and what the value has to be in TOML."""

_ADD = ("devices", "require", "secrets")
_ADD_TABLES = ("env", "io")


class ProfileError(RequestError):
    """A profile has a mistake in it, or there is none of that name.

    Attributes:
        path: the file, "" where there is none. line: where in it, None where that is not known. key: what is wrong there, or "".
    """

    def __init__(self, what: str, path: str = "", line: int | None = None, key: str = "") -> None:
        place = f"{path}:{line}: " if line is not None else f"{path}: " if path else ""
        super().__init__(place + what, SHOAL_FAILED)
        self.path, self.line, self.key = path, line, key


# --- which there are --------------------------------------------------------------------------------


def user_folder() -> str:
    """Where the user's own are: $XDG_CONFIG_HOME/shoal/profiles."""
    config = xdg.directory("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(config, "shoal", "profiles")


def names() -> list[str]:
    """All profiles, in the order of the alphabet."""
    found: set[str] = set()
    for folder in (user_folder(), SHIPPED):
        try:
            listed = os.listdir(folder)
        except OSError:
            continue
        found.update(name[:-5] for name in listed if name.endswith(".toml") and _NAME.fullmatch(name[:-5]))
    return sorted(found)


def path_of(name: str) -> str:
    """The file of a profile.

    Raises:
        ProfileError: there is none of that name, or it cannot be a name.
    """
    if not _NAME.fullmatch(name):
        raise ProfileError(f"{name!r} cannot be the name of a profile: letters, digits, and _ . @ + - after the first")
    for folder in (user_folder(), SHIPPED):
        path = os.path.join(folder, f"{name}.toml")
        if os.path.exists(path):
            return path
    raise ProfileError(f"there is no profile {name!r}{nearest(name, names())}")


def is_shipped(path: str) -> bool:
    """Whether a file is one of those that come with shoal."""
    return os.path.dirname(os.path.abspath(path)) == SHIPPED


# --- what they say ----------------------------------------------------------------------------------


def load(name: str, program: str | None = None) -> Sandbox:
    """The Sandbox that a profile is.

    Args:
        program: the path of what will run in it, for "{prefix}"; "": nothing in particular; None: this Python.
    Raises:
        ProfileError: there is no such profile, or it has a mistake in it: the first one.
    """
    return load_file(path_of(name), program)


def load_file(path: str, program: str | None = None) -> Sandbox:
    """The same for a file, wherever it is."""
    return Sandbox(**_whole(path, sys.executable if program is None else program, ()))


def mistakes_in(path: str) -> list[ProfileError]:
    """All that is wrong with a file; with what it inherits only when it is right itself."""
    found = _read(path)
    if found.mistakes:
        return found.mistakes
    try:
        _whole(path, "", ())
    except ProfileError as error:
        return [error]
    return []


class _Found(NamedTuple):
    values: dict[str, Any]
    lines: dict[str, int | None]
    mistakes: list[ProfileError]


def _whole(path: str, program: str, below: tuple[str, ...]) -> dict[str, Any]:
    """What a file says, and what it inherits.

    Args:
        below: the files that inherit this one.
    """
    found = _read(path)
    if found.mistakes:
        raise found.mistakes[0]
    values = found.values
    parent = values.pop("inherits", None)
    if is_shipped(path):
        values = _as_possible(values, program)
    if parent is None:
        return values
    line = found.lines.get("inherits")
    try:
        above = _inherited(path, parent)
    except ProfileError as error:
        raise ProfileError(f"inherits: {error.message}", path, line, "inherits") from None
    if above in (path, *below):
        circle = " -> ".join([*(os.path.basename(file)[:-5] for file in (*below, path)), parent])
        raise ProfileError(f"inherits itself: {circle}", path, line, "inherits")
    return merged(_whole(above, program, (*below, path)), values)


def _inherited(path: str, parent: str) -> str:
    shipped = os.path.join(SHIPPED, f"{parent}.toml")
    own = os.path.join(user_folder(), f"{parent}.toml")
    return shipped if os.path.abspath(path) == own and os.path.exists(shipped) else path_of(parent)


def merged(inherited: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` on top of what is inherited: attributes of a Sandbox."""
    result = {**inherited, **values}
    for key in (*_ADD_TABLES, *_ADD):
        if key in inherited and key in values:
            both = inherited[key], values[key]
            result[key] = {**both[0], **both[1]} if key in _ADD_TABLES else list(dict.fromkeys((*both[0], *both[1])))
    # What is handed over for writing by one and for reading by the other, at the same place, is as the upper one says.
    taken = {place for key in ("read", "write") for place in _places(values.get(key, ()))}
    for key in ("read", "write"):
        if inherited.get(key):
            result[key] = _joined(inherited[key], values.get(key, ()), taken)
    return result


def _joined(inherited: Any, values: Any, taken: set[str]) -> Any:
    if isinstance(inherited, Mapping) or isinstance(values, Mapping):
        return {place: path for place, path in _places(inherited).items() if place not in taken} | _places(values)
    return [path for path in inherited if not taken.intersection(_places([path]))] + list(values)


def _places(what: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Where things appear inside, and what they are. A list has them where they are, and where symbolic links lead from there."""
    if isinstance(what, Mapping):
        return dict(what)
    places: dict[str, str] = {}
    for path in what:
        named = os.path.abspath(path)
        places |= {named: path, os.path.realpath(named): path}
    return places


def _as_possible(values: dict[str, Any], program: str) -> dict[str, Any]:
    """A profile that comes with shoal, for this machine and this program."""
    read: list[str] = []
    for path in values.get("read", ()):
        read += [path] if path != _PREFIX else [prefix for prefix in prefixes(program) if not _among(prefix, read)]
    return values | ({"read": [path for path in read if os.path.exists(path)]} if read else {})


def _among(path: str, directories: Sequence[str]) -> bool:
    return any(path == directory or is_inside(path, directory) for directory in directories)


def prefixes(program: str) -> list[str]:
    """The directories that the interpreter at `program` has its own files in: those of a virtual environment, and those of its Python.

    Only on evidence: what lies above the program may be anything, such as the user's home.
    """
    if not program:
        return []
    real = os.path.realpath(program)
    found = []
    for path in dict.fromkeys((os.path.abspath(program), real)):
        prefix = os.path.dirname(os.path.dirname(path))
        signs = ["pyvenv.cfg"]
        if path == real:
            signs += [f"lib/{os.path.basename(real)}/os.py", "include/node/node.h", "lib/node_modules/npm/package.json"]
        if os.path.basename(os.path.dirname(path)) == "bin" and any(os.path.exists(os.path.join(prefix, sign)) for sign in signs):
            found.append(prefix)
    return found


# --- one file ---------------------------------------------------------------------------------------


def _read(path: str) -> _Found:
    import tomllib

    found = _Found({}, {}, [])
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ProfileError(f"is longer than {LARGEST} bytes, so it is no profile", path)
        text = data.decode()
        values = tomllib.loads(text)
    except OSError as error:
        found.mistakes.append(ProfileError(error.strerror or str(error), path))
        return found
    except ProfileError as error:
        found.mistakes.append(error)
        return found
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        found.mistakes.append(ProfileError("is not UTF-8", path, line))
        return found
    except tomllib.TOMLDecodeError as error:
        place = _WHERE.search(str(error))
        what = str(error)[: place.start()] if place else str(error)
        found.mistakes.append(ProfileError(what, path, int(place[1]) if place else None))
        return found
    except RecursionError:
        found.mistakes.append(ProfileError("is nested too deeply", path))
        return found
    for key, value in values.items():
        found.lines[key] = _line_of(text, key)
        wrong = [*_wrong(key, value)]
        for inner, what in wrong:
            found.mistakes.append(ProfileError(what, path, _line_of(text, inner, key) if inner else found.lines[key], key))
        if not wrong:
            found.values[key] = Seccomp(**value) if key == "seccomp" and isinstance(value, dict) else value
    return found


def _wrong(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with one value: the key below it where there is one, and the message."""
    if key not in FORMS:
        yield "", f"{key} is nothing that a profile can say{nearest(key, list(FORMS))}"
        return
    forms, meaning = FORMS[key]
    if type(value) not in forms:
        yield "", f"{key} has to be {meaning}; this is {_kind(value)}"
        return
    misplaced = False
    if key in ("env", "io", "read", "write") and isinstance(value, dict):
        for inner, item in value.items():
            if inner in FORMS:
                # TOML has no end of a table: what stands below [env] is a variable, and a limit there would be none.
                yield inner, f"{inner} stands in the table {key}; put it above [{key}]"
                misplaced = True
            elif key == "env" and not isinstance(item, str):
                yield inner, f"env.{inner} has to be text; this is {_kind(item)}"  # never its value: it may be a secret
                misplaced = True
    if misplaced or key == "inherits":
        return
    try:
        if key == "seccomp" and isinstance(value, dict):
            known = [item.name for item in dataclasses.fields(Seccomp)]
            for inner in value:
                if inner not in known:
                    yield inner, f"seccomp.{inner} is nothing that a filter has{nearest(inner, known)}"
                    return
            Seccomp(**value)
        else:
            Sandbox(**{key: value})
    except (TypeError, ValueError, OSError) as error:
        what = getattr(error, "detail", None) or str(error)
        yield "", what if what.startswith(key) else f"{key}: {what}"


def _kind(value: Any) -> str:
    words = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return words.get(type(value), "a date or time")


def _line_of(text: str, key: str, table: str = "") -> int | None:
    """The line that gives `key` its value, where there is exactly one such: tomllib tells lines of what is no TOML only."""
    word = re.escape(key)
    here, found = "", []
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*[\"']?([^\]\"']+?)[\"']?\s*\]", line):
            here = header[1]
            if here == key and not table:
                found.append(number)
        elif here == table and re.match(rf"\s*[\"']?{word}[\"']?\s*[=.]", line):
            found.append(number)
    return found[0] if len(found) == 1 else None
