"""Limits of a call: what the kernel holds each process to, and what the executor does. Those of control groups are in tests/vm."""

from __future__ import annotations

import time

import pytest

import shoal
from shoal import Sandbox, SandboxExecutor
from shoal.executor import BrokenSandboxError, CallEndedError, CallTimeoutError

PATIENCE_S = 60


def test_the_time_of_the_sandbox_is_that_of_each_call():
    with SandboxExecutor(Sandbox(wall_time=0.5), max_workers=1, warm=1) as one:
        one.wait_ready(PATIENCE_S)
        calls = [one.submit(time.sleep, 0.2) for _ in range(4)]  # longer than that in all
        assert [call.result(PATIENCE_S) for call in calls] == [None] * 4
        call = one.submit(time.sleep, 600)
        with pytest.raises(CallTimeoutError, match=r"sleep\(\) took longer than 0.5 s") as caught:
            call.result(PATIENCE_S)
        assert caught.value.reason == call.reason == "wall_time"
        assert 0.4 < call.usage.wall_s < 30
        assert one.with_limits(timeout=None).submit(time.sleep, 0.7).result(PATIENCE_S) is None


@pytest.mark.parametrize("timeout", ["30d", 1e300])
def test_a_call_may_have_more_time_than_one_wait_of_the_kernel(timeout):
    with SandboxExecutor(max_workers=2) as one:
        assert one.with_limits(timeout=timeout).submit(pow, 2, 5).result(PATIENCE_S) == 32
        patient = one.with_limits(timeout=timeout).submit(time.sleep, 600)
        with pytest.raises(CallTimeoutError):
            one.with_limits(timeout=0.2).submit(time.sleep, 600).result(PATIENCE_S)
        assert patient.cancel()


def test_output_is_kept_up_to_its_limit_and_counted(ex):
    code = "import os, sys\nfor _ in range(1000): os.write(1, b'x' * 1000)\nos.write(2, b'e' * 10)"
    call = ex.with_limits(output=1500).submit_code(code)
    assert call.result(PATIENCE_S) == {}
    assert (call.stdout, call.stderr) == ("x" * 1500, "e" * 10)
    assert call.output_bytes == (1_000_000, 10)
    assert call.truncated
    none = ex.with_limits(output=0).submit_code(code)
    none.result(PATIENCE_S)
    assert (none.stdout, none.output_bytes[0]) == ("", 1_000_000)


def test_output_beyond_its_limit_can_end_a_call(ex):
    code = "import os\nwhile True: os.write(2, b'x' * 1000)"
    call = ex.with_limits(output="64K", on_output_limit="kill").submit_code(code)
    with pytest.raises(CallEndedError, match="more than 65536 bytes"):
        call.result(PATIENCE_S)
    assert call.reason == "output_limit"
    assert len(call.stderr) == 65536


def test_who_writes_without_end_keeps_nobody_else_waiting(ex):
    flood = ex.with_limits(timeout=3).submit_code("import os\nwhile True: os.write(1, b'x' * 65536)")
    calls = [ex.submit(pow, n, 2) for n in range(10)]
    assert [call.result(PATIENCE_S) for call in calls] == [n * n for n in range(10)]
    assert isinstance(flood.exception(PATIENCE_S), TimeoutError)
    assert flood.output_bytes[0] > 1 << 20


def test_limits_of_each_process_are_taken_on_for_good(ex):
    code = """
import resource
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    raised = True
except (ValueError, PermissionError):
    raised = False
limits = resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_FSIZE)
"""
    found = ex.with_limits(open_files=20, file_size="4K").run_code(code, outputs=["raised", "limits"])
    assert found == {"raised": False, "limits": ((20, 20), (4096, 4096))}
    call = ex.with_limits(file_size="4K").submit_code("open('/tmp/f', 'wb').write(b'x' * 100000)")
    assert isinstance(call.exception(PATIENCE_S), OSError | CallEndedError)


def test_a_sandbox_with_limits_of_each_process_has_them_in_every_call():
    with SandboxExecutor(Sandbox(open_files=33), max_workers=1, warm=1) as one:
        assert one.run_code("import resource; n = resource.getrlimit(resource.RLIMIT_NOFILE)") == {"n": (33, 33)}


def has_controllers():
    try:
        with shoal.Job.default() as default, default.create_child() as job:
            job.set_limits(memory="1G")
    except shoal.SpawnError:
        return False
    return True


@pytest.mark.skipif(has_controllers(), reason="needs a machine whose control groups have no controllers")
def test_what_cannot_be_enforced_is_refused_and_says_what_would_help(ex):
    call = ex.with_limits(memory="64M").submit(len, "")
    with pytest.raises(BrokenSandboxError, match="memory: ") as caught:
        call.result(PATIENCE_S)
    assert isinstance(caught.value.__cause__, shoal.SpawnError)
    assert ex.submit(len, "ab").result(PATIENCE_S) == 2  # the others go on
    with SandboxExecutor(Sandbox(memory="64M"), max_workers=1) as one, pytest.raises(BrokenSandboxError, match="best-effort"):
        one.submit(len, "").result(PATIENCE_S)
    with SandboxExecutor(Sandbox(memory="64M", cpu_time=1, limits="best-effort"), max_workers=1) as one:
        assert one.submit(len, "ab").result(PATIENCE_S) == 2
        call = one.submit_code("while True: pass")
        assert isinstance(call.exception(PATIENCE_S), CallTimeoutError)
        assert call.reason == "cpu_time"
        assert call.enforced["memory"] is False
        assert call.enforced["cpu_time"] == "each process"


def test_a_protection_that_is_required_and_not_in_force_is_refused():
    with pytest.raises(shoal.NotSupportedError, match="seccomp is required"):
        SandboxExecutor(Sandbox(seccomp="off", require=["seccomp"]))
