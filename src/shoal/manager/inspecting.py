"""Inspecting: what a domain can touch, as it was granted and as the kernel has it: capabilities/.

What was granted is written down when the domain is started. Of one that sees the manager's own world little has to be: what its
descriptors led to, and the rest is in its request. Of one in a sandbox it is all that its plan says, since what a path led to then may
be somewhere else by now. Values of variables are written down only where a sandbox sets them and does not call them secrets.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import msgspec

from shoal.handles.base import PA_HND
from shoal.handles.job import Job
from shoal.handles.job_arguments import check_io
from shoal.handles.job_backend import Limits
from shoal.handles.vmo import Vmo
from shoal.manager.boxes import known_box
from shoal.manager.capabilities import Capabilities
from shoal.manager.capabilities.granted import Granted, GrantedDescriptor, JobLimits
from shoal.manager.capabilities.kinds import text, what_is_open
from shoal.manager.capabilities.looking import look_at_held
from shoal.manager.cnode import TASK, TASK_MANAGER
from shoal.manager.dispatchers import environment_of
from shoal.manager.domains import Domain
from shoal.manager.errors import ManagerError
from shoal.manager.ledger import Slot
from shoal.manager.wire import Given, SpawnProgram
from shoal.plan import Plan
from shoal.sandbox.box import Sandbox
from shoal.status import SpawnError
from shoal.units import parse_size

MOST: Final = (500, 5_000)
"""Processes and descriptors of one domain that are told of: what fits into one answer."""
_JOB: Final = "the domain's own"
_LOG: Final = "the domain's log"


def described(request: SpawnProgram, fds: Sequence[int]) -> list[dict[str, Any]]:
    """What descriptors lead to that are handed over, to be remembered."""
    return [_as_dict(item) for item in _handed(request, fds)]


def _handed(request: SpawnProgram, fds: Iterable[int]) -> Iterator[GrantedDescriptor]:
    handles = {item.target: item for item in request.given}
    for target, fd in zip(request.targets, fds, strict=True):
        kind, what, dev, ino, access = what_is_open(fd)
        yield _with_handle(GrantedDescriptor(target, kind, what, dev, ino, access), handles.get(target))
    for number in request.kept:
        yield GrantedDescriptor(number, "pipe", _LOG, 0, 0, "w")


def described_later(given: Iterable[Given]) -> list[dict[str, Any]]:
    """The same of startup handles that are made when the domain begins."""
    kinds = {Vmo.kind: "memory"}
    items = (_with_handle(GrantedDescriptor(item.target, kinds.get(item.kind, item.kind), item.name, 0, 0, "rw"), item) for item in given)
    return [_as_dict(item) for item in items]


def _as_dict(item: GrantedDescriptor) -> dict[str, Any]:
    """What `dataclasses.asdict()` gives, which copies strings and numbers as if they could change, and takes four times as long."""
    return {name: getattr(item, name) for name in GrantedDescriptor.__slots__}


def has_connection(descriptors: Iterable[dict[str, Any]]) -> bool:
    """Whether a connection to the manager is among what was handed over."""
    return any(item["handle"] == PA_HND(TASK, TASK_MANAGER) for item in descriptors)


def _with_handle(item: GrantedDescriptor, handle: Given | None) -> GrantedDescriptor:
    return item if handle is None else replace(item, handle=handle.id, handle_kind=handle.kind, rights=handle.rights)


def granted_in_cell(plan: Plan, request: SpawnProgram) -> bytes:
    """What a domain in a sandbox gets besides its descriptors, to be remembered."""
    assert request.sandbox is not None
    box = known_box(request.sandbox)
    found = Granted.of_plan(replace(plan, descriptors=()), secrets=box.secrets, limits=_limits(box))
    environ = found.environ if request.environ is None else dict.fromkeys(found.environ)
    return msgspec.json.encode(replace(found, environ=environ, job=_JOB))


def _limits(box: Sandbox) -> Limits:
    memory = None if box.memory is None else parse_size(box.memory)
    pids = None if box.pids is None else box.pids + 2  # the domain's init, and the cell's
    return Limits(memory, None, pids, box.cpus, check_io(box.io))


def capabilities_of(domain: Domain, slot: Slot, remembered: bytes | None) -> Capabilities:
    """What a domain that runs can touch. Takes milliseconds, and waits for nobody.

    Args:
        slot: of its init, which is the parent of what it started and becomes that of every orphan.
        remembered: of a domain in a sandbox what `granted_in_cell()` gave.
    Raises:
        ManagerError: it has ended meanwhile.
    """
    job = _open_job(domain.bounds.get("job"))
    try:
        observed = look_at_held(slot.init_pid, slot.init_start, job=job, most=MOST)
    finally:
        if job is not None:
            job.close()
    if all(process.keeper for process in observed.processes):
        raise ManagerError("PROC_MGMT_ERR_DOMAIN_NOT_RUNNING", f"domain {domain.id} has ended")
    pids = {process.pid for process in observed.processes}
    found = Capabilities.of(_granted(domain, remembered, pids), observed, name=domain.name, domain_id=domain.id)
    return replace(found, observed=observed.for_others())


def _open_job(path: str | None) -> Job | None:
    if path is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # the domain is ending
    try:
        return Job._from_fd(fd)
    except SpawnError:
        os.close(fd)
        return None


def _granted(domain: Domain, remembered: bytes | None, pids: Collection[int]) -> Granted | None:
    descriptors = tuple(GrantedDescriptor(**each) for each in domain.descriptors)
    if domain.sandbox is None:
        return _granted_flat(domain, descriptors, pids)
    if remembered is not None:
        with suppress(ValueError):  # written by another version
            granted = Granted.from_dict(msgspec.json.decode(remembered))
            return replace(granted, name=domain.name, descriptors=descriptors, processors=_processors(domain))
    return None


def _processors(domain: Domain) -> tuple[int, ...]:
    return tuple(core for core in domain.pids if isinstance(core, int))


def _granted_flat(domain: Domain, descriptors: tuple[GrantedDescriptor, ...], pids: Collection[int]) -> Granted:
    variables: list[bytes] = []
    first = next(iter(domain.pids.values()))
    with suppress(ManagerError):
        variables = environment_of(first) if first in pids else []
    return Granted(
        name=domain.name,
        program=domain.path,
        script="",
        argv=tuple(map(text, domain.argv)),
        cwd=domain.cwd,
        world="caller",
        mounts=(),
        files=(),
        network="caller",
        network_ino=0,
        descriptors=descriptors,
        environ={text(item).partition("=")[0]: None for item in variables},
        namespaces=(),
        no_new_privs=False,
        no_capabilities=False,
        own_user=False,
        own_keyring=False,
        user=os.geteuid(),
        filters=0,
        filter_labels=(),
        landlock=False,
        rlimits=(),
        processors=_processors(domain),
        nice=None,
        job=_JOB,
        limits=JobLimits(),
    )
