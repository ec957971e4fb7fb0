"""Limits: how much one call may use. Those of the executor's sandbox, and what a call is given instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from resource import RLIMIT_CORE
from typing import Any, Final, Literal

from shoal.arguments import Duration, Size
from shoal.sandbox.box import EACH_PROCESS, Sandbox, nearest
from shoal.sandbox.confinement import confinement_of
from shoal.units import parse_duration, parse_size

OUTPUT_BYTES: Final = 1 << 20
RESULT_BYTES: Final = 16 << 20
RESULT_MOST: Final = 2 << 30
OF_THE_BOX: Final = ("memory", "swap", "pids", "cpus", "io", "cpu_time", "open_files", "file_size")
"""Limits that a Sandbox has by the same name. `timeout` is its wall_time."""
NAMES: Final = ("timeout", *OF_THE_BOX, "output", "on_output_limit", "result")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use.

    Attributes:
        box: the limits that a Sandbox knows, in one.
        timeout_s: from the moment it begins; None: any time.
        output_bytes: of each of stdout and stderr, what is kept.
        on_output_limit: what becomes of more: it is read and counted ("drain"), or the call ends ("kill").
        result_bytes: the longest result, as a message.
        rlimits: of each process, to be taken on inside: "resource soft hard" one after the other.
        changed: something is not as the executor has it, that the kernel keeps count of for all of a call.
    """

    box: Sandbox
    timeout_s: float | None
    output_bytes: int = OUTPUT_BYTES
    on_output_limit: Literal["drain", "kill"] = "drain"
    result_bytes: int = RESULT_BYTES
    rlimits: bytes = b""
    changed: bool = False

    @classmethod
    def of(cls, box: Sandbox) -> Limits:
        """Those that the executor's sandbox has."""
        return cls(box, None if box.wall_time is None else parse_duration(box.wall_time))

    def replace(self, given: Mapping[str, Any]) -> Limits:
        """The same with what is `given`, by the names of NAMES.

        Raises:
            TypeError, ValueError: no such limit, or it cannot be meant.
        """
        for name in given:
            if name not in NAMES:
                raise TypeError(f"there is no limit {name!r} for a call{nearest(name, NAMES)}")
        for name in given:
            if given[name] is None and name != "timeout":
                raise ValueError(f"{name}=None: leave it out to keep the executor's limit; none can be taken away from a call")
        asked = {name: given[name] for name in OF_THE_BOX if name in given}
        box = self.box.replace(**asked) if asked else self.box
        timeout_s = _seconds(given["timeout"]) if "timeout" in given else self.timeout_s
        policy = given.get("on_output_limit", self.on_output_limit)
        if policy not in ("drain", "kill"):
            raise ValueError(f"on_output_limit cannot be {policy!r}; it is 'drain' or 'kill'")
        return Limits(
            box,
            timeout_s,
            _size("output", given.get("output", self.output_bytes)),
            policy,
            _size("result", given.get("result", self.result_bytes)),
            _rlimits(box) if asked else self.rlimits,
            self.changed or bool(asked.keys() - {"open_files", "file_size"}),
        )

    def __str__(self) -> str:
        """Those that there are, in words."""
        found = [f"{name}={value!r}" for name in OF_THE_BOX if (value := getattr(self.box, name)) not in (None, {}) and name != "swap"]
        found += [] if self.timeout_s is None else [f"timeout={self.timeout_s:g}"]
        usual = (("output", self.output_bytes, OUTPUT_BYTES), ("result", self.result_bytes, RESULT_BYTES))
        found += [f"{name}={value}" for name, value, default in usual if value != default]
        return ", ".join(found)

    @property
    def enforced(self) -> dict[str, bool | str]:
        """What is in force without a group."""
        found: dict[str, bool | str] = {} if self.timeout_s is None else {"wall_time": True}
        asked = [name for name in ("open_files", "file_size") if getattr(self.box, name) is not None]
        return found | dict.fromkeys(asked, EACH_PROCESS)

    @property
    def needs_group(self) -> bool:
        """Whether the kernel is to keep count of something for all of a call together."""
        box = self.box
        return any(getattr(box, name) is not None for name in ("memory", "pids", "cpus", "cpu_time")) or bool(box.io)


def _rlimits(box: Sandbox) -> bytes:
    plain = dataclasses.replace(box, seccomp="off", core_set=())  # of which this depends on nothing
    found = [limit for limit in confinement_of(plain, privileged=False).rlimits if limit.resource != RLIMIT_CORE]
    return " ".join(f"{limit.resource} {limit.soft} {limit.hard}" for limit in found).encode()


def _seconds(timeout: Duration | None) -> float | None:
    if timeout is None:
        return None
    try:
        seconds = parse_duration(timeout)
    except (TypeError, ValueError) as error:
        raise type(error)(f"timeout: {error}") from None
    if seconds <= 0:
        raise ValueError("timeout is 0: a call needs some time; None is for no limit")
    return seconds


def _size(name: str, value: Size) -> int:
    try:
        size = parse_size(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    if name == "result" and not 1 <= size <= RESULT_MOST:
        raise ValueError(f"result: {value!r} has to lie between 1 and {RESULT_MOST} bytes")
    return size
