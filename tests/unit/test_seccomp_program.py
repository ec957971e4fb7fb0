"""System-call filters: what the program says of every number.

The interpreter below runs the program as the kernel would; that the kernel takes it and does the same is in tests/kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.sandbox import bpf, syscalls
from shoal.sandbox.seccomp import Seccomp, make_filter

MACHINES = tuple(syscalls.AUDIT_ARCH)
NEWEST = 471
ABSENT, REFUSED = bpf.answer(errno.ENOSYS), bpf.answer(errno.EPERM)
NO_FAMILY = bpf.answer(errno.EAFNOSUPPORT)
DONE = bpf.answer(0)
MINUS_ONE = (1 << 64) - 1
HIGH = 1 << 32
"""A bit that the kernel cuts off."""

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWTIME = 0x10000000, 0x40000000, 0x00020000, 0x80
CORE = 4  # the limit of core dumps
CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_THREAD = 0x100, 0x200, 0x400, 0x10000
THREAD = 0x3D0F00  # what a C library asks for
UNIX, INET, INET6, NETLINK, ALG, VSOCK, PACKET, XDP = 1, 2, 10, 16, 38, 40, 17, 44


def run(program: bytes, number: int, *arguments: int, arch: int = syscalls.AUDIT_ARCH["x86_64"]) -> int:
    """What the program answers, in the kernel's words. Whatever the kernel would refuse to load fails here."""
    assert len(program) % 8 == 0
    assert 0 < len(program) // 8 <= 4096
    data = struct.pack("<IIQ6Q", number, arch, 0, *(arguments + (0,) * (6 - len(arguments))))
    code = list(struct.iter_unpack("=HBBI", program))
    loaded, at = 0, 0
    while True:
        operation, yes, no, value = code[at]
        at += 1
        if operation == 0x20:
            assert value % 4 == 0
            (loaded,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return value
        elif operation == 0x05:
            at += value
        else:
            met = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[operation]
            at += yes if met else no


def numbers(machine: str) -> dict[str, int]:
    every = {name: syscalls.number_of(name, machine) for name in syscalls.RULES["default"]}
    return {name: number for name, number in every.items() if number is not None}


def answers(wanted: Seccomp, name: str, *arguments: int, machine: str = "x86_64") -> int:
    return run(make_filter(wanted, machine).program, numbers(machine)[name], *arguments, arch=syscalls.AUDIT_ARCH[machine])


# --- default and strict ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("base", ["default", "strict"])
def test_every_number_has_the_outcome_that_its_group_says(base: str, machine: str) -> None:
    program = make_filter(Seccomp(base=base), machine).program
    by_number = {number: name for name, number in numbers(machine).items()}
    wanted = {"open": bpf.ALLOW, "refused": REFUSED, "absent": ABSENT}
    arch = syscalls.AUDIT_ARCH[machine]
    for number in range(1001):
        name = by_number.get(number)
        if name in syscalls.CHECKS[base]:
            continue
        expected = ABSENT if name is None else wanted[syscalls.RULES[base][name]]
        for arguments in ((), (MINUS_ONE,) * 6):
            assert run(program, number, *arguments, arch=arch) == expected, (number, name)


@pytest.mark.parametrize("number", [472, 600, 1 << 16, 0x40000000, 0x40000000 + 1, 0x40000000 + 520, 0x7FFFFFFF, 1 << 31, (1 << 32) - 1])
def test_numbers_beyond_all_tables_and_those_of_x32_are_as_if_the_kernel_had_no_such_call(number: int) -> None:
    for wanted in (Seccomp(), Seccomp(base="strict"), Seccomp(base="none"), Seccomp(allow=["read"], on_denied="kill")):
        assert run(make_filter(wanted, "x86_64").program, number) == ABSENT


@pytest.mark.parametrize(("machine", "other"), [("x86_64", 0x40000003), ("aarch64", 0x40000028), ("x86_64", 0xC00000B7), ("aarch64", 0)])
def test_another_abi_of_the_processor_is_killed_whatever_the_number(machine: str, other: int) -> None:
    program = make_filter(Seccomp(), machine).program
    assert {run(program, number, arch=other) for number in (0, 1, 20, 60, 93, 500)} == {bpf.KILL}


BOTH = ("default", "strict")
ARGUMENTS: list[tuple[tuple[str, ...], str, tuple[int, ...], int]] = [
    (BOTH, "clone", (THREAD,), bpf.ALLOW),
    (("default",), "clone", (signal.SIGCHLD,), bpf.ALLOW),
    (("default",), "clone", (0x4111,), bpf.ALLOW),  # as a C library's vfork and posix_spawn
    (("strict",), "clone", (signal.SIGCHLD,), REFUSED),
    (("strict",), "clone", (CLONE_VM | 0x4000 | signal.SIGCHLD,), REFUSED),
    (("strict",), "clone", (signal.SIGCHLD | CLONE_THREAD * HIGH,), REFUSED),
    (BOTH, "clone", (CLONE_NEWUSER | signal.SIGCHLD,), REFUSED),
    (BOTH, "clone", (THREAD | CLONE_NEWNET,), REFUSED),
    (BOTH, "clone", (HIGH | THREAD | CLONE_NEWNS,), REFUSED),
    (("default",), "unshare", (CLONE_FILES | CLONE_FS,), bpf.ALLOW),
    (("default",), "unshare", (CLONE_NEWUSER,), REFUSED),
    (("default",), "unshare", (CLONE_NEWTIME,), REFUSED),
    (("default",), "unshare", (CLONE_FILES | CLONE_NEWNS,), REFUSED),
    (BOTH, "ioctl", (0, 0x5401), bpf.ALLOW),
    (BOTH, "ioctl", (0, 0x5412), REFUSED),
    (BOTH, "ioctl", (0, 0x5412 | HIGH), REFUSED),
    (BOTH, "ioctl", (0, 0x541C | 0xFFFFFFFF * HIGH), REFUSED),
    (BOTH, "ioctl", (0, 0x5423), REFUSED),
    (BOTH, "ioctl", (0x5412, 0x5413, 0x5412), bpf.ALLOW),
    (BOTH, "personality", (0,), bpf.ALLOW),
    (BOTH, "personality", (0xFFFFFFFF,), bpf.ALLOW),
    (BOTH, "personality", (MINUS_ONE,), bpf.ALLOW),
    (BOTH, "personality", (0x0008,), bpf.ALLOW),
    (BOTH, "personality", (0x0040000,), bpf.ALLOW),
    (BOTH, "personality", (0x0020008,), bpf.ALLOW),
    (BOTH, "personality", (0x0400000,), REFUSED),
    (BOTH, "personality", (0x0040000 | 0x0100000,), REFUSED),
    (BOTH, "personality", (0x0200000 | HIGH,), REFUSED),
    (BOTH, "socket", (UNIX, 1, 0), bpf.ALLOW),
    (BOTH, "socketpair", (UNIX, 2, 0), bpf.ALLOW),
    (("default",), "socket", (INET, 1, 6), bpf.ALLOW),
    (("default",), "socket", (INET6 | HIGH, 2, 17), bpf.ALLOW),
    (("default",), "socket", (NETLINK, 3, 0), bpf.ALLOW),
    (("default",), "socket", (NETLINK, 3, 9), NO_FAMILY),  # audit
    (("default",), "socket", (NETLINK, 3, 15), NO_FAMILY),  # uevents
    (("strict",), "socket", (INET, 1, 0), NO_FAMILY),
    (("strict",), "socket", (INET6, 1, 0), NO_FAMILY),
    (("strict",), "socket", (NETLINK, 3, 0), NO_FAMILY),
    (BOTH, "setrlimit", (CORE, MINUS_ONE), DONE),
    (BOTH, "setrlimit", (CORE | HIGH, 0), DONE),
    (BOTH, "setrlimit", (CORE + 1, MINUS_ONE), bpf.ALLOW),
    (BOTH, "prlimit64", (0, CORE, 0, MINUS_ONE), bpf.ALLOW),
    (BOTH, "prlimit64", (0, CORE, 1, 0), DONE),
    (BOTH, "prlimit64", (0, CORE | HIGH, HIGH, MINUS_ONE), DONE),
    (BOTH, "prlimit64", (CORE, CORE + 1, MINUS_ONE, 0), bpf.ALLOW),
    *[(BOTH, name, (family, 3, 0), NO_FAMILY) for name in ("socket", "socketpair") for family in (ALG, VSOCK, PACKET, XDP, 0, 1000)],
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("bases", "name", "arguments", "expected"), ARGUMENTS)
def test_arguments(machine: str, bases: tuple[str, ...], name: str, arguments: tuple[int, ...], expected: int) -> None:
    for base in bases:
        assert answers(Seccomp(base=base), name, *arguments, machine=machine) == expected, base


NAMESPACES = {"mount": 17, "cgroup": 25, "uts": 26, "ipc": 27, "user": 28, "pid": 29, "network": 30}


@pytest.mark.parametrize("bit", NAMESPACES.values(), ids=NAMESPACES.keys())
def test_no_kind_of_namespace_is_made(bit: int) -> None:
    for base in BOTH:
        for flags in (1 << bit, THREAD | 1 << bit, signal.SIGCHLD | 1 << bit):
            assert answers(Seccomp(base=base), "clone", flags) == REFUSED
        assert answers(Seccomp(base=base), "unshare", 1 << bit) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
def test_strict_closes_all_that_default_closes(machine: str) -> None:
    default, strict = make_filter(Seccomp(), machine), make_filter(Seccomp(base="strict"), machine)
    assert default.denied < strict.denied
    assert default.limited <= strict.limited | strict.denied


def test_the_calls_of_every_architecture_are_in_exactly_one_group_each() -> None:
    names = [name for group in syscalls.GROUPS for name in group.names.split()]
    assert len(names) == len(set(names))
    lookup = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_num_arch
    lookup.argtypes, lookup.restype = (ctypes.c_uint32, ctypes.c_int), ctypes.c_char_p
    for machine, arch in syscalls.AUDIT_ARCH.items():
        known = {number: found.decode() for number in range(NEWEST + 1) if (found := lookup(arch, number))}
        assert set(known.values()) <= set(names)
        # Where libseccomp knows a call too, it has the number that we have.
        assert {number: name for name, number in numbers(machine).items() if number in known} == known


def test_what_a_name_is_checked_against_is_there() -> None:
    for base, rules in syscalls.RULES.items():
        assert {name for name in syscalls.CHECKS[base] if rules[name] != "open"} == set()
        assert {name for name in syscalls.ALWAYS if rules[name] != "open" or name in syscalls.CHECKS[base]} == set()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("base", "longest"), [("default", 128), ("strict", 158)])
def test_a_program_is_short_since_it_is_loaded_at_every_launch(base: str, longest: int, machine: str) -> None:
    assert len(make_filter(Seccomp(base=base), machine).program) // 8 <= longest


def test_a_limit_that_is_held_kills_nobody_who_sets_it() -> None:
    for wanted in (Seccomp(on_denied="kill"), Seccomp(on_denied=errno.EACCES)):
        assert answers(wanted, "setrlimit", CORE, 1) == DONE
    assert answers(Seccomp(base="default", allow=["setrlimit"]), "setrlimit", CORE, 1) == bpf.ALLOW


def test_a_set_user_id_file_is_not_made_and_others_are() -> None:
    create, tmpfile = os.O_CREAT | os.O_WRONLY, 0o20000000 | os.O_RDWR
    for base in BOTH:
        box = Seccomp(base=base)
        for mode in (0o4755, 0o2755, 0o6000):
            assert answers(box, "chmod", 0, mode) == answers(box, "fchmod", 0, mode) == answers(box, "fchmodat", 0, 0, mode) == REFUSED
            assert answers(box, "fchmodat2", 0, 0, mode) == answers(box, "creat", 0, mode) == REFUSED
            assert answers(box, "open", 0, create, mode) == answers(box, "openat", 0, 0, create, mode) == REFUSED
            assert answers(box, "openat", 0, 0, tmpfile, mode) == REFUSED
            assert answers(box, "openat", 0, 0, os.O_RDONLY, mode) == bpf.ALLOW, "there the mode is anything"
        assert answers(box, "chmod", 0, 0o1777) == answers(box, "openat", 0, 0, create, 0o755) == bpf.ALLOW
        assert answers(box, "fcntl", 0, 1024) == REFUSED
        assert answers(box, "fcntl", 0, 1) == bpf.ALLOW


# --- the tree -------------------------------------------------------------------------------------------------------------------

ERRNOS = st.integers(1, 4095).map(bpf.answer)
PLAIN = st.one_of(st.sampled_from([bpf.ALLOW, bpf.KILL, REFUSED, ABSENT]), ERRNOS)
VALUES = st.one_of(st.integers(0, 9), st.integers(0, 0xFFFFFFFF))
TESTS = st.builds(bpf.Test, st.integers(0, 5), st.sampled_from(["is", "is not", "any of", "none of"]), VALUES, st.booleans(), st.booleans())
CHECKED = st.builds(bpf.Check, st.lists(TESTS, max_size=5).map(tuple), st.booleans(), PLAIN)
MAPS = st.dictionaries(st.one_of(st.integers(0, 40), st.integers(0, 700)), st.one_of(PLAIN, CHECKED), max_size=120)
ARGUMENT_SETS = st.lists(st.tuples(*[st.one_of(st.integers(0, 9), st.integers(0, MINUS_ONE))] * 6), min_size=1, max_size=4)


def decided(outcome: bpf.Outcome, arguments: tuple[int, ...]) -> int:
    """What an outcome means, said once more in another way."""
    if isinstance(outcome, int):
        return outcome
    for argument, how, value, passes, high in outcome.tests:
        half = arguments[argument] // HIGH if high else arguments[argument] % HIGH
        if {"is": half == value, "is not": half != value, "any of": half & value != 0, "none of": half & value == 0}[how]:
            return bpf.ALLOW if passes else outcome.refusal
    return bpf.ALLOW if outcome.otherwise else outcome.refusal


@given(MAPS, PLAIN, ARGUMENT_SETS)
@example({}, ABSENT, [(0,) * 6])
@example({0: bpf.Check((), True, REFUSED)}, REFUSED, [(0,) * 6])
@example(dict.fromkeys(range(700), bpf.ALLOW), bpf.ALLOW, [(0,) * 6])
def test_a_program_says_of_every_number_what_it_was_made_of(
    outcomes: Mapping[int, bpf.Outcome], otherwise: int, argument_sets: list[tuple[int, ...]]
) -> None:
    program = bpf.program(7, outcomes, otherwise)
    edges = {edge for number in outcomes for edge in (number - 1, number, number + 1)} | {0, 701, 0x40000000, 0xFFFFFFFF}
    for number in edges - {-1}:
        for arguments in argument_sets:
            assert run(program, number, *arguments, arch=7) == decided(outcomes.get(number, otherwise), arguments)
    assert run(program, 0, arch=8) == bpf.KILL


@pytest.mark.parametrize("count", [100, 600, 1500])
def test_a_program_too_long_for_one_jump_says_the_same(count: int) -> None:
    check = bpf.Check((bpf.Test(0, "is", 7, True), bpf.Test(3, "any of", 8, False)), True, bpf.answer(9))
    outcomes: dict[int, bpf.Outcome] = {number: [bpf.ALLOW, bpf.answer(number % 50 + 1), check][number % 3] for number in range(count)}
    program = bpf.program(7, outcomes, ABSENT)
    for number in range(count + 5):
        for arguments in ((7, 0, 0, 8, 0, 0), (1, 0, 0, 8, 0, 0), (1, 0, 0, 7, 0, 0)):
            assert run(program, number, *arguments, arch=7) == decided(outcomes.get(number, ABSENT), arguments)


# --- lists of one's own ---------------------------------------------------------------------------------------------------------


def test_deny_is_on_top_of_the_default_filter() -> None:
    wanted = Seccomp(deny=["mkdir", "socket", "mount"])
    assert answers(wanted, "mkdir") == REFUSED
    assert answers(wanted, "socket", UNIX) == REFUSED
    assert answers(wanted, "mkdirat") == bpf.ALLOW
    assert answers(wanted, "ptrace") == REFUSED
    assert answers(wanted, "clone3") == ABSENT
    assert answers(wanted, "ioctl", 0, 0x5412) == REFUSED


def test_allow_alone_means_only_these_and_what_starts_the_program() -> None:
    made = make_filter(Seccomp(allow=["read", "write"]), "x86_64")
    passing = {name for name, number in numbers("x86_64").items() if run(made.program, number) == bpf.ALLOW}
    assert passing == {"read", "write"} | syscalls.ALWAYS
    assert answers(Seccomp(allow=["read"]), "openat") == REFUSED
    assert answers(Seccomp(allow=["read"]), "modify_ldt") == ABSENT


def test_an_empty_list_of_what_is_allowed_allows_nothing() -> None:
    made = make_filter(Seccomp(allow=[]), "x86_64")
    assert {name for name, number in numbers("x86_64").items() if run(made.program, number) == bpf.ALLOW} == syscalls.ALWAYS


def test_allow_with_a_base_opens_a_call_in_all_its_forms() -> None:
    wanted = Seccomp(base="default", allow=["ptrace", "socket"])
    assert answers(wanted, "ptrace") == bpf.ALLOW
    assert answers(wanted, "socket", VSOCK) == bpf.ALLOW
    assert answers(wanted, "socketpair", VSOCK) == NO_FAMILY
    assert answers(wanted, "process_vm_readv") == REFUSED
    assert answers(Seccomp(base="strict", allow=["fork", "clone"]), "clone", signal.SIGCHLD) == bpf.ALLOW


def test_without_a_base_everything_that_has_a_name_may_be_called_except_what_is_denied() -> None:
    made = make_filter(Seccomp(base="none", deny=["ptrace"]), "x86_64")
    refused = {name for name, number in numbers("x86_64").items() if run(made.program, number, *(MINUS_ONE,) * 6) != bpf.ALLOW}
    assert refused == {"ptrace"}
    assert run(made.program, 999) == ABSENT


def test_what_a_refused_call_gets_can_be_chosen() -> None:
    assert answers(Seccomp(on_denied=errno.EACCES), "mount") == bpf.answer(errno.EACCES)
    assert answers(Seccomp(on_denied=errno.EACCES), "socket", VSOCK) == bpf.answer(errno.EACCES)
    assert answers(Seccomp(on_denied="kill"), "mount") == bpf.KILL
    assert answers(Seccomp(on_denied="kill"), "socket", VSOCK) == bpf.KILL
    assert answers(Seccomp(on_denied="kill", deny=["read"]), "read") == bpf.KILL
    assert answers(Seccomp(on_denied="kill"), "modify_ldt") == ABSENT


def test_clone3_is_absent_even_where_it_is_denied_by_name_so_that_the_c_library_falls_back() -> None:
    assert answers(Seccomp(deny=["clone3"], on_denied="kill"), "clone3") == ABSENT
    assert answers(Seccomp(allow=["clone"], on_denied="kill"), "clone3") == ABSENT
    assert answers(Seccomp(allow=["clone3"]), "clone3") == bpf.ALLOW


def test_a_name_of_another_architecture_is_accepted_and_shown_to_be_without_effect() -> None:
    wanted = Seccomp(deny=["open", "socketcall"])
    assert make_filter(wanted, "x86_64").label == "default, without open socketcall (not on this machine)"
    assert make_filter(wanted, "aarch64").label == "default, without open (not on this machine) socketcall (not on this machine)"
    plain = make_filter(Seccomp(), "aarch64")
    assert make_filter(wanted, "aarch64").program == plain.program


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"deny": ["ptrac"]}, "deny: there is no system call 'ptrac'; did you mean 'ptrace'?"),
        ({"allow": ["read", "fsopenn"]}, "allow: there is no system call 'fsopenn'; did you mean 'fsopen'?"),
        ({"deny": ["qqqqqqqq"]}, "deny: there is no system call 'qqqqqqqq'$"),
        ({"deny": ["read\0"]}, "no system call 'read"),
        ({"deny": ["lire™"]}, "no system call 'lire™'"),
        ({"deny": ["ptrace"], "allow": ["ptrace", "read"]}, "both allowed and denied: ptrace"),
        ({"deny": ["execveat"]}, "execveat cannot be denied"),
        ({"base": "strickt"}, "base='strickt': it is 'default', 'strict' or 'none'"),
        ({"on_denied": "trap"}, "on_denied='trap'"),
        ({"on_denied": 0}, "on_denied=0"),
        ({"on_denied": 4096}, "on_denied=4096"),
        ({"on_denied": True}, "on_denied=True"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_said(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Seccomp(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", ["ptrace", b"ptrace", [b"ptrace"], [1]])
def test_a_list_of_names_is_a_list_of_text(names: object) -> None:
    with pytest.raises(TypeError, match="deny is a list of names of system calls"):
        Seccomp(deny=names)  # type: ignore[arg-type]


def test_equal_filters_are_equal_however_they_were_written() -> None:
    assert Seccomp(deny=["mount", "ptrace", "mount"]) == Seccomp(deny=("ptrace", "mount"), base="default")
    assert Seccomp(allow={"read"}) == Seccomp(base="none", allow=["read"])
    assert Seccomp(deny=(name for name in ["mount"])) == Seccomp(deny=["mount"])  # type: ignore[arg-type]
    assert len({Seccomp(deny=["mount", "ptrace"]), Seccomp(deny=["ptrace", "mount"])}) == 1


@pytest.mark.parametrize(
    ("wanted", "label"),
    [
        (Seccomp(), "default"),
        (Seccomp(base="strict"), "strict"),
        (Seccomp(deny=["mkdir", "chdir"]), "default, without chdir mkdir"),
        (Seccomp(base="strict", allow=["fork"], deny=["read"]), "strict, with fork, without read"),
        (Seccomp(allow=["read", "write"], on_denied="kill"), "only read write, else killed"),
        (Seccomp(allow=[]), "only what starts a program"),
        (Seccomp(base="none"), "everything that has a name"),
        (Seccomp(base="none", deny=["read"], on_denied=13), "everything without read, else EACCES"),
        (Seccomp(allow=syscalls.WAITING), "only close close_range dup3 execveat exit exit_group fcntl prctl and 8 more"),
    ],
)
def test_the_label_says_what_it_is(wanted: Seccomp, label: str) -> None:
    assert make_filter(wanted, "x86_64").label == label


def test_a_filter_tells_what_a_number_meant_and_what_it_denies() -> None:
    made = make_filter(Seccomp(), "x86_64")
    assert made.name_of(101) == "ptrace"
    assert made.name_of(334) == "rseq"
    assert [made.name_of(number) for number in (337, 5000, -1)] == ["call 337", "call 5000", "call -1"]
    assert {"ptrace", "mount", "clone3", "io_uring_setup", "modify_ldt"} <= made.denied
    makes_files = {"open", "openat", "creat", "mkdir", "mkdirat", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "fchmodat2"}
    assert (
        made.limited
        == {"clone", "unshare", "ioctl", "personality", "socket", "socketpair", "fcntl", "setrlimit", "prlimit64"} | makes_files
    )
    assert not made.denied & {"read", "clone", "socket"}
    assert make_filter(Seccomp(), "aarch64").name_of(117) == "ptrace"


def test_a_process_may_wait_with_a_filter_that_lets_pass_what_it_does_meanwhile() -> None:
    assert make_filter(Seccomp(), "x86_64").early
    assert make_filter(Seccomp(base="strict"), "aarch64").early
    assert make_filter(Seccomp(allow=syscalls.WAITING), "x86_64").early
    assert not make_filter(Seccomp(deny=["sendto"]), "x86_64").early
    assert not make_filter(Seccomp(allow=["read", "write"]), "x86_64").early
