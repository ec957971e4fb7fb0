"""ZygoteProcess: the zygote seen from its owner: started, asked for copies, listened to, ended.

What it answers comes in the order it was asked, on a socket of which each message is one answer. Nothing here waits.
"""

from __future__ import annotations

import array
import os
import pickle
import select
import signal
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from shoal import _native
from shoal.copies import Copies
from shoal.executor.zygote import ANSWER, IN_GROUP, PROGRAM, READY, REFUSED, Configuration
from shoal.factory import end_orphans
from shoal.handles import reaper
from shoal.handles.deadline import Deadline, is_ready
from shoal.handles.images import init_image
from shoal.handles.keeper import launch
from shoal.handles.reaper import Keeper, OwnedFd
from shoal.launcher import END_S
from shoal.packing import count_strings

_MESSAGE = 1 << 16
_FDS = 4
_SAID_BYTES = 8 << 10


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a zygote is started from, as often as one is needed.

    Attributes:
        python: the interpreter, and its options before the program.
        place: the directory in which shoal is found.
        renewed: the same from the files that are there now; raises what making it does.
    """

    copies: Copies
    python: str
    options: tuple[str, ...]
    place: str
    environ: Mapping[str, str]
    path: tuple[str, ...]
    path_inside: tuple[str, ...]
    preload: tuple[str, ...]
    renewed: Callable[[], Recipe]

    def configuration(self) -> Configuration:
        """What it is told."""
        copies = self.copies
        keeper, in_group = copies.keeper.filled(()), copies.keeper_in_group.filled(())
        return Configuration(
            self.path,
            self.path_inside,
            self.preload,
            keeper,
            in_group,
            copies.tasks,
            copies.copy.template(),
            copies.copy_in_group.template(),
            copies.first_user,
            copies.maps_ids,
        )


@dataclass(frozen=True, slots=True)
class Made:
    """An answer: a copy that is being made, or why there is none.

    Attributes:
        keeper: pid 1 of its cell; None: not even that.
        pid, pidfd, control: of the copy; control ends the cell when it is closed. 0 and None: there is none.
        of_copy: which plan it was in which something failed: that of the copy, or of pid 1.
        stage, index, error: as the core tells it.
    """

    keeper: Keeper | None
    pid: int
    pidfd: OwnedFd | None
    of_copy: bool
    stage: int
    index: int
    error: int


class ZygoteProcess:
    """One zygote. For one thread at a time.

    Attributes:
        ready: it has loaded its modules.
        refused: why it has not; "" as long as that is not known.
        said: the end of what it wrote to its error output.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Start it.

        Raises:
            SpawnError, OSError: why not.
        """
        self.ready = False
        self.refused = ""
        self.said = b""
        argv = (recipe.python, *recipe.options, "-c", PROGRAM, recipe.place)
        environ = [f"{name}={value}" for name, value in recipe.environ.items()]
        with ExitStack() as stack:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(near.close)
            stack.enter_context(far)
            life, errors = _pipe(), _pipe()
            file = _memory_file(pickle.dumps(recipe.configuration()))
            handed = (far.fileno(), init_image(), file.fd, life[0].fd, errors[1].fd, *(fd for fd, _ in recipe.copies.sources))
            strings = count_strings(map(os.fsencode, argv)), count_strings(map(os.fsencode, environ))
            pid, pidfd = launch(recipe.copies.maker, handed, *strings, "the interpreter that calls are forked from")
            os.set_blocking(errors[0].fd, False)
            near.setblocking(False)
            stack.pop_all()
            far.close()
        self._socket: socket.socket | None = near
        self._life: OwnedFd | None = life[1]
        self._errors: OwnedFd | None = errors[0]
        self._process = Keeper(pidfd, pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def talk_fd(self) -> int:
        """Readable when it has something to tell, or has ended; -1 when that is over."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def errors_fd(self) -> int:
        """Readable when it has written something, or never will again; -1 when that is over."""
        return -1 if self._errors is None else self._errors.fd

    @property
    def end_fd(self) -> int:
        """Readable when it has ended. Its socket alone does not tell: a copy in the making has it, too, and waits to be known."""
        return self._process.fileno()

    @property
    def has_ended(self) -> bool:
        """Whether its process is over."""
        return is_ready(self._process.fileno(), select.POLLIN)

    def ask(self, fds: Sequence[int], *, in_group: bool) -> bool:
        """Ask for a copy.

        Args:
            fds: its socket, output and error output, and with `in_group` its cgroup; borrowed.
        Returns:
            Whether it could be asked.
        """
        if self._socket is None:
            return False
        try:
            socket.send_fds(self._socket, [IN_GROUP if in_group else b"-"], list(fds))
        except OSError:
            return False
        return True

    def hear(self) -> Made | bool | None:
        """What it tells next: an answer; True: it is ready, or has refused; False: it has ended; None: nothing yet."""
        if self._socket is None:
            return False
        try:
            message, ancillary, _, _ = self._socket.recvmsg(_MESSAGE, socket.CMSG_SPACE(_FDS * 4), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError:
            return False
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content[: len(content) // 4 * 4])
        owned = [OwnedFd(fd) for fd in fds]
        if not message:
            return False
        if not self.ready:
            self.ready = message == READY
            self.refused = "" if self.ready else message.removeprefix(REFUSED).decode("utf-8", "replace")
            return True
        return _made(message, owned)

    def hear_errors(self) -> bytes:
        """What it has written since; `errors_fd` is -1 once that is all."""
        if self._errors is None:
            return b""
        try:
            data = os.read(self._errors.fd, _MESSAGE)
        except BlockingIOError:
            return b""
        if not data:
            self._errors = None
        self.said = (self.said + data)[-_SAID_BYTES:]
        return data

    def end(self, known: Collection[int]) -> None:
        """End it, with what it was making and nobody has been told of. The rest is the reaper's.

        Args:
            known: the processes of which somebody has been told.
        """
        self._socket, talk = None, self._socket
        if talk is not None:
            talk.close()
        self._life = self._errors = None
        with suppress(OSError):
            self._process.kill()
        end_orphans(self._process, known)
        reaper.register(self._process)

    def status(self) -> str:
        """How it has ended, in words. Waits a moment for the end where only its socket has."""
        Deadline(END_S).wait_ready(self._process.fileno(), select.POLLIN)
        with suppress(OSError):
            found = _native.wait(self._process.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                _, code, number, *_ = found
                if code == os.CLD_EXITED:
                    return f"exit status {number}"
                return signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        return "it was ended"

    def forget(self) -> None:
        """After os.fork() in the child: it is the parent's."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._life = self._errors = None
        self._process.release()


def _made(message: bytes, fds: Sequence[OwnedFd]) -> Made:
    of_copy, keeper_pid, pid, stage, index, error = ANSWER.unpack(message)
    keeper = None
    if keeper_pid > 0 and fds:
        keeper = Keeper(_taken(fds[0]), keeper_pid)
    if keeper is not None and pid > 0 and len(fds) > 2:
        keeper.control = _taken(fds[2])
        return Made(keeper, pid, fds[1], bool(of_copy), stage, index, error)
    return Made(keeper, 0, None, bool(of_copy), stage, index, error)


def _taken(fd: OwnedFd) -> int:
    number, fd.fd = fd.fd, -1
    return number


def _pipe() -> tuple[OwnedFd, OwnedFd]:
    read, write = os.pipe2(os.O_CLOEXEC)
    return OwnedFd(read), OwnedFd(write)


def _memory_file(data: bytes) -> OwnedFd:
    file = OwnedFd(os.memfd_create("shoal-zygote", os.MFD_CLOEXEC))
    with open(file.fd, "wb", closefd=False) as stream:
        stream.write(data)
    os.lseek(file.fd, 0, os.SEEK_SET)
    return file
