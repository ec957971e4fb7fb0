"""Namespaces: which directories a cell has, in which order they count, and that nothing can be slipped in. Source: spec 3.3, 3.8, 3.9."""

import errno
import os

import pytest
from rig.launchers import every_launcher
from rig.workload import observe

from shoal import (
    AccessDeniedError,
    AddNsEntry,
    BadHandleError,
    CloneDir,
    Directory,
    InvalidArgsError,
    Rights,
    Status,
    Vmo,
    WrongTypeError,
)

DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}


@pytest.fixture
def tree(tmp_path):
    """foo/bar/baz, foo/bar/bazel and foo/other, each with a file `who` that holds its path."""
    for name in ("foo/bar/baz", "foo/bar/bazel", "foo/other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "who").write_text(name)
    return tmp_path


def test_an_entry_is_all_there_is(cell, workload, tree, world):
    actions = [AddNsEntry("/data", Directory.open(tree / "foo/other"))]
    report = observe(cell, workload, "list", "/", "cat", "/data/who", "stat", str(tree), "stat", "/proc", "stat", "/dev", actions=actions)
    assert report.one("list", "/") == ["ok", "data"]
    assert report.one("cat", "/data/who") == ["ok", "foo/other"]
    assert report.errno("stat", str(tree)) == report.errno("stat", "/proc") == report.errno("stat", "/dev") == errno.ENOENT
    world.assert_unchanged()


def test_parents_of_an_entry_can_be_listed_and_not_changed(cell, workload, tree):
    actions = [AddNsEntry("/a/b/c", Directory.open(tree, writable=True))]
    verbs = ["list", "/", "list", "/a", "list", "/a/b", "stat", "/a", "create", "/x", "create", "/a/x", "mkdir", "/a/b/x", "chmod", "/a"]
    report = observe(cell, workload, *verbs, actions=actions)
    assert report.one("list", "/") == ["ok", "a"]
    assert report.one("list", "/a") == ["ok", "b"]
    assert report.one("list", "/a/b") == ["ok", "c"]
    assert report.one("stat", "/a")[:2] == ["ok", "dir"]
    assert report.errno("create", "/x") in DENIED
    assert report.errno("create", "/a/x") in DENIED
    assert report.errno("mkdir", "/a/b/x") in DENIED
    assert report.errno("chmod", "/a") in DENIED


def test_a_directory_opened_for_reading_is_read_only_however_it_is_approached(cell, workload, tree):
    target = "/data/who"
    verbs = [
        "writable",
        target,
        "create",
        "/data/new",
        "unlink",
        target,
        "chmod",
        target,
        "remount",
        "/data",
        "mount",
        "/data",
        "umount",
        "/data",
    ]
    report = observe(
        cell,
        workload,
        *verbs,
        "unshare-remount",
        "/data",
        "writable",
        target,
        actions=[AddNsEntry("/data", Directory.open(tree / "foo/other"))],
    )
    assert all(int(words[0]) in DENIED for words in report.all("writable", target))
    for verb, path in (
        ("create", "/data/new"),
        ("unlink", target),
        ("chmod", target),
        ("remount", "/data"),
        ("mount", "/data"),
        ("umount", "/data"),
    ):
        assert report.errno(verb, path) in DENIED | {errno.EINVAL}
    assert report.errno("unshare-remount", "/data") != 0
    assert (tree / "foo/other/who").read_text() == "foo/other"
    assert sorted(os.listdir(tree / "foo/other")) == ["who"]


def test_a_directory_opened_for_writing_is_the_callers_own_directory(cell, workload, tree):
    report = observe(
        cell,
        workload,
        "create",
        "/data/new",
        "append",
        "/data/who",
        "!",
        actions=[AddNsEntry("/data", Directory.open(tree / "foo/other", writable=True))],
    )
    assert report.ok("create", "/data/new")
    assert (tree / "foo/other/who").read_text() == "foo/other!"
    made = (tree / "foo/other/new").stat()
    assert (made.st_uid, made.st_gid) == (os.geteuid(), os.getegid())


def test_a_writable_directory_handed_over_without_the_write_right_is_read_only(cell, workload, tree):
    with Directory.open(tree / "foo/other", writable=True) as handle:
        narrow = handle.duplicate(handle.rights & ~Rights.WRITE)
    report = observe(cell, workload, "writable", "/data/who", actions=[AddNsEntry("/data", narrow)])
    assert report.errno("writable", "/data/who") in DENIED


def test_mounts_below_a_read_only_directory_are_read_only_too(cell, workload, tree):
    report = observe(
        cell, workload, "writable", "/dev/null", "create", "/dev/shm/shoal-escape", actions=[AddNsEntry("/dev", Directory.open("/dev"))]
    )
    assert report.errno("create", "/dev/shm/shoal-escape") in DENIED
    assert not os.path.exists("/dev/shm/shoal-escape")


def test_the_first_of_two_entries_with_the_same_path_wins(cell, workload, tree):
    actions = [AddNsEntry("/data", Directory.open(tree / "foo/other")), AddNsEntry("/data", Directory.open(tree / "foo/bar/baz"))]
    assert observe(cell, workload, "cat", "/data/who", actions=actions).one("cat", "/data/who") == ["ok", "foo/other"]


def test_an_entry_nested_below_an_earlier_one_is_ignored(cell, workload, tree):
    actions = [AddNsEntry("/data", Directory.open(tree / "foo")), AddNsEntry("/data/bar", Directory.open(tree / "foo/other"))]
    report = observe(cell, workload, "list", "/data/bar", actions=actions)
    assert sorted(report.one("list", "/data/bar")[1:]) == ["baz", "bazel"]


def test_an_entry_above_an_earlier_one_is_ignored(cell, workload, tree):
    actions = [AddNsEntry("/data/bar", Directory.open(tree / "foo/other")), AddNsEntry("/data", Directory.open(tree / "foo"))]
    report = observe(cell, workload, "list", "/data", "cat", "/data/bar/who", actions=actions)
    assert report.one("list", "/data") == ["ok", "bar"]
    assert report.one("cat", "/data/bar/who") == ["ok", "foo/other"]


def test_nesting_is_by_whole_components(cell, workload, tree):
    actions = [AddNsEntry("/data", Directory.open(tree / "foo/other")), AddNsEntry("/database", Directory.open(tree / "foo/bar/baz"))]
    report = observe(cell, workload, "cat", "/data/who", "cat", "/database/who", actions=actions)
    assert report.one("cat", "/data/who") == ["ok", "foo/other"]
    assert report.one("cat", "/database/who") == ["ok", "foo/bar/baz"]


def test_an_entry_at_the_root_is_the_root_and_later_entries_are_ignored(cell, workload, tree):
    actions = [AddNsEntry("/", Directory.open(tree / "foo")), AddNsEntry("/more", Directory.open(tree))]
    report = observe(cell, workload, "list", "/", "cat", "/other/who", actions=actions)
    assert sorted(report.one("list", "/")[1:]) == ["bar", "other"]
    assert report.one("cat", "/other/who") == ["ok", "foo/other"]


def test_an_entry_at_the_root_is_accepted_only_into_an_empty_namespace(cell, workload, tree):
    actions = [AddNsEntry("/data", Directory.open(tree / "foo/other")), AddNsEntry("/", Directory.open(tree))]
    assert observe(cell, workload, "list", "/", actions=actions).one("list", "/") == ["ok", "data"]


def test_nothing_is_made_in_the_callers_directories_to_mount_on(cell, workload, tree, world):
    actions = [
        AddNsEntry("/data", Directory.open(tree / "foo", writable=True)),
        AddNsEntry("/data/bar", Directory.open(tree / "foo/other"), nested=True),
    ]
    assert observe(cell, workload, "cat", "/data/bar/who", actions=actions).one("cat", "/data/bar/who") == ["ok", "foo/other"]
    assert sorted(os.listdir(tree / "foo")) == ["bar", "other"]
    assert sorted(os.listdir(tree / "foo/bar")) == ["baz", "bazel"]
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("prefix", ["", "data", "./data", "../data", "/data/../etc", "/..", "/../x", "/data/..", "/a\0b", "\0", "/data\0"])
def test_a_prefix_that_cannot_be_an_absolute_path_is_refused_and_its_handle_consumed(launch, workload, tree, prefix, world):
    handle = Directory.open(tree)
    with pytest.raises(InvalidArgsError, match="action 0") as caught:
        launch(workload, ["workload"], actions=[AddNsEntry(prefix, handle)])
    assert caught.value.status is Status.INVALID_ARGS
    assert handle.closed
    world.assert_unchanged()


@every_launcher
def test_a_handle_that_can_be_no_entry_is_the_wrong_type(launch, workload, world):
    handle = Vmo.from_bytes(b"x")
    with pytest.raises(WrongTypeError, match="action 0"):
        launch(workload, ["workload"], actions=[AddNsEntry("/data", handle)])
    assert handle.closed
    world.assert_unchanged()


def test_a_closed_directory_is_a_bad_handle(cell, workload, tree):
    handle = Directory.open(tree)
    handle.close()
    with pytest.raises(BadHandleError, match="action 0"):
        cell(workload, ["workload"], actions=[AddNsEntry("/data", handle)])


def test_a_directory_without_the_transfer_right_is_denied_and_consumed(cell, workload, tree, world):
    with Directory.open(tree) as handle:
        narrow = handle.duplicate(handle.rights & ~Rights.TRANSFER)
    with pytest.raises(AccessDeniedError, match="action 0"):
        cell(workload, ["workload"], actions=[AddNsEntry("/data", narrow)])
    assert narrow.closed
    world.assert_unchanged()


# --- CloneDir: the table of 3.8, for the caller's own directories -------------------------------------------------


@pytest.mark.parametrize(
    ("prefixes", "there", "absent"),
    [
        (["foo/bar/baz"], ["foo/bar/baz"], ["foo/bar/bazel", "foo/other"]),
        (["foo/bar"], ["foo/bar/baz", "foo/bar/bazel"], ["foo/other"]),
        (["foo"], ["foo/bar/baz", "foo/bar/bazel", "foo/other"], []),
        (["foo/bar/ba"], [], ["foo/bar/baz", "foo/bar/bazel"]),
        (["missing"], [], ["foo"]),
        (["foo//bar"], [], ["foo"]),
        (["foo/."], [], ["foo/bar"]),
        (["foo/bar", "foo"], ["foo/bar/baz", "foo/other"], []),
        (["foo", "foo/bar", "foo"], ["foo/bar/baz", "foo/other"], []),
        (["foo/bar/baz", "foo/other"], ["foo/bar/baz", "foo/other"], ["foo/bar/bazel"]),
    ],
)
def test_clone_dir_selects_by_whole_components(cell, workload, tree, prefixes, there, absent):
    verbs = [word for name in there + absent for word in ("list", f"{tree}/{name}")]
    report = observe(cell, workload, *verbs, actions=[CloneDir(f"{tree}/{prefix}") for prefix in prefixes])
    assert [name for name in there + absent if report.ok("list", f"{tree}/{name}")] == there


def test_a_cloned_directory_keeps_its_path_and_the_callers_right_to_write(cell, workload, tree):
    report = observe(cell, workload, "append", f"{tree}/foo/other/who", "!", "list", "/", actions=[CloneDir(f"{tree}/foo")])
    assert report.ok("append", f"{tree}/foo/other/who")
    assert report.one("list", "/") == ["ok", str(tree).split("/")[1]]
    assert (tree / "foo/other/who").read_text() == "foo/other!"


def test_a_cloned_entry_comes_before_an_added_one(cell, workload, tree):
    path = f"{tree}/foo"
    actions = [AddNsEntry(path, Directory.open(tree / "foo/other")), CloneDir(path)]
    assert observe(cell, workload, "list", f"{path}/bar", actions=actions).ok("list", f"{path}/bar")


def test_clone_dir_of_the_root_is_clone_namespace(cell, workload, tree):
    report = observe(cell, workload, "cat", f"{tree}/foo/other/who", "pids", actions=[CloneDir("/"), CloneDir(f"{tree}/missing")])
    assert report.one("cat", f"{tree}/foo/other/who") == ["ok", "foo/other"]
    assert int(report.one("pids")[1]) == os.getpid()


@every_launcher
@pytest.mark.parametrize("prefix", ["", "foo", "./foo", "/foo/", "//"])
def test_a_malformed_clone_dir_is_refused_even_beside_the_whole_namespace(launch, workload, prefix, world):
    with pytest.raises(InvalidArgsError, match="action 1") as caught:
        launch(workload, ["workload"], actions=[CloneDir("/"), CloneDir(prefix)])
    assert caught.value.status is Status.INVALID_ARGS
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("prefix", ["/tmp/../etc", "/..", "/a\0b"])
def test_a_clone_dir_with_dots_or_nul_is_refused(launch, workload, prefix):
    with pytest.raises(InvalidArgsError, match="action 0"):
        launch(workload, ["workload"], actions=[CloneDir(prefix)])
