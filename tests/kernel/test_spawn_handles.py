"""Startup handles: which descriptors carry them, how the child is told, and which ids are refused. Source: spec 1.4, 3.10, 3.6, 3.1."""

import os
import socket
import threading
from contextlib import closing

import pytest
from rig.features import SOCKET_PROXY, needs
from rig.launchers import every_launcher, in_the_callers_world
from rig.workload import observe

from shoal import (
    PA_HND,
    AccessDeniedError,
    AddHandle,
    AddNsEntry,
    AlreadyExistsError,
    BadHandleError,
    CloneFd,
    Directory,
    File,
    HandleType,
    InvalidArgsError,
    Job,
    NetNs,
    NotSupportedError,
    OutOfRangeError,
    Rights,
    Socket,
    SpawnFlags,
    Status,
    TransferFd,
    UtcClock,
    Vmo,
)

USER0, USER1 = PA_HND(HandleType.USER0), PA_HND(HandleType.USER1)


def told(report):
    """The handles of SHOAL_STARTUP as (id, fd, kind, rights), after checking that each names the descriptor it says."""
    words = report.variables()["SHOAL_STARTUP"].split(" ")
    assert words[0] == "1"
    found = []
    for word in words:
        if word.startswith("handle="):
            id_, fd, kind, rights, dev, ino = word.removeprefix("handle=").split(":")
            at = report.fds()[int(fd)]
            assert (at.dev, at.ino) == (int(dev), int(ino))
            assert id_.startswith("0x")
            assert rights.startswith("0x")
            found.append((int(id_, 16), int(fd), kind, Rights(int(rights, 16))))
    return found


@every_launcher
def test_a_startup_handle_moves_into_the_child_and_the_table_names_it(launch, workload, world):
    handle = Vmo.from_bytes(b"what is in it", "note")
    rights = handle.rights
    report = observe(launch, workload, "env", "fds", "read", 3, actions=[AddHandle(USER0, handle)])
    assert told(report) == [(0xF0, 3, "vmo", rights)]
    assert report.one("read", "3") == ["ok", "what is in it"]
    assert handle.closed
    world.assert_unchanged()


@every_launcher
def test_startup_handles_take_the_lowest_numbers_from_3_that_no_action_targets_in_list_order(launch, workload, make_pipe):
    a, b = make_pipe(), make_pipe()
    actions = [
        AddHandle(PA_HND(HandleType.USER1, 7), Vmo.from_bytes(b"1")),
        CloneFd(a.read, 4),
        AddHandle(PA_HND(HandleType.USER0, 0xFFFF), File.from_fd(b.read)),
        AddHandle(PA_HND(HandleType.FD, 3), Vmo.from_bytes(b"2")),
    ]
    report = observe(launch, workload, "env", "fds", actions=actions)
    assert [item[:3] for item in told(report)] == [(0x700F1, 5, "vmo"), (0xFFFF00F0, 6, "file")]
    assert set(report.fds()) == {0, 1, 2, 3, 4, 5, 6}
    assert report.fds()[4].same_object(a.read)


@every_launcher
def test_the_job_and_the_clock_come_after_the_added_handles(launch, workload):
    flags = SpawnFlags.CLONE_JOB | SpawnFlags.CLONE_UTC_CLOCK
    report = observe(launch, workload, "env", "fds", flags=flags, actions=[AddHandle(USER0, Vmo.from_bytes(b""))])
    assert {(id_, fd, kind) for id_, fd, kind, _ in told(report)} == {(0xF0, 3, "vmo"), (0x3, 4, "job"), (0x40, 5, "clock")}


@every_launcher
def test_the_same_id_may_be_added_twice_and_keeps_its_order(launch, workload):
    actions = [AddHandle(USER0, Vmo.from_bytes(b"first")), AddHandle(USER0, Vmo.from_bytes(b"second"))]
    report = observe(launch, workload, "env", "fds", "read", 3, "read", 4, actions=actions)
    assert [item[:2] for item in told(report)] == [(0xF0, 3), (0xF0, 4)]
    assert [report.one("read", fd)[1] for fd in ("3", "4")] == ["first", "second"]


@every_launcher
@pytest.mark.parametrize("type_", ["PROC_SELF", "THREAD_SELF", "VMAR_ROOT", "VMAR_LOADED", "VMO_STACK", "VMO_EXECUTABLE", "NS_DIR"])
def test_an_id_that_only_the_launcher_sets_is_refused(launch, workload, type_, world):
    handle = Vmo.from_bytes(b"x")
    with pytest.raises(InvalidArgsError, match="action 0") as caught:
        launch(workload, ["workload"], actions=[AddHandle(PA_HND(HandleType[type_], 3), handle)])
    assert caught.value.status is Status.INVALID_ARGS
    assert handle.closed
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("id_", [0, 0x02, 0x06, 0x12, 0x21, 0x3E, 0x55, 0xF3, 0xFF, 0x1F0, 0xFFF0, 0x8030, -1, 1 << 32, (1 << 32) | 0xF0])
def test_an_id_that_is_none_is_refused(launch, workload, id_, world):
    handle = Vmo.from_bytes(b"x")
    with pytest.raises(InvalidArgsError, match="action 0"):
        launch(workload, ["workload"], actions=[AddHandle(id_, handle)])
    assert handle.closed
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize(
    "type_", ["VMO_VDSO", "VMO_BOOTDATA", "VMO_COMPONENT_CONFIG", "LIFECYCLE", "DIRECTORY_REQUEST", "RESOURCE", "USER2"]
)
def test_every_other_known_id_passes_through_unread(launch, workload, type_):
    report = observe(launch, workload, "env", "fds", actions=[AddHandle(PA_HND(HandleType[type_], 1), Vmo.from_bytes(b""))])
    assert [item[0] for item in told(report)] == [PA_HND(HandleType[type_], 1)]


@every_launcher
def test_a_loader_is_no_handle_here_and_the_refusal_says_what_to_add_instead(launch, workload):
    handle = Vmo.from_bytes(b"")
    with pytest.raises(NotSupportedError, match=r"action 0.*AddNsEntry"):
        launch(workload, ["workload"], actions=[AddHandle(PA_HND(HandleType.LDSVC_LOADER), handle)])
    assert handle.closed


@every_launcher
def test_a_startup_descriptor_becomes_that_descriptor_and_is_no_startup_handle(launch, workload, pipe):
    inode = os.fstat(pipe.read).st_ino
    report = observe(launch, workload, "env", "fds", actions=[AddHandle(PA_HND(HandleType.FD, 40), File.from_fd(pipe.read))])
    assert report.fds()[40].ino == inode
    assert "handle=" not in report.variables().get("SHOAL_STARTUP", "")


@every_launcher
def test_the_same_startup_descriptor_twice_already_exists(launch, workload, world):
    handles = [Vmo.from_bytes(b"1"), Vmo.from_bytes(b"2")]
    with pytest.raises(AlreadyExistsError, match="action 1"):
        launch(workload, ["workload"], actions=[AddHandle(PA_HND(HandleType.FD, 5), handle) for handle in handles])
    assert all(handle.closed for handle in handles)
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("number", [1024, 0x7FFF, 0x8000 | 1024])
def test_a_startup_descriptor_above_1023_is_out_of_range(launch, workload, number):
    handle = Vmo.from_bytes(b"x")
    with pytest.raises(OutOfRangeError, match=f"action 0.*{number & 0x7FFF}|{number & 0x7FFF}.*action 0"):
        launch(workload, ["workload"], actions=[AddHandle(PA_HND(HandleType.FD, number), handle)])
    assert handle.closed


@every_launcher
@pytest.mark.parametrize("second", [AddHandle, AddNsEntry])
def test_one_handle_in_two_actions_is_a_bad_handle_and_consumed(launch, workload, tmp_path, second, world):
    handle = Directory.open(tmp_path)
    again = AddHandle(USER1, handle) if second is AddHandle else AddNsEntry("/x", handle)
    with pytest.raises(BadHandleError, match="action 1") as caught:
        launch(workload, ["workload"], actions=[AddHandle(USER0, handle), again])
    assert caught.value.status is Status.BAD_HANDLE
    assert handle.closed
    world.assert_unchanged()


@every_launcher
def test_a_handle_that_was_closed_before_is_a_bad_handle(launch, workload, world):
    handle, bystander = Vmo.from_bytes(b"x"), Vmo.from_bytes(b"y")
    handle.close()
    with pytest.raises(BadHandleError, match="action 0"):
        launch(workload, ["workload"], actions=[AddHandle(USER0, handle), AddHandle(USER1, bystander)])
    assert bystander.closed
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("id_", [USER0, PA_HND(HandleType.FD, 5)])
def test_a_handle_without_the_transfer_right_is_denied_and_consumed(launch, workload, id_, world):
    with Vmo.from_bytes(b"x") as whole:
        narrow = whole.duplicate(whole.rights & ~Rights.TRANSFER)
    with pytest.raises(AccessDeniedError, match="action 0") as caught:
        launch(workload, ["workload"], actions=[AddHandle(id_, narrow)])
    assert caught.value.status is Status.ACCESS_DENIED
    assert narrow.closed
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("flags", [SpawnFlags.CLONE_UTC_CLOCK, SpawnFlags.CLONE_ALL])
def test_a_clock_cannot_be_both_cloned_and_given(launch, workload, flags, world):
    clock = UtcClock.create(offset_s=5)
    with pytest.raises(InvalidArgsError, match="action 0") as caught:
        launch(workload, ["workload"], flags=flags, actions=[AddHandle(PA_HND(HandleType.CLOCK_UTC), clock)])
    assert "CLONE_UTC_CLOCK" in str(caught.value)
    assert "0x40" in str(caught.value)
    assert clock.closed
    world.assert_unchanged()


@every_launcher
def test_a_clock_with_another_argument_may_stand_beside_the_cloned_one(launch, workload):
    actions = [AddHandle(PA_HND(HandleType.CLOCK_UTC, 1), UtcClock.create())]
    report = observe(launch, workload, "env", "fds", flags=SpawnFlags.CLONE_UTC_CLOCK, actions=actions)
    assert {item[0] for item in told(report)} == {0x10040, 0x40}


@every_launcher
def test_a_given_clock_is_handed_on_with_its_own_rights(launch, workload):
    clock = UtcClock.create(offset_s=60)
    rights = clock.rights
    report = observe(launch, workload, "env", "fds", actions=[AddHandle(PA_HND(HandleType.CLOCK_UTC), clock)])
    assert told(report) == [(0x40, 3, "clock", rights)]


@every_launcher
def test_a_cloned_and_a_given_job_are_both_sent(launch, workload):
    with Job.default() as job:
        narrow = job.duplicate(Rights.BASIC)
    report = observe(
        launch, workload, "env", "fds", flags=SpawnFlags.CLONE_JOB, actions=[AddHandle(PA_HND(HandleType.JOB_DEFAULT), narrow)]
    )
    assert sorted((id_, kind) for id_, _, kind, _ in told(report)) == [(0x3, "job"), (0x3, "job")]


# --- LISTEN_FDS ----------------------------------------------------------------------------------------------------


@every_launcher
def test_added_handles_are_also_told_the_way_socket_activation_does(launch, workload):
    server = socket.create_server(("127.0.0.1", 0))
    actions = [AddHandle(USER0, Socket.from_fd(server.detach())), AddHandle(USER1, Vmo.from_bytes(b""))]
    report = observe(launch, workload, "env", "pids", "fds", actions=actions)
    seen = report.variables()
    assert seen["LISTEN_FDS"] == "2"
    assert seen["LISTEN_FDNAMES"] == "socket:vmo"
    assert seen["LISTEN_PID"] == report.one("pids")[0]
    assert report.fds()[3].kind == "socket"


@every_launcher
def test_socket_activation_is_not_claimed_when_the_handles_cannot_start_at_3(launch, workload, pipe):
    report = observe(launch, workload, "env", actions=[CloneFd(pipe.read, 3), AddHandle(USER0, Vmo.from_bytes(b""))])
    assert "SHOAL_STARTUP" in report.variables()
    assert "LISTEN_FDS" not in report.variables()


@every_launcher
def test_a_job_and_a_clock_alone_are_no_socket_activation(launch, workload):
    report = observe(launch, workload, "env", flags=SpawnFlags.CLONE_JOB | SpawnFlags.CLONE_UTC_CLOCK)
    assert "LISTEN_FDS" not in report.variables()


@needs("systemd-socket-proxyd (Debian package systemd)")
@every_launcher
def test_a_real_socket_activated_program_takes_its_socket_and_serves(launch, world):
    def serve_one(server):
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(100).upper())

    with socket.create_server(("127.0.0.1", 0)) as backend, socket.create_server(("127.0.0.1", 0)) as front:
        address, target = front.getsockname(), f"127.0.0.1:{backend.getsockname()[1]}"
        answering = threading.Thread(target=serve_one, args=(backend,))
        answering.start()
        flags = SpawnFlags.DEFAULT_LDSVC | SpawnFlags.CLONE_STDIO
        actions = [AddHandle(USER0, Socket.from_fd(front.detach()))]
        if launch.own_world:
            actions.append(AddNsEntry("/svc/net", NetNs.host()))
        with launch(SOCKET_PROXY, ["systemd-socket-proxyd", target], flags=flags, actions=actions) as proxy:
            with socket.create_connection(address, timeout=30) as client:
                client.sendall(b"through the proxy")
                assert client.recv(100) == b"THROUGH THE PROXY"
            answering.join()
            proxy.terminate()
            proxy.wait(timeout=30)
    world.assert_unchanged()


@needs("dbus-daemon (Debian package dbus-daemon)")
@in_the_callers_world
def test_a_message_bus_listens_on_the_socket_it_was_handed(launch, tmp_path):
    path = os.fspath(tmp_path / "bus")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    arguments = ["dbus-daemon", "--session", "--address=systemd:", "--nofork", "--nopidfile", "--nosyslog"]
    actions = [AddHandle(USER0, Socket.from_fd(server.detach()))]
    with launch("/usr/bin/dbus-daemon", arguments, flags=SpawnFlags.DEFAULT_LDSVC | SpawnFlags.CLONE_STDIO, actions=actions) as bus:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(30)
            client.connect(path)
            client.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
            assert client.recv(100).startswith(b"OK ")
        bus.terminate()
        bus.wait(timeout=30)


@every_launcher
def test_a_transferred_socket_keeps_working_after_the_caller_forgets_it(launch, workload):
    ours, theirs = socket.socketpair()
    with ours:
        report = observe(launch, workload, "write", 5, "ping", actions=[TransferFd(theirs.detach(), 5)])
        assert report.ok("write", "5")
        assert ours.recv(10) == b"ping"


def test_the_documented_table_can_be_read_by_a_shell(workload, direct):
    script = 'for word in $SHOAL_STARTUP; do case $word in handle=0xf0:*) fd=${word#handle=*:}; cat <&"${fd%%:*}";; esac; done'
    read_end, write_end = os.pipe()
    actions = [AddHandle(USER0, Vmo.from_bytes(b"from the shell")), TransferFd(write_end, 1)]
    flags = SpawnFlags.DEFAULT_LDSVC | SpawnFlags.CLONE_STDIO
    with (
        os.fdopen(read_end) as answers,
        direct("/bin/sh", ["sh", "-c", script], flags=flags, actions=actions, environ={"PATH": os.defpath}) as shell,
    ):
        assert answers.read() == "from the shell"
        assert shell.wait(timeout=30) == 0


def test_threads_that_come_first_together_each_get_the_callers_job_and_clock(run_python):
    """What is opened once and kept was opened by each of them, and the descriptor of the last but one closed under its launch."""
    script = """
import threading
import shoal
from shoal import SpawnFlags
from shoal.handles import callers_own

flags = SpawnFlags.CLONE_NAMESPACE | SpawnFlags.CLONE_JOB | SpawnFlags.CLONE_UTC_CLOCK
together, statuses, refused = threading.Barrier(4), [], []

def first():
    together.wait()
    try:
        with shoal.spawn(workload, ["workload", "exit", "7"], flags=flags) as process:
            statuses.append(process.wait())
    except OSError as error:
        refused.append(str(error))

for _ in range(args[0]):
    callers_own._home.clear()
    callers_own._clock.clear()
    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
answer([len(statuses), sorted(set(statuses)), refused])
"""
    assert run_python(script, 50) == [200, [7], []]
