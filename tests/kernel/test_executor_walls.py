"""What a call can touch: what its sandbox says, the interpreter's files read-only, and neither its zygote nor another call."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from rig.features import needs

from shoal import Sandbox, SandboxExecutor
from shoal.executor import CallEndedError

PATIENCE_S = 60


def look():
    """What a call finds around it."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":\t", 1) for line in file.read().splitlines())
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "uid": os.getuid(),
        "groups": os.getgroups(),
        "session": os.getsid(0),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "capabilities": {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "no_new_privs": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "signals": (status["SigBlk"], status["SigIgn"]),
        "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")},
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "umask": os.umask(0),
        "root": sorted(os.listdir("/")),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "argv": sys.argv,
        "threads": len(os.listdir("/proc/self/task")),
    }


def test_a_call_starts_with_nothing_but_the_interpreter(ex, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")
    found = ex.submit(look).result(PATIENCE_S)
    assert (found["pid"], found["parent"], found["session"]) == (2, 0, 2)
    assert found["processes"] == [1, 2]
    assert len(found["descriptors"]) <= 5  # 0 to 3, and the one that reads the directory
    assert set(found["capabilities"].values()) == {0}
    assert (found["no_new_privs"], found["seccomp"]) == ("1", "2")
    assert int(found["signals"][0], 16) == 0
    assert not any("SECRET" in name for name in found["environ"])
    assert found["environ"]["HOME"] == "/tmp"
    assert found["cwd"] == "/"
    assert found["umask"] == 0o022
    assert found["interfaces"] == ["lo"]
    assert "home" not in found["root"]
    assert found["argv"] == [""]
    assert found["threads"] == 1
    if os.geteuid() == 0:
        assert found["uid"] != 0
        assert found["groups"] == []


def look_for_a_while():
    found = look()
    time.sleep(2)  # the number of a namespace is given again when its owner has ended
    return found


def test_no_two_calls_share_a_namespace_or_a_user(ex):
    found = [call.result(PATIENCE_S) for call in [ex.submit(look_for_a_while) for _ in range(3)]]
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in found[0]["namespaces"]}
    for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert len({each["namespaces"][name] for each in found} | {own[name]}) == 4, name
    if os.geteuid() == 0:
        assert len({each["uid"] for each in found}) == 3
    else:
        assert len({each["namespaces"]["user"] for each in found} | {own["user"]}) == 4


def test_files_of_the_host_are_not_there_and_those_of_the_interpreter_cannot_be_written(ex, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")

    def try_all():
        refused = []
        for path in (str(secret), "/etc/passwd", "/etc/shadow", "/root/.ssh", "/home", "/sys", "/var", "/run"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                os.stat(path)
                refused.append(path)
        written = []
        for path in (
            os.__file__,
            sys.executable,
            "/usr/lib/x",
            "/x",
            sys.prefix + "/x",
            "/proc/self/exe",
            "/proc/1/exe",
            "/dev/x",
            "/lib/x",
        ):
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
                written.append(path)
        return refused, written

    assert ex.submit(try_all).result(PATIENCE_S) == ([], [])


def test_the_file_it_executes_cannot_be_written_even_by_who_owns_it(tmp_path):
    """Also not without Landlock: what /proc/self/exe leads to is on a read-only mount."""
    code = """
import os
fd = os.open("/proc/self/exe", os.O_PATH)
try:
    os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    error = 0
except OSError as problem:
    error = problem.errno
mode = os.fstatvfs(fd).f_flag & os.ST_RDONLY
"""
    with SandboxExecutor(Sandbox(user="caller"), max_workers=1, warm=0) as one:
        found = one.run_code(code, outputs=["error", "mode"])
    assert found["error"] != 0
    assert found["mode"] == os.ST_RDONLY


def test_zygote_siblings_and_host_cannot_be_signalled_traced_or_seen(ex):
    zygote = ex.zygote_pid
    victim = ex.submit(time.sleep, 600)
    while not victim.running():
        time.sleep(0.001)

    def attack():
        import ctypes
        import errno

        libc = ctypes.CDLL(None, use_errno=True)
        reached = []
        for pid in (zygote, os.getppid() or zygote, 1, -1, 0, -zygote):
            if pid in (0, -1):
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGUSR1)
                continue
            try:
                os.kill(pid, signal.SIGKILL)
                reached.append(f"kill {pid}") if pid != 1 else None
            except OSError as error:
                if error.errno not in (errno.ESRCH, errno.EPERM):
                    reached.append(f"kill {pid}: {error}")
        for pid in (zygote, 1):
            if libc.ptrace(16, pid, 0, 0) == 0:  # PTRACE_ATTACH
                reached.append(f"ptrace {pid}")
            for name in ("mem", "environ", "maps", "fd", "root"):
                with contextlib.suppress(OSError):
                    if name in ("fd", "root"):
                        os.listdir(f"/proc/{pid}/{name}")
                    else:
                        os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
                    reached.append(f"/proc/{pid}/{name}")
        for kind in range(3):
            with contextlib.suppress(OSError):
                os.setpriority(kind, zygote, 19)
                reached.append(f"setpriority {kind}")
        with contextlib.suppress(OSError):
            os.pidfd_open(zygote)
            reached.append("pidfd_open")
        with contextlib.suppress(OSError):
            os.sched_setaffinity(zygote, {0})
            reached.append("sched_setaffinity")
        return reached

    assert ex.submit(attack).result(PATIENCE_S) == []
    assert ex.zygote_pid == zygote
    assert victim.running()
    assert os.getpriority(os.PRIO_PROCESS, zygote) == os.getpriority(os.PRIO_PROCESS, 0)
    victim.cancel()
    assert ex.submit(len, "").result(PATIENCE_S) == 0


def test_memory_is_not_shared_with_the_next_call(ex):
    def change():
        import builtins

        import numpy

        before = hasattr(builtins, "left"), getattr(numpy, "left", None)
        builtins.left = numpy.left = "here"
        sys.modules["json"] = None
        return before

    assert [ex.submit(change).result(PATIENCE_S) for _ in range(4)] == [(False, None)] * 4


def test_nothing_that_is_mapped_is_shared_and_writable(ex):
    def shared():
        return [line for line in open("/proc/self/maps") if line.split()[1][1] == "w" and line.split()[1][3] == "s"]

    assert ex.submit(shared).result(PATIENCE_S) == []


def test_descriptors_of_the_zygote_and_the_host_do_not_reach_a_call(tmp_path, monkeypatch):
    (tmp_path / "keeps_a_file_open.py").write_text("import os\nfile = open(__file__)\nfd = os.dup2(file.fileno(), 200)\n")
    monkeypatch.syspath_prepend(tmp_path)
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        with SandboxExecutor(preload=["keeps_a_file_open"], max_workers=1, warm=1) as one:
            found = one.submit(
                lambda: [os.path.basename(os.readlink(f"/proc/self/fd/{n}"))[:6] for n in sorted(os.listdir("/proc/self/fd"))[:4]]
            )
            assert found.result(PATIENCE_S) == ["null", "pipe:[", "pipe:[", "socket"]
    finally:
        os.close(read)
        os.close(write)


def test_system_calls_are_filtered(ex):
    def forbidden():
        import ctypes
        import errno

        libc = ctypes.CDLL(None, use_errno=True)
        libc.unshare(0x10000000)
        first = ctypes.get_errno()
        libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
        return errno.errorcode[first], errno.errorcode[ctypes.get_errno()]

    assert ex.submit(forbidden).result(PATIENCE_S) == ("EPERM", "EPERM")
    with SandboxExecutor(Sandbox(seccomp="strict"), max_workers=1, warm=1) as strict:
        assert strict.run_code("import os\ntry: os.fork()\nexcept PermissionError: refused = True") == {"refused": True}


def test_what_the_sandbox_grants_is_there(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("handed over")
    (tmp_path / "out").mkdir()
    os.chmod(tmp_path, 0o755)
    box = Sandbox(read={"/in": str(tmp_path / "in")}, env={"WHO": "me"}, cwd="/in")
    with SandboxExecutor(box, max_workers=1, warm=0) as one:
        code = "import os\nfound = open('/in/file').read(), os.environ['WHO'], os.getcwd()"
        assert one.run_code(code) == {"found": ("handed over", "me", "/in")}
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            one.run_code("open('/in/file', 'w')")


def test_what_a_call_writes_belongs_to_the_caller(tmp_path):
    probe = SandboxExecutor(Sandbox(write={"/out": str(tmp_path)}), max_workers=2, warm=1)
    with probe as one:
        calls = [one.submit_code(f"open('/out/{n}', 'w').write('{n}')") for n in range(3)]
        for call in calls:
            error = call.exception(PATIENCE_S)
            if error is not None and "file system cannot do that" in str(error):
                pytest.skip(str(error))
            assert error is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert {path.stat().st_uid for path in tmp_path.iterdir()} == {os.geteuid()}


def test_a_network_is_there_when_it_is_handed_over():
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=5).close()\nok = 1"
        with SandboxExecutor(Sandbox(network="host"), max_workers=1, warm=0) as one:
            assert one.run_code(code) == {"ok": 1}
        with SandboxExecutor(max_workers=1, warm=0) as one, pytest.raises(OSError, match=r"refused|unreachable"):
            one.run_code(code)


@needs("root")
def test_a_network_made_before_can_be_shared():
    from shoal import NetNs

    with NetNs.new() as network, SandboxExecutor(Sandbox(network=network), max_workers=2, warm=1) as one:
        code = "import os; net = os.readlink('/proc/self/ns/net')"
        found = {one.run_code(code)["net"] for _ in range(2)}
        assert found == {f"net:[{os.fstat(network.fileno()).st_ino}]"}


def test_a_call_cannot_outlive_its_cell(ex):
    def fork_bomb():
        for _ in range(20):
            if os.fork() == 0:
                os.setsid()
                while True:
                    time.sleep(1)
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]

    before = set(os.listdir("/proc"))
    call = ex.submit(fork_bomb)
    assert len(call.result(PATIENCE_S)) >= 22
    assert call.wait_gone(0)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        left = [name for name in set(os.listdir("/proc")) - before if name.isdigit() and _comm(name) == "shoal-call"]
        if len(left) <= 3:  # those of the warm ones
            break
        time.sleep(0.01)
    assert len(left) <= 3


def _comm(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_zygote_has_none_of_the_callers_variables(ex, monkeypatch):
    environ = Path(f"/proc/{ex.zygote_pid}/environ").read_bytes() if os.geteuid() == 0 else b""
    assert b"PYTHONPATH" not in environ
    assert b"TMPDIR" not in environ


def test_a_call_that_waits_is_confined_already(ex):
    ex.wait_ready(PATIENCE_S)
    waiting = [pid for pid in os.listdir("/proc") if pid.isdigit() and _comm(pid) == "shoal-call"]
    assert waiting
    for pid in waiting:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            if status["Seccomp"] == "2":
                assert int(status["CapEff"], 16) == 0
                break
    else:
        raise AssertionError("none of them is confined")


def test_a_program_that_a_call_starts_lives_in_the_same_sandbox(ex):
    def start():
        import subprocess

        code = "import os; print(os.getuid(), os.path.exists('/etc/passwd'), sorted(os.listdir('/proc/self/fd')))"
        return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False).stdout, os.getuid()

    out, uid = ex.submit(start).result(PATIENCE_S)
    assert out.split()[:2] == [str(uid), "False"]


def test_an_interpreter_that_is_killed_inside_is_not_the_zygote(ex):
    zygote = ex.zygote_pid
    error = ex.submit_code("import os, signal; os.kill(0, signal.SIGKILL)").exception(PATIENCE_S)
    assert isinstance(error, CallEndedError)
    assert ex.submit(len, "").result(PATIENCE_S) == 0
    assert ex.zygote_pid == zygote


def test_a_relative_path_begins_where_the_executor_was_made(tmp_path, monkeypatch):
    (tmp_path / "granted").write_text("there")
    monkeypatch.chdir(tmp_path)
    with SandboxExecutor(Sandbox(read=["granted"]), max_workers=1, warm=0) as one:
        monkeypatch.chdir("/")
        assert one.submit((tmp_path / "granted").read_text).result(PATIENCE_S) == "there"
