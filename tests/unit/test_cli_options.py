"""The options of `shoal run` that are about the sandbox: each is an attribute, a mistake names it, and the profile is what they add to."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import pytest

from shoal.cli.options import LIMITS, PROTECTIONS, add_options, assigned, listed, parse_core_set, sandbox_of
from shoal.cli.output import CommandError
from shoal.cli.request import make_environ, parse_fd
from shoal.sandbox.box import ENVIRONMENT, Sandbox

OTHERWISE = {"read": "--ro", "write": "--rw", "env": "--env", "cwd": "--cwd", "io": "only in a profile"}
"""Attributes that no option of the table is about."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = tmp_path / "shoal" / "profiles"
    made.mkdir(parents=True)
    return made


def box(*words: str) -> Sandbox:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile")
    add_options(parser)
    return sandbox_of(parser.parse_args(words), "/usr/bin/true")


def test_every_attribute_has_an_option_and_every_option_an_attribute() -> None:
    attributes = {item.name for item in dataclasses.fields(Sandbox)}
    options = [option.field for option in (*LIMITS, *PROTECTIONS)]
    assert len(set(options)) == len(options)
    assert set(options) | set(OTHERWISE) == attributes


def test_without_options_it_is_a_sandbox_as_it_is() -> None:
    assert box() == Sandbox()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--memory 1G --swap 0 --pids 5 --cpus 1.5", {"memory": "1G", "swap": "0", "pids": 5, "cpus": 1.5}),
        ("--cpu-time 10s --wall-time 1m --open-files 64", {"cpu_time": "10s", "wall_time": "1m", "open_files": 64}),
        ("--file-size 1M --core-set 0,2-3 --nice -5", {"file_size": "1M", "core_set": (0, 2, 3), "nice": -5}),
        ("--tmp 64M --seccomp strict --limits best-effort", {"tmp": "64M", "seccomp": "strict", "limits": "best-effort"}),
        ("--tmp none --linger wait --user caller --network host", {"tmp": False, "linger": "wait", "user": "caller", "network": "host"}),
        ("--require user --require seccomp --device kvm --device fuse", {"require": ("user", "seccomp"), "devices": ("kvm", "fuse")}),
        ("--secret A --secret B", {"secrets": ("A", "B")}),
    ],
)
def test_options_are_attributes(words: str, expected: dict[str, object]) -> None:
    assert box(*words.split()) == Sandbox(**expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--memory lots", "--memory: 'lots' is not a size"),
        ("--memory 5", "--memory: '5' is too little"),
        ("--pids many", "--pids: 'many' is not a whole number"),
        ("--pids 0", "--pids has to lie between 1"),
        ("--cpus fast", "--cpus: 'fast' is not a number"),
        ("--cpus 0", "--cpus has to be a number of processors"),
        ("--cpu-time soon", "--cpu-time: 'soon' is not a duration"),
        ("--wall-time 0", "--wall-time is 0: a program needs some time"),
        ("--open-files 1", "--open-files has to lie between 3"),
        ("--core-set 3-1", "--core-set: '3-1' is no list of processors"),
        ("--core-set 99999", "--core-set: 99999 is not the number of a processor"),
        ("--nice 50", "--nice has to lie between -20 and 19"),
        ("--require seccom", "--require: nothing is called 'seccom'; did you mean 'seccomp'"),
        ("--profile pyhton", "there is no profile 'pyhton'; did you mean 'python'"),
    ],
)
def test_a_mistake_names_the_option(words: str, said: str) -> None:
    with pytest.raises(CommandError) as caught:
        box(*words.split())
    assert caught.value.message.startswith(said)
    assert caught.value.code == 125


def test_an_option_wins_over_the_profile_and_one_that_repeats_adds_to_it(folder: Path) -> None:
    (folder / "mine.toml").write_text('pids = 5\nnice = 3\nsecrets = ["A"]\nrequire = ["user"]\nnetwork = "host"\ncore_set = [0, 1]\n')
    assert box("--profile", "mine") == Sandbox(pids=5, nice=3, secrets=["A"], require=["user"], network="host", core_set=[0, 1])
    found = box("--profile", "mine", "--pids", "9", "--secret", "B", "--require", "seccomp", "--network", "none", "--core-set", "1")
    assert found == Sandbox(pids=9, nice=3, secrets=("A", "B"), require=("user", "seccomp"), core_set=(1,))


@pytest.mark.parametrize(("text", "cores"), [("0", (0,)), ("0,2-3", (0, 2, 3)), ("5-5,1", (5, 1))])
def test_a_list_of_processors(text: str, cores: tuple[int, ...]) -> None:
    assert parse_core_set(text) == cores


@pytest.mark.parametrize("text", ["", ",", "a", "1-", "-1", "1--2", "0-9999999999", "1,,2", "\u00b2", "1 2"])
def test_what_is_no_list_of_processors(text: str) -> None:
    with pytest.raises(ValueError, match="no list of processors"):
        parse_core_set(text)


def test_the_limits_of_all_together_are_listed() -> None:
    assert listed(Sandbox()) == {}
    assert listed(Sandbox(memory="1G", pids=5, open_files=9, io={"/dev/sda": "1M"})) == {
        "memory": "1G",
        "swap": 0,
        "pids": 5,
        "io": {"/dev/sda": "1M"},
    }


# --- variables and descriptors ----------------------------------------------------------------------


def test_variables_come_from_the_profile_and_from_options_which_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "here")
    monkeypatch.delenv("NONE", raising=False)
    assert make_environ({}, None, {}) == ENVIRONMENT
    made = make_environ(assigned(["A=1=2", "MINE", "NONE", "E="]), None, {"A": "0", "B": "0", "TERM": "vt100"})
    assert made == {**ENVIRONMENT, "TERM": "vt100", "A": "1=2", "B": "0", "MINE": "here", "E": ""}


def test_cloned_variables_replace_the_fixed_ones_and_leave_out_what_speaks_of_this_process() -> None:
    ours = {"HOME": "/home/me", "PWD": "/x", "OLDPWD": "/y", "LISTEN_FDS": "1", "LISTEN_PID": "2", "SHOAL_STARTUP": "z"}
    assert make_environ({}, ours, {"B": "1"}) == {"HOME": "/home/me", "B": "1"}


@pytest.mark.parametrize("text", ["=x", "="])
def test_a_variable_has_a_name(text: str) -> None:
    with pytest.raises(CommandError, match="NAME=VALUE"):
        assigned([text])


def test_a_variable_of_the_callers_may_have_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "here")
    monkeypatch.delenv("NONE", raising=False)
    assert assigned(["MINE", "B="], "you have") == {"MINE": "here", "B": ""}
    with pytest.raises(CommandError, match="--env NONE: you have no variable of that name; write NONE=VALUE"):
        assigned(["MINE", "NONE"], "you have")


def test_descriptors() -> None:
    assert (parse_fd("7"), parse_fd("7=9")) == ((7, 7), (7, 9))
    for text in ("", "=", "7=", "=7", "a", "-1", "7=a", "7=8=9"):
        with pytest.raises(CommandError, match="--fd"):
            parse_fd(text)


def test_nothing_here_is_for_this_machine_only() -> None:
    """A profile is for whoever it is written for: processors that this machine lacks are no mistake."""
    assert box("--core-set", str(os.cpu_count() or 1)).core_set == (os.cpu_count() or 1,)
