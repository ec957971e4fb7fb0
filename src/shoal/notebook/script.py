"""Script: a cell as a program and what it reads.

For a shell it is an argument, so that what the script starts cannot read the rest of the script. For Python it is a descriptor, and the
source of its tracebacks, which show its lines like those of any file.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field

from shoal.handles.reaper import OwnedFd
from shoal.notebook.options import Ask
from shoal.sandbox.errors import RequestError

NAME = "<cell>"
"""What a cell is called in tracebacks."""
_SOURCE_FD = 3
_LONGEST = (128 << 10) - 1  # MAX_ARG_STRLEN of the kernel, with the zero byte
# Runs before the cell in its interpreter, and is not seen in its tracebacks. It shows no name to the cell.
_BEGIN = f"""\
def begin():
    import linecache, sys, traceback
    with open({_SOURCE_FD}, encoding="utf-8") as file:
        source = file.read()
    linecache.cache[{NAME!r}] = (len(source), None, source.splitlines(True), {NAME!r})
    def hook(kind, error, trace):
        while trace is not None and trace.tb_frame.f_code.co_filename == "<string>":
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace)
    sys.excepthook = hook
    sys.argv[:] = [""]
    return compile(source, {NAME!r}, "exec")
exec(globals().pop("begin")())
"""


@dataclass(frozen=True, slots=True)
class Script:
    """What is started for a cell, or for a line.

    Attributes:
        name: what it is called when something is said of it.
        fds: descriptors it gets, by their number there. source: the one that is open as long as this lives.
        data: what it reads as input; None: nothing.
    """

    name: str
    words: list[str]
    data: bytes | None
    fds: dict[int, int] = field(default_factory=dict)
    source: OwnedFd | None = None

    @classmethod
    def of(cls, ask: Ask, cell: str | None, given: bytes | None) -> Script:
        """
        Args:
            given: what it is to read, as far as that is not the cell.
        Raises:
            RequestError: the cell is too long.
        """
        if ask.words:
            return cls(os.path.basename(ask.words[0]), list(ask.words), given if cell is None else cell.encode())
        text = cell or ""
        if ask.is_python:
            source = _memory_file(text.encode())
            return cls("the cell", [sys.executable, "-u", "-c", _BEGIN], given, {_SOURCE_FD: source.fd}, source)
        if len(text.encode()) > _LONGEST:
            raise RequestError(f"a script of more than {_LONGEST} bytes cannot be handed over as a cell; write a file, and hand that over")
        return cls("the cell", [ask.shell or ("bash" if shutil.which("bash") else "sh"), "-c", text], given)


def _memory_file(data: bytes) -> OwnedFd:
    file = OwnedFd(os.memfd_create("shoal-cell", os.MFD_CLOEXEC))
    with open(file.fd, "wb", closefd=False) as stream:
        stream.write(data)
    os.lseek(file.fd, 0, os.SEEK_SET)
    return file
