"""shoal spawn with options of a sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig.desk import Desk, own_desk


@pytest.fixture
def desk() -> Iterator[Desk]:
    with own_desk() as made:
        yield made


def test_in_a_sandbox_a_domain_sees_only_what_it_was_handed(desk: Desk, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "in").write_text("handed over")
    (tmp_path / "out").mkdir()
    script = f"cat /in; echo $A $HOME; echo written > /out/file; test -e {tmp_path} || echo nothing else"
    words = ("--ro", "/usr", "--ro", f"{tmp_path}/in:/in", "--rw", f"{tmp_path}/out:/out", "-e", "A=b", "--", "sh", "-c", script)
    done = desk.shoal("spawn", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "handed overb /tmp\nnothing else\n"
    assert (tmp_path / "out" / "file").read_text() == "written\n"


def test_any_option_of_a_sandbox_asks_for_one_and_without_there_is_none(desk: Desk) -> None:
    worlds = {}
    for options in ((), ("--sandbox",), ("--seccomp", "strict"), ("--profile", "untrusted"), ("--clone-env",), ("--ro", "/usr")):
        number = desk.spawn(*options, "--", "sleep", "1000")
        worlds[options] = json.loads(desk.shoal("caps", number, "--json").stdout)["granted"]["world"]
    assert worlds.pop(()) == "caller"
    assert set(worlds.values()) == {"cell"}


def test_what_an_option_says_adds_to_the_profile(desk: Desk, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "state").mkdir()
    script = "ls -d /usr /state; ulimit -n"
    options = ("--profile", "build", "--rw", f"{tmp_path}/state:/state", "--open-files", "64")
    done = desk.shoal("spawn", *options, "--", "sh", "-c", script, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("/state\n/usr\n64\n", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--ro", "/nowhere/at/all"), "--ro /nowhere/at/all: /nowhere/at/all: No such file or directory"),
        (("--memory", "ten"), "--memory: 'ten' is not a size"),
        (("--profile", "pyton"), "pyton"),
        (("--core-set", "1"), "--core-set: a domain is bound to one core, which --core says"),
        (("--sandbox", "--cwd", "/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_meant_is_said(desk: Desk, options: tuple[str, ...], told: str) -> None:
    done = desk.shoal("spawn", "-d", *options, "--", "true")
    assert done.returncode == 125
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
