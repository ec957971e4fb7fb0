"""Whatever ends an executor, its zygote, a call or their owner: no process, descriptor, thread, namespace or file is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rig.world import descendants

from shoal import Sandbox, SandboxExecutor, ShoalError
from shoal.executor import BrokenSandboxError, PreloadError

PATIENCE_S = 60


@pytest.fixture(scope="module", autouse=True)
def what_is_opened_once():
    """It is kept, and nothing to be missed in any test."""
    with SandboxExecutor(max_workers=1, warm=0) as one:
        one.with_limits(output=0).run_code("print(1)")


def test_a_call_that_never_returns_is_ended_with_all_it_started(world):
    with SandboxExecutor(max_workers=1, warm=1) as one:
        code = "import os, signal\nfor n in range(3):\n    if os.fork() == 0: os.setsid(); break\n"
        code += "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass"
        call = one.with_limits(timeout=0.5).submit_code(code)
        error = call.exception(PATIENCE_S)
    assert isinstance(error, TimeoutError)
    assert (call.reason, error.reason) == ("wall_time", "wall_time")
    assert call.usage.user_s > 0
    world.assert_unchanged()


BAD_ENDS = [
    "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)\n",
    "import os, time\nif os.fork() == 0: time.sleep(600)\n",
    "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()",
    "import os; os.write(1, b'x' * 10000); os._exit(3)",
    "import ctypes; ctypes.string_at(0)",
    "import os; os.closerange(0, 99)",
    "import os; os.write(3, b'half')",
    "1 / 0",
]


def test_nothing_is_left_of_an_executor(world):
    with SandboxExecutor(max_workers=3, warm=3) as one:
        one.wait_ready(PATIENCE_S)
        for code in BAD_ENDS:
            one.submit_code(code)
        one.submit(time.sleep, 600).cancel()
    world.assert_unchanged()


def test_a_brother_that_a_call_makes_is_reaped(world):
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"pid = libc.syscall({56 if os.uname().machine == 'x86_64' else 220}, 0x8000 | 17, 0, 0, 0, 0)\n"  # CLONE_PARENT
        "if pid == 0: os._exit(0)\n"
    )
    with SandboxExecutor(Sandbox(seccomp="off"), max_workers=1, warm=1) as one:
        assert one.run_code(code, outputs=["pid"])["pid"] > 0
    world.assert_unchanged()


def test_an_executor_that_could_not_be_made_leaves_nothing(tmp_path, monkeypatch, world):
    (tmp_path / "raises_when_loaded.py").write_text("raise ValueError('not today')")
    monkeypatch.syspath_prepend(tmp_path)
    for arguments in ({"sandbox": Sandbox(read=["/no/such/place"])}, {"max_workers": 0}, {"preload": ["no_such_module_anywhere"]}):
        with pytest.raises((ValueError, OSError, ImportError, ShoalError)):
            SandboxExecutor(**arguments)
    with SandboxExecutor(preload=["raises_when_loaded"]) as one, pytest.raises(PreloadError):
        one.wait_ready(PATIENCE_S)
    with contextlib.suppress(ZeroDivisionError), SandboxExecutor(max_workers=2, warm=2) as one:
        one.submit(time.sleep, 0.1)
        raise ZeroDivisionError
    world.assert_unchanged()


def kill_and_wait(pid):
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], PATIENCE_S)
    finally:
        os.close(pidfd)


def test_a_zygote_that_dies_is_replaced_and_running_calls_go_on(world):
    with SandboxExecutor(max_workers=2, warm=2) as one:
        one.wait_ready(PATIENCE_S)
        running = one.submit(lambda: (time.sleep(0.5), "finished")[1])
        while not running.running():
            time.sleep(0.001)
        first = one.zygote_pid
        kill_and_wait(first)
        calls = [one.submit(pow, n, 2) for n in range(8)]
        assert [call.result(PATIENCE_S) for call in calls] == [n * n for n in range(8)]
        assert running.result(PATIENCE_S) == "finished"
        assert one.zygote_pid != first
    world.assert_unchanged()


def test_a_file_that_is_exchanged_while_an_executor_lives_is_seen_by_later_calls(tmp_path, world):
    granted, other = tmp_path / "granted", tmp_path / "other"
    granted.write_text("0")
    with SandboxExecutor(Sandbox(read=[granted]), max_workers=2, warm=0) as one:
        for number in range(3):
            other.write_text(str(number))
            other.rename(granted)
            assert [call.result(PATIENCE_S) for call in [one.submit(granted.read_text) for _ in range(4)]] == [str(number)] * 4
        granted.unlink()
        with pytest.raises(BrokenSandboxError, match=r"cannot open '.*/granted': .*No such file or directory"):
            one.submit(len, "").result(PATIENCE_S)
        granted.write_text("back")
        assert one.submit(granted.read_text).result(PATIENCE_S) == "back"
    world.assert_unchanged()


@pytest.mark.root  # a limit of its own takes a cgroup
def test_a_call_that_is_cancelled_while_the_zygote_dies_does_not_run(tmp_path, world):
    with SandboxExecutor(Sandbox(write=[tmp_path]), max_workers=1, warm=0) as one:
        one.wait_ready(PATIENCE_S)
        os.kill(one.zygote_pid, signal.SIGSTOP)
        call = one.with_limits(cpu_time=10).submit((tmp_path / "ran").touch)
        assert call.cancel()
        kill_and_wait(one.zygote_pid)
        assert call.wait_gone(PATIENCE_S)
        assert one.submit(os.listdir, tmp_path).result(PATIENCE_S) == []
    world.assert_unchanged()


def test_a_zygote_that_is_killed_again_and_again_loses_no_call_and_leaves_nothing(world):
    with SandboxExecutor(max_workers=2, warm=2) as one:
        one.wait_ready(PATIENCE_S)
        found = []
        for round_ in range(6):
            calls = [one.submit(pow, n, 2) for n in range(6)]
            pid = one.zygote_pid
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            found.append([call.result(PATIENCE_S) for call in calls])
            assert round_ < 6
        assert found == [[n * n for n in range(6)]] * 6
    world.assert_unchanged()


def test_a_preload_that_kills_the_zygote_is_an_error_and_no_loop(tmp_path, monkeypatch, world):
    (tmp_path / "dies_when_loaded.py").write_text(
        "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with SandboxExecutor(preload=["dies_when_loaded"], max_workers=1) as one:
        call = None
        with contextlib.suppress(BrokenSandboxError):
            call = one.submit(len, "")
        with pytest.raises(BrokenSandboxError, match=r"SIGKILL.*last words.*times in a row"):
            one.wait_ready(PATIENCE_S)
        assert call is None or isinstance(call.exception(PATIENCE_S), BrokenSandboxError)
        with pytest.raises(BrokenSandboxError):
            one.submit(len, "")
    world.assert_unchanged()


def test_a_waiting_sandbox_that_is_killed_is_replaced(world):
    with SandboxExecutor(max_workers=1, warm=2) as one:
        one.wait_ready(PATIENCE_S)
        for pid in descendants():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "shoal-call\n":
                    kill_and_wait(pid)
        assert [one.submit(pow, n, 2).result(PATIENCE_S) for n in range(4)] == [0, 1, 4, 9]
    world.assert_unchanged()


SCRIPT = """
import os, sys, time
from shoal import SandboxExecutor
PATIENCE_S = 60
def children():
    return sum(len(open(f"/proc/self/task/{t}/children").read().split()) for t in os.listdir("/proc/self/task"))
"""


def test_the_interpreter_ends_with_calls_in_flight(run_python, world):
    run_python(
        SCRIPT
        + """
ex = SandboxExecutor(max_workers=2, warm=2)
ex.wait_ready(PATIENCE_S)
calls = [ex.submit(time.sleep, 600) for _ in range(5)]
while not calls[1].running():
    time.sleep(0.001)
answer([children() >= 4])
""",
        patience_s=30,
    )
    world.assert_unchanged()


def test_the_interpreter_ends_while_modules_are_loaded(run_python, tmp_path, world):
    (tmp_path / "takes_long_to_load.py").write_text("import time\ntime.sleep(600)\n")
    run_python(
        SCRIPT
        + """
sys.path.insert(0, args[0])
ex = SandboxExecutor(preload=["takes_long_to_load"])
call = ex.submit(len, "")
answer(ex.wait_ready(0.2))
""",
        str(tmp_path),
        patience_s=30,
    )
    world.assert_unchanged()


def test_nothing_survives_an_owner_that_is_killed(tmp_path, world):
    (tmp_path / "takes_long_to_load.py").write_text("import time\ntime.sleep(600)\n")
    script = (
        SCRIPT
        + f"""
sys.path.insert(0, {str(tmp_path)!r})
ex = SandboxExecutor(max_workers=2, warm=3)
ex.wait_ready(PATIENCE_S)
slow = SandboxExecutor(preload=["takes_long_to_load"])
slow.wait_ready(0.2)
calls = [ex.submit(time.sleep, 600) for _ in range(2)]
while not calls[1].running():
    time.sleep(0.001)
print("running", flush=True)
time.sleep(600)
"""
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environ) as owner:
        assert owner.stdout.readline() == b"running\n"
        watched = []
        for child in descendants(owner.pid):
            with contextlib.suppress(ProcessLookupError):
                watched.append(os.pidfd_open(child))
        owner.kill()
    assert len(watched) >= 8
    for pidfd in watched:
        assert select.select([pidfd], [], [], PATIENCE_S)[0], "a process has outlived its owner"
        os.close(pidfd)
    world.assert_unchanged()


def test_a_fork_of_the_host_gets_a_clear_error_and_disturbs_nobody(world):
    with SandboxExecutor(max_workers=2, warm=1) as one:
        one.wait_ready(PATIENCE_S)
        over = one.submit(len, "")
        assert over.result(PATIENCE_S) == 0
        running = one.submit(lambda: (time.sleep(0.5), "finished")[1])
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                try:
                    one.submit(len, "")
                except RuntimeError as error:
                    status = 2 if "belongs to process" in str(error) else 3
                assert over.result() == 0
                for wait in (running.result, running.exception, running.wait_gone):
                    with pytest.raises(RuntimeError, match="belongs to process"):
                        wait(PATIENCE_S)
                running.cancel()
                one.shutdown()
                with SandboxExecutor(max_workers=1, warm=0) as own:
                    status = 0 if status == 2 and own.submit(len, "abc").result(PATIENCE_S) == 3 else status
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert running.result(PATIENCE_S) == "finished"
        assert one.submit(len, "ab").result(PATIENCE_S) == 2
    world.assert_unchanged()


def test_a_fork_that_lives_on_keeps_no_call_alive():
    with SandboxExecutor(max_workers=1, warm=1) as one:
        call = one.submit(time.sleep, 600)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        call.cancel()
        assert call.wait_gone(PATIENCE_S)
    os.close(write)
    os.waitpid(pid, 0)


def test_a_stopped_zygote_stops_nobody_from_leaving(world):
    one = SandboxExecutor(max_workers=1, warm=1)
    one.wait_ready(PATIENCE_S)
    os.kill(one.zygote_pid, signal.SIGSTOP)
    call = one.submit(pow, 2, 2)  # there is one that waits
    assert call.result(PATIENCE_S) == 4
    one.shutdown()
    world.assert_unchanged()
