"""Functions in single-use sandboxes, forked from an interpreter that has its modules loaded. See docs/ten-thousand-untrusted-functions.md.

What is public here is imported on first use: the interpreter that calls are forked from needs little of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

_ON_FIRST_USE = {
    "AsyncSandboxExecutor": "aio",
    "BadResultError": "errors",
    "BrokenSandboxError": "errors",
    "Call": "call",
    "CallEndedError": "errors",
    "CallError": "errors",
    "CallTimeoutError": "errors",
    "PreloadError": "errors",
    "RemoteError": "errors",
    "SandboxExecutor": "sandbox_executor",
    "report": "inside",
}


def __getattr__(name: str) -> object:
    if name in _ON_FIRST_USE:
        import importlib

        value: object = getattr(importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
