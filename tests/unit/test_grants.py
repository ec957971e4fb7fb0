"""What the options of `shoal run` mean, before anything is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.cli.output import CommandError
from shoal.sandbox.grants import Grant, Kind, View, lay_out, parse_bind, parse_tmpfs, split_dest, working_directory


def places(grants: tuple[Grant, ...]) -> dict[str, Grant]:
    return {grant.dest: grant for grant in grants}


def bind(text: str, cwd: Path | str = "/", *, writable: bool = False) -> list[Grant]:
    return parse_bind(text, writable=writable, cwd=str(cwd))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with files and links, addressed without links itself."""
    root = Path(os.path.realpath(tmp_path)) / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("x")
    (root / "a:b").write_text("x")
    (root / "away").symlink_to("/etc/passwd")
    (root / "near").symlink_to("sub/file")
    (root / "loop").symlink_to("loop")
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a", ("/a", None)),
        ("/a:/b", ("/a", "/b")),
        (".:/work", (".", "/work")),
        ("/a:b", ("/a:b", None)),
        ("/a:b:/c", ("/a:b", "/c")),
        (r"/a\:/b", ("/a:/b", None)),
        (r"/a\:/b:/c", ("/a:/b", "/c")),
        ("/a:/b:/c", ("/a:/b", "/c")),
        (r"/a:/b\:c", ("/a", "/b:c")),
        (":/b", ("", "/b")),
    ],
)
def test_dest_begins_at_the_last_unescaped_colon_before_a_slash(text: str, expected: tuple[str, str | None]) -> None:
    assert split_dest(text) == expected


def test_without_a_dest_a_file_is_where_it_is_on_the_host(tree: Path) -> None:
    assert bind("sub/../sub/file", tree) == [Grant(Kind.PATH, f"{tree}/sub/file", f"{tree}/sub/file")]


def test_a_colon_of_the_file_name_is_kept(tree: Path) -> None:
    assert bind("a:b", tree)[0].source == f"{tree}/a:b"
    assert bind("a:b:/x", tree) == [Grant(Kind.PATH, "/x", f"{tree}/a:b")]


def test_a_link_is_visible_under_its_own_and_under_its_real_name(tree: Path) -> None:
    assert [grant.dest for grant in bind("near", tree)] == [f"{tree}/near", f"{tree}/sub/file"]
    assert {grant.source for grant in bind("near", tree)} == {f"{tree}/sub/file"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("missing", "missing: No such file"),
        ("sub:dest", "DEST has to be an absolute path"),
        ("sub:/a/../b", "has a '..' in it"),
        (":/x", "SRC is empty"),
        ("loop", "loop: Too many levels"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(tree: Path, text: str, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        bind(text, tree)


@pytest.mark.parametrize(
    ("text", "dest", "size"), [("/x", "/x", "1G"), ("/x:64M", "/x", "64M"), ("/x/", "/x", "1G"), (r"/a\:64M", "/a:64M", "1G")]
)
def test_tmpfs_takes_a_size(text: str, dest: str, size: str) -> None:
    assert parse_tmpfs(text) == Grant(Kind.TMPFS, dest, writable=True, size=size)


@pytest.mark.parametrize("text", ["x", "/x:", "/x:big", "/x:-1", "/a/../b"])
def test_a_tmpfs_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--tmpfs"):
        parse_tmpfs(text)


def test_every_program_gets_tmp_proc_dev_and_itself() -> None:
    grants = places(lay_out([], program="/usr/bin/env", network=False))
    assert {dest: grant.kind for dest, grant in grants.items()} == {
        "/tmp": Kind.TMPFS,
        "/proc": Kind.PROC,
        "/dev": Kind.DEVICES,
        "/usr/bin/env": Kind.PATH,
    }
    assert not grants["/usr/bin/env"].writable


def test_what_is_asked_for_replaces_what_everybody_gets(tree: Path) -> None:
    grants = places(lay_out(bind(f"{tree}:/tmp"), program="/usr/bin/env", network=False))
    assert grants["/tmp"].source == str(tree)


def test_parents_come_before_what_lies_inside_them(tree: Path) -> None:
    (tree / "b" / "c").mkdir(parents=True)
    asked = [*bind(f"{tree}:/usr/b/c"), *bind(f"{tree}:/usr"), *bind("/:/")]
    order = [grant.dest for grant in lay_out(asked, program="/usr/bin/env", network=False)]
    assert order.index("/") < order.index("/usr") < order.index("/usr/b/c")
    assert order[0] == "/"


def test_the_same_place_twice_is_an_error_unless_it_is_the_same_thing(tree: Path) -> None:
    with pytest.raises(CommandError, match="/x is granted twice"):
        lay_out([*bind(f"{tree}:/x"), *bind(f"{tree}:/x", writable=True)], program="/usr/bin/env", network=False)
    lay_out([*bind(f"{tree}:/x"), *bind(f"{tree}:/x")], program="/usr/bin/env", network=False)


def test_inside_a_granted_directory_there_has_to_be_a_place(tree: Path) -> None:
    lay_out([*bind(f"{tree}:/a"), parse_tmpfs("/a/sub")], program="/usr/bin/env", network=False)
    lay_out([*bind(f"{tree}:/a"), *bind("/etc/passwd:/a/sub/file")], program="/usr/bin/env", network=False)
    with pytest.raises(CommandError, match=r"no directory .*/none to put it on") as caught:
        lay_out([*bind(f"{tree}:/a"), parse_tmpfs("/a/none")], program="/usr/bin/env", network=False)
    assert caught.value.hints == (f"mkdir -p {tree}/none",)
    with pytest.raises(CommandError, match="no file"):
        lay_out([*bind(f"{tree}:/a"), *bind("/etc/passwd:/a/sub")], program="/usr/bin/env", network=False)
    with pytest.raises(CommandError, match=r"no directory .*/tmp"):
        lay_out(bind(f"{tree}:/"), program="/usr/bin/env", network=False)


@pytest.mark.skipif(not os.path.islink("/bin"), reason="needs a host where /bin is a link into /usr")
def test_usr_brings_the_links_that_lead_into_it() -> None:
    grants = places(lay_out(bind("/usr"), program="/usr/bin/env", network=False))
    assert grants["/bin"].source == "/usr/bin"
    assert "/usr/bin/env" not in grants  # it can be seen in /usr


@pytest.mark.skipif(not os.path.islink("/bin"), reason="needs a host where /bin is a link into /usr")
def test_no_link_shows_what_something_else_covers() -> None:
    grants = places(lay_out([*bind("/usr"), *bind("/dev/null:/usr/bin/env")], program="/usr/bin/env", network=False))
    assert "/bin" not in grants


def test_no_real_name_shows_what_something_else_covers(tree: Path) -> None:
    (tree / "alias").symlink_to("sub")
    grants = places(lay_out([*bind("alias", tree), *bind("/etc/passwd:" + f"{tree}/alias/file")], program="/usr/bin/env", network=False))
    assert f"{tree}/alias" in grants
    assert f"{tree}/sub" not in grants


def test_a_network_brings_names_and_certificates() -> None:
    grants = places(lay_out([], program="/usr/bin/env", network=True))
    assert ("/etc/hosts" in grants) == os.path.exists("/etc/hosts")
    assert "/etc/passwd" not in grants


# --- the view ---------------------------------------------------------------------------------------


def view(*grants: Grant) -> View:
    return View(lay_out(grants, program="/usr/bin/env", network=False))


def test_a_view_shows_what_is_granted_and_the_way_there(tree: Path) -> None:
    seen = view(*bind(f"{tree}/sub:/a/b"))
    assert [path for path in ("/", "/a", "/a/b", "/a/b/file", "/tmp", "/dev/null", "/dev/pts", "/proc/self/x") if seen.missing(path)] == []
    assert seen.missing("/a/b/none") == "/a/b/none"
    assert seen.missing("/a/c/d") == "/a/c/d"
    assert seen.missing("/tmp/x") == "/tmp/x"
    assert seen.missing("/dev/sda") == "/dev/sda"


def test_a_view_follows_links_to_where_they_lead_inside(tree: Path) -> None:
    seen = view(*bind(str(tree)))
    assert seen.missing(f"{tree}/near") is None
    assert seen.missing(f"{tree}/away") == "/etc/passwd"
    assert seen.missing(f"{tree}/loop") == f"{tree}/loop"
    assert seen.missing(f"{tree}/sub/../near") is None


def test_a_view_knows_directories_and_the_hosts_files(tree: Path) -> None:
    seen = view(*bind(f"{tree}:/t"))
    assert seen.is_directory("/t/sub")
    assert seen.is_directory("/")
    assert not seen.is_directory("/t/near")
    assert not seen.is_directory("/nowhere")
    assert seen.host_path("/t/sub/file") == f"{tree}/sub/file"


def test_the_program_starts_where_its_caller_is_when_it_can_see_that(tree: Path) -> None:
    assert working_directory(None, view(), str(tree)) == "/"
    assert working_directory(None, view(*bind(str(tree))), str(tree / "sub")) == str(tree / "sub")
    assert working_directory(None, view(*bind(f"{tree}/sub/file")), str(tree / "sub")) == str(tree / "sub")
    assert working_directory("sub", view(*bind(str(tree))), str(tree)) == str(tree / "sub")
    assert working_directory("/t", view(*bind(f"{tree}:/t")), str(tree)) == "/t"


def test_a_working_directory_that_is_not_granted_says_what_to_grant(tree: Path) -> None:
    with pytest.raises(CommandError, match="cannot see") as caught:
        working_directory(str(tree), view(), "/")
    assert f"--ro {tree}" in caught.value.hints[0]
    with pytest.raises(CommandError, match="is not a directory"):
        working_directory("/t/near", view(*bind(f"{tree}:/t")), "/")
    with pytest.raises(CommandError, match=r"there is no /x/y"):
        working_directory("/x/y", view(), "/")
