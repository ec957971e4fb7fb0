"""Namespace prefixes as a property: which entries of a list a cell ends up with. Source: spec 3.8, 3.9.

The model below is the rule of the specification, written down once more in the plainest way.
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig.launchers import make_launcher
from rig.workload import observe

from shoal import AddNsEntry, CloneDir, Directory, InvalidArgsError

names = st.sampled_from(["a", "b", "ab", "a.b", "ü", "c c"])
prefixes = st.lists(names, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Eight directories, each with a file `who` that holds its number."""
    base = tmp_path_factory.mktemp("folders")
    made = []
    for number in range(8):
        (base / str(number)).mkdir()
        (base / str(number) / "who").write_text(str(number))
        made.append(base / str(number))
    return made


def covers(outer, inner):
    """Whether `inner` is `outer` or lies below it, by whole components."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def bound(paths):
    """Which of the entries, in this order, a namespace accepts: the index of each that is not ignored."""
    kept = []
    for index, path in enumerate(paths):
        if not any(covers(paths[other], path) or covers(path, paths[other]) for other in kept):
            kept.append(index)
    return kept


@settings(max_examples=50)
@given(paths=st.lists(prefixes, min_size=1, max_size=6))
def test_of_overlapping_entries_the_earlier_is_kept(workload, folders, paths):
    kept = bound(paths)
    actions = [AddNsEntry(path, Directory.open(folder)) for path, folder in zip(paths, folders, strict=False)]
    verbs = [word for path in sorted(set(paths)) for word in ("cat", f"{path}/who")]
    report = observe(make_launcher("cell"), workload, *verbs, "list", "/", actions=actions)
    for path in set(paths):
        owner = next((index for index in kept if paths[index] == path), None)
        words = report.one("cat", f"{path}/who")
        assert words == ["ok", str(owner)] if owner is not None else words[0] != "ok"
    assert sorted(report.one("list", "/")[1:]) == sorted({paths[index].split("/")[1] for index in kept})


@settings(max_examples=40)
@given(chosen=st.lists(st.sampled_from(["x", "x/y", "x/y/z", "xy", "x/yz", "missing", "x//y", "x/."]), min_size=1, max_size=4))
def test_clone_dir_selects_what_lies_at_or_below_a_prefix_and_nothing_else(workload, tmp_path_factory, chosen):
    base = tmp_path_factory.mktemp("cloned")
    real = ["x", "x/y", "x/y/z", "xy", "x/yz"]
    for name in real:
        (base / name).mkdir(exist_ok=True, parents=True)
        (base / name / "who").write_text(name)
    expected = {name for name in real if any(covers(f"/{prefix}", f"/{name}") for prefix in chosen if prefix in real)}
    verbs = [word for name in real for word in ("cat", f"{base}/{name}/who")]
    report = observe(make_launcher("cell"), workload, *verbs, actions=[CloneDir(f"{base}/{prefix}") for prefix in chosen])
    assert {name for name in real if report.ok("cat", f"{base}/{name}/who")} == expected


malformed = st.one_of(
    st.just(""),
    prefixes.map(lambda path: path[1:]),
    prefixes.map(lambda path: path + "/"),
    prefixes.map(lambda path: f"{path}/../x"),
    prefixes.map(lambda path: f"/..{path}"),
    prefixes.map(lambda path: f"{path}\0"),
)


@settings(max_examples=60)
@given(prefix=malformed, before=st.integers(0, 3))
def test_a_malformed_clone_dir_is_refused_with_its_index(workload, prefix, before):
    with pytest.raises(InvalidArgsError, match=f"action {before}\\b"):
        make_launcher("cell")(workload, ["workload"], actions=[*[CloneDir("/nowhere")] * before, CloneDir(prefix)])


@settings(max_examples=60)
@given(prefix=malformed.filter(lambda path: not (path.startswith("/") and path.endswith("/"))), before=st.integers(0, 3))
def test_a_malformed_added_entry_is_refused_with_its_index_and_consumed(workload, folders, prefix, before):
    handles = [Directory.open(folder) for folder in folders[: before + 1]]
    actions = [AddNsEntry(f"/good{index}", handle) for index, handle in enumerate(handles[:-1])]
    with pytest.raises(InvalidArgsError, match=f"action {before}\\b"):
        make_launcher("cell")(workload, ["workload"], actions=[*actions, AddNsEntry(prefix, handles[-1])])
    assert all(handle.closed for handle in handles)
    assert sorted(os.listdir(folders[0])) == ["who"]
