"""The empty world: what a program without CLONE_NAMESPACE sees, what it cannot do, and how a cell ends. Source: spec 5.2, 5.3."""

import errno
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from rig.features import needs
from rig.workload import PATIENCE_S, Reporting, observe

from shoal import AddNsEntry, CloneFd, Directory, SpawnFlags

DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")


def namespace_of(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def test_the_root_exists_and_has_nothing_in_it(cell, workload, world):
    report = observe(cell, workload, "list", "/", "stat", "/", "cwd")
    assert report.one("list", "/") == ["ok"]
    assert report.one("stat", "/")[:2] == ["ok", "dir"]
    assert report.one("cwd") == ["ok", "/"]
    world.assert_unchanged()


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc", "/proc/self", "/sys", "/dev", "/dev/null", "/tmp", "/bin/sh", "/old_root", "/.."])
def test_no_path_of_the_host_leads_anywhere(cell, workload, path):
    report = observe(cell, workload, "stat", path, "list", path)
    if path == "/..":
        assert report.one("list", path) == ["ok"]
    else:
        assert report.errno("stat", path) == errno.ENOENT
        assert report.errno("list", path) == errno.ENOENT


def test_the_program_itself_cannot_be_found_by_a_path(cell, workload):
    assert observe(cell, workload, "stat", workload).errno("stat", workload) == errno.ENOENT


def test_nothing_can_be_made_or_mounted_in_an_empty_world(cell, workload):
    verbs = ["create", "/x", "mkdir", "/x", "chmod", "/", "mount", "/", "umount", "/", "remount", "/", "chroot", "/", "sethostname", "mine"]
    report = observe(cell, workload, *verbs, "unshare-remount", "/")
    for verb in ("create", "mkdir"):
        assert report.errno(verb, "/x") in DENIED, verb
    for verb in ("chmod", "mount", "umount", "remount", "chroot"):
        assert report.errno(verb, "/") in DENIED | {errno.EINVAL}, verb
    assert report.errno("sethostname", "mine") == errno.EPERM
    assert report.errno("unshare-remount", "/") != 0


def test_every_namespace_is_new(cell, workload, pipe):
    with cell(workload, ["workload", "drain", "0"], actions=[CloneFd(pipe.read, 0)]) as process:
        for kind in NAMESPACES:
            assert namespace_of(process.pid, kind) != namespace_of("self", kind), kind
        os.close(pipe.write)
        assert process.wait(timeout=PATIENCE_S) == 0


@needs("an ordinary user")
def test_without_root_the_user_namespace_is_new_too(cell, workload, pipe):
    with cell(workload, ["workload", "drain", "0"], actions=[CloneFd(pipe.read, 0)]) as process:
        assert namespace_of(process.pid, "user") != namespace_of("self", "user")
        os.close(pipe.write)
        assert process.wait(timeout=PATIENCE_S) == 0


def test_two_cells_share_no_namespace(cell, workload, make_pipe):
    a, b = make_pipe(), make_pipe()
    with (
        cell(workload, ["a", "drain", "0"], actions=[CloneFd(a.read, 0)]) as one,
        cell(workload, ["b", "drain", "0"], actions=[CloneFd(b.read, 0)]) as two,
    ):
        for kind in NAMESPACES:
            assert namespace_of(one.pid, kind) != namespace_of(two.pid, kind), kind
        os.close(a.write)
        os.close(b.write)
        assert one.wait(timeout=PATIENCE_S) == two.wait(timeout=PATIENCE_S) == 0


def test_the_program_sees_small_pids_and_none_of_the_hosts(cell, workload):
    report = observe(cell, workload, "pids", "probe", os.getpid())
    pid, parent, _, _ = (int(word) for word in report.one("pids"))
    assert 1 <= pid < 10
    assert parent < pid
    assert report.errno("probe", str(os.getpid())) == errno.ESRCH


def test_the_hostname_is_not_the_hosts(cell, workload):
    assert observe(cell, workload, "hostname").one("hostname") != [socket.gethostname()]


def test_there_are_no_capabilities_and_no_new_privileges(cell, workload):
    assert observe(cell, workload, "caps").one("caps") == ["0", "0", "0", "0", "1"]


def test_an_abstract_socket_of_the_host_cannot_be_reached(cell, direct, workload):
    name = f"shoal-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        assert observe(direct, workload, "connect-abstract", name).ok("connect-abstract", name)
        assert observe(cell, workload, "connect-abstract", name).errno("connect-abstract", name) == errno.ECONNREFUSED


def test_no_descriptor_leads_out_of_the_cell(cell, workload):
    assert set(observe(cell, workload, "fds").fds()) == {0, 1, 2}


def test_threads_children_and_memory_work_as_anywhere(cell, workload):
    report = observe(cell, workload, "thread", "fork", "children", 3, 0, "reap", "alloc", 1 << 22)
    assert report.ok("thread")
    assert report.ok("fork")
    assert report.one("reap") == ["ok", "3"]
    assert report.ok("alloc", str(1 << 22))


def test_a_signal_ends_the_program_as_it_would_anywhere(cell, workload, world):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL, signal.SIGUSR1):
        with Reporting() as reporting, cell(workload, ["workload", "comm", "pause"], actions=[reporting.action()]) as process:
            reporting.started()
            reporting.line()
            process.send_signal(number)
            assert process.wait(timeout=PATIENCE_S) == -number
    world.assert_unchanged()


def test_a_program_can_handle_signals_in_a_cell(cell, workload):
    with Reporting() as reporting, cell(workload, ["workload", "await", str(int(signal.SIGTERM))], actions=[reporting.action()]) as process:
        reporting.started()
        assert reporting.line() == ["awaiting"]
        process.terminate()
        assert reporting.line() == ["await", "15", "ok", "15"]
        assert process.wait(timeout=PATIENCE_S) == 0


def test_a_program_that_kills_itself_is_reported_with_its_signal(cell, workload):
    assert observe(cell, workload, "kill", int(signal.SIGABRT)).returncode == -signal.SIGABRT


@pytest.mark.parametrize("status", [0, 1, 127, 128, 255])
def test_every_exit_status_comes_through(cell, workload, status):
    assert observe(cell, workload, "exit", status).returncode == status


def test_what_the_program_leaves_behind_lives_on_in_the_cell_until_it_ends_by_itself(cell, workload, pipe, world):
    with Reporting() as reporting:
        with cell(workload, ["workload", "daemon", "5", "exit", "4"], actions=[CloneFd(pipe.read, 5), reporting.action()]) as process:
            reporting.started()
            assert process.wait(timeout=PATIENCE_S) == 4
        assert reporting.line() == ["daemon", "5", "ok", "0"]
        assert world.new_processes()  # the cell is still there
        os.close(pipe.write)
        assert reporting.line() == ["daemon-ends", "5", "ok", "0"]
        assert reporting.rest() == b""
    world.assert_unchanged(besides={pipe.write})


def test_killing_the_first_process_of_a_cell_kills_everything_in_it(cell, workload, pipe, world):
    with Reporting() as reporting:
        verbs = ["children", "5", "5", "daemon", "5", "comm", "pause"]
        with cell(workload, ["workload", *verbs], actions=[CloneFd(pipe.read, 5), reporting.action()]) as process:
            reporting.started()
            while reporting.line()[0] != "comm":
                pass
            (keeper,) = (pid for pid in world.new_processes() if pid != process.pid and _parent(pid) == os.getpid())
            os.kill(keeper, signal.SIGKILL)
            assert process.wait(timeout=PATIENCE_S) == -signal.SIGKILL
            reporting.rest()  # comes back only when the last process that held the report is gone
    world.assert_unchanged()


def _parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_cell_ends_when_its_last_process_has_ended(cell, workload, world):
    assert observe(cell, workload, "children", 3, 0, "exit", 0).returncode == 0
    world.assert_unchanged()


def test_a_cell_whose_handle_was_dropped_runs_on_and_is_reaped(cell, workload, pipe, world):
    with Reporting() as reporting:
        cell(workload, ["workload", "drain", "5", "comm"], actions=[CloneFd(pipe.read, 5), reporting.action()]).close()
        reporting.started()
        os.close(pipe.write)
        assert reporting.line() == ["comm", "workload"]
        assert reporting.rest() == b""
    world.assert_unchanged(besides={pipe.write})


# --- the program's own file ----------------------------------------------------------------------------------------


@pytest.fixture
def private_copy(workload, tmp_path):
    """An executable that is ours to lose."""
    return shutil.copy(workload, tmp_path / "program")


def test_the_programs_file_cannot_be_written_through_proc(cell, private_copy):
    before = Path(private_copy).read_bytes()
    report = observe(
        cell, private_copy, "writable", "/proc/self/exe", "append", "/proc/self/exe", "x", actions=[AddNsEntry("/proc", Directory.proc())]
    )
    assert report.errno("writable", "/proc/self/exe") != 0
    assert Path(private_copy).read_bytes() == before


def test_the_programs_file_cannot_be_written_after_it_has_ended_through_a_descriptor_kept_open(cell, private_copy, workload):
    """While a program runs the kernel refuses with "text file busy"; the danger is the moment after."""
    before = Path(private_copy).read_bytes()
    actions = [AddNsEntry("/proc", Directory.proc()), AddNsEntry("/tool", Directory.file(workload))]
    report = observe(cell, private_copy, "open", "/proc/self/exe", "exec", "/tool", "append", "/proc/self/fd/3", "x", actions=actions)
    assert report.one("open", "/proc/self/exe") == ["ok", "3"]
    assert report.errno("append", "/proc/self/fd/3") in DENIED
    assert Path(private_copy).read_bytes() == before


def test_proc_shows_only_the_cell_and_lets_nothing_be_changed(cell, workload):
    verbs = [
        "list",
        "/proc",
        "writable",
        "/proc/sys/kernel/hostname",
        "writable",
        "/proc/sysrq-trigger",
        "list",
        "/proc/1/root",
        "list",
        "/proc/1/cwd",
        "list",
        "/proc/1/fd",
    ]
    report = observe(cell, workload, *verbs, actions=[AddNsEntry("/proc", Directory.proc())])
    assert len([name for name in report.one("list", "/proc")[1:] if name.isdigit()]) <= 2
    assert report.errno("writable", "/proc/sys/kernel/hostname") in DENIED
    assert not report.ok("writable", "/proc/sysrq-trigger")
    for path in ("/proc/1/root", "/proc/1/cwd"):  # the cell's first process is no way out
        words = report.one("list", path)
        assert words[0] != "ok" or words[1:] == ["proc"]


def test_a_dynamic_program_in_a_cell_has_its_libraries_and_still_nothing_of_the_host(cell, workload_dynamic):
    report = observe(cell, workload_dynamic, "stat", "/etc/passwd", "stat", "/bin/sh", "caps", flags=SpawnFlags.DEFAULT_LDSVC)
    assert report.errno("stat", "/etc/passwd") == errno.ENOENT
    assert report.errno("stat", "/bin/sh") == errno.ENOENT
    assert report.one("caps") == ["0", "0", "0", "0", "1"]


def test_a_terminal_cannot_be_typed_into(cell, workload):
    """Even where the kernel still allows TIOCSTI, the terminal is not the program's own, and it has no capability."""
    controller, terminal = os.openpty()
    try:
        report = observe(cell, workload, "tiocsti", 5, actions=[CloneFd(terminal, 5)])
        assert report.errno("tiocsti", "5") in DENIED | {errno.EIO}
    finally:
        os.close(controller)
        os.close(terminal)
