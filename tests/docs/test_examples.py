"""Every example runs as its first lines say, and does what it says."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from shoal import PA_HND, AddHandle, AddNsEntry, Directory, File, HandleType, SetName, SpawnFlags, TransferFd

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(example, *arguments, **options):
    return subprocess.run(
        [sys.executable, EXAMPLES / example, *arguments], check=False, cwd=ROOT, capture_output=True, text=True, **options
    )


def test_every_example_has_a_test_here():
    text = Path(__file__).read_text()
    programs = [path.name for path in EXAMPLES.rglob("*") if path.suffix in {".py", ".sh"}]
    assert programs
    assert [name for name in programs if f'"{name}"' not in text and f'/{name}"' not in text] == []


@pytest.mark.timeout(120)
def test_the_demonstration_runs_and_shows_that_nothing_was_there():
    result = run("demo.py")
    assert result.returncode == 0, result.stderr
    rows = dict(re.findall(r"^   (\w[\w ()/]*?)  +\d+ +(\d+)$", result.stdout, re.MULTILINE))
    assert rows["variables in the environment"] == "0"
    assert rows["processes it can see"] == "0"
    assert rows["network interfaces"] == "0"
    assert rows["descriptors (0 to 9)"] == "3"
    assert "it is closed here" in result.stdout
    assert re.search(r"shoal, an empty world +\d+\.\d\d ms", result.stdout)


def test_descriptors_go_where_they_are_sent():
    result = run("fd_plumbing.py")
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(":", 1) for line in result.stdout.splitlines())
    assert {name: text.split()[0] for name, text in lines.items()} == {
        "as they are": "ABC",
        "a swap": "BA",
        "a cycle": "CAB",
        "one, twice": "AA",
        "not granted": "A-",
        "moved away": "B",
    }
    assert lines["moved away"].endswith("here it is closed")


@pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc")), reason="no C compiler")
def test_a_c_program_reads_the_table_and_uses_its_handle():
    result = run("startup_c/launch.py")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^handle 0xf0: a socket at descriptor \d+, rights 0x[0-9a-f]+$", result.stdout, re.MULTILINE)
    assert "name=writer%20of%20one%20line" in result.stdout
    assert "ns=/out:directory:rw" in result.stdout
    assert re.search(r"^it says: hello from process \d+$", result.stdout, re.MULTILINE)


def test_a_shell_script_reads_the_table():
    script = "examples/startup_shell.sh"
    read, write = os.pipe()
    child = shoal.spawn(
        ROOT / script,
        [os.fspath(ROOT / script)],
        flags=SpawnFlags.CLONE_NAMESPACE | SpawnFlags.CLONE_ENVIRON | SpawnFlags.DEFAULT_LDSVC,
        actions=[
            TransferFd(write, 1),
            SetName("my shell"),
            AddHandle(PA_HND(HandleType.USER0), File.from_fd(os.open(ROOT / "README.md", os.O_RDONLY))),
        ],
    )
    with open(read) as output:
        assert output.read().splitlines() == [
            "my name is my%20shell (percent-encoded)",
            "handle 0xf0 is a file at descriptor 3",
            "its first line: # shoal",
        ]
    assert child.wait() == 0


def test_a_shell_script_reads_the_entries_of_its_world():
    read, write = os.pipe()
    child = shoal.spawn(
        "/bin/sh",
        ["sh", "/examples/startup_shell.sh"],
        flags=SpawnFlags.DEFAULT_LDSVC,
        actions=[TransferFd(write, 1), AddNsEntry("/examples", Directory.open(EXAMPLES)), AddNsEntry("/tmp", Directory.tmpfs("1M"))],
    )
    with open(read) as output:
        assert output.read().splitlines() == ["I may read below /examples", "I may write below /tmp"]
    assert child.wait() == 0


@pytest.mark.skipif(not os.path.exists("/lib/systemd/systemd-socket-proxyd"), reason="systemd-socket-proxyd is not installed")
@pytest.mark.timeout(60)
def test_a_program_written_for_socket_activation_works_unchanged():
    result = run("socket_activation.py")
    assert result.returncode == 0, result.stderr
    assert "answer: THROUGH A PROGRAM WITHOUT A NETWORK" in result.stdout


@pytest.mark.timeout(120)
def test_domains_do_what_the_test_of_barrelfish_asks_for(tmp_path):
    result = run("domains.py", env=os.environ | {"TMPDIR": str(tmp_path)})
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    *steps, last = result.stdout.splitlines()
    assert [line for line in steps if line.startswith("Failed")] == []
    assert last == "all as it should be"
    if os.cpu_count() > 1:
        assert [line for line in steps if "one kill ends both" in line and "is there" in line] == steps[2:4]
    assert len([line for line in steps if line.endswith("after the last line")]) == min(2, os.cpu_count())
    assert list(tmp_path.iterdir()) == []


def untrusted(tmp_path, source, *arguments, **options):
    script = tmp_path / "script.py"
    script.write_text(source)
    return run("run_untrusted_script.py", script, *arguments, **options)


def test_an_untrusted_script_gets_its_input_and_gives_its_output(tmp_path):
    result = untrusted(tmp_path, "import sys; print(sys.stdin.read().upper(), sys.argv[1:]); sys.exit(3)", "one", "two", input="text")
    assert (result.stdout, result.stderr, result.returncode) == ("TEXT ['one', 'two']\n", "", 3)


def test_an_untrusted_script_finds_no_file_of_the_host_and_no_network(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = f"""
import os, socket
print(os.path.exists({str(secret)!r}), os.path.exists("/etc/passwd"), sorted(os.listdir("/script")), "HOME" in os.environ)
try:
    socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5)
except OSError as error:
    print("refused")
open("/tmp/own", "w").write("fine")
try:
    open(__file__, "a")
except OSError as error:
    print("read-only")
"""
        result = untrusted(tmp_path, source)
    assert result.stdout.splitlines() == ["False False ['script.py'] False", "refused", "read-only"], result.stderr


def test_an_untrusted_script_that_hangs_is_stopped_with_all_it_started(tmp_path):
    source = "import os\npid = os.fork()\nwhile True: pass\n"
    result = untrusted(tmp_path, source, env=os.environ | {"TIME_LIMIT_S": "0.5"})
    assert result.returncode == 124
    assert "stopped after 0.5 s" in result.stderr


def test_a_judge_gives_each_submission_its_verdict():
    result = run("judge.py")
    assert result.returncode == 0, result.stderr
    verdicts = {line.split()[0]: " ".join(line.split()[1:4]) for line in result.stdout.splitlines()}
    assert verdicts["right"].startswith("4/4 accepted")
    assert verdicts["wrong"].startswith("2/4 wrong answer")
    assert verdicts["slow"].startswith("0/4 time limit")
    assert verdicts["crashes"].startswith("0/4 crashed")
    assert {verdicts[name][:11] for name in ("cheats", "peeks", "escapes")} == {"0/4 runtime"}


def test_a_judge_grades_files(tmp_path):
    (tmp_path / "mine.py").write_text("def solve(n):\n    return sum(x * x for x in n if not x % 2)\n")
    result = run("judge.py", tmp_path / "mine.py")
    assert result.stdout.split()[:3] == ["mine", "4/4", "accepted"], result.stderr


def test_a_reward_cannot_be_had_by_cheating():
    result = run("rl_reward.py")
    assert result.returncode == 0, result.stderr
    *rewards, batch = result.stdout.splitlines()
    assert [line.split()[0] for line in rewards] == ["1.0", "0.4", "0.0", "0.0", "0.0", "0.0", "0.0", "0.0"]
    assert "SyntaxError" in rewards[-1] or "invalid syntax" in rewards[-1] or "expected" in rewards[-1]
    assert re.match(r"a batch of 120: mean reward 0\.467, \d+ a second$", batch)


def test_a_plugin_host_goes_on_without_those_that_fail():
    result = run("plugin_host.py", input="a\nb\n")
    assert result.returncode == 1
    assert result.stdout.split() == ["1", "A", "2", "B", "3", "!"]
    assert "[shout] shouting 4 characters" in result.stderr
    assert "left out: phone_home: RemoteOSError" in result.stderr
    assert "left out: number" not in result.stderr


def test_a_plugin_host_takes_a_folder(tmp_path):
    (tmp_path / "reverse.py").write_text("def transform(text, settings):\n    return text[::-1]\n")
    (tmp_path / "odd.py").write_text("def transform(text, settings):\n    return 3\n")
    result = run("plugin_host.py", tmp_path, input="abc")
    assert result.stdout == "cba\n"
    assert "left out: odd: TypeError: odd returned a int" in result.stderr


SOURCE = "import os; print(sum(range(10)), 'USER' in os.environ, flush=True); open('/work/new', 'w')"
CALLS = [
    {"name": "count", "tool": "shell", "input": "wc -l < calls.json; sed -n '/:/p' /proc/net/dev | wc -l"},
    {"name": "sum", "tool": "python", "input": SOURCE},
    {"name": "hangs", "tool": "shell", "input": "echo begun; (setsid sleep 77.25 &); sleep 77.25"},
    {"name": "floods", "tool": "shell", "input": "yes"},
]


@pytest.mark.parametrize("loop", [[], ["--trio"]], ids=["asyncio", "trio"])
@pytest.mark.timeout(120)
def test_the_tool_calls_of_an_agent_are_run_apart_and_at_the_same_time(tmp_path, loop):
    (tmp_path / "calls.json").write_text(json.dumps(CALLS, indent=0))
    result = run("agent_tool_runner.py", *loop, tmp_path / "calls.json", env=os.environ | {"TIME_LIMIT_S": "1"})
    assert result.returncode == 0, result.stderr
    lines, _, summary = result.stdout.partition("\n[\n")
    told = {outcome["name"]: outcome for outcome in json.loads("[" + summary)}
    assert "hangs: begun" in lines.splitlines()
    assert (told["count"]["status"], told["count"]["output"]) == ("exited", ["21", "1"])  # a loopback device and nothing else
    assert told["sum"]["output"][0] == "45 False"
    assert "Read-only file system" in told["sum"]["output"][-1]
    assert (told["hangs"]["status"], told["hangs"]["output"], told["hangs"]["returncode"]) == ("wall_time", ["begun"], -9)
    assert told["floods"]["status"] == "too much output"
    assert subprocess.run(["pgrep", "-f", "sleep 77.25"], capture_output=True, check=False).stdout == b""


@pytest.mark.timeout(120)
def test_the_tool_runner_shows_what_it_is_for_without_arguments():
    result = run("agent_tool_runner.py", env=os.environ | {"TIME_LIMIT_S": "1"})
    assert result.returncode == 0, result.stderr
    told = {outcome["name"]: outcome for outcome in json.loads("[" + result.stdout.partition("\n[\n")[2])}
    assert told["look"]["output"][-1].endswith("'/home': No such file or directory")
    assert told["sum"]["output"] == ["45"]
    assert "Network is unreachable" in told["phone home"]["output"][-1]
    assert told["hang"]["status"] == "wall_time"
    assert told["flood"]["status"] == "too much output"


@pytest.mark.timeout(120)
def test_an_answer_ends_the_calls_that_are_not_needed_any_more(tmp_path):
    calls = [
        {"name": "slow", "tool": "shell", "input": "echo begun; sleep 78.25"},
        {"name": "missing", "tool": "shell", "input": "cat /etc/shadow"},
        {"name": "answer", "tool": "answer", "input": "sleep 0.3; echo 42"},
    ]
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    result = run("agent_tool_runner.py", tmp_path / "calls.json", env=os.environ | {"TIME_LIMIT_S": "60"})
    assert result.returncode == 0, result.stderr
    told = {outcome["name"]: outcome for outcome in json.loads("[" + result.stdout.partition("\n[\n")[2])}
    assert told["slow"]["status"] == "cancelled"
    assert "No such file" in told["missing"]["output"][0]
    assert (told["answer"]["status"], told["answer"]["output"]) == ("exited", ["42"])
    assert subprocess.run(["pgrep", "-f", "sleep 78.25"], capture_output=True, check=False).stdout == b""
