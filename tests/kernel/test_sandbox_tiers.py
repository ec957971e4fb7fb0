"""What a sandbox is made of: in a cell, or with Landlock as the first wall where hosts forbid namespaces.

The hosts are made of what really forbids them: a seccomp filter as Docker's, the sysctl of a user namespace. What is expected of
the program in it holds on kernels with whatever Landlock they have.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rig.cli import COMMAND, ENVIRON
from rig.features import needs

import shoal
from shoal import Sandbox
from shoal.holding import start_held
from shoal.probe import landlock_abi
from shoal.sandbox.errors import RequestError
from shoal.sandbox.launch import Boxed, Order
from shoal.sandbox.program import find_program
from shoal.sandbox.tier import Tier, tier

pytestmark = pytest.mark.skipif(landlock_abi() == 0, reason="needs Landlock")
UTIL_LINUX = needs("unshare and setpriv (Debian package util-linux)")
NAMESPACES = needs("user namespaces for ordinary users")
HOSTS = ("docker", "namespaces")
ABIS = sorted({abi for abi in (1, 3, 5, landlock_abi()) if abi <= landlock_abi()})
SEEN = """
import shoal
from shoal import Sandbox
def sh(command, **box):
    done = shoal.run(["sh", "-c", command], sandbox=Sandbox(**{"read": ["/usr"]} | box), capture_output=True, text=True, timeout=60)
    return done.stdout, done.returncode, done.reason, dict(done.enforced)
"""


@pytest.fixture
def on_host(run_python: Callable[..., Any]) -> Callable[..., Any]:
    """Run a script in an interpreter around which namespaces are forbidden."""
    return lambda host, script, *args: run_python(f"from rig.forbidden import forbid\nforbid({host!r})\n" + SEEN + script, *args)


@pytest.fixture(params=ABIS, ids=lambda abi: f"abi-{abi}")
def without_cell(request: pytest.FixtureRequest) -> Callable[..., Sandbox]:
    """Makes boxes as hosts without namespaces have them, with as much of Landlock as a kernel of some age knows."""

    def make(**attributes: Any) -> Sandbox:
        box = Sandbox(**{"read": ["/usr"]} | attributes)
        Boxed.of(box).tier = Tier("landlock", request.param, "the test says so", "ask the test")
        return box

    return make


def run(command: str, box: Sandbox, **how: Any) -> shoal.Result:
    return shoal.run(["sh", "-c", command], sandbox=box, **{"capture_output": True, "text": True} | how)


# --- which one ------


def test_a_sandbox_runs_in_the_strongest_tier_there_is():
    """This machine's own, whatever it is; the result, the plan and doctor tell the same."""
    done = run("echo fine", Sandbox(read=["/usr"]))
    assert done.stdout == "fine\n"
    assert done.enforced["tier"] == tier().name
    assert done.enforced["namespaces"] is tier().is_cell
    assert done.enforced["tree"] is True
    if tier().is_cell:
        assert tier().name == ("cell, root" if os.geteuid() == 0 else "cell, user namespace")


@pytest.mark.parametrize("host", HOSTS)
def test_where_namespaces_are_forbidden_it_runs_and_says_what_it_is_made_of(on_host, host):
    script = 'answer([sh("echo fine; cat /etc/hostname; ls /; kill -0 1"), shoal.run(["true"]).returncode])'
    (output, code, reason, enforced), plain = on_host(host, script)
    assert (output, code, reason, plain) == ("fine\n", 1, "exited", 0)
    assert enforced["tier"] == "landlock"
    assert enforced["namespaces"] is False
    assert enforced["landlock"] == f"first wall, ABI {landlock_abi()}"
    assert enforced["user"] is False
    assert all(enforced[name] for name in ("tree", "network", "seccomp", "no_new_privs", "capabilities"))


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_required_and_not_there_is_refused_before_anything_starts(on_host, host):
    script = """
found = []
for name in ("namespaces", "user", "landlock", "tree", "network"):
    try:
        found.append(sh("echo fine", require=[name])[0])
    except shoal.NotSupportedError as error:
        found.append(str(error))
answer(found)
"""
    namespaces, user, *others = on_host(host, script)
    assert "namespaces is required, but it is not in force" in namespaces
    assert "user is required, but it is not in force" in user
    assert others == ["fine\n"] * 3


@pytest.mark.parametrize("host", HOSTS)
def test_without_namespaces_and_landlock_it_is_refused_with_what_would_help(on_host, host):
    script = """
found = []
for start in (lambda: sh("echo never"), lambda: shoal.run(["true"])):
    try:
        start()
    except shoal.NotSupportedError as error:
        found.append(str(error))
answer(found)
"""
    for told in on_host(f"{host}+landlock", script):
        assert "neither namespaces" in told
        assert "Landlock" in told
        assert ("CAP_SYS_ADMIN" if os.geteuid() == 0 else "seccomp profile") in told


@pytest.mark.parametrize("host", HOSTS)
def test_doctor_and_the_command_tell_of_it(host):
    def shoal_on(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rig.forbidden", host, *COMMAND, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRON, stdin=subprocess.DEVNULL, check=False)

    report = json.loads(shoal_on("doctor", "--json").stdout)
    found = {feature["name"]: feature for feature in report["features"]}
    assert report["works"]
    assert found["sandbox"]["available"]
    assert found["sandbox"]["detail"].startswith(f"landlock: Landlock ABI {landlock_abi()} as the first wall")
    assert not found["empty world"]["available"]
    plan = shoal_on("run", "--explain", "--ro", "/usr", "--", "sh", "-c", "true").stdout
    assert "no namespaces: Landlock is all that keeps it from the caller's files" in plan
    assert "tier         landlock" in plan
    assert "/usr  ro  (read)" in plan
    assert "network      none: no socket can be made or connected" in plan
    done = shoal_on("run", "--ro", "/usr", "--json", "--", "sh", "-c", "echo $HOME; exit 7")
    assert done.returncode == 7
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["enforced"]["tier"] == "landlock"
    assert not os.path.exists(done.stdout.strip())
    refused = shoal_on("run", "--ro", "/usr:/elsewhere", "--", "true")
    assert refused.returncode == 125
    assert "hand it over where it is" in refused.stderr


@NAMESPACES
@UTIL_LINUX
def test_a_sysctl_that_forbids_user_namespaces_leaves_landlock_and_is_named():
    """In a user namespace of its own: the setting of the machine stays as it is."""
    script = SEEN + 'import json; print(json.dumps([sh("id -u; echo fine"), shoal.sandbox.tier.tier().fix]))'
    command = shlex.join([sys.executable, "-c", "import shoal.sandbox.tier\n" + script])
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all " + command
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-ec", forbid], capture_output=True, text=True, env=ENVIRON, check=False
    )
    assert done.returncode == 0, done.stderr
    (output, code, _, enforced), fix = json.loads(done.stdout)
    assert (output, code, enforced["tier"]) == ("0\nfine\n", 0, "landlock")
    assert fix == "sysctl user.max_user_namespaces=15000"


@NAMESPACES
@UTIL_LINUX
def test_who_is_root_in_a_user_namespace_only_has_no_user_to_give(run_python: Callable[..., Any], tmp_path: Path) -> None:
    script = (
        SEEN
        + """
seen = sh("id -u; grep ^CapEff: /proc/self/status; echo mine >/data/file", write={"/data": args[0]})
again = [shoal.run(["true"]).returncode for _ in range(5)]
try:
    sh("true", require=["user"])
except shoal.NotSupportedError as error:
    answer([seen, again, str(error)])
"""
    )
    (output, code, _, enforced), again, refused = run_python(script, str(tmp_path), prefix=("unshare", "--user", "--map-root-user"))
    assert (output, code) == (f"0\nCapEff:\t{0:016}\n", 0)
    assert (enforced["tier"], enforced["user"], enforced["capabilities"]) == ("cell, root", False, True)
    assert again == [0] * 5
    assert "user is required, but it is not in force" in refused
    found = (tmp_path / "file").stat()
    assert (found.st_uid, found.st_size) == (os.geteuid(), len("mine\n"))


@pytest.mark.root
@NAMESPACES
@UTIL_LINUX
@pytest.mark.parametrize("capability", ["setgid", "setuid", "setpcap", "net_admin", "sys_chroot", "sys_ptrace", "sys_admin"])
def test_root_that_lacks_a_capability_does_as_an_ordinary_user_does(run_python: Callable[..., Any], capability: str) -> None:
    """As in a container that was given some of them only."""
    prefix = ("setpriv", "--inh-caps=-all", f"--bounding-set=-{capability}")
    script = SEEN + 'answer([sh("id -u"), [shoal.run(["true"]).returncode for _ in range(5)]])'
    (output, code, _, enforced), again = run_python(script, prefix=prefix)
    assert (output, code, enforced["tier"], enforced["user"]) == ("0\n", 0, "cell, user namespace", False)
    assert again == [0] * 5
    done = subprocess.run([*prefix, *COMMAND, "doctor"], capture_output=True, text=True, env=ENVIRON, check=False)
    assert done.returncode == 0, done.stdout
    assert f"as an ordinary user, for want of CAP_{capability.upper()}\n" in done.stdout


# --- what a program gets in it ------


def test_it_has_a_directory_of_its_own_that_is_gone_afterwards(without_cell, world):
    box = without_cell()
    made = run('echo $HOME $TMPDIR; cd "$TMPDIR" && echo mine > file && mkdir -m 0 shut && mkdir -p a/b && ln -s / out; cat file', box)
    home, mine = made.stdout.splitlines()
    assert (home.split()[0], mine) == (home.split()[1], "mine")
    assert not os.path.exists(home.split()[0])
    assert run("pwd; echo $PWD", without_cell(cwd="/tmp")).stdout.split()[0].startswith(os.path.realpath(os.environ.get("TMPDIR", "/tmp")))
    assert "HOME=/tmp" in run("env", without_cell(tmp=False)).stdout
    assert run("env", without_cell(env={"HOME": "/elsewhere"})).stdout.count("HOME=/elsewhere") == 1
    world.assert_unchanged()


def test_it_reads_and_writes_what_it_was_handed_and_nothing_else(without_cell, tmp_path):
    for name in ("in", "out", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}\n")
    box = without_cell(read=["/usr", tmp_path / "in"], write=[tmp_path / "out"], cwd=str(tmp_path / "out"))
    script = (
        "cat ../in/file; echo no > ../in/file; echo more >> file; echo new > made; cat ../other/file; ls ..; echo no > ../made; cat made"
    )
    done = run(script, box)
    assert done.stdout == "in\nnew\n"
    assert done.stderr.count("ermission denied") == 4
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["file", "file", "file", "made"]
    assert (tmp_path / "out" / "file").read_text() == "out\nmore\n"
    assert (tmp_path / "in" / "file").read_text() == "in\n"


def test_it_has_no_privileges_whoever_starts_it(without_cell):
    done = shoal.run(["/usr/bin/cat", "/proc/self/status"], sandbox=without_cell(), capture_output=True, text=True)
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["Seccomp_filters"]) >= 2) == ("1", "2", True)


OWN_USER = """
import os, tempfile
os.environ["TMPDIR"], tempfile.tempdir = args[0], None
def user(**box):
    output, _, _, enforced = sh("id -u; id -G; echo mine > $TMPDIR/x && stat -c %u $TMPDIR/x; (setsid sleep 60 &); kill -0 $PPID", **box)
    return [int(word) for word in output.split()], enforced["user"]
found = [user(), user(), user(user="caller"), user(write=[args[1]]), user(read=["/usr", args[1]])]
try:
    found.append(user(read=["/usr", args[1]], require=["user"]))
except shoal.NotSupportedError as error:
    found.append(str(error))
answer([found, user(require=["user"])[1], os.listdir(args[0])])
"""


@pytest.mark.root
@pytest.mark.parametrize("host", HOSTS)
def test_root_without_namespaces_is_another_user_where_nothing_is_the_callers_alone(on_host, host, tmp_path):
    """What is written could not be mapped back to the caller, and what only the caller may read not be shown."""
    with tempfile.TemporaryDirectory(prefix="tiers-", dir="/tmp") as folder:
        os.chmod(folder, 0o711 | stat.S_IROTH)
        tmp_path.chmod(0o700)
        (first, second, caller, writing, reading, refused), insisted, left = on_host(host, OWN_USER, folder, str(tmp_path))
    for own, is_own in (first, second):
        assert is_own is True
        assert len(set(own)) == 1
        assert own[0] > 0x70000000
    assert first != second, "nobody else has it while it lives"
    assert [caller, writing, reading] == [[[0, 0, 0], False]] * 3
    assert "nobody but the caller can use" in refused
    assert (insisted, left) == (True, [])


def test_streams_limits_variables_and_ends_are_as_in_a_cell(without_cell, world):
    box = without_cell(env={"NAME": "value"}, open_files=17, nice=3, core_set=[min(os.sched_getaffinity(0))])
    done = run("cat; echo $NAME $(ulimit -n) $(nice) $(nproc) $(umask); echo err >&2; exit 3", box, input="in\n")
    assert (done.stdout, done.stderr, done.returncode, done.reason) == ("in\nvalue 17 3 1 0022\n", "err\n", 3, "exited")
    assert done.usage.user_s + done.usage.system_s > 0
    assert done.usage.max_memory_bytes > 1 << 16
    killed = shoal.run(["/usr/bin/python3", "-c", "import signal; signal.alarm(1); signal.pause()"], sandbox=without_cell())
    assert (killed.reason, killed.returncode) == ("signaled", -signal.SIGALRM)
    late = run("echo partly; sleep 60", without_cell(wall_time="200ms"))
    assert (late.reason, late.returncode, late.stdout) == ("wall_time", -signal.SIGKILL, "partly\n")
    busy = run("while :; do :; done", without_cell(cpu_time=1, limits="best-effort", wall_time=60))
    assert busy.reason == "cpu_time"
    with pytest.raises(subprocess.TimeoutExpired):
        run("sleep 60", without_cell(), timeout=0.2)
    with pytest.raises(FileNotFoundError):
        shoal.run(["no-such-program"], sandbox=without_cell())
    world.assert_unchanged()


def test_what_it_leaves_running_is_killed_or_waited_for(without_cell, world):
    started = time.monotonic()
    done = run("(sleep 60; sleep 60) & sleep 60 & echo done", without_cell())
    assert (done.stdout, done.returncode) == ("done\n", 0)
    assert run("(sleep 0.2; echo later) & echo first", without_cell(linger="wait")).stdout == "first\nlater\n"
    assert time.monotonic() - started < 30
    world.assert_unchanged()


def test_what_is_kept_lives_on(without_cell, tmp_path, world):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    box = without_cell(write=[tmp_path], cwd=str(tmp_path), linger="keep", tmp=False)
    assert run("(cat fifo > copy; mv copy done) & echo started", box).stdout == "started\n"
    fifo.write_text("handed over later\n")
    deadline = time.monotonic() + 30
    while not (tmp_path / "done").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "done").read_text() == "handed over later\n"
    world.assert_unchanged()


@needs("a cgroup v2 tree in which groups can be made")
def test_a_limit_for_all_together_holds_and_tells(without_cell, world):
    done = run("for i in 1 2 3; do (while :; do :; done) & done; wait", without_cell(cpu_time="500ms", wall_time=60))
    assert (done.reason, done.enforced["cpu_time"]) == ("cpu_time", True)
    world.assert_unchanged()


def test_what_rules_cannot_say_is_refused_with_what_to_do_instead(without_cell, tmp_path):
    (tmp_path / "inside").mkdir()
    refused = {
        "hand it over where it is": {"read": {"/usr": "/usr", "/elsewhere": tmp_path}},
        "hand over what lies beside it": {"write": [tmp_path], "read": [tmp_path / "inside"]},
        "say tmp=True": {"tmp": "8M"},
        "say tmp=False": {"linger": "keep"},
        "name the devices": {"read": ["/dev/null"]},
        "hand over a terminal": {"devices": ["pts"]},
    }
    for advice, attributes in refused.items():
        with pytest.raises(RequestError, match=advice) as caught:
            run("echo never", without_cell(**attributes))
        assert caught.value.hints[-1] == "ask the test"
    with shoal.NetNs.host() as network, pytest.raises(RequestError, match='network="host" or "none"'):
        run("echo never", without_cell(network=network))


def test_a_file_that_is_exchanged_during_the_launch_is_not_allowed(without_cell, tmp_path):
    """The rule is for the file that was looked at, by identity."""
    box = without_cell(read=["/usr", tmp_path])
    boxed = Boxed.of(box)
    plan = boxed.plan(Order(find_program("/usr/bin/true", "", "/"), [], {0: 0}, "/"))
    landlock = plan.confinement.landlock
    only = tuple(rule for rule in landlock.only if rule.path != "/tmp")
    tmp_path.rename(tmp_path.with_name("moved"))
    tmp_path.mkdir()
    changed = dataclasses.replace(
        plan, confinement=dataclasses.replace(plan.confinement, landlock=dataclasses.replace(landlock, only=only))
    )
    with pytest.raises(shoal.SpawnError) as caught:
        start_held(changed, lambda user: None)
    assert caught.value.errno == errno.ESTALE


def test_arguments_too_long_for_a_message_are_refused(without_cell, world):
    with pytest.raises(shoal.SpawnError, match="64 KiB"):
        shoal.run(["/usr/bin/true", "x" * 70_000], sandbox=without_cell())
    world.assert_unchanged()


def test_scripts_and_programs_with_libraries_start(without_cell, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho script $1\n")
    script.chmod(0o755)
    assert shoal.run([str(script), "word"], sandbox=without_cell(read=[]), capture_output=True, text=True).stdout == "script word\n"
    python = without_cell(read=["/usr"])
    code = "import threading, subprocess, tempfile, json; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()"
    code += "; f = tempfile.NamedTemporaryFile(); print(subprocess.run(['echo', 'child'], capture_output=True).stdout)"
    done = shoal.run(["/usr/bin/python3", "-c", code], sandbox=python, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("thread\nb'child\\n'\n", 0), done.stderr


def test_a_caller_that_is_killed_takes_the_tree_with_it(without_cell, tmp_path):
    abi = Boxed.of(without_cell()).tier.abi
    script = (
        "import shoal\nfrom shoal.sandbox.launch import Boxed\nfrom shoal.sandbox.tier import Tier\n"
        f"box = shoal.Sandbox(read=['/usr'])\nBoxed.of(box).tier = Tier('landlock', {abi}, 'test', 'test')\n"
        f"shoal.run(['sh', '-c', 'sleep 60 & echo begun; sleep 60'], sandbox=box)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=ENVIRON | {"TMPDIR": str(tmp_path)}) as caller:
        begun = caller.stdout.readline()
        caller.kill()
        assert begun == b"begun\n"
        assert caller.stdout.read() == b"", "until nobody is left who could write"


def test_what_is_short_for_a_moment_is_no_reason_for_a_weaker_tier(run_python):
    """Out of descriptors nothing can be tried; a tier is what a machine allows, not what was there at one time."""
    script = """
import resource, shoal
from shoal.sandbox.tier import tier
most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, most[1]))
first = tier().is_cell
resource.setrlimit(resource.RLIMIT_NOFILE, most)
answer([first, tier().is_cell])
"""
    first, later = run_python(script)
    assert later == tier().is_cell
    assert first or not later
