"""shoal spawn, ps, tree, status, wait, kill and audit, as their users meet them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import managed
from rig.cli import COMMAND, PATIENCE_S, User, processes_with, wait_running
from rig.desk import Desk, own_desk

import shoal.manager
from shoal.cli.table import cells_of

MARKER = f"86{os.getpid():07d}"
CTRL_C, CTRL_Z = "\x03", "\x1a"
HEADER = ["ID", "NAME", "STATE", "CORE", "PID", "STARTED", "ENDED", "COMMAND"]
COLOURS = re.compile(r"\x1b\[[0-9]*m")


@pytest.fixture
def desk() -> Iterator[Desk]:
    with own_desk() as made:
        yield made


def rows(text: str) -> list[dict[str, str]]:
    header, *lines = (line.split("\t") for line in text.splitlines())
    assert header == HEADER
    return [dict(zip(header, line, strict=True)) for line in lines]


def ready(process: subprocess.Popen[str], word: str = "ready\n") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == word


# --- spawn -d -----------------------------------------------------------------------------------------


def test_a_detached_program_is_told_by_its_number_and_runs_on(desk: Desk) -> None:
    done = desk.shoal("spawn", "-d", "sleep", MARKER)  # which starts the manager; neither holds our pipes, or this would not return
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\d+\n", done.stdout)
    [row] = rows(desk.shoal("ps").stdout)
    assert [row[name] for name in ("ID", "NAME", "STATE", "COMMAND")] == [done.stdout.strip(), "sleep", "running", f"sleep {MARKER}"]
    [pid] = processes_with(MARKER)
    assert row["PID"] == str(pid)
    assert os.sched_getaffinity(pid) == {int(row["CORE"])}


def test_a_number_that_cannot_be_written_is_told_with_the_reason(desk: Desk) -> None:
    with open("/dev/full", "w") as full:
        how = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        done = desk.shoal("spawn", "-d", "sleep", "600", **how)
        listed = desk.shoal("ps", **how)
    assert done.returncode == listed.returncode == 125
    (running,) = json.loads(desk.shoal("ps", "--json").stdout)
    assert done.stderr == f"shoal: the answer is {running['id']}, and cannot be written to stdout: No space left on device\n"
    assert listed.stderr == "shoal: the answer cannot be written to stdout: No space left on device\n"


def test_a_detached_program_has_no_input_and_its_output_is_kept(desk: Desk) -> None:
    number = desk.shoal("spawn", "-d", "sh", "-c", "cat; echo out; echo err >&2", input="typed").stdout.strip()
    assert desk.shoal("wait", number).returncode == 0
    assert desk.shoal("logs", "--stdout", number).stdout == "out\n"
    assert desk.shoal("logs", "--stderr", number).stdout == "err\n"


def test_the_options_say_where_and_with_what_it_runs(desk: Desk, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    core = str(max(os.sched_getaffinity(0)))
    script = 'pwd; echo "$PWD $A $B $HOME"; grep Cpus_allowed_list /proc/self/status'
    number = desk.spawn(
        "--name", "named", "--cwd", str(tmp_path), "-e", "A=1", "--env", "B=x y", "--env", "HOME", "--core", core, "--", "sh", "-c", script
    )
    assert desk.shoal("wait", "named").stdout == f"{number}\t0\texited 0\n"
    told = desk.shoal("logs", number).stdout.split("\n")
    assert told[:2] == [str(tmp_path), f"{tmp_path} 1 x y {os.environ['HOME']}"]
    assert told[2].split() == ["Cpus_allowed_list:", core]


def test_json_tells_the_number_and_the_name(desk: Desk) -> None:
    done = desk.shoal("spawn", "-d", "--json", "true")
    assert json.loads(done.stdout) == {"id": 0, "name": "true"}


@pytest.mark.parametrize("how", [(), ("-d",)])
def test_what_cannot_be_started_has_the_exit_codes_of_run(desk: Desk, tmp_path: Path, how: tuple[str, ...]) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\x7fELF" + b"\0" * 60)
    foreign.chmod(0o755)
    tmp_path.chmod(0o755)
    for words, code, said in [
        (["no-such-program"], 127, "shoal: no-such-program: not found in PATH\n"),
        (["/no/such/program"], 127, "shoal: /no/such/program: not found\n"),
        ([str(plain)], 126, f"shoal: {plain}: is not executable"),
        (["--core", "9999", "true"], 125, "shoal: core 9999 has no spawn daemon; there is one for"),
        (["--cwd", "/no/such", "true"], 125, "shoal: --cwd /no/such: there is no such directory\n"),
        (["--env", "=x", "true"], 125, "shoal: --env =x: write NAME=VALUE, or NAME for your own value\n"),
        (["--env", "NO_SUCH_VARIABLE", "true"], 125, "shoal: --env NO_SUCH_VARIABLE: you have no variable of that name"),
        ([], 125, "shoal: which program? usage: shoal spawn"),
    ]:
        done = desk.shoal("spawn", *how, *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith(said)
        assert done.stderr.count("\n") == 1
    done = desk.shoal("spawn", *how, str(foreign))
    assert done.returncode == 126
    assert desk.shoal("ps", "-a", "-q").stdout == ""


# --- spawn without -d ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill $$", 143), ("kill -KILL $$", 137)])
def test_the_exit_code_is_the_programs(desk: Desk, script: str, code: int) -> None:
    done = desk.shoal("spawn", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_its_streams_are_ours(desk: Desk) -> None:
    done = desk.shoal("spawn", "sh", "-c", "cat; echo err >&2", input="through\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "through\n", "err\n")
    much = desk.shoal("spawn", "head", "-c", "9000000", "/dev/zero", text=False)
    assert much.stdout == bytes(9_000_000)


def test_who_reads_its_output_may_go(desk: Desk) -> None:
    line = f"{' '.join(COMMAND)} spawn yes | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=desk.env, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == (f"y\n{128 + signal.SIGPIPE}\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_what_we_are_sent_it_is_sent(desk: Desk, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    with desk.begin("spawn", "sh", "-c", f"trap 'echo got; exit 5' {name}; echo ready; sleep 1000 & wait") as process:
        ready(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (5, "got\n", "")


def test_a_kill_by_somebody_else_is_told(desk: Desk) -> None:
    with desk.begin("spawn", "sh", "-c", "echo ready; sleep 1000") as process:
        ready(process)
        assert desk.shoal("kill", "sh").returncode == 0
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (137, "", "shoal: domain 0 was killed\n")


def test_json_tells_the_end_on_stderr(desk: Desk) -> None:
    done = desk.shoal("spawn", "--json", "sh", "-c", "echo out; exit 3")
    told = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert (told["id"], told["exit_code"], told["exit"]) == (0, 3, {"code": 3, "reason": "exited", "signal": None})


def test_the_end_of_whoever_started_it_is_not_its_own(desk: Desk) -> None:
    with desk.begin("spawn", "sh", "-c", f"echo ready; sleep {MARKER}") as process:
        ready(process)
        process.kill()
        process.wait(timeout=PATIENCE_S)
        assert desk.shoal("ps", "-q").stdout == "0\n"
        assert processes_with(f"sleep\0{MARKER}")


def test_a_manager_that_is_killed_meanwhile_takes_nothing_with_it(desk: Desk) -> None:
    with desk.begin("spawn", "sh", "-c", "echo ready; read x; echo $x; exit 4", stdin=subprocess.PIPE) as process:
        ready(process)
        os.kill(desk.manager_pid(), signal.SIGKILL)
        out, err = process.communicate("after\n", timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (4, "after\n", "")


def test_ctrl_c_reaches_what_the_program_has_started(desk: Desk) -> None:
    # A keyboard would: the program itself does not mind, and goes on when what it has started is gone.
    script = f"trap '' INT; echo ready; (trap - INT; exec sleep {MARKER}); echo over; exit 7"
    with desk.user("spawn", "sh", "-c", script) as user:
        user.expect("ready")
        wait_running(f"sleep\0{MARKER}", "S")
        user.type(CTRL_C)
        code, seen = user.until_end()
    assert code == 7
    assert "over" in seen


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_ctrl_z_stops_it_and_fg_continues_it(desk: Desk) -> None:
    with User("bash", "--norc", "--noprofile", "--noediting", "-i", env=desk.env) as user:
        user.expect("$ ")
        user.type(f"{' '.join(COMMAND)} spawn sh -c 'exec sleep {MARKER}'\n")
        wait_running(f"sleep\0{MARKER}", "S")
        user.type(CTRL_Z)
        user.expect("Stopped")
        wait_running(f"sleep\0{MARKER}", "T")
        user.type("fg\n")
        wait_running(f"sleep\0{MARKER}", "S")
        user.type(CTRL_C)
        user.expect("$ ")
        user.type("echo code $?\n")
        user.expect(f"code {128 + signal.SIGINT}")


# --- ps -----------------------------------------------------------------------------------------------


def test_where_nothing_was_started_nothing_is_listed_and_no_manager_started(desk: Desk) -> None:
    for words in (["ps"], ["ps", "-a"], ["ps", "-q"], ["tree"], ["audit"], ["kill", "--all"], ["completion", "--list", "known"]):
        done = desk.shoal(*words)
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (
            0,
            "",
            1 if words[0] in ("ps", "audit") and "-q" not in words else 0,
        )
    assert json.loads(desk.shoal("ps", "--json").stdout) == []
    for verb in ("wait", "kill", "logs", "status", "tree"):
        done = desk.shoal(verb, "3")
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.startswith("shoal: there is no domain 3: nothing has been started here")
    assert not desk.state.exists()
    with desk.user("ps") as user:
        assert user.until_end() == (0, "No domain runs. `shoal ps -a` lists what has ended, `shoal spawn -d PROGRAM` starts one.\r\n")


def test_ps_lists_what_runs_and_with_a_what_has_ended(desk: Desk) -> None:
    desk.spawn("--name", "long", "sleep", "1000")
    for script in ("exit 0", "exit 3", "kill -USR1 $$"):
        desk.shoal("wait", desk.sh(script))
    desk.spawn("--name", "short", "sleep", "1000")
    assert desk.shoal("kill", "short").returncode == 0
    assert [row["NAME"] for row in rows(desk.shoal("ps").stdout)] == ["long"]
    everything = rows(desk.shoal("ps", "-a").stdout)
    assert [row["STATE"] for row in everything] == ["running", "exited 0", "exited 3", "SIGUSR1", "killed"]
    assert [row["ID"] for row in everything] == ["0", "1", "2", "3", "4"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", row["STARTED"]) for row in everything)
    assert [row["ENDED"] == "-" for row in everything] == [True, False, False, False, False]
    assert desk.shoal("ps", "-q").stdout == "0\n"
    assert desk.shoal("ps", "-aq").stdout == "0\n1\n2\n3\n4\n"
    told = json.loads(desk.shoal("ps", "-a", "--json").stdout)
    assert [each["exit_code"] for each in told] == [None, 0, 3, 128 + signal.SIGUSR1, 137]
    assert told[0]["argv"] == ["sleep", "1000"]
    assert told[4]["started_s"] <= told[4]["ended_s"]


def test_the_history_is_told_whole_however_long_it_is(desk: Desk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_STATE_DIR", str(desk.state))
        with shoal.manager.connect() as manager:
            core = manager.cores()[0]
            much = ["x" * 50_000]  # so that an answer has room for some twenty
            for domain in [manager.spawn_program(core, "true", ["true", *much]) for _ in range(50)]:
                domain.wait()
            assert [status.id for status in manager.history()] == list(range(49, -1, -1))
    assert desk.shoal("ps", "-aq").stdout.split() == [str(number) for number in range(50)]


def test_a_table_is_aligned_and_never_wider_than_the_terminal(desk: Desk) -> None:
    desk.spawn("--name", "日本語の長い長い名前", "sh", "-c", "sleep 1000 # " + "x" * 200)
    desk.shoal("wait", desk.spawn("--name", "a-name-that-is-long-too-" + "y" * 60, "false"))
    desk.spawn("--name", "esc\x1b[31mape", "sleep", "1000")
    for width in (200, 100, 77, 40, 21, 8):
        for verb in (["ps", "-a"], ["ps"], ["tree"], ["audit"], ["status", "2"]):
            with desk.user(*verb, columns=width) as user:
                code, seen = user.until_end()
            assert code == 0
            lines = COLOURS.sub("", seen).split("\r\n")[:-1]
            assert "\x1b" not in "".join(lines)
            assert max(cells_of(line) for line in lines) <= width, (verb, width, lines)
            if verb == ["ps", "-a"] and width >= 77:
                where = {cells_of(line[: re.search("STATE|running|exited", line).start()]) for line in lines}
                assert len(where) == 1, lines


def test_colours_are_for_terminals_that_want_them(desk: Desk) -> None:
    desk.spawn("sleep", "1000")
    for env, has in ({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False):
        with desk.user("ps", env=env) as user:
            assert ("\x1b[32mrunning\x1b[0m" in user.until_end()[1]) is has
    assert "\x1b" not in desk.shoal("ps").stdout


def test_a_reader_that_goes_early_is_no_error(desk: Desk) -> None:
    desk.spawn("sleep", "1000")
    line = f"set -o pipefail; {' '.join(COMMAND)} ps | head -n 1"
    done = subprocess.run(["bash", "-c", line], env=desk.env, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout.split("\t")[0], done.stderr) == ("ID", "")
    read, write = os.pipe()
    os.close(read)
    for words in (["ps"], ["ps", "--json"], ["tree"], ["wait", "--timeout", "0", "0"], ["--help"]):
        done = desk.shoal(*words, capture_output=False, stdout=write, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) in [(141, ""), (124, "shoal: domain 0 has not ended within 0 s\n")]
    os.close(write)


# --- tree and status ------------------------------------------------------------------------------------


def test_a_tree_has_all_that_a_domain_has_started_and_nothing_else(desk: Desk) -> None:
    script = f"(sleep {MARKER}1 & sleep {MARKER}2) & (setsid sleep {MARKER}3 &) ; echo ready; exec sleep {MARKER}4"
    desk.sh(script, "--name", "many")
    desk.spawn("--name", "other", "sleep", "1000")
    for last in "1234":
        wait_running(f"{MARKER}{last}", "S")
    done = desk.shoal("tree", "many")
    head, *branches = done.stdout.splitlines()
    assert re.fullmatch(r"0 many  running  core \d+", head)
    shown = {re.sub(r"^[ │├└─]*\d+ ", "", line) for line in branches}
    assert {f"sleep {MARKER}{last}" for last in "1234"} <= shown
    [told] = json.loads(desk.shoal("tree", "--json", "many").stdout)
    assert {process["pid"] for process in told["processes"]} >= {pid for last in "1234" for pid in processes_with(f"sleep\0{MARKER}{last}")}
    assert not [process for process in told["processes"] if process["name"].startswith("shoal")]
    assert [line.split("  ")[0] for line in desk.shoal("tree").stdout.splitlines() if line[0] not in "├└│ "] == ["0 many", "1 other"]
    assert desk.shoal("kill", "many").returncode == 0
    assert desk.shoal("tree", "0").stdout == "0 many  killed\n"


@pytest.mark.cell
def test_the_tree_of_a_domain_in_a_sandbox_begins_with_its_program(desk: Desk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_STATE_DIR", str(desk.state))
        with shoal.manager.connect() as manager:
            sandbox = shoal.Sandbox(read=["/usr"])
            manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", f"sleep {MARKER} & wait"], sandbox=sandbox, name="boxed")
    wait_running(f"sleep\0{MARKER}", "S")
    [told] = json.loads(desk.shoal("tree", "--json").stdout)
    assert [process["argv"] for process in told["processes"]] == [["sh", "-c", f"sleep {MARKER} & wait"], ["sleep", MARKER]]


def test_a_process_whose_first_thread_has_ended_is_shown_as_what_it_is(desk: Desk, workload: str) -> None:
    read, write = os.pipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_STATE_DIR", str(desk.state))
        with shoal.manager.connect() as manager:
            domain = manager.spawn_program(manager.cores()[0], workload, ["workload", "leave-to-thread", "0"], stdin=read)
            managed.wait_until(lambda: managed.state_of(domain.status().pids[0]) == "Z")
    os.close(read)
    [told] = json.loads(desk.shoal("tree", "--json").stdout)
    [process] = told["processes"]
    assert (process["argv"], process["state"]) == (["workload", "leave-to-thread", "0"], "S")
    os.close(write)


def test_status_tells_what_runs_and_how_it_ended(desk: Desk) -> None:
    desk.sh(f"sleep {MARKER} & wait", "--name", "web")
    wait_running(f"sleep\0{MARKER}", "S")
    told = dict(line.split("\t", 1) for line in desk.shoal("status", "web").stdout.splitlines())
    assert (told["domain"], told["name"], told["state"], told["processes"]) == ("0", "web", "running", "2")
    assert json.loads(desk.shoal("status", "--json", "0").stdout)["usage"]["memory_bytes"] > 10_000
    assert desk.shoal("kill", "-s", "USR1", "web").returncode == 0
    desk.shoal("wait", "web")
    told = dict(line.split("\t", 1) for line in desk.shoal("status", "0").stdout.splitlines())
    assert (told["state"], told["exit code"]) == ("SIGUSR1", str(128 + signal.SIGUSR1))
    assert "pid" not in told


# --- wait -----------------------------------------------------------------------------------------------


def test_wait_tells_how_each_ended_and_ends_like_the_first_that_failed(desk: Desk) -> None:
    numbers = [desk.sh(script) for script in ("read x <&1; sleep 0.2; exit 0", "exit 4", "kill $$")]
    done = desk.shoal("wait", *numbers, numbers[0])
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout == "0\t0\texited 0\n1\t4\texited 4\n2\t143\tSIGTERM\n"
    assert desk.shoal("wait", numbers[0]).returncode == 0
    told = json.loads(desk.shoal("wait", "--json", *numbers).stdout)
    assert [each["exit_code"] for each in told] == [0, 4, 143]


def test_wait_prints_each_as_soon_as_it_is_known(desk: Desk) -> None:
    first, second = desk.sh("exit 0"), desk.spawn("sleep", "1000")
    with desk.begin("wait", first, second) as process:
        ready(process, "0\t0\texited 0\n")
        assert desk.shoal("kill", second).returncode == 0
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (137, "1\t137\tkilled\n", "")


def test_wait_can_be_limited_and_can_look_only(desk: Desk) -> None:
    number = desk.spawn("sleep", "1000")
    for timeout, told in ("0.05s", "0.05 s"), ("0", "0 s"):
        done = desk.shoal("wait", "--timeout", timeout, number)
        assert (done.returncode, done.stdout, done.stderr) == (124, "", f"shoal: domain 0 has not ended within {told}\n")
    done = desk.shoal("wait", "--timeout", "soon", number)
    assert (done.returncode, done.stderr.split(";")[0]) == (125, "shoal: --timeout: 'soon' is not a duration")


def test_a_mistaken_number_is_told_before_anything_is_waited_for(desk: Desk) -> None:
    number = desk.spawn("sleep", "1000")
    for word in ("7", "999999999999999999999999", "nobody", "-1", ""):
        done = desk.shoal("wait", number, "--", word)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr == f"shoal: there is no domain {word}; `shoal ps -a` lists those that are known\n"


def test_wait_outlives_a_manager_that_is_killed(desk: Desk) -> None:
    ended, number = desk.sh("exit 0"), desk.spawn("sleep", "1000")
    with desk.begin("wait", ended, number) as process:
        ready(process, "0\t0\texited 0\n")
        before = desk.manager_pid()
        os.kill(before, signal.SIGKILL)
        assert desk.shoal("kill", number).returncode == 0
        out, err = process.communicate(timeout=PATIENCE_S)
    assert desk.manager_pid() != before
    assert (process.returncode, out, err) == (137, "1\t137\tkilled\n", "")


# --- kill -----------------------------------------------------------------------------------------------


def test_kill_returns_when_nothing_is_left_and_says_nothing(desk: Desk) -> None:
    number = desk.sh(f"setsid sleep {MARKER} & trap '' TERM; sleep {MARKER}")
    pids = wait_running(MARKER)
    done = desk.shoal("kill", number)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_killing_what_has_ended_is_an_error_that_names_it_and_the_others_are_killed(desk: Desk) -> None:
    ended, lives = desk.sh("exit 0"), desk.spawn("sleep", "1000")
    desk.shoal("wait", ended)
    done = desk.shoal("kill", ended, "nobody", lives)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines() == [
        "shoal: there is no domain nobody; `shoal ps -a` lists those that are known",
        "shoal: domain 0 has ended already; `shoal status 0` tells how",
    ]
    assert desk.shoal("ps", "-q").stdout == ""
    assert desk.shoal("kill", "--all").returncode == 0


@pytest.mark.parametrize("word", ["USR1", "SIGUSR1", "usr1", str(int(signal.SIGUSR1))])
def test_a_signal_can_be_said_in_any_way(desk: Desk, word: str) -> None:
    number = desk.sh("trap 'exit 6' USR1; echo ready; sleep 1000 & wait")
    with desk.begin("logs", "-f", number) as process:
        ready(process)
        assert desk.shoal("kill", "-s", word, number).returncode == 0
        process.communicate(timeout=PATIENCE_S)
    assert desk.shoal("wait", number).stdout == "0\t6\texited 6\n"


def test_a_signal_that_is_none_is_refused_and_kill_is_a_kill(desk: Desk) -> None:
    number = desk.spawn("sleep", "1000")
    for word in ("NONE", "0", "65", "_HANDLER", "-9"):
        done = desk.shoal("kill", f"--signal={word}", number)
        assert (done.returncode, done.stderr) == (
            125,
            f"shoal: --signal {word}: there is no such signal; for example TERM, HUP, USR1, 10\n",
        )
    assert desk.shoal("kill", "-s", "KILL", number).returncode == 0
    assert desk.shoal("wait", number).stdout == "0\t137\tkilled\n"


def test_grace_lets_end_who_wants_to_and_kills_the_others(desk: Desk) -> None:
    gentle = desk.sh("trap 'exit 5' TERM; echo ready; sleep 1000 & wait")
    deaf = desk.sh("trap '' TERM; echo ready; sleep 1000 & wait")
    for number in (gentle, deaf):
        with desk.begin("logs", "-f", number) as process:
            ready(process)
            process.kill()
    assert desk.shoal("kill", "--grace", "0.5s", "--all").returncode == 0
    assert desk.shoal("wait", gentle, deaf).stdout == "0\t5\texited 5\n1\t137\tkilled\n"


def test_kill_has_to_be_told_whom(desk: Desk) -> None:
    for words, said in [
        ([], "which domain? name one or several, or say --all"),
        (["--all", "3"], "name domains or say --all, not both"),
        (["-s", "TERM", "--grace", "1s", "3"], "argument --grace: not allowed with argument -s/--signal (try 'shoal kill --help')"),
        (["--grace", "soon", "3"], "--grace: 'soon' is not a duration; write seconds, or for example '500ms', '30s', '1m30s'"),
    ]:
        done = desk.shoal("kill", *words)
        assert (done.returncode, done.stderr) == (125, f"shoal: {said}\n")


def test_a_name_means_the_one_that_runs_or_the_last_that_did(desk: Desk) -> None:
    desk.shoal("wait", desk.sh("exit 1", "--name", "job"))
    desk.shoal("wait", desk.sh("exit 2", "--name", "job"))
    assert desk.shoal("wait", "job").returncode == 2
    third = desk.spawn("--name", "job", "sleep", "1000")
    assert desk.shoal("wait", "--timeout", "0", "job").returncode == 124
    fourth = desk.spawn("--name", "job", "sleep", "1000")
    done = desk.shoal("kill", "job")
    assert (done.returncode, done.stderr) == (125, f"shoal: 2 domains are called job: say which: {third} {fourth}\n")


def test_a_program_may_be_called_what_is_no_text(desk: Desk, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/a\xffb")
    Path(odd).symlink_to("/bin/true")
    assert json.loads(desk.shoal("spawn", "-d", "--json", odd).stdout) == {"id": 0, "name": "a\\xffb"}
    assert desk.shoal("wait", os.path.basename(odd)).stdout == "0\t0\texited 0\n"
    done = desk.shoal("spawn", "-d", "--core", "\udcff", "true")
    assert (done.returncode, done.stderr[:25]) == (125, "shoal: core \\xff has no s")


# --- audit ----------------------------------------------------------------------------------------------


def test_the_audit_log_tells_who_did_what(desk: Desk) -> None:
    number = desk.spawn("sleep", "1000")
    desk.shoal("kill", "-s", "CONT", number)
    desk.shoal("kill", number)
    lines = [line.split("\t") for line in desk.shoal("audit").stdout.splitlines()]
    assert lines[0] == ["TIME", "WHO", "DID", "DOMAIN", "REFUSED"]
    assert [line[2:] for line in lines[1:]] == [["spawn", "0", "-"], ["signal", "0", "-"], ["kill", "0", "-"]]
    assert all(line[1].startswith(f"uid {os.getuid()} pid ") for line in lines[1:])
    assert [each["did"] for each in json.loads(desk.shoal("audit", "-n", "1", "--json").stdout)] == ["kill"]
    done = desk.shoal("audit", "-n", "many")
    assert (done.returncode, done.stderr) == (125, "shoal: --lines many: not a whole number\n")


# --- what it loads ------------------------------------------------------------------------------------


def test_without_its_library_the_extra_is_named(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise ModuleNotFoundError(\"No module named 'msgspec'\", name='msgspec')")
    env = desk.env | {"PYTHONPATH": f"{tmp_path}:{desk.env['PYTHONPATH']}"}
    for words in (["spawn", "true"], ["manager", "start"]):  # others have nothing to ask, as long as no manager runs
        done = desk.shoal(*words, env=env)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.endswith("pip install 'shoal[manager]'\n")
    assert desk.shoal("kill", "--help", env=env).returncode == 0
    assert desk.shoal("completion", "bash", env=env).returncode == 0


def test_a_run_loads_nothing_of_the_manager(desk: Desk) -> None:
    script = "import sys; from shoal.cli.main import main; main(['run', '--explain', '--', 'true']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], env=desk.env, capture_output=True, text=True, check=False, timeout=120)
    loaded = set(done.stderr.split())
    assert "shoal.cli.run" in loaded
    assert not [
        name for name in loaded if name.startswith(("shoal.manager", "msgspec", "asyncio", "sqlite3")) or name == "shoal.cli.contact"
    ]
