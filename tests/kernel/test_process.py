"""Process and the reaper: waiting, signals, what is told of a process, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from rig.features import has
from rig.world import World

from shoal.flags import SpawnFlags
from shoal.handles import reaper
from shoal.handles.base import Rights
from shoal.handles.process import Process, ProcessInfo
from shoal.handles.reaper import Keeper
from shoal.spawning import spawn
from shoal.status import AccessDeniedError, BadHandleError, BadStateError, InvalidArgsError, Status, WrongTypeError


def start(*command: str, name: str | None = None, keeper: Keeper | None = None) -> Process:
    """A child of the standard library's making, as shoal.spawn() hands it out."""
    pid = os.posix_spawnp(command[0], command, os.environ)
    return Process._started(os.pidfd_open(pid), pid, name or command[0], keeper)


def start_keeper(*command: str) -> Keeper:
    pid = os.posix_spawnp(command[0], command, os.environ)
    return Keeper(os.pidfd_open(pid), pid)


@pytest.fixture(scope="module", autouse=True)
def _a_thread_was_made() -> None:
    """The C library installs a signal handler of its own with the first thread, which `world` would notice."""
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


@pytest.fixture
def sleeper() -> Iterator[Process]:
    process = start("sleep", "60")
    yield process
    if not process.closed:
        process.kill()
        with contextlib.suppress(BadStateError):
            process.wait()
        process.close()


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_an_exit_status_is_the_return_code(status: int, world: World) -> None:
    with start("sh", "-c", f"exit {status}") as process:
        assert process.wait() == status
        assert process.returncode == process.poll() == process.wait(0) == status
        info = process.info()
        assert (info.state, info.returncode, info.reason) == ("exited", status, "exited")
    world.assert_unchanged()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGRTMIN])
def test_a_deadly_signal_is_a_negative_return_code(number: int) -> None:
    with start("sh", "-c", f"kill -{int(number)} $$") as process:
        assert process.wait("5s") == -number
        assert process.info().reason == "signaled"


def test_a_running_process_is_told_as_running(sleeper: Process) -> None:
    before = time.time()
    assert sleeper.poll() is None
    assert sleeper.returncode is None
    info = sleeper.info()
    assert (info.state, info.returncode, info.reason) == ("running", None, None)
    assert abs(info.started_at - before) < 5
    assert info.usage is not None
    assert info.usage.max_memory_bytes > 0
    assert "running" in repr(sleeper)


def test_a_stopped_process_is_told_as_stopped_and_then_as_running(sleeper: Process) -> None:
    sleeper.send_signal(signal.SIGSTOP)
    await_state(sleeper, "stopped")
    assert sleeper.poll() is None
    sleeper.send_signal(signal.SIGCONT)
    await_state(sleeper, "running")


def await_state(process: Process, state: str) -> None:
    deadline = time.monotonic() + 10
    while process.info().state != state:
        assert time.monotonic() < deadline, f"never {state}"
        os.sched_yield()


def test_what_an_ended_process_used_is_known() -> None:
    with start(sys.executable, "-c", "for i in range(2_000_000): pass") as process:
        assert process.wait() == 0
        usage = process.info().usage
        assert usage is not None
        assert usage.user_s > 0.01
        assert usage.max_memory_bytes > 1 << 20


def test_the_timeout_names_the_process(sleeper: Process) -> None:
    with pytest.raises(TimeoutError, match=rf"{sleeper.pid} \(sleep\)"):
        sleeper.wait(0.01)
    for over in (0, -1, "1ms"):
        with pytest.raises(TimeoutError):
            sleeper.wait(over)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        sleeper.wait("soon")
    with pytest.raises(TypeError):
        sleeper.wait(object())  # type: ignore[arg-type]


def test_a_timeout_takes_its_time(sleeper: Process) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        sleeper.wait(0.1)
    assert 0.1 <= time.monotonic() - began < 5


def test_many_threads_get_the_same_status(world: World) -> None:
    for _ in range(20):
        process = start("sleep", "0.02")
        copies = [process.duplicate() for _ in range(4)]
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda one: one.wait(20), [process, *copies] * 4))
        assert answers == [0] * 20
        for handle in (process, *copies):
            handle.close()
    world.assert_unchanged()


def test_a_wait_does_not_block_another_threads_poll(sleeper: Process) -> None:
    answer: list[int] = []
    waiter = threading.Thread(target=lambda: answer.append(sleeper.wait()))
    waiter.start()
    began = time.monotonic()
    for _ in range(100):
        assert sleeper.poll() is None
    assert time.monotonic() - began < 1
    sleeper.kill()
    waiter.join()
    assert answer == [-signal.SIGKILL]


def test_closing_does_not_disturb_a_wait_that_has_begun(world: World) -> None:
    process = start("sleep", "60")
    answer: list[int] = []
    killer = process.duplicate()
    waiter = threading.Thread(target=lambda wait: answer.append(wait()), args=(process.wait,))
    waiter.start()
    while not is_waiting(waiter):
        os.sched_yield()
    process.close()
    with pytest.raises(BadHandleError):
        process.wait(0)
    fillers = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(10)]  # would take the number if it were free
    killer.kill()
    waiter.join(20)
    assert answer == [-signal.SIGKILL]
    for fd in fillers:
        os.close(fd)
    killer.close()
    del process, killer, waiter
    world.assert_unchanged()


def is_waiting(thread: threading.Thread) -> bool:
    with open(f"/proc/self/task/{thread.native_id}/wchan") as file:
        where = file.read()
    return where == "do_wait" or "poll" in where


def test_a_signal_to_an_ended_process_is_refused_and_a_kill_is_fine() -> None:
    with start("true") as process:
        process.wait()
        with pytest.raises(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.kill()
        process.terminate()


def test_a_signal_to_a_zombie_is_refused() -> None:
    with start("true") as process:
        os.waitid(os.P_PIDFD, process.fileno(), os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            process.send_signal(0)
        assert process.wait() == 0


def test_an_impossible_signal_is_an_invalid_argument(sleeper: Process) -> None:
    with pytest.raises(InvalidArgsError):
        sleeper.send_signal(4711)


def test_terminate_can_be_caught() -> None:
    with start("sh", "-c", "trap 'exit 9' TERM; echo $$ >&2; while :; do sleep 0.01; done") as process:
        time.sleep(0.2)  # nothing tells from outside when the trap is set
        process.terminate()
        assert process.wait(20) == 9


def test_each_operation_needs_its_right(sleeper: Process) -> None:
    needed: dict[Rights, list[Callable[[Process], Any]]] = {
        Rights.WAIT: [Process.poll, lambda p: p.wait(0)],
        Rights.INSPECT: [Process.info],
        Rights.SIGNAL: [lambda p: p.send_signal(0)],
        Rights.DESTROY: [Process.kill, Process.terminate],
        Rights.DUPLICATE: [Process.duplicate],
    }
    for right, operations in needed.items():
        with sleeper.duplicate(sleeper.rights & ~right) as less:
            for operation in operations:
                with pytest.raises(AccessDeniedError) as caught:
                    operation(less)
                assert caught.value.status is Status.ACCESS_DENIED
    assert sleeper.poll() is None


def test_a_duplicate_cannot_gain_rights(sleeper: Process) -> None:
    with sleeper.duplicate(Rights.WAIT | Rights.DUPLICATE) as less:
        with pytest.raises(InvalidArgsError):
            less.duplicate(Rights.WAIT | Rights.DESTROY)
        with less.duplicate() as same:
            assert same.rights == less.rights


def test_duplicates_share_the_status_after_the_first_is_closed() -> None:
    process = start("sh", "-c", "exit 3")
    copy = process.duplicate()
    assert process.wait() == 3
    process.close()
    assert copy.returncode == 3
    assert copy.wait() == 3
    copy.close()


def test_a_closed_handle_refuses_everything() -> None:
    process = start("true")
    process.wait()
    process.close()
    process.close()
    for operation in (Process.poll, Process.wait, Process.info, Process.kill, Process.duplicate, Process.fileno):
        with pytest.raises(BadHandleError):
            operation(process)
    assert process.returncode == 0
    assert process.name == "true"


def test_the_name_is_cut_at_31_bytes() -> None:
    with start("true", name="x" * 40) as process, start("true", name="é" * 16) as other:
        assert process.name == "x" * 31
        assert os.fsencode(other.name) == ("é" * 16).encode()[:31]  # bytes are cut, in the middle of a character too
        process.wait()
        other.wait()


def test_a_dropped_process_leaves_no_zombie(world: World) -> None:
    pids = []
    for _ in range(50):
        process = start("true")
        pids.append(process.pid)
        del process
    gc.collect()
    deadline = time.monotonic() + 20
    while reaper.pending():
        assert time.monotonic() < deadline
        reaper.sweep()
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    world.assert_unchanged()


def test_a_process_closed_while_it_runs_is_reaped_later_and_runs_on(world: World) -> None:
    process = start("sleep", "60")
    watch = process.duplicate(Rights.WAIT | Rights.DESTROY)
    process.close()
    assert reaper.pending() == 1
    reaper.sweep()
    assert watch.poll() is None
    watch.kill()
    assert watch.wait(20) == -signal.SIGKILL
    assert reaper.pending() == 0
    watch.close()
    world.assert_unchanged()


def test_the_status_taken_by_the_reaper_reaches_the_duplicates() -> None:
    process = start("sh", "-c", "exit 5")
    copy = process.duplicate()
    process.close()
    while reaper.pending():
        reaper.sweep()
    assert copy.returncode == 5
    assert copy.wait() == 5
    copy.close()


def test_a_consumed_process_is_reaped_here_all_the_same(world: World) -> None:
    process = start("true")
    fd = process.consume()
    assert process.closed
    assert process.consume() == -1
    os.close(fd)
    while reaper.pending():
        reaper.sweep()
    world.assert_unchanged()


def test_500_children_without_a_signal_handler(world: World) -> None:
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    processes = [start("true") for _ in range(500)]
    assert [process.wait(60) for process in processes] == [0] * 500
    for process in processes:
        process.close()
    del processes, process
    world.assert_unchanged()


def test_waiting_works_on_descriptors_above_1024(run_python: Callable[..., Any]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip("needs a hard limit of 3,000 descriptors")
    assert (
        run_python(
            """
import fcntl, resource
from shoal.handles.process import Process
resource.setrlimit(resource.RLIMIT_NOFILE, (3000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
pid = os.posix_spawnp("sh", ["sh", "-c", "exit 4"], os.environ)
answer(Process._started(fcntl.fcntl(os.pidfd_open(pid), fcntl.F_DUPFD_CLOEXEC, 2500), pid, "sh").wait(20))
"""
        )
        == 4
    )


def test_a_stolen_status_is_said_to_be_lost_or_known_from_the_kernel() -> None:
    with start("sh", "-c", "exit 6") as process:
        os.waitpid(process.pid, 0)
        if kernel_tells_exits():
            assert process.wait(5) == 6
            assert process.info() == ProcessInfo("exited", 6, "exited", process.info().started_at, None)
        else:
            for _ in range(2):
                with pytest.raises(BadStateError, match="lost"):
                    process.wait(5)
            with pytest.raises(BadStateError):
                process.poll()
            assert process.returncode is None
            assert process.info().reason == "lost"


def kernel_tells_exits() -> bool:
    """PIDFD_INFO_EXIT came with Linux 6.15."""
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1].split("-")[0])) >= (6, 15)


def test_a_lost_status_is_an_error_not_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels that keep no exit status with the pidfd."""
    monkeypatch.setattr("shoal.handles.pidfd._PIDFD_GET_INFO", 0)
    with start("true") as process:
        os.waitpid(process.pid, 0)
        for _ in range(2):
            with pytest.raises(BadStateError, match="lost"):
                process.wait(5)
        with pytest.raises(BadStateError):
            process.poll()
        info = process.info()
        assert (process.returncode, info.state, info.returncode, info.reason) == (None, "exited", None, "lost")


def test_waiting_works_where_sigchld_is_ignored(run_python: Callable[..., Any]) -> None:
    script = """
import signal
from shoal.handles.process import Process
from shoal.status import BadStateError
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
reader, writer = os.pipe()
pid = os.posix_spawnp("sh", ["sh", "-c", "read go; exit 8"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)])
process = Process._started(os.pidfd_open(pid), pid, "sh")  # before its end: an ignored child is gone at once
os.write(writer, b"go\\n")
try:
    answer(process.wait(20))
except BadStateError:
    answer("lost")
"""
    assert run_python(script) == (8 if kernel_tells_exits() else "lost")


def test_waiting_works_while_the_host_waits_for_children_of_its_own(world: World) -> None:
    done = subprocess.Popen(["true"])
    with start("sh", "-c", "exit 2") as process:
        assert process.wait() == 2
        assert done.wait() == 0
    world.assert_unchanged()


def test_an_interrupt_while_waiting_loses_nothing(sleeper: Process) -> None:
    main = threading.main_thread()

    def interrupt() -> None:
        while not is_waiting(main):
            os.sched_yield()
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        sleeper.wait(30)
    thread.join()
    sleeper.kill()
    assert sleeper.wait(20) == -signal.SIGKILL


def test_a_signal_handler_does_not_end_a_wait() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with start("sleep", "0.2") as process:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
            timer.start()
            assert process.wait(20) == 0
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1] * 2


def test_a_forked_child_leaves_the_parents_children_alone(world: World) -> None:
    process, dropped = start("sleep", "60"), start("sleep", "60")
    other = dropped.duplicate()
    dropped.close()
    assert reaper.pending() == 1
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            assert reaper.pending() == 0
            reaper.sweep()
            process.kill()
            try:
                code: object = process.wait(20)
            except BadStateError:
                code = "lost"
            process.close()
            os.write(writer, repr(code).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    assert os.read(reader, 100) in (b"-9", b"'lost'")
    os.close(reader)
    assert reaper.pending() == 1
    assert process.wait(20) == -signal.SIGKILL
    other.kill()
    assert other.wait(20) == -signal.SIGKILL
    assert reaper.pending() == 0
    process.close()
    other.close()
    world.assert_unchanged()


def test_a_handed_over_process_is_waited_for_but_not_reaped(world: World) -> None:
    popen = subprocess.Popen(["sh", "-c", "exit 11"])
    with Process._from_fd(os.pidfd_open(popen.pid)) as process:
        assert process.pid == popen.pid
        assert process.wait(20) == 11
    assert popen.wait() == 11
    world.assert_unchanged()


def test_the_status_of_a_grandchild_is_known_where_it_can_be_seen(world: World) -> None:
    reader, writer = os.pipe()
    shell = subprocess.Popen(["sh", "-c", "sh -c 'exit 13' & echo $!; read x; exit 0"], stdout=writer, stdin=subprocess.PIPE)
    assert shell.stdin is not None
    try:
        grandchild = int(os.read(reader, 100))
        try:
            pidfd = os.pidfd_open(grandchild)
        except ProcessLookupError:
            pytest.skip("the shell reaped it already")
        with Process._from_fd(pidfd) as process:
            assert process.wait(20) == 13
    finally:
        shell.stdin.close()
        shell.wait()
        os.close(reader)
        os.close(writer)
    world.assert_unchanged()


def test_a_handle_made_of_something_else_is_of_the_wrong_type(closed_fd: int, world: World) -> None:
    for path in ("/dev/null", "/", f"/proc/{os.getpid()}"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with pytest.raises(WrongTypeError):
            Process._from_fd(fd)
        os.close(fd)  # still ours
    with pytest.raises(BadHandleError):
        Process._from_fd(closed_fd)
    world.assert_unchanged()


def test_a_pid_used_again_is_not_mistaken(world: World) -> None:
    """A dead process's handle never signals or describes the process that got its number."""
    if not has("root"):
        pytest.skip("needs root to choose a pid")
    first = start("true")
    first.wait()
    second = subprocess.Popen(["unshare", "-p", "--fork", "true"])  # keeps the machine's pid counter moving
    second.wait()
    try:
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(first.pid - 1))
    except OSError:
        pytest.skip("needs CONFIG_CHECKPOINT_RESTORE")
    with start("sleep", "60") as reused:
        if reused.pid != first.pid:
            reused.kill()
            reused.wait()
            pytest.skip("somebody else got the number")
        first.kill()
        with pytest.raises(ProcessLookupError):
            first.send_signal(signal.SIGKILL)
        assert first.info().state == "exited"
        assert reused.poll() is None
        reused.kill()
        reused.wait()
    first.close()
    world.assert_unchanged()


def test_the_keeper_is_reaped_after_its_program(world: World) -> None:
    keeper = start_keeper("sleep", "0.05")
    with start("true", keeper=keeper) as process:
        assert process._keeper is keeper
        assert process.wait() == 0
        assert reaper.pending() == 1
        assert process._keeper is keeper
        keeper.wait(20)
        assert reaper.pending() == 0
    del keeper, process
    world.assert_unchanged()


def test_a_killed_keeper_is_reaped_by_a_sweep(world: World) -> None:
    keeper = start_keeper("sleep", "60")
    reaper.register(keeper)
    assert reaper.pending() == 1
    with pytest.raises(TimeoutError):
        keeper.wait(0.01)
    keeper.kill()
    while reaper.pending():
        reaper.sweep()
    keeper.kill()
    keeper.wait(0)
    assert keeper.fileno() == -1
    world.assert_unchanged()


def test_a_dropped_process_takes_its_keeper_along(world: World) -> None:
    process = start("sleep", "0.05", keeper=start_keeper("sleep", "0.1"))
    process.close()
    del process
    deadline = time.monotonic() + 20
    while reaper.pending():
        assert time.monotonic() < deadline
        reaper.sweep()
    world.assert_unchanged()


def test_a_sweep_costs_next_to_nothing_when_nothing_is_registered() -> None:
    assert reaper.pending() == 0
    best = min(timed(reaper.sweep, 10_000) for _ in range(5))
    assert best < 2e-6, f"{best * 1e6:.2f} us"  # 0.1 us on an idle machine


def test_a_sweep_does_not_look_at_every_living_process(world: World) -> None:
    processes = [start("sleep", "60") for _ in range(200)]
    copies = [process.duplicate() for process in processes]
    for process in processes:
        process.close()
    assert reaper.pending() == 200
    best = min(timed(reaper.sweep, 200) for _ in range(5))
    assert best < 50e-6, f"{best * 1e6:.1f} us"  # one epoll_wait; 200 waitid calls would take more
    for copy in copies:
        copy.kill()
    assert [copy.wait(20) for copy in copies] == [-signal.SIGKILL] * 200
    for copy in copies:
        copy.close()
    while reaper.pending():
        reaper.sweep()
    del processes, copies, process, copy
    world.assert_unchanged()


def timed(function: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - began) / count


def test_threads_drop_and_sweep_at_once(world: World) -> None:
    def work() -> None:
        for _ in range(25):
            start("true").close()
            reaper.sweep()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 20
    while reaper.pending():
        assert time.monotonic() < deadline
        reaper.sweep()
    del threads, thread
    world.assert_unchanged()


def test_exit_with_dropped_processes_is_silent(run_python: Callable[..., Any]) -> None:
    """run_python fails on anything a finalizer prints as an error, since warnings are errors there."""
    script = """
from shoal.handles.process import Process
made = [os.posix_spawnp("sleep", ["sleep", "0.01"], os.environ) for _ in range(5)]
held = [Process._started(os.pidfd_open(pid), pid, "sleep") for pid in made]
held[0].close()
answer(len(held))
"""
    assert run_python(script) == 5


def test_a_spawned_process_is_waited_for_and_its_cell_is_reaped(workload: str, world: World) -> None:
    for flags in (SpawnFlags.CLONE_NAMESPACE, SpawnFlags(0)):
        with spawn(workload, ["workload", "exit", "21"], flags=flags) as process:
            assert process.wait(30) == 21
            assert process.info().reason == "exited"
            if process._keeper is not None:
                process._keeper.wait(30)
        del process
    assert reaper.pending() == 0
    world.assert_unchanged()
