"""Sandbox: what a program that nobody trusts gets, and how much of it. Plain data, checked when it is made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from shoal.arguments import Duration, Size, StrOrBytesPath
from shoal.handles.netns import NetNs
from shoal.packing import not_encoded
from shoal.sandbox.seccomp import Seccomp
from shoal.units import parse_duration, parse_size

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Mapping[str, str] = MappingProxyType({"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "TERM": "dumb"})
"""The variables of a program that was given no others."""
TMP_SIZE = "1G"
"""The most that the private /tmp can hold. A bound, not a reservation."""

EACH_PROCESS = "each process"
"""What `Result.enforced` says of a limit that holds for each process, and not for all together."""
PROTECTIONS = (
    "namespaces",
    "tree",
    "network",
    "no_new_privs",
    "capabilities",
    "seccomp",
    "landlock",
    "user",
    "memory",
    "swap",
    "pids",
    "cpus",
    "cpu_time",
    "wall_time",
    "open_files",
    "file_size",
    "io",
    "core_set",
    "nice",
)
"""What `Result.enforced` tells of and `Sandbox.require` may name."""


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What a program gets. Nothing that is not said here: no file, no network, no variable, no privilege.

    Attributes:
        read, write: files and directories of the host, read-only or writable: where they are, or {where inside: what outside}.
        tmp: a private /tmp in memory; a size bounds it. False: none.
        env: added to PATH, HOME, LANG and TERM, which have fixed values; a name given here replaces the fixed one.
        cwd: the working directory, as the program sees it. None: the caller's where the program can see it, else "/".
        network: "none" (a loopback device of its own), "host", or a network made before.
        devices: below the host's /dev, besides null, zero, full, random, urandom, tty; "pts" is a private set of terminals.
        memory, swap: bytes for everything that runs in the sandbox together. swap counts beside memory; 0: none.
        pids: processes and threads together. cpus: processors' worth of time, 1.5 being one and a half.
        io: {"/dev/sda": "10M"}: bytes per second that may be read from, and written to, a block device.
        cpu_time: processor time in all, in seconds. wall_time: time in all; neither raises, `Result.reason` tells.
        open_files, file_size: of each process: descriptors; bytes of any file it writes.
        core_set: the processors it may run on. nice: the nice value, -20 to 19.
        seccomp: "default" closes what programs do not need, "strict" is for pure computation, "off"; or a list of one's own.
        limits: "require": refuse to start where a limit cannot be enforced for the whole tree; "best-effort": enforce for each
            process what can be, and say so in the result.
        require: protections that must be enforced, whatever the machine; else nothing is started.
        user: whom it runs as when the caller is root: "dynamic", an unprivileged user of its own whose files belong to the caller
            outside; or "caller". Without root it is always the caller, and for who is root in a user namespace only.
        linger: what becomes of what the program leaves running: killed at once, waited for, or kept.
        secrets: names of variables whose values are never shown.
    Raises:
        TypeError, ValueError: an attribute has the wrong type, or cannot be meant; says which and what to do.
    """

    read: Sequence[StrOrBytesPath] | Mapping[str, StrOrBytesPath] = ()
    write: Sequence[StrOrBytesPath] | Mapping[str, StrOrBytesPath] = ()
    tmp: bool | Size = True
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    network: Literal["none", "host"] | NetNs = "none"
    devices: Sequence[str] = ()
    memory: Size | None = None
    swap: Size | None = 0
    pids: int | None = None
    cpus: float | None = None
    io: Mapping[str, Size] = field(default_factory=dict)
    cpu_time: Duration | None = None
    wall_time: Duration | None = None
    open_files: int | None = None
    file_size: Size | None = None
    core_set: Sequence[int] = ()
    nice: int | None = None
    seccomp: Literal["default", "strict", "off"] | Seccomp = "default"
    limits: Literal["require", "best-effort"] = "require"
    require: Sequence[str] = ()
    user: Literal["dynamic", "caller"] = "dynamic"
    linger: Literal["kill", "wait", "keep"] = "kill"
    secrets: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_paths("read", self.read)
        _check_paths("write", self.write)
        if not isinstance(self.tmp, bool):
            _size("tmp", self.tmp, at_least=4096)
        _check_variables(self.env)
        if self.cwd is not None and (not isinstance(self.cwd, str) or not self.cwd.startswith("/") or "\0" in self.cwd):
            raise ValueError(f"cwd has to be an absolute path in the program's world, not {self.cwd!r}")
        if not isinstance(self.network, NetNs):
            _choice("network", self.network, ("none", "host"), "or a shoal.NetNs")
        _words("devices", self.devices)
        _words("secrets", self.secrets)
        _words("require", self.require, PROTECTIONS)
        _choice("limits", self.limits, ("require", "best-effort"))
        _choice("user", self.user, ("dynamic", "caller"))
        _choice("linger", self.linger, ("kill", "wait", "keep"))
        if not isinstance(self.seccomp, Seccomp):
            _choice("seccomp", self.seccomp, ("default", "strict", "off"), "or a shoal.Seccomp")
        self._check_limits()

    def _check_limits(self) -> None:
        _optional_size("memory", self.memory, at_least=1 << 20)
        _optional_size("swap", self.swap)
        _optional_size("file_size", self.file_size)
        _optional_number("pids", self.pids, 1, 1 << 22)
        _optional_number("open_files", self.open_files, 3, 1 << 30)
        _optional_number("nice", self.nice, -20, 19)
        if self.cpus is not None and (isinstance(self.cpus, bool) or not isinstance(self.cpus, int | float) or not 0.01 <= self.cpus < 1e5):
            raise ValueError(f"cpus has to be a number of processors from 0.01 on, not {self.cpus!r}")
        for name in ("cpu_time", "wall_time"):
            value = getattr(self, name)
            if value is not None and _duration(name, value) <= 0:
                raise ValueError(f"{name} is 0: a program needs some time; leave it out for no limit")
        if not isinstance(self.io, Mapping):
            raise TypeError('io has to be a mapping of devices to bytes per second, such as {"/dev/sda": "10M"}')
        for device, rate in self.io.items():
            _size(f"io[{device!r}]", rate, at_least=1)
        for number in self.core_set:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 8192:
                raise ValueError(f"core_set: {number!r} is not the number of a processor")

    @classmethod
    def profile(cls, name: str, **changes: Any) -> Sandbox:
        """A profile by name, with `changes`. See `shoal profile list`.

        Raises:
            ValueError: no such profile, or it has a mistake in it; says where.
        """
        from shoal.sandbox.profiles import load

        return dataclasses.replace(load(name), **changes)

    def replace(self, **changes: Any) -> Sandbox:
        """The same with `changes`. Raises TypeError for a name that is no attribute, with the nearest that is."""
        names = [item.name for item in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise TypeError(f"a Sandbox has no {name!r}{nearest(name, names)}")
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        parts = [f"{item.name}={self._shown(item.name)!r}" for item in dataclasses.fields(self) if not _is_default(self, item)]
        return f"Sandbox({', '.join(parts)})"

    def _shown(self, name: str) -> object:
        value = getattr(self, name)
        if name == "env":
            return {key: "***" if key in self.secrets else text for key, text in value.items()}
        return value


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown word."""
    import difflib  # costly, and only for mistakes

    close = difflib.get_close_matches(str(word).lower(), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"


def _is_default(box: Sandbox, item: dataclasses.Field[Any]) -> bool:
    default = item.default_factory() if item.default is dataclasses.MISSING and callable(item.default_factory) else item.default
    return bool(getattr(box, item.name) == default)


def _check_paths(name: str, value: object) -> None:
    if isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f'{name} has to be a list of paths, or a mapping of where inside to what outside; for one path write ["{value!s}"]')
    if isinstance(value, Mapping):
        for inside in value:
            if not isinstance(inside, str) or not inside.startswith("/"):
                raise ValueError(f"{name}: the place inside has to be an absolute path, not {inside!r}")
    if not isinstance(value, Mapping | Sequence):
        raise TypeError(f"{name} has to be a list of paths, or a mapping of where inside to what outside")
    for path in (*value, *value.values()) if isinstance(value, Mapping) else value:
        if not isinstance(path, str | bytes | os.PathLike):
            raise TypeError(f"{name}: {path!r} is not a path")
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError as error:
            raise ValueError(not_encoded(f"{name}: {path!a}", error)) from None
        if not encoded or b"\0" in encoded:
            raise ValueError(f"{name}: {path!r} cannot be a path")


def _check_variables(env: object) -> None:
    if not isinstance(env, Mapping):
        raise TypeError("env has to be a mapping of names to values")
    for key, value in env.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"env: names and values are text, not {key!r}: {value!r}")
        if not key or "=" in key or "\0" in key + value:
            raise ValueError(f"env: {key!r} cannot be the name of a variable, or its value holds a zero byte")


def _choice(name: str, value: object, known: Sequence[str], besides: str = "") -> None:
    if value not in known:
        raise ValueError(f"{name} cannot be {value!r}{nearest(str(value), known)}{' ' + besides if besides else ''}")


def _words(name: str, value: object, known: Sequence[str] = ()) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TypeError(f"{name} has to be a list of names")
    for word in value:
        if not isinstance(word, str):
            raise TypeError(f"{name}: {word!r} is not a name")
        if known and word not in known:
            raise ValueError(f"{name}: nothing is called {word!r}{nearest(word, known)}")


def _size(name: str, value: Size, *, at_least: int = 0) -> int:
    try:
        size = parse_size(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if size < at_least:
        raise ValueError(f"{name}: {value!r} is too little: nothing runs with less than {at_least} bytes")
    return size


def _optional_size(name: str, value: Size | None, *, at_least: int = 0) -> None:
    if value is not None:
        _size(name, value, at_least=at_least)


def _optional_number(name: str, value: int | None, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} has to be a number, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} has to lie between {low} and {high}, not {value}")


def _duration(name: str, value: Duration) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
