"""The bounds of the name service: everything that a client could make large, and how large it may get.

Called by: every module of this package. Touches: nothing. What one text may hold is the same everywhere, because a client and its manager
have to agree on it: constants. How much a session, a capability and all together may keep is the manager's to choose: `Limits`.
Passing a bound is an error that names it; it never costs another client anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

QUERY_BYTES: Final = 8191
"""Longest text of a record or query in UTF-8, as it was given and in its canonical form. Source: a query is shorter than 8,192 bytes."""

NAME_BYTES: Final = 255
"""Longest name of a record, an attribute or a stored capability. Source: keys of the capability store are shorter than 256 bytes."""

ATTRIBUTES: Final = 64
"""Most attributes of a record, and most constraints of a query."""

PATTERN_MEMORY: Final = 1 << 16
"""Most bytes that one compiled regular expression may take, with what matching it keeps."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be kept, for one session, for one capability (principal), and by all of them.

    Attributes:
        records: records of all sessions.
        records_per_session: records that end with one session.
        records_per_principal: records of one principal that do not end with a session.
        memory: bytes that all records take, index included (an estimate on the safe side).
        memory_per_session: the same for one session, and for what a principal keeps beyond its sessions.
        sequences: names that sequential records are counted under, remembered at once. The longest unused is forgotten first; no number
            comes twice.
        watches: watches of all sessions, and, counted apart, subscriptions. Source: 16,384.
        watches_per_session: both kinds together, of one session.
        pattern_weight: instructions of the compiled regular expressions in all watches: the work a single change can cause.
        pattern_weight_per_session: the same for one session.
        values: descriptors held as values of records and in the capability store.
        values_per_session: the same for one session, and for what a principal keeps beyond its sessions.
        look_up_steps: comparisons of one look-up, a pattern counted as what it may cost: about half a second, and enough for any pattern
            among 100,000 names. Passing it is OCT_ERR_ENGINE_FAIL.
        queued_events: events waiting for one watch; what comes then is one `overflow` event.
        queued_events_per_session: events waiting for all watches of a session together.
        queued_bytes_per_session: bytes of text in them.
    """

    records: int = 262_144
    records_per_session: int = 131_072
    records_per_principal: int = 131_072
    memory: int = 512 << 20
    memory_per_session: int = 256 << 20
    sequences: int = 16_384
    watches: int = 16_384
    watches_per_session: int = 4_096
    pattern_weight: int = 65_536
    pattern_weight_per_session: int = 16_384
    values: int = 4_096
    values_per_session: int = 256
    look_up_steps: int = 1_600_000
    queued_events: int = 1_024
    queued_events_per_session: int = 8_192
    queued_bytes_per_session: int = 4 << 20
