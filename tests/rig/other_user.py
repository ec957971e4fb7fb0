"""Running something as an ordinary user, from a test that is root.

The interpreter may lie where only root can enter (a home folder). Then what is run gets a mount namespace of its own in which the way to
it is open; nothing of the machine changes.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

ORDINARY_UID = 65534


def _closed_ancestor(path: Path) -> Path | None:
    """The outermost folder on the way to `path` that others may not enter, if there is one."""
    return next((at for at in [*reversed(path.parents), path] if not at.stat().st_mode & 0o001), None)


def opening_the_way() -> str:
    """Shell commands that make the interpreter reachable for everybody, in a mount namespace of their own."""
    prefix = Path(sys.base_prefix).resolve()
    closed = _closed_ancestor(prefix)
    if closed is None:
        return ":"
    quoted, hidden = shlex.quote(str(prefix)), shlex.quote(str(closed))
    return (
        f'way=$(mktemp -d) && mount --bind {quoted} "$way" && mount -t tmpfs -o mode=755 none {hidden} && mkdir -p {quoted} '
        f'&& mount --move "$way" {quoted} && rmdir "$way"'
    )


def as_ordinary_user(*unshared: str, before: str = ":") -> tuple[str, ...]:
    """Words to put before a command, which is then run as the ordinary user.

    Args:
        unshared: more for unshare(1), such as "--pid", "--fork".
        before: what root does in the shell first.
    """
    drop = f'setpriv --reuid {ORDINARY_UID} --regid {ORDINARY_UID} --clear-groups --inh-caps=-all "$@"'
    script = f"{before} && {opening_the_way()} && exec {drop}"
    return ("unshare", "--mount", "--propagation", "private", *unshared, "sh", "-c", script, "sh")
