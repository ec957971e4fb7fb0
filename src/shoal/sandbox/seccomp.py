"""Seccomp: which system calls a program may make, and the filter that the kernel is given for it.

"default" is for programs that nobody trusts, and must not break those that behave: it closes what reaches beyond the program's own
world (other processes, namespaces, mounts, the machine) and what is known more for its holes than for its use. "strict" is for
programs that compute, as judges run them: one process with threads, files, and sockets of the family AF_UNIX only. It cannot make
another process, though it can execute another program in its own place: the launch itself does. Closed besides: message queues,
semaphores and shared memory of System V and POSIX, changes of user, owner and extended attributes, fifos and devices, inotify,
asynchronous I/O, sync, vmsplice. What each says of each call is in `syscalls`; `bpf` makes a short program of it.

In every filter:

* A number that no table knows answers ENOSYS, also where a refused call kills: a C library tries what is new, and falls back.
* The 32-bit ABI (int 0x80; on aarch64, AArch32) kills. A program of that ABI could not even write or exit, so no answer would get it
  further than a crash somewhere; SIGSYS says what happened. x32 has numbers of its own, far above all others: ENOSYS, which is also
  what most kernels answer.
* Only the calls named are meant: to deny open leaves openat.

Making a filter takes 8 to 12 ms (loading libseccomp, 470 names, the tree). It is kept in memory, and in $XDG_RUNTIME_DIR/shoal between
processes, which makes it 0.3 ms. A kept filter is trusted only where nobody else could have written it.
Source: seccomp(2); systemd.exec(5) for what is allowed without being named.
"""

from __future__ import annotations

import binascii
import errno
import functools
import os
import stat
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from shoal import xdg
from shoal.status import Stage, Status, failure

if TYPE_CHECKING:
    from shoal.sandbox import bpf  # and `syscalls`: only where a filter is made, which most processes need not do

Mode: TypeAlias = Literal["default", "strict", "off"]
Base: TypeAlias = Literal["default", "strict", "none"]

_MACHINES = ("x86_64", "aarch64")
_NAMES_SHOWN = 8  # of a list in a label


@dataclass(frozen=True, slots=True, kw_only=True)
class Seccomp:
    """A list of system calls of one's own.

    `Seccomp(deny=["ptrace"])` is the default filter and more; `Seccomp(allow=["read", "write"])` lets pass only these, and ALWAYS,
    which start the program; `Seccomp(base="default", allow=["ptrace"])` is the default filter and less, here for debuggers, strace
    and programs with a leak sanitizer.

    Names are checked when it is made. One that only another architecture has is accepted and has no effect.

    Args:
        deny: calls that are refused.
        allow: calls that may be made, whatever their arguments; with base "none", the only ones. None and an empty list differ.
        base: the filter that this changes. "none" has no rules of its own: everything may be made, or nothing but `allow`. Left
            out, it is "none" with `allow` and "default" without.
        on_denied: what a refused call gets: "errno" is EPERM (EAFNOSUPPORT for a family of sockets), a number is that errno, and
            "kill" ends the whole process with SIGSYS. Programs probe: node dies of "kill" when it tries io_uring. clone3 answers
            ENOSYS in any case, since this alone makes a C library use clone.

    Raises:
        TypeError: a list of names is no list of names.
        ValueError: no system call has such a name (the message tells the nearest), or the lists contradict each other.
        NotSupportedError: a name is in no table of shoal's, and libseccomp, which knows more, is not installed.
    """

    deny: Collection[str] = ()
    allow: Collection[str] | None = None
    base: Base | None = None
    on_denied: Literal["errno", "kill"] | int = "errno"

    def __post_init__(self) -> None:
        # Equal filters are equal: what was given is put in order, and what was left out filled in.
        set_field = functools.partial(object.__setattr__, self)
        set_field("deny", _checked("deny", self.deny, denied=True))
        if self.allow is not None:
            set_field("allow", _checked("allow", self.allow))
        if self.base is None:
            set_field("base", "default" if self.allow is None else "none")
        if self.base not in get_args(Base):
            raise ValueError(f"base={self.base!r}: it is 'default', 'strict' or 'none'")
        number = self.on_denied
        if number not in ("errno", "kill") and (isinstance(number, bool | str) or not 0 < number < 4096):
            raise ValueError(f"on_denied={number!r}: it is 'errno', 'kill' or the number of an errno")
        if both := set(self.deny) & set(self.allow or ()):
            raise ValueError(f"both allowed and denied: {', '.join(sorted(both))}")


def _checked(what: str, names: Collection[str], *, denied: bool = False) -> tuple[str, ...]:
    given = () if isinstance(names, str | bytes) else tuple(names)  # once: it may be an iterator, and an empty list is no error
    if isinstance(names, str | bytes) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"{what} is a list of names of system calls, not {names!r}")
    if not given:
        return ()
    from shoal.sandbox import syscalls

    if denied and (always := syscalls.ALWAYS.intersection(given)):
        raise ValueError(f"{what}: {', '.join(sorted(always))} cannot be denied: it starts the program, or ends it")
    for name in given:
        if not syscalls.is_call(name):
            near = syscalls.nearest(name)
            raise ValueError(f"{what}: there is no system call {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    return tuple(sorted(set(given)))


_MODES = {"default": Seccomp(), "strict": Seccomp(base="strict")}


@dataclass(frozen=True, slots=True)
class Filter:
    """What the kernel is given.

    Attributes:
        program: packed struct sock_filter.
        label: what it is, for listings.
        denied: calls of this machine that are never made, whatever their arguments.
        limited: calls that are made with some arguments only.
        early: a process of a cell made ahead may have it before it is told what to execute.
        names: of this machine's calls, by number; "" where there is none.
    """

    program: bytes
    label: str
    denied: frozenset[str]
    limited: frozenset[str]
    early: bool
    names: tuple[str, ...] = field(repr=False, compare=False)

    def name_of(self, number: int) -> str:
        """The call that a number means, as the kernel tells it in a siginfo of SIGSYS or in its log; "call N" for an unknown one."""
        return (0 <= number < len(self.names) and self.names[number]) or f"call {number}"


def filter_for(mode: str | Seccomp) -> Filter | None:
    """The filter of a sandbox on this machine; None for "off". The same object every time.

    Args:
        mode: "default", "strict", "off", or a list of one's own.

    Raises:
        ValueError: there is no such mode.
        NotSupportedError: libseccomp is not installed and no filter is kept from before, or this is neither x86-64 nor aarch64.
    """
    if mode == "off":
        return None
    if isinstance(mode, str):
        if mode not in _MODES:
            raise ValueError(f"seccomp={mode!r}: it is 'default', 'strict', 'off' or a shoal.Seccomp")
        mode = _MODES[mode]
    return _kept_or_made(mode, os.uname().machine)


@functools.cache
def _kept_or_made(wanted: Seccomp, machine: str) -> Filter:
    if machine not in _MACHINES:
        text = f"seccomp filters are made for {' and '.join(_MACHINES)}, and this is {machine}; without one: seccomp='off'"
        raise failure(Status.NOT_SUPPORTED, Stage.ARGUMENTS, text)
    key = _key(wanted, machine)
    found = _kept(key)
    if found is None:
        found = make_filter(wanted, machine)
        _keep(key, found)
    return found


# --- from names to a program ----------------------------------------------------------------------------------------------------


def make_filter(wanted: Seccomp, machine: str) -> Filter:
    """The filter for a machine, this or another, worked out anew.

    Args:
        machine: x86_64 or aarch64.

    Raises:
        NotSupportedError: libseccomp is not installed.
    """
    from shoal.sandbox import bpf, syscalls

    outcomes: dict[int, bpf.Outcome] = {}
    names: dict[int, str] = {}
    elsewhere = set()
    for name in {**syscalls.RULES["default"], **dict.fromkeys((*wanted.deny, *(wanted.allow or ())))}:
        number = syscalls.number_of(name, machine)
        if number is None:
            elsewhere.add(name)
        else:
            outcomes[number], names[number] = _outcome(wanted, name), name
    absent = bpf.answer(errno.ENOSYS)
    passing = {names[number] for number, outcome in outcomes.items() if outcome == bpf.ALLOW}
    limited = frozenset(names[number] for number, outcome in outcomes.items() if isinstance(outcome, bpf.Check))
    return Filter(
        program=bpf.program(syscalls.AUDIT_ARCH[machine], outcomes, absent),
        label=_label(wanted, elsewhere),
        denied=frozenset(names.values()) - passing - limited,
        limited=limited,
        # Of these only leases and the limit of core dumps are closed, which is set by then.
        early=passing | (limited & {"fcntl", "prlimit64"}) >= syscalls.WAITING,
        names=tuple(names.get(number, "") for number in range(max(names) + 1)),
    )


def _outcome(wanted: Seccomp, name: str) -> bpf.Outcome:
    """What becomes of a call."""
    from shoal.sandbox import bpf, syscalls

    refusal = bpf.KILL if wanted.on_denied == "kill" else bpf.answer(errno.EPERM if wanted.on_denied == "errno" else wanted.on_denied)
    absent = bpf.answer(errno.ENOSYS)
    if name in wanted.deny:
        return absent if name == "clone3" else refusal
    if name in syscalls.ALWAYS or name in (wanted.allow or ()):
        return bpf.ALLOW
    base = wanted.base or "none"
    if base != "none":
        rule = syscalls.RULES[base].get(name, "absent")
        if rule == "open" and name in syscalls.CHECKS[base]:
            check = syscalls.CHECKS[base][name]
            own = wanted.on_denied == "errno" or check.errno == 0
            return bpf.Check(check.tests, check.otherwise, bpf.answer(check.errno) if own else refusal)
    elif wanted.allow is None:
        rule = "open"
    else:
        rule = "absent" if syscalls.RULES["default"].get(name) == "absent" else "refused"
    return {"open": bpf.ALLOW, "refused": refusal, "absent": absent}[rule]


def _label(wanted: Seccomp, elsewhere: set[str]) -> str:
    """In words. A name without effect here is shown to have none: nobody shall think that denying umount denies umount2."""
    parts = []
    if wanted.base != "none":
        parts.append(str(wanted.base))
        if wanted.allow:
            parts.append("with " + _listed(wanted.allow, elsewhere))
        if wanted.deny:
            parts.append("without " + _listed(wanted.deny, elsewhere))
    elif wanted.allow is None:
        parts.append("everything without " + _listed(wanted.deny, elsewhere) if wanted.deny else "everything that has a name")
    else:
        parts.append("only " + (_listed(wanted.allow, elsewhere) or "what starts a program"))
    if wanted.on_denied == "kill":
        parts.append("else killed")
    elif wanted.on_denied != "errno":
        parts.append(f"else {errno.errorcode.get(wanted.on_denied, f'errno {wanted.on_denied}')}")
    return ", ".join(parts)


def _listed(names: Collection[str], elsewhere: set[str]) -> str:
    shown = [f"{name} (not on this machine)" if name in elsewhere else name for name in list(names)[:_NAMES_SHOWN]]
    more = len(names) - len(shown)
    return " ".join(shown) + (f" and {more} more" if more else "")


# --- kept on disk ---------------------------------------------------------------------------------------------------------------

_HEAD = struct.Struct("<4sIII")
_MAGIC = b"shS1"
_FILES = 256  # a filter's place is one of so many, so that a program which makes up filters without end fills no disk
_LARGEST = 1 << 20


def _key(wanted: Seccomp, machine: str) -> str:
    """All that a filter depends on. Nothing of the kernel: a call that it lacks answers ENOSYS with any filter."""
    from shoal import __version__

    stamps = []
    for module in ("bpf.py", "seccomp.py", "syscalls.py"):
        with suppress(OSError):  # not a file of its own: then the version has to do
            at = os.stat(os.path.join(os.path.dirname(__file__), module))
            stamps.append(f"{at.st_size}.{at.st_mtime_ns}")
    return f"{__version__} {machine} {wanted!r} {' '.join(stamps)}"


@contextmanager
def _folder(*, make: bool) -> Iterator[int]:
    """A descriptor of $XDG_RUNTIME_DIR/shoal, or /run/shoal for root. OSError where there is none, or others could write to it.

    Not of the cache folder: that is handed over to programs, to be written to, and a filter that one of them has put there would
    be the next one's.
    """
    runtime = xdg.directory("XDG_RUNTIME_DIR") or ("/run" if os.geteuid() == 0 else "")
    if not runtime:
        raise FileNotFoundError(errno.ENOENT, "this user has no folder for what lasts as long as a session")
    path = os.path.join(runtime, "shoal")
    if make and not os.path.isdir(path):
        if os.stat(runtime).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is somebody else's")
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        at = os.fstat(fd)
        if at.st_uid != os.geteuid() or at.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "it is not this user's alone")
        yield fd
    finally:
        os.close(fd)


def _place(key: str) -> str:
    return f"seccomp-{binascii.crc32(key.encode()) % _FILES:02x}"


def _kept(key: str) -> Filter | None:
    """The filter that was kept for this key, if it is beyond doubt."""
    try:
        with _folder(make=False) as folder:
            fd = os.open(_place(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with open(fd, "rb") as file:
                at = os.fstat(fd)
                if not stat.S_ISREG(at.st_mode) or at.st_uid != os.geteuid() or stat.S_IMODE(at.st_mode) != 0o600:
                    return None
                data = file.read(_LARGEST)
        return _unpacked(data, key)
    except (OSError, ValueError, struct.error):
        return None


def _keep(key: str, made: Filter) -> None:
    """Where it cannot be kept it is made again next time."""
    with suppress(OSError), _folder(make=True) as folder:
        draft = f".{_place(key)}.{os.getpid()}.{os.urandom(4).hex()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            with open(fd, "wb") as file:
                os.fchmod(fd, 0o600)  # whatever the umask
                file.write(_packed(made, key))
            os.rename(draft, _place(key), src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(draft, dir_fd=folder)
            raise


def _packed(made: Filter, key: str) -> bytes:
    fields = (key, made.label, " ".join(sorted(made.denied)), " ".join(sorted(made.limited)), "early" * made.early, ",".join(made.names))
    text = "\n".join(fields).encode()
    return _HEAD.pack(_MAGIC, len(text), len(made.program), binascii.crc32(text + made.program)) + text + made.program


def _unpacked(data: bytes, key: str) -> Filter | None:
    magic, text_size, program_size, check = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != _MAGIC or len(body) != text_size + program_size or binascii.crc32(body) != check:
        return None
    found, label, denied, limited, early, names = body[:text_size].decode().split("\n")
    if found != key:  # another filter has this place
        return None
    return Filter(body[text_size:], label, frozenset(denied.split()), frozenset(limited.split()), bool(early), tuple(names.split(",")))
