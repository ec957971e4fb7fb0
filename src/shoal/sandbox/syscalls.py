"""What the filters say of each system call: the policy as tables, and the numbers that belong to the names.

Every call is in exactly one group, with its rule in the default and in the strict filter:

* open: it may be made (CHECKS names those whose arguments are looked at);
* refused: EPERM, or what the caller chose. It is what a kernel says to whom lacks the privilege, so programs expect it;
* absent: ENOSYS, as from a kernel that does not have it, so that a C library falls back on another call.

A call that is in no group is absent. It cannot be refused: a program compiled tomorrow probes calls that nobody knows today, and
goes on after ENOSYS, but stops at EPERM (what broke containers at clone3, faccessat2, openat2 and statx).

The numbers come from libseccomp, which knows those of every architecture by name. It is asked through ctypes for the two functions
that this takes. pyseccomp, the one binding in pure Python, was last released in January 2021 and looks for the library by running
ldconfig, and gcc where that fails: 5 to 26 ms and a child process, in a library that promises not to disturb its caller's children.
Source: syscalls(2), seccomp_syscall_resolve_name(3); the kernel's include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from shoal.sandbox.bpf import Test
from shoal.status import SpawnError, Stage, Status, failure

Rule = Literal["open", "refused", "absent"]

AUDIT_ARCH: Mapping[str, int] = MappingProxyType({"x86_64": 0xC000003E, "aarch64": 0xC00000B7})
"""What the kernel calls the ABI of the system calls, by uname's name of the machine. No other is let through: see `seccomp`."""


class Group(NamedTuple):
    """System calls on one subject. `names` are separated by blanks."""

    subject: str
    default: Rule
    strict: Rule
    names: str


GROUPS = (
    # --- open in both: a program that computes, with files and threads --------------------------------------------------------
    Group(
        "reading and writing",
        "open",
        "open",
        "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile copy_file_range splice tee readahead"
        " fadvise64 fallocate truncate ftruncate fsync fdatasync sync_file_range cachestat flock fcntl ioctl",
    ),
    Group(
        "opening and naming files",
        "open",
        "open",
        "open openat creat close close_range dup dup2 dup3 pipe pipe2 access faccessat faccessat2 stat lstat fstat newfstatat"
        " statx statfs fstatfs getdents getdents64 getcwd chdir fchdir readlink readlinkat link linkat symlink symlinkat unlink unlinkat"
        " rename renameat renameat2 mkdir mkdirat rmdir chmod fchmod fchmodat fchmodat2 umask utime utimes futimesat utimensat"
        " getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat file_getattr memfd_create",
    ),
    Group(
        "waiting",
        "open",
        "open",
        "select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2"
        " signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime pause wait4 waitid",
    ),
    Group(
        "memory",
        "open",
        "open",
        "brk mmap munmap mremap mprotect pkey_mprotect pkey_alloc pkey_free madvise mincore msync mlock mlock2 munlock mlockall"
        " munlockall remap_file_pages membarrier mseal map_shadow_stack get_mempolicy set_mempolicy mbind set_mempolicy_home_node",
    ),
    Group(
        "being a process with threads",
        "open",
        "open",
        "clone execve execveat exit exit_group futex futex_waitv futex_wait futex_wake futex_requeue set_robust_list get_robust_list"
        " set_tid_address rseq rseq_slice_yield gettid getpid getppid getpgid getpgrp getsid setsid setpgid getuid geteuid getgid getegid"
        " getresuid getresgid getgroups capget arch_prctl prctl personality getcpu getrandom uname sysinfo getrusage times"
        " getrlimit setrlimit prlimit64 getpriority setpriority ioprio_get ioprio_set pidfd_open restart_syscall"
        # What the kernel puts into a traced function, not what a program calls. Where it fails, the administrator's tracer kills
        # the program. Linux 6.14 has it pass by all filters.
        " uretprobe uprobe",
    ),
    Group(
        "scheduling",
        "open",
        "open",
        "sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler"
        " sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval",
    ),
    Group(
        "time",
        "open",
        "open",
        "time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep alarm getitimer setitimer timer_create timer_settime"
        " timer_gettime timer_getoverrun timer_delete",
    ),
    Group(
        "signals",
        "open",
        "open",
        "kill tkill tgkill pidfd_send_signal rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait"
        " rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack",
    ),
    Group(
        "sockets (of which families: CHECKS)",
        "open",
        "open",
        "socket socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt sendto recvfrom"
        " sendmsg recvmsg sendmmsg recvmmsg",
    ),
    Group("giving up more", "open", "open", "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self"),
    # --- open by default only: what takes more than one process, or one user, or is seen outside the program's own files ------
    Group("making processes", "open", "refused", "fork vfork"),
    Group("asynchronous I/O of databases", "open", "refused", "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents"),
    Group("leaving shared tables (namespaces: CHECKS)", "open", "refused", "unshare"),
    Group(
        "System V and POSIX message queues, semaphores and memory",
        "open",
        "refused",
        "shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_timedsend mq_timedreceive mq_notify"
        " mq_getsetattr",
    ),
    Group(
        "users and privileges",
        "open",
        "refused",
        "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset",
    ),
    Group("owners of files", "open", "refused", "chown fchown lchown fchownat"),
    Group(
        "writing extended attributes",
        "open",
        "refused",
        "setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat file_setattr",
    ),
    Group("making fifos and devices", "open", "refused", "mknod mknodat"),
    Group("watching files", "open", "refused", "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch"),
    Group("writing out the whole machine's files", "open", "refused", "sync syncfs"),
    Group("memory of others, by reference", "open", "refused", "vmsplice move_pages process_madvise process_mrelease"),
    # --- closed -----------------------------------------------------------------------------------------------------------------
    # A way around every filter: what is asked for through its memory is no system call.
    Group("io_uring", "refused", "refused", "io_uring_setup io_uring_enter io_uring_register"),
    Group(
        "looking into other processes",
        "refused",
        "refused",
        "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp perf_event_open",
    ),
    Group("programs in the kernel", "refused", "refused", "bpf"),
    Group("page faults as a service", "refused", "refused", "userfaultfd"),
    Group("keyrings, which belong to no namespace", "refused", "refused", "add_key request_key keyctl"),
    # To Landlock a queue is a file that nobody granted, so that where there is Landlock it cannot be opened anyway: the same everywhere.
    Group("POSIX message queues, by name", "refused", "refused", "mq_open mq_unlink"),
    Group("entering namespaces", "refused", "refused", "setns"),
    Group(
        "mounts",
        "refused",
        "refused",
        "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree open_tree_attr mount_setattr",
    ),
    Group("files by handle, past all mounts", "refused", "refused", "name_to_handle_at open_by_handle_at"),
    Group("watching whole file systems", "refused", "refused", "fanotify_init fanotify_mark"),
    # Of adjtimex, reading would be harmless, but what it does is said in memory, where a filter cannot look.
    Group("setting the clock", "refused", "refused", "settimeofday clock_settime adjtimex clock_adjtime"),
    Group(
        "the machine",
        "refused",
        "refused",
        "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff quotactl quotactl_fd acct syslog"
        " vhangup sethostname setdomainname iopl ioperm migrate_pages",
    ),
    # --- as if the kernel did not have it -----------------------------------------------------------------------------------------
    # Its flags are in memory, where a filter cannot look; after ENOSYS, and nothing else, every C library uses clone.
    Group("making processes, with new namespaces perhaps", "absent", "absent", "clone3"),
    # The mode of what it makes is in memory, too (see CHECKS for set-user-id files); programs fall back on openat.
    Group("opening files, with a mode that cannot be seen", "absent", "absent", "openat2"),
    # Kernels are built without these, or have them switched off.
    Group("rarely there", "absent", "absent", "modify_ldt memfd_secret uselib sysfs ustat lookup_dcookie"),
    # Newer than the programs that have to do without.
    Group("new", "absent", "absent", "statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules listns"),
    Group(
        "no longer, or never, in any kernel",
        "absent",
        "absent",
        "_sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old get_kernel_syms get_thread_area getpmsg nfsservctl putpmsg"
        " query_module security set_thread_area tuxcall vserver",
    ),
)

RULES: Mapping[Literal["default", "strict"], Mapping[str, Rule]] = MappingProxyType(
    {
        "default": MappingProxyType({name: group.default for group in GROUPS for name in group.names.split()}),
        "strict": MappingProxyType({name: group.strict for group in GROUPS for name in group.names.split()}),
    }
)

ALWAYS = frozenset({"execveat", "exit", "exit_group", "restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn"})
"""What no filter refuses: after it was installed the child still resets its signals and executes the program."""

WAITING = frozenset({"close", "close_range", "dup3", "fcntl", "prctl", "prlimit64", "recvmsg", "sendto", "setsid"}) | ALWAYS
"""What a process of a cell made ahead still does between its filter and its program: src/native/init/wait.c, and FD_MAP and RLIMIT."""


# --- arguments ------------------------------------------------------------------------------------------------------------------


class Arguments(NamedTuple):
    """With which arguments a call that is open may be made.

    Attributes:
        tests: see `Test`; otherwise: whether the call is made when none is met.
        errno: what a refused call gets where the filter has no errno of its own; 0, with every filter: it is told that it was made.
    """

    tests: tuple[Test, ...]
    otherwise: bool
    errno: int = errno.EPERM


# New mount, cgroup, uts, ipc, user, pid and network namespaces; in the lowest byte, which for clone is the exit signal and never
# above 64, unshare's time namespace.
_NAMESPACES = 0x7E020080
_CLONE_THREAD = 0x00010000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
# What uname tells a program that asks for the 32-bit machine or for a version below 3, and addresses that are not random, as
# debuggers and thread sanitizers want them. Not: pages at 0, readable pages that are executable, layouts easy to guess.
_HARMLESS = 0x0008 | 0x0020000 | 0x0040000

_NO_NAMESPACES = Test(0, "any of", _NAMESPACES, False)
# A process made with CLONE_PARENT would be a child of the one that started the sandbox, which knows nothing of it.
_NO_SIBLINGS = Test(0, "any of", 0x8000, False)
# A terminal's input is typed by its user, and a line discipline loads a kernel module.
_IOCTL = Arguments(tuple(Test(1, "is", request, False) for request in (_TIOCSTI, _TIOCLINUX, _TIOCSETD)), True)
_PERSONALITY = Arguments((Test(0, "is", 0xFFFFFFFF, True), Test(0, "any of", ~_HARMLESS & 0xFFFFFFFF, False)), True)
# EAFNOSUPPORT is what a kernel without the family says, and the only refusal that libaudit, and with it useradd and sshd, take
# for "there is none here". Closed are the families that reach a host through its hypervisor (VSOCK), that load modules, and those
# whose holes made them known: ALG, PACKET, KEY, XDP, BLUETOOTH, TIPC, RDS.
_SOCKET = Arguments(
    (
        Test(0, "is", _AF_UNIX, True),
        Test(0, "is", _AF_INET, True),
        Test(0, "is", _AF_INET6, True),
        Test(0, "is not", _AF_NETLINK, False),
        Test(2, "is", _NETLINK_ROUTE, True),
    ),
    False,
    errno.EAFNOSUPPORT,
)
# A file of the caller's making that becomes the caller for whoever executes it: set-user-id and set-group-id bits in a mode, which
# `open` looks at only when it makes a file.
_SET_ID, _MAKES_A_FILE = 0o6000, 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE
_MODE_SECOND = Arguments((Test(1, "any of", _SET_ID, False),), True)
_MODE_THIRD = Arguments((Test(2, "any of", _SET_ID, False),), True)
_FILES: Mapping[str, Arguments] = MappingProxyType(
    {
        "chmod": _MODE_SECOND,
        "fchmod": _MODE_SECOND,
        "fchmodat": _MODE_THIRD,
        "fchmodat2": _MODE_THIRD,
        "creat": _MODE_SECOND,
        "mkdir": _MODE_SECOND,
        "mkdirat": _MODE_THIRD,
        "mknod": _MODE_SECOND,
        "mknodat": _MODE_THIRD,
        "open": Arguments((Test(1, "none of", _MAKES_A_FILE, True), Test(2, "any of", _SET_ID, False)), True),
        "openat": Arguments((Test(2, "none of", _MAKES_A_FILE, True), Test(3, "any of", _SET_ID, False)), True),
        # F_SETLEASE: whoever owns a file may hold up everybody who opens it, however it was handed over.
        "fcntl": Arguments((Test(1, "is", 1024, False),), True),
    }
)
# The limit of core dumps is 1, which alone keeps the kernel from starting a collector, and is no dump at all. It can only be lowered,
# by programs that want none either (gpg, ssh-agent): they are told that they have it so, and 1 stays.
_CORE = 4

_KEPT = Test(2, "is not", 0, False)  # an address: none is set where it is 0
_LIMITS: Mapping[str, Arguments] = MappingProxyType(
    {
        "setrlimit": Arguments((Test(0, "is", _CORE, False),), True, 0),
        "prlimit64": Arguments((Test(1, "is not", _CORE, True), _KEPT, _KEPT._replace(high=True)), True, 0),
    }
)
_UNIX_SOCKET = Arguments((Test(0, "is", _AF_UNIX, True),), False, errno.EAFNOSUPPORT)

CHECKS: Mapping[Literal["default", "strict"], Mapping[str, Arguments]] = MappingProxyType(
    {
        "default": MappingProxyType(
            {
                **_FILES,
                **_LIMITS,
                "clone": Arguments((_NO_NAMESPACES, _NO_SIBLINGS), True),
                "unshare": Arguments((_NO_NAMESPACES,), True),
                "ioctl": _IOCTL,
                "personality": _PERSONALITY,
                "socket": _SOCKET,
                "socketpair": _SOCKET,
            }
        ),
        "strict": MappingProxyType(
            {
                **{name: check for name, check in _FILES.items() if not name.startswith("mknod")},
                **_LIMITS,
                "clone": Arguments((_NO_NAMESPACES, Test(0, "none of", _CLONE_THREAD, False)), True),
                "ioctl": _IOCTL,
                "personality": _PERSONALITY,
                "socket": _UNIX_SOCKET,
                "socketpair": _UNIX_SOCKET,
            }
        ),
    }
)

# --- numbers --------------------------------------------------------------------------------------------------------------------

# From 440 on, in their order: the numbers are the same on all architectures, and a libseccomp older than the kernel lacks them.
_SINCE_440 = (
    "process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset landlock_add_rule landlock_restrict_self"
    " memfd_secret process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake futex_wait"
    " futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat"
    " removexattrat open_tree_attr file_getattr file_setattr listns rseq_slice_yield"
)
LAST_KNOWN = 440 + len(_SINCE_440.split()) - 1
"""No number above is that of a call somebody here has looked at."""
_EVERYWHERE: Mapping[str, int] = MappingProxyType({name: 440 + index for index, name in enumerate(_SINCE_440.split())})
_ON_X86_64: Mapping[str, int] = MappingProxyType({"uretprobe": 335, "uprobe": 336})
_UNKNOWN = -1  # to libseccomp; other negative numbers: a call of other architectures only


@functools.cache
def _resolve() -> Callable[[int, bytes], int]:
    """libseccomp's function for the number of a name."""
    try:
        import ctypes
    except ImportError as error:
        raise _missing(f"this Python cannot load libraries ({error})", "") from None
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        install = "Debian and Ubuntu: apt-get install libseccomp2; Fedora: dnf install libseccomp; Alpine: apk add libseccomp; "
        raise _missing("libseccomp.so.2 is not installed", install) from None
    resolve = library.seccomp_syscall_resolve_name_arch
    resolve.argtypes, resolve.restype = (ctypes.c_uint32, ctypes.c_char_p), ctypes.c_int
    return resolve


def _missing(what: str, install: str) -> SpawnError:
    text = f"{what}, so that there is no table of the system calls to make a filter from. {install}without a filter: seccomp='off'"
    return failure(Status.NOT_SUPPORTED, Stage.ARGUMENTS, text)


def is_call(name: str) -> bool:
    """Whether a system call has this name, on whatever architecture.

    Raises:
        NotSupportedError: it is in no table here, and libseccomp is not installed.
    """
    if name in RULES["default"] or name in ALWAYS:
        return True
    return name.isascii() and name.isidentifier() and _resolve()(AUDIT_ARCH["x86_64"], name.encode()) != _UNKNOWN


def number_of(name: str, machine: str) -> int | None:
    """The number of a system call on a machine; None where that machine has none of this name.

    Raises:
        NotSupportedError: libseccomp is not installed.
    """
    if name in _EVERYWHERE:
        return _EVERYWHERE[name]
    if machine == "x86_64" and name in _ON_X86_64:
        return _ON_X86_64[name]
    number = _resolve()(AUDIT_ARCH[machine], name.encode())
    return number if number >= 0 else None


def nearest(name: str) -> str | None:
    """The system call that may have been meant."""
    import difflib

    found = difflib.get_close_matches(name, RULES["default"], n=1)
    return found[0] if found else None
