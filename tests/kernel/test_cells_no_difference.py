"""Cells made ahead make no difference: to what a program sees, and to what a change between the making and the launch does."""

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from rig.cells import (
    ENOUGH,
    STAYS,
    differences,
    look,
    namespaces,
    until,
    waiting,
)
from rig.features import broken, has, needs
from rig.workload import PATIENCE_S, observe

from shoal import CloneFd, SpawnError, SpawnFlags, cells

pytestmark = pytest.mark.usefixtures("as_many_as_ever")


def own_mounts():
    """A command in front that gives a program mounts of its own."""
    if has("root"):
        return ("unshare", "--mount", "--propagation", "private")
    return ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private")


def look_cold(watched, path, **how):
    cells.limit(0)
    found = look(watched, path, **how)
    assert not watched.warm[-1]
    cells.limit(cells.KEPT)
    return found


def look_warm(watched, path, **how):
    for _ in range(ENOUGH):
        found = look(watched, path, **how)
        if watched.warm[-1]:
            return found
    raise AssertionError(f"none of {ENOUGH} launches was warm")


# --- nobody can tell -----------------------------------------------------------------------------------------------

REPORTED = (
    *("argv", "env", "fds", "cwd", "umask", "signals", "ids", "caps", "pids", "comm", "hostname", "nofile", "ifaces", "fork", "thread"),
    *("list", "/", "create", "/x", "read", "0", "stat", "/proc", "mount", "/", "sethostname", "mine"),
)
ALL_SHARED = SpawnFlags.CLONE_STDIO | SpawnFlags.CLONE_ENVIRON | SpawnFlags.CLONE_UTC_CLOCK | SpawnFlags.CLONE_JOB
LAUNCHES = {
    "nothing": {},
    "standard descriptors": {"flags": SpawnFlags.CLONE_STDIO},
    "the environment": {"flags": SpawnFlags.CLONE_ENVIRON},
    "the clock": {"flags": SpawnFlags.CLONE_UTC_CLOCK},
    "the job": {"flags": SpawnFlags.CLONE_JOB},
    "all of them": {"flags": ALL_SHARED},
    "an environment of its own": {"environ": {"A": "1", "PWD": "/", "B": "x y\n\udcff"}},
    "a working directory that is not there": {"environ": {"PWD": "/not/there"}},
}


@pytest.mark.parametrize("how", LAUNCHES.values(), ids=LAUNCHES)
def test_what_a_program_sees_and_what_is_seen_of_it_is_the_same_cold_and_warm(watched, workload, how, world):
    assert differences(look_cold(watched, workload, **how), look_warm(watched, workload, **how)) == {}
    cells.limit(0)
    cold = observe(watched, workload, *REPORTED, out=9, **how)
    cells.limit(cells.KEPT)
    warm = watched.observe_warm(workload, *REPORTED, out=9, **how)
    assert without_the_report(warm) == without_the_report(cold)
    assert cold.one("caps") == ["0", "0", "0", "0", "1"]
    world.assert_unchanged()


def without_the_report(report):
    return report.returncode, [line for line in report.lines if line[:2] != ["fd", "9"]]


def test_a_dynamic_program_with_its_libraries_is_the_same_cold_and_warm(watched, workload_dynamic, world):
    how = {"flags": SpawnFlags.DEFAULT_LDSVC, "environ": {"PWD": "/lib"}}
    cold, warm = look_cold(watched, workload_dynamic, **how), look_warm(watched, workload_dynamic, **how)
    assert len(cold["mounts"]) > 2  # the root, a loader and a library
    assert differences(cold, warm) == {}
    world.assert_unchanged()


def test_all_five_sets_of_capabilities_are_empty_in_a_warm_launch_and_the_loopback_is_up(watched, workload):
    found = look_warm(watched, workload)
    assert {found[f"status Cap{kind}"].strip("0") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {""}
    assert found["status NoNewPrivs"] == "1"
    assert watched.observe_warm(workload, "ifaces").all("iface") == [["lo", "up"]]


def test_descriptors_change_places_in_a_warm_launch_as_in_a_cold_one(watched, workload, make_pipe):
    a, b, c = make_pipe(), make_pipe(), make_pipe()
    # A swap, a cycle through the standard ones, one source at many numbers, and the numbers on which a waiting process has its own.
    pairs = [(a.read, b.read), (b.read, a.read), (a.write, 0), (0, 1), (1, a.write), (c.read, 2), (c.read, 3), (c.write, 4), (c.read, 1023)]
    actions = [CloneFd(local, target) for local, target in pairs]
    for _ in range(2):
        found = watched.observe_warm(workload, "fds", actions=actions, out=500).fds()
        assert set(found) == {target for _, target in pairs} | {500}
        for local, target in pairs:
            assert found[target].same_object(local), (local, target)
            assert not found[target].cloexec


def test_each_warm_launch_gets_the_descriptors_arguments_and_environment_of_its_own_call(watched, workload, make_pipe):
    watched.warm_up(workload, ["workload", "write", "5", "x"], actions=[CloneFd(2, 5)])
    watched.warm.clear()
    for number in range(10):
        pipe = make_pipe()
        words, environ = ["write", 5, f"hello-{number}", "env"], {"NUMBER": str(number), f"N{number}": ""}
        report = observe(watched, workload, *words, environ=environ, actions=[CloneFd(pipe.write, 5)], out=7)
        assert os.read(pipe.read, 100) == f"hello-{number}".encode()
        assert report.env() == [f"NUMBER={number}", f"N{number}="]
        os.close(pipe.read)
        os.close(pipe.write)
    assert any(watched.warm)


def test_no_two_launches_share_a_namespace_or_a_file_system(watched, workload, pipe, world):
    running = [watched(workload, STAYS, actions=[CloneFd(pipe.read, 0)]) for _ in range(12)]
    assert sum(watched.warm) >= 6
    ours = namespaces("self")
    for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup") + (() if has("root") else ("user",)):
        found = [namespaces(process.pid)[kind] for process in running]
        assert len({*found, ours[kind]}) == len(running) + 1, kind
    roots = [Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()[0].split()[2] for process in running]
    assert len(set(roots)) == len(running)
    os.close(pipe.write)
    for process in running:
        assert process.wait(timeout=PATIENCE_S) == 0
        process.close()
    world.assert_unchanged(besides={pipe.write})


def test_a_signal_sent_to_a_warm_program_right_after_its_launch_finds_the_program(watched, workload):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1):
        with watched.until_warm(workload, ["workload", "pause"]) as process:
            process.send_signal(number)
            assert process.wait(timeout=PATIENCE_S) == -number


def test_a_warm_cell_with_something_left_in_it_lives_on_until_that_ends(watched, workload, pipe, world):
    actions = [CloneFd(pipe.read, 5)]
    with watched.until_warm(workload, ["workload", "daemon", "5", "exit", "4"], actions=actions) as process:
        assert process.wait(timeout=PATIENCE_S) == 4
        cells.drain()
        assert world.new_processes()
        process.kill_cell()
    world.assert_unchanged()


def test_a_program_that_wants_to_end_with_its_parent_lives_as_long_as_the_parent(watched, tmp_path):
    program = compiled(
        tmp_path / "faithful",
        "#include <sys/prctl.h>\n#include <signal.h>\n#include <unistd.h>\n"
        "int main(void) { prctl(PR_SET_PDEATHSIG, SIGTERM); char c; while (read(0, &c, 1) == 1) write(1, &c, 1); return 0; }",
    )
    (ours, give), (told, tell) = os.pipe(), os.pipe()
    threads = set(os.listdir("/proc/self/task"))  # a library may have some that Python does not know of
    try:
        with watched.until_warm(program, ["faithful"], actions=[CloneFd(ours, 0), CloneFd(tell, 1)]) as process:
            os.write(give, b"?")
            assert os.read(told, 1) == b"?"  # it has said by now what it wants
            cells.drain()  # the threads end now, as they do later by themselves
            until(lambda: threads.issuperset(os.listdir("/proc/self/task")), "the kernel has ended them")
            os.close(give)
            give = -1
            assert process.wait(timeout=PATIENCE_S) == 0
    finally:
        for fd in (ours, give, told, tell):
            if fd >= 0:
                os.close(fd)


# --- what changes between the making and the launch ----------------------------------------------------------------


def compiled(target, text, *options, static=True):
    source = target.with_suffix(".c")
    source.write_text(text)
    subprocess.run(["gcc", "-Os", *(["-static"] if static else []), str(source), *options, "-o", str(target)], check=True)
    return str(target)


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """Two static programs that write one word each, "old" and "new", and two libraries that know one."""
    folder = tmp_path_factory.mktemp("words")
    for word in ("old", "new"):
        compiled(folder / word, f'#include <unistd.h>\nint main(void) {{ return write(1, "{word}\\n", 4) != 4; }}')
        compiled(folder / f"libword-{word}.so", f'const char *word(void) {{ return "{word}\\n"; }}', "-shared", "-fPIC", static=False)
    return folder


@pytest.fixture
def program(words, tmp_path):
    return shutil.copy(words / "old", tmp_path / "program")


def said(launch, program, **how):
    return observe(launch, program, argv=["program"], **how).lines[0][0]


def test_a_program_renamed_over_is_the_one_that_runs_next(watched, words, program, tmp_path):
    assert watched.observe_warm(program, argv=["program"]).lines == [["old"]]
    until(waiting, "a cell waits")
    os.rename(shutil.copy(words / "new", tmp_path / "other"), program)
    assert [said(watched, program) for _ in range(8)] == ["new"] * 8
    assert watched.observe_warm(program, argv=["program"]).lines == [["new"]]


def test_waiting_cells_do_not_keep_a_program_from_being_written_and_what_was_written_runs(watched, words, program):
    assert watched.observe_warm(program, argv=["program"]).lines == [["old"]]
    until(waiting, "a cell waits")
    Path(program).write_bytes((words / "new").read_bytes())
    assert [said(watched, program) for _ in range(8)] == ["new"] * 8


def test_a_library_renamed_over_is_the_one_that_is_loaded_next(watched, words, tmp_path):
    library = shutil.copy(words / "libword-old.so", tmp_path / "libword.so")
    text = "#include <unistd.h>\nconst char *word(void);\nint main(void) { return write(1, word(), 4) != 4; }"
    program = compiled(tmp_path / "program", text, library, "-Wl,-rpath,$ORIGIN", static=False)
    how = {"flags": SpawnFlags.DEFAULT_LDSVC}
    assert watched.observe_warm(program, argv=["program"], **how).lines == [["old"]]
    until(waiting, "a cell waits")
    os.rename(shutil.copy(words / "libword-new.so", tmp_path / "other"), library)
    assert [said(watched, program, **how) for _ in range(8)] == ["new"] * 8
    assert watched.observe_warm(program, argv=["program"], **how).lines == [["new"]]


def remove(path):
    path.unlink()


def forbid(path):
    path.chmod(0o644)


def garble(path):
    path.write_bytes(b"no program at all")


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_script_without_interpreter(path):
    path.write_text("#!/not/there\n")


@pytest.mark.parametrize("harm", [remove, forbid, garble, replace_by_folder, replace_by_script_without_interpreter])
def test_a_launch_that_cannot_work_any_more_fails_as_if_there_were_no_cells(watched, program, harm, world):
    watched.warm_up(program, ["program"])
    harm(Path(program))
    after_warm = failure_of(watched, program)
    cells.limit(0)
    assert after_warm == failure_of(watched, program)
    world.assert_unchanged()


def failure_of(launch, program):
    with pytest.raises(SpawnError) as caught:
        launch(program, ["program"])
    error = caught.value
    return type(error), error.status, error.stage, error.errno, str(error)


def test_a_folder_on_the_way_that_is_closed_to_us_is_closed_at_the_next_launch(watched, words, tmp_path):
    if has("root"):
        pytest.skip("needs an ordinary user: root may enter every folder")
    folder = tmp_path / "way"
    folder.mkdir()
    program = shutil.copy(words / "old", folder / "program")
    watched.warm_up(program, ["program"])
    folder.chmod(0)
    try:
        after_warm = failure_of(watched, program)
        cells.limit(0)
        assert after_warm == failure_of(watched, program)
    finally:
        folder.chmod(0o755)


CHANGES = {
    "the limit on open files": "resource.setrlimit(resource.RLIMIT_NOFILE, (1100, 1500))",
    "the limit on file sizes": "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 31))",
    "nice": "os.nice(3)",
    "the scheduling policy": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "the timer slack": "libc.prctl(29, 123456, 0, 0, 0)",
    "the personality": "libc.personality(0x0040000)",
    "the priority of input and output": "assert libc.syscall({'x86_64': 251, 'aarch64': 30}[os.uname().machine], 1, 0, 3 << 13) == 0",
    "what a core dump holds": "open('/proc/self/coredump_filter', 'w').write('0x7f')",
    "huge pages": "libc.prctl(41, 1, 0, 0, 0)",
    "who is killed first when memory runs out": "open('/proc/self/oom_score_adj', 'w').write('300')",
}
FOLLOW = """
before = look(watched, workload)
while not watched.warm[-1]:
    look(watched, workload)
until(waiting, "a cell waits")
exec(args[0])
seen = [look(watched, workload) for _ in range(6)]
cells.limit(0)
cold = look(watched, workload)
answer([list(differences(before, cold)), [found for found in (differences(cold, one) for one in seen) if found]])
"""


@pytest.mark.parametrize(
    "change",
    [pytest.param(code, id=name) for name, code in CHANGES.items()]
    + [pytest.param("os.setgroups([7, 8])", id="groups", marks=pytest.mark.root)],
)
def test_what_this_process_changes_about_itself_holds_for_the_next_launch(script, change):
    changed, seen = script(FOLLOW, change)
    assert changed, "the change makes no difference to a program"
    assert seen == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_process_confined_to_one_processor_launches_there(script):
    changed, seen = script(FOLLOW, "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})")
    assert "status Cpus_allowed" in changed
    assert seen == []


def test_launches_become_warm_again_after_a_change(script):
    text = """
watched.warm_up(workload, WORDS)
os.nice(3)
watched.warm_up(workload, WORDS)
answer("warm again")
"""
    assert script(text) == "warm again"


def test_two_threads_that_differ_each_get_programs_like_themselves(script):
    text = """
def work(nice, seen):
    os.nice(nice)
    for _ in range(40):
        with shoal.spawn(workload, ["workload", "drain", "0"], actions=[CloneFd(read_end, 0)]) as process:
            seen.add(os.getpriority(os.PRIO_PROCESS, process.pid) - nice)
            process.kill()
            process.wait(timeout=20)
read_end, write_end = os.pipe()
found = [set(), set()]
working = [threading.Thread(target=work, args=(nice, seen)) for nice, seen in zip((1, 4), found)]
for thread in working:
    thread.start()
for thread in working:
    thread.join()
answer([sorted(seen) for seen in found] + [os.getpriority(os.PRIO_PROCESS, 0)])
"""
    one, two, usual = script(text)
    assert one == two == [usual]


def test_the_callers_file_mode_mask_makes_no_difference(script, workload_dynamic):
    text = """
def report():
    return observe(watched, args[0], "stat", "/", "stat", "/lib", "umask", flags=shoal.SpawnFlags.DEFAULT_LDSVC, argv=None)
def modes(found):
    return [found.one("stat", path)[1:3] for path in ("/", "/lib")], found.one("umask")
usual = modes(report())
seen = []
for mask in (0o077, 0o777):
    os.umask(mask)
    try:
        seen += [modes(report()) for _ in range(8)]
    except shoal.SpawnError as error:
        seen.append(str(error))
answer([found for found in seen if found != usual])
"""
    assert script(text, workload_dynamic) == []


REMOUNT = """
folder = args[0]
def mount(*words):
    subprocess.run(["mount", *words], check=True)
def outcome():
    try:
        with watched(program, WORDS) as process:
            return process.wait(timeout=20)
    except shoal.SpawnError as error:
        return [error.status.name, error.errno]
mount("-t", "tmpfs", "none", folder)
program = shutil.copy(workload, folder + "/program")
"""


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_file_system_that_may_not_be_executed_from_any_more_is_followed_at_once(script, tmp_path):
    text = """
watched.warm_up(program, WORDS)
mount("-o", "remount,bind,noexec", folder)
seen = [outcome() for _ in range(3)]
mount("-o", "remount,bind,exec", folder)
watched.warm_up(program, WORDS)
answer(seen)
"""
    assert script(REMOUNT + text, str(tmp_path), prefix=own_mounts()) == [["ACCESS_DENIED", errno.EACCES]] * 3


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_what_is_mounted_on_a_program_or_on_a_library_of_it_is_what_runs_next(script, words, tmp_path):
    text = """
def said(path, **how):
    return observe(watched, path, argv=["program"], **how).lines[0][0]
found = []
static, library = folder + "/static", folder + "/libword.so"
shutil.copy(args[1] + "/old", static)
shutil.copy(args[1] + "/libword-old.so", library)
with open(folder + "/main.c", "w") as file:
    file.write("#include <unistd.h>\\nconst char *word(void);int main(void) { return write(1, word(), 4) != 4; }")
subprocess.run(["gcc", folder + "/main.c", library, "-Wl,-rpath,$ORIGIN", "-o", folder + "/dynamic"], check=True)
for path, on, new, how in (
    (static, static, "new", {}), (folder + "/dynamic", library, "libword-new.so", {"flags": shoal.SpawnFlags.DEFAULT_LDSVC})
):
    cells.drain()
    found.append(watched.observe_warm(path, argv=["program"], **how).lines[0][0])
    until(waiting, "a cell waits")
    mount("--bind", args[1] + "/" + new, on)
    found += [said(path, **how) for _ in range(3)]
    subprocess.run(["umount", "--lazy", on], check=True)  # cells that are being made may have it open
    found += [said(path, **how) for _ in range(3)]
answer(found)
"""
    found = script(REMOUNT + text, str(tmp_path), str(words), prefix=own_mounts())
    assert found == (["old"] + ["new"] * 3 + ["old"] * 3) * 2


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
@broken("cells are being made from it in the background, which keeps it busy", always=False)
def test_a_file_system_can_be_unmounted_as_soon_as_the_last_program_from_it_has_ended(script, tmp_path):
    text = """
busy = 0
for _ in range(40):
    mount("--bind", folder, folder)
    assert [outcome() for _ in range(3)] == [0] * 3
    if libc.umount2(folder.encode(), 0) != 0:
        busy += 1
        libc.umount2(folder.encode(), 2)
answer(busy)
"""
    # Without a pause before each launch: what is in the making is the point here.
    assert script(REMOUNT.replace("watched(program", "watched.launch(program") + text, str(tmp_path), prefix=own_mounts()) == 0


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_program_that_goes_to_a_mount_namespace_of_its_own_still_sees_its_mounts_change(script, tmp_path):
    text = """
cells.IDLE_S = 0.1
watched.warm_up(workload, WORDS)
assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
until(lambda: threading.active_count() == 1, "the threads that live elsewhere end")
watched.warm_up(program, WORDS)
mount("-o", "remount,bind,noexec", folder)
answer([outcome() for _ in range(3)])
"""
    assert script(REMOUNT + text, str(tmp_path), prefix=own_mounts()) == [["ACCESS_DENIED", errno.EACCES]] * 3


@needs("user namespaces for ordinary users")
@needs("unshare and setpriv (Debian package util-linux)")
def test_a_moment_without_descriptors_does_not_make_cells_blind_to_mounts(script, tmp_path):
    text = """
from shoal.handles import reaper
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
outcome(), outcome()
until(lambda: reaper.sweep() or not reaper.pending(), "all is reaped")
held = []
with contextlib.suppress(OSError):
    while True:
        held.append(os.dup(0))
with contextlib.suppress(shoal.SpawnError):
    shoal.spawn(program, WORDS)
for fd in held:
    os.close(fd)
watched.warm_up(program, WORDS)
mount("-o", "remount,bind,noexec", folder)
answer([outcome() for _ in range(3)])
"""
    assert script("import contextlib\n" + REMOUNT + text, str(tmp_path), prefix=own_mounts()) == [["ACCESS_DENIED", errno.EACCES]] * 3
