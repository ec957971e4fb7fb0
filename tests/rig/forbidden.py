"""Hosts that forbid namespaces, made with a seccomp filter around a process and all it starts: `python -m rig.forbidden HOST COMMAND...`

HOST is what is forbidden, with "+" between: "docker": what Docker's default profile closes; "namespaces": clone and unshare of new
namespaces, as where user namespaces are forbidden; "landlock": as if the kernel had none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from shoal.privileges import CAP_SYS_ADMIN, has_capability
from shoal.sandbox import bpf, syscalls

NAMESPACES = 0x7E020000
_REFUSED = bpf.answer(errno.EPERM)
_CLONE = bpf.Check((bpf.Test(0, "any of", NAMESPACES, False),), True, _REFUSED)
_ABSENT = bpf.answer(errno.ENOSYS)
_DOCKER = (
    "unshare setns mount umount2 pivot_root fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr keyctl add_key request_key"
    " bpf perf_event_open userfaultfd"
)
_LANDLOCK = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"
HOSTS: dict[str, dict[str, bpf.Outcome]] = {
    "namespaces": {"clone": _CLONE, "unshare": _CLONE, "clone3": _ABSENT},
    "docker": {"clone": _CLONE, "clone3": _ABSENT} | dict.fromkeys(_DOCKER.split(), _REFUSED),
    "landlock": dict.fromkeys(_LANDLOCK.split(), _ABSENT),
}


def forbid(hosts: str) -> None:
    """Put the filter around this process, for good."""
    machine = os.uname().machine
    outcomes: dict[int, bpf.Outcome] = {}
    for host in hosts.split("+"):
        for name, outcome in HOSTS[host].items():
            number = syscalls.number_of(name, machine)
            if number is not None:
                outcomes[number] = outcome
    program = bpf.program(syscalls.AUDIT_ARCH[machine], outcomes, bpf.ALLOW)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    if not has_capability(CAP_SYS_ADMIN) and libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if libc.prctl(22, 2, ctypes.c_char_p(described), 0, 0):  # PR_SET_SECCOMP
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    forbid(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
