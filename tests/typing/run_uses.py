"""Typical uses of shoal.run, Sandbox and spawn, as a type checker sees them. Checked by `make lint`; never run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

import shoal
from shoal import AddNsEntry, Directory, Result, RunError, RunUsage, Sandbox, SpawnFlags, TransferFd


def runs() -> None:
    box = Sandbox(read=["/usr", Path()], write={"/out": "out"}, memory="1G", cpus=1.5, pids=64, wall_time="30s", seccomp="strict")
    assert_type(box.replace(memory=None), Sandbox)
    assert_type(Sandbox.profile("python", memory="4G"), Sandbox)
    done = shoal.run(["sort", Path("file")], sandbox=box, input=b"x", capture_output=True, timeout="1m", on_output_limit="kill")
    assert_type(done, Result)
    assert_type(done.usage, RunUsage)
    assert_type(done.usage.max_memory_bytes, int)
    assert_type(done.enforced, Mapping[str, bool | str])
    assert_type(done.truncated, bool)
    if done.reason == "oom":
        print(done.summary)
    try:
        done.check_returncode()
    except RunError as error:
        assert_type(error.result, Result)


def spawns() -> None:
    read, write = os.pipe()
    actions: list[shoal.Action] = [AddNsEntry("/data", Directory.open(".")), TransferFd(write, 1)]
    with shoal.spawn("/usr/bin/sort", ["sort", "/data/x"], flags=SpawnFlags.DEFAULT_LDSVC, actions=actions) as child:
        assert_type(child.wait(timeout=10), int)
        assert_type(child.fileno(), int)
    os.close(read)


def in_a_notebook(shell: object) -> None:
    from shoal.notebook import load_ipython_extension

    load_ipython_extension(shell)
