"""CPython's own tests of subprocess pass with shoal.subprocess in its place, but for those listed here and in the documentation."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "change-one-import.md"
FEWEST = 150

_CALLS = "replaces the standard module's call of fork and exec by a mock; shoal starts the child by a call of its own"
_WAITS = "replaces os.waitpid by a mock that tells of a stopped child; shoal waits by pidfd"
PRIVATE = {
    "ProcessTestCase.test__use_vfork": _CALLS,
    "ProcessTestCaseNoPoll.test__use_vfork": _CALLS,
    "POSIXProcessTestCase.test__use_vfork": _CALLS,
    "POSIXProcessTestCase.test_vfork_used_when_expected": "looks for the standard module's system calls",
    "POSIXProcessTestCase.test_exception_errpipe_normal": _CALLS,
    "POSIXProcessTestCase.test_exception_errpipe_bad_data": _CALLS,
    "POSIXProcessTestCase.test_stopped": _WAITS,
}
"""Tests of the standard module's private internals, and what they test. Not all are there in every version of Python."""


def _tests_are_installed() -> bool:
    try:
        return importlib.util.find_spec("test.test_subprocess") is not None
    except ImportError:
        return False


@pytest.fixture(scope="module")
def became(tmp_path_factory):
    """What became of each test."""
    if not _tests_are_installed():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        pytest.skip(f"needs the tests that come with CPython (Debian package libpython{version}-testsuite)")
    folder = tmp_path_factory.mktemp("suite")  # some write into the working directory
    answer = folder / "became.json"
    run = subprocess.run(
        [sys.executable, ROOT / "tests" / "rig" / "cpython_suite.py", answer],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return json.loads(answer.read_text())


@pytest.mark.slow
def test_what_is_not_private_passes(became):
    failed = {name: text for name, text in became.items() if text != "passed" and not text.startswith("skipped: ")}
    assert {name: text for name, text in failed.items() if name not in PRIVATE} == {}
    assert sum(text == "passed" for text in became.values()) > FEWEST


@pytest.mark.slow
def test_what_is_listed_as_private_exists_and_fails(became):
    assert set(PRIVATE) & set(became), "no listed test is there"
    assert [name for name in PRIVATE if became.get(name) == "passed"] == []


def test_the_documentation_lists_the_same_tests():
    listed = set(re.findall(r"^\| `(\w+\.test_\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert listed == set(PRIVATE)
