"""shoal.subprocess without a sandbox: a child gets what the standard module gives it, and is waited for better."""

import inspect
import json
import os
import resource
import signal
import subprocess as standard
import sys
import tempfile
import threading
from contextlib import contextmanager
from fractions import Fraction

import pytest
from rig.features import has

from shoal import subprocess

PROBE = (
    "import json, os, sys\n"
    "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
    "me, mask = os.getpid(), os.umask(0)\n"
    "own = {me: 'own', os.getppid(): 'parent'}\n"
    "fds = {}\n"
    "for name in os.listdir('/proc/self/fd'):\n"
    "    try: fds[name] = os.readlink('/proc/self/fd/' + name)\n"
    "    except OSError: pass\n"
    "print(json.dumps({'argv': sys.argv, 'environ': dict(os.environ), 'cwd': os.getcwd(), 'umask': mask,\n"
    "    'session': own.get(os.getsid(0), os.getsid(0)), 'group': own.get(os.getpgid(0), os.getpgid(0)),\n"
    "    'ids': [os.getresuid(), os.getresgid(), sorted(os.getgroups())], 'nice': os.nice(0),\n"
    "    'signals': [int(status[name], 16) & ~(3 << 31) for name in ('SigBlk', 'SigIgn', 'SigCgt')],\n"
    "    'stdin': fds['0'] if '0' in fds else None,\n"
    "    'name': open('/proc/self/comm').read(), 'fds': {n: t for n, t in fds.items() if int(n) > 2 and '/proc/' not in t}}))\n"
)
"""Prints all that a child takes over from its parent. Signals 32 and 33 are the C library's, which it ignores in what it spawns."""
PYTHON = [sys.executable, "-I", "-S", "-c", PROBE]
TRUE, FALSE = ["true"], ["false"]


@pytest.fixture
def probe(workload):
    """What a child of either module says that it is. The same command with the same arguments."""

    def ask(module, args=PYTHON, **more):
        done = module.run(args, stdout=standard.PIPE, check=True, **more)
        return json.loads(done.stdout)

    return ask


@contextmanager
def open_file(inheritable=False):
    with tempfile.TemporaryFile() as file:
        os.set_inheritable(file.fileno(), inheritable)
        yield file


def differently(**more):
    return pytest.param(more, id=", ".join(more) or "as it is")


@pytest.mark.parametrize(
    "arguments",
    [
        differently(),
        differently(close_fds=False),
        differently(cwd="/"),
        differently(cwd=b"/usr"),
        differently(umask=0o27),
        differently(umask=0),
        differently(restore_signals=False),
        differently(start_new_session=True),
        differently(process_group=0),
        differently(env={}),
        differently(env={"A": "1", "LANG": "C"}),
        differently(env={b"A": b"\xff\xfe"}),
        differently(pass_fds="high"),
        differently(pass_fds="high", close_fds=True, cwd="/", umask=0o77, start_new_session=True),
        differently(stdin="file"),
        differently(stdin=standard.DEVNULL),
        differently(executable=sys.executable, args=["another name", *PYTHON[1:]]),
        differently(args=[os.path.basename(sys.executable), *PYTHON[1:]]),
        differently(preexec_fn=lambda: os.umask(0o11)),
        differently(extra_groups=[], user="own"),
    ],
)
def test_a_child_gets_what_the_standard_module_gives_it(probe, arguments, monkeypatch):
    monkeypatch.setenv("PATH", f"/nonexistent:{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if "extra_groups" in arguments and not has("root"):
        pytest.skip("needs root")
    with open_file() as given, open_file(inheritable=True) as inheritable, open_file() as kept:
        high = os.dup2(kept.fileno(), 777, inheritable=False)
        try:
            how = {
                name: {"high": [high, given.fileno()], "file": given, "own": os.geteuid()}.get(value, value)
                if isinstance(value, str)
                else value
                for name, value in arguments.items()
            }
            os.putenv("SET_IN_C_ONLY", "1")  # which os.environ does not know of
            theirs, ours = probe(standard, **how), probe(subprocess, **how)
        finally:
            os.unsetenv("SET_IN_C_ONLY")
            os.close(high)
        if "env" not in how:
            # Where it uses posix_spawn, up to 3.12, the standard module forgets what was set in C only.
            assert theirs["environ"].items() <= ours["environ"].items()
            theirs["environ"] = ours["environ"]
        assert ours == theirs
        assert ("SET_IN_C_ONLY" in ours["environ"]) == ("env" not in how)
        assert (str(inheritable.fileno()) in ours["fds"]) == (how.get("close_fds") is False)


def test_what_the_calling_thread_blocks_and_the_process_ignores_is_so_in_the_child(probe):
    def look():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        found.extend(probe(module) for module in (standard, subprocess))

    found = []
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    handler = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGHUP, handler)
    theirs, ours = found
    assert ours["signals"] == theirs["signals"]
    assert ours["signals"][0] & 1 << (signal.SIGUSR1 - 1)
    assert ours["signals"][1] & 1 << (signal.SIGUSR2 - 1)


@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("close_fds", [True, False])
def test_standard_descriptors_that_are_closed_here_end_where_the_standard_module_puts_them(run_python, missing, close_fds):
    script = """
import subprocess as standard
from shoal import subprocess
code = '''import os
found = []
for fd in range(3):
    try: found.append(os.fstat(fd).st_ino)
    except OSError: found.append(None)
os.write(int(os.environ["REPORT"]), repr(found).encode())
'''
missing, close_fds = args
read, write = os.pipe()
a, b, c = (os.memfd_create(name) for name in "abc")
_answer, read, write, a, b, c = (os.dup2(fd, 50 + i, inheritable=False) for i, fd in enumerate((_answer, read, write, a, b, c)))
os.closerange(3, 50)
os.set_inheritable(write, not close_fds)
kept = dict(pass_fds=[write]) if close_fds else dict(close_fds=False)
def report(module, **more):
    module.run([sys.executable, "-I", "-S", "-c", code], env=dict(os.environ, REPORT=str(write)), **kept, **more)
    return os.read(read, 1000).decode()
saved = [os.dup(fd) for fd in range(3)]
for fd in missing:
    os.close(fd)
cases = [dict(), dict(stdin=a), dict(stdout=a), dict(stderr=a), dict(stdin=a, stdout=b, stderr=c), dict(stdin=a, stdout=a, stderr=a)]
for fd in range(3):
    if fd not in missing:
        cases += [dict(stdin=fd), dict(stdout=fd), dict(stderr=fd), dict(stdin=fd, stdout=fd, stderr=fd), dict(stdin=a, stdout=fd)]
found = [[report(module, **case) for module in (standard, subprocess)] for case in cases]
for fd, copy in enumerate(saved):
    os.dup2(copy, fd)
answer(found)
"""
    for theirs, ours in run_python(script, missing, close_fds):
        assert ours == theirs


BAD = {
    "no such program": lambda m: m.run(["no-such-program"]),
    "no such path": lambda m: m.run(["/no/such/program"]),
    "not executable": lambda m: m.run(["/etc/passwd"]),
    "a directory": lambda m: m.run(["/"]),
    "a path through a file": lambda m: m.run(["/etc/passwd/x"]),
    "no words": lambda m: m.run([]),
    "an empty word": lambda m: m.run([""]),
    "a word that is a number": lambda m: m.run(["true", 1]),
    "a command that is a number": lambda m: m.run([1]),
    "a null in the command": lambda m: m.run(["true\0"]),
    "a null in a word": lambda m: m.run(["true", "a\0b"]),
    "a lone surrogate in the command": lambda m: m.run(["true\ud800"]),
    "a lone surrogate in a word": lambda m: m.run(["true", "a\ud800"]),
    "a lone surrogate in env": lambda m: m.run(["true"], env={"A": "\ud800"}),
    "a lone surrogate in cwd": lambda m: m.run(["true"], cwd="/\ud800"),
    "a null in cwd": lambda m: m.run(["true"], cwd="/\0"),
    "a null in env": lambda m: m.run(["true"], env={"A": "\0"}),
    "an equals sign in env": lambda m: m.run(["true"], env={"A=B": "1"}),
    "a number in env": lambda m: m.run(["true"], env={"A": 1}),
    "no such cwd": lambda m: m.run(["true"], cwd="/no/such/directory"),
    "a file as cwd": lambda m: m.run(["true"], cwd="/etc/passwd"),
    "a cwd and no program": lambda m: m.run(["no-such-program"], cwd="/no/such/directory"),
    "a stdin that is closed": lambda m: m.run(["true"], stdin=900),
    "a stdin that cannot be": lambda m: m.run(["true"], stdin=-7),
    "a stdin without fileno": lambda m: m.run(["true"], stdin="text"),
    "pass_fds that are closed": lambda m: m.run(["true"], pass_fds=[900]),
    "pass_fds that cannot be": lambda m: m.run(["true"], pass_fds=[-1]),
    "pass_fds that are text": lambda m: m.run(["true"], pass_fds=["x"]),
    "a path and a shell": lambda m: m.run(__import__("pathlib").Path("/bin/true"), shell=True),
    "a group that is not there": lambda m: m.run(["true"], process_group=4194000),
    "a user that is not there": lambda m: m.run(["true"], user="no-such-user"),
    "startupinfo": lambda m: m.run(["true"], startupinfo=1),
    "text that is and is not": lambda m: m.run(["true"], text=True, universal_newlines=False),
    "a bufsize that is text": lambda m: m.run(["true"], bufsize="1"),
    "umask that is text": lambda m: m.run(["true"], umask="1"),
    "an error of preexec_fn": lambda m: m.run(["true"], preexec_fn=lambda: 1 / 0),
    "input and stdin": lambda m: m.run(["true"], input=b"", stdin=m.PIPE),
    "capture_output and stdout": lambda m: m.run(["true"], capture_output=True, stdout=m.PIPE),
    "check_output with stdout": lambda m: m.check_output(["true"], stdout=None),
    "check": lambda m: m.run(["false"], check=True),
    "check_call": lambda m: m.check_call(["false"]),
    "check_output": lambda m: m.check_output(["sh", "-c", "echo so; exit 3"]),
    "an unknown argument": lambda m: m.run(["true"], colour="blue"),
    "a timeout that is text": lambda m: m.run(["true"], timeout="1"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_mistake_is_told_as_the_standard_module_tells_it(bad, world):
    told = []
    for module in (standard, subprocess):
        with pytest.raises(Exception) as error:
            bad(module)
        value = error.value
        told.append((type(value), getattr(value, "errno", None), getattr(value, "filename", None), str(value)))
        del error, value
    theirs, ours = told
    if theirs[0] is TypeError:
        assert ours[0] is TypeError  # whose words differ from one Python to the next
    elif sys.version_info < (3, 12) and theirs[2] is None and ours[2] is None:
        assert ours == theirs
    else:
        assert ours == theirs
    world.assert_unchanged()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"args": ["true", "a\ud800"]}, "args[1] has"),
        ({"args": ["true\ud800"]}, "the program has"),
        ({"args": ["true"], "cwd": "/\ud800"}, "cwd has"),
        ({"args": ["true"], "env": {"A": "\ud800"}}, "the environment variable 'A' has"),
    ],
)
def test_text_that_cannot_be_encoded_is_named_in_a_note(arguments, named):
    with pytest.raises(UnicodeEncodeError) as caught:
        subprocess.run(**arguments)
    assert [note.startswith(named) for note in caught.value.__notes__] == [True]


def test_names_signatures_and_classes_are_the_standard_ones():
    public = [name for name in standard.__all__ if not name.startswith(("STARTF", "CREATE"))]
    assert set(subprocess.__all__) == set(public)
    for name in public:
        ours, theirs = getattr(subprocess, name), getattr(standard, name)
        if inspect.isfunction(theirs):
            named = [parameter for parameter in inspect.signature(ours).parameters if parameter != "sandbox"]
            assert named == list(inspect.signature(theirs).parameters), name
        elif name != "Popen":
            assert ours is theirs
    ours, theirs = (inspect.signature(module.Popen.__init__).parameters for module in (subprocess, standard))
    assert [*theirs, "sandbox"] == list(ours)
    for name, parameter in theirs.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name
    assert issubclass(subprocess.Popen, standard.Popen)


def test_a_wait_with_a_timeout_sleeps_until_the_end():
    with subprocess.Popen(["sleep", "0.5"]) as process:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        assert process.wait(timeout=60) == 0
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before <= 6  # the standard module looks twenty times a second


@pytest.mark.parametrize("timeout", [60, 60.0, True, Fraction(120, 2), float("inf")], ids=str)
def test_a_timeout_may_be_any_number(timeout):
    for module in (standard, subprocess):
        with module.Popen(TRUE) as process:
            assert process.wait(timeout) == 0
        assert module.run(TRUE, timeout=timeout).returncode == 0
    with subprocess.Popen(["sleep", "987"]) as process:
        for over in (0, -1, False, 0.01):
            with pytest.raises(subprocess.TimeoutExpired) as late:
                process.wait(over)
            assert late.value.timeout == over
        process.kill()


def test_many_threads_may_wait_while_others_look():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        codes, waiting = [], threading.Barrier(13)

        def wait(timeout):
            waiting.wait()
            codes.append(process.wait(timeout))

        threads = [threading.Thread(target=wait, args=(None if number % 2 else 60,)) for number in range(12)]
        for thread in threads:
            thread.start()
        waiting.wait()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert codes == [-signal.SIGTERM] * 12
        assert process.poll() == -signal.SIGTERM


def test_an_end_is_told_with_what_was_used():
    with subprocess.Popen([sys.executable, "-S", "-c", "sum(range(10**6))"]) as process:
        assert (process.reason, process.usage, dict(process.enforced)) == (None, None, {})
        process.wait()
    assert process.reason == "exited"
    assert 0 < process.usage.user_s + process.usage.system_s <= process.usage.wall_s + 1
    assert process.usage.max_memory_bytes > 1 << 20
    with subprocess.Popen(["sleep", "987"]) as process:
        process.kill()
    assert (process.returncode, process.reason) == (-signal.SIGKILL, "signaled")


def test_no_signal_is_sent_once_a_process_has_ended_and_was_reaped():
    with subprocess.Popen(TRUE) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        process.send_signal(signal.SIGTERM)
        process.kill(tree=True)
        assert process.returncode == 0
        process.kill()


def test_a_status_that_somebody_else_has_taken_does_not_keep_a_wait_from_ending():
    process = subprocess.Popen(TRUE)
    os.waitpid(process.pid, 0)
    assert process.wait(timeout=60) == 0
    process = subprocess.Popen(FALSE)
    os.waitpid(process.pid, 0)
    assert process.poll() in (0, 1)  # as in the standard module, or the truth where the kernel tells


def test_what_closes_all_descriptors_may_still_wait(run_python):
    script = """
import warnings
from shoal import subprocess
children = [subprocess.Popen(["sleep", "0.1"]) for _ in range(3)]
keep = os.dup2(_answer, 200)
os.closerange(3, 200)
others = [os.memfd_create("x") for _ in range(20)]  # which now have the numbers
found = [children[0].wait(), children[1].wait(timeout=60)]
while children[2].poll() is None:
    pass
children[2].kill()
del children
import gc; gc.collect()
[os.fstat(fd) for fd in others]
_answer = keep
answer(found)
"""
    assert run_python(script) == [0, 0]


def test_a_fork_of_the_caller_leaves_its_children_alone(run_python):
    script = """
from shoal import subprocess
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
pid = os.fork()
if pid == 0:
    child.poll()
    child.returncode = 0
    del child
    os._exit(0)
os.waitpid(pid, 0)
running = child.poll()
child.stdin.close()
answer([running, child.wait()])
"""
    assert run_python(script) == [None, 0]


def test_an_ignored_sigchld_does_not_keep_a_wait_from_ending(run_python):
    script = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from shoal import subprocess
answer([subprocess.run(["sleep", "0.1"]).returncode, subprocess.Popen(["sleep", "0.1"]).wait(timeout=60)])
"""
    assert run_python(script) == [0, 0]


def test_a_handler_that_reaps_everything_does_not_keep_a_wait_from_ending(run_python):
    script = """
import signal
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
from shoal import subprocess
answer([subprocess.run(["sleep", "0.01"], timeout=60).returncode for _ in range(20)])
"""
    assert run_python(script) == [0] * 20


@pytest.mark.slow
def test_no_descriptor_reaches_the_child_of_another_thread(world):
    code = 'for f in /proc/$$/fd/*; do n=${f##*/}; case $n in 0|1|2) ;; *) printf "%s " "$n";; esac; done; cat'
    each, found = 150, []

    def work():
        for _ in range(each):
            with subprocess.Popen(["sh", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                out, err = process.communicate(b"end")  # ends only if nobody else has the pipe
                found.append((out, err, process.returncode))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # dash looks through its own directory of descriptors with one more, which is gone by the time it tells.
    assert {out.split()[-1] for out, _, _ in found} == {b"end"}
    assert all(len(out.split()) <= 2 for out, _, _ in found)
    assert {(err, code) for _, err, code in found} == {(b"", 0)}
    assert len(found) == 16 * each
    world.assert_unchanged()


def test_a_caller_without_a_free_descriptor_is_told_so(run_python):
    script = """
import resource
from shoal import subprocess
subprocess.run(["true"])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
told = []
for how in (dict(), dict(stdout=subprocess.PIPE), dict(preexec_fn=int)):
    try:
        subprocess.run(["true"], **how)
        told.append(None)
    except OSError as error:
        told.append(error.errno)
for fd in held:
    os.close(fd)
answer([told, subprocess.run(["true"]).returncode])
"""
    import errno

    told, after = run_python(script)
    assert set(told) <= {errno.EMFILE, None}
    assert told[1] == errno.EMFILE
    assert after == 0


def test_a_python_whose_subprocess_is_another_one_is_refused_at_import(run_python):
    script = """
import subprocess
del subprocess.Popen._wait
def _wait(self, patience):
    pass
subprocess.Popen._wait = _wait
try:
    import shoal.subprocess
except ImportError as error:
    answer(str(error))
"""
    assert "Popen._wait" in run_python(script)


def test_an_audit_hook_hears_of_each_start_once_and_in_the_same_words(run_python):
    script = """
import subprocess as standard
from shoal import Sandbox, subprocess
heard = []
sys.addaudithook(lambda event, args: heard.append(args) if event == "subprocess.Popen" else None)
def listen(module, **how):
    heard.clear()
    module.run(how.pop("args", ["true", "x"]), **how)
    return repr(heard)
found = []
for how in (dict(), dict(cwd="/", env={"PATH": "/bin"}), dict(args="true", shell=True), dict(executable="/bin/true"), dict(preexec_fn=int)):
    found.append([listen(standard, **how), listen(subprocess, **how)])
found.append([listen(standard), listen(subprocess, sandbox=Sandbox())])
answer(found)
"""
    for theirs, ours in run_python(script):
        assert ours == theirs


def test_the_package_is_loaded_on_first_use(run_python):
    script = """
import shoal
before = "shoal.subprocess" in sys.modules
import shoal.subprocess
answer([before, "shoal.sandbox.run" in sys.modules, shoal.subprocess.run(["true"]).returncode])
"""
    assert run_python(script) == [False, False, 0]
