"""shoal: processes that start with nothing.

A program is launched with exactly the files, descriptors, memory and environment it is handed, at the price of a bare
subprocess call. Everything public is here; the modules below are for reading.
"""

from typing import TYPE_CHECKING

try:
    import shoal._native  # noqa: F401  # what is below needs it, and would tell of a circular import
except ImportError as error:
    what = f"the C core of shoal cannot be loaded from {__path__[0]} ({error}); shoal has to be installed with pip, and not in an archive"
    raise ImportError(what, name=error.name) from error
from shoal import first_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from shoal import aio as aio
    from shoal import cells as cells
    from shoal import executor as executor
    from shoal import manager as manager
    from shoal import startup as startup
    from shoal import subprocess as subprocess
    from shoal.actions import Action as Action
    from shoal.actions import AddHandle as AddHandle
    from shoal.actions import AddNsEntry as AddNsEntry
    from shoal.actions import CloneDir as CloneDir
    from shoal.actions import CloneFd as CloneFd
    from shoal.actions import Fd as Fd
    from shoal.actions import HasFileno as HasFileno
    from shoal.actions import SetName as SetName
    from shoal.actions import TransferFd as TransferFd
    from shoal.arguments import Duration as Duration
    from shoal.arguments import Size as Size
    from shoal.arguments import StrOrBytesPath as StrOrBytesPath
    from shoal.executor.aio import AsyncSandboxExecutor as AsyncSandboxExecutor
    from shoal.executor.sandbox_executor import SandboxExecutor as SandboxExecutor
    from shoal.flags import SpawnFlags as SpawnFlags
    from shoal.handles import FD_USE_FOR_STDIO as FD_USE_FOR_STDIO
    from shoal.handles import PA_HND as PA_HND
    from shoal.handles import PA_HND_ARG as PA_HND_ARG
    from shoal.handles import PA_HND_TYPE as PA_HND_TYPE
    from shoal.handles import Directory as Directory
    from shoal.handles import File as File
    from shoal.handles import Handle as Handle
    from shoal.handles import HandleType as HandleType
    from shoal.handles import Job as Job
    from shoal.handles import NetNs as NetNs
    from shoal.handles import Process as Process
    from shoal.handles import ProcessInfo as ProcessInfo
    from shoal.handles import Rights as Rights
    from shoal.handles import Socket as Socket
    from shoal.handles import Usage as Usage
    from shoal.handles import UtcClock as UtcClock
    from shoal.handles import Vmo as Vmo
    from shoal.loader import DirectoryResolver as DirectoryResolver
    from shoal.loader import OciLayoutResolver as OciLayoutResolver
    from shoal.loader import Resolved as Resolved
    from shoal.loader import Resolver as Resolver
    from shoal.loader import get_resolver as get_resolver
    from shoal.loader import set_resolver as set_resolver
    from shoal.plan import Plan as Plan
    from shoal.sandbox.box import Sandbox as Sandbox
    from shoal.sandbox.denied import Denied as Denied
    from shoal.sandbox.result import Result as Result
    from shoal.sandbox.result import RunError as RunError
    from shoal.sandbox.result import RunUsage as RunUsage
    from shoal.sandbox.run import run as run
    from shoal.sandbox.seccomp import Seccomp as Seccomp
    from shoal.spawning import explain as explain
    from shoal.spawning import spawn as spawn
    from shoal.spawning import spawn_vmo as spawn_vmo
    from shoal.status import AccessDeniedError as AccessDeniedError
    from shoal.status import AlreadyExistsError as AlreadyExistsError
    from shoal.status import BadHandleError as BadHandleError
    from shoal.status import BadPathError as BadPathError
    from shoal.status import BadStateError as BadStateError
    from shoal.status import InternalError as InternalError
    from shoal.status import InvalidArgsError as InvalidArgsError
    from shoal.status import IoInvalidError as IoInvalidError
    from shoal.status import NoMemoryError as NoMemoryError
    from shoal.status import NoResourcesError as NoResourcesError
    from shoal.status import NotDirError as NotDirError
    from shoal.status import NotFileError as NotFileError
    from shoal.status import NotFoundError as NotFoundError
    from shoal.status import NotSupportedError as NotSupportedError
    from shoal.status import OutOfRangeError as OutOfRangeError
    from shoal.status import PeerClosedError as PeerClosedError
    from shoal.status import ShoalError as ShoalError
    from shoal.status import SpawnError as SpawnError
    from shoal.status import Stage as Stage
    from shoal.status import Status as Status
    from shoal.status import TimedOutError as TimedOutError
    from shoal.status import UnavailableError as UnavailableError
    from shoal.status import WrongTypeError as WrongTypeError
else:
    __getattr__, __dir__, __all__ = first_use.names(
        __name__,
        {
            "shoal.actions": ("Action", "AddHandle", "AddNsEntry", "CloneDir", "CloneFd", "Fd", "HasFileno", "SetName", "TransferFd"),
            "shoal.arguments": ("Duration", "Size", "StrOrBytesPath"),
            "shoal.cells": (),
            "shoal.executor.aio": ("AsyncSandboxExecutor",),
            "shoal.executor.sandbox_executor": ("SandboxExecutor",),
            "shoal.flags": ("SpawnFlags",),
            "shoal.handles": (
                "Directory",
                "FD_USE_FOR_STDIO",
                "File",
                "Handle",
                "HandleType",
                "Job",
                "NetNs",
                "PA_HND",
                "PA_HND_ARG",
                "PA_HND_TYPE",
                "Process",
                "ProcessInfo",
                "Rights",
                "Socket",
                "Usage",
                "UtcClock",
                "Vmo",
            ),
            "shoal.loader": ("DirectoryResolver", "OciLayoutResolver", "Resolved", "Resolver", "get_resolver", "set_resolver"),
            "shoal.notebook": ("load_ipython_extension", "unload_ipython_extension"),
            "shoal.plan": ("Plan",),
            "shoal.sandbox.box": ("Sandbox",),
            "shoal.sandbox.denied": ("Denied",),
            "shoal.sandbox.result": ("Result", "RunError", "RunUsage"),
            "shoal.sandbox.run": ("run",),
            "shoal.sandbox.seccomp": ("Seccomp",),
            "shoal.spawning": ("explain", "spawn", "spawn_vmo"),
            "shoal.startup": (),
            "shoal.status": (
                "AccessDeniedError",
                "AlreadyExistsError",
                "BadHandleError",
                "BadPathError",
                "BadStateError",
                "InternalError",
                "InvalidArgsError",
                "IoInvalidError",
                "NoMemoryError",
                "NoResourcesError",
                "NotDirError",
                "NotFileError",
                "NotFoundError",
                "NotSupportedError",
                "OutOfRangeError",
                "PeerClosedError",
                "ShoalError",
                "SpawnError",
                "Stage",
                "Status",
                "TimedOutError",
                "UnavailableError",
                "WrongTypeError",
            ),
        },
        modules=("aio", "executor", "manager", "subprocess"),
    )
