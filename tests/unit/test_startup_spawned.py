"""Both sides together: what a spawn hands over is what shoal.startup finds, in the caller's world and in a cell."""

import json
import os
import socket
import sys
import sysconfig
import time

import pytest

import shoal
from shoal import (
    PA_HND,
    AddHandle,
    AddNsEntry,
    Directory,
    File,
    HandleType,
    Job,
    Process,
    Rights,
    SetName,
    Socket,
    SpawnFlags,
    TransferFd,
    UtcClock,
    Vmo,
)

PREAMBLE = "import json, os\nfrom shoal import PA_HND, HandleType, startup\nshow = lambda *what: print(json.dumps(what))\n"
USER0 = HandleType.USER0


def packages():
    return os.pathsep.join(entry for entry in sys.path if entry)


def in_the_callers_world(code, *actions, flags=SpawnFlags(0)):
    return shown(sys.executable, code, actions, SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC | flags, {"PYTHONPATH": packages()})


def in_a_cell(code, *actions, flags=SpawnFlags(0)):
    """Python in an empty world, with its library and the packages, read-only."""
    needed = {sysconfig.get_path("stdlib"), *(entry for entry in sys.path if os.path.isdir(entry))}
    entries = [AddNsEntry(path, Directory.open(path)) for path in sorted(needed)]
    environ = {"PYTHONPATH": packages(), "PYTHONHOME": sys.base_prefix, "PYTHONDONTWRITEBYTECODE": "1"}
    return shown(os.path.realpath(sys.executable), code, (*actions, *entries), SpawnFlags.DEFAULT_LDSVC | flags, environ)


def shown(python, code, actions, flags, environ):
    read, write = os.pipe()
    child = shoal.spawn(
        python,
        [sys.executable, "-c", PREAMBLE + code],
        flags=flags,
        environ=environ | {"LC_ALL": "C.UTF-8"},
        actions=[TransferFd(write, 1), shoal.CloneFd(2, 2), *actions],
    )
    with open(read) as output:
        lines = output.read().splitlines()
    assert child.wait() == 0
    return [tuple(json.loads(line)) for line in lines]


every_world = pytest.mark.parametrize("run", [in_the_callers_world, in_a_cell])


@every_world
def test_every_kind_of_handle_arrives_with_its_contents_and_rights(run, tmp_path):
    tmp_path.joinpath("note").write_text("in the directory")
    file = os.open(tmp_path / "note", os.O_RDONLY)
    ours, theirs = socket.socketpair()
    with Vmo.from_bytes(b"in memory") as memory:
        narrowed = memory.duplicate(Rights.READ | Rights.TRANSFER)
    actions = [
        AddHandle(PA_HND(USER0, 0), File.from_fd(file)),
        AddHandle(PA_HND(USER0, 1), Socket.from_fd(theirs)),
        AddHandle(PA_HND(USER0, 2), narrowed),
        AddHandle(PA_HND(USER0, 3), Directory.open(tmp_path)),
    ]
    code = """
take = lambda n: startup.take_handle(PA_HND(HandleType.USER0, n))
file, socket, vmo, directory = (take(n) for n in range(4))
show(*(type(handle).__name__ for handle in (file, socket, vmo, directory)), take(0))
show(os.read(file.fileno(), 99).decode(), vmo.read().decode(), int(vmo.rights))
os.write(socket.fileno(), b"through the socket")
with open("note", opener=lambda path, flags: os.open(path, flags, dir_fd=directory.fileno())) as note:
    show(note.read())
show("SHOAL_STARTUP" in os.environ, any(name.startswith("LISTEN_") for name in os.environ))
"""
    assert run(code, *actions) == [
        ("File", "Socket", "Vmo", "Directory", None),
        ("in the directory", "in memory", int(Rights.READ | Rights.TRANSFER)),
        ("in the directory",),
        (False, False),
    ]
    with ours:
        assert ours.recv(99) == b"through the socket"


@every_world
def test_a_clock_is_the_childs_own_time(run):
    clock = UtcClock.create(offset_s=-1_000_000)
    code = "show(startup.utc_clock().now(), startup.take_handle(HandleType.CLOCK_UTC), list(startup.handles()))"
    [(now, taken, others)] = run(code, AddHandle(HandleType.CLOCK_UTC, clock))
    assert abs(now - (time.time() - 1_000_000)) < 60
    assert (taken, others) == (None, [])


@every_world
def test_the_callers_clock_comes_without_the_right_to_change_it(run):
    code = "show(startup.utc_clock().now(), int(startup.utc_clock().rights))"
    [(now, rights)] = run(code, flags=SpawnFlags.CLONE_UTC_CLOCK)
    assert abs(now - time.time()) < 60
    assert Rights(rights) == Rights.READ | Rights.WAIT | Rights.DUPLICATE | Rights.TRANSFER


@every_world
def test_the_name_arrives(run):
    assert run("show(startup.name())", SetName("a name with spaces")) == [("a name with spaces",)]


def test_a_child_makes_jobs_in_the_job_it_was_given():
    with Job.default().create_child() as job:
        read, write = os.pipe()
        code = (
            "from shoal import Job\nchild = Job.default().create_child('below')\nshow(startup.job() is not None, child.name)\nchild.close()"
        )
        with (
            shoal.spawn(
                sys.executable,
                [sys.executable, "-c", PREAMBLE + code],
                flags=SpawnFlags.CLONE_ALL & ~SpawnFlags.CLONE_STDIO,
                actions=[TransferFd(write, 1), shoal.CloneFd(2, 2)],
                job=job,
            ) as child,
            open(read) as output,
        ):
            assert output.read().splitlines() == ['[true, "below"]']
            assert child.wait() == 0


def test_a_child_can_wait_for_a_process_it_is_handed():
    held, release = os.pipe()
    waited_for: Process = shoal.spawn(
        "/bin/cat", ["cat"], flags=SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC, actions=[TransferFd(held, 0)]
    )
    code = """
process = startup.take_handle(HandleType.USER0)
show(process.info().state)
process.terminate()
show(process.pid)
"""
    shown = in_the_callers_world(code, AddHandle(USER0, waited_for.duplicate()))
    assert shown == [("running",), (waited_for.pid,)]
    assert waited_for.wait(timeout=30) == -15
    os.close(release)


def test_in_a_cell_the_namespace_is_its_entries(tmp_path):
    code = """
shown = [(path, bool(handle.rights & 8)) for path, handle in startup.namespace().items() if path in ("/read", "/write", "/note")]
show(*shown)
show("/" in startup.namespace())
"""
    tmp_path.joinpath("note").write_text("note")
    shown = in_a_cell(
        code,
        AddNsEntry("/read", Directory.open(tmp_path)),
        AddNsEntry("/write", Directory.open(tmp_path, writable=True)),
        AddNsEntry("/note", Directory.file(tmp_path / "note")),
    )
    assert shown == [(["/read", False], ["/write", True], ["/note", False]), (False,)]
