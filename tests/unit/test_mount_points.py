"""What is mounted where, as the kernel lists it."""

import pytest

from shoal.manager.capabilities.kinds import kind_of
from shoal.manager.capabilities.mounts import holder, is_below, joined, parse_mountinfo, visible

LINES = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
28 27 254:0 /srv/a\040b /mnt/x\134y ro,nosuid master:2 propagate_from:3 - ext4 /dev/vda rw
30 27 0:30 / /odd rw - fuse.thing
"""


def test_a_list_is_read_with_its_escapes_and_its_optional_fields():
    proc, root, bind, odd = parse_mountinfo(LINES)
    assert (proc.id, proc.parent, proc.device, proc.where, proc.fstype, proc.writable) == (22, 27, "0:21", "/proc", "proc", True)
    assert (root.propagation, root.super_options, root.device_number) == (("shared:1",), ("rw", "discard"), 0xFE00)
    assert (bind.root, bind.where, bind.options, bind.propagation) == (
        "/srv/a b",
        r"/mnt/x\y",
        ("ro", "nosuid"),
        ("master:2", "propagate_from:3"),
    )
    assert not bind.writable
    assert (odd.fstype, odd.source) == ("fuse.thing", "")


def mounts(*places):
    """(id, parent, where) of each."""
    return parse_mountinfo("\n".join(f"{number} {parent} 0:{number} / {where} rw - tmpfs none rw" for number, parent, where in places))


@pytest.mark.parametrize(
    ("places", "seen"),
    [
        ([(1, 0, "/"), (2, 1, "/a"), (3, 2, "/a/b")], [1, 2, 3]),
        ([(1, 0, "/"), (2, 1, "/a"), (3, 2, "/a")], [1, 3]),  # one over the other
        ([(3, 2, "/a"), (2, 1, "/a"), (1, 0, "/")], [3, 1]),  # in whatever order they are listed
        ([(1, 0, "/"), (2, 1, "/a"), (3, 2, "/a/b"), (4, 2, "/a"), (5, 4, "/a/b")], [1, 4, 5]),  # with what was in the one below
        ([(1, 0, "/"), (2, 1, "/a/b"), (3, 1, "/a"), (4, 1, "/ab")], [1, 3, 4]),  # over a directory on the way
        ([(1, 1, "/"), (2, 1, "/a")], [1, 2]),  # a root that is its own parent
        ([(7, 99, "/"), (8, 7, "/a")], [7, 8]),  # a parent that is not listed
        ([(7, 99, "/"), (8, 7, "/"), (9, 8, "/a"), (5, 7, "/a")], [7, 5]),  # over the root, where no path leads
    ],
)
def test_what_something_is_mounted_over_is_not_to_be_seen(places, seen):
    assert [mount.id for mount in visible(mounts(*places))] == seen


def test_a_path_belongs_to_the_mount_that_comes_nearest():
    listed = mounts((1, 0, "/"), (2, 1, "/a"), (3, 2, "/a/b"))
    assert [holder(listed, path).id for path in ("/", "/x", "/ab", "/a", "/a/x", "/a/b", "/a/b/c", "/a/bc")] == [1, 1, 1, 2, 2, 3, 3, 2]
    assert holder(listed[1:], "/x") is None


def test_what_a_mount_shows_is_told_by_the_directory_that_it_is_of():
    bind = parse_mountinfo(LINES)[2]
    assert bind.shows(r"/mnt/x\y/file") == "/srv/a b/file"
    assert bind.shows(r"/mnt/x\y") == "/srv/a b"
    assert bind.shows("/mnt/x") is None
    assert (joined("/", "/a//b/"), joined("/a", ""), joined("/", "")) == ("/a/b", "/a", "/")
    assert (is_below("/ab", "/a"), is_below("/a/b", "/a"), is_below("/", "/"), is_below("/x", "/")) == (False, True, True, True)


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        ("pipe:[123]", ("pipe", 123)),
        ("socket:[9]", ("socket", 9)),
        ("net:[4026531840]", ("net namespace", 4026531840)),
        ("anon_inode:[eventfd]", ("eventfd", 0)),
        ("anon_inode:inotify", ("inotify", 0)),
        ("pidfd:[77]", ("pidfd", 77)),
        ("/memfd:name (deleted)", ("memory", 0)),
        ("/etc/hosts", ("file", 0)),
        ("/tmp/pipe:[123]", ("file", 0)),
        ("/memfd:not one", ("file", 0)),
    ],
)
def test_a_link_of_proc_says_what_is_open(link, kind):
    assert kind_of(link) == kind
