"""Sockets: what the sockets of a network namespace are bound and connected to.

Each network lists its own. A socket that is open in a process and listed in our network instead of its own was handed over, or has
leaked. One that is listed nowhere is bound to nothing yet, or belongs to a third network; the kernel does not tell which.

Source: proc_pid_net(5), unix(7), packet(7), netlink(7); the kernel's Documentation/networking/proc_net_tcp.rst.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Collection
from typing import Final

from shoal.manager.capabilities.procfs import ProcessDirectory

_PROTOCOLS: Final = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6")
_LISTS: Final = (("unix", 6), ("netlink", 9), ("packet", 8), *((name, 9) for name in _PROTOCOLS))
"""The files below net/, and in which column they have the inode number."""
_LISTENING: Final = "0A"
_ACCEPTS: Final = 0x10000
_TYPES: Final = {"0001": "stream", "0002": "datagram", "0005": "seqpacket"}


def sockets_of(directory: ProcessDirectory, wanted: Collection[int]) -> dict[int, str] | None:
    """Sockets of a process's network namespace, in words, by their inode numbers. None: the kernel does not tell us.

    Args:
        wanted: which ones.
    """
    found: dict[int, str] = {}
    for name, column in _LISTS:
        try:
            lines = directory.read(f"net/{name}").splitlines()[1:]
        except PermissionError:
            return None
        except OSError:
            continue  # this kernel knows no such sockets
        for line in lines:
            fields = line.split(maxsplit=7) if name == "unix" else line.split()
            inode = int(fields[column])
            if inode in wanted:
                found[inode] = _unix(fields) if name == "unix" else _internet(name, fields) if name in _PROTOCOLS else name
        if len(found) == len(wanted):
            break  # the lists of the internet are slow: the kernel goes through the sockets of all networks
    return found


def _unix(fields: list[str]) -> str:
    kind = f"unix {_TYPES.get(fields[4], fields[4])}"
    if len(fields) > 7:
        verb = "listens at" if int(fields[3], 16) & _ACCEPTS else "bound to"
        return f"{kind}, {verb} {fields[7]}"
    return kind


def _internet(name: str, fields: list[str]) -> str:
    protocol, version = name.removesuffix("6"), 6 if name.endswith("6") else 4
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
