"""What reaches the user: printable, and without secrets."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
from rig.cli import COMMAND, ENVIRON, shoal

from shoal.cli import output
from shoal.cli.output import Outcome, hidden, never_show, present, printable, report_failure
from shoal.sandbox.errors import RequestError
from shoal.status import Stage, Status, failure


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_secrets", [])


def test_a_secret_is_shown_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    never_show(["hunter2", 'quo"te\u00e9'])
    assert printable("token hunter2!") == "token ***!"
    present(Outcome(text="see hunter2"), as_json=False)
    present(Outcome(data={"a": ["hunter2", 'x quo"te\u00e9', {"b": ("hunter2", 5, None)}]}), as_json=True)
    report_failure(RequestError("no hunter2", hints=("add hunter2",)))
    report_failure(failure(Status.NOT_FOUND, Stage.LOAD, "hunter2: not there"))
    report_failure(OSError(2, "x", "hunter2"))
    out, err = capfd.readouterr()
    assert "hunter" not in out + err
    assert "quo" not in out
    first, second = out.splitlines()
    assert first == "see ***"
    assert json.loads(second) == {"a": ["***", "x ***", {"b": ["***", 5, None]}]}
    assert err.count("***") == 4


def test_the_longer_of_two_secrets_is_hidden_whole() -> None:
    never_show(["abcd", "abcdefgh"])
    assert hidden("abcdefgh abcd") == "*** ***"


def test_a_short_value_would_be_found_in_anything() -> None:
    never_show(["1", "", "abc"])
    assert hidden("1 abc") == "1 abc"


def test_advice_is_given_in_options(capfd: pytest.CaptureFixture[str]) -> None:
    report_failure(failure(Status.NOT_SUPPORTED, Stage.JOB, 'memory: no; or say limits="best-effort" for what each process can be held to'))
    assert "or add --limits best-effort for" in capfd.readouterr().err


# --- where it goes ----------------------------------------------------------------------------------

ANSWERS = (("--version",), ("run", "--help"), ("doctor",), ("profile", "list"), ("run", "--explain", "true"), ("completion", "zsh"))


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_an_answer_that_cannot_be_written_is_one_line_and_a_failure(words: tuple[str, ...]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = shoal(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert done.stderr.endswith("cannot be written to stdout: No space left on device\n")


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_without_a_stdout_nothing_is_missed(words: tuple[str, ...]) -> None:
    line = shlex.join([*COMMAND, *words]) + " >&-"
    done = subprocess.run(["sh", "-c", line], env=ENVIRON, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_encoding_of_stdout_lacks_is_spelled_out() -> None:
    done = shoal("run", "--explain", "--", "true", "\u00e9", env=ENVIRON | {"PYTHONUTF8": "1", "PYTHONIOENCODING": "ascii:strict"})
    assert "\narguments    true '\\xe9'\n" in done.stdout, done.stderr
