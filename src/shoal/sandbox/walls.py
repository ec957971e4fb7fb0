"""Walls: a filter in the place of namespaces, where none can be made.

Landlock keeps a program from the contents of files. What else a cell has of its own, it shares with its caller's world then: what is
known by a key, a number or a name instead of a file, and other processes of the same user. All that is closed here, whatever filter
a box asks for besides; a program that needs it needs a cell.

* Landlock does not look at modes, owners, times and attributes of files, so that nobody may change them: the caller's files would
  do. What a program may open it may still touch: set both times to now, by descriptor.
* A unix socket leads to whatever listens under a name: the session bus, which starts programs. Only connected pairs can be made. Of
  datagrams not even those, since each of them may name another receiver.
* Watching a file tells the names of what happens in a directory, and takes no right that Landlock knows.
* io_uring makes calls that no filter sees.

Source: landlock(7), "CAVEATS"; seccomp(2); the kernel's Documentation/userspace-api/landlock.rst, "Current limitations".
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Final

from shoal.sandbox import bpf, syscalls
from shoal.sandbox.bpf import Check, Outcome, Test
from shoal.status import Stage, Status, failure

LABEL: Final = "what namespaces would keep apart"
TRUNCATES: Final = 3
SCOPES: Final = 6
"""From this ABI on Landlock knows who truncates a file; whom a signal goes to."""

_REFUSED: Final = bpf.answer(errno.EPERM)
_CLOSED: Final = (
    # of files, what Landlock does not look at
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat file_setattr"
    " setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat"
    " inotify_init inotify_init1 inotify_add_watch fanotify_init fanotify_mark name_to_handle_at open_by_handle_at"
    # known by a key or a name
    " shmget shmat shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl"
    " mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr add_key request_key keyctl"
    # other processes
    " ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp perf_event_open move_pages migrate_pages"
    # ways around
    " io_uring_setup io_uring_enter io_uring_register"
    " setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr"
)
_SIGNALS: Final = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal setsid setpgid"
_OF_ONESELF: Final = "prlimit64 sched_setaffinity sched_setparam sched_setscheduler sched_setattr"

_NAMESPACES, _CLONE_PARENT = 0x7E020080, 0x8000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _NETLINK_ROUTE, _DATAGRAM = 1, 2, 10, 16, 0, 2
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE = 8, 10, 15, 1024
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902
_TERMINALS = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD
_ATTRIBUTES = (0x40086602, 0x40046602, 0x401C5820)  # FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR


@functools.cache
def walls(*, abi: int, network: bool) -> bytes:
    """The filter: packed struct sock_filter.

    Args:
        abi: of Landlock; what it does not know yet is closed here.
        network: sockets of the internet may be made.
    Raises:
        NotSupportedError: there is no table of the system calls of this machine.
    """
    machine = os.uname().machine
    if machine not in syscalls.AUDIT_ARCH:
        raise failure(Status.NOT_SUPPORTED, Stage.ARGUMENTS, f"without namespaces it takes a filter, and there is none for {machine}")
    closed: dict[str, Outcome] = dict.fromkeys(_CLOSED.split(), _REFUSED)
    closed |= {name: _unless(*tests) for name, tests in _checks(abi).items()}
    closed |= _sockets(network=network)
    closed["clone3"] = bpf.answer(errno.ENOSYS)
    if abi < SCOPES:
        closed |= dict.fromkeys(_SIGNALS.split(), _REFUSED)
    if abi < TRUNCATES:
        closed |= {"truncate": _REFUSED, "openat2": bpf.answer(errno.ENOSYS)}
    # What nobody has looked at yet is not there; the calls of x32, far above, neither.
    outcomes: dict[int, Outcome] = dict.fromkeys(range(syscalls.LAST_KNOWN + 1), bpf.ALLOW)
    for name, outcome in closed.items():
        number = syscalls.number_of(name, machine)
        if number is not None:
            outcomes[number] = outcome
    return bpf.program(syscalls.AUDIT_ARCH[machine], outcomes, bpf.answer(errno.ENOSYS))


def _unless(*tests: Test) -> Check:
    return Check(tests, True, _REFUSED)


def _checks(abi: int) -> dict[str, tuple[Test, ...]]:
    """Tests that refuse; what meets none may be done."""
    unscoped = abi < SCOPES
    owners = (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX) if unscoped else ()
    requests = (*_TERMINALS, *_ATTRIBUTES, *((_FIOSETOWN, _SIOCSPGRP) if unscoped else ()))
    found: dict[str, tuple[Test, ...]] = {name: (Test(0, "is not", 0, False),) for name in _OF_ONESELF.split()}
    found |= {
        "clone": (Test(0, "any of", _NAMESPACES, False), Test(0, "any of", _CLONE_PARENT, False)),
        "unshare": (Test(0, "any of", _NAMESPACES, False),),
        "setpriority": (Test(0, "is not", 0, False), Test(1, "is not", 0, False)),
        "ioprio_set": (Test(0, "is not", 1, False), Test(1, "is not", 0, False)),
        "fcntl": tuple(Test(1, "is", command, False) for command in (_F_SETLEASE, *owners)),
        "ioctl": tuple(Test(1, "is", request, False) for request in requests),
        # By descriptor, and to now: a path and a time are both pointers.
        "utimensat": tuple(Test(argument, "is not", 0, False, high) for argument in (1, 2) for high in (False, True)),
    }
    if abi < TRUNCATES:
        found |= {
            name: (Test(argument, "any of", os.O_WRONLY | os.O_RDWR, True), Test(argument, "any of", os.O_TRUNC, False))
            for name, argument in (("open", 1), ("openat", 2))
        }
    return found


def _sockets(*, network: bool) -> dict[str, Outcome]:
    absent = bpf.answer(errno.EAFNOSUPPORT)
    pair = Check((Test(0, "is not", _AF_UNIX, False), Test(1, "any of", _DATAGRAM, False)), True, absent)
    if not network:
        return {"socket": absent, "socketpair": pair, "connect": _REFUSED, "bind": _REFUSED}
    families = (Test(0, "is", _AF_INET, True), Test(0, "is", _AF_INET6, True))
    route = (Test(0, "is not", _AF_NETLINK, False), Test(2, "is", _NETLINK_ROUTE, True))
    return {"socket": Check((*families, *route), False, absent), "socketpair": pair}
