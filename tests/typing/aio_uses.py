"""Typical uses of shoal.aio, as a type checker sees them. Checked by `make lint`; never run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import assert_type

from shoal import Result, RunUsage, Sandbox, aio


async def runs() -> None:
    box = Sandbox(read=["/usr"], wall_time="10s")
    done = await aio.run(["sort", "-u"], sandbox=box, input="b\na\n", capture_output=True, text=True, timeout=5, check=True)
    assert_type(done, Result)
    assert_type(done.usage, RunUsage)
    assert_type(done.enforced, Mapping[str, bool | str])
    plain = await aio.run(["env"], sandbox=False, env={"A": "b"}, cwd="/tmp", output_limit=None, on_output_limit="spill")
    assert_type(plain.returncode, int)


async def blocks() -> None:
    async with aio.open_process(["cat"], sandbox=None, stderr=aio.STDOUT, text=True) as process:
        assert_type(process, aio.Process)
        await process.stdin.send("line\n")
        async for line in process.stdout:
            print(line)
        assert_type(await process.wait(), int)
        assert_type(process.returncode, int | None)
        process.kill()


async def pipelines() -> None:
    pipeline = aio.command("cat") | aio.command("sort", sandbox=Sandbox()) | aio.command("head", sandbox=False)
    assert_type(pipeline, aio.Pipeline)
    done = await pipeline.run(stdin=subprocess.DEVNULL, capture_output=True)
    assert_type(done, aio.PipelineResult)
    assert_type(done.results, tuple[Result, ...])
    assert_type(done.failed, Result | None)


async def ported() -> None:
    process = await aio.create_subprocess_exec("tr", "a", "b", stdin=aio.PIPE, stdout=aio.PIPE, sandbox=Sandbox())
    assert_type(await process.communicate(b"a"), tuple[bytes | None, bytes | None])
    shell = await aio.create_subprocess_shell("exit 3")
    assert_type(await shell.wait(), int)
