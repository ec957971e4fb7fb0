"""Hand a listening TCP socket to an unmodified socket-activated program, in a world that has no network.

    python examples/socket_activation.py [BACKEND-SOCKET]

systemd-socket-proxyd (Debian package systemd) accepts on the socket it is given and forwards to a unix socket. Here it
runs in an empty cell: its libraries, the directory with the unix socket, and the listening socket are all it has. It
serves connections on the host's port although it has no network interface it could ever connect from.
"""

import os
import socket
import sys
import tempfile
import threading
from pathlib import Path

import shoal
from shoal import PA_HND, AddHandle, AddNsEntry, Directory, HandleType, Process, Socket, SpawnFlags

PROXY = "/lib/systemd/systemd-socket-proxyd"


def start_proxy(listener: socket.socket, backend: Path) -> Process:
    """The proxy, serving `listener` (which it takes over) and forwarding to the unix socket `backend`."""
    return shoal.spawn(
        PROXY,
        ["systemd-socket-proxyd", f"/backend/{backend.name}"],
        flags=SpawnFlags.DEFAULT_LDSVC,
        environ={"SYSTEMD_LOG_TARGET": "console"},
        actions=[
            # The first handle added lands on descriptor 3, with LISTEN_FDS=1 and LISTEN_PID set.
            AddHandle(PA_HND(HandleType.USER0), Socket.from_fd(listener.detach())),
            AddNsEntry("/backend", Directory.open(backend.parent)),
            AddNsEntry("/proc", Directory.proc()),
        ],
    )


def serve_backend(path: Path) -> None:
    """A backend that answers one connection in capitals."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.fspath(path))
    server.listen()

    def answer() -> None:
        connection, _ = server.accept()
        with server, connection:
            connection.sendall(connection.recv(1000).upper())

    threading.Thread(target=answer, daemon=True).start()


def main() -> int:
    if not os.path.exists(PROXY):
        print(f"this example needs {PROXY}: sudo apt-get install systemd")
        return 1
    with tempfile.TemporaryDirectory() as directory:
        backend = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(directory, "backend")
        if len(sys.argv) < 2:
            serve_backend(backend)
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        with start_proxy(listener, backend.resolve()) as proxy:
            with socket.create_connection(address, timeout=10) as client:
                client.sendall(b"through a program without a network")
                print("answer:", client.makefile().read())
            proxy.terminate()
            proxy.wait(timeout=10)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
