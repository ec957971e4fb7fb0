"""The attacks once more as an ordinary user, in whose sandboxes the program is the caller itself, in a user namespace.

How a second pytest is started under such a uid is said in tests/kernel/test_as_user.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import kernel.test_as_user
import pytest
from rig.features import needs

as_user = kernel.test_as_user.as_user


@pytest.mark.root
@pytest.mark.slow
@needs("unshare and setpriv (Debian package util-linux)")
@needs("user namespaces for ordinary users")
def test_no_attack_succeeds_for_an_ordinary_user(as_user):
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "-m", "not root")
    done = as_user(sys.executable, *words, str(Path(__file__).parent))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
