"""Pump: feeds the stdin of a program and captures its output, in one thread, with one poll loop.

A run ends when its program ends, not when a pipe happens to close: a grandchild may hold the pipes for ever. So the loop waits
for the program's pidfd beside the pipes, and what it reads after the end is what was in the pipes at that moment, a number the
kernel tells. A grandchild that writes faster than we read cannot hold us.

Choices, with what was measured (2 cores, Linux 6.18, a child that writes 64 KiB at a time):

* Reading is readv(2) into one buffer that is used again and again, for what is kept, drained and spilled alike. splice(2) to
  /dev/null takes 0.18-0.21 s of processor time per GiB where the copy takes 0.18-0.24, and 0.05-0.06 where it takes 0.07 (both on
  one core); from the pipe to a file it is slower, since it goes page by page: 0.4-0.7 GB/s where read and write do 1-1.6.
* A pipe grows from 64 to 256 KiB once a mebibyte has come through it: 1.1 GB/s becomes 4. Not to more, and not at once: an
  ordinary user has 64 MiB of pipe in all, and whoever makes a pipe after that gets one of 8 KiB.
* What is kept grows in one piece, so a child that writes byte by byte costs bytes, not objects.
* stdin is a pipe, as with every other launcher. A sealed memfd with the data in it would need no feeding, but takes a second copy
  of the data (100 MB: 55 ms, by pipe 31 ms; 100 bytes: 14 us, by pipe 7 us), and a program that asks whether its stdin is a pipe, or
  puts it into epoll, sees a file: asyncio refuses it. A socket, which could be written without SIGPIPE, cannot be opened
  as /dev/stdin.
* Who waits in an event loop waits for one descriptor, that of an epoll set with the same pipes in it, and takes a turn when it is
  readable (`turn()`). A thread that has nothing else to do polls: a set costs four system calls to make.
* SIGPIPE and EPIPE cannot happen, whatever the host program does with that signal: we keep a reading end of the pipe open as
  long as we write. A program that does not read leaves the pipe full, and the loop goes on without it until the program ends.

Touches: pipes it makes itself, and files in the spill directory.
Source: pipe(7), poll(2), pidfd_open(2), fcntl(2) F_SETPIPE_SZ; Python's subprocess for what its users expect.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import select
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from shoal.handles.deadline import Deadline
from shoal.sandbox.errors import RequestError
from shoal.sandbox.result import OutputFacts
from shoal.status import Stage, Status, failure, failure_from_errno

Policy = Literal["drain", "kill", "spill"]
"""What becomes of output beyond the limit: read and counted; the run stops; or the whole stream goes to a file."""

Heard = Callable[[str, memoryview], None]
"""Takes a piece of output, which is gone when it returns, and the name of the stream, "stdout" or "stderr"."""

_POLICIES: Final = ("drain", "kill", "spill")
_PIPE_BYTES: Final = 64 << 10
_GROWN_PIPE_BYTES: Final = 256 << 10
_GROW_AFTER_BYTES: Final = 1 << 20
_WRITE_BYTES: Final = 1 << 20


class Why(enum.Enum):
    """Why `Pump.run()` returned."""

    ENDED = "ended"
    """The program has ended and what it wrote has been read; without a program to wait for: its pipes are closed."""
    DEADLINE = "deadline"
    LIMIT = "limit"
    """The policy is "kill", and a stream is longer than its limit."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One stream: what was kept of it, and what became of the rest."""

    data: bytes = field(repr=False)
    facts: OutputFacts


class _Directory(NamedTuple):
    fd: int
    path: str


class _SpillFile:
    """A file that takes one whole stream. Writing never raises: a disk that is full ends the file, not the run.

    It has a name from the beginning, so that it can be looked at while it grows, and needs no /proc to get one.
    """

    __slots__ = ("_directory", "_fd", "_name", "_room", "error", "size_bytes")

    def __init__(self, directory: _Directory, stream: str, limit_bytes: int | None) -> None:
        self._directory = directory
        self._name: str | None = f"shoal-{stream}-{os.urandom(8).hex()}"
        self._room = limit_bytes
        self._fd = -1
        self.size_bytes = 0
        self.error: str | None = None
        try:
            how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._name, how, 0o600, dir_fd=directory.fd)
        except OSError as error:
            self._name, self.error = None, os.strerror(error.errno or 0)

    @property
    def path(self) -> str | None:
        return None if self._name is None else os.path.join(self._directory.path, self._name)

    def write(self, data: bytearray | memoryview) -> None:
        """Append. After an error nothing is written any more: what the file has is the beginning, without holes."""
        if self.error is not None:
            return
        with memoryview(data) as view:
            wanted = len(view) if self._room is None else min(len(view), self._room)
            done = 0
            try:
                while done < wanted:
                    done += os.write(self._fd, view[done : min(wanted, done + _WRITE_BYTES)])
            except OSError as error:
                self.error = os.strerror(error.errno or 0)
            self.size_bytes += done
            if self._room is not None:
                self._room -= done
                if wanted < len(view) and self.error is None:
                    self.error = "the file has reached its limit"
        if self.error is not None:
            self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # Some file systems tell only now that the disk is full, and which bytes are missing they do not tell.
            try:
                os.close(fd)
            except OSError as error:
                self.error = self.error or os.strerror(error.errno or 0)

    def remove(self) -> None:
        self.close()
        name, self._name = self._name, None
        if name is not None:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._directory.fd)


class _Stream:
    """One output stream: what is kept of it, and how much there was."""

    __slots__ = ("_kept", "_limit", "_spill_limit", "_spill_to", "fd", "grown", "name", "spill", "total_bytes")

    def __init__(self, name: str, fd: int, limit_bytes: int | None, spill_to: _Directory | None, spill_limit_bytes: int | None) -> None:
        self.name = name
        self.fd = fd
        self.grown = False
        self.total_bytes = 0
        self.spill: _SpillFile | None = None
        self._kept = bytearray()
        self._limit = sys.maxsize if limit_bytes is None else limit_bytes
        self._spill_to = spill_to
        self._spill_limit = spill_limit_bytes

    @property
    def is_over(self) -> bool:
        return self.total_bytes > self._limit

    def add(self, piece: memoryview) -> None:
        self.total_bytes += len(piece)
        if self.total_bytes <= self._limit:
            self._kept += piece
            return
        room = self._limit - len(self._kept)
        if self._spill_to is not None:
            if self.spill is None:
                self.spill = _SpillFile(self._spill_to, self.name, self._spill_limit)
                self.spill.write(self._kept)
            self.spill.write(piece)
        if room:
            self._kept += piece[:room]

    def captured(self) -> Captured:
        """What there is. Gives up the buffer, so that no more than one copy is alive."""
        kept, self._kept = bytes(self._kept), bytearray()
        spill = self.spill
        if spill is None:
            return Captured(kept, OutputFacts(self.total_bytes, len(kept)))
        spill.close()
        return Captured(kept, OutputFacts(self.total_bytes, len(kept), spill.path, spill.size_bytes, spill.error))


class Pump:
    """The pipes of one program, from before its start until after its end. To be used in a `with` block, by one thread.

    Made, it has its pipes, and in `ends` the program's side of them; what of `data` fits into a pipe is there already. The caller
    starts the program with `ends`, calls `run()` as often as needed, ends what is to be ended, and calls `finish()`.

    Args:
        data: what the program reads on stdin, before the end of file; b"" is an end of file at once, None no stdin.
        stdout, stderr: whether to capture it. A program whose stderr goes where its stdout goes has one stream, "stdout".
        limit_bytes: how much of each stream is kept in memory; None is all of it.
        policy: what becomes of output beyond `limit_bytes`.
        spill_directory: where "spill" makes its files, mode 0600; None is $TMPDIR, or /tmp. Nothing is made there unless needed.
        spill_limit_bytes: how long each file may become; None is as long as the disk allows. The rest is read and counted.
        in_loop: there is a descriptor to wait for, `fileno()`, for who takes turns instead of calling `run()`.
        heard: told of every piece as it comes, by the name of its stream, before and beyond any limit. What it raises ends the run.
    Raises:
        RequestError: no such policy, or a limit below 0.
        SpawnError: the spill directory is not there (NotFoundError), is no directory (NotDirError), or may not be written to
            (AccessDeniedError); or no descriptor is left (NoResourcesError).
        TypeError: `data` is no bytes.
    Ownership: every descriptor is the pump's, those in `ends` too: lend them to the program (`CloneFd`). They are closed by the first
        `run()`. Files that `finish()` has told of are the caller's; others are removed by `close()`.
    """

    def __init__(
        self,
        *,
        data: bytes | bytearray | memoryview | None = None,
        stdout: bool = False,
        stderr: bool = False,
        limit_bytes: int | None = None,
        policy: Policy = "drain",
        spill_directory: str | os.PathLike[str] | None = None,
        spill_limit_bytes: int | None = None,
        in_loop: bool = False,
        heard: Heard | None = None,
    ) -> None:
        if policy not in _POLICIES:
            raise RequestError(f"{policy!r} is not something to do with too much output; it is one of {', '.join(_POLICIES)}")
        if min(limit_bytes or 0, spill_limit_bytes or 0) < 0:
            raise RequestError("a limit of output cannot be negative")
        self._data = memoryview(b"" if data is None else data).cast("B")
        self._sent = 0
        self._buffer = memoryview(bytearray(_PIPE_BYTES if stdout or stderr else 0))
        self._stops = policy == "kill"
        self._heard = heard
        self._spill_to: _Directory | None = None
        self._writer = -1
        self._poller: select.poll | _Set = _Set() if in_loop and (data is not None or stdout or stderr) else select.poll()
        self._streams: list[_Stream] = []
        self._ends: dict[int, int] = {}
        self._captured: dict[str, Captured] | None = None
        try:
            if policy == "spill":
                self._spill_to = _open_directory(spill_directory)
            if data is not None:
                self._ends[0], self._writer = open_pipe()
                self._poller.register(self._writer, select.POLLOUT)
                if len(self._data) > _PIPE_BYTES:
                    grow(self._writer)
                os.set_blocking(self._writer, False)
                self._feed()
            for target, name, wanted in ((1, "stdout", stdout), (2, "stderr", stderr)):
                if wanted:
                    fd, self._ends[target] = open_pipe()
                    self._streams.append(_Stream(name, fd, limit_bytes, self._spill_to, spill_limit_bytes))
                    self._poller.register(fd, select.POLLIN)
                    os.set_blocking(fd, False)  # our end only: the two ends of a pipe are different open files
        except BaseException:
            self.close()
            raise

    @property
    def ends(self) -> Mapping[int, int]:
        """The program's side: its descriptor number, and the descriptor to lend it. For its start; `run()` closes them."""
        return self._ends

    @property
    def is_over(self) -> bool:
        """Is a stream longer than its limit, so far?"""
        return any(stream.is_over for stream in self._streams)

    def run(self, until: int | None, deadline: Deadline) -> Why:
        """Move bytes until something happens that the caller has to know.

        May be called again after any answer, with another deadline or another end to wait for. An exception, such as a
        KeyboardInterrupt, may lose bytes that were on their way.

        Args:
            until: the pidfd of the program. When it becomes readable, what is in the pipes at that moment is read, without waiting.
                None: until both output streams have been closed by everybody; at once when none is captured.
        Returns:
            LIMIT before ENDED before DEADLINE: a program that ends right after it has written too much has written too much.
        Raises:
            BadHandleError: `until` is not open.
        """
        with self.watching(until):
            while (why := self.turn(until, deadline.remaining_ms())) is None:
                pass
            return why

    @contextmanager
    def watching(self, until: int | None) -> Iterator[None]:
        """`until` is watched beside the pipes; turns are taken in here."""
        self._let_go_of_ends()
        if until is not None:
            self._poller.register(until, select.POLLIN)
        try:
            yield
        finally:
            if until is not None:
                self._poller.unregister(until)

    def turn(self, until: int | None, remaining_ms: int | None = 0) -> Why | None:
        """Wait until something is ready, and move what is: at most one read and one write for each pipe. None: go on.

        Args:
            remaining_ms: until the deadline; None: there is none. 0: what is ready now; answers DEADLINE where `run()` would.
        """
        ended = until is None and not any(stream.fd >= 0 for stream in self._streams)
        if not ended:
            ended = self._move(until, remaining_ms)
        if ended:
            # poll(2) looks at one descriptor after another: it may have found a pipe empty just before the last write.
            self._read_present()
        if self._stops and self.is_over:
            return Why.LIMIT
        if ended:
            return Why.ENDED
        return Why.DEADLINE if remaining_ms == 0 else None

    def fileno(self) -> int:
        """With `in_loop`: readable when a turn can be taken. -1: there is no pipe, so that turns are for nothing."""
        return self._poller.fileno() if isinstance(self._poller, _Set) else -1

    def finish(self) -> Mapping[str, Captured]:
        """Read what is in the pipes now, without waiting, close them, and give what was captured, by "stdout" and "stderr".

        Call it when whatever may still write has been ended, or is to be ignored: it then gets a SIGPIPE. The answer stays the
        same when it is called again.

        Ownership: the files that the answer names are the caller's.
        """
        if self._captured is None:
            self._let_go_of_ends()
            self._read_present()
            captured = {stream.name: stream.captured() for stream in self._streams}
            for stream in self._streams:
                stream.spill = None
            self._captured = captured
            self.close()
        return self._captured

    def close(self) -> None:
        """Close every descriptor and remove the files that `finish()` has not handed over. Closing twice is fine."""
        while self._ends:
            _close(self._ends.popitem()[1])
        self._stop_feeding()
        for stream in self._streams:
            self._stop_reading(stream)
            spill, stream.spill = stream.spill, None
            if spill is not None:
                spill.remove()
        directory, self._spill_to = self._spill_to, None
        if directory is not None:
            _close(directory.fd)
        if isinstance(self._poller, _Set):
            self._poller.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _let_go_of_ends(self) -> None:
        """The program has its own by now. As long as we held a writing end, the pipe would not end."""
        for target in (1, 2):
            if target in self._ends:
                _close(self._ends.pop(target))
        self._let_go_of_reader()

    def _let_go_of_reader(self) -> None:
        """Only once nothing is left to be written: as long as a reader exists, a write raises no SIGPIPE."""
        if self._writer < 0 and 0 in self._ends:
            _close(self._ends.pop(0))

    def _move(self, until: int | None, timeout_ms: int | None) -> bool:
        """One turn of the loop; each ready pipe gets one read or one write. True when `until` has come."""
        ended = False
        # Python retries what a signal interrupts, and lets an exception of the signal's handler out.
        for fd, events in self._poller.poll(timeout_ms):
            if events & select.POLLNVAL:
                raise failure(Status.BAD_HANDLE, Stage.DESCRIPTORS, f"descriptor {fd} was closed while it was being watched")
            if fd == until:
                ended = True
            elif fd == self._writer:
                self._feed()
                if self._writer < 0:
                    self._let_go_of_reader()
            else:
                for stream in self._streams:
                    if stream.fd == fd:
                        self._read(stream, len(self._buffer))
        return ended

    def _feed(self) -> None:
        """Write as much as the pipe takes. Closes our end after the last byte; the program's own is still in `ends`, or its."""
        if self._sent < len(self._data):
            with suppress(BlockingIOError):
                self._sent += os.write(self._writer, self._data[self._sent : self._sent + _WRITE_BYTES])
        if self._sent == len(self._data):
            self._stop_feeding()

    def _read(self, stream: _Stream, most: int) -> int:
        """One read of at most `most` bytes; how many came. The stream is closed when it has ended."""
        try:
            count = os.readv(stream.fd, [self._buffer[:most]])
        except BlockingIOError:
            return 0
        if count == 0:
            self._stop_reading(stream)
            return 0
        stream.add(self._buffer[:count])
        if self._heard is not None:
            self._heard(stream.name, self._buffer[:count])
        if stream.total_bytes >= _GROW_AFTER_BYTES and not stream.grown:
            stream.grown = True
            grow(stream.fd)
            self._buffer = memoryview(bytearray(_GROWN_PIPE_BYTES))
        return count

    def _read_present(self) -> None:
        """Read what is in the pipes now. Not "until nothing is there": that may never be."""
        for stream in self._streams:
            if stream.fd < 0:
                continue
            present = int.from_bytes(fcntl.ioctl(stream.fd, termios.FIONREAD, bytes(4)), sys.byteorder)
            while present > 0 and (count := self._read(stream, min(present, len(self._buffer)))):
                present -= count

    def _stop_feeding(self) -> None:
        writer, self._writer = self._writer, -1
        if writer >= 0:
            with suppress(KeyError):
                self._poller.unregister(writer)
            _close(writer)
        self._data = memoryview(b"")  # the caller's bytearray can be resized again
        self._sent = 0

    def _stop_reading(self, stream: _Stream) -> None:
        fd, stream.fd = stream.fd, -1
        if fd >= 0:
            with suppress(KeyError):
                self._poller.unregister(fd)
            _close(fd)


class _Set:
    """The same as select.poll(), with a descriptor of its own: epoll(7)."""

    __slots__ = ("_epoll",)

    def __init__(self) -> None:
        try:
            self._epoll = select.epoll()
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.DESCRIPTORS, "cannot make an epoll set") from error

    def register(self, fd: int, events: int) -> None:
        self._epoll.register(fd, events)

    def unregister(self, fd: int) -> None:
        with suppress(OSError):
            self._epoll.unregister(fd)

    def poll(self, timeout_ms: int | None) -> list[tuple[int, int]]:
        return self._epoll.poll(None if timeout_ms is None else timeout_ms / 1000)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        self._epoll.close()


def open_pipe() -> tuple[int, int]:
    """A reading and a writing end, which a program of another user can open as /dev/stdin and /dev/stdout.

    The mode of a pipe matters only to who opens it anew by its link in /proc, which takes the right to look into a process that has
    it open. With the 0600 it is made with, `echo > /dev/stderr` fails in every program that runs under a uid of its own.
    """
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.DESCRIPTORS, "cannot make a pipe") from error
    with suppress(OSError):
        os.fchmod(writer, 0o666)
    return reader, writer


def _close(fd: int) -> None:
    """Close one of several: that the host program has closed this one already must not keep the others open."""
    with suppress(OSError):
        os.close(fd)


def grow(fd: int) -> None:
    """More room in a pipe, as far as the kernel and the user's share of it allow."""
    with suppress(OSError):
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < _GROWN_PIPE_BYTES:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _GROWN_PIPE_BYTES)


def _open_directory(path: str | os.PathLike[str] | None) -> _Directory:
    """The directory for spill files. Looked at before the program starts, when its user can still be told."""
    name = os.fspath((os.environ.get("TMPDIR") or "/tmp") if path is None else path)
    try:
        name = os.path.abspath(name)
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.DESCRIPTORS, f"cannot use {name!r} for output that is too long") from error
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
        os.close(fd)
        raise failure_from_errno(errno.EACCES, Stage.DESCRIPTORS, f"cannot make files for output that is too long in {name!r}")
    return _Directory(fd, name)
