"""Everything once more as an ordinary user: the tests of this folder in a second pytest under a uid that owns nothing.

The interpreter may lie where only root can enter (a home folder). Then the second run gets a mount namespace of its own in
which the way to it is open; nothing of the machine changes.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rig.features import needs

FOLDER = Path(__file__).parent
ORDINARY_UID = 65534
MODULES = sorted(path.name for path in FOLDER.glob("test_*.py") if path.name != Path(__file__).name)


def closed_ancestor(path):
    """The outermost folder on the way to `path` that others may not enter, if there is one."""
    return next((at for at in [*reversed(path.parents), path] if not at.stat().st_mode & 0o001), None)


def opening_the_way():
    """Shell commands that make the interpreter reachable for everybody, in a mount namespace of their own."""
    prefix = Path(sys.base_prefix).resolve()
    closed = closed_ancestor(prefix)
    if closed is None:
        return ":"
    quoted, hidden = shlex.quote(str(prefix)), shlex.quote(str(closed))
    return (
        f'way=$(mktemp -d) && mount --bind {quoted} "$way" && mount -t tmpfs -o mode=755 none {hidden} && mkdir -p {quoted} '
        f'&& mount --move "$way" {quoted} && rmdir "$way"'
    )


@pytest.fixture
def as_user():
    """Run a command as the ordinary user, with a home of its own; returns the finished process."""
    # Not below pytest's own folder: another run of pytest by the same user closes that one to everybody else.
    made = tempfile.TemporaryDirectory(prefix="as-user-", dir="/tmp", ignore_cleanup_errors=True)
    home = Path(made.name)
    os.chown(home, ORDINARY_UID, ORDINARY_UID)

    def run(*command):
        drop = f"exec setpriv --reuid {ORDINARY_UID} --regid {ORDINARY_UID} --clear-groups --inh-caps=-all --no-new-privs " + shlex.join(
            command
        )
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        environ |= {name: os.environ[name] for name in ("CI", "PYTHONPATH") if name in os.environ}
        script = f"{opening_the_way()} && {drop}"
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            env=environ,
            cwd=FOLDER.parent.parent,
            check=False,
            capture_output=True,
            text=True,
        )

    yield run
    made.cleanup()


@pytest.mark.root
@pytest.mark.slow
@needs("unshare and setpriv (Debian package util-linux)")
@pytest.mark.parametrize("module", MODULES)
def test_the_same_holds_for_an_ordinary_user(as_user, module, tmp_path_factory):
    base = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "-m", "not root", str(FOLDER / module))
    done = as_user(sys.executable, *base)
    print(done.stdout)
    assert done.returncode in (0, 5), done.stdout + done.stderr  # 5: nothing in it is for an ordinary user
