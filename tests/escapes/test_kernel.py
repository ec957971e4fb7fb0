"""The kernel and the machine: what has no namespace, what tells too much, and what changes something for everybody."""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
import time
from pathlib import Path

import pytest
from attempts import AT_FDCWD, Given
from rig.features import needs, unified_cgroup

NEWCGROUP, NEWUSER, NEWNS = 0x02000000, 0x10000000, 0x00020000
HIGH = 1 << 32
LONG = 65536


def reading(path):
    return ("openat", AT_FDCWD, path, os.O_RDONLY)


def writing(path):
    return ("openat", AT_FDCWD, path, os.O_WRONLY)


def text_of(ground, path):
    """What a program reads there."""
    return ground.calls(reading(path), ("read", Given(1), bytes(LONG), LONG))[1].data.rstrip(b"\0").decode()


# --- parts of the kernel that are known for their holes ------

ARRAY_MAP = struct.pack("=IIIIIIIIIIIIIIII", 2, 4, 4, 1, *(0,) * 12)
SOFTWARE_CLOCK = struct.pack("=IIQQQQQ", 1, 112, 0, 0, 0, 0, 1 << 5 | 1 << 6) + bytes(64)  # of itself, in user mode
USER_MODE_ONLY = 1

PARTS = {
    "io_uring": ("io_uring_setup", 8, bytes(120)),
    "userfaultfd": ("userfaultfd", USER_MODE_ONLY),
    "perf_event_open": ("perf_event_open", SOFTWARE_CLOCK, 0, -1, -1, 0),
    "bpf": ("bpf", 0, ARRAY_MAP, len(ARRAY_MAP)),
    "fanotify": ("fanotify_init", 0x200, 0),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_kernel_that_no_program_needs_is_closed(outside, inside, part):
    assert inside.errno(*PARTS[part]) == errno.EPERM
    assert inside.enforced["seccomp"] == "default"
    assert inside.but(seccomp="off").enforced["seccomp"] is False
    if outside.errno(*PARTS[part]) != 0:
        pytest.skip(f"needs a kernel that lets this user have {part}")


def test_what_takes_privileges_is_refused_with_and_without_the_filter(outside, inside):
    """Arguments are such that nothing would happen to the machine."""
    name = os.uname().nodename
    calls = {
        "settimeofday": (0, 0),
        "clock_settime": (0, struct.pack("=qq", int(time.time()), 0)),
        "sethostname": (name, len(name)),
        "setdomainname": ("", 0),
        "syslog": (3, bytes(16), 16),
        "reboot": (1, 2, 3, 0),
        "swapon": ("/nowhere", 0),
        "swapoff": ("/nowhere",),
        "acct": ("/nowhere",),
        "delete_module": ("none", 0),
        "init_module": ("", 0, ""),
        "finit_module": (-1, "", 0),
        "kexec_load": (0, 0, 0, -1),
        "vhangup": (),
        "chroot": ("/",),
        "setgroups": (1, struct.pack("I", 0)),
    }
    if os.geteuid() == 0:
        assert outside.errnos(("settimeofday", 0, 0), ("sethostname", name, len(name)), ("syslog", 3, bytes(16), 16)) == [0, 0, 0]
    for call, arguments in calls.items():
        assert inside.errno(call, *arguments) == errno.EPERM, call
        built = (errno.EPERM, errno.ENOSYS)  # the latter from a kernel that was built without it
        assert inside.but(seccomp="off").errno(call, *arguments) in built, call
    assert os.uname().nodename == name


@pytest.mark.cell
def test_disk_quotas_are_not_read_or_set(inside):
    """It is the one call that names a file system by its device; where there is none, the kernel says that."""
    assert inside.errno("quotactl", 0x80000700, "/dev/vda", 0, bytes(128)) == errno.EPERM
    assert inside.but(seccomp="off").errno("quotactl", 0x80000700, "/dev/vda", 0, bytes(128)) in (errno.ENOENT, errno.EPERM)


@pytest.mark.cell
def test_the_name_of_the_host_is_not_told_and_stays(inside):
    name = os.uname().nodename
    assert text_of(inside, "/proc/sys/kernel/hostname") == "shoal\n"
    assert inside.but(seccomp="off").errnos(("unshare", NEWUSER), ("sethostname", "changed", 7)) == [0, errno.EPERM]
    assert os.uname().nodename == name


def test_a_personality_that_weakens_memory_is_refused(outside, inside):
    """Pages at address 0, everything executable, compatible layout; also with a bit that the kernel does not look at."""
    no_random, zero_page, executable, compatible = 0x0040000, 0x0100000, 0x0400000, 0x0200000
    assert outside.errnos(("personality", executable), ("personality", HIGH | executable)) == [0, 0]
    weak = [("personality", bits | high) for bits in (zero_page, executable, compatible, executable | no_random) for high in (0, HIGH)]
    assert inside.errnos(*weak) == [errno.EPERM] * len(weak)
    assert inside.errnos(("personality", 0xFFFFFFFF), ("personality", no_random)) == [0, 0]  # asked, and for debuggers


# --- what tells too much ------


@pytest.mark.cell
def test_the_memory_of_the_machine_is_not_read(outside, inside):
    places = ("/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/proc/kcore", "/proc/kmsg", "/proc/kpageflags", "/proc/kpagecount")
    if os.geteuid() == 0:
        assert 0 in outside.errnos(*map(reading, places))
    errnos = dict(zip(places, inside.errnos(*map(reading, places)), strict=True))
    assert {errnos[place] for place in places if place.startswith("/dev")} == {errno.ENOENT}
    hidden = {errno.ENOENT, errno.EACCES, errno.EPERM}
    assert errnos["/proc/kcore"] in hidden
    assert errnos["/proc/kmsg"] in hidden
    if inside.box != {"user": "caller"}:  # to uid 0 the kernel shows what belongs to uid 0
        assert {errnos[place] for place in places} <= hidden


@pytest.mark.cell
def test_addresses_of_the_kernel_are_not_told(outside, inside):
    """The kernel tells them to those who may trace it; to others they are 0."""
    symbols = text_of(inside, "/proc/kallsyms").splitlines()[:500]
    assert symbols
    assert {line.split()[0] for line in symbols} == {"0" * 16}


@pytest.mark.cell
def test_there_is_no_sysfs_no_debugfs_and_no_tree_of_groups(inside):
    places = ("/sys", "/sys/kernel", "/sys/fs/cgroup", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/firmware", "/dev/disk", "/boot")
    assert inside.errnos(*map(reading, places)) == [errno.ENOENT] * len(places)


@pytest.mark.cell
def test_the_list_of_processes_is_that_of_the_cell(inside):
    size = 8192
    entries = inside.calls(("openat", AT_FDCWD, "/proc", os.O_RDONLY | os.O_DIRECTORY), ("getdents64", Given(1), bytes(LONG), LONG))[1].data
    names, at = set(), 0
    while at + 19 < len(entries) and (length := struct.unpack_from("=H", entries, at + 16)[0]):
        names.add(entries[at + 19 : at + length].split(b"\0")[0].decode())
        at += length
    assert {name for name in names if name.isdigit()} == {"1", "2"}
    assert inside.calls(reading("/proc/self/cgroup"), ("read", Given(1), bytes(size), size))[1].data.rstrip(b"\0").endswith(b"0::/\n")


# --- what changes something for everybody ------


def test_no_setting_of_the_kernel_is_opened_for_writing(outside, inside):
    """That none of all files below /proc can be, is in test_files; here are those that attacks are made of."""
    names = ("kernel/core_pattern", "kernel/modprobe", "kernel/hotplug", "kernel/hostname", "vm/overcommit_memory", "net/ipv4/ip_forward")
    places = [f"/proc/sys/{name}" for name in names] + ["/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/acpi/wakeup"]
    if os.geteuid() == 0:
        assert outside.errnos(*map(writing, places))[0] == 0
    for filtered in ("default", "off"):
        errnos = inside.but(seccomp=filtered).errnos(*map(writing, places))
        assert set(errnos) <= {errno.EROFS, errno.EACCES, errno.ENOENT}
        assert errnos[0] == (errno.EROFS if inside.box == {"user": "caller"} else errno.EACCES)


@pytest.mark.cell
def test_nothing_of_itself_that_confines_it_is_opened_for_writing(outside, inside):
    names = (
        "uid_map",
        "gid_map",
        "setgroups",
        "oom_score_adj",
        "attr/current",
        "attr/exec",
        "coredump_filter",
        "clear_refs",
        "mem",
        "comm",
    )
    assert outside.errno(*writing("/proc/self/oom_score_adj")) == 0
    for filtered in ("default", "off"):
        box = inside.but(seccomp=filtered)
        assert set(box.errnos(*(writing(f"/proc/self/{name}") for name in names))) <= {errno.EROFS, errno.ENOENT, errno.EACCES}
    # Without the filter it may have a namespace of users, in which nobody has a number: that cannot be written.
    errnos = inside.but(seccomp="off").errnos(("unshare", NEWUSER), *(writing(f"/proc/self/{name}") for name in names[:3]))
    assert errnos[0] == 0
    assert set(errnos[1:]) <= {errno.EROFS, errno.EACCES}


@pytest.mark.cell
def test_a_program_does_not_leave_its_control_group(outside, inside):
    """There is no tree of groups inside, none can be mounted, and one that was granted for reading cannot be written."""
    own = unified_cgroup()
    if own is None:
        pytest.skip("needs a cgroup v2 tree")
    if os.access(own / "cgroup.procs", os.W_OK):
        assert outside.errno(*writing(own / "cgroup.procs")) == 0
    for filtered in ("default", "off"):
        box = inside.but(seccomp=filtered)
        assert box.errnos(writing(own / "cgroup.procs"), ("mount", "none", "/tmp", "cgroup2", 0, 0)) == [errno.ENOENT, errno.EPERM]
        errnos = box.but(read={"/groups": own}).errnos(writing("/groups/cgroup.procs"), ("mkdirat", AT_FDCWD, "/groups/made", 0o755))
        is_ours = os.access(own / "cgroup.procs", os.W_OK) and not inside.has_own_user
        assert errnos == [errno.EROFS if is_ours else errno.EACCES, errno.EROFS]


@pytest.mark.cell
def test_a_program_that_mounts_the_tree_of_groups_itself_moves_nowhere_in_it(inside):
    """Without the filter it may mount its own part of the tree, in namespaces of its own, where it has no right to anything."""
    steps = (
        ("unshare", NEWUSER | NEWNS | NEWCGROUP),
        ("mount", "none", "/tmp", "cgroup2", 0, 0),
        ("mkdirat", AT_FDCWD, "/tmp/made", 0o755),
        writing("/tmp/made/cgroup.procs"),
        writing("/tmp/cgroup.procs"),
        writing("/tmp/memory.max"),
    )
    first, mounted, *errnos = inside.but(seccomp="off").errnos(*steps)
    assert (first, mounted) in ((0, 0), (0, errno.EPERM))
    if mounted == 0:
        assert set(errnos) <= {errno.EACCES, errno.EPERM, errno.ENOENT}
    assert inside.errnos(*steps)[:2] == [errno.EPERM] * 2


@pytest.mark.cell
def test_no_tree_of_groups_with_a_release_agent_is_mounted(inside):
    """The agent is executed by the kernel, outside of everything, when a group becomes empty."""
    errnos = inside.but(seccomp="off").errnos(
        ("unshare", NEWUSER | NEWNS | NEWCGROUP),
        ("mount", "none", "/tmp", "cgroup", 0, "memory"),
        ("mount", "none", "/tmp", "cgroup", 0, "none,name=attack"),
        writing("/tmp/release_agent"),
    )
    assert errnos[0] == 0
    assert errnos[3] in (errno.ENOENT, errno.EROFS)
    assert inside.errno("unshare", NEWUSER | NEWNS | NEWCGROUP) == errno.EPERM


# --- crashes ------


def core_goes_to_a_file():
    return not Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "@"))


@pytest.mark.cell
def test_a_program_that_crashes_leaves_no_memory_behind(outside, inside, folder):
    """What is in memory is what it was told in confidence, and the file would lie in a directory of the caller's."""
    if core_goes_to_a_file():
        unlimited = resource.getrlimit(resource.RLIMIT_CORE)[1]
        done = outside.run("crash", cwd=folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (unlimited, unlimited)))
        assert done.returncode == -signal.SIGSEGV
        assert bool(list(folder.iterdir())) == (unlimited != 0)
        for file in folder.iterdir():
            file.unlink()
    result = inside.but(write={"/work": folder}, cwd="/work").run("crash")
    assert (result.returncode, result.reason) == (-signal.SIGSEGV, "signaled")
    assert list(folder.iterdir()) == []


def test_a_program_that_crashes_starts_no_collector_of_the_host(inside):
    """core(5): with a pattern that begins with | the limit is not looked at, but for the one value 1, which means "not this one"."""
    limits = inside.calls(("prlimit64", 0, resource.RLIMIT_CORE, 0, bytes(16)))[0].data
    assert struct.unpack_from("=Q", limits) == (1,)


LEFT_WITHOUT = """
import resource
from attempts import Ground
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if (pid := os.fork()) == 0:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError:
        os._exit(1)
    os._exit(0)
can_raise = os.waitpid(pid, 0)[1] == 0
limits = [Ground(workload, args[0]).calls(("prlimit64", 0, resource.RLIMIT_CORE, 0, bytes(16)))[0].data for _ in range(4)]
answer([can_raise, [[limit[0], limit[8]] for limit in limits]])
"""


def test_a_caller_who_was_left_no_dumps_has_a_limit_that_keeps_the_collector_away_all_the_same(inside, run_attacks):
    """If it is root, who can raise a limit. Whoever cannot still starts its programs."""
    can_raise, limits = run_attacks(LEFT_WITHOUT, inside.box)
    assert limits == [[can_raise, can_raise]] * 4


def test_a_program_does_not_bring_the_collector_back(outside, inside):
    """What a collector is handed, it parses as root. With a limit of 0 the kernel would start it: who sets one is told that it is done."""
    at, fixed = 1 << 32, 0x32  # an address with nothing in its low half, which is mapped there
    none, ask = struct.pack("=QQ", 0, 1), ("prlimit64", 0, resource.RLIMIT_CORE, 0, bytes(16))
    ways = (
        (("prlimit64", 0, resource.RLIMIT_CORE, none, 0),),
        (("prlimit64", 0, HIGH | resource.RLIMIT_CORE, none, 0),),
        (("setrlimit", resource.RLIMIT_CORE, none),),
        (("setrlimit", HIGH | resource.RLIMIT_CORE, none),),
        (("mmap", at, 4096, 3, fixed, -1, 0), ("prlimit64", 0, resource.RLIMIT_CORE, at, 0)),
        (("mmap", at, 4096, 3, fixed, -1, 0), ("setrlimit", resource.RLIMIT_CORE, at)),
    )
    for way in ways:
        *made, limits = outside.calls(*way, ask)
        assert ([outcome.errno for outcome in made], struct.unpack_from("=Q", limits.data)) == ([0] * len(way), (0,))
        for filtered in ("default", "strict"):
            *made, limits = inside.but(seccomp=filtered).calls(*way, ask)
            assert ([outcome.errno for outcome in made], struct.unpack("=QQ", limits.data)) == ([0] * len(way), (1, 1))
    # Other limits are as they were asked for, and without a filter this one is, too: SECURITY.md says so.
    files = ("prlimit64", 0, resource.RLIMIT_NOFILE, struct.pack("=QQ", 20, 20), 0)
    assert inside.calls(files, ("prlimit64", 0, resource.RLIMIT_NOFILE, 0, bytes(16)))[1].data == struct.pack("=QQ", 20, 20)
    assert struct.unpack_from("=Q", inside.but(seccomp="off").calls(*ways[0], ask)[1].data) == (0,)


# --- groups ------


def test_a_program_has_no_groups_that_its_user_has_not_and_takes_none(inside):
    real, effective, group, effective_group, *others = map(int, inside.attack("ids").one("ids"))
    assert (real, group) == (effective, effective_group)
    if inside.has_own_user:
        assert others == []
        assert real == group >= 0x70000000
    else:
        assert (real, group) == (os.geteuid(), os.getegid())
        assert len(others) == len(os.getgroups())
    steps = (("setgroups", 0, 0), ("setgroups", 1, struct.pack("I", 4)), ("setgid", 4), ("setuid", 1), ("setresuid", 1, 1, 1))
    for filtered in ("default", "off"):
        # Numbers that are not in the map of a user namespace are no users at all there.
        assert set(inside.but(seccomp=filtered).errnos(*steps)) <= {errno.EPERM, errno.EINVAL}


GROUPS = """
from attempts import AT_FDCWD, Ground
folder = args[1]
look = ("openat", AT_FDCWD, "/data/file", os.O_RDONLY)
ground = Ground(workload, args[0])
ids = ground.attack("ids").one("ids")
answer([ids[4:], Ground(workload).errno("openat", AT_FDCWD, folder + "/file", os.O_RDONLY), ground.errno(*look),
        ground.but(read={"/data": folder}).errno(*look)])
"""


@pytest.mark.root
@needs("unshare and setpriv (Debian package util-linux)")
@pytest.mark.cell
def test_a_group_of_the_caller_opens_nothing_to_a_user_of_its_own_and_to_the_caller_only_what_was_granted(inside, run_attacks, folder):
    file = folder / "file"
    file.write_text("of a group")
    os.chown(file, 4241, 4242)
    file.chmod(0o040)
    prefix = ("setpriv", "--groups", "4242,4243", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    groups, outside, not_granted, granted = run_attacks(GROUPS, inside.box, str(folder), prefix=prefix)
    assert outside == 0
    assert not_granted == errno.ENOENT
    assert (groups, granted) == (([], errno.EACCES) if inside.has_own_user else (["4242", "4243"], 0))
