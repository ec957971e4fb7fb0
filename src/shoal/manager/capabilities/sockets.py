"""Sockets: what the sockets of a network namespace are bound and connected to.

Only those of the namespace are listed. A socket that is open in a process but not listed in its own network belongs to another one: it
was handed over, or has leaked.

Source: proc_pid_net(5), unix(7), packet(7), netlink(7); the kernel's Documentation/networking/proc_net_tcp.rst.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from typing import Final

from shoal.manager.capabilities.procfs import ProcessDirectory

_INTERNET: Final = (
    ("tcp", 4),
    ("tcp6", 6),
    ("udp", 4),
    ("udp6", 6),
    ("udplite", 4),
    ("udplite6", 6),
    ("raw", 4),
    ("raw6", 6),
    ("icmp", 4),
    ("icmp6", 6),
)
_LISTENING: Final = "0A"
_ACCEPTS: Final = 0x10000
_TYPES: Final = {"0001": "stream", "0002": "datagram", "0005": "seqpacket"}


def sockets_of(directory: ProcessDirectory) -> dict[int, str] | None:
    """Every socket of a process's network namespace, in words, by its inode number. None: the kernel does not tell us."""
    found: dict[int, str] = {}
    try:
        lines = directory.read("net/unix").splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        fields = line.split(maxsplit=7)
        found[int(fields[6])] = _unix(fields)
    for name, version in _INTERNET:
        with suppress(OSError):
            for line in directory.read(f"net/{name}").splitlines()[1:]:
                fields = line.split()
                found[int(fields[9])] = _internet(name.removesuffix("6"), version, fields)
    for name, inode in (("packet", 8), ("netlink", 9)):
        with suppress(OSError):
            for line in directory.read(f"net/{name}").splitlines()[1:]:
                found[int(line.split()[inode])] = name
    return found


def _unix(fields: list[str]) -> str:
    kind = f"unix {_TYPES.get(fields[4], fields[4])}"
    if len(fields) > 7:
        verb = "listens at" if int(fields[3], 16) & _ACCEPTS else "bound to"
        return f"{kind}, {verb} {fields[7]}"
    return kind


def _internet(protocol: str, version: int, fields: list[str]) -> str:
    here, there = _address(fields[1], version), _address(fields[2], version)
    if protocol == "tcp" and fields[3] == _LISTENING:
        return f"tcp, listens at {here}"
    return f"{protocol} {here}" if there.endswith(":0") else f"{protocol} {here} to {there}"


def _address(text: str, version: int) -> str:
    address, _, port = text.partition(":")
    # Words of four bytes, each as the processor has it.
    order = "<" if sys.byteorder == "little" else ">"
    raw = b"".join(struct.pack(f"{order}I", int(address[start : start + 8], 16)) for start in range(0, len(address), 8))
    name = socket.inet_ntop(socket.AF_INET if version == 4 else socket.AF_INET6, raw)
    return f"{name}:{int(port, 16)}" if version == 4 else f"[{name}]:{int(port, 16)}"
