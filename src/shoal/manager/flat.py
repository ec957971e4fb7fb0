"""Flat domains: those without a sandbox, which see the manager's own world. A request becomes the plan of a waiting process."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from shoal.handles.keeper import open_null
from shoal.loader.elf import HOST_MACHINE
from shoal.packing import CWD_FD, Packed, Packer
from shoal.recipe import begin_command, look_for

_KEPT: Final = 256
_plans: OrderedDict[tuple[bytes, bytes, int | None, tuple[int, ...]], Packed] = OrderedDict()
ENTERING: Final = "entering the working directory"


def plan(path: bytes, cwd: bytes, core: int | None, targets: tuple[int, ...]) -> Packed:
    """The plan for one program.

    Args:
        core: the one it is pinned to; None: none.
        targets: the numbers in the child of the descriptors it will be sent.
    """
    key = (path, cwd, core, targets)
    known = _plans.get(key)
    if known is not None:
        return known
    packer = Packer()
    given = [(packer.received(), target) for target in targets]
    null = open_null(packer)
    packer.op("SETSID", "making a session")
    if core is not None:
        packer.affinity([core], f"binding it to core {core}")
    packer.op("CHDIR", ENTERING, text=cwd)
    packer.fd_map(given, null)
    packer.op("SIGNALS", "resetting signals")
    made = _plans[key] = packer.packed(exec_fd=CWD_FD, exec_path=path)
    while len(_plans) > _KEPT:
        _plans.popitem(last=False)
    return made


def command(targets: Sequence[int], places: Sequence[bytes], cwd: bytes, core: int | None, *, terminal: int | None) -> Packed:
    """The plan of a command in a domain: `make_command()`, for those that see what we do."""
    packer = Packer()
    pairs = [(packer.received(), target) for target in targets]
    null = open_null(packer)
    begin_command(packer, pairs, terminal=terminal)
    packer.op("CHDIR", ENTERING, text=cwd, flags=1)
    if core is not None:
        packer.affinity([core], f"binding it to core {core}")
    packer.fd_map(pairs, null)
    look_for(packer, places[:-1])
    return packer.packed(exec_fd=CWD_FD, exec_path=places[-1])


def foreign_machine(path: bytes) -> bool:
    """Whether it is an ELF file for another kind of processor. False where that cannot be told."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        head = os.pread(fd, 20, 0)
    finally:
        os.close(fd)
    order = "big" if head[5:6] == b"\2" else "little"
    return head[:4] == b"\x7fELF" and len(head) == 20 and int.from_bytes(head[18:20], order) != HOST_MACHINE  # type: ignore[arg-type]
