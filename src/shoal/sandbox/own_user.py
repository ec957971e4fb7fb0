"""A user of its own, where no id map can be had: root may become one if nothing that is handed over belongs to the caller alone.

In a cell what is written is mapped to the caller, and what only the caller may read is shown as the program's. Without mounts neither
can be, so that such a program stays the caller, without capabilities, and the result says so.
"""

from __future__ import annotations

import os
import stat

from shoal.privileges import has_capability, is_initial_user_namespace
from shoal.sandbox.box import Sandbox

_NEEDED = (0, 1, 3, 6, 7)  # CAP_CHOWN, DAC_OVERRIDE and FOWNER for the directory in the place of /tmp; CAP_SETGID, SETUID


def may_become_another(box: Sandbox) -> bool:
    """Whether programs in this box could run as somebody else than the caller, as far as the box tells."""
    if box.user != "dynamic" or box.write:
        return False
    if not all(map(has_capability, _NEEDED)) or not is_initial_user_namespace():
        return False
    import tempfile  # costly, and hardly ever needed

    return is_open_to_all(os.path.realpath(tempfile.gettempdir()))


def is_open_to_all(path: str) -> bool:
    """Whether everybody may read a file, or enter and list a directory; and get there.

    Args:
        path: absolute, without symbolic links.
    """
    try:
        mode = os.stat(path).st_mode
        if not mode & stat.S_IROTH or (stat.S_ISDIR(mode) and not mode & stat.S_IXOTH):
            return False
        while path != "/":
            path = os.path.dirname(path)
            if not os.stat(path).st_mode & stat.S_IXOTH:
                return False
    except OSError:
        return False
    return True
