"""shoal doctor: what this machine allows."""

from __future__ import annotations

import json

from rig.cli import COMMAND, User, shoal
from rig.features import has


def test_doctor_says_whether_programs_can_be_started() -> None:
    done = shoal("doctor")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "shoal can start programs here."
    rows = {line[:20].strip(): line for line in lines if line[:1].strip()}
    assert {"kernel", "clone3", "user namespaces", "landlock", "seccomp", "jobs", "spawn", "empty world"} <= set(rows)
    assert " ok " in rows["spawn"]
    assert " ok " in rows["empty world"]
    assert "\x1b" not in done.stdout


def test_doctor_agrees_with_what_the_tests_found() -> None:
    found = {feature["name"]: feature for feature in json.loads(shoal("doctor", "--json").stdout)["features"]}
    assert found["root"]["available"] == has("root")
    assert found["user namespaces"]["available"] == has("user namespaces for ordinary users")
    assert found["jobs"]["available"] == has("a cgroup v2 tree in which groups can be made")


def test_whatever_is_missing_and_essential_comes_with_a_way_to_get_it() -> None:
    report = json.loads(shoal("doctor", "--json").stdout)
    assert report["works"] == all(feature["available"] for feature in report["features"] if feature["essential"])
    assert all(feature["fix"] for feature in report["features"] if feature["essential"] and not feature["available"])


def test_doctor_leaves_a_terminal_readable() -> None:
    with User(*COMMAND, "doctor") as user:
        code, seen = user.until_end()
        assert code == 0
        assert "shoal can start programs here." in seen
        assert user.is_as_found
