"""Build startup.c and start it in an empty world with a socket as the startup handle USER0.

    python examples/startup_c/launch.py

The program is static, so it needs nothing at all: no libraries, no files. It finds the socket through SHOAL_STARTUP.
"""

import os
import socket
import subprocess
import tempfile
from pathlib import Path

import shoal
from shoal import PA_HND, AddHandle, AddNsEntry, Directory, HandleType, SetName, Socket, SpawnFlags

SOURCE = Path(__file__).with_name("startup.c")


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "startup")
        subprocess.run([os.environ.get("CC", "cc"), "-static", "-O1", "-o", program, SOURCE], check=True)
        ours, theirs = socket.socketpair()
        actions: list[shoal.Action] = [
            SetName("writer of one line"),
            AddHandle(PA_HND(HandleType.USER0), Socket.from_fd(theirs.detach())),
            AddNsEntry("/out", Directory.tmpfs("1M")),
        ]
        with shoal.spawn(program, ["startup"], flags=SpawnFlags.CLONE_STDIO, actions=actions) as child, ours:
            print("it says:", ours.makefile().readline().strip())
            return child.wait()


if __name__ == "__main__":
    raise SystemExit(main())
