"""shoal doctor: what this machine allows."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from rig.cli import COMMAND, User, shoal
from rig.features import has, needs

from shoal.probe import features

NAMESPACES = needs("user namespaces for ordinary users")
UTIL_LINUX = needs("unshare and setpriv (Debian package util-linux)")
NO_CAPABILITIES = "setpriv --bounding-set=-all --inh-caps=-all"


def in_user_namespace(script: str, *options: str) -> dict[str, dict[str, object]]:
    """What doctor finds in a new user namespace, after `script`, in which {doctor} is the command."""
    command = script.format(doctor=shlex.join([*COMMAND, "doctor", "--json"]))
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *options, "sh", "-ec", command], capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["works"] else 1)
    return {feature["name"]: feature for feature in report["features"]}


def test_doctor_says_whether_programs_can_be_started() -> None:
    done = shoal("doctor")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "shoal can start programs here."
    rows = {line.split("  ", 1)[0].removesuffix(" ok"): line for line in lines if line[:1].strip()}
    expected = {
        "kernel",
        "clone3",
        "pidfd",
        "close_range",
        "user namespaces",
        "mount calls",
        "overlayfs",
        "memory programs",
        "landlock",
        "seccomp",
        "jobs",
        "spawn",
        "empty world",
        "sandbox",
    }
    assert expected <= set(rows)
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


def test_trying_leaves_nothing_behind() -> None:
    def around() -> tuple[list[str], str, str, str]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return sorted(os.listdir("/proc/self/fd")), children, Path("/proc/self/mountinfo").read_text(), os.getcwd()

    features()  # what is learned once and kept, such as a descriptor of /dev/null, is there afterwards
    before = around()
    features()
    assert around() == before


@NAMESPACES
@UTIL_LINUX
def test_a_forbidden_user_namespace_is_missing_for_an_ordinary_user_and_the_fix_is_named() -> None:
    found = in_user_namespace(f"echo 0 > /proc/sys/user/max_user_namespaces; exec {NO_CAPABILITIES} {{doctor}}")
    assert not found["root"]["available"]
    assert not found["user namespaces"]["available"]
    assert found["user namespaces"]["essential"] == (not found["sandbox"]["available"]), "or it is done without"
    for name in ("user namespaces", "mount calls", "overlayfs"):
        assert found[name]["fix"] == "sysctl user.max_user_namespaces=15000", name
    assert found["spawn"]["available"], "a program in the caller's world takes no namespace"
    assert not found["empty world"]["available"]


@NAMESPACES
@UTIL_LINUX
@pytest.mark.parametrize(("hidden", "fix"), [("", "pivot_root(2)"), ("proc", "mount /proc")], ids=["chroot", "without-proc"])
def test_what_a_user_namespace_needs_of_its_root_directory_is_named(tmp_path: Path, hidden: str, fix: str) -> None:
    script = f"""
    for name in $(ls /); do
        if [ -L "/$name" ]; then ln -s "$(readlink "/$name")" {tmp_path}/"$name"
        elif [ -d "/$name" ] && [ "$name" != "{hidden}" ]; then mkdir {tmp_path}/"$name"; mount --rbind "/$name" {tmp_path}/"$name" || true
        fi
    done
    exec chroot {tmp_path} {NO_CAPABILITIES} {{doctor}}"""
    found = in_user_namespace(script, "--mount")
    assert not found["user namespaces"]["available"]
    assert fix in str(found["user namespaces"]["fix"])
    assert not found["empty world"]["available"]


@NAMESPACES
@UTIL_LINUX
def test_root_needs_no_user_namespace() -> None:
    found = in_user_namespace("echo 0 > /proc/sys/user/max_user_namespaces; exec {doctor}")
    assert found["root"]["available"]
    assert "no user of their own" in str(found["root"]["detail"])
    assert not found["user namespaces"]["available"]
    assert not found["user namespaces"]["essential"]
    assert found["namespaces as root"]["available"]
    assert found["mount calls"]["available"]
    assert found["empty world"]["available"]


@NAMESPACES
@UTIL_LINUX
@pytest.mark.root
@pytest.mark.skipif(not os.path.exists("/proc/sys/vm/memfd_noexec"), reason="needs vm.memfd_noexec (Linux 6.3)")
def test_memory_that_may_not_be_executed_is_missing_and_the_fix_works() -> None:
    in_pid_namespace = ("--pid", "--fork", "--mount-proc")  # the setting belongs to the pid namespace
    found = in_user_namespace("echo 2 > /proc/sys/vm/memfd_noexec; {doctor}", *in_pid_namespace)
    assert not found["memory programs"]["available"]
    assert found["memory programs"]["fix"] == "sysctl vm.memfd_noexec=1"
    found = in_user_namespace("echo 1 > /proc/sys/vm/memfd_noexec; {doctor}", *in_pid_namespace)
    assert found["memory programs"]["available"]
