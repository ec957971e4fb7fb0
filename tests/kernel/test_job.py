"""Job on cgroup v2: the tree, killing, waiting, policy, limits, and that no directory is left behind."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.features import unified_cgroup
from rig.world import World

from shoal.handles import cgroup, cgroup_limits, hierarchy, reaper
from shoal.handles.base import Rights
from shoal.handles.cgroup_marks import Creator
from shoal.handles.job import TREE_HEIGHT, Job
from shoal.handles.job_arguments import CONDITIONS
from shoal.spawning import spawn
from shoal.status import (
    AccessDeniedError,
    AlreadyExistsError,
    BadHandleError,
    BadStateError,
    InvalidArgsError,
    NotSupportedError,
    OutOfRangeError,
    WrongTypeError,
)

AVAILABLE, REASON, _ = cgroup.availability()
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"needs a writable cgroup v2 directory: {REASON}")


@pytest.fixture(scope="module", autouse=True)
def _a_thread_was_made() -> None:
    """The C library installs a signal handler of its own with the first thread, which `world` would notice."""
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


@pytest.fixture
def job() -> Iterator[Job]:
    with Job.default() as default, default.create_child() as made:
        yield made
        if not made.closed:
            made.kill()
            made.wait_empty(20)


class Member:
    """A shell that is put into a job before it runs `script`."""

    def __init__(self, job: Job, script: str) -> None:
        self.process = subprocess.Popen(["sh", "-c", f"read go; {script}"], stdin=subprocess.PIPE)
        file = os.open("cgroup.procs", os.O_WRONLY, dir_fd=job.fileno())
        os.write(file, str(self.process.pid).encode())
        os.close(file)
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.close()

    def wait(self) -> int:
        return self.process.wait(30)


@pytest.fixture
def member() -> Iterator[Callable[[Job, str], Member]]:
    made: list[Member] = []

    def make(job: Job, script: str) -> Member:
        made.append(Member(job, script))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.wait()


def directory_of(job: Job) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{job.fileno()}"))


def test_a_job_is_a_directory_that_goes_with_its_last_handle(world: World) -> None:
    with Job.default() as default:
        job = default.create_child()
        path = directory_of(job)
        assert path.parent == unified_cgroup()
        assert path.name == job.name
        assert job.name.startswith(f"shoal-{os.getpid()}-")
        copy = job.duplicate()
        job.close()
        assert path.is_dir()
        copy.close()
        assert not path.exists()
    del job, copy
    world.assert_unchanged()


def test_a_dropped_job_is_removed_too(world: World) -> None:
    with Job.default() as default:
        path = directory_of(default.create_child())
        gc.collect()
        assert not path.exists()
    world.assert_unchanged()


def test_children_are_removed_before_their_parent_in_whatever_order_they_are_closed(world: World) -> None:
    with Job.default() as default:
        outer = default.create_child()
        inner = outer.create_child("inner")
        path = directory_of(outer)
        outer.close()
        assert (path / "inner").is_dir()
        assert inner.processes() == []
        inner.close()
        assert not path.exists()
    del outer, inner
    world.assert_unchanged()


def test_a_job_closed_while_something_runs_in_it_is_removed_when_that_ends(member: Callable[[Job, str], Member], world: World) -> None:
    with Job.default() as default:
        job = default.create_child()
        path = directory_of(job)
        running = member(job, "exec sleep 60")
        job.close()
        assert reaper.pending() == 1
        assert path.is_dir()
        running.process.kill()
        running.wait()
        deadline = time.monotonic() + 20
        while reaper.pending():
            assert time.monotonic() < deadline
            reaper.sweep()
        assert not path.exists()
    del job
    world.assert_unchanged()


def test_processes_are_those_directly_in_the_job(job: Job, member: Callable[[Job, str], Member]) -> None:
    inner = job.create_child("inner")
    outer_one, inner_one = member(job, "exec sleep 60"), member(inner, "exec sleep 60")
    assert job.processes() == [outer_one.process.pid]
    assert inner.processes() == [inner_one.process.pid]
    assert sorted(job.processes(recursive=True)) == sorted([outer_one.process.pid, inner_one.process.pid])
    inner.close()


def test_an_ended_process_is_not_listed_even_before_it_is_reaped(job: Job, member: Callable[[Job, str], Member]) -> None:
    one = member(job, "exit 0")
    os.waitid(os.P_PID, one.process.pid, os.WEXITED | os.WNOWAIT)
    job.wait_empty(20)
    assert job.processes() == []


def test_children_are_listed_oldest_first_with_the_rights_of_the_handle(job: Job) -> None:
    made = [job.create_child(name) for name in ("zebra", "ant", "mole")]
    with job.duplicate(job.rights & ~Rights.DESTROY) as less:
        children = less.children()
        assert [child.name for child in children] == ["zebra", "ant", "mole"]
        assert {child.rights for child in children} == {less.rights}
        for child in children:
            child.close()
    for child in made:
        child.close()
    assert job.children() == []


def test_kill_ends_the_whole_tree_whatever_forks_meanwhile(job: Job, member: Callable[[Job, str], Member], world: World) -> None:
    inner = job.create_child()
    fork = "i=0; while [ $i -lt 300 ]; do (setsid sleep 60 &) ; i=$((i+1)); done; exec sleep 60"
    members = [member(job, fork), member(inner, fork)]
    while len(job.processes(recursive=True)) < 20:
        os.sched_yield()
    job.kill()
    job.wait_empty(30)
    assert job.processes(recursive=True) == []
    assert [one.wait() for one in members] == [-signal.SIGKILL] * 2
    job.kill()
    inner.close()


def test_nothing_can_be_put_into_a_killed_job(job: Job) -> None:
    inner = job.create_child()
    place = job.placement("test")
    assert not place.is_revoked()
    job.kill()
    assert place.is_revoked()
    for dead in (job, inner):
        with pytest.raises(BadStateError, match="killed"):
            dead.placement("spawn()")
        with pytest.raises(BadStateError):
            dead.create_child()
        with pytest.raises(BadStateError):
            dead.set_policy({"new_process": "deny"})
        with pytest.raises(BadStateError):
            dead.set_limits(pids=1)
        dead.kill()
    inner.close()


def test_a_kill_is_seen_by_another_process_that_holds_the_job(job: Job, run_python: Callable[..., Any]) -> None:
    path = directory_of(job)
    script = """
from shoal.handles.job import Job
with Job._from_fd(os.open(args[0], os.O_RDONLY | os.O_DIRECTORY)) as job:
    job.kill()
    answer([job.name, job._backend.depth])
"""
    assert run_python(script, str(path)) == [job.name, 1]
    with pytest.raises(BadStateError):
        job.placement("spawn()")
    assert path.is_dir()


def test_wait_empty_wakes_up_when_the_last_process_ends(job: Job, member: Callable[[Job, str], Member]) -> None:
    job.wait_empty(0)
    one = member(job, "exec sleep 60")
    with pytest.raises(TimeoutError, match=job.name):
        job.wait_empty(0.01)
    timer = threading.Timer(0.1, one.process.kill)
    timer.start()
    job.wait_empty("20s")
    assert one.wait() == -signal.SIGKILL
    timer.join()


def test_usage_counts_the_ended_too(job: Job, member: Callable[[Job, str], Member]) -> None:
    assert job.usage().user_s == 0
    one = member(job, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    assert one.wait() == 0
    usage = job.usage()
    assert usage.user_s + usage.system_s > 0.005


def test_the_default_job_is_our_own_cgroup_and_cannot_be_killed(world: World) -> None:
    with Job.default() as default:
        assert directory_of(default) == unified_cgroup()
        assert Rights.DESTROY not in default.rights
        assert os.getpid() in default.processes()
        with pytest.raises(AccessDeniedError, match="DESTROY"):
            default.kill()
        with pytest.raises(BadStateError):
            default.set_policy({"new_process": "deny"})
    world.assert_unchanged()


def test_each_operation_needs_its_right(job: Job) -> None:
    needed: dict[Rights, list[Callable[[Job], Any]]] = {
        Rights.MANAGE_JOB: [Job.create_child, lambda j: j.set_limits(pids=5)],
        Rights.MANAGE_PROCESS: [lambda j: j.placement("spawn()")],
        Rights.SET_POLICY: [lambda j: j.set_policy({"new_process": "deny"})],
        Rights.ENUMERATE: [Job.processes, Job.children],
        Rights.INSPECT: [Job.usage],
        Rights.DESTROY: [Job.kill],
        Rights.WAIT: [lambda j: j.wait_empty(0)],
        Rights.DUPLICATE: [Job.duplicate],
    }
    for right, operations in needed.items():
        with job.duplicate(job.rights & ~right) as less:
            for operation in operations:
                with pytest.raises(AccessDeniedError, match=right.name):
                    operation(less)
    assert not job.placement("test").is_revoked()


def test_a_closed_handle_refuses_everything(job: Job) -> None:
    job.close()
    for operation in (Job.create_child, Job.kill, Job.processes, Job.children, Job.usage, Job.wait_empty, Job.duplicate, Job.fileno):
        with pytest.raises(BadHandleError):
            operation(job)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/", "a\0b", "a\nb", "cgroup.procs", "memory.x", "cpu.stat", "x" * 256, "shoal-1-2-3", "é" * 128],
)
def test_an_impossible_name_is_an_invalid_argument(job: Job, name: str) -> None:
    with pytest.raises(InvalidArgsError):
        job.create_child(name)
    assert job.children() == []


def test_names_of_255_bytes_and_of_any_letters_are_fine(job: Job) -> None:
    for name in ("x" * 255, "wörk & Play", "cgroup", "a.b", "\udcff"):
        with job.create_child(name) as child:
            assert child.name == name
            assert directory_of(child).name == name


def test_a_name_taken_is_an_error_and_free_again_after_the_job_is_gone(job: Job) -> None:
    first = job.create_child("once")
    with pytest.raises(AlreadyExistsError, match="once"):
        job.create_child("once")
    first.close()
    job.create_child("once").close()


def test_the_name_of_a_job_is_text(job: Job) -> None:
    with pytest.raises(TypeError):
        job.create_child(b"bytes")  # type: ignore[arg-type]


def test_the_tree_is_32_levels_high(world: World) -> None:
    levels = [Job.default()]
    try:
        for _ in range(TREE_HEIGHT):
            levels.append(levels[-1].create_child("level"))
        with pytest.raises(OutOfRangeError):
            levels[-1].create_child()
    finally:
        while levels:
            levels.pop().close()
    world.assert_unchanged()


def test_a_policy_is_for_empty_jobs_and_is_inherited(job: Job, member: Callable[[Job, str], Member]) -> None:
    assert not job.placement("test").deny_new_process
    child = job.create_child()
    with pytest.raises(BadStateError):
        job.set_policy({"new_process": "deny"})
    one = member(child, "exec sleep 60")
    with pytest.raises(BadStateError):
        child.set_policy({"new_process": "deny"})
    one.process.kill()
    one.wait()
    child.wait_empty(20)
    child.close()
    job.set_policy({"new_process": "allow", "new_vmo": "allow"})
    assert not job.placement("test").deny_new_process
    job.set_policy({"new_process": "deny"})
    assert job.placement("test").deny_new_process
    job.set_policy({"new_process": "deny"})
    with pytest.raises(AlreadyExistsError):
        job.set_policy({"new_process": "allow"})
    with job.create_child() as late:
        assert late.placement("test").deny_new_process
        with pytest.raises(AlreadyExistsError):
            late.set_policy({"new_any": "allow"})


@pytest.mark.parametrize("condition", [condition for condition in CONDITIONS if condition != "new_process"])
def test_a_condition_that_linux_cannot_enforce_can_be_allowed_but_not_denied(job: Job, condition: str) -> None:
    job.set_policy({condition: "allow"})
    with pytest.raises(NotSupportedError, match=condition):
        job.set_policy({"new_process": "deny", condition: "deny"})
    assert not job.placement("test").deny_new_process, "all or nothing"


def test_unknown_words_of_a_policy_are_corrected(job: Job) -> None:
    with pytest.raises(InvalidArgsError, match="did you mean 'new_process'"):
        job.set_policy({"new_proces": "deny"})
    with pytest.raises(InvalidArgsError, match="did you mean 'new_process'"):
        job.set_policy({"NEW_PROCESS": "deny"})
    with pytest.raises(NotSupportedError, match="did you mean 'deny'"):
        job.set_policy({"new_process": "denny"})  # type: ignore[dict-item]
    with pytest.raises(NotSupportedError):
        job.set_policy({"new_process": "kill"})  # type: ignore[dict-item]
    with pytest.raises(InvalidArgsError):
        job.set_policy({})


@pytest.mark.parametrize(
    "limits",
    [{"memory": "much"}, {"memory": -1}, {"swap": "-1"}, {"pids": -1}, {"cpus": 0}, {"cpus": -1.0}, {"cpus": math.nan}, {"cpus": math.inf}],
)
def test_an_impossible_limit_is_an_invalid_argument(job: Job, limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgsError):
        job.set_limits(**limits)


@pytest.mark.parametrize("limits", [{"memory": 1.5}, {"pids": "3"}, {"pids": True}, {"cpus": "1"}, {"swap": b"1"}])
def test_a_limit_of_the_wrong_type_is_a_type_error(job: Job, limits: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        job.set_limits(**limits)


@pytest.mark.parametrize(("limit", "value", "file", "shown"), [
    ("memory", "64M", "memory.max", "67108864"),
    ("swap", 0, "memory.swap.max", "0"),
    ("pids", 20, "pids.max", "20"),
    ("cpus", 1.5, "cpu.max", "150000 100000"),
])  # fmt: skip
def test_a_limit_is_written_or_refused_with_the_reason(job: Job, limit: str, value: object, file: str, shown: str) -> None:
    controller = file.partition(".")[0]
    own = unified_cgroup()
    assert own is not None
    if controller in (own / "cgroup.controllers").read_text().split():
        job.set_limits(**{limit: value})  # type: ignore[arg-type]
        assert (directory_of(job) / file).read_text().strip() == shown
    else:
        with pytest.raises(NotSupportedError, match=rf"{controller}.*(v1|Delegate=yes|kernel)"):
            job.set_limits(**{limit: value})  # type: ignore[arg-type]
    job.set_limits()


def test_a_controller_is_switched_on_from_the_top_down(world: World) -> None:
    """With whatever controller this machine has to give."""
    own = unified_cgroup()
    assert own is not None
    offered = (own / "cgroup.controllers").read_text().split()
    enabled = (own / "cgroup.subtree_control").read_text().split()
    free = [controller for controller in offered if controller not in enabled and controller in ("hugetlb", "misc", "rdma")]
    if not free:
        pytest.skip("needs a cgroup v2 controller that nobody uses")
    with Job.default() as default, default.create_child() as outer, outer.create_child() as inner, inner.create_child() as leaf:
        try:
            cgroup_limits._enable_above(leaf.fileno(), leaf.name, free[:1])
            assert free[0] in (directory_of(leaf) / "cgroup.controllers").read_text().split()
        finally:
            for path in (directory_of(inner), directory_of(outer), own):
                with contextlib.suppress(OSError):
                    (path / "cgroup.subtree_control").write_text(f"-{free[0]}")
    assert (own / "cgroup.subtree_control").read_text().split() == enabled
    world.assert_unchanged()


def test_a_program_can_make_room_for_limits(job: Job, run_python: Callable[..., Any]) -> None:
    """It moves into a leaf, and its jobs stay where they were."""
    script = """
import subprocess
from shoal.handles import cgroup_limits
from shoal.handles.job import Job
with open(args[0] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
child = subprocess.Popen(["sleep", "60"])
with Job.default() as default:
    before = os.readlink(f"/proc/self/fd/{default.fileno()}")
    cgroup_limits.make_room(default.fileno())
    left = open(args[0] + "/cgroup.procs").read()
    members = default.processes()
    children = default.children()
    with Job.default() as again, again.create_child() as made:
        after = os.readlink(f"/proc/self/fd/{again.fileno()}")
        cgroup_limits.make_room(default.fileno())
        below = os.readlink(f"/proc/self/fd/{made.fileno()}")
own = open("/proc/self/cgroup").read().rpartition("0::")[2].strip()
child.kill()
child.wait()
answer([before, left, members == [os.getpid(), child.pid], len(children), after, os.path.dirname(below), own])
"""
    path = str(directory_of(job))
    before, left, members_are_known, children, after, above, own = run_python(script, path)
    assert before == after == above == path
    assert left == ""
    assert members_are_known
    assert children == 0
    assert own.endswith("-self")
    assert job.processes(recursive=True) == []


def test_a_cgroup_shared_with_strangers_is_left_alone(job: Job, member: Callable[[Job, str], Member]) -> None:
    grandchild = member(job, "sleep 60 & wait")
    while len(job.processes()) < 2:
        os.sched_yield()
    before = sorted(job.processes())
    with pytest.raises(NotSupportedError, match="shares"):
        cgroup_limits.make_room(job.fileno())
    assert sorted(job.processes()) == before
    assert job.children() == []
    del grandchild


def test_what_a_killed_program_left_is_removed_by_the_next(run_python: Callable[..., Any], world: World) -> None:
    script = """
import signal
from shoal.handles.job import Job
jobs = [Job.default()]
for name in (None, "named", None):
    jobs.append(jobs[-1].create_child(name))
named = jobs[0].create_child("shoal test leftover")
print(jobs[1].name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", "import os\n" + script], stdout=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    own = unified_cgroup()
    assert own is not None
    assert (own / done.stdout.strip() / "named").is_dir()
    alive = Job.default()
    mine = alive.create_child()
    assert run_python("from shoal.handles.job import Job\nwith Job.default() as d, d.create_child() as c: answer(c.name)")
    assert not (own / done.stdout.strip()).exists()
    assert not (own / "shoal test leftover").exists()
    assert directory_of(mine).is_dir(), "its maker lives"
    mine.close()
    alive.close()
    world.assert_unchanged()


def test_jobs_never_closed_are_removed_at_exit(run_python: Callable[..., Any], world: World) -> None:
    script = """
from shoal.handles.job import Job
outer = Job.default().create_child()
inner = outer.create_child()
cycle = [inner]
cycle.append(cycle)
answer(outer.name)
"""
    name = run_python(script)
    own = unified_cgroup()
    assert own is not None
    assert not (own / name).exists()
    world.assert_unchanged()


def test_a_forked_child_does_not_remove_its_parents_jobs(job: Job) -> None:
    path = directory_of(job)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            job.close()
            gc.collect()
            cgroup._remove_at_exit()
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.is_dir()


def test_a_job_in_use_by_another_process_outlives_its_maker(world: World) -> None:
    """Neither the maker nor a later program takes it away while somebody holds it."""
    make = """
from shoal.handles.job import Job
job = Job.default().create_child()
print(os.readlink(f"/proc/self/fd/{job.fileno()}"), flush=True)
input()
"""
    use = """
from shoal.handles.job import Job
job = Job._from_fd(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY))
print("held", flush=True)
input()
job.create_child().close()
print("used", flush=True)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run(script: str, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import os, sys\n" + script, *args]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    with run(make) as maker:
        assert maker.stdout is not None
        path = Path(maker.stdout.readline().strip())
        with run(use, str(path)) as user:
            assert user.stdout is not None
            assert user.stdout.readline() == "held\n"
            maker.communicate("\n")
            assert path.is_dir()
            with run("from shoal.handles.job import Job\nJob.default().create_child()") as later:
                assert later.wait() == 0
            assert path.is_dir()
            assert user.communicate("\n")[0] == "used\n"
            assert user.returncode == 0
    with run("from shoal.handles.job import Job\nJob.default().create_child()") as later:
        assert later.wait() == 0
    assert not path.exists()
    world.assert_unchanged()


def test_a_handed_over_job_stays_until_something_ran_in_it(member: Callable[[Job, str], Member], world: World) -> None:
    with Job.default() as default:
        job = default.create_child()
        path = directory_of(job)
        fd = job.consume()
        assert job.closed
        assert path.is_dir()
        given = Job._from_fd(fd)
        one = member(given, "exit 0")
        assert one.wait() == 0
        given.close()
        deadline = time.monotonic() + 20
        while reaper.pending():
            assert time.monotonic() < deadline
            reaper.sweep()
        assert not path.exists()
    del job, given
    world.assert_unchanged()


def test_one_directory_has_one_backend_however_it_was_reached(job: Job) -> None:
    with Job._from_fd(os.open(directory_of(job), os.O_RDONLY | os.O_DIRECTORY)) as again:
        assert again._backend is job._backend
        assert again.name == job.name


def test_a_directory_of_another_file_system_is_no_job(tmp_path: Path, closed_fd: int) -> None:
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (tmp_path / name).touch()
    for path in (tmp_path, Path("/dev/null"), tmp_path / "cgroup.procs"):
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(WrongTypeError):
            Job._from_fd(fd)
        os.close(fd)
    with pytest.raises(BadHandleError):
        Job._from_fd(closed_fd)


def test_a_removed_directory_is_a_bad_state(job: Job) -> None:
    os.rmdir(directory_of(job))
    with pytest.raises(BadStateError):
        job.placement("spawn()")
    with pytest.raises(BadStateError):
        job.create_child()
    assert job.processes() == []
    job.wait_empty(0)
    job.kill()


def test_threads_make_kill_and_drop_jobs_at_once(world: World) -> None:
    errors: list[BaseException] = []

    def work(default: Job) -> None:
        try:
            for _ in range(10):
                with default.create_child() as job, job.create_child("x") as inner:
                    job.kill()
                    with pytest.raises(BadStateError):
                        inner.create_child()
        except BaseException as error:
            errors.append(error)

    with Job.default() as default:
        threads = [threading.Thread(target=work, args=(default,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    del threads, thread
    world.assert_unchanged()


@pytest.mark.root
def test_an_ordinary_user_is_told_how_to_get_a_cgroup(run_python: Callable[..., Any]) -> None:
    script = """
from shoal.handles.cgroup import availability
from shoal.handles.job import Job
with Job.default() as default:
    answer([availability(), bool(default.rights), default.fileno() > 2])
"""
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    try:
        (available, reason, fix), _, opened = run_python(script, prefix=prefix)
    except AssertionError as error:
        if "Permission denied" in str(error) or "ModuleNotFoundError" in str(error):
            pytest.skip("the ordinary user cannot read the interpreter or the library here")
        raise
    assert not available
    assert "not writable" in reason
    assert "Delegate=yes" in fix
    assert opened


@pytest.mark.root
def test_without_proc_the_default_job_still_exists(run_python: Callable[..., Any]) -> None:
    script = """
import ctypes
from shoal.handles.base import Rights
from shoal.handles.cgroup import availability
from shoal.handles.job import Job
assert ctypes.CDLL(None).umount2(b"/proc", 2) == 0
with Job.default() as default:
    place = default.placement("spawn()")
    with Job._from_fd(os.dup(default.fileno())) as again:
        answer([availability()[0], [place.cgroup_fd, place.init_pidfd, place.deny_new_process], again.name])
"""
    assert run_python(script, prefix=("unshare", "--mount")) == [False, [None, None, False], "(none)"]


@pytest.mark.parametrize(
    ("own", "root", "below"),
    [
        ("/", "/", ""),
        ("/a/b", "/", "a/b"),
        ("/a/b", "/a", "b"),
        ("/a/b", "/a/b", ""),
        ("/ab", "/a", None),
        ("/a", "/a/b", None),
        ("/../x", "/", None),
        ("/", "/..", None),
    ],
)
def test_our_cgroup_is_found_below_what_is_mounted(own: str, root: str, below: str | None) -> None:
    assert hierarchy._below(own, root) == below


@pytest.mark.root
def test_our_cgroup_is_found_inside_a_cgroup_namespace(job: Job, run_python: Callable[..., Any]) -> None:
    script = """
import subprocess
from shoal.handles.hierarchy import find_home
with open(args[0] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
inside = "import sys; sys.path[:0] = %r\\nfrom shoal.handles.hierarchy import find_home\\nprint(find_home()[0])" % sys.path
mounted = "mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec " + sys.executable + " -c \\"$0\\""
answer([find_home()[0]] + [
    subprocess.run(["unshare", "--cgroup", "--mount", *command], capture_output=True, text=True).stdout.strip()
    for command in (["sh", "-c", mounted, inside], [sys.executable, "-c", inside])
])
"""
    outside, inside, foreign = run_python(script, str(directory_of(job)))
    assert outside == str(directory_of(job))
    assert inside == "/sys/fs/cgroup"
    assert "not visible" in foreign


def test_a_creator_is_known_by_pid_and_start_time() -> None:
    current = Creator.current()
    assert not current.is_dead()
    assert Creator.parse(str(current)) == current
    assert current._replace(start=current.start - 1).is_dead()
    assert Creator.parse("nonsense") is None
    assert Creator.parse("1.2") is None
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with open(f"/proc/{child.pid}/stat") as file:
        start = int(file.read().rpartition(")")[2].split()[19])
    assert current._replace(pid=child.pid, start=start).is_dead(), "a zombie holds nothing"
    child.wait()


def test_a_creator_whose_first_thread_has_ended_lives(workload: str) -> None:
    with subprocess.Popen([workload, "leave-to-thread", "0"], stdin=subprocess.PIPE) as child:
        fields: list[str] = []
        deadline = time.monotonic() + 20
        while fields[:1] != ["Z"] and time.monotonic() < deadline:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        assert fields[0] == "Z"
        assert not Creator.current()._replace(pid=child.pid, start=int(fields[19])).is_dead()


def test_a_spawned_cell_is_in_its_job_and_dies_with_it(job: Job, workload: str) -> None:
    with spawn(workload, ["workload", "pause"], job=job) as process:
        assert process.pid in job.processes()
        assert {os.readlink(f"/proc/{pid}/ns/pid") for pid in job.processes()} == {os.readlink(f"/proc/{process.pid}/ns/pid")}
        job.kill()
        assert process.wait(30) == -signal.SIGKILL
    job.wait_empty(30)
    with pytest.raises(BadStateError):
        spawn(workload, ["workload", "exit", "0"], job=job)
