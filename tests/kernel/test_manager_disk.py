"""A manager whose disk is full, read-only or damaged, or that wakes up after another boot: it is said, and domains that run go on."""

import os
import random
import re
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from rig import managed
from rig.features import has, needs

import shoal.manager
from shoal.manager import ExitStatus, ManagerError
from shoal.manager.ledger import SIZE

KILLED = ExitStatus(9, "killed", 9)
MOVE_AWAY = re.escape("move manager.db and what begins with its name away")
OWN_MOUNTS = ("unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), "--mount", "--propagation", "private")
PRELUDE = """
import contextlib, signal, subprocess, threading
from pathlib import Path
from rig import managed
import shoal.manager
from shoal.manager import ManagerError

state = Path(args[0]).resolve()
os.environ["SHOAL_STATE_DIR"] = str(state)

def sh(script, **how):
    return manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", script], **how)

def refused(what):
    try:
        what()
    except ManagerError as error:
        return str(error)
    return "it was not"

def shown(status):
    return [status.code, status.reason]

def kill_manager():
    pid = managed.manager_pid(state)
    os.kill(pid, signal.SIGKILL)
    managed.wait_gone(pid)
"""


state, manager = managed.state, managed.manager


@pytest.fixture
def with_mounts(run_python, tmp_path):
    """Run a script that may mount over its state directory."""
    if os.geteuid() != 0 and not has("user namespaces for ordinary users"):
        pytest.skip("needs user namespaces for ordinary users")

    def run(script):
        (tmp_path / "state").mkdir()
        finish = "\nfinally:\n    managed.end_all(state)\n"
        indented = "".join(f"    {line}\n" for line in script.strip().splitlines())
        return run_python(PRELUDE + "try:\n" + indented + finish, str(tmp_path / "state"), prefix=OWN_MOUNTS)

    return run


def kill_manager(state):
    pid = managed.manager_pid(state)
    os.kill(pid, signal.SIGKILL)
    managed.wait_gone(pid)


def stop_manager(state, manager):
    pid = managed.manager_pid(state)
    manager.stop()
    managed.wait_gone(pid)


def sh(manager, script, **how):
    return manager.spawn_program(manager.cores()[0], "sh", ["sh", "-c", script], **how)


def slow(manager):
    """A domain that has written something, and writes again and ends with 5 once the returned descriptor is closed."""
    read, write = os.pipe()
    domain = sh(manager, "echo one; read x; echo two; exit 5", stdin=read)
    os.close(read)
    assert next(domain.logs(follow=True)) == b"one\n"
    return domain, write


# --- no room, no writing --------------------------------------------------------------------------------


@needs("unshare and setpriv (Debian package util-linux)")
def test_on_a_full_disk_what_runs_goes_on_and_nothing_is_lost(with_mounts):
    found = with_mounts("""
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", state], check=True)
with shoal.manager.connect() as manager:
    runs = sh("sleep 1000")
    read, write = os.pipe()
    ends = sh("read x; echo more; exit 6", stdin=read)
    with open(state / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    told = {"refused": refused(lambda: [sh("exit 0", name="n" * 3000) for _ in range(50)])}
    os.close(write)
    told["ended"] = shown(ends.wait())
    kill_manager()
    told["ended, at the next"] = shown(ends.wait())
    told["runs"] = runs.status().state
    told["still refused"] = refused(lambda: [sh("exit 0", name="n" * 3000) for _ in range(50)])
    runs.kill()
    told["killed"] = shown(runs.wait())
    (state / "filler").unlink()
    told["room"] = shown(sh("exit 3").wait())
    managed.wait_until(lambda: not managed.slots(state))
    kill_manager()
    told["in the end"] = [shown(ends.wait()), shown(runs.wait()), manager.domains()]
    answer(told)
""")
    assert "the disk is full; make room" in found.pop("refused")
    assert "make room" in found.pop("still refused")
    assert found == {
        "ended": [6, "exited"],
        "ended, at the next": [6, "exited"],
        "runs": "running",
        "killed": [9, "killed"],
        "room": [3, "exited"],
        "in the end": [[6, "exited"], [9, "killed"], []],
    }


@needs("unshare and setpriv (Debian package util-linux)")
def test_a_state_directory_that_cannot_be_written_is_said_and_the_domains_run_on(with_mounts):
    found = with_mounts("""
told = {}
with shoal.manager.connect() as manager:
    runs = sh("sleep 1000")
    pid = runs.status().pids[0]
    kill_manager()
    subprocess.run(["mount", "--bind", state, state], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", state], check=True)
    told["refused"] = refused(lambda: shoal.manager.connect())
    told["alive"] = managed.state_of(pid)
    subprocess.run(["umount", state], check=True)
    told["afterwards"] = runs.status().state
    runs.kill()
    told["killed"] = shown(runs.wait())
answer(told)
""")
    assert "Read-only file system" in found.pop("refused")
    assert found == {"alive": "S", "afterwards": "running", "killed": [9, "killed"]}


@pytest.mark.root
def test_a_state_directory_of_somebody_else_is_refused(state):
    os.chown(state, 65534, 65534)
    try:
        with pytest.raises(ManagerError, match="not a directory of this user's"):
            shoal.manager.connect()
    finally:
        os.chown(state, 0, 0)


# --- a damaged database -----------------------------------------------------------------------------------


def zeroed_head(data):
    return bytes(100) + data[100:]


def half(data):
    return data[: len(data) // 2]


def garbled(data):
    pick = random.Random(1)
    return data[:200] + bytes(pick.randrange(256) for _ in data[200:])


@pytest.mark.parametrize("damage", [zeroed_head, half, garbled])
def test_a_damaged_database_is_said_and_once_moved_away_the_domains_are_found_by_the_ledger(state, manager, damage):
    domain, write = slow(manager)
    pid = domain.status().pids[0]
    stop_manager(state, manager)
    managed.replace(state / "manager.db", damage)
    with pytest.raises(ManagerError, match=MOVE_AWAY) as error:
        manager.domains()
    assert error.value.code == "PROC_MGMT_ERR_SPAWND_REQUEST"  # after a lost connection
    with pytest.raises(ManagerError, match=MOVE_AWAY):
        shoal.manager.connect()
    assert managed.state_of(pid) == "S"
    for path in state.glob("manager.db*"):
        path.rename(path.with_name(f"old-{path.name}"))
    with shoal.manager.connect() as other:
        (status,) = other.statuses()
        assert (status.id, status.state, status.pids, status.name) == (domain.id, "running", (pid,), "sh")
        again = other.domain(domain.id)
        assert sh(other, "exit 0").id > domain.id
        with pytest.raises(ManagerError):
            domain.kill()  # by a capability of the record that is gone
        os.close(write)
        assert again.wait() == ExitStatus(5, "exited", None)
        assert b"".join(again.logs()) == b"one\ntwo\n"


def test_what_a_lost_write_ahead_log_has_taken_with_it_is_found_by_the_ledger(state, manager):
    before = sh(manager, "sleep 1000")
    stop_manager(state, manager)  # so that the database itself has it
    domain, write = slow(manager)
    kill_manager(state)
    (state / "manager.db-wal").unlink()
    assert manager.domains() == [before.id, domain.id]
    os.close(write)
    assert domain.wait() == ExitStatus(5, "exited", None)
    before.kill()


def test_numbers_are_not_given_again_where_logs_of_domains_are_left_that_nobody_knows(state, manager):
    ended = sh(manager, "echo old")
    ended.wait()
    stop_manager(state, manager)
    (state / "manager.db").unlink()
    fresh = sh(manager, "echo new")
    assert fresh.id > ended.id
    fresh.wait()
    assert b"".join(fresh.logs()) == b"new\n"


def test_logs_of_domains_that_are_forgotten_are_removed_by_the_next_manager(state, manager):
    domain = sh(manager, "echo kept")
    domain.wait()
    stop_manager(state, manager)
    stray = state / "logs" / "4000000.log"
    stray.write_bytes(b"")
    assert b"".join(domain.logs()) == b"kept\n"
    assert not stray.exists()


# --- a damaged ledger -----------------------------------------------------------------------------------


def cut(data):
    return data[: SIZE + SIZE // 2]


def gone(data):
    return b""


def noise(data):
    pick = random.Random(2)
    return b"".join(bytes(pick.randrange(256) for _ in range(SIZE)) for _ in range(8)) + data[8 * SIZE :]


@pytest.mark.parametrize("damage", [cut, gone, noise])
def test_a_damaged_ledger_loses_no_domain_that_runs(state, manager, damage):
    ended = sh(manager, "exit 4")
    ended.wait()
    running = [slow(manager) for _ in range(4)]
    kill_manager(state)
    managed.wait_until(lambda: len(list((state / "run").glob("d*"))) == 4)
    managed.replace(state / "ledger", damage)
    assert manager.domains() == [domain.id for domain, _ in running]
    assert ended.wait().code == 4
    others = [sh(manager, "read x; exit 7", stdin=subprocess.DEVNULL) for _ in range(3)]
    assert [each.wait().code for each in others] == [7, 7, 7]
    first, *rest = running
    first[0].kill()
    os.close(first[1])
    assert first[0].wait() == KILLED
    for domain, write in rest:
        os.close(write)
        assert domain.wait() == ExitStatus(5, "exited", None)
        assert b"".join(domain.logs()) == b"one\ntwo\n"
    managed.wait_until(lambda: not managed.slots(state))


def test_what_ended_when_the_ledger_was_lost_is_lost_and_said_to_be(state, manager):
    domain, write = slow(manager)
    managed.stop(managed.manager_pid(state))
    os.close(write)
    managed.wait_until(lambda: [slot.state for slot in managed.slots(state).values()] == [4])
    kill_manager(state)
    managed.replace(state / "ledger", gone)
    assert domain.wait() == ExitStatus(255, "lost", None)


# --- another boot ---------------------------------------------------------------------------------------


def as_of_another_boot(state):
    """A power failure: everything ends, and what there is says another boot."""
    managed.end_all(state)
    for path in (state / "run").glob("d*"):
        path.unlink()
    with sqlite3.connect(state / "manager.db") as database:
        database.execute("UPDATE facts SET value='another' WHERE name='boot'")
        database.execute("UPDATE domains SET boot='another'")
    database.close()


def test_after_another_boot_what_ran_is_lost_and_what_ended_is_known(state, manager):
    ended, runs = sh(manager, "exit 4"), sh(manager, "sleep 1000")
    ended.wait()
    as_of_another_boot(state)
    assert runs.wait() == ExitStatus(255, "lost", None)
    assert ended.wait() == ExitStatus(4, "exited", None)
    assert manager.domains() == []
    assert not managed.slots(state)
    assert sh(manager, "exit 3").id > runs.id


def test_after_another_boot_an_end_that_was_not_written_down_yet_is_known(state, manager):
    domain, write = slow(manager)
    managed.stop(managed.manager_pid(state))
    os.close(write)
    managed.wait_until(lambda: [slot.state for slot in managed.slots(state).values()] == [4])
    as_of_another_boot(state)
    assert domain.wait() == ExitStatus(5, "exited", None)


def test_a_domain_that_lives_is_found_whatever_is_said_of_the_boot(state, manager):
    domain, write = slow(manager)
    kill_manager(state)
    managed.wait_until(lambda: len(list((state / "run").glob("d*"))) == 1)
    with sqlite3.connect(state / "manager.db") as database:
        database.execute("UPDATE facts SET value='another' WHERE name='boot'")
    database.close()
    assert domain.status().state == "running"
    os.close(write)
    assert domain.wait().code == 5


def test_a_pid_of_another_process_is_not_taken_for_an_init(state, manager):
    domain = sh(manager, "sleep 1000")
    managed.end_all(state)
    own = managed.start_time(os.getpid())

    def ours(data):
        number, slot = next(iter(managed.slots(state).items()))
        at = number * SIZE
        head = data[at : at + SIZE]
        changed = head.replace(slot.init_pid.to_bytes(4, "little"), os.getpid().to_bytes(4, "little"))
        return data[:at] + changed + data[at + SIZE :]

    managed.replace(state / "ledger", ours)
    assert own is not None
    assert domain.wait() == ExitStatus(255, "lost", None)
    assert Path(f"/proc/{os.getpid()}").exists()
