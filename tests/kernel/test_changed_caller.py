"""A caller that is no longer what it was when it was executed: another user, not dumpable, with less to spend.

Daemons become so: they start as root, open what only root may, and go on as somebody else. Such a process is not dumpable, so that its
own /proc/self is root's, and with it the id maps of what it starts. Source: prctl(2), PR_SET_DUMPABLE; proc(5); user_namespaces(7).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from rig.features import needs
from rig.other_user import ORDINARY_UID, opening_the_way

IN_REACH = ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{opening_the_way()} && exec "$@"', "sh")

EVERYTHING = """
import ctypes, shoal
from shoal.executor import SandboxExecutor
def ended(**how):
    flags = shoal.SpawnFlags.DEFAULT_LDSVC
    with shoal.spawn("/bin/sh", ["sh", "-c", "exit 3"], flags=flags, **how) as process:
        return process.wait(timeout=30)
def shown(box=None):
    return shoal.run(["cat", "/proc/self/status"], sandbox=box, capture_output=True, text=True, check=True).stdout
def value(text, key):
    return text.split(key + ":")[1].split(chr(10))[0].split()
def everything():
    "Whatever is made in a user namespace, cold and warm."
    texts = [shown() for _ in range(4)]
    with shoal.NetNs.new() as network:
        box = shoal.Sandbox(network=network)
        nets = {shoal.run(["readlink", "/proc/self/ns/net"], sandbox=box, capture_output=True, text=True).stdout for _ in range(2)}
    with SandboxExecutor() as executor:
        called = executor.submit(pow, 2, 5).result(timeout=60)
    with shoal.Job.default() as default, default.create_child() as job:
        in_job = ended(job=job)
    return {
        "users": sorted({tuple(value(text, "Uid")) for text in texts}),
        "capabilities": sorted({value(text, "CapEff")[0] + value(text, "CapBnd")[0] for text in texts}),
        "networks": len(nets - {os.readlink("/proc/thread-self/ns/net") + chr(10)}),
        "called": called,
        "cell": ended(),
        "job": in_job,
        "command": shoal.subprocess.run(["sh", "-c", "exit 4"]).returncode,
    }
"""


def everything(user: int) -> dict[str, Any]:
    return {
        "users": [[str(user)] * 4],
        "capabilities": ["0" * 32],
        "networks": 1,
        "called": 32,
        "cell": 3,
        "job": 3,
        "command": 4,
    }


@pytest.fixture
def run_from_root(run_python):
    """Run a script that starts as root and may become the ordinary user, who reaches the interpreter too."""
    if os.geteuid():
        pytest.skip("needs root, to be somebody else later")
    become = f"""
def become():
    os.setgroups([])
    os.setresgid({ORDINARY_UID}, {ORDINARY_UID}, {ORDINARY_UID})
    os.setresuid({ORDINARY_UID}, {ORDINARY_UID}, {ORDINARY_UID})
"""
    return lambda script: run_python(become + script, prefix=IN_REACH, cwd="/")


@needs("user namespaces for ordinary users")
def test_everything_works_for_an_ordinary_user_that_is_not_dumpable(run_python):
    if os.geteuid() == 0:
        pytest.skip("needs an ordinary user: root makes no user namespaces")
    script = f"{EVERYTHING}\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\nanswer(everything())"
    assert run_python(script) == everything(os.geteuid())


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
@pytest.mark.root
def test_everything_works_for_a_daemon_that_has_given_up_root(run_from_root):
    assert run_from_root(f"{EVERYTHING}\nbecome()\nanswer(everything())") == everything(ORDINARY_UID)


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
@pytest.mark.root
def test_what_was_kept_of_root_serves_nobody_else(run_from_root):
    script = f"""{EVERYTHING}
box = shoal.Sandbox()
before = [value(shown(box), "Uid")[0] for _ in range(3)]
own = shoal.run(["true"], sandbox=box).enforced["user"]
become()
answer([before.count({ORDINARY_UID}), own, shoal.run(["true"], sandbox=box).enforced["user"], value(shown(box), "Uid")[0], everything()])
"""
    assert run_from_root(script) == [0, True, False, str(ORDINARY_UID), everything(ORDINARY_UID)]


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
@pytest.mark.root
@pytest.mark.parametrize("host", ["", "namespaces"])
@pytest.mark.parametrize("kind", ["user", "group"])
def test_who_is_somebody_else_for_a_while_only_is_refused(run_from_root, kind, host):
    # Else the program would be root again: with no_new_privs, execve(2) does not keep an effective id that is not the real one.
    script = f"""
import shoal
from rig.forbidden import forbid
if {host!r}:
    forbid({host!r})
(os.seteuid if {kind == "user"} else os.setegid)({ORDINARY_UID})
ways = [lambda: shoal.run(["id"], sandbox=shoal.Sandbox(user="caller"), capture_output=True)]
if not {host!r}:
    ways.append(lambda: shoal.spawn("/bin/true", ["true"], flags=shoal.SpawnFlags.DEFAULT_LDSVC))
told = []
for start in ways:
    try:
        told.append(["started", repr(start())])
    except shoal.SpawnError as error:
        told.append([error.status.name, str(error)])
answer(told)
"""
    for status, text in run_from_root(script):
        assert status == "ACCESS_DENIED", text
        assert f"the real {kind} id of this process, 0, and not the effective one, {ORDINARY_UID}" in text
        assert f"os.setres{kind[0]}id()" in text


def test_core_dumps_given_up_after_the_first_run(run_python):
    script = """
import resource, shoal
box = shoal.Sandbox()
codes = [shoal.run(["true"], sandbox=box).returncode for _ in range(2)]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
answer(codes + [shoal.run(["true"], sandbox=box).returncode for _ in range(2)])
"""
    assert run_python(script) == [0] * 4


@pytest.mark.parametrize(
    ("name", "resource", "value"), [("open_files", "NOFILE", 500), ("file_size", "FSIZE", 1 << 30), ("cpu_time", "CPU", 50)]
)
def test_a_limit_that_has_become_higher_than_the_callers_own_is_named(run_python, name, resource, value):
    script = f"""
import resource, shoal
box = shoal.Sandbox(limits="best-effort", {name}={value})
told = [shoal.run(["true"], sandbox=box).returncode for _ in range(2)]
resource.setrlimit(resource.RLIMIT_{resource}, ({value // 2}, {value // 2}))
for _ in range(2):
    try:
        told.append(shoal.run(["true"], sandbox=box).returncode)
    except ValueError as error:
        told.append(str(error))
answer(told)
"""
    *before, first, second = run_python(script)
    assert before == [0, 0]
    assert first == second == f"{name}: {value} is more than this process itself may have, {value // 2}; see ulimit -Ha"


def test_a_nice_value_below_the_callers_own_is_named(run_python):
    if os.geteuid() == 0:
        pytest.skip("needs an ordinary user: root may have any")
    script = """
import shoal
os.nice(5)
try:
    shoal.run(["true"], sandbox=shoal.Sandbox(nice=3))
except shoal.AccessDeniedError as error:
    answer(str(error))
"""
    assert "setting the nice value 3; one below the caller's own takes CAP_SYS_NICE or RLIMIT_NICE" in run_python(script)


@pytest.mark.parametrize("taken", [False, True], ids=["closed", "taken-by-others"])
def test_a_daemon_that_has_closed_all_descriptors(run_python, taken):
    """What was opened once and kept is opened anew, and what has its number now is left alone."""
    script = f"""{EVERYTHING}
from shoal import AddNsEntry, Directory, SpawnFlags
def all_ways():
    with shoal.spawn("/bin/true", ["true"], flags=SpawnFlags.CLONE_ALL) as process:
        direct = process.wait(timeout=30)
    with shoal.spawn("/bin/true", ["true"], flags=SpawnFlags.CLONE_ALL, actions=[AddNsEntry("/mnt", Directory.open("/usr"))]) as process:
        return [everything(), direct, process.wait(timeout=30)]
first, told = all_ways(), os.pipe()
if os.fork() == 0:
    os.setsid()
    os.dup2(told[1], 3)
    os.closerange(4, 1000)
    for number in range(4, 40) if args[0] else ():
        os.dup2(0, number)
    try:
        found = [all_ways() for _ in range(2)]
        lost = [number for number in range(4, 40) if args[0] and not os.path.samestat(os.fstat(0), os.fstat(number))]
    except BaseException as error:
        found, lost = [repr(error)], []
    os.write(3, json.dumps([found, lost]).encode())
    os._exit(0)
os.close(told[1])
with open(told[0]) as stream:
    answer([first, *json.load(stream)])
"""
    first, found, lost = run_python(script, taken)
    for everything_there, *_ in (first, *found):
        del everything_there["users"]  # each has one of its own
    assert found == [first] * 2
    assert lost == []
