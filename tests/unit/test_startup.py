"""The child's side: real child processes, each with a startup table written by hand and real descriptors."""

import json
import os
import socket
import subprocess
import sys

import pytest

from shoal import PA_HND, HandleType, Job, Rights, UtcClock
from shoal.startup_table import StartupEntry, StartupHandle, StartupTable

USER0, USER1, JOB, CLOCK = (
    int(PA_HND(type)) for type in (HandleType.USER0, HandleType.USER1, HandleType.JOB_DEFAULT, HandleType.CLOCK_UTC)
)
PREAMBLE = "import fcntl, json, os, sys\nfrom shoal import startup\nshow = lambda *what: print(json.dumps(what))\n"


def handle(fd, id=USER0, kind="file", rights=Rights.READ | Rights.TRANSFER):
    status = os.fstat(fd)
    return StartupHandle(id, fd, kind, int(rights), status.st_dev, status.st_ino)


def child(code, table=None, fds=(), argv0=None, **environ):
    """What `code` shows, one value a line, in a process with this table and these descriptors at the same numbers."""
    line = table.encode() if isinstance(table, StartupTable) else table
    # With another argv[0] the interpreter would not find the packages next to itself.
    packages = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    run = subprocess.run(
        [argv0 or sys.executable, "-c", PREAMBLE + code],
        check=False,
        executable=sys.executable,
        env=os.environ | packages | ({} if line is None else {"SHOAL_STARTUP": line}) | environ,
        pass_fds=fds,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    shown = [json.loads(text) for text in run.stdout.splitlines()]
    return [value[0] if len(value) == 1 else tuple(value) for value in shown]


@pytest.fixture
def files():
    """Makes descriptors of files with one letter each."""
    made = []

    def make(letters):
        fds = [os.memfd_create(letter) for letter in letters]
        for fd, letter in zip(fds, letters, strict=True):
            os.write(fd, letter.encode())
        made.extend(fds)
        return fds

    yield make
    for fd in made:
        os.close(fd)


def test_a_process_that_was_handed_nothing_gets_empty_answers():
    code = "show(dict(startup.handles()), startup.take_handle(0xf0), startup.job(), startup.utc_clock(), list(startup.namespace()))"
    assert child(code) == [({}, None, None, None, ["/"])]


def test_the_variables_of_another_activator_are_left_alone():
    code = "startup.handles(); show(os.environ['LISTEN_FDS'], os.environ['LISTEN_PID'])"
    assert child(code, LISTEN_FDS="1", LISTEN_PID="1") == [("1", "1")]


def test_the_claim_takes_the_variables_and_marks_descriptors_close_on_exec(files):
    (fd,) = files("A")
    code = f"""
is_marked = lambda: bool(fcntl.fcntl({fd}, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
names = ["SHOAL_STARTUP", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"]
show([name in os.environ for name in names], is_marked())
startup.name()
show([name in os.environ for name in names], is_marked())
os.system('echo "[\\\\"${{SHOAL_STARTUP-gone}}\\\\"]"')
"""
    shown = child(code, StartupTable(handles=(handle(fd),)), [fd], LISTEN_FDS="1", LISTEN_FDNAMES="file", LISTEN_PID="1")
    assert shown == [([True] * 4, False), ([False] * 4, True), "gone"]


def test_a_table_passes_through_a_wrapper_that_does_not_read_it(files):
    (fd,) = files("A")
    code = f"os.execvp('sh', ['sh', '-c', 'exec \"$@\"', 'sh', sys.executable, '-c', {PREAMBLE + 'show(sorted(startup.handles()))'!r}])"
    assert child(code, StartupTable(handles=(handle(fd),)), [fd]) == [[USER0]]


def test_an_id_matches_only_whole_type_and_argument(files):
    fds = files("AB")
    table = StartupTable(handles=(handle(fds[0], PA_HND(HandleType.USER0, 7)), handle(fds[1], USER1)))
    code = """
show([handle and handle.fileno() for handle in map(startup.take_handle, (0xF0, 0x800F0, 0x70000, 0x700F1, 0x700F0, 0xF1))])
"""
    assert child(code, table, fds) == [[None, None, None, None, fds[0], fds[1]]]


def test_equal_ids_come_out_in_the_order_they_were_given_and_each_once(files):
    a, b, c = files("ABC")
    table = StartupTable(handles=(handle(b), handle(c, USER1), handle(a)))
    code = """
show({id: handle.fileno() for id, handle in startup.handles().items()})
show([handle.fileno() if handle else None for handle in (startup.take_handle(0xF0) for _ in range(3))])
show(list(startup.handles()))
"""
    shown = child(code, table, [a, b, c])
    assert shown == [{str(USER0): b, str(USER1): c}, [b, a, None], [USER1]]


def test_threads_never_take_the_same_handle(files):
    fds = files("x" * 60)
    table = StartupTable(handles=tuple(handle(fd) for fd in fds))
    code = """
import threading
taken, go = [], threading.Barrier(6)
def take():
    go.wait()
    while (handle := startup.take_handle(0xF0)) is not None:
        taken.append(handle.fileno())
threads = [threading.Thread(target=take) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
show(sorted(taken))
"""
    assert child(code, table, fds) == [sorted(fds)]


def test_a_descriptor_that_is_no_longer_the_one_given_is_neither_handed_out_nor_touched(files):
    a, b, c = files("ABC")
    closed = os.memfd_create("closed")
    table = StartupTable(handles=(handle(a), handle(b), handle(closed)))
    os.close(closed)
    code = f"""
os.dup2({c}, {a})
show([handle.fileno() for handle in startup.handles().values()], os.get_inheritable({a}), os.pread({a}, 9, 0).decode())
"""
    assert child(code, table, [a, b, c]) == [([b], True, "C")]


def test_a_descriptor_named_twice_has_one_owner(files):
    (fd,) = files("A")
    table = StartupTable(handles=(handle(fd), handle(fd, USER1)))
    code = f"""
startup.take_handle(0xF0).close()
show(startup.take_handle(0xF1), os.path.exists("/proc/self/fd/{fd}"))
"""
    assert child(code, table, [fd]) == [(None, False)]


def test_every_kind_becomes_its_own_type(files):
    directory = os.open("/", os.O_PATH)
    process = os.pidfd_open(os.getpid())
    netns = os.open("/proc/self/ns/net", os.O_RDONLY)
    vmo, file, later = files("VFL")
    clock, job = UtcClock.create().consume(), Job.default().consume()
    ours, theirs = socket.socketpair()
    fds = [directory, process, netns, vmo, clock, theirs.fileno(), job, file, later]
    kinds = ["directory", "process", "netns", "vmo", "clock", "socket", "job", "file", "a-later-kind"]
    table = StartupTable(handles=tuple(handle(fd, PA_HND(HandleType.USER0, n), kinds[n]) for n, fd in enumerate(fds)))
    code = "show([type(handle).__name__ for handle in startup.handles().values()])"
    assert child(code, table, fds) == [["Directory", "Process", "NetNs", "Vmo", "UtcClock", "Socket", "Job", "File", "File"]]
    for fd in (directory, process, netns, clock, job):
        os.close(fd)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("kind", ["process", "job", "clock"])
def test_a_descriptor_that_is_not_of_the_kind_the_table_says_is_still_handed_out_as_a_file(files, kind):
    (fd,) = files("A")
    code = "handle = startup.take_handle(0xF0)\nshow(type(handle).__name__, handle.fileno())"
    assert child(code, StartupTable(handles=(handle(fd, USER0, kind),)), [fd]) == [("File", fd)]


def test_a_handle_has_the_rights_it_was_given_and_no_more(files):
    a, b = files("AB")
    table = StartupTable(handles=(handle(a, USER0, "vmo", Rights.READ | Rights.TRANSFER), handle(b, USER1, "file", 0xFFFFFFFF)))
    code = "show(int(startup.take_handle(0xF0).rights), bool(startup.take_handle(0xF1).rights & 1 << 31))"
    assert child(code, table, [a, b]) == [(int(Rights.READ | Rights.TRANSFER), False)]


def test_the_default_job_and_the_clock_are_borrowed_and_the_last_one_wins(files):
    (c,) = files("C")
    a, b, d, e = (made.consume() for made in (Job.default(), UtcClock.create(), Job.default(), UtcClock.system()))
    fds = (a, b, c, d, e)
    table = StartupTable(
        handles=(
            handle(a, JOB, "job"),
            handle(b, CLOCK, "clock"),
            handle(c),
            handle(d, JOB, "job"),
            handle(e, int(PA_HND(HandleType.CLOCK_UTC, 1)), "clock"),
        )
    )
    code = """
show(startup.job().fileno(), startup.job() is startup.job(), startup.utc_clock().fileno(), startup.utc_clock() is startup.utc_clock())
show(startup.take_handle(3), startup.take_handle(0x40), list(startup.handles()))
"""
    assert child(code, table, fds) == [(d, True, e, True), (None, None, [USER0])]
    code = "from shoal import Job\nshow(int(Job.default().rights) == int(startup.job().rights))"
    assert child(code, table, fds) == [True]  # the library's own default job is the one handed over
    for fd in (a, b, d, e):
        os.close(fd)


@pytest.mark.parametrize("line", ["", "2 name=x", "1 handle=nonsense", "1 ns=relative:directory:ro", "1 handle=0xf0:0:file:0x4:0:0:0"])
def test_a_table_that_cannot_be_read_counts_as_nothing_and_is_warned_of(line):
    code = """
import warnings
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    show(startup.name() == "x", list(startup.handles()), startup.job(), "SHOAL_STARTUP" in os.environ)
    show([(warning.category.__name__, "SHOAL_STARTUP" in str(warning.message)) for warning in warned])
"""
    assert child(code, line) == [(False, [], None, False), [["RuntimeWarning", True]]]


def test_the_namespace_of_a_cell_is_opened_from_its_own_view(tmp_path):
    tmp_path.joinpath("read").mkdir()
    tmp_path.joinpath("file").write_text("text")
    table = StartupTable(
        entries=(
            StartupEntry(f"{tmp_path}/read", "directory", False),
            StartupEntry(str(tmp_path), "directory", True),
            StartupEntry(f"{tmp_path}/gone", "directory", True),
            StartupEntry(f"{tmp_path}/file", "directory", False),
            StartupEntry("/svc/net", "netns", True),
        )
    )
    code = """
first, second = startup.namespace(), startup.namespace()
show([(path, type(handle).__name__, bool(handle.rights & 8)) for path, handle in first.items() if path != "/svc/net"])
show(type(first["/svc/net"]).__name__, os.readlink(f"/proc/self/fd/{first['/svc/net'].fileno()}") == os.readlink("/proc/self/ns/net"))
show(all(os.path.samefile(f"/proc/self/fd/{handle.fileno()}", path) for path, handle in first.items() if path != "/svc/net"))
show(any(first[path].fileno() == second[path].fileno() for path in first))
"""
    assert child(code, table) == [
        [[f"{tmp_path}/read", "Directory", False], [str(tmp_path), "Directory", True], [f"{tmp_path}/file", "Directory", False]],
        ("NetNs", True),
        True,
        False,
    ]


def test_the_namespace_in_the_callers_world_is_the_root():
    code = "show([(path, os.path.samefile(f'/proc/self/fd/{handle.fileno()}', '/')) for path, handle in startup.namespace().items()])"
    assert child(code, StartupTable(name="x")) == [[["/", True]]]


@pytest.mark.parametrize("name", ["", "short", "thirty-one bytes of a long name", "naïve\udcff"])
def test_the_name_is_the_one_given(name):
    assert child("show(startup.name())", StartupTable(name=name)) == [name]


@pytest.mark.parametrize("argv0", ["short", "/a/path/that/is/longer/than/a/name/may/be"])
def test_without_a_given_name_it_is_what_the_kernel_shows_completed_from_argv0(argv0):
    set_comm = f"open('/proc/self/comm', 'w').write({argv0!r})\n"
    assert child(set_comm + "show(startup.name())", argv0=argv0) == [argv0[:31]]
    assert child("open('/proc/self/comm', 'w').write('another')\nshow(startup.name())", argv0=argv0) == ["another"]


def test_a_forked_process_keeps_what_was_claimed(files):
    (fd,) = files("A")
    code = """
startup.handles()
if (pid := os.fork()) == 0:
    show(startup.take_handle(0xF0).fileno())
    sys.stdout.flush()
    os._exit(0)
os.waitpid(pid, 0)
show(startup.take_handle(0xF0).fileno())
"""
    assert child(code, StartupTable(handles=(handle(fd),)), [fd]) == [fd, fd]
