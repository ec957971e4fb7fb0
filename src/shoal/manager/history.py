"""History: domains that have ended, as the database remembers them."""

from __future__ import annotations

import json

from shoal.manager.domains import Domain, Ended, State
from shoal.manager.store import Row


def from_history(row: Row) -> Domain:
    """One of them."""
    argv = row.argv.split(b"\0") if row.argv else []
    started_s = json.loads(row.about).get("started_s", 0.0)
    domain = Domain(row.id, row.key, row.slot, row.name, argv, {}, started_s, state=State.CLEANED)
    if row.ended is not None:
        told = json.loads(row.ended)
        told.pop("why", None)
        domain.ended = Ended.from_dict(told)
    return domain
