"""shoal names, caps and span: what a domain can touch, is found by, and runs on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from rig.cli import PATIENCE_S, wait_running
from rig.desk import Desk, own_desk

import shoal.manager

MARKER = f"84{os.getpid():07d}"
CTRL_C = "\x03"


@pytest.fixture
def desk() -> Iterator[Desk]:
    with own_desk() as made:
        yield made


def answered(desk: Desk, *words: str) -> str:
    done = desk.shoal("names", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- names ----------------------------------------------------------------------------------------------


def test_a_record_is_set_found_and_removed_by_anybody_who_comes_later(desk: Desk) -> None:
    assert answered(desk, "list") == ""
    assert not desk.state.exists()
    assert answered(desk, "set", "web { port: 8080, host: 'a.example' }") == ""
    answered(desk, "set", "mail { port: 25 }")
    assert answered(desk, "get", "_ { port > 1024 }") == "web { host: 'a.example', port: 8080 }\n"
    assert answered(desk, "list", "_ { port: _ }") == "mail\nweb\n"
    assert answered(desk, "list", "-l", "r'^web$'") == "NAME\tRECORD\tCARRIES\nweb\t{ host: 'a.example', port: 8080 }\t-\n"
    assert json.loads(answered(desk, "get", "web", "--json")) == {
        "name": "web",
        "attributes": {"host": "a.example", "port": 8080},
        "carries": None,
    }
    assert desk.shoal("manager", "stop").returncode == 0
    assert answered(desk, "list", "_ { port: _ }") == "mail\nweb\n"
    answered(desk, "remove", "web")
    assert answered(desk, "list", "_ { port: _ }") == "mail\n"
    assert json.loads(answered(desk, "remove", "mail", "--json")) == {"removed": "mail"}
    assert answered(desk, "list", "_ { port: _ }") == ""


def test_names_can_be_new_or_numbered(desk: Desk) -> None:
    assert answered(desk, "set", "--sequential", "job { done: false }") == "job0\n"
    assert answered(desk, "set", "--sequential", "job") == "job1\n"
    done = desk.shoal("names", "set", "--new", "job1")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.count("\n") == 1


def test_what_does_not_match_and_what_is_no_query_are_told_apart(desk: Desk) -> None:
    answered(desk, "set", "web { port: 8080 }")
    for words, code, said in [
        (("get", "nothing"), 1, "shoal: nothing matches 'nothing"),
        (("remove", "web { port: 1 }"), 1, "shoal: "),
        (("get", "web { port = 1 }"), 125, "shoal: line 1, column 12 of 'web { port = 1 }': '=': equality is written ':' or =="),
        (("wait", "--timeout", "0.05s", "nothing"), 124, "shoal: nothing was registered as 'nothing"),
        (("wait", "--timeout", "soon", "nothing"), 125, "shoal: --timeout: 'soon' is not a duration"),
        (("set", "--new", "--sequential", "web"), 125, "shoal: argument --sequential: not allowed with argument --new"),
        (("get",), 125, "shoal: which query? usage: shoal names get QUERY"),
        (("set",), 125, "shoal: which record? usage: shoal names set QUERY"),
        (("find", "web"), 125, "shoal: argument list|get|wait|watch|set|remove: invalid choice: 'find'"),
    ]:
        done = desk.shoal("names", *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith(said)
        assert done.stderr.count("\n") == 1


def test_a_record_can_be_waited_for_also_while_managers_come_and_go(desk: Desk) -> None:
    answered(desk, "set", "other")
    with desk.begin("names", "wait", "web { state: up }") as process:
        with desk.begin("names", "watch", "--existing", "web") as watching:
            answered(desk, "set", "web { state: down }")
            assert watching.stdout is not None
            assert watching.stdout.readline() == "set\tweb { state: down }\n"
        os.kill(desk.manager_pid(), signal.SIGKILL)
        answered(desk, "set", "web { state: up }")
        assert process.communicate(timeout=PATIENCE_S) == ("web { state: up }\n", "")
        assert process.returncode == 0


def test_what_happens_to_names_can_be_watched(desk: Desk) -> None:
    answered(desk, "set", "web { port: 1 }")
    with desk.begin("names", "watch", "--existing", "--json", "r'^we'") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"event": "set", "record": "web { port: 1 }", "has_value": False}
        answered(desk, "remove", "web")
        assert json.loads(process.stdout.readline())["event"] == "delete"
    with desk.user("names", "watch", "--existing") as user:
        user.expect("all_spawnds_up")
        user.type(CTRL_C)
        assert user.until_end()[0] == 130


# --- caps and span --------------------------------------------------------------------------------------


def test_caps_tells_what_a_domain_can_touch(desk: Desk) -> None:
    number = desk.spawn("--name", "web", "sleep", "1000")
    done = desk.shoal("caps", "web")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("domain 0 web")
    assert "\x1b" not in done.stdout
    told = json.loads(desk.shoal("caps", "--json", number).stdout)
    assert (told["domain_id"], told["name"]) == (0, "web")
    assert desk.shoal("caps", "--dot", number).stdout.startswith("digraph")
    desk.shoal("kill", number)
    done = desk.shoal("caps", number)
    assert (done.returncode, done.stdout) == (125, "")
    assert "shoal: domain 0" in done.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_domain_is_spanned_to_another_core(desk: Desk) -> None:
    first, second, *_ = (str(core) for core in sorted(os.sched_getaffinity(0)))
    number = desk.spawn("--core", first, "sleep", MARKER)
    done = desk.shoal("span", number, second)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(wait_running(f"sleep\0{MARKER}", "S")) == 2
    [told] = json.loads(desk.shoal("ps", "--json").stdout)
    assert told["cores"] == [int(first), int(second)]
    [tree] = json.loads(desk.shoal("tree", "--json").stdout)
    assert [process["pid"] for process in tree["processes"]] == sorted(told["pids"])
    done = desk.shoal("span", number, second)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"shoal: domain 0 has a dispatcher on core {second} already")
    assert desk.shoal("span", number, "9999").stderr.startswith("shoal: core 9999 has no spawn daemon")


@pytest.mark.cell
def test_a_domain_whose_time_is_up_ends_as_a_run_does(desk: Desk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_STATE_DIR", str(desk.state))
        with shoal.manager.connect() as manager:
            manager.spawn_program(manager.cores()[0], "sleep", ["sleep", "1000"], sandbox=shoal.Sandbox(wall_time="0.1s"))
    done = desk.shoal("wait", "0")
    assert (done.returncode, done.stdout) == (124, "0\t124\twall_time\n")
