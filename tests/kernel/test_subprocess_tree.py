"""shoal.subprocess without a sandbox: a timeout, and kill(tree=True), end all that a program has started."""

import gc
import json
import os
import re
import select
import shutil
import signal
import subprocess as standard
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from rig.features import needs
from rig.fuse import REACHED_S, mounted

from shoal import subprocess

WORD = "echo $$ >/proc/self/fd/$REPORT; exec sleep 987"
"""Tells that it is there, and stays. What it tells to is open as long as it lives."""
TREES = {
    "itself": WORD,
    "a child": f"sh -c '{WORD}' & wait",
    "a grandchild": f"sh -c \"sh -c '{WORD}' & wait\" & wait",
    "one in the background of what has ended": f"sh -c '{WORD}' &",
    "one that has lost its parent": f"(sh -c '{WORD}' &); exec sleep 987",
    "one in a session of its own": f"setsid -f sh -c '{WORD}'; exec sleep 987",
    "one in a session of its own whose ancestors have ended": f"setsid -f sh -c \"(sh -c '{WORD}' &)\"",
    "one that ignores signals": f"trap '' TERM HUP INT PIPE; sh -c '{WORD}' & exec sleep 987",
    "one that is stopped": f"sh -c 'echo $$ >/proc/self/fd/$REPORT; kill -STOP $$; {WORD}' & wait",
    "a shell without job control": f"set +m; sh -c '{WORD}' & wait",
    "many": "for i in 1 2 3 4 5 6 7 8 9 10; do for j in 1 2 3 4 5; do sleep 987 & done; done; " + WORD,
}
NESTED = """
import os, sys
{imports}
subprocess.Popen(["sh", "-c", "(" + os.environ["WORD"] + ") &"], pass_fds=[int(os.environ["REPORT"])]).wait()
{then}
"""


class Signs:
    """A pipe that every member of a tree holds: it tells when one is there, and when none is there any more."""

    def __init__(self):
        self.read, self.write = self.numbers = os.pipe()
        self.how = {"pass_fds": [self.write], "env": os.environ | {"REPORT": str(self.write), "WORD": WORD}}

    def let_go(self):
        """Let the tree alone hold it."""
        os.close(self.write)
        self.write = -1

    def await_one(self):
        """Wait until one has come; its pid."""
        return int(os.read(self.read, 100).split()[0])

    def are_gone(self):
        """Wait until none is there any more."""
        while os.read(self.read, 4096):
            pass
        return True

    def close(self):
        for fd in (self.read, self.write):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def signs():
    made = Signs()
    yield made
    made.close()


@contextmanager
def tree(script, signs, module=subprocess, **more):
    """A tree of which one has come already."""
    with module.Popen(["sh", "-c", script], **signs.how, **more) as process:
        try:
            signs.let_go()
            signs.await_one()
            yield process
        finally:
            process.kill(tree=True)


@pytest.mark.parametrize("script", TREES.values(), ids=TREES)
@pytest.mark.parametrize("how", [{}, {"start_new_session": True}, {"preexec_fn": int}], ids=str)
def test_killing_a_tree_ends_all_of_it(script, how, signs, world):
    with tree(script, signs, **how) as process:
        process.kill(tree=True)
        assert signs.are_gone()
        assert process.wait(timeout=60) in (0, -signal.SIGKILL)
    world.assert_unchanged(besides=signs.numbers)


@pytest.mark.parametrize("script", TREES.values(), ids=TREES)
def test_a_timeout_of_run_ends_the_whole_tree(script, signs):
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as late:
        subprocess.run(["sh", "-c", script], timeout=1.5, stdout=subprocess.PIPE, **signs.how)  # which the tree holds
    assert time.monotonic() - began < 60
    assert getattr(late.value, "__notes__", []) == []
    signs.let_go()
    assert signs.are_gone()


@pytest.mark.parametrize("call", ["run", "call", "check_call", "check_output"])
def test_every_call_with_a_timeout_ends_the_tree(call, signs):
    with pytest.raises(subprocess.TimeoutExpired):
        getattr(subprocess, call)(["sh", "-c", TREES["one in a session of its own"]], timeout=1, **signs.how)
    signs.let_go()
    assert signs.are_gone()


def test_output_up_to_the_timeout_is_told_though_a_grandchild_holds_the_pipes():
    with pytest.raises(subprocess.TimeoutExpired) as late:
        subprocess.run("echo so far; echo and here >&2; (sleep 987 &)", shell=True, capture_output=True, timeout=1)
    assert (late.value.stdout, late.value.stderr, late.value.timeout) == (b"so far\n", b"and here\n", 1)


def test_the_end_of_the_program_alone_is_all_that_kill_ends(signs):
    with tree(TREES["a child"], signs) as process:
        process.kill()
        assert process.wait() == -signal.SIGKILL
        os.set_blocking(signs.read, False)
        with pytest.raises(BlockingIOError):
            os.read(signs.read, 1)
        process.kill(tree=True)
        os.set_blocking(signs.read, True)
        assert signs.are_gone()


@pytest.mark.parametrize("mine", ["shoal", "standard"])
def test_what_a_member_has_started_by_shoal_itself_belongs_to_the_tree(signs, mine):
    imports = "from shoal import subprocess" if mine == "shoal" else "import subprocess"
    code = NESTED.format(imports=imports, then="import time; time.sleep(600)")
    with subprocess.Popen([sys.executable, "-c", code], **signs.how) as process:
        signs.let_go()
        signs.await_one()
        process.kill(tree=True)
        assert signs.are_gone()


def test_other_trees_of_this_process_live_on(signs):
    others = [Signs() for _ in range(3)]
    with tree(TREES["one in a session of its own"], signs) as process:
        running = []
        for other, module in zip(others, (subprocess, subprocess, standard), strict=True):
            running.append(module.Popen(["sh", "-c", TREES["one that has lost its parent"]], start_new_session=True, **other.how))
            other.let_go()
            other.await_one()
        process.kill(tree=True)
        assert signs.are_gone()
        for other in others:
            os.set_blocking(other.read, False)
            with pytest.raises(BlockingIOError):
                os.read(other.read, 1)
            os.set_blocking(other.read, True)
    for child, other in zip(running, others, strict=True):
        os.killpg(child.pid, signal.SIGKILL)  # a standard one has no other way
        child.wait()
        assert other.are_gone()
        other.close()


def test_nothing_stays_stopped_when_the_kill_is_interrupted(signs, monkeypatch):
    from shoal.handles import tree as trees

    def interrupted(*_):
        raise KeyboardInterrupt

    with tree(TREES["a grandchild"], signs) as process:
        with monkeypatch.context() as patch:
            patch.setattr(trees._Hunt, "_find", interrupted)
            with pytest.raises(KeyboardInterrupt):
                process.kill(tree=True)
        assert process.wait(timeout=60) == -signal.SIGKILL


def test_the_program_can_see_nothing_of_it_but_a_limit_that_means_nothing():
    code = "import json, os; print(json.dumps([sorted(os.environ), os.getsid(0), open('/proc/self/limits').read(), os.getppid()]))"
    theirs, ours = (
        module.run([sys.executable, "-S", "-c", code], capture_output=True, text=True).stdout for module in (standard, subprocess)
    )
    theirs, ours = json.loads(theirs), json.loads(ours)
    assert ours[:2] + ours[3:] == theirs[:2] + theirs[3:]
    different = [a for a, b in zip(ours[2].splitlines(), theirs[2].splitlines(), strict=True) if a != b]
    assert [line[:14] for line in different] == ["Max file locks"]


def test_a_hard_limit_of_locks_keeps_no_program_from_starting(run_python):
    script = """
import resource
resource.setrlimit(10, (5, 5))
from shoal import subprocess
child = subprocess.Popen(["sh", "-c", "sleep 987 & wait"])
child.kill(tree=True)
answer([subprocess.run(["true"]).returncode, child.wait()])
"""
    assert run_python(script) == [0, -signal.SIGKILL]


@pytest.mark.root
@needs("unshare and setpriv (Debian package util-linux)")
def test_what_has_become_another_user_is_left_alone_and_told(run_python):
    script = """
from shoal import subprocess
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    subprocess.run(["sh", "-c", args[0] + " --reuid 0 sleep 987 >/dev/null 2>&1 & sleep 987"], timeout=1)
except subprocess.TimeoutExpired as late:
    answer(late.__notes__)
"""
    copy = Path("/var/tmp") / f"shoal-test-setpriv-{os.getpid()}"
    shutil.copy(shutil.which("setpriv"), copy)
    copy.chmod(0o4755)
    try:
        if os.statvfs(copy).f_flag & os.ST_NOSUID:
            pytest.skip("needs a /var/tmp in which set-user-ID programs work")
        notes = run_python(script, str(copy))
    finally:
        copy.unlink()
    told = re.fullmatch(r"left running: process (\d+) \(sleep\) belongs to another user", "\n".join(notes))
    assert told
    os.kill(int(told[1]), signal.SIGKILL)


@pytest.mark.root
@needs("file systems in user space (/dev/fuse)")
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize("call", ["run", "call"])
def test_a_timeout_does_not_wait_for_what_no_signal_reaches(call, tmp_path, world):
    (tmp_path / "stuck").mkdir()
    with mounted(tmp_path / "stuck") as stuck:
        began = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired) as late:
            getattr(subprocess, call)(["cat", f"{stuck.folder}/stuck"], timeout=REACHED_S, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert time.monotonic() - began < 30
        (note,) = late.value.__notes__
        told = re.fullmatch(r"left running: process (\d+) \(cat\) was killed and has not ended", note)
        assert told
        pidfd = os.pidfd_open(int(told[1]))
        del late
        gc.collect()
        stuck.let_go()
        select.select([pidfd], [], [])
        os.close(pidfd)
        subprocess.run(["true"])  # as in the standard module, a later start collects what was dropped
    world.assert_unchanged()
