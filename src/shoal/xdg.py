"""The directories that the XDG variables name.

Source: XDG Base Directory Specification 0.8, which has a relative path ignored.
"""

from __future__ import annotations

import os


def directory(variable: str) -> str:
    """What `variable` names; "" where it is not set, or relative."""
    path = os.environ.get(variable, "")
    return path if os.path.isabs(path) else ""
