"""Handles: owned kernel objects with rights. Names only; each module holds one noun."""

from typing import TYPE_CHECKING

from shoal import first_use

if TYPE_CHECKING:
    from shoal.handles.base import FD_USE_FOR_STDIO as FD_USE_FOR_STDIO
    from shoal.handles.base import PA_HND as PA_HND
    from shoal.handles.base import PA_HND_ARG as PA_HND_ARG
    from shoal.handles.base import PA_HND_TYPE as PA_HND_TYPE
    from shoal.handles.base import Handle as Handle
    from shoal.handles.base import HandleType as HandleType
    from shoal.handles.base import Rights as Rights
    from shoal.handles.clock import UtcClock as UtcClock
    from shoal.handles.directory import Directory as Directory
    from shoal.handles.job import Job as Job
    from shoal.handles.netns import NetNs as NetNs
    from shoal.handles.process import Process as Process
    from shoal.handles.process import ProcessInfo as ProcessInfo
    from shoal.handles.process import Usage as Usage
    from shoal.handles.socket import File as File
    from shoal.handles.socket import Socket as Socket
    from shoal.handles.vmo import Vmo as Vmo
else:
    __getattr__, __dir__, __all__ = first_use.names(
        __name__,
        {
            "shoal.handles.base": (
                "FD_USE_FOR_STDIO",
                "PA_HND",
                "PA_HND_ARG",
                "PA_HND_TYPE",
                "Handle",
                "HandleType",
                "Rights",
            ),
            "shoal.handles.clock": ("UtcClock",),
            "shoal.handles.directory": ("Directory",),
            "shoal.handles.job": ("Job",),
            "shoal.handles.netns": ("NetNs",),
            "shoal.handles.process": (
                "Process",
                "ProcessInfo",
                "Usage",
            ),
            "shoal.handles.socket": (
                "File",
                "Socket",
            ),
            "shoal.handles.vmo": ("Vmo",),
        },
    )
