"""NetNs: a network, to be handed to a child at "/svc/net". Source: network_namespaces(7)."""

from __future__ import annotations

import os
from typing import ClassVar, Self

from shoal.handles.base import Handle, Rights
from shoal.handles.made import make_netns
from shoal.status import Stage, failure_from_errno


class NetNs(Handle):
    """A network namespace. Without one a child in a cell has a private loopback device and nothing else."""

    kind: ClassVar[str] = "netns"
    default_rights: ClassVar[Rights] = Rights.BASIC | Rights.READ

    @classmethod
    def host(cls) -> Self:
        """The network this process itself is in."""
        try:
            return cls._own(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, "cannot open this process's network namespace in /proc") from error

    @classmethod
    def new(cls) -> Self:
        """A network of its own, with a loopback device that is up. Children it is handed to see each other there.

        Without root it belongs to a user namespace, in which children live that it is handed to: user_namespaces(7).

        Raises:
            AccessDeniedError: neither root nor unprivileged user namespaces.
        """
        return cls._own(make_netns())
