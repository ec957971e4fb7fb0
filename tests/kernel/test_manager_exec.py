"""Commands in a domain: beside its program, under all that holds for that, and with nobody but their client to answer to."""

import gc
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings

import pytest
from rig import managed

import shoal.manager
from shoal import Sandbox
from shoal.manager import DomainRights, ExitStatus, ManagerError
from shoal.sandbox.landlock import abi

CORES = sorted(os.sched_getaffinity(0))
FIRST = CORES[0]
NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "user", "cgroup")
PROTECTIONS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters")
TOOLS = ["/usr", "/bin", "/lib", "/lib64"]
BOXES = {
    "none": None,
    "tools": Sandbox(read=TOOLS),
    "limits": Sandbox(read=TOOLS, memory="300M", open_files=50, limits="best-effort", env={"TOKEN": "hush-hush"}, secrets=["TOKEN"]),
    "host": Sandbox(read=TOOLS, network="host"),
    "unfiltered": Sandbox(read=TOOLS, seccomp="off"),
    "strict": Sandbox(read=TOOLS, seccomp="strict"),
}
TWO = {name: BOXES[name] for name in ("none", "tools")}
each_box = pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
either_way = pytest.mark.parametrize("box", TWO.values(), ids=TWO)

state, manager = managed.state, managed.manager


def sleeper(manager, box=None, **how):
    return manager.spawn_program(FIRST, "sleep", ["sleep", "1000"], sandbox=box, **how)


def output(domain, *argv, **how):
    """What a command writes, to its end, and its exit code."""
    read, write = os.pipe()
    with open(read, "rb") as reader:
        try:
            command = domain.exec(argv, **({"stdin": subprocess.DEVNULL, "stdout": write, "stderr": subprocess.STDOUT} | how))
        finally:
            os.close(write)
        with command:
            return reader.read().decode(), command.wait(30).code


def fields(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return {name: value for name, _, value in (line.partition(":") for line in file)}


def text(path):
    with open(path, "rb") as file:
        return file.read()


def refusal(call, *words, **how):
    with pytest.raises(ManagerError) as caught:
        call(*words, **how)
    return caught.value


# --- what holds for the program holds for the command ---------------------------------------------------------------------------


@each_box
def test_it_is_in_the_same_namespaces_cgroup_limits_and_filters_as_the_program(manager, state, box):
    domain = sleeper(manager, box)
    program = domain.status().pids[0]
    with domain.exec(["sleep", "1000"], stdin=subprocess.DEVNULL) as command:
        pid = command.pid
        for name in NAMESPACES:
            assert os.stat(f"/proc/{program}/ns/{name}").st_ino == os.stat(f"/proc/{pid}/ns/{name}").st_ino
        for path in ("root", "cwd"):
            assert os.path.samestat(os.stat(f"/proc/{program}/{path}"), os.stat(f"/proc/{pid}/{path}"))
        its, own = fields(program), fields(pid)
        assert {name: its[name] for name in PROTECTIONS} == {name: own[name] for name in PROTECTIONS}
        for file in ("limits", "cgroup", "environ"):
            mine, theirs = text(f"/proc/{pid}/{file}"), text(f"/proc/{program}/{file}")
            assert mine == theirs or (file == "environ" and set(mine.split(b"\0")) == set(theirs.split(b"\0")))
        assert os.sched_getaffinity(pid) == {FIRST}
        assert managed.parent_of(pid) == managed.init_of(state, domain.id)


@either_way
def test_it_has_the_environment_of_a_program_whose_first_thread_has_ended(manager, workload, box):
    read, write = os.pipe()
    domain = manager.spawn_program(FIRST, workload, ["workload", "leave-to-thread", "0"], {"NAME": "value"}, stdin=read, sandbox=box)
    os.close(read)
    managed.wait_until(lambda: managed.state_of(domain.status().pids[0]) == "Z")
    assert output(domain, "env") == ("NAME=value\n", 0)
    os.close(write)
    assert domain.wait(timeout=30).code == 7


@each_box
def test_nothing_is_open_in_it_but_0_1_and_2(manager, box):
    domain = sleeper(manager, box)
    with open("/etc/passwd", "rb") as file, tempfile.TemporaryFile() as other:
        os.set_inheritable(other.fileno(), True)
        command = domain.exec(["sleep", "1000"], stdin=file)
    with command, open("/etc/passwd", "rb") as file:
        # Once it sleeps: before, it opens its own libraries.
        managed.wait_until(lambda: b"nanosleep" in text(f"/proc/{command.pid}/wchan") or managed.state_of(command.pid) == "S")
        assert sorted(map(int, os.listdir(f"/proc/{command.pid}/fd"))) == [0, 1, 2]
        assert os.path.samestat(os.stat(f"/proc/{command.pid}/fd/0"), os.fstat(file.fileno()))


def test_it_cannot_see_nor_write_what_the_program_cannot(manager, tmp_path):
    (tmp_path / "outside").write_text("out of reach")
    domain = sleeper(manager, BOXES["tools"])
    script = f"""
        cat {tmp_path}/outside && echo read
        echo > /usr/bin/written && echo written
        kill -0 {os.getpid()} && echo signalled
        unshare -r true && echo unshared
        ls /proc/{os.getpid()} && echo seen
        cat /proc/1/environ && echo looked
        exit 7
    """
    found, code = output(domain, "sh", "-c", script, stderr=subprocess.DEVNULL)
    assert (found, code) == ("", 7)


LOOKING = """
    while [ ! -e /tmp/go ]; do sleep 0.01; done
    for process in /proc/[0-9]*; do
        [ ${process#/proc/} -le 2 ] && continue
        cat $process/environ && echo read
        cat <$process/fd/0 && echo taken
    done
    echo over
    exec sleep 1000
"""


@pytest.mark.skipif(not abi(), reason="the kernel has no Landlock")
@pytest.mark.parametrize("name", ["tools", "unfiltered"])
def test_the_program_gets_at_nothing_that_the_command_was_handed(manager, name):
    domain = manager.spawn_program(FIRST, "sh", ["sh", "-c", LOOKING], sandbox=BOXES[name], stderr=subprocess.DEVNULL)
    with open("/etc/passwd", "rb") as file, domain.exec(["sleep", "1000"], stdin=file, env={"SECRET": "hush"}):
        assert output(domain, "touch", "/tmp/go") == ("", 0)
        assert next(domain.logs(follow=True)) == b"over\n"
    domain.kill()


def test_what_the_program_has_written_it_sees(manager):
    domain = manager.spawn_program(
        FIRST, "sh", ["sh", "-c", "echo of the program >/tmp/file; echo ready; exec sleep 1000"], sandbox=BOXES["tools"]
    )
    assert next(domain.logs(follow=True)) == b"ready\n"
    assert output(domain, "cat", "/tmp/file") == ("of the program\n", 0)


def test_the_executable_is_the_one_of_the_domains_world(manager, tmp_path, monkeypatch):
    here = tmp_path / "bin"
    here.mkdir()
    tmp_path.chmod(0o755)
    (here / "only-here").write_text("#!/bin/sh\necho from outside\n")
    (here / "only-here").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    domain = sleeper(manager, BOXES["tools"])
    assert refusal(domain.exec, ["only-here"]).code == "SPAWN_ERR_FIND_MODULE"
    assert refusal(domain.exec, [here / "only-here"]).code == "SPAWN_ERR_FIND_MODULE"
    flat = sleeper(manager)  # which began with that PATH
    assert output(flat, "only-here") == ("from outside\n", 0)
    other = sleeper(manager, Sandbox(read={"/tools": here, **{path: path for path in TOOLS if os.path.exists(path)}}))
    assert output(other, "/tools/only-here") == ("from outside\n", 0)
    assert output(other, "only-here", env={"PATH": "/tools:/bin"}) == ("from outside\n", 0)
    assert output(other, "./only-here", cwd="/tools") == ("from outside\n", 0)
    assert refusal(domain.exec, ["only-here"], env={"PATH": "/tools:/bin"}).code == "SPAWN_ERR_FIND_MODULE"


def test_a_sandbox_with_nothing_but_its_program_still_runs_that(manager):
    domain = sleeper(manager, Sandbox())
    with domain.exec(["sleep", "0"]) as command:
        assert command.wait(30) == ExitStatus(0, "exited", None)
    error = refusal(domain.exec, ["sh", "-c", "true"])
    assert error.code == "SPAWN_ERR_FIND_MODULE"
    assert "no program sh" in error.message
    assert "--ro" in error.message


@either_way
def test_variables_are_the_domains_and_what_is_changed(manager, box):
    how = {"envp": {"ONE": "1", "TWO": "2", "PATH": "/usr/bin:/bin"}}
    domain = sleeper(manager, box, **how)
    found, code = output(domain, "env", env={"TWO": None, "THREE": "a b\nc"})
    assert code == 0
    assert "ONE=1\n" in found
    assert "TWO=" not in found
    assert "THREE=a b\nc\n" in found
    assert "SHOAL_STARTUP" not in found


@either_way
def test_it_starts_where_the_domain_began_or_where_it_is_told_to(manager, box):
    domain = sleeper(manager, box, cwd="/usr")
    where = output(domain, "pwd")[0]
    assert where == "/usr\n"
    assert output(domain, "sh", "-c", "pwd; echo $PWD", cwd="/usr/bin") == ("/usr/bin\n/usr/bin\n", 0)
    assert output(domain, "pwd", cwd="bin") == ("/usr/bin\n", 0)
    error = refusal(domain.exec, ["pwd"], cwd="/no/such/place")
    assert error.code == "SPAWN_ERR_SETUP_ENV"
    assert "/no/such/place" in error.message


# --- ends and signals -----------------------------------------------------------------------------------------------------------


@either_way
def test_its_end_is_told_and_is_not_the_domains(manager, box):
    domain = sleeper(manager, box)
    for script, end in (
        ("exit 0", ExitStatus(0, "exited", None)),
        ("exit 41", ExitStatus(41, "exited", None)),
        ("kill -TERM $$", ExitStatus(143, "signaled", 15)),
        ("kill -KILL $$", ExitStatus(137, "signaled", 9)),
    ):
        with domain.exec(["sh", "-c", script]) as command:
            assert command.wait(30) == command.wait() == command.poll() == end
    assert domain.wait(nohang=True) is None
    assert len(domain.status().pids) == 1
    domain.kill()
    assert domain.wait() == ExitStatus(9, "killed", 9)


@either_way
def test_signals_reach_it_and_nothing_else(manager, box):
    domain = sleeper(manager, box)
    read, write = os.pipe()
    script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.01; done"
    with domain.exec(["sh", "-c", script], stdout=write) as command, open(read, "rb") as reader:
        os.close(write)
        assert reader.readline() == b"ready\n"
        assert command.poll() is None
        with pytest.raises(TimeoutError):
            command.wait("10ms")
        command.send_signal(signal.SIGUSR1)
        assert reader.readline() == b"got\n"
        assert command.wait(30).code == 3
        command.send_signal(signal.SIGUSR1)  # to nobody
        with pytest.raises(ValueError, match="1 to 64"):
            command.send_signal(0)
    assert domain.wait(nohang=True) is None


@either_way
def test_a_signal_to_its_group_reaches_what_it_has_started(manager, box):
    domain = sleeper(manager, box)
    read, write = os.pipe()
    with domain.exec(["sh", "-c", "sleep 1000 & echo ready; wait"], stdout=write) as command, open(read, "rb") as reader:
        os.close(write)
        assert reader.readline() == b"ready\n"
        command.send_signal(signal.SIGTERM, to_group=True)
        assert command.wait(30).signal == signal.SIGTERM
        assert reader.read() == b""  # whoever had the other end is gone


@either_way
def test_the_end_of_the_domain_is_its_end(manager, box):
    domain = sleeper(manager, box)
    with domain.exec(["sleep", "1000"]) as command:
        domain.kill()
        assert command.wait(30) == ExitStatus(9, "killed", 9)
    domain = sleeper(manager, box)
    with domain.exec(["sleep", "1000"]) as command:
        domain.send_signal(signal.SIGTERM)
        assert domain.wait().signal == signal.SIGTERM
        assert command.wait(30).reason == "killed"
        managed.wait_gone(command.pid)


@either_way
def test_an_init_that_is_killed_leaves_neither_a_command_nor_a_wait(manager, state, box):
    domain = sleeper(manager, box)
    with domain.exec(["sleep", "1000"]) as command:
        managed.kill(managed.init_of(state, domain.id))
        assert command.wait(30) == ExitStatus(255, "lost", None)
        managed.wait_gone(command.pid)


def test_closing_it_wakes_who_waits_and_ends_it(manager):
    domain = sleeper(manager)
    command = domain.exec(["sleep", "1000"])
    told = []

    def wait():
        try:
            command.wait()
        except ValueError as error:
            told.append(str(error))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    managed.wait_until(lambda: command._waiting == 2)
    command.close()
    command.close()
    for thread in threads:
        thread.join()
    assert told == ["this command is closed, and was ended by that"] * 2
    assert command.fileno() == -1
    managed.wait_gone(command.pid)


def test_several_run_at_the_same_time_and_any_number_wait(manager):
    domain = sleeper(manager, BOXES["tools"])
    with domain.exec(["sh", "-c", "read line; exit 1"], stdin=(ends := os.pipe())[0]) as first, domain.exec(["sleep", "1000"]) as second:
        found = []
        threads = [threading.Thread(target=lambda: found.append(first.wait(30).code)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert output(domain, "echo", "third") == ("third\n", 0)
        assert not select.select([first, second], [], [], 0)[0]
        os.write(ends[1], b"\n")
        for thread in threads:
            thread.join()
        assert found == [1, 1, 1]
        assert select.select([first, second], [], [], 0)[0] == [first]
        assert second.poll() is None
    for fd in ends:
        os.close(fd)


def test_there_is_room_for_so_many_and_then_for_more(manager):
    domain = sleeper(manager)
    commands = [domain.exec(["sleep", "1000"]) for _ in range(64)]
    error = refusal(domain.exec, ["true"])
    assert error.code == "SPAWN_ERR_SPAN"
    assert "64" in error.message
    commands[3].kill()
    assert commands[3].wait(30).signal == 9
    assert output(domain, "echo", "room") == ("room\n", 0)
    for command in commands:
        command.close()
        managed.wait_gone(command.pid)


# --- whoever goes away ----------------------------------------------------------------------------------------------------------

CLIENT = """
    import sys, shoal.manager
    with shoal.manager.connect() as manager:
        command = manager.domain(int(sys.argv[1])).exec(["sh", "-c", "sleep 1000 & echo begun; wait"])
        sys.stdout.write(f"{command.pid}\\n")  # at once: the command writes there, too
        sys.stdout.flush()
        command.wait()
"""


@either_way
def test_it_ends_with_a_client_that_is_killed(manager, box):
    domain = sleeper(manager, box)
    client = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CLIENT), str(domain.id)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    with client:
        lines = {client.stdout.readline(), client.stdout.readline()}
        assert "begun\n" in lines
        pid = int((lines - {"begun\n"}).pop())
        client.kill()
        assert client.stdout.read() == ""  # and what it has started has ended, too
    managed.wait_gone(pid)
    assert domain.wait(nohang=True) is None


def test_it_ends_when_nobody_has_it_any_more(manager):
    domain = sleeper(manager)
    with domain.exec(["sleep", "1000"]) as command:
        pass
    managed.wait_gone(command.pid)
    with pytest.raises(ValueError, match="closed"):
        command.wait()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        command = domain.exec(["sleep", "1000"])
        pid = command.pid
        del command
        gc.collect()
    assert [warning.category for warning in told] == [ResourceWarning]
    managed.wait_gone(pid)


@either_way
def test_a_manager_that_is_killed_takes_nothing_from_it(manager, state, box):
    domain = sleeper(manager, box)
    read, write = os.pipe()
    with domain.exec(["sh", "-c", "read line; echo $line; exit 6"], stdin=(ends := os.pipe())[0], stdout=write) as command:
        os.close(write)
        pid = managed.manager_pid(state)
        os.kill(pid, signal.SIGKILL)
        managed.wait_gone(pid)
        command.send_signal(signal.SIGCONT)  # with nobody in between
        os.write(ends[1], b"still here\n")
        with open(read, "rb") as reader:
            assert reader.read() == b"still here\n"
        assert command.wait(30).code == 6
    for fd in ends:
        os.close(fd)
    assert domain.status().state == "running"  # as the next manager finds it


@either_way
def test_a_new_manager_takes_it_for_no_dispatcher(manager, state, box):
    domain = sleeper(manager, box)
    with domain.exec(["sleep", "1000"]) as command:
        pid = managed.manager_pid(state)
        os.kill(pid, signal.SIGKILL)
        managed.wait_gone(pid)
        pids = domain.status().pids
        assert command.pid not in pids
        assert len(pids) == 1
        assert command.poll() is None
        assert output(domain, "echo", "another") == ("another\n", 0)
        command.kill()
        assert command.wait(30).signal == 9
    assert domain.wait(nohang=True) is None
    domain.kill()


def test_one_that_is_asked_for_while_managers_are_killed_runs_once_or_is_refused(manager, state, tmp_path):
    tmp_path.chmod(0o777)
    domain = sleeper(manager)
    over = threading.Event()

    def kill_managers():
        while not over.is_set():
            pid = managed.manager_pid(state)
            if pid is not None:
                managed.kill(pid)
                managed.wait_gone(pid)
            over.wait(0.05)

    killer = threading.Thread(target=kill_managers)
    killer.start()
    done = refused = 0
    try:
        for _ in range(12):
            try:
                with domain.exec(["sh", "-c", f"echo once >>{tmp_path}/runs"]) as command:
                    assert command.wait(60).code == 0
                done += 1
            except ManagerError:
                refused += 1
    finally:
        over.set()
        killer.join()
    runs = (tmp_path / "runs").read_text().count("once") if (tmp_path / "runs").exists() else 0
    assert done <= runs <= done + refused
    assert domain.wait(nohang=True) is None


# --- what is refused ------------------------------------------------------------------------------------------------------------


@either_way
def test_what_cannot_be_executed_is_told_and_costs_nothing(manager, state, box, tmp_path):
    domain = sleeper(manager, box)
    before = len(os.listdir(f"/proc/{managed.manager_pid(state)}/fd"))
    missing = refusal(domain.exec, ["no-such-program"])
    assert missing.code == "SPAWN_ERR_FIND_MODULE"
    assert "no-such-program" in missing.message
    assert "PATH=" in missing.message
    assert refusal(domain.exec, ["/no/such/program"]).code == "SPAWN_ERR_FIND_MODULE"
    denied = refusal(domain.exec, ["/usr/share"])
    assert denied.code == "SPAWN_ERR_LOAD"
    assert "Permission denied" in denied.message
    assert refusal(domain.exec, ["true"] + ["x" * 100_000] * 40).code in ("SPAWN_ERR_ARGSPG_OVERFLOW", "FLOUNDER_ERR_TX_MSG_SIZE")
    with pytest.raises(TypeError, match="argv must be a sequence"):
        domain.exec("true")
    with pytest.raises(TypeError, match="str or bytes"):
        domain.exec([1])
    with pytest.raises(ValueError, match="zero byte"):
        domain.exec(["a\0b"])
    with pytest.raises(ValueError, match=r"stdout cannot be -1.*os.pipe"):
        domain.exec(["true"], stdout=subprocess.PIPE)
    assert refusal(domain.exec, []).code == "SPAWN_ERR_GET_CMDLINE_ARGS"
    assert refusal(domain.exec, ["true"], env={"A=B": "c"}).code == "SPAWN_ERR_GET_CMDLINE_ARGS"
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        error = refusal(domain.exec, ["ls", "/proc/self/fd/0/"], stdin=directory)
    finally:
        os.close(directory)
    assert error.code == "SPAWN_ERR_SETUP_FDCAP"
    assert "is a directory" in error.message
    assert output(domain, "echo", "still") == ("still\n", 0)
    for _ in range(30):
        assert refusal(domain.exec, ["no-such-program"]).code == "SPAWN_ERR_FIND_MODULE"
    # The manager may have been about to take up to 16 inits that wait for a domain.
    managed.wait_until(lambda: len(os.listdir(f"/proc/{managed.manager_pid(state)}/fd")) < before + 20)
    managed.wait_until(lambda: len(os.listdir(f"/proc/{managed.init_of(state, domain.id)}/fd")) < 20)


def test_a_domain_that_has_ended_runs_nothing_more(manager):
    domain = sleeper(manager)
    domain.kill()
    assert refusal(domain.exec, ["true"]).code == "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING"


def test_it_takes_the_right_to_span_and_is_written_down(manager):
    domain = sleeper(manager)
    without = manager.domain(domain.cap.attenuate(domain.cap.rights & ~DomainRights.SPAN))
    error = refusal(without.exec, ["true"])
    assert error.code == "PROC_MGMT_ERR_DOMAIN_CAP_HASH"
    assert "span" in error.message
    assert output(domain, "true") == ("", 0)
    told = [entry for entry in manager.audit() if entry[2] == "exec"]
    assert [entry[4] is None for entry in told] == [False, True]
    assert told[1][3] == domain.id


def test_an_init_of_an_older_version_is_not_asked(manager, state):
    domain = sleeper(manager)
    (number,) = managed.slots(state)
    with open(state / "ledger", "r+b") as ledger:
        ledger.seek(number * 128 + 104)
        assert int.from_bytes(ledger.read(8), "little") == 1
        ledger.seek(number * 128 + 104)
        ledger.write(bytes(8))
    error = refusal(domain.exec, ["true"])
    assert error.code == "SPAWN_ERR_SPAN"
    assert "older version" in error.message


@either_way
def test_of_a_sandbox_that_no_database_knows_any_more_nothing_runs_outside(manager, state, box):
    domain = sleeper(manager, box)
    pid = managed.manager_pid(state)
    os.kill(pid, signal.SIGKILL)
    managed.wait_gone(pid)
    for path in state.glob("manager.db*"):
        path.unlink()
    with shoal.manager.connect() as fresh:
        found = fresh.domain(domain.id)
        if box is None:
            assert output(found, "echo", "as ever") == ("as ever\n", 0)
        else:
            error = refusal(found.exec, ["sh", "-c", "true"])
            assert error.code == "SPAWN_ERR_SPAN"
            assert "database" in error.message
        found.kill()


# --- what goes through it -------------------------------------------------------------------------------------------------------


@either_way
def test_much_goes_in_and_comes_out_unchanged(manager, box):
    domain = sleeper(manager, box)
    data = os.urandom(3 << 20)
    inside, outside = os.pipe(), os.pipe()
    with domain.exec(["cat"], stdin=inside[0], stdout=outside[1]) as command:
        os.close(inside[0])
        os.close(outside[1])
        writer = threading.Thread(target=write_all, args=(inside[1], data))
        writer.start()
        with open(outside[0], "rb") as reader:
            assert reader.read() == data
        writer.join()
        assert command.wait(30).code == 0


def write_all(fd, data):
    with open(fd, "wb") as file:
        file.write(data)


@either_way
def test_a_terminal_of_its_own_is_its_controlling_one(manager, box):
    domain = sleeper(manager, box)
    master, slave = os.openpty()
    with domain.exec(["sh", "-c", "echo on >/dev/tty; exec sleep 1000"], stdin=slave, stdout=slave, stderr=slave, terminal=True) as command:
        os.close(slave)
        assert b"on" in os.read(master, 100)
        os.write(master, b"\x03")
        assert command.wait(30) == ExitStatus(130, "signaled", signal.SIGINT)
    os.close(master)


def test_an_embedded_manager_has_it_too(state):
    with shoal.manager.embedded(str(state)) as manager:
        domain = sleeper(manager, BOXES["tools"])
        assert output(domain, "echo", "here") == ("here\n", 0)
        domain.kill()
