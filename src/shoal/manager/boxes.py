"""Sandboxes on their way to a manager, and what becomes of them there: a recipe for one cell, and the plan of the program in it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from shoal.handles.netns import NetNs
from shoal.manager.errors import ManagerError
from shoal.sandbox.box import Sandbox
from shoal.sandbox.errors import RequestError
from shoal.sandbox.launch import Boxed, Cooked, Order
from shoal.sandbox.program import find_program
from shoal.sandbox.seccomp import Seccomp
from shoal.status import SpawnError


def to_text(box: Sandbox, cwd: str) -> str:
    """A sandbox as it is sent and remembered; its paths as seen from the caller's directory.

    Raises:
        ValueError: it has something that cannot be sent.
    """
    if isinstance(box.network, NetNs):
        raise ValueError('network: a network made before cannot be handed to a manager; "none" and "host" can')
    values: dict[str, Any] = {}
    for item in dataclasses.fields(box):
        value = getattr(box, item.name)
        default = item.default_factory() if item.default is dataclasses.MISSING and callable(item.default_factory) else item.default
        if value != default:
            values[item.name] = value
    for name in ("read", "write"):
        if name in values:
            values[name] = _absolute(values[name], cwd)
    if isinstance(box.seccomp, Seccomp):
        values["seccomp"] = dataclasses.asdict(box.seccomp)
    return json.dumps(values, default=list)


def from_text(text: str) -> Sandbox:
    """The same back.

    Raises:
        ManagerError: it is none.
    """
    try:
        values = json.loads(text)
        if isinstance(values.get("seccomp"), dict):
            values["seccomp"] = Seccomp(**values["seccomp"])
        return Sandbox(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ManagerError("SPAWN_ERR_SETUP_CSPACE", f"sandbox: {error}") from None


def _absolute(what: Sequence[Any] | Mapping[str, Any], cwd: str) -> Any:
    if isinstance(what, Mapping):
        return {inside: os.path.join(cwd, os.fsdecode(path)) for inside, path in what.items()}
    return [os.path.join(cwd, os.fsdecode(path)) for path in what]


def to_be_remembered(text: str) -> str:
    """The same without its variables: no secret is at rest anywhere, and who starts more in the cell takes those of what runs there."""
    return json.dumps({name: value for name, value in json.loads(text).items() if name not in ("env", "secrets")})


def on_core(text: str, core: int) -> str:
    """The same sandbox, pinned to a core."""
    return json.dumps({**json.loads(text), "core_set": [core]})


_BOXES_KEPT: Final = 64
_boxes: OrderedDict[str, Sandbox] = OrderedDict()


def known_box(text: str) -> Sandbox:
    """`from_text()`, with what was worked out for the same text before."""
    box = _boxes.get(text)
    if box is None:
        box = _boxes[text] = from_text(text)
        while len(_boxes) > _BOXES_KEPT:
            _boxes.popitem(last=False)
    return box


def order_for(path: str, argv: Sequence[bytes], environ: Mapping[str, str] | None, cwd: str, fds: Mapping[int, int]) -> Order:
    """What is to be started.

    Args:
        path: absolute. fds: by number in the child.
    Raises:
        ManagerError: there is no such program.
    """
    try:
        program = find_program(path, "", cwd)
    except RequestError as error:
        raise ManagerError("SPAWN_ERR_LOAD", error.message) from error
    name = os.fsdecode(argv[0]) if argv else os.path.basename(path)
    return Order(program._replace(name=name), [os.fsdecode(word) for word in argv[1:]], fds, cwd, environ=environ)


def cook(box: Sandbox, order: Order) -> Cooked:
    """How a cell for it is made.

    Raises:
        ManagerError: the sandbox is not possible here, or not for this program.
    """
    boxed = Boxed.of(box)
    try:
        if not boxed.tier.is_cell:
            what = "domains in a sandbox take namespaces, which this machine does not allow; `shoal doctor` tells why"
            raise ManagerError("SPAWN_ERR_SETUP_CSPACE", what)
        cooked = boxed.cook(order)
    except SpawnError as error:
        raise ManagerError("SPAWN_ERR_SETUP_CSPACE", error.detail) from error
    except RequestError as error:
        raise ManagerError("SPAWN_ERR_SETUP_CSPACE", error.message) from error
    if cooked is None:
        what = f"{order.program.path}: a sandbox that holds on to descriptors of one moment is not possible in a domain"
        raise ManagerError("SPAWN_ERR_SETUP_CSPACE", what)
    return cooked
