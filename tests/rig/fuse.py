"""A file system that does not answer: whoever looks for the file `stuck` in it sleeps where not even SIGKILL reaches.

A request that a FUSE server has taken up and not answered is waited for uninterruptibly (state D), as one to a network file server
that is gone would be. Run as a program: mounts itself at the directory named, says "ready", and "stuck" for each that has got stuck;
ends, and lets go of all of them, when its stdin closes. Needs root and /dev/fuse.

Source: the kernel's include/uapi/linux/fuse.h, fuse(4); request_wait_answer() in fs/fuse/dev.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rig.cli import PATIENCE_S, processes_with

FILE = "stuck"
REACHED_S = 1.0
"""A limit of time that lets a program reach the file before it is over, on an emulated machine too."""
_WAITS = ("request_wait_answer", "d_alloc_parallel")
"""Where the kernel waits for the answer, and for the answer to somebody else who asked the same first."""
_MNT_DETACH = 2
_REQUEST = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_ANSWER = struct.Struct("<IiQ")  # length, error, unique
_LOOKUP, _FORGET, _GETATTR, _INIT, _BATCH_FORGET = 1, 2, 3, 26, 42
_ROOT = struct.pack("<QII", 3600, 0, 0) + struct.pack("<QQQQQQIIIIIIIIII", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
_libc = ctypes.CDLL(None, use_errno=True)


class Stuck:
    """The file system, from the test's side."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server = server
        self.folder = folder

    def wait(self) -> None:
        """Until one more program has got stuck."""
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "stuck\n"

    def wait_for(self, marker: str) -> None:
        """Until a program that has `marker` among its words is stuck. State D alone may be that of one that is being loaded."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(_wait_of(pid) in _WAITS for pid in processes_with(marker)):
            assert time.monotonic() < deadline, f"nothing with {marker!r} is stuck"
            time.sleep(0.01)

    def let_go(self) -> None:
        """Of everybody: the device closes with the server, and the kernel gives up what it has not answered."""
        self._server.kill()
        self._server.wait(timeout=60)


def _wait_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return ""


@contextmanager
def mounted(folder: Path) -> Iterator[Stuck]:
    """The file system at `folder`, until the end of the block."""
    server = subprocess.Popen(
        [sys.executable, "-m", "rig.fuse", str(folder)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield Stuck(server, folder)
    finally:
        server.communicate(timeout=60)
        _libc.umount2(os.fsencode(folder), _MNT_DETACH)


def _serve(folder: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc.mount(b"stuck", os.fsencode(folder), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    print("ready", flush=True)
    poller = select.poll()
    poller.register(device, select.POLLIN)
    poller.register(0, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if 0 in ready:
            return
        request = os.read(device, 1 << 18)
        _, opcode, unique, *_ = _REQUEST.unpack_from(request)
        error, body = -errno.ENOSYS, b""
        if opcode in (_FORGET, _BATCH_FORGET):
            continue
        if opcode == _INIT:
            major, _ = struct.unpack_from("<II", request, _REQUEST.size)
            error, body = 0, struct.pack("<IIIIHHIIHHI28x", major, 31, 0, 0, 12, 9, 1 << 17, 1, 0, 0, 0)
        elif opcode == _GETATTR:
            error, body = 0, _ROOT
        elif opcode == _LOOKUP:
            if request[_REQUEST.size :].rstrip(b"\0") == FILE.encode():
                print("stuck", flush=True)
                continue
            error = -errno.ENOENT
        os.write(device, _ANSWER.pack(_ANSWER.size + len(body), error, unique) + body)


if __name__ == "__main__":
    _serve(sys.argv[1])
