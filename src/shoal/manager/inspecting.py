"""Inspecting: what a domain can touch, as it was granted and as the kernel has it: capabilities/.

What was granted is worked out again from the request, which is remembered with the domain; of descriptors, which are gone from here by
then, is remembered what they led to.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from shoal.flags import SpawnFlags
from shoal.handles.process import Process
from shoal.manager.boxes import known_box, on_core, order_for
from shoal.manager.capabilities import Capabilities
from shoal.manager.capabilities.granted import Granted, GrantedDescriptor
from shoal.manager.capabilities.kinds import what_is_open
from shoal.manager.capabilities.looking import look_at
from shoal.manager.dispatchers import environment_of
from shoal.manager.domains import Domain
from shoal.manager.errors import ManagerError
from shoal.sandbox.launch import Boxed
from shoal.spawn import explain
from shoal.status import SpawnError


def described(targets: Sequence[int], fds: Sequence[int]) -> list[dict[str, Any]]:
    """What descriptors lead to that are handed over, to be remembered."""
    return [dataclasses.asdict(GrantedDescriptor(target, *what_is_open(fd))) for target, fd in zip(targets, fds, strict=True)]


def capabilities_of(domain: Domain, init: int) -> Capabilities:
    """What a domain that runs can touch. Takes milliseconds.

    Args:
        init: the pid of its init, which has the other ends of what it writes to.
    Raises:
        ManagerError: it has ended meanwhile.
    """
    with ExitStack() as stack:
        processes = []
        for pid in filter(None, domain.pids.values()):
            try:
                processes.append(stack.enter_context(Process._from_fd(os.pidfd_open(pid))))
            except (ProcessLookupError, SpawnError):
                raise ManagerError("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", f"domain {domain.id} has ended") from None
        granted = _granted(domain, next(iter(domain.pids.values())), init)
        return Capabilities.of(granted, look_at(processes), name=domain.name, domain_id=domain.id)


def _granted(domain: Domain, pid: int, init: int) -> Granted | None:
    core = next(iter(domain.pids))
    descriptors = [GrantedDescriptor(**each) for each in domain.descriptors]
    try:
        descriptors += _log_pipes(pid, init, {each.fd for each in descriptors})
        if domain.sandbox is not None:
            box = known_box(on_core(domain.sandbox, core if isinstance(core, int) else 0))
            plan = Boxed.of(box).plan(order_for(domain.path, domain.argv, None, domain.cwd, {}))
            granted = Granted.of_plan(plan, secrets=box.secrets)
        else:
            variables = environment_of(pid)
            plan = explain(domain.path, domain.argv, flags=SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC, environ=variables)
            granted = dataclasses.replace(Granted.of_plan(plan), cwd=domain.cwd, processors=(core,) if isinstance(core, int) else ())
    except (SpawnError, ManagerError, OSError):
        return None  # the program or what the sandbox names is not there any more
    return dataclasses.replace(granted, name=domain.name, descriptors=tuple(descriptors))


def _log_pipes(pid: int, init: int, taken: Iterable[int]) -> list[GrantedDescriptor]:
    """Those of its standard streams that lead to the domain's log."""
    ends = set()
    for name in os.listdir(f"/proc/{init}/fd"):
        try:
            ends.add(os.readlink(f"/proc/{init}/fd/{name}"))
        except OSError:
            continue
    found = []
    for number in {1, 2} - set(taken):
        try:
            link, status = os.readlink(f"/proc/{pid}/fd/{number}"), os.stat(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
        if link in ends:
            found.append(GrantedDescriptor(number, "pipe", link, status.st_dev, status.st_ino, "w"))
    return found
