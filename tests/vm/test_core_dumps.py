"""A collector of core dumps is started by the kernel, as root and outside of everything. It is not for a program in a sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

import shoal
from shoal import Sandbox

KERNEL = Path("/proc/sys/kernel")
CRASH = ["sh", "-c", "kill -SEGV $$"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif("virtme" not in Path("/proc/cmdline").read_text(), reason="needs a machine of its own, see README.md"),
]


@pytest.fixture
def collected():
    """How often the kernel has started a collector, which tells by a signal. Its own file system is not the one tests live in."""
    seen = []
    before = {name: (KERNEL / name).read_text() for name in ("core_pattern", "core_pipe_limit")}
    handler = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    (KERNEL / "core_pattern").write_text(f"|/bin/busybox kill -USR1 {os.getpid()}")
    (KERNEL / "core_pipe_limit").write_text("1")  # a crash is over when its collector is
    yield seen
    for name, text in before.items():
        (KERNEL / name).write_text(text)
    signal.signal(signal.SIGUSR1, handler)


@pytest.mark.parametrize("user", ["dynamic", "caller"])
def test_a_crash_starts_no_collector(collected, user):
    box = Sandbox(read=["/usr"], user=user)
    assert subprocess.run(CRASH, check=False).returncode == -signal.SIGSEGV
    assert len(collected) == 1
    assert shoal.run(CRASH, sandbox=box).returncode == -signal.SIGSEGV
    lowered = ["sh", "-c", "ulimit -c 0; kill -SEGV $$"]
    assert shoal.run(lowered, sandbox=box).returncode == -signal.SIGSEGV
    assert subprocess.run(CRASH, check=False).returncode == -signal.SIGSEGV
    assert len(collected) == 2
    # The limit is what keeps it away.
    assert shoal.run(lowered, sandbox=box.replace(seccomp="off")).returncode == -signal.SIGSEGV
    assert len(collected) == 3
