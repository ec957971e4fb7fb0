"""The six flags: what the child shares with its maker, and what it is without each of them. Source: spec 1.1, 3.1-3.6, 5.3."""

import os
import signal

import pytest
from rig.features import needs
from rig.launchers import every_launcher, in_a_cell, in_the_callers_world
from rig.workload import observe

from shoal import CloneFd, InvalidArgsError, Job, SpawnFlags, Stage, Status

NULL_FDS = {0, 1, 2}


@every_launcher
def test_with_no_flags_and_no_actions_the_child_has_three_null_descriptors_and_nothing_else(launch, workload, pipe, world):
    os.set_inheritable(pipe.read, True)  # the mark that usually lets a descriptor through makes no difference
    report = observe(launch, workload, "fds", "read", 0, "write", 2, "into the void", out=7)
    found = report.fds()
    assert set(found) == NULL_FDS | {7}
    assert all(found[fd].is_null for fd in NULL_FDS)
    assert report.one("read", "0") == ["ok", ""]
    assert report.one("write", "2") == ["ok", str(len("into the void"))]
    assert report.returncode == 0
    os.set_inheritable(pipe.read, False)
    world.assert_unchanged()


@every_launcher
def test_with_no_flags_the_environment_is_empty_and_not_null(launch, workload, monkeypatch):
    monkeypatch.setenv("SECRET", "of the caller")
    report = observe(launch, workload, "env")
    assert report.env() == []
    assert report.one("envc") == ["0"]


@every_launcher
def test_the_child_starts_with_default_umask_signals_and_an_empty_mask(launch, workload):
    old_umask = os.umask(0o077)
    old_handler = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    try:
        report = observe(launch, workload, "umask", "signals")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        signal.signal(signal.SIGUSR1, old_handler)
        os.umask(old_umask)
    assert report.one("umask") == ["022"]
    assert report.all("signal") == []


@every_launcher
def test_a_child_dies_of_sigpipe_although_python_ignores_it(launch, workload):
    assert observe(launch, workload, "sigpipe").returncode == -signal.SIGPIPE


@in_the_callers_world
def test_the_working_directory_is_pwd_of_the_childs_environment(launch, workload, tmp_path):
    assert observe(launch, workload, "cwd", environ={"PWD": str(tmp_path)}).one("cwd") == ["ok", str(tmp_path)]


@every_launcher
def test_without_pwd_the_working_directory_is_the_root_whatever_the_callers_is(launch, workload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert observe(launch, workload, "cwd").one("cwd") == ["ok", "/"]


@in_a_cell
def test_pwd_is_opened_in_the_childs_world_not_in_the_callers(launch, workload, tmp_path):
    (tmp_path / "here").write_text("caller's file")
    report = observe(launch, workload, "cat", "here", environ={"PWD": str(tmp_path)})
    assert report.errno("cat", "here") != 0


@every_launcher
def test_an_unusable_pwd_lets_the_child_run_but_relative_paths_fail(launch, workload, tmp_path):
    missing = str(tmp_path / "missing")
    report = observe(launch, workload, "stat", "x", "create", "x", "exit", 3, environ={"PWD": missing})
    assert report.returncode == 3
    assert report.errno("stat", "x") != 0
    assert report.errno("create", "x") != 0


@every_launcher
def test_clone_environ_gives_the_callers_environment_as_it_is_at_the_call(launch, workload, monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_MARK", "first")
    monkeypatch.setenv("SHOAL_TEST_MARK", "now")
    monkeypatch.setenv("SHOAL_TEST_BYTES", os.fsdecode(b"\xff\xfe=x"))
    seen = observe(launch, workload, "env", flags=SpawnFlags.CLONE_ENVIRON).variables()
    mine = {name: value for name, value in os.environ.items() if name != "SHOAL_STARTUP"}
    assert {name: value for name, value in seen.items() if name != "SHOAL_STARTUP"} == mine


@every_launcher
def test_a_given_environment_replaces_the_cloned_one_entirely_even_when_empty(launch, workload, monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_MARK", "caller")
    assert observe(launch, workload, "env", flags=SpawnFlags.CLONE_ENVIRON, environ={"A": "1"}).env() == ["A=1"]
    assert observe(launch, workload, "env", flags=SpawnFlags.CLONE_ENVIRON, environ={}).env() == []


@every_launcher
def test_environment_strings_pass_through_uninspected(launch, workload):
    strings = ["no equals sign", "TWICE=1", "TWICE=2", "=odd", "", b"BYTES=\xff\x80"]
    expected = [os.fsdecode(item) if isinstance(item, bytes) else item for item in strings]
    assert observe(launch, workload, "env", environ=strings).env() == expected


@every_launcher
def test_a_cloned_environment_never_carries_the_callers_own_startup_table(launch, workload, monkeypatch):
    monkeypatch.setenv("SHOAL_STARTUP", "1 name=old handle=0xf0:3:file:0x3:1:1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDNAMES", "old")
    seen = observe(launch, workload, "env", flags=SpawnFlags.CLONE_ENVIRON).variables()
    assert "LISTEN_FDS" not in seen
    assert "LISTEN_PID" not in seen
    assert "LISTEN_FDNAMES" not in seen
    assert "old" not in seen.get("SHOAL_STARTUP", "")


@every_launcher
def test_arguments_are_handed_on_byte_for_byte(launch, workload):
    argv = ["workload", "", " ", "a b", "\n", "ü", b"\xff\x01", "%41", "-", "$HOME"]
    expected = [os.fsdecode(item) if isinstance(item, bytes) else item for item in argv]
    assert observe(launch, workload, argv=argv, environ={"WORKLOAD": "argv"}).one("argv") == expected


@every_launcher
def test_unassigned_flag_bits_are_ignored(launch, workload):
    assert observe(launch, workload, "exit", 4, flags=SpawnFlags(0x0040 | 0x8000 | 0x10000)).returncode == 4


@every_launcher
def test_flags_may_be_a_plain_number(launch, workload, monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_MARK", "x")
    assert "SHOAL_TEST_MARK=x" in observe(launch, workload, "env", flags=0x10).env()


@every_launcher
def test_a_dynamic_program_without_a_loader_is_refused_before_anything_runs(launch, workload_dynamic, world):
    with pytest.raises(InvalidArgsError) as caught:
        launch(workload_dynamic, ["workload", "exit", "0"])
    assert caught.value.status is Status.INVALID_ARGS
    assert caught.value.stage is Stage.LOADER
    assert "DEFAULT_LDSVC" in str(caught.value)
    assert workload_dynamic in str(caught.value)
    world.assert_unchanged()


@every_launcher
def test_a_dynamic_program_with_the_default_loader_runs(launch, workload_dynamic, world):
    report = observe(launch, workload_dynamic, "argv", "thread", "exit", 9, flags=SpawnFlags.DEFAULT_LDSVC)
    assert report.returncode == 9
    assert report.one("argv") == ["workload", "argv", "thread", "exit", "9"]
    assert report.ok("thread")
    world.assert_unchanged()


@every_launcher
def test_a_static_program_does_not_care_about_the_loader(launch, workload):
    assert observe(launch, workload, "exit", 5, flags=SpawnFlags.DEFAULT_LDSVC).returncode == 5


@in_a_cell
def test_the_loader_brings_libraries_and_no_way_to_change_them(launch, workload_dynamic):
    report = observe(launch, workload_dynamic, "list", "/", "mkdir", "/new", "create", "/new", flags=SpawnFlags.DEFAULT_LDSVC)
    assert set(report.one("list", "/")[1:]) <= {"lib", "lib64", "usr", "etc"}
    assert report.errno("mkdir", "/new") != 0
    assert report.errno("create", "/new") != 0


def test_clone_all_gives_the_callers_world_environment_and_stdio(direct, workload, monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_MARK", "all")
    report = observe(direct, workload, "env", "stat", workload, "fds", "ids", flags=SpawnFlags.CLONE_ALL, out=20)
    assert report.variables()["SHOAL_TEST_MARK"] == "all"
    assert report.ok("stat", workload)
    assert report.fds()[2].same_object(2)


def test_clone_all_without_one_flag_takes_that_one_away(cell, workload, monkeypatch):
    monkeypatch.setenv("SHOAL_TEST_MARK", "all")
    wanted = SpawnFlags.CLONE_ALL & ~SpawnFlags.CLONE_NAMESPACE & ~SpawnFlags.CLONE_ENVIRON & ~SpawnFlags.CLONE_STDIO
    report = observe(cell, workload, "env", "stat", workload, "fds", flags=wanted, out=20)
    assert "SHOAL_TEST_MARK" not in report.variables()
    assert not report.ok("stat", workload)
    assert report.fds()[2].is_null


@every_launcher
def test_clone_stdio_gives_each_standard_descriptor_that_no_action_took(launch, workload, pipe):
    report = observe(launch, workload, "fds", flags=SpawnFlags.CLONE_STDIO, actions=[CloneFd(pipe.read, 0)], out=9)
    found = report.fds()
    assert found[0].same_object(pipe.read)  # the action wins although stdio was asked for too
    assert found[1].same_object(1)
    assert found[2].same_object(2)


@pytest.mark.parametrize("missing", [[0], [1], [2], [0, 1, 2]])
@pytest.mark.parametrize("world_of_child", ["direct", "cell"])
def test_a_standard_descriptor_the_caller_has_closed_is_skipped_silently(run_python, missing, world_of_child):
    script = """
import shoal
from rig.launchers import make_launcher
from rig.workload import observe
missing, world_of_child = args
spare = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
for fd in range(3):
    os.dup2(spare[0], fd)
for fd in missing:
    os.close(fd)
    assert fd < 3
report = observe(make_launcher(world_of_child), workload, "fds", flags=shoal.SpawnFlags.CLONE_STDIO, out=30)
answer({fd: [at.is_null, at.rdev == os.makedev(1, 5)] for fd, at in report.fds().items()})
"""
    seen = run_python(script, missing, world_of_child)
    assert set(seen) == {"0", "1", "2", "30"}
    for fd in range(3):
        assert seen[str(fd)] == ([True, False] if fd in missing else [False, True])


@every_launcher
def test_clone_job_shows_the_job_in_the_startup_table(launch, workload):
    with Job.default() as job:
        rights = job.rights
    report = observe(launch, workload, "env", "fds", flags=SpawnFlags.CLONE_JOB)
    handles = [item for item in report.variables()["SHOAL_STARTUP"].split() if item.startswith("handle=")]
    assert len(handles) == 1
    id_, fd, kind, bits, dev, ino = handles[0].removeprefix("handle=").split(":")
    assert (int(id_, 16), kind, int(bits, 16)) == (0x3, "job", int(rights))
    at = report.fds()[int(fd)]
    assert (at.dev, at.ino) == (int(dev), int(ino))


@every_launcher
def test_clone_utc_clock_gives_a_clock_that_can_never_be_set(launch, workload):
    report = observe(launch, workload, "env", flags=SpawnFlags.CLONE_UTC_CLOCK)
    handles = [item for item in report.variables()["SHOAL_STARTUP"].split() if item.startswith("handle=0x40:")]
    assert len(handles) == 1
    _, fd, kind, bits, _, _ = handles[0].removeprefix("handle=").split(":")
    assert (int(fd), kind) == (3, "clock")
    assert int(bits, 16) == 0x4007  # read, wait, duplicate, transfer


@needs("root")
@in_the_callers_world
def test_a_child_in_the_callers_world_keeps_the_callers_identity(launch, workload):
    report = observe(launch, workload, "ids", "caps")
    assert report.one("ids")[:6] == [str(value) for value in (*os.getresuid(), *os.getresgid())]
    assert report.one("caps")[4] == "0"
