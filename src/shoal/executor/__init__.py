"""Functions in single-use sandboxes, forked from an interpreter that has its modules loaded. See docs/ten-thousand-untrusted-functions.md.

What is public here is imported on first use: the interpreter that calls are forked from needs little of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal import first_use

if TYPE_CHECKING:
    from shoal.executor.aio import AsyncSandboxExecutor as AsyncSandboxExecutor
    from shoal.executor.call import Call as Call
    from shoal.executor.errors import BadResultError as BadResultError
    from shoal.executor.errors import BrokenSandboxError as BrokenSandboxError
    from shoal.executor.errors import CallEndedError as CallEndedError
    from shoal.executor.errors import CallError as CallError
    from shoal.executor.errors import CallTimeoutError as CallTimeoutError
    from shoal.executor.errors import PreloadError as PreloadError
    from shoal.executor.errors import RemoteError as RemoteError
    from shoal.executor.inside import report as report
    from shoal.executor.sandbox_executor import SandboxExecutor as SandboxExecutor
else:
    __getattr__, __dir__, __all__ = first_use.names(
        __name__,
        {
            "shoal.executor.aio": ("AsyncSandboxExecutor",),
            "shoal.executor.call": ("Call",),
            "shoal.executor.errors": (
                "BadResultError",
                "BrokenSandboxError",
                "CallEndedError",
                "CallError",
                "CallTimeoutError",
                "PreloadError",
                "RemoteError",
            ),
            "shoal.executor.inside": ("report",),
            "shoal.executor.sandbox_executor": ("SandboxExecutor",),
        },
    )
