"""Left behind: what a program may write today, others trust tomorrow.

The caller executes it, or hands it to the next program, or keeps things of its own beside it. What belongs to the caller inside belongs
to the caller outside: that is what a directory is handed over for.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
import threading

import pytest
from attempts import AT_FDCWD, PATIENCE_S, Given

from shoal import SpawnError

SET_ID = stat.S_ISUID | stat.S_ISGID
EXCHANGE = 2


def ways_to_set_an_id(at):
    """Every call that takes a mode. Numbers are those that only this machine has, or that the C library has no name for yet."""
    fchmodat2, making = 452, os.O_WRONLY | os.O_CREAT
    yield ("openat", AT_FDCWD, f"{at}/made", making, 0o4755), ("fchmod", Given(1), 0o6755)
    yield ("openat", AT_FDCWD, f"{at}/changed", making, 0o755), ("fchmodat", AT_FDCWD, f"{at}/changed", 0o6755)
    yield ("openat", AT_FDCWD, f"{at}/later", making, 0o755), (fchmodat2, AT_FDCWD, f"{at}/later", 0o6755, 0)
    yield ("openat", AT_FDCWD, f"{at}/group", making, 0o755), ("fchmod", Given(1), 0o2755)
    yield (("mknodat", AT_FDCWD, f"{at}/node", stat.S_IFREG | 0o6755, 0),)
    nameless = ("openat", AT_FDCWD, at, os.O_WRONLY | os.O_TMPFILE, 0o4755)
    yield nameless, ("linkat", AT_FDCWD, "/proc/self/fd/3", AT_FDCWD, f"{at}/nameless", 0x400)
    how = struct.pack("=QQQ", making, 0o4755, 0)
    yield (("openat2", AT_FDCWD, f"{at}/described", how, len(how)),)
    if os.uname().machine == "x86_64":
        open_, creat, chmod, fchmod, mknod = 2, 85, 90, 91, 133
        yield (open_, f"{at}/old-made", making, 0o4755), (fchmod, Given(1), 0o6755)
        yield (creat, f"{at}/old-created", 0o4755), (chmod, f"{at}/old-created", 0o6755)
        yield ((mknod, f"{at}/old-node", stat.S_IFREG | 0o6755, 0),)


@pytest.mark.cell
def test_a_program_leaves_no_file_that_runs_as_the_caller(outside, inside, folder):
    """Whoever executes a set-user-id file of its making becomes the caller, be it root."""
    for ground, at in ((outside, folder), (inside.but(write={"/work": folder}), "/work")):
        for steps in ways_to_set_an_id(at):
            ground.calls(*steps)
        risky = {path.name for path in folder.iterdir() if path.stat().st_mode & SET_ID and path.stat().st_uid == os.geteuid()}
        for path in folder.iterdir():
            path.unlink()
        if ground is outside:
            assert risky >= {"made", "changed", "group", "node", "nameless", "described"}
    assert risky == set()


@pytest.mark.cell
def test_a_program_leaves_no_file_with_capabilities(inside, folder):
    all_of_them = struct.pack("=IIIII", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
    steps = (
        ("openat", AT_FDCWD, "/work/file", os.O_WRONLY | os.O_CREAT, 0o755),
        ("setxattr", "/work/file", "security.capability", all_of_them, len(all_of_them), 0),
        ("setxattr", "/work/file", "trusted.attack", b"1", 1, 0),
    )
    for filtered in ("default", "off"):
        assert inside.but(write={"/work": folder}, seccomp=filtered).errnos(*steps) == [0, errno.EPERM, errno.EPERM]
    assert [name for name in os.listxattr(folder / "file") if not name.startswith("system.")] == []


def ways_to_replace(at):
    """What lies in `at`/.git/hooks and a file beside it, by everything that changes a name on the way to them."""
    moves = [
        ("renameat2", AT_FDCWD, f"{at}{old}", AT_FDCWD, f"{at}{new}", flags)
        for old, new, flags in (
            ("/.git", "/moved", 0),
            ("/.git", "/other", EXCHANGE),
            ("/other", "/.git", EXCHANGE),
            ("/.git/hooks", "/.git/moved", 0),
            ("/.git/hooks", "/other", EXCHANGE),
            ("/.git/config", "/.git/moved", 0),
            ("/src/deep/er", "/src/moved", 0),
            ("/src/deep", "/src/moved", 0),
            ("/src", "/moved", 0),
        )
    ]
    removals = [("unlinkat", AT_FDCWD, f"{at}/.git/config", 0), ("unlinkat", AT_FDCWD, f"{at}/.git/hooks", 0x200)]
    return (*moves, *removals)


MAKING = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


@pytest.fixture
def repo(folder):
    """With hooks, a configuration and a file further down, as others execute or trust them."""
    at = folder / "repo"
    for path in (".git/hooks/hook", ".git/config", "src/deep/er/file"):
        (at / path).parent.mkdir(parents=True, exist_ok=True)
        (at / path).write_text("as it was")
    (at / "other" / "hooks").mkdir(parents=True)
    return at


READ_ONLY = (".git/hooks", ".git/config", "src/deep/er/file")


@pytest.mark.cell
def test_what_is_only_read_inside_what_is_written_is_not_replaced(inside, outside, repo):
    """As one would keep the hooks of a repository from being changed: they are executed by whoever uses it next."""
    inner = {f"/work/{path}": repo / path for path in READ_ONLY}
    for filtered in ("default", "off"):
        box = inside.but(write={"/work": repo}, read=inner, seccomp=filtered)
        for _ in range(3):  # later launches take another way than the first
            assert set(box.errnos(*ways_to_replace("/work"))) <= {errno.EBUSY, errno.EXDEV, errno.ENOENT}
        errnos = box.errnos(
            ("openat", AT_FDCWD, "/work/.git/hooks/hook", MAKING, 0o755),
            ("mkdirat", AT_FDCWD, "/work/.git/hooks", 0o755),
            ("openat", AT_FDCWD, "/work/.git/HEAD", MAKING, 0o644),
            ("renameat2", AT_FDCWD, "/work/.git/HEAD", AT_FDCWD, "/work/.git/index", 0),
            ("openat", AT_FDCWD, "/work/src/deep/new", MAKING, 0o644),
        )
        assert errnos == [errno.EROFS, errno.EEXIST, 0, 0, 0]
    assert {(repo / path / "hook" if path.endswith("hooks") else repo / path).read_text() for path in READ_ONLY} == {"as it was"}
    assert (repo / ".git" / "index").stat().st_uid == os.geteuid()
    # Not even where all privileges are to be had: what was mounted before stays, and so do the names.
    own = inside.but(write={"/work": repo}, read=inner, seccomp="off")
    taken = (("unshare", 0x10020000), ("umount2", "/work/.git", 2), ("umount2", "/work/.git/hooks", 2))
    first, *errnos = own.errnos(*taken, *ways_to_replace("/work"))
    assert first == 0
    assert set(errnos) <= {errno.EBUSY, errno.EXDEV, errno.ENOENT, errno.EINVAL, errno.EPERM}
    assert outside.errnos(*ways_to_replace(repo)[:1]) == [0]


@pytest.mark.cell
def test_a_directory_on_the_way_that_was_exchanged_since_is_mounted_as_it_is_now(inside, repo):
    """By a launch that was worked out before."""
    box = inside.but(write={"/work": repo}, read={"/work/.git/hooks": repo / ".git" / "hooks"})
    look = ("openat", AT_FDCWD, "/work/.git/mark", os.O_RDONLY)
    for _ in range(3):
        assert box.errno(*look) == errno.ENOENT
    (repo / ".git").rename(repo / "old")
    (repo / ".git" / "hooks").mkdir(parents=True)
    (repo / ".git" / "mark").touch()
    for _ in range(3):
        assert box.errno(*look) == 0


@pytest.mark.cell
def test_a_link_on_the_way_to_what_is_only_read_is_not_followed(inside, repo):
    (repo / "link").symlink_to(".git")
    with pytest.raises(SpawnError, match="/work/link, on the way to /work/link/hooks, has to be a directory and no symbolic link"):
        inside.but(write={"/work": repo}, read={"/work/link/hooks": "/usr/include"}).run("ids")


def test_what_the_next_filter_is_made_from_is_not_kept_where_programs_write(inside, folder, monkeypatch):
    """Caches are handed over to spare downloads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    code = "import shoal; print(shoal.run(['true']).enforced['seccomp'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "default\n", done.stderr
    assert list(folder.iterdir()) == []


def test_a_launch_does_not_wait_for_a_pipe_that_a_script_names_as_its_interpreter(inside, folder):
    """No time limit holds before a program runs."""
    pipe, script = folder / "pipe", folder / "script"
    os.mkfifo(pipe)
    pipe.chmod(0o755)
    script.write_text(f"#!{pipe}\n")
    script.chmod(0o755)
    errors = []

    def launch():
        try:
            inside.running(script).run()
        except SpawnError as error:
            errors.append(error)

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join(PATIENCE_S / 4)
    waits = thread.is_alive()
    if waits:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        thread.join()
    assert not waits
    assert [error.status.name for error in errors] == ["NOT_SUPPORTED"]
