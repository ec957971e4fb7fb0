"""Everything once more as an ordinary user: the tests of this folder in a second pytest under a uid that owns nothing."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rig.features import needs
from rig.other_user import ORDINARY_UID, opening_the_way

FOLDER = Path(__file__).parent
MODULES = sorted(path.name for path in FOLDER.glob("test_*.py") if path.name != Path(__file__).name)


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
