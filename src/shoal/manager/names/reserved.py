"""Names that stand for parts of the manager, which only its capability may set. Touches: nothing. Source: spec 1.3 and 5.11 (ours)."""

from __future__ import annotations

import re
from typing import Final

from shoal.manager.errors import ManagerError
from shoal.manager.names.index import PRIVATE

_NAMES: Final = frozenset({"proc_mgmt", "all_spawnds_up"})
_PREFIXES: Final = ("proc_mgmt.", "spawn.", "arrakis.")
_SECRET: Final = re.compile(r"idcapid\.[0-9a-f]{32,64}")


def is_reserved(name: str) -> bool:
    """Whether only the manager capability may set or remove a record of this name."""
    return name in _NAMES or name.startswith(_PREFIXES)


def check_secret(name: str) -> None:
    """Refuse a name in the place of an id capability that anybody could guess.

    Raises:
        ManagerError: OCT_ERR_IDCAP_INVOKE.
    """
    if name.startswith(PRIVATE) and not _SECRET.fullmatch(name):
        raise ManagerError(
            "OCT_ERR_IDCAP_INVOKE", f"{PRIVATE} is followed by an id capability, 32 to 64 hexadecimal digits that cannot be guessed"
        )
