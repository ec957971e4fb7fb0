"""Terminal: a private terminal for the program, joined to the caller's by copying bytes.

The program never holds a descriptor of the caller's terminal, so it cannot push input into it (TIOCSTI), change its settings,
or go on reading from it after the run. Each of 0, 1, 2 that is a terminal of the caller is the private one in the program.

Two ways to join, because a terminal may be shared with other programs of a pipeline:

* **Whole**: input is a terminal and no output is a pipe. The caller's terminal is made raw; the private one does the editing, the
  echo and the signals. ctrl-C and ctrl-Z reach the program's foreground group as on any terminal.
* **Shared**: `shoal run -- ls | less`. The pager sets the terminal up for itself, so ours must not be touched: it keeps doing editing,
  echo and signals, and the private one is told that this happens elsewhere (EXTPROC). When the program changes its terminal's
  settings (a password prompt, a pager reading keys from /dev/tty), packet mode tells us and the change is mirrored.

Input is only read while it is ours: in the foreground, and, when shared, while nobody else has changed the settings. No event tells when
that begins again, so it is looked at a few times a second, and only while paused.

Source: ioctl_tty(2), termios(3), pty(7).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import struct
import termios
from types import TracebackType
from typing import Any, Self

from shoal.cli.screen import ScreenModes

_TIOCSIG = 0x40045436  # send a signal to the foreground group of a pty, through its master; not in Python's termios
_EXTPROC = 0o200000
_TIOCPKT_IOCTL = 64
_HELD_MAX = 1 << 16
_CHUNK = 1 << 16
_PAUSED_S = 0.25
_MIRRORED = termios.ICANON | termios.ECHO | termios.ISIG
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6


class Terminal:
    """The private terminal and its way to the caller's.

    Enter it before the program starts, call `started()` right after, `serve()` for what poll() reports, `finish()` when the program
    has ended. Leaving it restores the caller's terminal on every path.
    """

    def __init__(self, slots: tuple[int, ...]) -> None:
        self.slots = slots
        """Which of 0, 1, 2 are the private terminal in the program."""
        self.hung_up = False
        """True once the caller's terminal is gone."""
        self.master = self.slave = self._outer = -1
        self._whole = 0 in slots and not any(_is_pipe(fd) for fd in (1, 2))
        self._named = slots[-1] if 0 not in slots else 0
        self._changed = self._reading = self._paused = False
        self._at_end = False
        self._to_program = bytearray()
        self._to_user = bytearray()
        self._screen = ScreenModes()
        self._saved: list[Any] = []
        self._initial: list[Any] = []

    @classmethod
    def needed(cls) -> Terminal | None:
        """A Terminal when one of 0, 1, 2 is a terminal, else None."""
        slots = tuple(fd for fd in (0, 1, 2) if os.isatty(fd))
        return cls(slots) if slots else None

    def __enter__(self) -> Self:
        try:
            self._saved = termios.tcgetattr(self._named)
            self._outer = _own_description(self._named)
            self.master, self.slave = os.openpty()
            os.set_blocking(self.master, False)
            inner = termios.tcgetattr(self._named)
            if not self._whole:
                inner[_LFLAG] |= _EXTPROC
                inner[_OFLAG] &= ~termios.OPOST
            fcntl.ioctl(self.master, termios.TIOCPKT, struct.pack("i", 1))
            termios.tcsetattr(self.slave, termios.TCSANOW, inner)
            self._initial = termios.tcgetattr(self.slave)
            self.resize()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.restore()
        finally:
            self._close()

    def is_callers(self, fd: int) -> bool:
        """True when `fd` is the caller's terminal too, which the program must not be given."""
        try:
            if not os.isatty(fd):
                return False
            device = os.fstat(fd).st_rdev
            return device == os.fstat(self._named).st_rdev or device == os.makedev(5, 0)
        except OSError:
            return False

    # --- the caller's side --------------------------------------------------------------------------

    def claim(self) -> None:
        """Take the caller's terminal as far as this run may: at the start, when continued, when it may be ours again."""
        self._paused = False
        if self.hung_up:
            self._reading = False
        elif not self._in_foreground():
            self._reading, self._paused = False, True
        elif self._whole:
            self._set(_raw(self._saved))
            self._reading = True
        else:
            self._mirror()

    def restore(self) -> None:
        """Put the caller's terminal back as it was found. In the background it is somebody else's and left alone."""
        if self._changed and not self.hung_up and self._in_foreground():
            self._set(self._saved)
        self._changed = False

    def resize(self) -> None:
        """Give the private terminal the caller's size; the program's foreground group gets SIGWINCH when it changed."""
        try:
            size = fcntl.ioctl(self._outer, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)
        except OSError:
            pass

    def send_signal(self, number: int) -> bool:
        """SIGINT or SIGQUIT to the foreground group of the private terminal, as a key would. False when that cannot be done."""
        try:
            fcntl.ioctl(self.master, _TIOCSIG, number)
        except OSError:
            return False
        return True

    # --- copying ------------------------------------------------------------------------------------

    @property
    def pause_s(self) -> float | None:
        """How long poll() may sleep before `claim()` is to be called again; None when it need not."""
        return _PAUSED_S if self._paused else None

    def interest(self) -> dict[int, int]:
        """What to poll for."""
        wanted: dict[int, int] = {}
        events = select.POLLIN if len(self._to_user) < _HELD_MAX and not self._at_end else 0
        if events | (select.POLLOUT if self._to_program else 0):
            wanted[self.master] = events | (select.POLLOUT if self._to_program else 0)
        events = select.POLLIN if self._reading and len(self._to_program) < _HELD_MAX else 0
        if events | (select.POLLOUT if self._to_user else 0):
            wanted[self._outer] = events | (select.POLLOUT if self._to_user else 0)
        return wanted

    def serve(self, ready: dict[int, int]) -> None:
        """Carry on with what poll() reported."""
        events = ready.get(self._outer, 0)
        if self._reading and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._read_user(events)
        if ready.get(self.master, 0) & (select.POLLIN | select.POLLHUP):
            self._read_program()
        self._flush()

    @property
    def is_drained(self) -> bool:
        """True when all the program wrote has reached the caller's terminal. Only after `finish()`."""
        return self._at_end and not self._to_user

    def finish(self) -> None:
        """The program has ended: read no more input; the end of its output shows when the last holder of the terminal is gone."""
        self._reading = self._paused = False
        self._to_program.clear()
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def read_rest(self) -> None:
        """Take what is left without waiting, and call it the end: nobody inside the cell can write any more."""
        while not self._at_end and self._read_program():
            pass
        self._at_end = True
        self._flush()

    def catch_up(self) -> None:
        """Show what the program has written so far, as far as that goes without waiting."""
        while len(self._to_user) < _HELD_MAX and self._read_program():
            self._flush()

    def undo_modes(self) -> None:
        """The program was killed: leave the alternate screen, show the cursor, and so on, where it had changed them."""
        self._to_user += self._screen.undo()
        self._flush()

    def _read_user(self, events: int) -> None:
        if not self._may_read():
            self._reading, self._paused = False, True
            return
        try:
            data = os.read(self._outer, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data, events = b"", select.POLLHUP
        if data:
            self._to_program += data
        elif events & (select.POLLHUP | select.POLLERR) or self._whole:
            self.hung_up, self._reading = True, False
        else:
            self._to_program += self._initial[_CC][termios.VEOF]  # ctrl-D at the start of a line

    def _read_program(self) -> bool:
        """One piece of output. False when there is none now, or none any more."""
        try:
            data = os.read(self.master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._at_end = self.slave < 0
            return False
        if data[0]:  # packet mode: 0 before data, else a set of TIOCPKT_* bits and nothing more
            if data[0] & _TIOCPKT_IOCTL and not self._whole and self._in_foreground():
                self._mirror()
            return True
        if not self.hung_up:
            self._to_user += memoryview(data)[1:]
            self._screen.feed(memoryview(data)[1:])
        return True

    def _flush(self) -> None:
        try:
            if self._to_user:
                size = _CHUNK if self._outer != self._named else 512  # what a blocking terminal takes without making us wait
                del self._to_user[: os.write(self._outer, memoryview(self._to_user)[:size].tobytes())]
        except BlockingIOError:
            pass
        except OSError:
            self.hung_up = True
            self._to_user.clear()
        try:
            if self._to_program:
                del self._to_program[: os.write(self.master, bytes(self._to_program))]
        except BlockingIOError:
            pass
        except OSError:
            self._to_program.clear()

    # --- settings -----------------------------------------------------------------------------------

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._outer) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal: there is no job control to respect

    def _may_read(self) -> bool:
        if not self._in_foreground():
            return False
        if self._whole or self._changed:
            return True
        try:
            return not (termios.tcgetattr(self._outer)[_LFLAG] ^ self._saved[_LFLAG]) & _MIRRORED
        except termios.error:
            return True

    def _mirror(self) -> None:
        """Make the caller's terminal as the program made its own, or leave it alone when it did nothing to it."""
        inner = termios.tcgetattr(self.master)
        altered = bool((inner[_LFLAG] ^ self._initial[_LFLAG]) & _MIRRORED)
        if altered:
            wanted = [*inner[:_CC], list(inner[_CC])]
            wanted[_LFLAG] &= ~_EXTPROC
            if inner[_LFLAG] & termios.ICANON:
                wanted[_IFLAG], wanted[_OFLAG] = self._saved[_IFLAG], self._saved[_OFLAG]
            self._set(wanted)
        elif self._changed:
            self._set(self._saved)
            self._changed = False
        self._reading = altered or 0 in self.slots

    def _set(self, attributes: list[Any]) -> None:
        """Change the caller's terminal. SIGTTOU is held off: losing the foreground just now must not stop us half-way."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            # At once: output was processed when it was written, and to drain it would hang on a terminal that nobody reads.
            termios.tcsetattr(self._outer, termios.TCSANOW, attributes)
            self._changed = True
        except termios.error:
            self.hung_up = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _close(self) -> None:
        for fd in {self.master, self.slave, self._outer if self._outer != self._named else -1} - {-1}:
            os.close(fd)
        self.master = self.slave = self._outer = -1


def _raw(attributes: list[Any]) -> list[Any]:
    """cfmakeraw(3)."""
    raw = [*attributes[:_CC], list(attributes[_CC])]
    raw[_IFLAG] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
    )
    raw[_OFLAG] &= ~termios.OPOST
    raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[_CFLAG] = raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[_CC][termios.VMIN], raw[_CC][termios.VTIME] = 1, 0
    return raw


def _is_pipe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _own_description(fd: int) -> int:
    """The terminal behind `fd`, opened anew so that O_NONBLOCK is ours alone and not the shell's as well; `fd` where that is refused."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return fd
