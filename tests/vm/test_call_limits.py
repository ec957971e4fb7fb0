"""Limits of a call that take a control group: each call has one of its own, and its future says what it used and which limit ended it."""

from __future__ import annotations

import time

import pytest

from shoal import Sandbox, SandboxExecutor
from shoal.executor import CallEndedError, CallTimeoutError
from shoal.handles import reaper

PATIENCE_S = 240
MIB = 1 << 20

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(autouse=True)
def controllers(delegation):
    assert delegation.is_dir()


def eat(size):
    data = bytearray(size)
    data[::4096] = b"x" * len(data[::4096])
    return len(data)


def test_a_call_that_eats_its_memory_is_ended_and_says_so():
    with SandboxExecutor(Sandbox(memory="96M"), max_workers=2, warm=1) as ex:
        assert ex.submit(eat, 16 * MIB).result(PATIENCE_S) == 16 * MIB
        call = ex.submit(eat, 256 * MIB)
        with pytest.raises(CallEndedError, match="needed more memory") as caught:
            call.result(PATIENCE_S)
        assert caught.value.reason == call.reason == "oom"
        assert call.usage.counts_tree
        assert call.usage.max_memory_bytes <= 96 * MIB
        assert ex.submit(eat, 1 * MIB).result(PATIENCE_S) == 1 * MIB


def test_one_call_may_have_less_than_the_others():
    with SandboxExecutor(max_workers=2, warm=1) as ex:
        tight = ex.with_limits(memory="48M")
        calls = [tight.submit(eat, 200 * MIB), ex.submit(eat, 200 * MIB), tight.submit(eat, 4 * MIB)]
        assert isinstance(calls[0].exception(PATIENCE_S), CallEndedError)
        assert calls[0].reason == "oom"
        assert calls[1].result(PATIENCE_S) == 200 * MIB
        assert calls[2].result(PATIENCE_S) == 4 * MIB
        assert not calls[1].usage.counts_tree
        assert calls[2].usage.counts_tree


def test_memory_that_is_left_to_a_fork_counts_too():
    code = "import os\nif os.fork() == 0:\n    x = bytearray(200 << 20); x[::4096] = b'x' * len(x[::4096])\n    os._exit(0)\nos.wait()\n"
    with SandboxExecutor(Sandbox(memory="96M"), max_workers=1) as ex:
        call = ex.submit_code(code)
        assert isinstance(call.exception(PATIENCE_S), CallEndedError)
        assert call.reason == "oom"


def test_a_fork_bomb_stops_at_the_number_of_processes():
    code = """
import os, time
made = 0
try:
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError:
    pass
"""
    with SandboxExecutor(max_workers=1) as ex:
        call = ex.with_limits(pids=10).submit_code(code, outputs=["made"])
        assert 1 <= call.result(PATIENCE_S)["made"] < 10
        assert call.usage.max_pids is None or call.usage.max_pids <= 11


def test_processor_time_of_all_together_ends_a_call():
    code = "import os\nfor _ in range(3):\n    if os.fork() == 0: break\nwhile True: pass"
    with SandboxExecutor(max_workers=1, warm=0) as ex:
        call = ex.with_limits(cpu_time=1, timeout=200).submit_code(code)
        assert isinstance(call.exception(PATIENCE_S), CallTimeoutError)
        assert call.reason == "cpu_time"
        assert call.usage.user_s + call.usage.system_s >= 0.9


def test_processors_are_a_share_of_time():
    with SandboxExecutor(max_workers=1, warm=0) as ex:
        call = ex.with_limits(cpus=0.2).submit(sum, range(10_000_000))
        call.result(PATIENCE_S)
        assert call.usage.user_s + call.usage.system_s < 0.35 * call.usage.wall_s


def test_groups_of_calls_are_gone_with_them(delegation):
    with SandboxExecutor(Sandbox(memory="96M"), max_workers=2, warm=2) as ex:
        for _ in range(5):
            assert ex.submit(len, "abc").result(PATIENCE_S) == 3
        calls = [ex.submit(eat, 300 * MIB) for _ in range(3)] + [ex.submit(time.sleep, 600)]
        for call in calls[:3]:
            call.exception(PATIENCE_S)
        calls[3].cancel()
        assert calls[3].wait_gone(PATIENCE_S)
    left = [path.name for path in delegation.rglob("shoal-*") if path.is_dir()]
    deadline = time.monotonic() + 20
    while left and time.monotonic() < deadline:
        reaper.sweep()
        time.sleep(0.05)
        left = [path.name for path in delegation.rglob("shoal-*") if path.is_dir() and not path.name.endswith("-self")]
    assert left == []
