"""Files of the host: the program's own, those it was handed to read, those it was handed to write, and what it leaves there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from attempts import AT_FDCWD, Given, build
from rig.world import descendants

from shoal import SpawnError

RENAME_EXCHANGE = 2
FS_IOC_SETFLAGS, NO_DUMP = 0x40086602, struct.pack("=q", 0x40)
F_GET_SEALS, SEALS = 1034, 0x1 | 0x2 | 0x4 | 0x8  # no more seals, no shrinking, no growing, no writing


def contents(path):
    return Path(path).read_bytes()


def words_of(pid):
    with contextlib.suppress(OSError):  # it has ended
        return contents(f"/proc/{pid}/cmdline")
    return b""


# --- the program's own --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def victim(attacks, folder):
    """A program that anybody may write to."""
    path = folder / "victim"
    shutil.copy(attacks, path)
    path.chmod(0o777)
    return path


@pytest.mark.cell
def test_a_program_cannot_overwrite_its_own_file(outside, inside, victim, folder):
    """With a descriptor of it that is kept over an exec, since nobody can write to a file that runs."""
    before = contents(victim)
    assert inside.running(victim).attack("overwrite-self", "/tmp").errno("reopen") == errno.EROFS
    assert contents(victim) == before
    assert outside.running(victim).attack("overwrite-self", folder).ok("reopen")
    assert contents(victim).startswith(b"OVERWRITTEN")


@pytest.mark.cell
def test_a_program_cannot_change_the_file_of_another_that_it_was_handed(outside, inside, victim, attacks):
    change = (
        ("openat", AT_FDCWD, victim, os.O_WRONLY | os.O_TRUNC),
        ("fchmodat", AT_FDCWD, victim, 0o777),
        ("unlinkat", AT_FDCWD, victim, 0),
    )
    assert inside.but(read=[victim]).errnos(*change) == [errno.EROFS, errno.EROFS, errno.EACCES if inside.has_own_user else errno.EBUSY]
    assert contents(victim) == contents(attacks)
    assert outside.errnos(*change) == [0, 0, 0]


def test_the_first_process_of_a_cell_cannot_be_looked_into_or_exchanged(outside, inside):
    def look(pid):
        names = ("exe", "mem", "environ", "root", "cwd", "maps")
        return tuple(("openat", AT_FDCWD, f"/proc/{pid}/{name}", os.O_RDONLY) for name in names)

    with outside.held(("getpid",)) as other:
        assert outside.errnos(*look(other.outcomes[0].value)) == [0] * 6
    for filtered in ("default", "off"):
        assert inside.but(seccomp=filtered).errnos(*look(1)) == [errno.EACCES] * 6


@pytest.mark.root
def test_the_program_that_is_the_first_process_of_every_cell_cannot_be_changed_by_anybody(inside):
    before = descendants()
    with inside.held(("getpid",)):
        first = [pid for pid in descendants() - before if words_of(pid).startswith(b"shoal-init")]
        assert first
        for pid in first:
            with open(f"/proc/{pid}/exe", "rb") as image:
                assert fcntl.fcntl(image, F_GET_SEALS) & SEALS == SEALS


@pytest.mark.cell
def test_a_script_whose_interpreter_is_proc_self_exe_gets_the_launchers_program_and_cannot_write_to_it(inside, folder):
    script = folder / "script"
    script.write_text("#!/proc/self/exe\nimport os\nprint(os.statvfs('/proc/self/exe').f_flag & 1, os.readlink('/proc/self/exe'))\n")
    script.chmod(0o755)
    done = inside.but(read=[sys.base_prefix], env={"PYTHONHOME": sys.base_prefix}).running(script).run()
    assert (done.returncode, done.stderr) == (0, b"")
    read_only, place = done.stdout.split()
    assert read_only == b"1"
    assert not os.path.exists(place), "it was executed where it is on the host"


@pytest.fixture
def library(folder):
    """A shared library of the host that anybody may write to, and the attacks linked to it."""
    source = folder / "library.c"
    source.write_text("int of_the_library(void) { return 1; }\n")
    path = folder / "libvictim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    path.chmod(0o777)
    return path, build(folder, f"-L{folder}", "-Wl,--no-as-needed", "-lvictim", f"-Wl,-rpath,{folder}")


@pytest.mark.cell
def test_a_library_of_the_host_cannot_be_overwritten_through_the_libraries_of_a_program(outside, inside, library):
    path, program = library
    before = contents(path)
    spoil = (
        ("openat", AT_FDCWD, path, os.O_WRONLY),
        ("fchmodat", AT_FDCWD, path, 0o777),
        ("setxattr", str(path), "user.attack", b"1", 1, 0),
        ("renameat2", AT_FDCWD, path, AT_FDCWD, f"{path}.old", 0),
    )
    assert inside.running(program).errnos(*spoil) == [errno.EROFS] * 3 + [errno.EACCES if inside.has_own_user else errno.EBUSY]
    assert contents(path) == before
    assert outside.errnos(*spoil) in ([0, 0, 0, 0], [0, 0, errno.EOPNOTSUPP, 0])


def test_a_file_is_not_brought_in_by_a_program_that_names_it_as_its_library(outside, folder, inside):
    """Libraries and interpreters are found by what the program says of itself, and it may be nobody's friend."""
    secret = folder / "secret"
    source = folder / "library.c"
    source.write_text("int of_the_library(void) { return 1; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(secret), f"-Wl,-soname,{secret}"], check=True)
    needing = build(folder, "-Wl,--no-as-needed", str(secret))
    assert outside.running(needing).run("ids").returncode == 0
    secret.write_text("secret")
    interpreted = folder / "interpreted"
    interpreted.write_text(f"#!{secret}\n")
    interpreted.chmod(0o755)
    with pytest.raises(SpawnError, match="is not a program"):
        inside.running(needing).run("ids")
    secret.chmod(0o600)
    with pytest.raises(SpawnError):
        inside.running(interpreted).run("ids")


# --- handed over to be read ---------------------------------------------------------------------------------------------------------


def changes(at):
    """Everything that changes a directory with `file` and `empty` in it."""
    now = struct.pack("=qqqq", 1, 0, 1, 0)
    return (
        ("openat", AT_FDCWD, f"{at}/file", os.O_WRONLY),
        ("openat", AT_FDCWD, f"{at}/file", os.O_RDWR),
        ("openat", AT_FDCWD, f"{at}/file", os.O_RDONLY | os.O_TRUNC),
        ("openat", AT_FDCWD, f"{at}/new", os.O_WRONLY | os.O_CREAT, 0o600),
        ("openat", AT_FDCWD, at, os.O_WRONLY | os.O_TMPFILE, 0o600),
        ("truncate", f"{at}/file", 0),
        ("fchmodat", AT_FDCWD, f"{at}/file", 0o777),
        ("fchownat", AT_FDCWD, f"{at}/file", os.geteuid(), os.getegid(), 0),
        ("utimensat", AT_FDCWD, f"{at}/file", now, 0),
        ("setxattr", f"{at}/file", "user.attack", b"1", 1, 0),
        ("mkdirat", AT_FDCWD, f"{at}/directory", 0o700),
        ("mknodat", AT_FDCWD, f"{at}/fifo", stat.S_IFIFO | 0o600, 0),
        ("symlinkat", "/etc/passwd", AT_FDCWD, f"{at}/link"),
        ("linkat", AT_FDCWD, f"{at}/file", AT_FDCWD, f"{at}/another", 0),
        ("renameat2", AT_FDCWD, f"{at}/file", AT_FDCWD, f"{at}/moved", 0),
        ("unlinkat", AT_FDCWD, f"{at}/empty", 0x200),
    )


def snapshot(top):
    """Everything below a directory, with what a change would change."""
    found = {}
    for path in sorted([Path(top), *Path(top).rglob("*")]):
        at = path.lstat()
        found[str(path)] = (at.st_ino, at.st_mode, at.st_uid, at.st_gid, at.st_nlink, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
    return found


@pytest.fixture
def data(folder):
    """A directory that anybody may change."""
    at = folder / "data"
    at.mkdir()
    (at / "empty").mkdir()
    (at / "file").write_text("as it was")
    for path in (at, *at.iterdir()):
        path.chmod(0o777)
    return at


@pytest.mark.cell
def test_nothing_in_a_directory_that_is_read_can_be_changed(outside, inside, data):
    before = snapshot(data)
    for filtered in ("default", "off"):
        box = inside.but(read={"/data": data}, seccomp=filtered)
        assert box.errnos(*changes("/data")) == [errno.EROFS] * len(changes("/data"))
        attributes = (("openat", AT_FDCWD, "/data/file", os.O_RDONLY), ("ioctl", Given(1), FS_IOC_SETFLAGS, NO_DUMP))
        assert box.errnos(*attributes) == [0, errno.EROFS]
    assert snapshot(data) == before
    for change, error in zip(changes(data), outside.errnos(*changes(data)), strict=True):
        assert error == 0 or (change[0] == "setxattr" and error == errno.EOPNOTSUPP), change


@pytest.mark.cell
def test_a_file_that_is_read_cannot_be_changed_through_memory(outside, inside, data):
    size, shared, protection = 4096, 1, 3
    into = (("openat", AT_FDCWD, "{}/file", os.O_RDONLY), ("mmap", 0, size, protection, shared, Given(1), 0))

    def at(place):
        return tuple(tuple(item.format(place) if isinstance(item, str) else item for item in step) for step in into)

    assert inside.but(read={"/data": data}).errnos(*at("/data")) == [0, errno.EACCES]
    assert outside.errnos(*at(data)) == [0, errno.EACCES]


@pytest.mark.cell
def test_a_named_pipe_in_a_directory_that_is_read_cannot_be_written(outside, inside, data, make_open):
    """To the mount it is no file: only the second wall stands here."""
    os.mkfifo(data / "fifo")
    (data / "fifo").chmod(0o777)
    make_open(data / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert outside.errno("openat", AT_FDCWD, data / "fifo", os.O_WRONLY | os.O_NONBLOCK) == 0
    in_box = inside.but(read={"/data": data})
    error = in_box.errno("openat", AT_FDCWD, "/data/fifo", os.O_WRONLY | os.O_NONBLOCK)
    assert error == (errno.EACCES if in_box.enforced["landlock"] else 0)


@pytest.mark.cell
def test_nothing_can_be_written_but_what_was_granted(inside, data):
    """Every file of the whole world is opened for writing, and in every directory one is made."""
    devices = {f"file /dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}
    memory = {"directory /tmp", "directory /dev/shm"}
    granted = {"directory /work", "directory /work/empty", "file /work/file"}
    home = Path(inside.program).parent
    implied = {f"directory {path}" for path in (home, *home.parents) if path.is_relative_to("/tmp")}  # made in the private /tmp
    report = inside.but(write={"/work": data}, read={"/data": data}).attack("writable", "/")
    assert report.all("looked") == [[]]
    found = {" ".join(line) for line in report.all("writable")}
    assert granted | memory | devices <= found <= granted | memory | devices | implied


@pytest.mark.cell
def test_a_whole_host_that_is_read_has_no_processes_no_devices_and_is_not_written(inside):
    looks = (f"/proc/{os.getpid()}", "/dev/mem", "/dev/kmsg", "/dev/ptmx", "/dev/vda")
    spoils = ("/etc/passwd", "/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper", "/sys/power/state")
    box = inside.but(read=["/"])
    assert box.errnos(*(("openat", AT_FDCWD, path, os.O_RDONLY) for path in looks)) == [errno.ENOENT] * len(looks)
    refused = set(box.errnos(*(("openat", AT_FDCWD, path, os.O_WRONLY) for path in spoils)))
    assert refused <= {errno.EROFS, errno.EACCES, errno.ENOENT}
    assert box.errno("openat", AT_FDCWD, "/etc/new", os.O_WRONLY | os.O_CREAT, 0o600) == errno.EROFS


# --- handed over to be written -------------------------------------------------------------------------------------------------------


@pytest.mark.cell
def test_files_are_not_linked_or_renamed_from_one_grant_to_another(outside, inside, data, folder):
    work = folder / "work"
    work.mkdir()
    work.chmod(0o777)
    (work / "own").write_text("own")
    (work / "own").chmod(0o777)

    def moves(source, target):
        return (
            ("linkat", AT_FDCWD, f"{source}/file", AT_FDCWD, f"{target}/stolen", 0),
            ("renameat2", AT_FDCWD, f"{target}/own", AT_FDCWD, f"{source}/file", RENAME_EXCHANGE),
            ("renameat2", AT_FDCWD, f"{source}/file", AT_FDCWD, f"{target}/moved", 0),
        )

    before = snapshot(folder)
    box = inside.but(read={"/data": data}, write={"/work": work, "/other": data})
    assert box.errnos(*moves("/data", "/work")) == [errno.EXDEV] * 3
    assert box.errnos(*moves("/other", "/work")) == [errno.EXDEV] * 3
    assert snapshot(folder) == before
    assert outside.errnos(*moves(data, work)) == [0, 0, 0]


# --- privileges that files have --------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_set_user_id_program_of_root_gives_nothing(outside, inside, attacks, public_folder):
    program = public_folder / "as-root"
    shutil.copy(attacks, program)
    program.chmod(0o6755)
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        pytest.skip("needs a /tmp where set-user-id programs have an effect")
    report = outside.running(program).attack("ids", user=65534, group=65534, extra_groups=[])
    assert report.one("ids") == ["65534", "0", "65534", "0"]
    for how in ({"read": [public_folder]}, {"write": [public_folder]}, {}):
        real, effective, real_group, effective_group, *_ = inside.but(**how).running(program).attack("ids").one("ids")
        assert (real, real_group) == (effective, effective_group)
        assert (int(real) != 0) == inside.has_own_user


@pytest.mark.cell
def test_no_mount_of_a_world_gives_privileges_or_devices_to_what_lies_there(inside, data):
    size = 16384
    mounts, status = inside.but(read={"/data": data, "/usr": "/usr"}, write={"/work": data}, devices=["pts"]).calls(
        ("openat", AT_FDCWD, "/proc/self/mountinfo", os.O_RDONLY),
        ("read", Given(1), bytes(size), size),
        ("openat", AT_FDCWD, "/proc/self/status", os.O_RDONLY),
        ("read", Given(3), bytes(size), size),
    )[1::2]
    lines = [line.split() for line in mounts.data.rstrip(b"\0").decode().splitlines()]
    assert {"/", "/data", "/usr", "/work", "/tmp", "/proc", "/dev/shm", "/dev/pts"} <= {line[4] for line in lines}
    for line in lines:
        options = line[5].split(",")
        assert "nosuid" in options, line
        assert "nodev" in options or line[4].startswith("/dev/"), line
    values = dict(line.split(":\t", 1) for line in status.data.rstrip(b"\0").decode().splitlines())
    assert {name: int(values[name], 16) for name in values if name.startswith("Cap")} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0
    )
    assert values["NoNewPrivs"] == "1"


@pytest.mark.root
@pytest.mark.cell
def test_a_device_node_cannot_be_made_nor_used_where_it_lies_already(outside, inside, data):
    null = os.makedev(1, 3)

    def use(at):
        return (
            ("mknodat", AT_FDCWD, f"{at}/made", stat.S_IFCHR | 0o666, null),
            ("mknodat", AT_FDCWD, f"{at}/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0)),
            ("openat", AT_FDCWD, f"{at}/node", os.O_WRONLY),
        )

    os.mknod(data / "node", stat.S_IFCHR | 0o666, null)
    (data / "node").chmod(0o666)
    refusal = errno.EACCES if inside.enforced["landlock"] else errno.EPERM
    for filtered in ("default", "off"):
        box = inside.but(write={"/work": data}, read={"/data": data}, seccomp=filtered)
        assert box.errnos(*use("/work")) == [refusal, refusal, errno.EACCES]
        assert box.errnos(*use("/tmp"))[:2] == [refusal, refusal]
        assert box.errno("openat", AT_FDCWD, "/data/node", os.O_WRONLY) == errno.EACCES
    assert outside.errnos(*use(data)) == [0, 0, 0]


@pytest.mark.root
@pytest.mark.cell
def test_a_file_is_not_found_by_its_number_on_the_disk(outside, inside, data, folder):
    """The kernel opens a file by its handle, wherever it lies on the file system of any directory at hand."""
    (folder / "secret").write_text("secret")
    room = struct.pack("=Ii", 128, 0) + bytes(128)
    handle = outside.calls(("name_to_handle_at", AT_FDCWD, folder / "secret", room, bytes(4), 0))[0].data

    def fetch(at):
        return (
            ("openat", AT_FDCWD, at, os.O_RDONLY | os.O_DIRECTORY),
            ("open_by_handle_at", Given(1), handle, os.O_RDONLY),
            ("read", Given(2), bytes(6), 6),
        )

    assert outside.calls(*fetch(data))[2].data == b"secret"
    for filtered in ("default", "off"):
        for how in ("read", "write"):
            assert inside.but(**{how: {"/data": data}}, seccomp=filtered).errnos(*fetch("/data")) == [0, errno.EPERM, errno.EBADF]
