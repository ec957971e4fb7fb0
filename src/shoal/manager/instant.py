"""Instant: what time it is, for deciding whether a capability has expired.

Two clocks, since neither serves everywhere:

* The time since boot (CLOCK_BOOTTIME, which goes on while the machine is suspended), together with the id of that boot. Nobody can set
  it, so a wall clock that is put back makes no expired capability good again, and one that is put forward ends none early. It is
  meant only on the machine it was read on, and during that boot: an instant of another boot is over.
* The wall clock, for capabilities narrowed on another machine, where it is all that both sides know.

Source: clock_gettime(2); random(4), /proc/sys/kernel/random/boot_id.
"""

from __future__ import annotations

import functools
import re
import time
from typing import Final, NamedTuple

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


class Instant(NamedTuple):
    """A moment, on both clocks.

    Attributes:
        boot: 32 hexadecimal digits that name the boot of the machine; empty where there is no /proc to ask.
        uptime_ms: milliseconds since then.
        wall_s: seconds since 1970.
    """

    boot: str
    uptime_ms: int
    wall_s: float

    @classmethod
    def now(cls) -> Instant:
        """This moment, here."""
        return cls(boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000, time.time())


@functools.cache
def boot_id() -> str:
    """What names this boot of this machine: the same in every container. Empty where it cannot be read."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            text = file.read().strip().replace("-", "")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.fullmatch("[0-9a-f]{32}", text) else ""
