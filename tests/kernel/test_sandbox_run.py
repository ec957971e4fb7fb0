"""shoal.run(): what a program in a sandbox gets, how its run ends, and what is told of it."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rig.features import needs

import shoal
from shoal import Sandbox, cells

SH = Sandbox(read=["/usr"])
SHELL = pytest.mark.skipif(not os.path.exists("/usr/bin/sh"), reason="needs a merged /usr with a shell")
pytestmark = SHELL


@pytest.fixture(scope="module", autouse=True)
def what_is_opened_once_and_kept():
    for _ in range(2):
        shoal.run(["/usr/bin/true"])
    cells.drain()


def sh(script, box=SH, **more):
    more = {"capture_output": True, "text": True} | more
    return shoal.run(["sh", "-c", script], sandbox=box, **more)


def is_root():
    return os.geteuid() == 0


def test_a_program_runs_with_only_itself_and_its_libraries(world):
    done = shoal.run(["/usr/bin/id", "-u"], capture_output=True, text=True)
    assert (done.returncode, done.reason, done.stderr) == (0, "exited", "")
    assert int(done.stdout) >= 0x70000000 if is_root() else int(done.stdout) == os.geteuid()
    assert done.enforced["namespaces"] is done.enforced["no_new_privs"] is done.enforced["network"] is True
    assert isinstance(done.enforced["seccomp"], str)
    world.assert_unchanged()


def test_a_script_for_a_script_has_all_that_interpret_it(tmp_path):
    last, middle, top = tmp_path / "last", tmp_path / "middle", tmp_path / "top"
    last.write_text('#!/bin/sh\necho "$@"\n')
    middle.write_text(f"#!{last} b\n")
    top.write_text(f"#!{middle} c\n")
    for path in (last, middle, top):
        path.chmod(0o755)
    for _ in range(4):
        done = shoal.run([top, "d"], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f"b {middle} c {top} d\n", "")


def test_it_sees_what_it_was_given_and_nothing_else():
    done = sh("cd / && ls -d * && echo -- && ls /etc 2>&1; echo --; env")
    files, etc, variables = done.stdout.split("--\n")
    assert (
        {"tmp", "proc", "dev", "usr"}
        <= set(files.split())
        <= {"tmp", "proc", "dev", "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}
    )
    assert "No such file" in etc
    assert {line.split("=")[0] for line in variables.splitlines()} - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "HOME", "LANG", "TERM"}


def test_it_has_no_privileges_whatever_the_caller_has():
    status = dict(line.split(":\t", 1) for line in sh("cat /proc/self/status").stdout.splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    if is_root():
        assert status["Groups"].strip() == ""


@pytest.mark.root
def test_two_sandboxes_of_root_are_different_users_at_any_moment():
    with_output = {"stdin": subprocess.PIPE, "capture_output": True, "text": True}
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(sh("id -u; sleep 0.2", **with_output).stdout)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 4


def test_what_it_writes_belongs_to_the_caller(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "there").write_text("before\n")
    box = Sandbox(read=["/usr"], write={"/work": out}, cwd="/work")
    for round in range(3):  # the later ones in cells made ahead
        done = sh(f"cat there && echo after >> there && echo new > made{round} && mkdir dir{round} && stat -c %u . there made{round}", box)
        assert done.stderr == ""
        assert len(set(done.stdout.splitlines()[-3:])) == 1, "to the program it is all its own"
    assert (out / "there").read_text() == "before\n" + "after\n" * 3
    assert {path.stat().st_uid for path in [out, *out.iterdir()]} == {os.geteuid()}
    assert {path.stat().st_gid for path in out.iterdir()} == {os.getegid()}


def test_what_it_was_given_to_read_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("as it was\n")
    tmp_path.chmod(0o777)
    (tmp_path / "file").chmod(0o666)
    done = sh("echo no > /data/file; echo no > /data/new; rm /data/file", Sandbox(read={"/usr": "/usr", "/data": tmp_path}))
    assert done.stderr.count("Read-only file system") == 3
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "as it was\n")]


def test_tmp_is_private_and_bounded(tmp_path):
    done = sh("echo mine > /tmp/f && df -k /tmp | tail -1", Sandbox(read=["/usr"], tmp="8M"))
    assert int(done.stdout.split()[1]) == 8192
    assert sh("dd if=/dev/zero of=/tmp/f bs=1M count=9 2>&1 | grep -c 'No space left'", Sandbox(read=["/usr"], tmp="8M")).stdout == "1\n"
    assert "f" not in sh("ls /tmp").stdout
    assert sh("ls /tmp", Sandbox(read=["/usr"], tmp=False)).returncode != 0


@pytest.mark.parametrize("count", [1, 4])
def test_input_output_and_text_are_as_with_subprocess(count, world):
    for _ in range(count):
        done = shoal.run(["cat"], input="zwei\r\nZeilen\n", capture_output=True, text=True)
        known = subprocess.run(["cat"], input="zwei\r\nZeilen\n", capture_output=True, text=True, check=False)
        assert (done.args, done.returncode, done.stdout, done.stderr) == (known.args, known.returncode, known.stdout, known.stderr)
        assert sh("echo out; echo err >&2", text=False).stdout == b"out\n"
        assert sh("echo out; echo err >&2", capture_output=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout == "out\nerr\n"
        assert sh("cat; echo end", stdin=subprocess.DEVNULL).stdout == "end\n"
        assert isinstance(done, subprocess.CompletedProcess)
    world.assert_unchanged()


def test_descriptors_of_the_caller_are_handed_over_as_with_subprocess(tmp_path):
    with open(tmp_path / "out", "w+") as file:
        done = sh("echo to the file; echo and anew > /dev/stdout", capture_output=False, stdout=file)
        assert (done.stdout, done.stderr) == (None, None)
        file.seek(0)
        assert "to the file" in file.read() or not is_root()  # opened anew it was cut off


@pytest.mark.root
def test_a_file_of_the_callers_can_be_written_to_but_not_opened_anew_by_another_user(tmp_path):
    """Its owner would have to change, and it is the caller's; opened through a mount of its own it would not share the caller's offset."""
    with open(tmp_path / "out", "w+") as file:
        script = "echo one; echo two > /dev/stdout || echo three; echo four >&1"
        done = sh(script, capture_output=False, stdout=file, stderr=subprocess.PIPE)
        file.seek(0)
        assert file.read() == "one\nthree\nfour\n"
        assert "Permission denied" in done.stderr
        file.seek(0)
        file.truncate()
        sh("echo two > /dev/stdout", SH.replace(user="caller"), capture_output=False, stdout=file)
        file.seek(0)
        assert file.read() == "two\n"


@pytest.mark.root
def test_files_that_cannot_be_lent_to_another_user_are_an_error_that_tells_the_way():
    """/proc and /sys, which / brings along, cannot show their files as another user's. It never runs as somebody else than was said."""
    box = Sandbox(write=["/"])
    for best in (box, box.replace(limits="best-effort")):
        with pytest.raises(shoal.NotSupportedError, match=r'directory / .*user="caller"') as caught:
            sh("id -u", best)
        assert caught.value.stage is shoal.Stage.SETUP
    done = sh("id -u; grep CapEff /proc/self/status", box.replace(user="caller"))
    assert done.stdout.split() == ["0", "CapEff:", "0" * 16]
    assert done.enforced["user"] is False


def test_check_raises_an_error_that_says_why():
    with pytest.raises(subprocess.CalledProcessError, match="exited with status 3") as caught:
        sh("echo partly; exit 3", check=True)
    assert isinstance(caught.value, shoal.RunError)
    assert (caught.value.returncode, caught.value.stdout) == (3, "partly\n")
    with pytest.raises(shoal.RunError, match="wall_time"):
        sh("sleep 60", Sandbox(read=["/usr"], wall_time=0.1), check=True)


def test_the_reasons_are_told_apart():
    assert sh("exit 137").reason == "exited"
    killed = sh("kill -9 $$")
    assert (killed.reason, killed.returncode) == ("signaled", -signal.SIGKILL)
    late = sh("echo partly; sleep 60", Sandbox(read=["/usr"], wall_time="150ms"))
    assert (late.reason, late.returncode, late.stdout) == ("wall_time", -signal.SIGKILL, "partly\n")
    much = sh("exec cat /dev/zero", output_limit="64K", on_output_limit="kill", text=False)
    assert (much.reason, len(much.stdout), much.truncated) == ("output_limit", 65536, True)


def test_a_timeout_raises_with_the_output_so_far_and_the_tree_is_dead(world):
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        sh("trap '' TERM HUP INT; (setsid sh -c 'trap \"\" TERM; sleep 60' &) ; echo partly; sleep 60", timeout=0.3)
    assert caught.value.output == "partly\n"
    assert caught.value.timeout == 0.3
    world.assert_unchanged()


def test_it_ends_when_the_program_does_and_takes_the_rest_along(world):
    started = time.monotonic()
    done = sh("(setsid sleep 60 &) ; sleep 60 & echo done")
    assert (done.stdout, done.returncode) == ("done\n", 0)
    assert time.monotonic() - started < 30
    world.assert_unchanged()


def test_it_can_wait_for_what_the_program_leaves_running():
    done = sh("(sleep 0.2; echo later) & echo first", Sandbox(read=["/usr"], linger="wait"))
    assert done.stdout == "first\nlater\n"
    with pytest.raises(subprocess.TimeoutExpired):
        sh("sleep 60 & echo first", Sandbox(read=["/usr"], linger="wait"), timeout=0.2)


def test_what_is_kept_lives_on_and_can_still_write(tmp_path, world):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    box = Sandbox(read=["/usr"], write={"/out": tmp_path}, linger="keep")
    assert sh("(cat /out/fifo > /out/copy; mv /out/copy /out/done) & echo started", box).stdout == "started\n"
    fifo.write_text("handed over later\n")
    deadline = time.monotonic() + 30
    while not (tmp_path / "done").exists() and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert (tmp_path / "done").read_text() == "handed over later\n"
    world.assert_unchanged()


def test_limits_of_each_process_hold():
    assert sh("ulimit -n", Sandbox(read=["/usr"], open_files=17)).stdout == "17\n"
    big = sh("dd if=/dev/zero of=/tmp/f bs=1k count=100 2>/dev/null; ls -l /tmp/f | cut -d' ' -f5", Sandbox(read=["/usr"], file_size="32K"))
    assert big.stdout == "32768\n"
    assert sh("ulimit -c").stdout == "0\n"
    assert sh("nice", Sandbox(read=["/usr"], nice=7)).stdout == "7\n"
    core = min(os.sched_getaffinity(0))
    assert sh("nproc", Sandbox(read=["/usr"], core_set=[core])).stdout == "1\n"


def test_processor_time_is_bounded_for_each_process_at_least():
    box = Sandbox(read=["/usr"], cpu_time=1, wall_time=60, limits="best-effort")
    done = sh("while :; do :; done", box)
    assert done.reason == "cpu_time"
    assert 0.5 <= done.usage.user_s + done.usage.system_s < 10
    assert done.enforced["cpu_time"] in (True, "each process")


@needs("a cgroup v2 tree in which groups can be made")
def test_processor_time_is_bounded_for_all_processes_together(world):
    done = sh("for i in 1 2 3 4; do (while :; do :; done) & done; wait", Sandbox(read=["/usr"], cpu_time="500ms", wall_time=60))
    assert (done.reason, done.enforced["cpu_time"]) == ("cpu_time", True)
    assert 0.45 <= done.usage.user_s + done.usage.system_s < 1.5
    world.assert_unchanged()


def test_a_limit_that_cannot_be_enforced_is_refused_or_said_to_be_weaker():
    box = Sandbox(read=["/usr"], memory="64M")
    weaker = sh("echo fine", box.replace(limits="best-effort"))
    if weaker.enforced["memory"] is True:
        assert sh("echo fine", box).enforced["memory"] is True
    else:
        with pytest.raises(shoal.SpawnError, match="best-effort"):
            sh("echo never", box)
    done = weaker
    assert done.stdout == "fine\n"


def test_a_protection_that_is_required_is_there_or_nothing_is_started():
    assert sh("echo fine", Sandbox(read=["/usr"], require=["seccomp", "namespaces"])).stdout == "fine\n"
    with pytest.raises(shoal.NotSupportedError, match="seccomp"):
        sh("echo never", Sandbox(read=["/usr"], seccomp="off", require=["seccomp"]))


def test_errors_name_what_was_wrong(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        shoal.run(["no-such-program"])
    with pytest.raises(PermissionError, match="not executable"):
        shoal.run(["/etc/passwd"])
    with pytest.raises(ValueError, match="read: /no/such/place"):
        shoal.run(["true"], sandbox=Sandbox(read=["/no/such/place"]))
    with pytest.raises(TypeError, match="did you mean 'memory'"):
        Sandbox().replace(memroy="1G")
    with pytest.raises(ValueError, match="did you mean 'default'"):
        Sandbox(seccomp="defualt")
    with pytest.raises(ValueError, match="memory"):
        Sandbox(memory="12 apples")
    with pytest.raises(TypeError, match="read has to be a list"):
        Sandbox(read="/usr")
    with pytest.raises(TypeError, match="list of strings"):
        shoal.run("true")
    with pytest.raises(ValueError, match="args is empty"):
        shoal.run([])


def test_an_interrupt_kills_the_tree(run_python):
    script = """
import signal, threading, shoal
box = shoal.Sandbox(read=["/usr"])
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.3, interrupt).start()
try:
    shoal.run(["sh", "-c", "trap '' INT; sleep 60 & sleep 60"], sandbox=box)
except KeyboardInterrupt:
    pass
from shoal.handles import reaper
shoal.cells.drain()
reaper.sweep()
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
answer([int(pid) for pid in children])
"""
    assert run_python(script) == []


def test_the_same_run_again_and_again_uses_cells_made_ahead_and_says_the_same(world):
    cells.drain()
    seen = set()
    for _ in range(12):
        done = sh("id -u >/dev/null; echo $$ $PWD; cat /proc/1/comm")
        seen.add((done.stdout, done.returncode, done.reason))
    assert len(seen) == 1
    assert cells.wait_ready() > 0
    world.assert_unchanged()


def test_a_box_looks_at_its_files_when_something_is_started(tmp_path):
    target = tmp_path / "one"
    target.mkdir()
    (target / "name").write_text("one")
    other = tmp_path / "two"
    other.mkdir()
    (other / "name").write_text("two")
    link = tmp_path / "link"
    link.symlink_to(target)
    box = Sandbox(read={"/usr": "/usr", "/data": link})
    assert [sh("cat /data/name", box).stdout for _ in range(3)] == ["one"] * 3
    link.unlink()
    link.symlink_to(other)
    assert sh("cat /data/name", box).stdout == "two"


def test_many_threads_share_a_box(world):
    wrong = []

    def work(number):
        for _ in range(8):
            done = sh(f"echo {number}")
            if done.stdout != f"{number}\n" or done.returncode:
                wrong.append(done)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    world.assert_unchanged()


def test_secrets_are_not_shown():
    box = Sandbox(read=["/usr"], env={"TOKEN": "hunter2", "PLAIN": "text"}, secrets=["TOKEN"])
    assert sh("echo $TOKEN", box).stdout == "hunter2\n"
    assert "hunter2" not in repr(box)
    assert "text" in repr(box)


def test_python_runs_in_it():
    paths = {sys.base_prefix, sys.prefix, "/usr"}
    box = Sandbox(read=sorted(path for path in paths if os.access(path, os.R_OK)))
    code = "import threading, subprocess, sys; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join(); print(6 * 7)"
    done = shoal.run([sys.executable, "-c", code], sandbox=box, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("thread\n42\n", 0), done.stderr


def test_a_network_handed_over_is_there_at_every_run_and_until_it_is_closed():
    show = "readlink /proc/self/ns/net"
    with shoal.NetNs.new() as network, shoal.NetNs.new() as another:
        box = Sandbox(read=["/usr"], network=network)
        seen = [sh(show, box).stdout for _ in range(4)]
        assert seen == [f"net:[{os.fstat(network.fileno()).st_ino}]\n"] * 4
        assert sh(show, Sandbox(read=["/usr"], network=another)).stdout not in seen
        network.close()
        for _ in range(2):
            with pytest.raises(shoal.BadHandleError, match="closed"):
                sh(show, box)


def test_the_network_is_a_loopback_of_its_own_unless_it_is_handed_over():
    assert sh("grep -c : /proc/net/dev").stdout == "1\n"
    with open("/proc/net/dev") as file:
        outside = sum(":" in line for line in file)
    assert sh("grep -c : /proc/net/dev", Sandbox(read=["/usr"], network="host")).stdout == f"{outside}\n"


def test_a_closed_descriptor_is_a_clear_error():
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    with pytest.raises(shoal.SpawnError) as caught:
        shoal.run(["true"], stdout=write)
    assert caught.value.errno in (errno.EBADF, errno.EINVAL)


def test_what_was_opened_where_a_standard_descriptor_was_closed_is_not_handed_over(run_python):
    """A descriptor of ours, such as the end of a pipe, gets the number; more of them stay open from the second run on."""
    script = """
for number in (0, 1, 2):
    os.close(number)
import subprocess, shoal
from shoal import Sandbox
script = "for fd in 0 1 2; do [ /proc/self/fd/$fd -ef /dev/null ] && is=null || is=other; echo $is >&%d; done"
seen = []
for data in (None, b"x") * 4:
    words = ["sh", "-c", script % 2]
    done = shoal.run(words, sandbox=Sandbox(read=["/usr"]), input=data, stderr=subprocess.PIPE)
    seen.append(done.stderr.decode().split())
from shoal import subprocess as drop_in
for _ in range(2):
    seen.append(drop_in.run(["sh", "-c", script % 2], sandbox=Sandbox(read=["/usr"]), stderr=subprocess.PIPE).stderr.decode().split())
read, write = os.pipe()
flags = shoal.SpawnFlags.CLONE_STDIO | shoal.SpawnFlags.CLONE_NAMESPACE | shoal.SpawnFlags.DEFAULT_LDSVC
with shoal.spawn("/usr/bin/sh", ["sh", "-c", script % 9], flags=flags, actions=[shoal.CloneFd(write, 9)]) as process:
    process.wait(timeout=30)
seen.append(os.read(read, 1000).decode().split())
answer(seen)
"""
    plain, with_input = ["null", "null", "other"], ["other", "null", "other"]
    assert run_python(script) == [plain, with_input] * 4 + [plain] * 2 + [["null"] * 3]


def test_nobody_leaves_the_processors_it_was_bound_to():
    core = min(os.sched_getaffinity(0))
    python = Sandbox(read=["/usr"], core_set=[core])
    if not os.path.exists("/usr/bin/python3"):
        pytest.skip("needs /usr/bin/python3")
    code = "import os\ntry: os.sched_setaffinity(0, range(64))\nexcept OSError as error: print(error.errno)\n"
    code += "print(len(os.sched_getaffinity(0)))"
    done = shoal.run(["/usr/bin/python3", "-c", code], sandbox=python, capture_output=True, text=True)
    assert done.stdout == f"{errno.EPERM}\n1\n", done.stderr


def test_the_caller_can_be_debugged_afterwards_as_before(run_python):
    script = """
import ctypes, shoal
prctl = ctypes.CDLL(None).prctl
before = prctl(3, 0, 0, 0, 0)
shoal.run(["/usr/bin/true"])
answer([before, prctl(3, 0, 0, 0, 0)])
"""
    before, after = run_python(script)
    assert before == after
