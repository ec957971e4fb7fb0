"""shoal.aio: programs in sandboxes, for asyncio and trio."""

from __future__ import annotations

try:
    from shoal.aio.opening import open_process as open_process
    from shoal.aio.pipeline import Command as Command
    from shoal.aio.pipeline import Pipeline as Pipeline
    from shoal.aio.pipeline import PipelineResult as PipelineResult
    from shoal.aio.pipeline import command as command
    from shoal.aio.porting import create_subprocess_exec as create_subprocess_exec
    from shoal.aio.porting import create_subprocess_shell as create_subprocess_shell
    from shoal.aio.process import Process as Process
    from shoal.aio.run import run as run
    from shoal.aio.streams import ByteReceiver as ByteReceiver
    from shoal.aio.streams import ByteSender as ByteSender
    from shoal.aio.streams import TextReceiver as TextReceiver
    from shoal.aio.streams import TextSender as TextSender
    from shoal.sandbox.request import DEVNULL as DEVNULL
    from shoal.sandbox.request import PIPE as PIPE
    from shoal.sandbox.request import STDOUT as STDOUT
except ImportError as error:
    if error.name != "anyio":
        raise
    raise ImportError("shoal.aio needs anyio 4.10 or later, which comes with an extra: pip install 'shoal[aio]'", name="anyio") from error
