"""Entries of every kind: memory, single files, services, proc, devices, networks; and that nothing can be slipped in. Source: spec 3.9."""

import errno
import os
import socket
import threading

import pytest
from rig.features import needs
from rig.workload import PATIENCE_S, Reporting, observe

from shoal import AddNsEntry, BadHandleError, Directory, Job, NetNs, Socket, SpawnError

DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}


@pytest.fixture
def tree(tmp_path):
    """foo/other and foo/bar/baz, each with a file `who` that holds its path."""
    for name in ("foo/bar/baz", "foo/other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "who").write_text(name)
    return tmp_path


def test_a_tmpfs_is_private_writable_and_as_large_as_asked(cell, workload, world):
    actions = [AddNsEntry("/tmp", Directory.tmpfs("1M", mode=0o1777))]
    report = observe(cell, workload, "stat", "/tmp", "create", "/tmp/x", "fill", "/tmp/big", actions=actions)
    assert report.one("stat", "/tmp")[1:3] == ["dir", "1777"]
    assert report.ok("create", "/tmp/x")
    assert 0 < int(report.one("fill", "/tmp/big")[1]) <= 1 << 20
    world.assert_unchanged()


def test_a_file_can_be_an_entry(cell, workload, tree):
    actions = [AddNsEntry("/etc/who", Directory.file(tree / "foo/other/who"))]
    report = observe(cell, workload, "cat", "/etc/who", "writable", "/etc/who", "list", "/etc", actions=actions)
    assert report.one("cat", "/etc/who") == ["ok", "foo/other"]
    assert report.errno("writable", "/etc/who") in DENIED
    assert report.one("list", "/etc") == ["ok", "who"]


def test_a_listening_unix_socket_can_be_an_entry(cell, workload, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "service"))
        server.listen()
        entry = AddNsEntry("/svc/thing", Socket.from_fd(os.dup(server.fileno())))
        assert observe(cell, workload, "connect-unix", "/svc/thing", actions=[entry]).ok("connect-unix", "/svc/thing")


def test_proc_and_devices_are_those_of_the_cell(cell, workload):
    actions = [AddNsEntry("/proc", Directory.proc()), AddNsEntry("/dev", Directory.devices())]
    report = observe(
        cell, workload, "list", "/dev", "writable", "/dev/null", "stat", f"/proc/{os.getpid()}/root", "list", "/proc", actions=actions
    )
    assert {"null", "zero", "full", "random", "urandom", "tty"} <= set(report.one("list", "/dev")[1:])
    assert report.ok("writable", "/dev/null")
    assert len([name for name in report.one("list", "/proc")[1:] if name.isdigit()]) <= 2
    with pytest.raises(BadHandleError):
        Directory.proc().fileno()


@needs("an ordinary user")
def test_proc_in_the_callers_world_is_that_of_a_job_that_is_a_pid_namespace(direct, workload):
    with Job.default() as default, default.create_child() as job:
        if "-ns" not in job.name:
            pytest.skip("an ordinary user has jobs made of cgroups here")
        report = observe(direct, workload, "list", "/proc", actions=[AddNsEntry("/proc", Directory.proc())], job=job)
    assert [name for name in report.one("list", "/proc")[1:] if name.isdigit()] == ["1", "2"]


def test_without_a_network_there_is_only_a_loopback_that_is_up(cell, workload):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        report = observe(cell, workload, "ifaces", "connect", port)
        assert report.all("iface") == [["lo", "up"]]
        assert report.errno("connect", str(port)) == errno.ECONNREFUSED


def test_the_hosts_network_is_handed_over_at_svc_net(cell, workload, world):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        report = observe(cell, workload, "connect", port, "list", "/", "ifaces", actions=[AddNsEntry("/svc/net", NetNs.host())])
    assert report.ok("connect", str(port))
    assert [name for name, _ in report.all("iface")] == [name for _, name in socket.if_nameindex()]
    world.assert_unchanged()


def test_two_cells_share_a_network_that_was_made_for_them_and_nothing_else_reaches(cell, workload, world):
    network = NetNs.new()
    with network, Reporting() as reporting:
        actions = [AddNsEntry("/svc/net", network.duplicate()), reporting.action()]
        with cell(workload, ["workload", "ifaces", "listen", "accept"], actions=actions) as server:
            reporting.started()
            assert reporting.line() == ["iface", "lo", "up"]
            assert reporting.line() == ["ifaces", "ok", "0"]
            port = reporting.line()[2]
            report = observe(cell, workload, "connect", port, actions=[AddNsEntry("/svc/net", network.duplicate())])
            assert report.ok("connect", port)
            assert reporting.line()[:2] == ["accept", "ok"]
            assert server.wait(timeout=PATIENCE_S) == 0
    world.assert_unchanged()


# --- swapping what is being mounted --------------------------------------------------------------------------------


class Swapping:
    """Replaces `path` by a symbolic link and back, as fast as it can."""

    def __init__(self, path, target):
        self.path, self.away, self.link, self.target = str(path), f"{path}.away", f"{path}.link", str(target)
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.done.is_set():
            os.rename(self.path, self.away)
            os.symlink(self.target, self.path)
            os.unlink(self.path)
            os.rename(self.away, self.path)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.done.set()
        self.thread.join()


def test_an_opened_directory_is_mounted_whatever_its_path_has_become(cell, workload, tree):
    secret = tree / "secret"
    secret.mkdir()
    (secret / "who").write_text("secret")
    with Directory.open(tree / "foo/other") as handle, Swapping(tree / "foo/other", secret):
        for _ in range(100):
            report = observe(cell, workload, "cat", "/data/who", actions=[AddNsEntry("/data", handle.duplicate())])
            assert report.one("cat", "/data/who") == ["ok", "foo/other"]


def test_a_nested_entry_cannot_be_led_elsewhere_by_a_link_in_a_writable_entry(cell, workload, tree, world):
    safe = tree / "safe"
    safe.mkdir()
    refused = []
    with (
        Directory.open(tree / "foo", writable=True) as outer,
        Directory.open(tree / "foo/bar/baz") as inner,
        Directory.open(safe) as kept,
        Swapping(tree / "foo/other", "/safe"),
    ):
        for _ in range(100):
            actions = [
                AddNsEntry("/safe", kept.duplicate()),
                AddNsEntry("/data", outer.duplicate()),
                AddNsEntry("/data/other", inner.duplicate(), nested=True),
            ]
            try:
                report = observe(cell, workload, "list", "/safe", "list", "/data/other", actions=actions)
            except SpawnError as error:
                refused.append(str(error))  # there was a link, or nothing, where it should be mounted
            else:
                assert report.one("list", "/safe") == ["ok"]
    assert all("action 2" in text for text in refused), refused
    world.assert_unchanged()
