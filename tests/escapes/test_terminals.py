"""Terminals: a program that was handed one must not type into it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import struct
import termios
import tty
from pathlib import Path

import pytest
from attempts import AT_FDCWD

TIOCSTI, TIOCLINUX, TIOCSCTTY, TIOCSETD = termios.TIOCSTI, 0x541C, termios.TIOCSCTTY, 0x5423
HIGH = 1 << 32
"""The kernel looks at the low half of a request only."""


@contextlib.contextmanager
def terminal():
    """A terminal without echo and line editing, whose input can be looked at."""
    master, slave = pty.openpty()
    try:
        tty.setraw(slave)
        yield slave
    finally:
        os.close(master)
        os.close(slave)


def typed(slave):
    """What a reader of the terminal would read now."""
    waiting = struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, bytes(4)))[0]
    return os.read(slave, waiting) if waiting else b""


def inject(request):
    return ("ioctl", 0, request, "x")


needs_injection = pytest.mark.skipif(
    Path("/proc/sys/dev/tty/legacy_tiocsti").exists() and Path("/proc/sys/dev/tty/legacy_tiocsti").read_text().strip() == "0",
    reason="needs a kernel that lets keystrokes be injected (dev.tty.legacy_tiocsti)",
)


@needs_injection
def test_a_program_does_not_type_into_the_terminal_it_was_handed(outside, inside):
    with terminal() as slave:
        assert outside.errnos(("setsid",), ("ioctl", 0, TIOCSCTTY, 0), inject(TIOCSTI), stdin=slave) == [0, 0, 0]
        assert typed(slave) == b"x"
    # As it is in life: the terminal belongs to the session of a shell.
    with terminal() as slave, outside.held(verb=("lead", os.ttyname(slave)), expect=2) as shell:
        assert [line[1] for line in shell.lines] == ["ok", "ok"]
        for filtered in ("default", "off"):
            errnos = inside.but(seccomp=filtered).errnos(("ioctl", 0, TIOCSCTTY, 0), inject(TIOCSTI), inject(HIGH | TIOCSTI), stdin=slave)
            assert errnos == [errno.EPERM, errno.EPERM, errno.EPERM]
        assert typed(slave) == b""


@needs_injection
def test_a_program_does_not_type_into_a_terminal_that_it_has_made_its_own(inside):
    """One that is nobody's controlling terminal becomes that of the program: what is typed there may be read by others later."""
    with terminal() as slave:
        steps = (("ioctl", 0, TIOCSCTTY, 0), inject(TIOCSTI), inject(HIGH | TIOCSTI), ("openat", AT_FDCWD, "/dev/tty", os.O_RDWR))
        assert inside.errnos(*steps, stdin=slave) == [0, errno.EPERM, errno.EPERM, 0]
        assert typed(slave) == b""


def test_a_program_does_not_use_the_console_or_load_a_line_discipline(outside, inside):
    discipline = struct.pack("i", 2)  # a mouse
    with terminal() as slave:
        steps = (("ioctl", 0, TIOCLINUX, b"\3"), ("ioctl", 0, HIGH | TIOCLINUX, b"\3"), ("ioctl", 0, TIOCSETD, discipline))
        assert outside.errnos(*steps[:2], stdin=slave) == [errno.ENOTTY, errno.ENOTTY]  # the kernel has looked at it
        assert inside.errnos(*steps, stdin=slave) == [errno.EPERM] * 3


@pytest.mark.cell
def test_a_program_without_a_terminal_finds_none(inside):
    with terminal() as slave:
        assert inside.errnos(("openat", AT_FDCWD, "/dev/tty", os.O_RDWR), ("openat", AT_FDCWD, os.ttyname(slave), os.O_RDWR)) == [
            errno.ENXIO,
            errno.ENOENT,
        ]
