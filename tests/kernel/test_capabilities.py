"""What a program can touch: nothing differs where it only does what it may, and whatever else it has is told.

A difference is made in one of two ways: by really giving the program more than the plan it is compared with says, or by reaching into its
cell from outside, as root may.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rig.features import needs
from rig.workload import PATIENCE_S

import shoal
from shoal import CloneFd, Directory, Job, NetNs, Process, Sandbox, SpawnFlags
from shoal.handles.hierarchy import availability
from shoal.handles.job_backend import Limits
from shoal.manager.capabilities import Capabilities, Granted, observe
from shoal.manager.capabilities.procfs import ProcessDirectory
from shoal.probe import landlock_abi
from shoal.sandbox.launch import Boxed, Order
from shoal.sandbox.program import find_program
from shoal.sandbox.tier import Tier, tier

SHARED = SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC
PATH = "/usr/bin:/bin"
PYTHON = "/usr/bin/python3"
ROOT = os.geteuid() == 0
needs_cell = pytest.mark.skipif(not tier().is_cell, reason="needs namespaces")
needs_landlock = pytest.mark.skipif(landlock_abi() == 0, reason="needs Landlock")
needs_python = pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"needs {PYTHON} (Debian package python3)")
needs_dot = pytest.mark.skipif(not shutil.which("dot"), reason="needs dot (Debian package graphviz)")


@dataclasses.dataclass
class Running:
    """A program that has said that it is ready, and waits."""

    process: Process
    granted: Granted
    stdin: int

    def look(self, granted: Granted | None = None, **how: Any) -> Capabilities:
        return observe(self.process, granted=granted or self.granted, **how)

    def found(self, granted: Granted | None = None, **how: Any) -> list[tuple[str, str]]:
        """The differences, without numbers that change."""
        return [(item.kind, item.subject.replace(str(self.process.pid), "PID")) for item in self.look(granted, **how).differences]


def landlocked(box: Sandbox) -> Sandbox:
    """The box as hosts without namespaces have it."""
    Boxed.of(box).tier = Tier("landlock", landlock_abi(), "the test says so", "ask the test")
    return box


def boxes(**attributes: Any) -> list[Any]:
    """The same box in each tier that this machine has."""
    made = [pytest.param(lambda: Sandbox(**attributes), id="cell", marks=needs_cell)]
    return [*made, pytest.param(lambda: landlocked(Sandbox(**attributes)), id="landlock", marks=needs_landlock)]


@pytest.fixture
def begin() -> Iterator[Callable[..., Running]]:
    """Starts a program in a box, and waits until it says that it is ready; all are ended after the test."""
    with contextlib.ExitStack() as stack:

        def start(
            box: Sandbox, command: str, *, python: bool = False, fds: dict[int, int] | None = None, also: dict[int, int] | None = None
        ) -> Running:
            """`fds` are handed over; `also` too, but the plan it will be compared with does not know of them."""
            ours_in, theirs_in = os.pipe()
            theirs_out, ours_out = os.pipe()
            for fd in (ours_in, ours_out):
                stack.callback(os.close, fd)
            words = [PYTHON, "-c", command] if python else ["sh", "-c", f"{command}\necho ready; read line"]
            program = find_program(words[0], PATH, "/")
            order = Order(program, words[1:], {0: theirs_out, 1: theirs_in, **(fds or {}), **(also or {})}, "/")
            told: list[Granted] = []
            try:
                process = Boxed.of(box).launch(order, None, lambda plan: told.append(Granted.of_plan(plan, secrets=box.secrets)))
            finally:
                os.close(theirs_in)
                os.close(theirs_out)
            stack.callback(end, process)
            known = tuple(item for item in told[-1].descriptors if item.fd not in (also or {}))
            granted = dataclasses.replace(told[-1], descriptors=known)
            wait_ready(ours_in)
            return Running(process, granted, ours_out)

        yield start


def end(process: Process) -> None:
    with process:
        process.kill_cell()
        process.wait(timeout=PATIENCE_S)


def wait_ready(fd: int) -> None:
    said = b""
    while not said.endswith(b"ready\n"):
        part = os.read(fd, 4096)
        assert part, f"it ended, having said {said!r}"
        said += part


@contextlib.contextmanager
def started(command: list[str], **how: Any) -> Iterator[Process]:
    """A program in the caller's world, ended with all that descends from it."""
    with shoal.spawn(command[0], command, flags=SHARED, **how) as process:
        try:
            yield process
        finally:
            for found in observe(process).observed.processes:
                os.kill(found.pid, signal.SIGKILL)
            process.wait(timeout=PATIENCE_S)


@pytest.fixture(autouse=True)
def nothing_leaks(workload: str, world: Any) -> Iterator[None]:
    yield
    world.assert_unchanged()


# --- nothing differs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", boxes(read=["/usr"]))
def test_a_program_that_does_nothing_differs_in_nothing(begin, box):
    running = begin(box(), ":")
    seen = running.look()
    assert seen.differences == ()
    assert seen.confined
    assert [process.pid for process in seen.observed.processes if not process.keeper] == [running.process.pid]
    assert seen.name == "sh"


BUSY = """
import contextlib, os, socket, threading, tempfile, time
kept = [open("/usr/bin/env", "rb"), open(__import__("os").__file__), os.open("/usr", os.O_RDONLY), os.open("/usr/lib", os.O_PATH)]
kept += [tempfile.TemporaryFile(), open(os.environ.get("TMPDIR", "/tmp") + "/mine", "w+")]
kept += [open(WORK + "/out", "a"), open("/dev/zero", "rb+")]
kept += [os.pipe(), os.memfd_create("memory"), os.eventfd(0), os.dup(1), os.dup2(0, 77)]
import select; kept.append(select.epoll())
kept += socket.socketpair()
if INTERNET:
    server = socket.create_server(("127.0.0.1", 0))
    kept += [server, socket.create_connection(server.getsockname()), socket.socket(), socket.socket(type=socket.SOCK_DGRAM)]
    kept[-1].bind(("127.0.0.1", 0))
    kept.append(socket.socket(socket.AF_UNIX)); kept[-1].bind(WORK + "/socket"); kept[-1].listen()
os.unlink(WORK + "/out")
child = os.fork()
if child == 0:
    with contextlib.suppress(OSError): os.setsid()  # which an old Landlock has to forbid
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.waitpid(child, 0)
other = os.fork()
if other == 0:
    os.close(1); os.dup2(0, 1); time.sleep(1000)
kept.append(os.pidfd_open(other))
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
__import__("resource").setrlimit(__import__("resource").RLIMIT_NOFILE, (100, 100))
os.nice(3)
os.write(1, b"ready\\n")
input()
"""


@needs_python
@pytest.mark.parametrize("box", boxes(read=["/usr"], open_files=200))
def test_what_a_program_does_with_what_it_has_is_no_difference(begin, box, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    cell = Boxed.of(box()).tier.is_cell
    chosen = box().replace(write={str(work): str(work)} if cell else [str(work)])
    if not cell:
        chosen = landlocked(chosen)
    running = begin(chosen, f"WORK = {str(work)!r}\nINTERNET = {cell}\n" + BUSY, python=True)
    seen = running.look()
    assert [str(item) for item in seen.differences] == []
    processes = [process for process in seen.observed.processes if not process.keeper]
    assert len(processes) == 3  # it, the one that has left its session and its parent, and the other child
    sockets = {item.what.partition(",")[0].split(" ")[0] for process in processes for item in process.descriptors if item.kind == "socket"}
    assert sockets >= ({"tcp", "udp", "unix"} if cell else {"unix"})
    assert running.process.pid in {process.pid for process in processes}


@needs_cell
@pytest.mark.parametrize("network", ["none", "host"])
@pytest.mark.parametrize("devices", [(), ("pts",)])
@pytest.mark.parametrize("tmp", [True, False, "64M"])
def test_every_kind_of_cell_is_as_its_plan_says(begin, network, devices, tmp, tmp_path):
    (tmp_path / "file").write_text("x")
    tmp_path.chmod(0o755)
    box = Sandbox(
        read={"/usr": "/usr", "/a file": tmp_path / "file"}, network=network, devices=devices, tmp=tmp, nice=os.nice(0), core_set=[0]
    )
    assert [str(item) for item in begin(box, ":").look().differences] == []


@needs_cell
def test_the_whole_of_the_host_with_all_its_mounts_is_as_its_plan_says(begin):
    assert [str(item) for item in begin(Sandbox(read=["/"]), ":").look().differences] == []


@needs_cell
def test_a_network_that_was_handed_over_is_known_again(begin):
    with NetNs.new() as network:
        running = begin(Sandbox(read=["/usr"], network=network), ":")
        assert running.granted.network_ino == os.fstat(network.fileno()).st_ino
        assert [str(item) for item in running.look().differences] == []
        other = dataclasses.replace(running.granted, network_ino=1)
        assert running.found(other) == [("beyond", "net namespace of PID")]


def test_a_program_in_its_callers_world_may_open_what_its_user_may(make_pipe):
    ready, wait = make_pipe(), make_pipe()
    command = ["/bin/sh", "-c", "exec 5</etc/passwd 6<>/dev/null; (sleep 1000 & echo ready; wait) & wait"]
    actions = [CloneFd(ready.write, 1), CloneFd(wait.read, 0)]
    granted = Granted.of_plan(shoal.explain(command[0], command, flags=SHARED, actions=actions))
    with started(command, actions=actions) as process:
        wait_ready(ready.read)
        seen = observe(process, granted=granted)
        assert [str(item) for item in seen.differences] == []
        assert len(seen.observed.processes) == 3  # it, the one in the background, and the one below that
        assert "that of whoever started it" in str(seen)


@needs_python
@needs_cell
def test_looking_at_what_begins_and_ends_all_the_time_gives_neither_errors_nor_differences(begin):
    loop = "import os, threading\n"
    loop += "def go():\n  while True:\n    fd = os.open('/usr/bin/env', os.O_RDONLY); pid = os.fork()\n"
    loop += "    if pid == 0: os._exit(0)\n    os.waitpid(pid, 0); os.close(fd)\n"
    loop += "for _ in range(3): threading.Thread(target=go, daemon=True).start()\nos.write(1, b'ready\\n'); input()"
    running = begin(Sandbox(read=["/usr"]), loop, python=True)
    for _ in range(60):
        assert [str(item) for item in running.look().differences] == []


# --- more than was given ----------------------------------------------------------------------------------------------


@needs_cell
def test_an_open_directory_of_the_host_is_told(begin, tmp_path):
    leaked = os.open(tmp_path, os.O_RDONLY)
    try:
        running = begin(Sandbox(read=["/usr"]), ":", also={9: leaked})
        [difference] = running.look().differences
        assert (difference.kind, difference.subject, difference.pid) == (
            "beyond",
            f"descriptor 9 of {running.process.pid}",
            running.process.pid,
        )
        assert f"{tmp_path}, r: it was opened outside of its world, by the mount at " in difference.what
        assert not running.look().confined
        assert f"!! 9   r    {tmp_path}" in str(running.look())
    finally:
        os.close(leaked)


@needs_cell
def test_what_is_handed_on_is_told_of_every_process_that_has_it(begin, tmp_path):
    leaked = os.open(tmp_path, os.O_RDONLY)
    try:
        running = begin(Sandbox(read=["/usr"]), "(exec 4<&9 9<&-; sleep 1000) & exec 9<&-", also={9: leaked})
        # The shell has let go of it, its child has it under another number; which may still be in the making.
        told = {item.subject.partition(" of ")[0] for item in until_told(running)}
        assert told == {"descriptor 4"}
    finally:
        os.close(leaked)


def until_told(running: Running) -> tuple[Any, ...]:
    """The differences, once the child has done what it was told: nothing tells of that but looking."""
    while not (found := running.look().differences) or any("descriptor 9" in item.subject for item in found):
        assert running.process.poll() is None
    return found


@pytest.mark.parametrize("box", boxes(read=["/usr"]))
def test_pipes_and_sockets_that_were_not_handed_over_are_told(begin, box, make_pipe):
    pipe = make_pipe()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        running = begin(box(), ":", also={8: pipe.write, 9: theirs.fileno()})
        assert running.found() == [("beyond", "descriptor 8 of PID"), ("beyond", "descriptor 9 of PID")]
        assert all("we have it open too" in item.what for item in running.look().differences)
        if Boxed.of(box()).tier.is_cell:
            theirs.close()  # the other end stays with us, and the socket with our network
            assert "(of our network: unix stream), rw: it was not handed over" in running.look().differences[-1].what


@pytest.mark.parametrize("box", boxes(read=["/usr"]))
def test_what_was_handed_over_to_be_read_and_is_written_is_told(begin, box, tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    read, write = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    try:
        running = begin(box(), ":", fds={8: read}, also={9: write})
        [difference] = running.look().differences
        assert difference.subject == f"descriptor 9 of {running.process.pid}"
        assert "it was handed over as r only" in difference.what
    finally:
        os.close(read)
        os.close(write)


@needs_cell
def test_what_is_opened_below_a_directory_handed_over_is_no_difference(begin, tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        path.chmod(0o755)
    given = os.open(tmp_path, os.O_RDONLY)
    try:
        code = "import os\nfd = os.open('file', os.O_RDONLY, dir_fd=9)\nos.write(1, b'ready\\n')\ninput()"
        # Landlock lets nothing below be opened, so that this takes a program without it; in the plan it is all the same.
        running = (
            begin(Sandbox(read=["/usr"]), "exec 8<&9", fds={9: given})
            if landlock_abi()
            else begin(Sandbox(read=["/usr"]), code, python=True, fds={9: given})
        )
        assert [str(item) for item in running.look().differences] == []
    finally:
        os.close(given)


@needs_landlock
def test_without_a_world_of_its_own_what_no_rule_allows_is_told(begin, tmp_path):
    path = tmp_path / "secret"
    path.write_text("x")
    leaked, library = os.open(path, os.O_RDONLY), os.open("/usr/bin/env", os.O_RDONLY)
    try:
        running = begin(landlocked(Sandbox(read=["/usr"])), ":", also={8: library, 9: leaked})
        [difference] = running.look().differences  # what is below /usr it could have opened by itself
        assert difference.subject == f"descriptor 9 of {running.process.pid}"
        assert "no rule allows it, and it was not handed over" in difference.what
    finally:
        os.close(leaked)
        os.close(library)


@needs_cell
@needs_python
def test_a_program_does_not_hide_by_the_end_of_its_first_thread(begin, tmp_path):
    leaked = os.open(tmp_path, os.O_RDONLY)
    try:
        call = {"x86_64": 60, "aarch64": 93}[os.uname().machine]  # exit(2), of one thread
        code = "import ctypes, os, threading, time\nfirst = f'/proc/self/task/{os.getpid()}/stat'\n"
        code += "def go():\n  while open(first).read().split()[2] != 'Z': pass\n  os.write(1, b'ready\\n'); input()\n"
        code += f"threading.Thread(target=go).start(); ctypes.CDLL(None).syscall({call}, 0)"
        running = begin(Sandbox(read=["/usr"]), code, python=True, also={9: leaked})
        assert running.found() == [("beyond", "descriptor 9 of PID")]
    finally:
        os.close(leaked)


@needs_cell
@needs_python
def test_a_table_of_descriptors_that_only_one_thread_has_is_looked_at_too(begin, tmp_path):
    leaked = os.open(tmp_path, os.O_RDONLY)
    try:
        code = "import ctypes, os, threading\ndef go():\n  assert ctypes.CDLL(None).unshare(0x400) == 0\n"  # CLONE_FILES
        code += "  parted.set(); closed.wait(); os.write(1, b'ready\\n'); input()\n"
        code += "parted, closed = threading.Event(), threading.Event()\nthreading.Thread(target=go).start()\n"
        code += "parted.wait(); os.close(9); closed.set()"
        running = begin(Sandbox(read=["/usr"]), code, python=True, also={9: leaked})
        assert running.found() == [("beyond", "descriptor 9 of PID")]
    finally:
        os.close(leaked)


@needs_cell
def test_a_descriptor_that_stands_for_a_process_outside_is_told(begin):
    pidfd = os.pidfd_open(os.getpid())
    try:
        running = begin(Sandbox(read=["/usr"]), ":", also={9: pidfd})
        [difference] = running.look().differences
        assert "it stands for a process outside of the domain" in difference.what
    finally:
        os.close(pidfd)


@needs_cell
def test_a_namespace_of_ours_that_is_open_inside_is_told(begin):
    ours = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        running = begin(Sandbox(read=["/usr"]), ":", also={9: ours})
        [difference] = running.look().differences
        assert "it is none of its own namespaces" in difference.what
    finally:
        os.close(ours)


# --- mounts -----------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
MS_BIND, MS_REMOUNT, MS_RDONLY, MS_NOSUID, MS_NODEV = 4096, 32, 1, 2, 4


def inside(process: Process, *calls: tuple[Any, ...]) -> None:
    """mount(2) in the world of a process, as only root outside can."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            namespace = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY)
            assert _libc.setns(namespace, 0x20000) == 0
            for call in calls:
                assert _libc.mount(*(word.encode() if isinstance(word, str) else word for word in call)) == 0
            status = 0
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.root
@needs_cell
def test_a_mount_that_was_not_in_the_plan_is_told_wherever_it_is(begin, tmp_path):
    (tmp_path / "below").mkdir()
    running = begin(Sandbox(read=["/usr"], write={"/work": tmp_path}), ":")
    inside(running.process, ("none", "/work/below", "tmpfs", 0, None), ("none", "/usr/share", "tmpfs", MS_RDONLY, None))
    assert running.found() == [("beyond", "mount /work/below"), ("beyond", "mount /usr/share")]
    assert "tmpfs none, ro, / of it; it was not in the plan" in str(running.look())
    inside(running.process, ("/usr", "/tmp", None, MS_BIND, None))
    assert ("beyond", "mount /tmp") in running.found()


@pytest.mark.root
@needs_cell
def test_a_mount_of_the_host_that_came_along_with_a_directory_is_no_difference_and_its_loss_of_limits_is(begin, tmp_path):
    (tmp_path / "below").mkdir()
    tmp_path.chmod(0o755)  # so that it need not be shown with other ids, which tmpfs cannot do everywhere
    assert _libc.mount(b"none", os.fsencode(tmp_path / "below"), b"tmpfs", 0, None) == 0
    try:
        running = begin(Sandbox(read={"/usr": "/usr", "/data": tmp_path}), ":")
        assert [str(item) for item in running.look().differences] == []
        inside(running.process, (None, "/data/below", None, MS_REMOUNT | MS_BIND, None))
        assert running.found() == [("lost", "mount /data/below")] * 3
        assert "it was to be read-only, and is writable" in str(running.look())
    finally:
        assert _libc.umount2(os.fsencode(tmp_path / "below"), 2) == 0


@pytest.mark.root
@needs_cell
def test_a_mount_that_has_become_writable_or_is_gone_is_told(begin, tmp_path):
    running = begin(Sandbox(read=["/usr"], write={"/work": tmp_path}), ":")
    inside(
        running.process,
        (None, "/usr", None, MS_REMOUNT | MS_BIND | MS_NOSUID, None),
        (None, "/work", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, None),
    )
    assert running.found() == [("lost", "mount /usr"), ("lost", "mount /usr"), ("missing", "mount /work")]


@pytest.mark.root
@needs_cell
def test_something_else_in_the_place_of_a_directory_is_told_and_its_new_name_is_not(begin, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    running = begin(Sandbox(read={"/usr": "/usr", "/data": tmp_path / "data"}), ":")
    other = dataclasses.replace(
        running.granted,
        mounts=tuple(
            dataclasses.replace(mount, path=str(tmp_path / "other"), ino=(tmp_path / "other").stat().st_ino)
            if mount.where == "/data"
            else mount
            for mount in running.granted.mounts
        ),
    )
    assert running.found(other) == [("beyond", "mount /data")]
    (tmp_path / "data").rename(tmp_path / "renamed")
    assert running.found() == []
    (tmp_path / "renamed").rmdir()
    (tmp_path / "data").mkdir()
    assert running.found() == [("missing", "mount /data")]


# --- protections ------------------------------------------------------------------------------------------------------


@needs_cell
@pytest.mark.parametrize(
    ("started", "compared", "told"),
    [
        ({"seccomp": "off"}, {}, "seccomp of PID"),
        ({"network": "host"}, {}, "net namespace of PID"),
        ({"open_files": 200}, {"open_files": 100}, "limit open_files of PID"),
        ({}, {"file_size": "1M"}, "limit file_size of PID"),
        pytest.param(
            {}, {"core_set": [0]}, "processors of PID", marks=pytest.mark.skipif(os.cpu_count() == 1, reason="needs two processors")
        ),
    ],
)
def test_a_protection_that_is_not_there_is_told(begin, started, compared, told):
    box = Sandbox(read=["/usr"])
    running, other = begin(box.replace(**started), ":"), begin(box.replace(**compared), ":")
    wanted = dataclasses.replace(other.granted, descriptors=running.granted.descriptors, mounts=running.granted.mounts)
    assert running.found(wanted) == [("lost", told)]
    assert [str(item) for item in running.look().differences] == []


@needs_cell
def test_a_nice_value_that_is_too_low_is_told(begin):
    running = begin(Sandbox(read=["/usr"]), ":")
    assert running.found(dataclasses.replace(running.granted, nice=os.nice(0) + 1)) == [("lost", "nice of PID")]


@needs_cell
def test_a_box_without_a_cell_lacks_what_a_cell_takes_away(begin):
    box = Sandbox(read=["/usr"])
    cell, caller = begin(box, ":"), Granted.of_plan(shoal.explain("/bin/sh", ["sh"], flags=SHARED))
    assert ("beyond", "user of PID") not in cell.found(dataclasses.replace(caller, descriptors=cell.granted.descriptors, user=None))
    with started(["/bin/sleep", "1000"]) as process:
        found = {item.subject.partition(" of ")[0] for item in observe(process, granted=cell.granted).differences if item.kind == "lost"}
        assert found >= {"mnt namespace", "pid namespace", "net namespace", "capabilities", "seccomp"}
        assert ("user" in found) == ROOT


@pytest.mark.root
@needs_python
def test_a_program_that_has_become_somebody_else_is_told(make_pipe):
    ready = make_pipe()
    command = [PYTHON, "-c", "import os, time; os.write(1, b'ready\\n'); time.sleep(1000)"]
    actions = [CloneFd(ready.write, 1)]
    granted = Granted.of_plan(shoal.explain(PYTHON, command, flags=SHARED, actions=actions))
    with started(command, actions=actions) as process:
        wait_ready(ready.read)
        assert observe(process, granted=granted).differences == ()
        [difference] = observe(process, granted=dataclasses.replace(granted, user=65534)).differences
        assert (difference.kind, difference.what) == ("beyond", "it was started as 65534, and is 0")


@needs_python
def test_who_traces_it_is_told(make_pipe):
    ready = make_pipe()
    command, actions = ["/bin/sh", "-c", "echo ready; exec sleep 1000"], [CloneFd(ready.write, 1)]
    granted = Granted.of_plan(shoal.explain(command[0], command, flags=SHARED, actions=actions))
    with started(command, actions=actions) as process:
        wait_ready(ready.read)
        trace = f"import ctypes, sys; assert ctypes.CDLL(None).ptrace(0x4206, {process.pid}, 0, 0) == 0\n"
        trace += "print('ready', flush=True); sys.stdin.read()"
        tracer = subprocess.Popen([sys.executable, "-c", trace], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert tracer.stdout is not None
            if tracer.stdout.readline() != "ready\n":
                pytest.skip("needs a kernel that lets siblings trace each other (Yama)")
            [difference] = observe(process, granted=granted).differences
            assert (difference.kind, difference.subject) == ("lost", f"tracer of {process.pid}")
        finally:
            tracer.communicate(timeout=PATIENCE_S)


@needs_cell
@needs_python
@pytest.mark.skipif(ROOT, reason="root may look at everybody")
def test_what_does_not_let_itself_be_looked_at_is_told_and_found_all_the_same(begin):
    code = "import os, ctypes, time\nif os.fork() == 0:\n  ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
    code += "  os.write(1, b'ready\\n'); time.sleep(1000)\ninput()"
    running = begin(Sandbox(read=["/usr"]), code, python=True)
    seen = running.look()
    assert len([process for process in seen.observed.processes if not process.keeper]) == 2
    assert {item.kind for item in seen.differences} == {"unseen"}
    assert {item.subject.partition(" of ")[0] for item in seen.differences} == {"descriptors"}
    assert seen.confined  # nobody says that it is not; what could not be seen is said


@needs_cell
@needs_python
def test_privileges_in_a_user_namespace_of_its_own_are_told(begin):
    code = "import os, ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\nos.write(1, b'ready\\n')\ninput()"
    try:
        running = begin(Sandbox(read=["/usr"], seccomp="off"), code, python=True)
    except AssertionError:
        pytest.skip("needs user namespaces inside of cells")
    [difference] = running.look().differences
    assert (difference.kind, difference.subject) == ("lost", f"capabilities of {running.process.pid}")
    assert "in a user namespace of its own" in difference.what


# --- jobs -------------------------------------------------------------------------------------------------------------


@needs("a cgroup v2 tree in which groups can be made")
def test_in_a_job_what_was_left_behind_is_found_and_limits_are_compared(make_pipe):
    assert availability()[0]
    ready = make_pipe()
    with Job.default() as home, home.create_child() as job:
        command = ["sh", "-c", "(setsid sleep 1000 & ) ; echo ready; exec sleep 1000"]
        granted = Granted.of_plan(shoal.explain("/bin/sh", command, flags=SHARED, actions=[CloneFd(ready.write, 1)], job=job))
        with shoal.spawn("/bin/sh", command, flags=SHARED, actions=[CloneFd(ready.write, 1)], job=job) as process:
            wait_ready(ready.read)
            seen = observe(process, granted=granted, job=job)
            assert sorted(found.pid for found in seen.observed.processes) == sorted(job.processes())
            assert len(seen.observed.processes) == 2
            assert seen.differences == ()
            assert seen.observed.job.path.endswith(job.name)
            limited = Granted.of_plan(shoal.explain("/bin/sh", command, flags=SHARED), limits=Limits(memory_bytes=1 << 30, pids=7))
            limited = dataclasses.replace(limited, descriptors=granted.descriptors)
            told = [str(item) for item in observe(process, granted=limited, job=job).differences]
            assert [line.partition(":")[0] for line in told] == ["lost", "lost"]
            assert "limit memory_bytes of the job: it was to be 1073741824, and is unlimited" in told[0]
            [unseen] = observe(process, granted=limited).differences
            assert (unseen.kind, unseen.subject) == ("unseen", "limits of the job")
            job.kill()
            process.wait(timeout=PATIENCE_S)
            job.wait_empty(timeout=PATIENCE_S)


@needs("a cgroup v2 tree in which groups can be made")
def test_what_is_not_in_the_job_is_told():
    with Job.default() as home, home.create_child() as job, started(["/bin/sleep", "1000"]) as process:
        granted = Granted.of_plan(shoal.explain("/bin/sleep", ["sleep", "1000"], flags=SHARED))
        [difference] = observe(process, granted=granted, job=job).differences
        assert (difference.kind, difference.subject) == ("lost", f"job of {process.pid}")


# --- whose process it is ----------------------------------------------------------------------------------------------


def test_a_program_that_has_ended_is_not_looked_at(workload):
    with shoal.spawn(workload, ["workload"], flags=SHARED) as process:
        process.wait(timeout=PATIENCE_S)
        seen = observe(process)
        assert seen.observed.processes == ()
        assert "processes: none" in str(seen)


def test_a_directory_of_proc_never_becomes_another_processes(workload):
    with shoal.spawn("/bin/sleep", ["sleep", "1000"], flags=SHARED) as process, ProcessDirectory(process.pid) as directory:
        assert directory.status()["Name"] == "sleep"
        process.kill()
        process.wait(timeout=PATIENCE_S)
        with pytest.raises(OSError, match="No such"):
            directory.status()


RECYCLE = """
import os, subprocess, sys
import shoal
from shoal import Process, SpawnFlags
from shoal.manager.capabilities import observe
flags = SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC
first = shoal.spawn("/bin/sleep", ["sleep", "1000"], flags=flags)
first.kill()
first.wait()
for _ in range(50):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(first.pid - 1))
    second = shoal.spawn("/bin/sleep", ["sleep", "1000"], flags=flags)
    if second.pid == first.pid:
        break
    second.kill(); second.wait()
print(second.pid == first.pid)
print([found.pid == second.pid for found in observe(second).observed.processes], len(observe(first).observed.processes))
second.kill(); second.wait()
"""


@pytest.mark.root
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_number_that_is_somebody_elses_by_now_is_not_read():
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", RECYCLE]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.split() == ["True", "[True]", "0"], done.stderr


# --- how it is shown --------------------------------------------------------------------------------------------------


@needs_cell
def test_secrets_are_shown_nowhere(begin):
    box = Sandbox(
        read=["/usr"],
        env={"TOKEN": "hunter2-hunter2", "URL": "https://u:hunter2-hunter2@host", "PIN": "77", "OPEN": "said"},
        secrets=["TOKEN", "PIN"],
    )
    running = begin(box, ": hunter2-hunter2")
    seen = running.look()
    for text in (str(seen), repr(seen), seen.to_dot(), json.dumps(seen.to_dict()), json.dumps(running.granted.to_dict())):
        assert "hunter2" not in text
    assert "TOKEN=***" in str(seen)
    assert "PIN=***" in str(seen)
    assert "URL=https://u:***@host" in str(seen)
    assert "OPEN=said" in str(seen)


@needs_cell
def test_what_was_granted_and_what_is_survive_json_whole(begin, tmp_path):
    running = begin(Sandbox(read=["/usr"], env={"A": "1"}, secrets=["A"]), ":")
    seen = running.look()
    assert Granted.from_dict(json.loads(json.dumps(running.granted.to_dict()))) == running.granted
    again = Capabilities.from_dict(json.loads(json.dumps(seen.to_dict())))
    assert again == seen
    assert str(again) == str(seen)
    for damaged in ({}, {"name": 7}, running.granted.to_dict() | {"world": "moon"}, running.granted.to_dict() | {"format": 99}):
        with pytest.raises(ValueError, match="record of what a domain was granted"):
            Granted.from_dict(damaged)
    with pytest.raises(ValueError, match="record of what a domain can touch"):
        Capabilities.from_dict({"name": "x"})


@pytest.fixture
def odd(begin, tmp_path) -> Running:
    """With names that mean something to terminals and to Graphviz."""
    odd_path = tmp_path / 'a "quoted" \\n \x1b[31mred\n<b>&lt;'
    odd_path.mkdir()
    odd_path.chmod(0o755)
    leaked = os.open(odd_path, os.O_RDONLY)
    try:
        return begin(Sandbox(read={"/usr": "/usr", "/odd": odd_path}), ":", also={9: leaked})
    finally:
        os.close(leaked)


@needs_cell
def test_names_cannot_speak_to_the_terminal(odd):
    text = str(odd.look())
    assert "\x1b" not in text
    assert "\\x1b[31mred\\n" in text
    assert all(line.isprintable() for line in text.splitlines())


@needs_cell
def test_colours_and_lines_are_a_choice(odd):
    seen = odd.look()
    assert str(seen) == seen.to_tree()
    assert "\x1b[1;31m!! 9 " in seen.to_tree(colour=True)
    plain = seen.to_tree(ascii_only=True)
    assert "|-- program: /usr/bin/" in plain
    assert plain.isascii()


@needs_cell
@needs_dot
def test_the_picture_is_one_that_graphviz_draws(odd):
    source = odd.look().to_dot()
    done = subprocess.run(["dot", "-Tplain"], input=source, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    nodes = [line for line in done.stdout.splitlines() if line.startswith("node ")]
    assert any("quoted" in line and "red" in line for line in nodes)
    assert any(line.split()[1] == "network" for line in nodes)


def test_without_a_plan_it_is_shown_what_is():
    with started(["/bin/sleep", "1000"]) as process:
        seen = observe(process)
        assert (seen.granted, seen.differences) == (None, ())
        text = str(seen)
    assert text.startswith("/bin/sleep\n")
    assert "only one side is known" in text
    assert f"{process.pid} sleep: user {os.geteuid()}, /usr/bin/sleep" in text


def test_a_program_that_has_ended_is_shown_as_it_was_granted(workload):
    granted = Granted.of_plan(shoal.explain(workload, ["workload", "exit", "3"]))
    text = str(Capabilities.of(granted, None, domain_id=7))
    assert text.startswith("domain 7 workload: workload exit 3\n")
    assert "processes: none, it has ended" in text


def test_handles_and_directories_are_told_with_their_numbers(workload, tmp_path):
    with Directory.open(tmp_path) as directory, tempfile.TemporaryFile() as file:
        actions = [shoal.AddHandle(shoal.PA_HND(0xF0, 7), directory, "data"), CloneFd(file, 5)]
        granted = Granted.of_plan(shoal.explain(workload, ["workload"], actions=actions))
    found = {item.fd: item for item in granted.descriptors}
    assert (found[3].kind, found[3].handle, found[3].handle_kind) == ("directory", 0x700F0, "directory")
    assert (found[3].ino, found[5].kind, found[5].access) == (tmp_path.stat().st_ino, "file", "rw")
    assert f"3   r    {tmp_path}  = startup handle 0x700f0, a directory" in str(Capabilities.of(granted, None))
