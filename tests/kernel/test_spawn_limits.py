"""Spawning where something runs out, and while other threads are at work: a clear error, and nothing left over. Source: spec 7, 9.2."""

import errno
import os
import threading

import pytest
from rig.features import needs
from rig.launchers import every_launcher

from shoal import CloneFd, InvalidArgsError, Job, SpawnFlags, Status, TransferFd, UnavailableError
from shoal.status import BadStateError


@pytest.mark.parametrize("world_of_child", ["direct", "cell"])
def test_running_out_of_descriptors_anywhere_in_a_spawn_is_a_clear_error_and_leaks_nothing(run_python, world_of_child):
    script = """
import resource, shoal
flags = shoal.SpawnFlags.CLONE_NAMESPACE if args[0] == "direct" else shoal.SpawnFlags(0)
shoal.spawn(workload, ["workload"], flags=flags).wait(timeout=30)  # whatever is opened once and kept
from shoal.handles import reaper
while reaper.pending():
    reaper.sweep()
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
held, seen = [], []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
for free in range(40):
    try:
        with shoal.spawn(workload, ["workload"], flags=flags) as process:
            process.wait(timeout=30)
        seen.append("OK")
    except shoal.SpawnError as error:
        seen.append([error.status.name, error.errno])
    shoal.cells.drain()
    while reaper.pending():
        reaper.sweep()
    probes = []
    try:
        while True:
            probes.append(os.dup(0))
    except OSError:
        pass
    for fd in probes:
        os.close(fd)
    assert len(probes) == free, (len(probes), free, seen)
    os.close(held.pop())
answer(seen)
"""
    seen = run_python(script, world_of_child)
    failures = seen[: seen.index("OK")]
    assert seen[len(failures) :] == ["OK"] * (40 - len(failures))  # from some number on it works
    assert failures
    assert all(status in ("NO_RESOURCES", "BAD_STATE") and number == errno.EMFILE for status, number in failures)


def test_a_limit_of_file_sizes_under_which_no_cell_can_be_made_is_named_and_may_be_raised_again(run_python):
    script = """
import resource, shoal
told = []
for most in (0, 1024, 20000, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    for start in (lambda: shoal.spawn(workload, ["workload"]).wait(timeout=30), lambda: shoal.Vmo.create(30000).close() or 0):
        try:
            told.append(start())
        except shoal.SpawnError as error:
            told.append([error.status.name, str(error)])
answer(told)
"""
    *refused, cell, memory = run_python(script)
    assert (cell, memory) == (0, 0)
    for most, (status, text), (of_memory, said) in zip((0, 1024, 20000), refused[::2], refused[1::2], strict=True):
        assert (status, of_memory) == ("NO_RESOURCES", "OUT_OF_RANGE")
        assert f"the limit of file sizes is {most}" in text
        assert f"the limit of file sizes is {most} bytes" in said


@pytest.mark.parametrize(("world_of_child", "dumpable"), [("direct", True), ("direct", False), ("cell", True)])
def test_a_caller_who_already_has_many_descriptors_open_can_spawn(run_python, world_of_child, dumpable):
    # What is kept for all children then has a high number, and the links to it in /proc are root's where we are not dumpable.
    script = """
import ctypes, shoal
from shoal import SpawnFlags
if not args[1]:
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
held = [os.dup(0) for _ in range(100)]
flags = SpawnFlags.CLONE_UTC_CLOCK | SpawnFlags.CLONE_JOB | SpawnFlags.CLONE_STDIO
flags |= SpawnFlags.CLONE_NAMESPACE if args[0] == "direct" else SpawnFlags(0)
codes = []
for _ in range(4):
    with shoal.spawn(workload, ["workload", "exit", "7"], flags=flags) as process:
        codes.append(process.wait(timeout=30))
answer(codes)
"""
    assert run_python(script, world_of_child, dumpable) == [7] * 4


@pytest.mark.parametrize("few", [12, 16, 20])
def test_how_many_descriptors_there_may_be_is_told_wherever_they_are_used_up(run_python, few):
    script = """
import resource, shoal
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (args[0], hard))
try:
    shoal.run(["true"])
except shoal.NoResourcesError as error:
    told = str(error)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
answer([told, shoal.run(["true"]).returncode])
"""
    told, after = run_python(script, few)
    assert f"no more than {few} descriptors may be open: ulimit -n" in told
    assert after == 0


def test_the_caller_is_as_dumpable_as_before_whatever_is_launched_side_by_side(run_python):
    script = """
import ctypes, threading, shoal
prctl = ctypes.CDLL(None).prctl
before = prctl(3, 0, 0, 0, 0)
def some():
    for _ in range(25):
        with shoal.spawn(workload, ["workload"], flags=shoal.SpawnFlags(0)) as process:
            process.wait(timeout=30)
threads = [threading.Thread(target=some) for _ in range(6)]
for thread in threads:
    thread.start()
forks = []
for _ in range(20):  # while some are being launched
    pid = os.fork()
    if not pid:
        os._exit(prctl(3, 0, 0, 0, 0))
    forks.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
for thread in threads:
    thread.join()
answer([before, prctl(3, 0, 0, 0, 0), *forks])
"""
    assert run_python(script) == [1] * 22


@needs("unshare and setpriv (Debian package util-linux)")
@needs("user namespaces for ordinary users")
@pytest.mark.parametrize("kind", ["mnt", "pid", "net", "uts", "ipc", "cgroup"])
def test_a_machine_that_allows_no_more_namespaces_is_out_of_resources(run_python, kind):
    script = """
import shoal
from shoal.handles import reaper
from rig.workload import identity
pipe = os.pipe()
handed_over = identity(pipe[0])
try:
    shoal.spawn(workload, ["workload"], actions=[shoal.TransferFd(pipe[0], 5)])
except shoal.SpawnError as error:
    assert identity(pipe[0]) != handed_over
    answer([error.status.name, error.errno, str(error)])
try:
    os.waitpid(-1, os.WNOHANG)
    raise SystemExit("a child was left over")
except ChildProcessError:
    pass
"""
    forbid = ("unshare", "--user", "--map-root-user", "sh", "-c", f'echo 0 > /proc/sys/user/max_{kind}_namespaces && exec "$@"', "sh")
    status, number, text = run_python(script, prefix=forbid)
    assert (status, number) == ("NO_RESOURCES", errno.ENOSPC)
    assert "namespace" in text


@pytest.mark.parametrize("world_of_child", ["direct", "cell"])
def test_a_process_limit_that_is_reached_is_out_of_resources(run_python, world_of_child):
    if os.geteuid() == 0:
        pytest.skip("needs an ordinary user: the limit does not bind root")
    script = """
import resource, shoal
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
flags = shoal.SpawnFlags.CLONE_NAMESPACE if args[0] == "direct" else shoal.SpawnFlags(0)
try:
    shoal.spawn(workload, ["workload"], flags=flags)
except shoal.SpawnError as error:
    answer([error.status.name, error.errno])
"""
    assert run_python(script, world_of_child) == ["NO_RESOURCES", errno.EAGAIN]


@every_launcher
def test_a_job_that_is_killed_meanwhile_takes_what_was_started_and_refuses_the_rest(launch, workload, world):
    with Job.default().create_child() as job:
        started, failed, go = [], [], threading.Event()

        def spawn_on():
            while True:
                try:
                    started.append(launch(workload, ["workload", "pause"], job=job))
                except BadStateError as error:
                    failed.append(error)
                    return
                if len(started) >= 5:
                    go.set()

        threads = [threading.Thread(target=spawn_on) for _ in range(2)]
        for thread in threads:
            thread.start()
        go.wait(timeout=30)
        job.kill()
        for thread in threads:
            thread.join()
        assert [error.status for error in failed] == [Status.BAD_STATE] * 2
        job.wait_empty(timeout=30)
        assert all(process.wait(timeout=30) == -9 for process in started)
        for process in started:
            process.close()
    world.assert_unchanged()


@every_launcher
def test_50_threads_can_spawn_while_one_closes_descriptors(launch, workload, world):
    trouble, done = [], threading.Event()
    shared = [os.pipe() for _ in range(8)]

    def churn():
        at = 0
        while not done.is_set():
            slot = at = (at + 1) % len(shared)
            for fd in shared[slot]:
                os.close(fd)
            shared[slot] = os.pipe()

    def spawn_some():
        for at in range(4):
            own_read, own_write = os.pipe()
            try:
                actions = [CloneFd(shared[at][0], 7), CloneFd(own_read, 8), TransferFd(own_write, 9)]
                with launch.start(workload, ["workload", "exit", "3"], actions=actions, flags=SpawnFlags(0)) as process:
                    if process.wait(timeout=60) != 3:
                        trouble.append("wrong exit status")
            except InvalidArgsError as error:  # the shared descriptor was closed at that moment
                if "action 0" not in str(error):
                    trouble.append(error)
            except UnavailableError as error:  # its number was another thread's a moment ago, who is still cloning it
                if "action 2" not in str(error):
                    trouble.append(error)
            except BaseException as error:
                trouble.append(error)
            finally:
                os.close(own_read)

    closer = threading.Thread(target=churn)
    closer.start()
    spawners = [threading.Thread(target=spawn_some) for _ in range(50)]
    for thread in spawners:
        thread.start()
    for thread in spawners:
        thread.join()
    done.set()
    closer.join()
    for ends in shared:
        for fd in ends:
            os.close(fd)
    assert trouble == []
    world.assert_unchanged()
