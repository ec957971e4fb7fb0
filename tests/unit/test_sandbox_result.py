"""Result: why a run ended, in the words of people, of Python, of JSON and of isolate."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.sandbox.denied import Denied
from shoal.sandbox.result import OutputFacts, Reason, Result, RunError, RunUsage, decoded
from shoal.status import ShoalError

USAGE = RunUsage(wall_s=2.5, user_s=1.25, system_s=0.5, max_memory_bytes=64 << 20)
CALL = Denied("system call", "mount", "kernel")
TREE = RunUsage(wall_s=1, user_s=0.0015, system_s=0, max_memory_bytes=10 << 20, counts_tree=True, max_pids=3)


def result(returncode: int = 0, reason: Reason = "exited", stdout: Any = None, stderr: Any = None, **more: Any) -> Result:
    return Result(more.pop("args", ["prog", "-x"]), returncode, stdout, stderr, reason=reason, **({"usage": USAGE} | more))


# --- as the standard library has it -----------------------------------------------------------------


def test_it_is_what_subprocess_gives() -> None:
    done = result(3, stdout=b"out", stderr=b"err")
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.args, done.returncode, done.stdout, done.stderr) == (["prog", "-x"], 3, b"out", b"err")


def test_a_run_that_went_well_passes_its_check() -> None:
    result(0).check_returncode()


@pytest.mark.parametrize(
    ("returncode", "reason", "words"),
    [
        (3, "exited", "command ['prog', '-x'] exited with status 3"),
        (-11, "signaled", "command ['prog', '-x'] was ended by SIGSEGV"),
        (-40, "signaled", "was ended by signal 40"),
        (-9, "oom", "was ended by its memory limit (oom)"),
        (-9, "wall_time", "was ended by its wall time limit (wall_time)"),
        (-9, "cpu_time", "was ended by its processor time limit (cpu_time)"),
        (-9, "output_limit", "was ended by its output limit (output_limit)"),
        (-15, "killed", "was ended by its caller (killed)"),
        (125, "setup_failed", "was never started (setup_failed)"),
        (0, "wall_time", "was ended by its wall time limit (wall_time)"),
    ],
)
def test_a_failed_check_says_why(returncode: int, reason: Reason, words: str) -> None:
    done = result(returncode, reason, stdout=b"out", stderr=b"err")
    with pytest.raises(RunError) as caught:
        done.check_returncode()
    error = caught.value
    assert words in str(error)
    assert isinstance(error, subprocess.CalledProcessError)
    assert isinstance(error, ShoalError)
    assert (error.cmd, error.returncode, error.output, error.stdout, error.stderr) == (["prog", "-x"], returncode, b"out", b"out", b"err")
    assert (error.result, error.reason) == (done, reason)


def test_a_failed_check_says_what_was_refused_and_what_else_is_known() -> None:
    done = result(1, denied=[Denied("file", name, "stderr") for name in ("/etc/shadow", "/a\nb", "/c", "/d", "/e")])
    assert str(RunError(done)).endswith("; denied: file /etc/shadow, file /a\\nb, file /c and 2 more")
    assert str(RunError(result(125, "setup_failed", message="no such\ndirectory"))).endswith("(setup_failed): no such\\ndirectory")


def test_results_and_their_errors_survive_pickling_and_copying() -> None:
    facts = {"stdout": OutputFacts(10, 3, "/tmp/x", 10, None)}
    done = result(
        -9, "oom", stdout=b"abc", usage=TREE, enforced={"memory": True, "pids": "best-effort"}, output=facts, denied=[CALL], message="m"
    )
    for again in (pickle.loads(pickle.dumps(done)), copy.deepcopy(done)):
        assert type(again) is Result
        assert vars(again) == vars(done)
    error = pickle.loads(pickle.dumps(RunError(done)))
    assert type(error) is RunError
    assert str(error) == str(RunError(done))
    assert vars(error.result) == vars(done)


def test_what_the_caller_changes_later_does_not_change_a_result() -> None:
    enforced: dict[str, bool | str] = {"memory": True}
    done = result(enforced=enforced)
    enforced["memory"] = False
    assert done.enforced == {"memory": True}


# --- printed ----------------------------------------------------------------------------------------


def test_its_printed_form_says_what_matters() -> None:
    assert repr(result(0, stdout=b"hello\n")) == r"Result(args=['prog', '-x'], returncode=0, reason='exited', stdout=b'hello\n')"
    done = result(-9, "output_limit", stdout=b"x" * 5000, stderr="é" * 500, output={"stdout": OutputFacts(9000, 5000)})
    assert repr(done) == (
        "Result(args=['prog', '-x'], returncode=-9, reason='output_limit', "
        f"stdout=<5000 bytes, {b'x' * 30!r}...>, stderr=<500 characters, {'é' * 30!r}...>, truncated=True)"
    )


@given(
    st.lists(st.text(max_size=5000) | st.binary(max_size=5000), max_size=100) | st.text(max_size=5000),
    st.none() | st.binary(max_size=5000) | st.text(max_size=5000),
)
def test_its_printed_form_is_short_whatever_is_in_it(args: Any, stdout: Any) -> None:
    done = result(1, args=args, stdout=stdout, stderr=stdout)
    assert len(repr(done)) < 6000  # every character of the few that are shown may take ten
    assert len(str(RunError(done))) < 6000


def test_a_command_may_have_paths_in_it() -> None:
    assert "['/bin/true']" in repr(result(args=[Path("/bin/true")]))


# --- facts ------------------------------------------------------------------------------------------


def test_truncated_is_whether_a_stream_was_cut() -> None:
    assert not result().truncated
    assert not result(output={"stdout": OutputFacts(5, 5), "stderr": OutputFacts(0, 0)}).truncated
    assert result(output={"stdout": OutputFacts(5, 5), "stderr": OutputFacts(1, 0)}).truncated


@pytest.mark.parametrize(
    ("facts", "truncated", "complete"),
    [
        (OutputFacts(5, 5), False, True),
        (OutputFacts(6, 5), True, False),
        (OutputFacts(6, 5, "/tmp/x", 6), True, True),
        (OutputFacts(6, 5, "/tmp/x", 5, "No space left on device"), True, False),
        (OutputFacts(6, 5, "/tmp/x", 6, "Input/output error"), True, False),
    ],
)
def test_complete_is_whether_all_of_a_stream_is_to_be_had_somewhere(facts: OutputFacts, truncated: bool, complete: bool) -> None:
    assert (facts.truncated, facts.complete) == (truncated, complete)


# --- JSON -------------------------------------------------------------------------------------------


def test_it_becomes_json() -> None:
    facts = {"stdout": OutputFacts(10, 3, "/tmp/x\udcff", 10, None)}
    done = result(
        args=["prog", b"\xff", "\udcfe", "\ud800", Path("/p")],
        stdout=b"a\xffb",
        stderr="text",
        enforced={"memory": True, "pids": "best-effort"},
        output=facts,
        denied=[CALL, Denied("file", "/x\udcff", "stderr")],
        unkilled=[7],
    )
    told = json.loads(json.dumps(done.to_dict()))
    assert told == {
        "args": ["prog", "\\xff", "\\xfe", "\\xed\\xa0\\x80", "/p"],
        "returncode": 0,
        "reason": "exited",
        "message": "",
        "stdout": "a\\xffb",
        "stderr": "text",
        "truncated": True,
        "output": {"stdout": {"total_bytes": 10, "kept_bytes": 3, "spill_path": "/tmp/x\\xff", "spilled_bytes": 10, "spill_error": None}},
        "usage": told["usage"],
        "enforced": {"memory": True, "pids": "best-effort"},
        "denied": [
            {"kind": "system call", "name": "mount", "known_from": "kernel"},
            {"kind": "file", "name": "/x\\xff", "known_from": "stderr"},
        ],
        "unkilled": [7],
    }
    assert told["usage"]["wall_s"] == 2.5
    assert told["usage"]["max_pids"] is None
    json.dumps(told, ensure_ascii=False).encode()  # nothing is left in it that is no text


def test_a_stream_that_was_not_captured_is_null() -> None:
    assert result().to_dict()["stdout"] is None
    assert result(args="prog").to_dict()["args"] == ["prog"]


# --- as isolate tells it ----------------------------------------------------------------------------


def meta(done: Result) -> dict[str, str]:
    text = done.meta()
    assert text.endswith("\n")
    pairs = [(key, value) for key, _, value in (line.partition(":") for line in text.splitlines())]
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


FIGURES = {"time": "1.750", "time-wall": "2.500", "max-rss": "65536"}


@pytest.mark.parametrize(
    ("returncode", "reason", "expected"),
    [
        (0, "exited", FIGURES | {"exitcode": "0"}),
        (3, "exited", FIGURES | {"exitcode": "3", "status": "RE", "message": "exited with status 3"}),
        (-11, "signaled", FIGURES | {"exitsig": "11", "status": "SG", "message": "was ended by SIGSEGV"}),
        (
            -9,
            "oom",
            FIGURES | {"exitsig": "9", "cg-oom-killed": "1", "status": "SG", "message": "was ended by its memory limit (oom)"},
        ),
        (-9, "wall_time", FIGURES | {"killed": "1", "status": "TO", "message": "was ended by its wall time limit (wall_time)"}),
        (0, "wall_time", FIGURES | {"killed": "1", "status": "TO", "message": "was ended by its wall time limit (wall_time)"}),
        (-24, "cpu_time", FIGURES | {"killed": "1", "status": "TO", "message": "was ended by its processor time limit (cpu_time)"}),
        (
            -9,
            "output_limit",
            FIGURES | {"exitsig": "9", "killed": "1", "status": "SG", "message": "was ended by its output limit (output_limit)"},
        ),
        (-9, "killed", FIGURES | {"exitsig": "9", "killed": "1", "status": "SG", "message": "was ended by its caller (killed)"}),
        (125, "setup_failed", {"status": "XX", "message": "was never started (setup_failed)"}),
    ],
)
def test_a_meta_file_has_what_isolate_would_say(returncode: int, reason: Reason, expected: dict[str, str]) -> None:
    assert meta(result(returncode, reason)) == expected


def test_the_memory_of_a_group_and_that_of_a_process_have_keys_of_their_own() -> None:
    found = meta(result(usage=TREE))
    assert (found["cg-mem"], "max-rss" in found, found["time"]) == ("10240", False, "0.002")
    both = RunUsage(1, 0, 0, 10 << 20, max_rss_bytes=5 << 20, counts_tree=True, voluntary_switches=7, forced_switches=0)
    found = meta(result(usage=both))
    assert (found["cg-mem"], found["max-rss"], found["csw-voluntary"], found["csw-forced"]) == ("10240", "5120", "7", "0")
    assert "cg-mem" not in meta(result())


def test_only_the_wall_clock_limit_is_told_with_the_word_by_which_readers_know_it() -> None:
    assert "wall" in meta(result(-9, "wall_time"))["message"]
    assert "wall" not in meta(result(-9, "cpu_time"))["message"]


@given(st.text())
def test_no_message_makes_another_line(message: str) -> None:
    found = meta(result(125, "setup_failed", message=message))
    assert set(found) == {"status", "message"}


# --- text -------------------------------------------------------------------------------------------


@given(st.text(), st.sampled_from(["utf-8", "utf-16", "utf-16-le", "shift_jis", "utf-8-sig"]))
def test_text_is_what_subprocess_makes_of_it(text: str, encoding: str) -> None:
    data = text.encode(encoding, "ignore")
    expected = data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    assert decoded(data, truncated=False, encoding=encoding) == expected
    assert decoded(data, truncated=True, encoding=encoding) == expected


@given(st.text(alphabet="aé€😀\n"), st.integers(0, 100), st.sampled_from(["utf-8", "utf-16-le", "utf-32-be"]))
def test_a_limit_may_fall_into_a_character(text: str, limit: int, encoding: str) -> None:
    cut = text.encode(encoding)[:limit]
    found = decoded(cut, truncated=True, encoding=encoding)
    assert text.startswith(found)
    assert len(cut) - len(found.encode(encoding)) < 4
    assert decoded(cut, truncated=True, encoding=encoding, errors="replace") == found


def test_half_a_character_at_the_end_of_a_whole_output_is_no_text() -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded("é".encode()[:1], truncated=False, encoding="utf-8")
    assert decoded("é".encode()[:1], truncated=False, encoding="utf-8", errors="replace") == "�"


def test_bytes_that_are_no_text_are_no_text_before_the_cut_either() -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded(b"a\xffb", truncated=True, encoding="utf-8")
    assert decoded(b"a\xffb\xe2\x82", truncated=True, encoding="utf-8", errors="surrogateescape") == "a\udcffb"


def test_an_encoding_that_there_is_not_is_said() -> None:
    for truncated in (False, True):
        with pytest.raises(LookupError, match="klingon"):
            decoded(b"x", truncated=truncated, encoding="klingon")


def test_without_an_encoding_it_is_the_one_subprocess_uses() -> None:
    done = subprocess.run(["printf", "a\\r\\nb\\rc\\n"], capture_output=True, text=True, check=True)
    assert decoded(b"a\r\nb\rc\n", truncated=False) == done.stdout == "a\nb\nc\n"
