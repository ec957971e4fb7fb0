"""The daemon: a manager in a process of its own, which starts itself when it is first needed."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

from shoal.handles.deadline import Deadline
from shoal.manager.errors import ManagerError
from shoal.manager.layout import Layout, unusable

START_S = 30.0
"""How long a new daemon may take until it listens: it may have many domains to find again."""
_STARTS = 3
"""How often a daemon is started that ends without a word."""


def dial(layout: Layout, timeout: float | None, *, starts: bool) -> socket.socket:
    """A connection to the daemon.

    Args:
        timeout: seconds; None waits as long as a daemon may take to start.
        starts: start one where none runs.
    Raises:
        ManagerError: there is none, or it cannot be started; says why. TimeoutError: not in time.
    """
    last = time.monotonic() + (START_S if timeout is None else timeout)
    sock = _connected(layout)
    for _ in range(_STARTS if starts else 0):
        if sock is not None:
            break
        if start(layout, last):
            sock = _connected(layout)
    if sock is None:
        advice = f"one that was started ended at once, and {layout.own_log} may say why" if starts else "`shoal manager start` starts one"
        what = f"no manager listens at {layout.socket}; {advice}"
        raise ManagerError("LIB_ERR_NAMESERVICE_NOT_BOUND", what)
    return sock


def _connected(layout: Layout) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory = os.open(layout.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        sock.close()
        return None
    try:
        sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(layout.socket)}")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise ManagerError("LIB_ERR_NAMESERVICE_NOT_BOUND", f"{layout.socket}: {error.strerror}") from error
    finally:
        os.close(directory)
    return sock


def start(layout: Layout, last: float, cores: Sequence[int] | None = None) -> bool:
    """Start a daemon and wait until it listens. One that somebody else has started meanwhile will do. False: somebody has killed it.

    Args:
        cores: those that it is the spawn daemon of itself, and every later manager of the same state; None: as before.

    Raises:
        ManagerError: it could not; says what it said. TimeoutError: not by `last`.
    """
    layout.make()
    ready, told = os.pipe()
    try:
        environ = {name: value for name, value in os.environ.items() if name not in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID")}
        words = [sys.executable, "-m", "shoal.manager.daemon", layout.state, layout.run, str(told)]
        words += [] if cores is None else [",".join(map(str, cores))]
        with _own_log(layout) as log:
            process = subprocess.Popen(
                words, env=environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(told,), start_new_session=True
            )
    except OSError as error:
        os.close(ready)
        raise ManagerError("LIB_ERR_PROC_MGMT_CLIENT_ACCEPT", f"the manager could not be started: {error}") from error
    finally:
        os.close(told)
    try:
        said = _read_all(ready, last)
    finally:
        os.close(ready)
    if process.poll() is None:  # it ends as soon as it has forked, and has not even begun: it is not waited for longer than asked
        threading.Thread(target=process.wait, name="shoal-manager-start", daemon=True).start()
    if said == b"" and time.monotonic() >= last:
        raise TimeoutError("the manager did not begin to listen in time")
    if said not in (b"", b"ready"):
        raise ManagerError("LIB_ERR_PROC_MGMT_CLIENT_ACCEPT", said.decode("utf-8", "replace"))
    return said == b"ready"


def _own_log(layout: Layout) -> BinaryIO:
    """What it says goes there; on a disk that cannot be written, nowhere."""
    try:
        return open(layout.own_log, "ab")
    except OSError:
        return open(os.devnull, "wb")


def _listens(layout: Layout) -> bool:
    try:
        sock = _connected(layout)
    except ManagerError:
        return False
    if sock is not None:
        sock.close()
    return sock is not None


def _read_all(fd: int, last: float) -> bytes:
    import select

    data = b""
    deadline = Deadline(last - time.monotonic())
    while deadline.wait_ready(fd, select.POLLIN) and (more := os.read(fd, 4096)):
        data += more
    return data


async def run(layout: Layout, ready: int | None = None, cores: Sequence[int] | None = None) -> int:
    """Be the manager until somebody stops it. The exit status.

    Args:
        cores: as of `start()`.
        ready: a descriptor to tell of the beginning by: "ready", or what went wrong; closed then.
    """
    import asyncio  # here, since every client loads this module to dial
    import gc
    import logging

    from shoal.manager.running import Running

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    running = Running(layout, cores)
    try:
        # Of several that are started at the same time one goes on, and by then it listens.
        starting = _turn(layout)
        try:
            if ready is not None and _listens(layout):
                _tell(ready, b"ready")
                return 0
            gc.disable()  # which would look again and again at domains that are found, none of which is garbage
            await running.start()
            gc.freeze()
            gc.enable()
        finally:
            os.close(starting)
    except ManagerError as error:
        _tell(ready, str(error).encode())
        print(f"shoal manager: {error}", file=sys.stderr)
        return 1
    _tell(ready, b"ready")
    notify("READY=1")
    loop = asyncio.get_running_loop()
    service = running.service
    assert service is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    try:
        await running.serve()
    finally:
        notify("STOPPING=1")
        running.close()
    return 0


def _turn(layout: Layout) -> int:
    """Wait until nobody else is starting a manager of these directories. A descriptor that keeps others waiting until it is closed.

    Raises:
        ManagerError: the state directory cannot be used.
    """
    layout.make()
    try:
        fd = os.open(layout.starting, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise unusable(layout.starting, error) from error
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _tell(ready: int | None, what: bytes) -> None:
    if ready is not None:
        with suppress(BrokenPipeError):  # whoever has started this one may have been killed
            os.write(ready, what)
        os.close(ready)


def notify(state: str) -> None:
    """Tell systemd, where it asked for it: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            pass


def main() -> int:
    state, run_directory, ready, *given = sys.argv[1:5]
    cores = [int(core) for core in given[0].split(",") if core] if given else None
    if os.fork():
        os._exit(0)  # so that the daemon is nobody's child who may never wait for it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    import asyncio

    from shoal.manager.nursery import allow_many_files

    allow_many_files()
    return asyncio.run(run(Layout(state, run_directory), int(ready), cores))


if __name__ == "__main__":
    sys.exit(main())
