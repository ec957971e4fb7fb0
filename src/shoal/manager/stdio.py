"""The standard streams of what a manager starts, as its client gives them."""

from __future__ import annotations

import os
import subprocess
from typing import Any, Final, Literal, NamedTuple

from shoal.actions import HasFileno
from shoal.descriptors import is_for_children

_NAMES: Final = ("stdin", "stdout", "stderr")


class Streams(NamedTuple):
    """What is to be sent, and what it becomes. What is missing is /dev/null there.

    Attributes:
        fds: borrowed. targets: their numbers in the program. kept: the numbers of what is kept in the log.
    """

    fds: list[int]
    targets: list[int]
    kept: list[int]


def streams_of(stdio: tuple[Any, Any, Any], *, left_out: Literal["kept", "own"]) -> Streams:
    """
    Args:
        stdio: stdin, stdout and stderr: descriptors, files, subprocess.DEVNULL, for stderr STDOUT; or None.
        left_out: what None is: "kept" in the log, or our "own".
    Raises:
        TypeError, ValueError: one cannot be meant, or is not open.
    """
    found = Streams([], [], [])
    for number, given in enumerate(stdio):
        if given == subprocess.DEVNULL or (given is None and left_out == "kept" and number == 0):
            continue
        if given is None and left_out == "kept":
            found.kept.append(number)
        elif given == subprocess.STDOUT and number == 2:
            if 1 in found.kept:
                raise ValueError("stderr=STDOUT: the log keeps both apart; leave stderr out, or give stdout a file")
            if 1 in found.targets:
                found.fds.append(found.fds[found.targets.index(1)])
                found.targets.append(2)
        elif given in (subprocess.PIPE, subprocess.STDOUT):
            advice = "; None keeps it in the log" if number and left_out == "kept" else ""
            raise ValueError(f"{_NAMES[number]} cannot be {given}: give a descriptor or a file, such as an end of os.pipe(){advice}")
        elif given is None and not is_for_children(number):
            what = f"descriptor {number} is closed, or close-on-exec, which what a library opens is"
            raise ValueError(f"{_NAMES[number]}: there is none to share: {what}; subprocess.DEVNULL is /dev/null")
        else:
            found.fds.append(open_number(number if given is None else given, _NAMES[number]))
            found.targets.append(number)
    return found


def open_number(given: Any, name: str) -> int:
    """The number of a descriptor or file.

    Raises:
        TypeError: it is neither. ValueError: it is not open: sending it would cost the connection.
    """
    if not isinstance(given, int | HasFileno):
        raise TypeError(f"{name} must be a descriptor or a file, not {type(given).__name__}")
    fd = given if isinstance(given, int) else given.fileno()
    try:
        os.fstat(fd)
    except OSError as error:
        raise ValueError(f"{name}: descriptor {fd} is not open; subprocess.DEVNULL is /dev/null") from error
    return fd
