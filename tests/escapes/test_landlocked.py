"""Without a cell: what namespaces would have kept apart, and Landlock does not look at, or only from some ABI on.

Each attack is made with the default filter and without one: the filter in the place of namespaces is there in any case.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import struct
import subprocess
import threading

import pytest
from attempts import AT_FDCWD, SECRET, Given

from shoal.sandbox.errors import RequestError

FILTERS = ("default", "off")
PRIO_PROCESS, PRIO_USER = 0, 2
F_SETFL, F_SETOWN, F_SETOWN_EX, F_SETSIG, O_ASYNC = 4, 8, 15, 10, 0o20000
AT_EMPTY_PATH = 0x1000
X32 = 0x40000000
IN_ALL = 0xFFF


@pytest.fixture
def secret(folder):
    """A file of the caller's that was not granted; the directory beside it may be."""
    path = folder / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o640)
    (folder / "data").mkdir()
    (folder / "data" / "file").write_text("as it was")
    (folder / "data" / "file").chmod(0o644)
    return path


def picture(path):
    """All that anybody could have changed of it."""
    found = path.lstat()
    return found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, path.read_bytes(), os.listxattr(path)


def opens(*paths, flags=os.O_RDONLY):
    return [("openat", AT_FDCWD, path, flags) for path in paths]


def test_nothing_is_opened_that_was_not_granted(outside, landlocked, secret):
    ways = opens(
        secret,
        f"/proc/self/root{secret}",
        "/proc/self/cwd/../../../../../../../etc/passwd",
        "/etc/passwd",
        "/proc/1/status",
        "/proc/self/net/tcp",
    )
    ways += opens(secret.parent, "/", "/proc", "/tmp", flags=os.O_RDONLY | os.O_DIRECTORY)
    assert outside.errnos(*ways) == [0] * len(ways)
    box = landlocked.but(read=[secret.parent / "data"])
    for filtered in FILTERS:
        assert box.but(seccomp=filtered).errnos(*ways) == [errno.EACCES] * len(ways)
        # A place may be held without a right to what is there; that leads nowhere.
        held = (
            ("openat", AT_FDCWD, secret, os.O_PATH),
            ("openat", AT_FDCWD, "/proc/self/fd/3", os.O_RDONLY),
            ("read", Given(1), bytes(9), 9),
        )
        assert box.but(seccomp=filtered).errnos(*held) == [0, errno.EACCES, errno.EBADF]
    assert landlocked.but(read=["/"]).errnos(*opens("/proc/1/status", "/dev/kmsg", "/dev/ptmx")) == [errno.EACCES] * 3


def test_a_file_that_was_not_granted_is_seen_to_be_there(landlocked, secret):
    """Known: Landlock restricts who opens a file, not who finds it. What the result says of it is `namespaces: False`."""
    found = landlocked.calls(("newfstatat", AT_FDCWD, secret, bytes(144), 0))
    assert (found[0].errno, landlocked.enforced["namespaces"]) == (0, False)


def test_nothing_is_executed_or_taken_along_that_was_not_granted(landlocked, secret):
    work = secret.parent / "work"
    work.mkdir()
    box = landlocked.but(write=[work], read=[secret.parent / "data"])
    moves = (
        ("linkat", AT_FDCWD, secret, AT_FDCWD, work / "linked", 0),
        ("renameat2", AT_FDCWD, secret, AT_FDCWD, work / "moved", 0),
        ("renameat2", AT_FDCWD, secret.parent / "data" / "file", AT_FDCWD, work / "moved", 0),
        ("openat", AT_FDCWD, secret.parent / "new", os.O_WRONLY | os.O_CREAT, 0o600),
        ("unlinkat", AT_FDCWD, secret, 0),
        ("mkdirat", AT_FDCWD, secret.parent / "made", 0o755),
        ("mknodat", AT_FDCWD, work / "disk", stat.S_IFBLK | 0o600, 0x800),
        ("mknodat", AT_FDCWD, work / "null", stat.S_IFCHR | 0o600, 0x103),
    )
    for filtered in FILTERS:
        assert not {0} & set(box.but(seccomp=filtered).errnos(*moves))
        assert box.but(seccomp=filtered).errno("execveat", AT_FDCWD, "/usr/bin/env", 0, 0, 0) == errno.EACCES
    assert sorted(path.name for path in secret.parent.iterdir()) == ["data", "secret", "work"]
    assert not list(work.iterdir())


def changes(path, fd):
    """Ways to change a file without opening it for that: by its name, and by a descriptor that can only be read."""
    times = struct.pack("=qqqq", 1, 0, 1, 0)
    return {
        "mode": (("fchmodat", AT_FDCWD, path, 0o777), ("fchmod", fd, 0o777), (452, AT_FDCWD, path, 0o777, 0)),
        "owner": (("fchownat", AT_FDCWD, path, os.getuid(), os.getgid(), 0), ("fchown", fd, os.getuid(), os.getgid())),
        "times": (("utimensat", AT_FDCWD, path, times, 0), ("utimensat", fd, 0, times, 0), ("utimensat", AT_FDCWD, path, 0, 0)),
        "attributes": (("setxattr", path, "user.x", b"v", 1, 0), ("fsetxattr", fd, "user.x", b"v", 1, 0)),
    }


@pytest.mark.parametrize("granted", [False, True], ids=["not granted", "to be read"])
def test_a_file_is_not_changed_past_its_contents(outside, landlocked, secret, granted):
    """Mode, owner, times and attributes are its owner's to change, and a program is its caller."""
    target = secret.parent / "data" / "file" if granted else secret
    look = ("openat", AT_FDCWD, target, os.O_RDONLY if granted else os.O_PATH)
    before = picture(target)
    for what, steps in changes(target, Given(1)).items():
        for filtered in FILTERS:
            box = landlocked.but(read=[secret.parent / "data"], seccomp=filtered)
            errnos = box.errnos(look, *steps)
            assert errnos[0] == 0
            assert set(errnos[1:]) <= {errno.EPERM, errno.ENOSYS}, what
    assert picture(target) == before
    assert outside.errnos(look, *changes(target, Given(1))["mode"][:1]) == [0, 0]
    assert stat.S_IMODE(target.stat().st_mode) == 0o777


def test_a_file_is_not_cut_off_by_who_may_only_read_it(outside, landlocked, secret):
    """Before ABI 3 Landlock does not know of that."""
    target = secret.parent / "data" / "file"
    target.chmod(0o666)
    cuts = (("truncate", target, 1), ("openat", AT_FDCWD, target, os.O_RDONLY | os.O_TRUNC), ("truncate", secret, 1))
    for filtered in FILTERS:
        errnos = landlocked.but(read=[target.parent], seccomp=filtered).errnos(*cuts)
        assert set(errnos) <= {errno.EACCES, errno.EPERM}
    assert (target.read_text(), secret.read_bytes()) == ("as it was", SECRET)
    assert outside.errnos(*cuts) == [0, 0, 0]


def test_what_happens_to_files_of_the_host_is_not_watched(outside, landlocked, secret):
    watch = (("inotify_init1", 0), ("inotify_add_watch", Given(1), secret.parent, IN_ALL))
    assert outside.errnos(*watch) == [0, 0]
    for filtered in FILTERS:
        assert landlocked.but(seccomp=filtered).errnos(*watch)[0] == errno.EPERM


@pytest.mark.parametrize("kind", ["a path", "no path"])
def test_what_listens_on_the_host_is_not_reached(outside, landlocked, folder, kind):
    """A session bus would start programs for whoever asks. Also not from a directory that was granted, or as a datagram."""
    path = str(folder / "service")
    name = path if kind == "a path" else f"\0{path}"
    address = struct.pack("=H", socket.AF_UNIX) + os.fsencode(name) + (b"\0" if kind == "a path" else b"")
    with socket.socket(socket.AF_UNIX) as service, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as letters:
        service.bind(name)
        service.listen(8)
        letters.bind(name + "-letters")
        other = struct.pack("=H", socket.AF_UNIX) + os.fsencode(name + "-letters") + (b"\0" if kind == "a path" else b"")
        steps = (
            ("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0),
            ("connect", Given(1), address, len(address)),
            ("socketpair", socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0, bytes(8)),
            ("sendto", 4, "x", 1, 0, other, len(other)),
        )
        assert outside.errnos(*steps) == [0, 0, 0, 0]
        for filtered in FILTERS:
            for network in ("none", "host"):
                errnos = landlocked.but(write=[folder], seccomp=filtered, network=network).errnos(*steps)
                assert errnos[0] == errnos[2] == errno.EAFNOSUPPORT
                assert set(errnos[1::2]) <= {errno.EBADF, errno.EPERM}
        letters.setblocking(False)
        assert letters.recv(2) == b"x"
        with pytest.raises(BlockingIOError):
            letters.recv(2)


def test_no_socket_is_handed_over_that_could_name_another_receiver(landlocked):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, pytest.raises(RequestError, match="hand over a connected stream"):
        landlocked.run("ids", stdin=theirs.fileno())
    with socket.socket(socket.AF_UNIX) as unconnected, pytest.raises(RequestError, match="hand over a connected stream"):
        landlocked.run("ids", stdin=unconnected.fileno())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert landlocked.errno("getpid", stdin=theirs.fileno()) == 0


def test_there_is_no_network_unless_it_was_asked_for(outside, landlocked):
    families = [("socket", family, kind, 0) for family in (socket.AF_INET, socket.AF_INET6) for kind in (1, 2)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = struct.pack("=H2s4s8x", socket.AF_INET, server.getsockname()[1].to_bytes(2, "big"), bytes([127, 0, 0, 1]))
        visit = (families[0], ("connect", Given(1), address, 16))
        assert outside.errnos(*visit) == [0, 0]
        for filtered in FILTERS:
            assert landlocked.but(seccomp=filtered).errnos(*families) == [errno.EAFNOSUPPORT] * 4
            assert landlocked.but(seccomp=filtered, network="host").errnos(*visit) == [0, 0]
        # Nor by one that it was handed, which nobody has connected yet.
        with socket.socket() as handed:
            assert landlocked.errno("connect", 0, address, 16, stdin=handed.fileno()) == errno.EPERM


def test_no_way_leads_around_the_filter(outside, landlocked):
    """Requests in memory, numbers of another ABI, and processes made where flags cannot be seen."""
    for filtered in FILTERS:
        box = landlocked.but(seccomp=filtered)
        assert box.errno("io_uring_setup", 8, bytes(120)) == errno.EPERM
        assert box.errnos((X32 | 41, socket.AF_INET, 1, 0), ("clone3", 0, 0), (1_000,)) == [errno.ENOSYS] * 3
        assert box.errnos(("unshare", 0x10000000), ("clone", 0x10000000 | 17, 0, 0, 0, 0), ("setns", 0, 0)) == [errno.EPERM] * 3


def test_what_is_shared_by_a_key_or_a_name_is_closed(outside, landlocked):
    key = 0x5B000000 + os.getpid()
    steps = (("shmget", key, 4096, 0o1600), ("msgget", key, 0o1600), ("semget", key, 1, 0o1600), ("mq_open", "shoal-no", 0o100, 0o600, 0))
    for filtered in FILTERS:
        assert landlocked.but(seccomp=filtered).errnos(*steps, ("keyctl", 0, -3, 0)) == [errno.EPERM] * 5


def test_another_process_of_the_same_user_is_not_looked_into_or_changed(outside, landlocked, target):
    pid, address = target
    vector = struct.pack("=QQ", address, len(SECRET))
    ways = {
        "memory": (("openat", AT_FDCWD, f"/proc/{pid}/mem", os.O_RDWR),),
        "environment": (("openat", AT_FDCWD, f"/proc/{pid}/environ", os.O_RDONLY),),
        "files": (("openat", AT_FDCWD, f"/proc/{pid}/root/etc/passwd", os.O_RDONLY),),
        "tracing": (("ptrace", 0x4206, pid, 0, 0),),
        "reading": (("process_vm_readv", pid, bytes(16), 1, vector, 1, 0),),
        "descriptors": (("pidfd_open", pid, 0), ("pidfd_getfd", Given(1), 0, 0)),
        "limits": (("prlimit64", pid, 7, struct.pack("=QQ", 3, 3), 0),),
        "priority": (("setpriority", PRIO_PROCESS, pid, 19),),
        "processors": (("sched_setaffinity", pid, 8, (1).to_bytes(8, "little")),),
        "scheduler": (("sched_setscheduler", pid, 3, bytes(4)),),
        "disk": (("ioprio_set", 1, pid, 3 << 13),),
    }
    before = os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), os.sched_getscheduler(pid)
    for way, steps in ways.items():
        for filtered in FILTERS:
            assert landlocked.but(seccomp=filtered).errnos(*steps)[-1] in (errno.EPERM, errno.EACCES), way
    assert landlocked.errno("setpriority", PRIO_USER, 0, 19) == errno.EPERM
    assert (os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), os.sched_getscheduler(pid)) == before


def test_nobody_outside_is_signalled(outside, landlocked):
    """By number, by group, by all, by whoever it belongs to; and not by a file that tells of its readiness."""
    with subprocess.Popen([outside.program, "target"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as group:
        assert group.stdout.readline().startswith(b"target")
        pid = group.pid
        kill = (
            ("kill", pid, signal.SIGKILL),
            ("kill", -pid, signal.SIGKILL),
            ("kill", os.getpid(), signal.SIGTERM),
            ("tkill", pid, signal.SIGKILL),
            ("tgkill", pid, pid, signal.SIGKILL),
            ("rt_sigqueueinfo", pid, signal.SIGKILL, struct.pack("=iii", signal.SIGKILL, 0, -1).ljust(128, b"\0")),
        )
        handle = (("pidfd_open", pid, 0), ("pidfd_send_signal", Given(1), signal.SIGKILL, 0, 0))
        for filtered in FILTERS:
            box = landlocked.but(seccomp=filtered)
            assert box.errnos(*kill) == [errno.EPERM] * len(kill)
            assert box.errnos(*handle)[-1] == errno.EPERM
            # SIGKILL for "there is something to read": the end of its input is.
            owner = struct.pack("=ii", 1, pid)
            steps = (
                ("fcntl", 0, F_SETSIG, 9),
                ("fcntl", 0, F_SETFL, O_ASYNC),
                ("fcntl", 0, F_SETOWN, pid),
                ("fcntl", 0, F_SETOWN_EX, owner),
            )
            with box.held(*steps) as holder:
                told = [outcome.errno for outcome in holder.outcomes]
            assert landlocked.abi >= 6 or told == [errno.EPERM, 0, errno.EPERM, errno.EPERM]
        assert group.poll() is None
        group.stdin.close()
        assert group.wait(30) == 0


def test_what_holds_the_tree_is_not_ended_stopped_or_changed_by_it(landlocked):
    """It is the program's parent, and of the same user. Everybody else would outlive the run."""
    for filtered in FILTERS:
        box = landlocked.but(seccomp=filtered)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            kill = (("kill", Given(1), number), ("tkill", Given(1), number), ("tgkill", Given(1), Given(1), number))
            parent, *errnos = box.calls(("getppid",), *kill, ("kill", 0, 0))
            assert parent.value > 1
            assert [outcome.errno for outcome in errnos] == [errno.EPERM] * 3 + [0 if landlocked.abi >= 6 else errno.EPERM]
        ways = (
            ("prlimit64", Given(1), 7, struct.pack("=QQ", 3, 3), 0),
            ("ptrace", 0x4206, Given(1), 0, 0),
            ("process_vm_readv", Given(1), 0, 0, 0, 0, 0),
        )
        assert box.errnos(("getppid",), *ways) == [0, errno.EPERM, errno.EPERM, errno.EPERM]


def test_what_is_to_be_read_only_inside_what_is_written_is_refused(landlocked, secret):
    with pytest.raises(RequestError, match="hand over what lies beside it"):
        landlocked.but(write=[secret.parent], read=[secret.parent / "data"]).run("ids")


def test_many_runs_at_once_end_each_its_own_tree_and_no_other(landlocked):
    """What ends a tree by one signal to everybody must not reach the next tree."""
    ends = []
    with landlocked.held(("getpid",)) as bystander:
        threads = [threading.Thread(target=lambda: ends.append(landlocked.but(wall_time=0.3).run("bomb", 30).reason)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bystander.result is None
    assert ends == ["wall_time"] * 4
    assert bystander.result.reason == "exited"
