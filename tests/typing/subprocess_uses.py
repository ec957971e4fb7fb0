"""Typical uses of shoal.subprocess, for type checkers: what is right has the right type, what is wrong is an error. Never run."""

from __future__ import annotations

import os
import subprocess as standard
from pathlib import Path
from typing import IO, Any, assert_type

import shoal
from shoal import Sandbox, subprocess

box = Sandbox(read=["/usr"])


def results_are_bytes_unless_text_is_asked_for() -> None:
    assert_type(subprocess.run(["true"]), subprocess.CompletedProcess[bytes])
    assert_type(subprocess.run(["true"], capture_output=True, text=True), subprocess.CompletedProcess[str])
    assert_type(subprocess.run("true", shell=True, encoding="utf-8"), subprocess.CompletedProcess[str])
    assert_type(subprocess.run(["true"], errors="replace"), subprocess.CompletedProcess[str])
    assert_type(subprocess.run(["true"], universal_newlines=True), subprocess.CompletedProcess[str])
    assert_type(subprocess.run(["cat"], input=b"in", stdout=subprocess.PIPE, timeout=1.5, check=True), subprocess.CompletedProcess[bytes])
    assert_type(subprocess.run(["cat"], input="in", text=True), subprocess.CompletedProcess[str])
    assert_type(subprocess.run(["true"], sandbox=box, text=True).stdout, str)
    assert_type(subprocess.check_output(["true"]), bytes)
    assert_type(subprocess.check_output(["true"], text=True, sandbox=box), str)
    assert_type(subprocess.getoutput("true"), str)
    assert_type(subprocess.getstatusoutput("true"), tuple[int, str])


def calls_take_what_the_standard_ones_take() -> None:
    assert_type(subprocess.call(["true"], timeout=3), int)
    assert_type(subprocess.call(args=["true"]), int)
    assert_type(subprocess.check_call(["true"], cwd=Path("/"), env=dict(os.environ), stdout=subprocess.DEVNULL), int)
    subprocess.run(
        [b"true", Path("x"), "y"],
        -1,
        "/bin/true",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: None,
        close_fds=True,
        cwd=b"/",
        env={b"A": b"1"},
        restore_signals=False,
        start_new_session=True,
        pass_fds=[3, 4],
        user="nobody",
        group=1,
        extra_groups=[1, "users"],
        umask=0o22,
        pipesize=4096,
        process_group=0,
    )


def processes_have_streams_of_their_kind(as_text: bool) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert_type(process, subprocess.Popen[bytes])
        if process.stdout is not None:
            stream: IO[bytes] = process.stdout
            assert_type(stream.read(), bytes)
        assert_type(process.communicate(b"in", timeout=2), tuple[bytes, bytes])
        assert_type(process.poll(), int | None)
        assert_type(process.wait(2), int)
        assert_type(process.returncode, int | Any)
        process.kill(tree=True)
        process.kill()
    with subprocess.Popen(["cat"], text=True, bufsize=1, sandbox="untrusted") as readable:
        assert_type(readable, subprocess.Popen[str])
        assert_type(readable.reason is None, bool)
        if readable.usage is not None:
            assert_type(readable.usage, shoal.RunUsage)
        assert_type(readable.enforced["seccomp"], bool | str)
    assert_type(subprocess.Popen(["cat"], text=as_text), subprocess.Popen[Any])


def takes_a_standard_one(process: standard.Popen[bytes]) -> None:
    assert process.wait() == 0


def what_is_ours_goes_where_the_standard_one_goes() -> None:
    takes_a_standard_one(subprocess.Popen(["true"], sandbox=box))
    done: standard.CompletedProcess[str] = subprocess.run(["true"], text=True)
    done.check_returncode()
    try:
        subprocess.run(["false"], check=True, sandbox=box)
    except standard.CalledProcessError as error:
        assert_type(error.returncode, int)
    except subprocess.TimeoutExpired as late:
        assert_type(late.timeout, float)


def mistakes_are_errors() -> None:
    subprocess.run(["true"], sandbox=3)  # type: ignore[call-overload]
    subprocess.run(["true"], colour="blue")  # type: ignore[call-overload]
    subprocess.call(["true"], umask="022")  # type: ignore[call-overload]
    subprocess.Popen(["true"], cwd=1)  # type: ignore[call-overload]
    subprocess.Popen(["true"]).kill(True)  # type: ignore[call-arg]
